// SPDX-License-Identifier: GPL-2.0-only
/*
 * Drive an edu-plus device the way a userspace driver would, and report.
 *
 * This is a demonstration to be read and run by hand, not a test for the
 * harness. It nevertheless checks everything that it claims: the exit status
 * is 0 only if all of it holds.
 *
 * What is done with a slice of the device (a frame of registers, a range of
 * RAM) only depends on its address, not on how it came to be mapped.
 */
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "lib/drivers/edu/registers.h"

#define COPY_SIZE		SZ_1M
#define COPY_TIMEOUT_MS		10000
#define RAM_STRIDE		SZ_4K

struct report {
	unsigned int held;
	unsigned int broken;
};

struct demo {
	struct report report;

	struct iommu *iommu;
	struct iova_allocator *iova_allocator;
	struct vfio_pci_device *device;

	/* The three things that the device offers, as mapped through VFIO. */
	void *regs;
	void *ram;
	void *frames;
	u64 ram_size;
	u32 nr_frames;

	/* Memory that the device may reach. */
	struct dma_region memory;

	/* The interrupt by which the copy engine says that it is done. */
	int copy_irq_fd;
};

static __printf(1, 2) void section(const char *fmt, ...)
{
	va_list args;

	printf("\n");
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
}

static __printf(3, 4) void check(struct report *report, bool holds,
				 const char *fmt, ...)
{
	va_list args;

	if (holds)
		report->held++;
	else
		report->broken++;

	printf("  %s  ", holds ? "ok  " : "FAIL");
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
}

/*
 * Frames: each one is a programming interface of its own, so that it can be
 * handed to somebody else while the others are kept.
 */

struct frame_result {
	bool identity;
	bool scratch;
	bool inverter;
	bool doorbell;
};

static u32 frame_value(u32 index)
{
	return 0xf0000000U | (index + 1) * 0x101U;
}

static void frame_prepare(void *frame, u32 index)
{
	writel(frame_value(index), frame + EDU_FRAME_SCRATCH);
	writeq(~(u64)frame_value(index), frame + EDU_FRAME_SCRATCH64);
	writel(frame_value(index), frame + EDU_FRAME_INVERT);
}

static bool frame_ring(void *frame, u32 value, u32 rings)
{
	u32 before = readl(frame + EDU_FRAME_DOORBELL_COUNT);
	u32 i;

	for (i = 0; i < rings; i++)
		writel(value + i, frame + EDU_FRAME_DOORBELL);

	return readl(frame + EDU_FRAME_DOORBELL_COUNT) == before + rings &&
	       readl(frame + EDU_FRAME_DOORBELL_LAST) == value + rings - 1;
}

/* To be called once all frames are prepared: shows that none sees another. */
static struct frame_result frame_work(void *frame, u32 index)
{
	u32 value = frame_value(index);

	return (struct frame_result) {
		.identity = readl(frame + EDU_FRAME_ID) == EDU_FRAME_ID_VALUE &&
			    readl(frame + EDU_FRAME_INDEX) == index,
		.scratch = readl(frame + EDU_FRAME_SCRATCH) == value &&
			   readq(frame + EDU_FRAME_SCRATCH64) == ~(u64)value,
		.inverter = readl(frame + EDU_FRAME_INVERT) == ~value,
		.doorbell = frame_ring(frame, value, index + 1),
	};
}

static void demo_frames(struct demo *demo)
{
	u32 identity = 0, scratch = 0, inverter = 0, doorbell = 0;
	u32 n = demo->nr_frames;
	u64 rings = 0;
	u32 i;

	section("Frames: %u of them, in BAR %d", n, EDU_PLUS_BAR_FRAMES);

	for (i = 0; i < n; i++)
		frame_prepare(demo->frames + i * EDU_FRAME_SIZE, i);

	for (i = 0; i < n; i++) {
		struct frame_result result;

		result = frame_work(demo->frames + i * EDU_FRAME_SIZE, i);
		identity += result.identity;
		scratch += result.scratch;
		inverter += result.inverter;
		doorbell += result.doorbell;
		rings += i + 1;
	}

	check(&demo->report, identity == n, "%u of %u know who they are", identity, n);
	check(&demo->report, scratch == n,
	      "%u of %u keep what was written to them, not to a neighbour", scratch, n);
	check(&demo->report, inverter == n, "%u of %u invert", inverter, n);
	check(&demo->report, doorbell == n, "%u of %u count their doorbell, %lu rings in all",
	      doorbell, n, rings);
}

/* RAM: one marker per page, so that any two pages being one shows. */

static void ram_write(void *ram, u64 size, u64 seed)
{
	u64 offset;

	for (offset = 0; offset < size; offset += RAM_STRIDE)
		writeq(seed + offset, ram + offset);
}

static u64 ram_count(void *ram, u64 size, u64 seed)
{
	u64 offset, n = 0;

	for (offset = 0; offset < size; offset += RAM_STRIDE)
		n += readq(ram + offset) == seed + offset;

	return n;
}

/* Word by word: a BAR need not take what memcmp() makes of it. */
static bool ram_equals(void *ram, void *memory, u64 size)
{
	u64 *word = memory;
	u64 offset;

	for (offset = 0; offset < size; offset += sizeof(*word)) {
		if (readq(ram + offset) != *word++)
			return false;
	}

	return true;
}

static void demo_ram(struct demo *demo)
{
	u64 pages = demo->ram_size / RAM_STRIDE;
	u64 n;

	section("RAM: %lu MiB, in BAR %d", demo->ram_size / SZ_1M, EDU_PLUS_BAR_RAM);

	ram_write(demo->ram, demo->ram_size, 0x5eed0000);
	n = ram_count(demo->ram, demo->ram_size, 0x5eed0000);
	check(&demo->report, n == pages, "%lu of %lu pages hold a mark of their own", n, pages);

	ram_write(demo->ram, demo->ram_size, 0);
	n = ram_count(demo->ram, demo->ram_size, 0);
	check(&demo->report, n == pages, "%lu of %lu pages hold another one", n, pages);
}

/*
 * Copy engine: @src and @dst are bus addresses, or offsets into the device's
 * RAM if @flags says so. Returns the engine's result, -1 if it remains silent.
 */
static int copy(struct demo *demo, u64 src, u64 dst, u64 size, u32 flags)
{
	struct pollfd pollfd = {
		.fd = demo->copy_irq_fd,
		.events = POLLIN,
	};
	u32 status;
	u64 value;

	writeq(src, demo->regs + EDU_PLUS_COPY_SRC);
	writeq(dst, demo->regs + EDU_PLUS_COPY_DST);
	writeq(size, demo->regs + EDU_PLUS_COPY_LEN);
	writel(1, demo->regs + EDU_PLUS_COPY_COUNT);
	writel(flags | EDU_PLUS_COPY_CMD_IRQ | EDU_PLUS_COPY_CMD_START,
	       demo->regs + EDU_PLUS_COPY_CMD);

	if (poll(&pollfd, 1, COPY_TIMEOUT_MS) != 1)
		return -1;

	VFIO_ASSERT_EQ(read(demo->copy_irq_fd, &value, sizeof(value)), sizeof(value));
	writel(UINT32_MAX, demo->regs + EDU_IRQ_ACK);

	status = readl(demo->regs + EDU_PLUS_COPY_STATUS);
	if (status & EDU_PLUS_COPY_STATUS_BUSY)
		return -1;

	return status & EDU_PLUS_COPY_STATUS_RESULT;
}

static void demo_copy(struct demo *demo)
{
	u64 size = min_t(u64, COPY_SIZE, demo->ram_size / 2);
	void *there = demo->memory.vaddr;
	void *back = there + COPY_SIZE;
	u64 half = demo->ram_size / 2;
	u64 nowhere;
	u64 i;
	int r;

	section("Copy engine: %lu KiB at a time, with an interrupt at the end", size / SZ_1K);

	for (i = 0; i < size; i++)
		((u8 *)there)[i] = i * 7 + (i >> 8);
	memset(back, 0, size);

	r = copy(demo, to_iova(demo->device, there), half, size,
		 EDU_PLUS_COPY_CMD_DST_RAM);
	check(&demo->report, r == EDU_PLUS_COPY_OK && ram_equals(demo->ram + half, there, size),
	      "memory to RAM, seen through the BAR");

	r = copy(demo, half, 0, size,
		 EDU_PLUS_COPY_CMD_SRC_RAM | EDU_PLUS_COPY_CMD_DST_RAM);
	check(&demo->report, r == EDU_PLUS_COPY_OK && ram_equals(demo->ram, there, size),
	      "RAM to RAM, seen through the BAR");

	r = copy(demo, 0, to_iova(demo->device, back), size,
		 EDU_PLUS_COPY_CMD_SRC_RAM);
	check(&demo->report, r == EDU_PLUS_COPY_OK && !memcmp(there, back, size),
	      "RAM to memory, equal to what was sent");

	nowhere = iova_allocator_alloc(demo->iova_allocator, COPY_SIZE);
	r = copy(demo, nowhere, 0, size, EDU_PLUS_COPY_CMD_DST_RAM);
	check(&demo->report, r == EDU_PLUS_COPY_BUS_ERROR && ram_equals(demo->ram, there, size),
	      "memory that was not mapped for the device: refused, RAM untouched");
}

static const char *region_name(int index)
{
	switch (index) {
	case EDU_BAR_REGS:
		return "registers";
	case EDU_PLUS_BAR_RAM:
		return "RAM";
	case EDU_PLUS_BAR_FRAMES:
		return "frames";
	case EDU_PLUS_BAR_MSIX:
		return "MSI-X";
	default:
		return "?";
	}
}

static void demo_device(struct demo *demo)
{
	struct vfio_pci_device *device = demo->device;
	u32 invert;
	int i;

	section("Device: %s, driver %s, IOMMU mode %s", device->bdf,
		device->driver.ops->name, demo->iommu->mode->name);

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_pci_bar *bar = &device->bars[i];

		if (bar->vaddr)
			printf("        BAR %d  %-10s %8llu KiB at %p\n", i, region_name(i),
			       bar->info.size / SZ_1K, bar->vaddr);
	}

	check(&demo->report, readl(demo->regs + EDU_ID) == EDU_ID_VALUE, "says that it is an edu");
	check(&demo->report, readl(demo->regs + EDU_PLUS_ID) == EDU_PLUS_ID_VALUE,
	      "says that it is an edu-plus, version %u.%u",
	      EDU_PLUS_VERSION_MAJOR(readl(demo->regs + EDU_PLUS_VERSION)),
	      readl(demo->regs + EDU_PLUS_VERSION) & 0xffff);

	writel(0x12345678, demo->regs + EDU_INVERT);
	invert = readl(demo->regs + EDU_INVERT);
	check(&demo->report, invert == ~0x12345678U, "inverts 0x12345678 to 0x%x", invert);

	check(&demo->report, device->bars[EDU_PLUS_BAR_RAM].info.size == demo->ram_size,
	      "offers as much RAM as it says");
	check(&demo->report, device->bars[EDU_PLUS_BAR_FRAMES].info.size >=
			     (u64)demo->nr_frames * EDU_FRAME_SIZE,
	      "offers as many frames as it says");
}

static void demo_open(struct demo *demo, const char *bdf)
{
	struct vfio_pci_device *device;
	int vector;

	demo->iommu = iommu_init(MODE_IOMMUFD);
	device = vfio_pci_device_init(bdf, demo->iommu);
	demo->device = device;

	if (!device->driver.ops || strcmp(device->driver.ops->name, "edu-plus")) {
		fprintf(stderr, "%s is no edu-plus, skipping.\n", bdf);
		exit(KSFT_SKIP);
	}

	demo->regs = device->bars[EDU_BAR_REGS].vaddr;
	demo->ram = device->bars[EDU_PLUS_BAR_RAM].vaddr;
	demo->frames = device->bars[EDU_PLUS_BAR_FRAMES].vaddr;
	demo->ram_size = readq(demo->regs + EDU_PLUS_RAM_SIZE);
	demo->nr_frames = readl(demo->regs + EDU_PLUS_FRAMES);

	if (!demo->ram) {
		fprintf(stderr, "%s has no RAM (ram-size=0), skipping.\n", bdf);
		exit(KSFT_SKIP);
	}

	demo->iova_allocator = iova_allocator_init(demo->iommu);
	demo->memory.size = 2 * COPY_SIZE;
	demo->memory.iova = iova_allocator_alloc(demo->iova_allocator, demo->memory.size);
	demo->memory.vaddr = mmap(NULL, demo->memory.size, PROT_READ | PROT_WRITE,
				  MAP_ANONYMOUS | MAP_SHARED, -1, 0);
	VFIO_ASSERT_NE(demo->memory.vaddr, MAP_FAILED);
	iommu_map(demo->iommu, &demo->memory);

	vfio_pci_cmd_set(device, PCI_COMMAND_MASTER);

	/* The engine has a vector of its own, if there are two. */
	vector = min(device->msix_info.count, 2U) - 1;
	vfio_pci_msix_enable(device, 0, vector + 1);
	demo->copy_irq_fd = device->msi_eventfds[vector];
}

static void demo_close(struct demo *demo)
{
	vfio_pci_msix_disable(demo->device);
	iommu_unmap(demo->iommu, &demo->memory);
	VFIO_ASSERT_EQ(munmap(demo->memory.vaddr, demo->memory.size), 0);
	iova_allocator_cleanup(demo->iova_allocator);
	vfio_pci_device_cleanup(demo->device);
	iommu_cleanup(demo->iommu);
}

int main(int argc, char *argv[])
{
	struct demo demo = {};
	struct report *report = &demo.report;

	/* A report that is cut short still shows how far it came. */
	setvbuf(stdout, NULL, _IOLBF, 0);

	demo_open(&demo, vfio_selftests_get_bdf(&argc, argv));

	demo_device(&demo);
	demo_frames(&demo);
	demo_ram(&demo);
	demo_copy(&demo);

	demo_close(&demo);

	section("VERDICT: %u of %u hold%s", report->held, report->held + report->broken,
		report->broken ? ", NOT all is well" : ", all is well");

	return report->broken ? KSFT_FAIL : KSFT_PASS;
}
