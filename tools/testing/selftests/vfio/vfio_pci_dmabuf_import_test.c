// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test that another device's DMA reaches a BAR through its DMABUF, and that it
 * ends when the memory behind the BAR goes away or the DMABUF is revoked.
 *
 * Takes two devices: the first one has a BAR with RAM, the second one has a
 * driver in libvfio and is made to read and write that.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <drm/drm.h>

#include <linux/iommufd.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "lib/drivers/edu/registers.h"
#include "kselftest_harness.h"

#define SLICE_OFFSET	SZ_64K
#define SLICE_SIZE	SZ_64K
#define RW		(IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE)

static const char *exporter_bdf;
static const char *importer_bdf;

/* What all tests work with. */
struct setup {
	struct iommu *iommu;
	struct iova_allocator *iova_allocator;
	struct vfio_pci_device *exporter;
	struct vfio_pci_device *importer;

	/* The BAR of the exporter, and the slice of it that is exported. */
	int index;
	void *bar;
	int fd;
	iova_t slice_iova;

	/* Memory for the importer to copy from and to. */
	struct dma_region memory;

	/* Of the walk over the states of the device. */
	iova_t try_iova;
	void *new_map;
};

FIXTURE(vfio_pci_dmabuf_import) {
	struct setup s;
};

static bool is_edu_plus(struct vfio_pci_device *device)
{
	return !strcmp(device->driver.ops->name, "edu-plus");
}

static int map_slice(struct setup *s, u32 flags)
{
	return __iommu_map_dmabuf(s->iommu, s->fd, 0, SLICE_SIZE, s->slice_iova, flags);
}

FIXTURE_SETUP(vfio_pci_dmabuf_import)
{
	struct setup *s = &self->s;

	s->iommu = iommu_init(MODE_IOMMUFD);
	s->iova_allocator = iova_allocator_init(s->iommu);
	s->exporter = vfio_pci_device_init(exporter_bdf, s->iommu);
	s->importer = vfio_pci_device_init(importer_bdf, s->iommu);
	s->index = vfio_pci_ram_bar(s->exporter);

	if (s->index < 0)
		SKIP(return, "%s has no BAR with RAM", exporter_bdf);
	if (!s->importer->driver.ops)
		SKIP(return, "There is no driver for %s", importer_bdf);
	if (!vfio_pci_has_feature(s->exporter, VFIO_DEVICE_FEATURE_GET |
					       VFIO_DEVICE_FEATURE_DMA_BUF))
		SKIP(return, "The kernel does not export DMABUFs from BARs of %s", exporter_bdf);

	s->bar = s->exporter->bars[s->index].vaddr;
	dma_region_setup(s->iommu, s->iova_allocator, &s->memory, SLICE_SIZE);
	dma_region_setup(s->iommu, s->iova_allocator, &s->importer->driver.region, SZ_2M);
	vfio_pci_driver_init(s->importer);

	s->fd = vfio_pci_dmabuf_export_range(s->exporter, s->index, SLICE_OFFSET, SLICE_SIZE);
	s->slice_iova = iova_allocator_alloc(s->iova_allocator, SLICE_SIZE);
	VFIO_ASSERT_EQ(map_slice(s, RW), 0);
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_import)
{
	struct setup *s = &self->s;

	VFIO_ASSERT_EQ(close(s->fd), 0);
	iova_allocator_cleanup(s->iova_allocator);
	vfio_pci_device_cleanup(s->importer);
	vfio_pci_device_cleanup(s->exporter);
	iommu_cleanup(s->iommu);
}

/* Bytes of a pattern: 0 to stay clear of what devices read from nowhere. */
static void memory_fill(struct setup *s, u32 value)
{
	u32 *word = s->memory.vaddr;
	int i;

	for (i = 0; i < SLICE_SIZE / sizeof(*word); i++)
		word[i] = value + i;
}

static bool memory_holds(struct setup *s, u32 value)
{
	u32 *word = s->memory.vaddr;
	int i;

	for (i = 0; i < SLICE_SIZE / sizeof(*word); i++) {
		if (word[i] != value + i)
			return false;
	}

	return true;
}

static void slice_fill(struct setup *s, u32 value)
{
	int i;

	for (i = 0; i < SLICE_SIZE / sizeof(u32); i++)
		mmio_write32(s->bar + SLICE_OFFSET + i * sizeof(u32), value + i);
}

static bool slice_holds(struct setup *s, u32 value)
{
	int i;

	for (i = 0; i < SLICE_SIZE / sizeof(u32); i++) {
		if (mmio_read32(s->bar + SLICE_OFFSET + i * sizeof(u32)) != value + i)
			return false;
	}

	return true;
}

/* DMA from memory into the slice, and back. */

static int dma_write(struct setup *s)
{
	return vfio_pci_driver_memcpy(s->importer, s->memory.iova, s->slice_iova, SLICE_SIZE);
}

static int dma_read(struct setup *s)
{
	return vfio_pci_driver_memcpy(s->importer, s->slice_iova, s->memory.iova, SLICE_SIZE);
}

static bool dma_works(struct setup *s)
{
	slice_fill(s, 0x1000);
	memory_fill(s, 0x2000);
	if (dma_write(s) || !slice_holds(s, 0x2000))
		return false;

	slice_fill(s, 0x3000);
	return !dma_read(s) && memory_holds(s, 0x3000);
}

/*
 * Neither direction moves any data, whatever the device says about it. The
 * slice has to be accessible for the CPU.
 */
static bool dma_is_dead(struct setup *s)
{
	slice_fill(s, 0x4000);
	memory_fill(s, 0x5000);
	dma_write(s);
	if (!slice_holds(s, 0x4000))
		return false;

	dma_read(s);
	return !memory_holds(s, 0x4000);
}

TEST_F(vfio_pci_dmabuf_import, read_write)
{
	struct setup *s = &self->s;

	ASSERT_TRUE(dma_works(s));

	/* Not one byte beside it. */
	mmio_write32(s->bar + SLICE_OFFSET - 4, 0xed6e0001);
	mmio_write32(s->bar + SLICE_OFFSET + SLICE_SIZE, 0xed6e0002);
	ASSERT_EQ(0, dma_write(s));
	ASSERT_EQ(0xed6e0001, mmio_read32(s->bar + SLICE_OFFSET - 4));
	ASSERT_EQ(0xed6e0002, mmio_read32(s->bar + SLICE_OFFSET + SLICE_SIZE));

	iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
	ASSERT_TRUE(dma_is_dead(s));
}

TEST_F(vfio_pci_dmabuf_import, bad_span)
{
	struct setup *s = &self->s;
	iova_t iova = iova_allocator_alloc(s->iova_allocator, SZ_1M);

	EXPECT_EQ(-EINVAL, __iommu_map_dmabuf(s->iommu, s->fd, 0, 2 * SLICE_SIZE, iova, RW));
	EXPECT_EQ(-EINVAL, __iommu_map_dmabuf(s->iommu, s->fd, SLICE_SIZE, getpagesize(), iova,
					      RW));
	EXPECT_EQ(-EINVAL, __iommu_map_dmabuf(s->iommu, s->fd, 0, 0, iova, RW));
}

/*
 * iommufd has one address and one length for all of a buffer: what consists of
 * several ranges is refused, and those that meet are one.
 */
TEST_F(vfio_pci_dmabuf_import, ranges)
{
	struct vfio_region_dma_range ranges[] = {
		{ .offset = SLICE_OFFSET + SLICE_SIZE / 2, .length = SLICE_SIZE / 2 },
		{ .offset = SLICE_OFFSET, .length = SLICE_SIZE / 2 },
	};
	struct setup *s = &self->s;

	if (SLICE_SIZE / 2 < getpagesize())
		SKIP(return, "Made for pages of 4 KiB");

	iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
	ASSERT_EQ(0, close(s->fd));
	s->fd = vfio_pci_dmabuf_export(s->exporter, s->index, O_RDWR | O_CLOEXEC, ranges,
				       ARRAY_SIZE(ranges));
	EXPECT_EQ(-EOPNOTSUPP, map_slice(s, RW));
	/* Nor what lies within the first of them. */
	EXPECT_EQ(-EOPNOTSUPP, __iommu_map_dmabuf(s->iommu, s->fd, 0, getpagesize(),
						  s->slice_iova, RW));
	EXPECT_TRUE(dma_is_dead(s));

	/* They are merged since DMABUFs are revoked. */
	if (!vfio_pci_has_feature(s->exporter, VFIO_DEVICE_FEATURE_SET |
					       VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE))
		SKIP(return, "The kernel does not revoke DMABUFs");

	ranges[0].offset = SLICE_OFFSET;
	ranges[1].offset = SLICE_OFFSET + SLICE_SIZE / 2;
	ASSERT_EQ(0, close(s->fd));
	s->fd = vfio_pci_dmabuf_export(s->exporter, s->index, O_RDWR | O_CLOEXEC, ranges,
				       ARRAY_SIZE(ranges));
	ASSERT_EQ(0, map_slice(s, RW));
	EXPECT_TRUE(dma_works(s));
}

/* The importer's map goes with the memory and stays away; a new one works. */
TEST_F(vfio_pci_dmabuf_import, memory_disable)
{
	struct setup *s = &self->s;

	ASSERT_TRUE(dma_works(s));

	vfio_pci_cmd_clear(s->exporter, PCI_COMMAND_MEMORY);
	EXPECT_EQ(-ENODEV, map_slice(s, RW));
	vfio_pci_cmd_set(s->exporter, PCI_COMMAND_MEMORY);
	ASSERT_TRUE(dma_is_dead(s));

	iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
	ASSERT_EQ(0, map_slice(s, RW));
	ASSERT_TRUE(dma_works(s));
}

TEST_F(vfio_pci_dmabuf_import, reset)
{
	struct setup *s = &self->s;

	if (!(s->exporter->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "Device does not support reset");

	ASSERT_TRUE(dma_works(s));
	vfio_pci_device_reset(s->exporter);
	ASSERT_TRUE(dma_is_dead(s));

	iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
	ASSERT_EQ(0, map_slice(s, RW));
	ASSERT_TRUE(dma_works(s));
}

TEST_F(vfio_pci_dmabuf_import, low_power)
{
	struct setup *s = &self->s;
	int r;

	r = __vfio_pci_low_power_entry(s->exporter);
	if (r == -EOPNOTSUPP)
		SKIP(return, "Device has no low power state");

	ASSERT_EQ(0, r);
	EXPECT_EQ(-ENODEV, map_slice(s, RW));
	ASSERT_EQ(0, __vfio_pci_low_power_exit(s->exporter));
	ASSERT_TRUE(dma_is_dead(s));

	iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
	ASSERT_EQ(0, map_slice(s, RW));
	ASSERT_TRUE(dma_works(s));
}

TEST_F(vfio_pci_dmabuf_import, revoke)
{
	struct setup *s = &self->s;

	if (!vfio_pci_has_feature(s->exporter, VFIO_DEVICE_FEATURE_SET |
					       VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE))
		SKIP(return, "The kernel does not revoke DMABUFs");

	ASSERT_TRUE(dma_works(s));
	vfio_pci_dmabuf_revoke(s->exporter, s->fd);
	ASSERT_TRUE(dma_is_dead(s));

	iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
	ASSERT_EQ(-ENODEV, map_slice(s, RW));

	/* Not even after the device has been away. */
	vfio_pci_cmd_clear(s->exporter, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(s->exporter, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-ENODEV, map_slice(s, RW));

	/* The range may be lent again at once, to the same one. */
	ASSERT_EQ(0, close(s->fd));
	s->fd = vfio_pci_dmabuf_export_range(s->exporter, s->index, SLICE_OFFSET, SLICE_SIZE);
	ASSERT_EQ(0, map_slice(s, RW));
	ASSERT_TRUE(dma_works(s));
}

/* The ways in which the importer loses its map. */
static const struct cut {
	const char *name;
	int (*begin)(struct vfio_pci_device *device);
	int (*end)(struct vfio_pci_device *device);
} cuts[] = {
	{ "memory disable", __vfio_pci_memory_disable, __vfio_pci_memory_enable },
	{ "D3hot", __vfio_pci_d3hot_entry, __vfio_pci_d3hot_exit },
	{ "low power", __vfio_pci_low_power_entry, __vfio_pci_low_power_exit },
	{ "reset", __vfio_pci_device_reset },
	{ "FLR", __vfio_pci_device_flr },
	{ "hot reset", __vfio_pci_device_hot_reset },
	/* The last one, for there is nothing to be had from the DMABUF then. */
	{ "revoke" },
};

static int cut_by_revoke(struct setup *s)
{
	if (!vfio_pci_has_feature(s->exporter, VFIO_DEVICE_FEATURE_SET |
					       VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE))
		return -EOPNOTSUPP;

	return __vfio_pci_dmabuf_revoke(s->exporter, s->fd);
}

/* 0 with the memory accessible, -EOPNOTSUPP if the device does not know this one. */
static int cut_act(struct setup *s, const struct cut *cut)
{
	int r;

	if (!cut->begin)
		return cut_by_revoke(s);

	r = cut->begin(s->exporter);
	return r || !cut->end ? r : cut->end(s->exporter);
}

/*
 * Begin a transfer into the slice, and return when it moves. That of edu-plus then
 * goes on for hours. What other devices are asked for may have come to its end
 * by itself.
 */
static void dma_begin(struct setup *s)
{
	struct vfio_pci_driver *driver = &s->importer->driver;
	u64 end = now_ms() + PROMPT_MS;

	if (is_edu_plus(s->importer))
		driver->max_memcpy_count = UINT32_MAX;

	slice_fill(s, 0x8000);
	memory_fill(s, 0x6000);
	vfio_pci_driver_memcpy_start(s->importer, s->memory.iova, s->slice_iova,
				     min_t(u64, SLICE_SIZE, driver->max_memcpy_size),
				     driver->max_memcpy_count);

	while (is_edu_plus(s->importer) && mmio_read32(s->bar + SLICE_OFFSET) != 0x6000)
		VFIO_ASSERT_LT(now_ms(), end, "The transfer does not begin\n");
}

static void dma_abort(struct setup *s)
{
	void *regs = s->importer->bars[EDU_BAR_REGS].vaddr;

	if (is_edu_plus(s->importer))
		mmio_write32(regs + EDU_PLUS_COPY_CMD, EDU_PLUS_COPY_CMD_ABORT);
	vfio_pci_driver_memcpy_wait(s->importer);
}

/* In the middle of a transfer: once it has returned, not a byte more. */
TEST_F_TIMEOUT(vfio_pci_dmabuf_import, cut_during_dma, 60)
{
	struct setup *s = &self->s;
	int i, r;

	for (i = 0; i < ARRAY_SIZE(cuts); i++) {
		dma_begin(s);
		r = cut_act(s, &cuts[i]);
		TH_LOG("%s: %d", cuts[i].name, r);
		if (r == -EOPNOTSUPP) {
			dma_abort(s);
			continue;
		}

		ASSERT_EQ(0, r);
		slice_fill(s, 0x7000);
		ASSERT_TRUE(slice_holds(s, 0x7000));

		/* It has noticed, which is to say that it was at it. */
		r = vfio_pci_driver_memcpy_wait(s->importer);
		if (is_edu_plus(s->importer))
			ASSERT_EQ(-EIO, r);
		ASSERT_TRUE(slice_holds(s, 0x7000));
		ASSERT_TRUE(dma_is_dead(s));

		iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
		ASSERT_EQ(cuts[i].begin ? 0 : -ENODEV, map_slice(s, RW));
	}
}

/*
 * One walk over the states of the device, in which the mapping of the BAR, that
 * of the DMABUF, the importer and DMABUFs that are new always agree.
 */

/* An eventfd, by which the device tells that it has woken up. */
static int wakeup;

/* It is the device that is to wake up, so it has to have fallen asleep. */
static int fall_asleep(struct vfio_pci_device *device)
{
	return __vfio_pci_low_power_entry_with_wakeup(device, wakeup) ?:
	       __vfio_pci_wait_suspended(device);
}

static int wake_up(struct vfio_pci_device *device)
{
	u64 count;

	vfio_pci_config_readw(device, PCI_VENDOR_ID);
	return read(wakeup, &count, sizeof(count)) == sizeof(count) ? 0 : -errno;
}

static const struct step {
	const char *name;
	int (*act)(struct vfio_pci_device *device);
	bool accessible;
	/* The device must not be talked to, or it wakes up. */
	bool asleep;
} steps[] = {
	{ "memory off", __vfio_pci_memory_disable, false },
	{ "reset, memory off", __vfio_pci_device_reset, false },
	{ "hot reset, memory off", __vfio_pci_device_hot_reset, false },
	{ "memory on", __vfio_pci_memory_enable, true },
	{ "D3hot", __vfio_pci_d3hot_entry, false },
	{ "memory off in D3hot", __vfio_pci_memory_disable, false },
	{ "D0, memory off", __vfio_pci_d3hot_exit, false },
	{ "memory on", __vfio_pci_memory_enable, true },
	{ "memory on twice", __vfio_pci_memory_enable, true },
	{ "D3hot", __vfio_pci_d3hot_entry, false },
	{ "memory on in D3hot", __vfio_pci_memory_enable, false },
	{ "D0", __vfio_pci_d3hot_exit, true },
	{ "D3hot", __vfio_pci_d3hot_entry, false },
	{ "reset in D3hot", __vfio_pci_device_reset, true },
	{ "D3hot", __vfio_pci_d3hot_entry, false },
	{ "hot reset in D3hot", __vfio_pci_device_hot_reset, true },
	{ "FLR", __vfio_pci_device_flr, true },
	{ "low power", __vfio_pci_low_power_entry, false },
	{ "memory on in low power", __vfio_pci_memory_enable, false },
	{ "reset in low power", __vfio_pci_device_reset, false },
	{ "hot reset in low power", __vfio_pci_device_hot_reset, false },
	{ "low power exit", __vfio_pci_low_power_exit, true },
	{ "low power until wake-up", fall_asleep, false, true },
	{ "wake-up", wake_up, true },
	{ "low power exit, awake", __vfio_pci_low_power_exit, true },
	{ "low power", __vfio_pci_low_power_entry, false },
	{ "low power exit", __vfio_pci_low_power_exit, true },
};

/* 0 if the importer can map a DMABUF now, what is asked for is undone. */
static int try_import(struct setup *s, int fd)
{
	int r;

	r = __iommu_map_dmabuf(s->iommu, fd, 0, getpagesize(), s->try_iova, RW);
	if (!r)
		iommu_unmap_dmabuf(s->iommu, s->try_iova, getpagesize());
	return r;
}

static void check_new_dmabuf(struct __test_metadata *_metadata, struct setup *s,
			     const struct step *step)
{
	void *vaddr;
	u32 value;
	int fd;

	fd = vfio_pci_dmabuf_export_range(s->exporter, s->index, SLICE_OFFSET, getpagesize());
	vaddr = dmabuf_map(fd, 0, getpagesize());
	EXPECT_EQ(step->accessible ? 0 : -EFAULT, __mmio_read32(vaddr, &value));
	EXPECT_EQ(step->accessible ? 0 : -ENODEV, try_import(s, fd));
	dmabuf_unmap(vaddr, getpagesize());
	ASSERT_EQ(0, close(fd));
}

static void map_bar_anew(struct setup *s)
{
	s->new_map = dmabuf_map(s->exporter->fd,
				s->exporter->bars[s->index].info.offset + SLICE_OFFSET,
				getpagesize());
}

static void check_new_map(struct __test_metadata *_metadata, struct setup *s,
			  const struct step *step)
{
	u32 value;

	/* The one that was made in the state before, and one of this state. */
	EXPECT_EQ(step->accessible ? 0 : -EFAULT, __mmio_read32(s->new_map, &value));
	dmabuf_unmap(s->new_map, getpagesize());
	map_bar_anew(s);
	EXPECT_EQ(step->accessible ? 0 : -EFAULT, __mmio_read32(s->new_map, &value));
}

static void check_step(struct __test_metadata *_metadata, struct setup *s,
		       const struct step *step, void *vaddr)
{
	u32 value;

	EXPECT_EQ(step->accessible ? 0 : -EFAULT, __mmio_read32(s->bar, &value));
	EXPECT_EQ(step->accessible ? 0 : -EFAULT, __mmio_read32(vaddr, &value));
	EXPECT_EQ(step->accessible ? 0 : -ENODEV, try_import(s, s->fd));
	check_new_map(_metadata, s, step);
	if (!step->asleep)
		check_new_dmabuf(_metadata, s, step);
}

TEST_F_TIMEOUT(vfio_pci_dmabuf_import, walk, 60)
{
	struct setup *s = &self->s;
	bool cut = false;
	void *vaddr;
	int i, r;

	if (!vfio_pci_has_dmabuf_mmap(s->exporter, s->index))
		SKIP(return, "The kernel does not map exported DMABUFs");

	vaddr = dmabuf_map(s->fd, 0, SLICE_SIZE);
	s->try_iova = iova_allocator_alloc(s->iova_allocator, getpagesize());
	map_bar_anew(s);
	wakeup = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	ASSERT_GE(wakeup, 0);

	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		const struct step *step = &steps[i];

		TH_LOG("%s", step->name);
		r = step->act(s->exporter);
		if (r == -EOPNOTSUPP) {
			ASSERT_EQ(KSFT_PASS, _metadata->exit_code);
			SKIP(return, "The device does not know: %s", step->name);
		}
		ASSERT_EQ(0, r);
		check_step(_metadata, s, step, vaddr);

		/* What was mapped before the last outage does not come back. */
		cut |= !step->accessible || step->act == __vfio_pci_device_flr;
		if (cut && step->accessible) {
			ASSERT_TRUE(dma_is_dead(s));
			iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
			ASSERT_EQ(0, map_slice(s, RW));
			cut = false;
		}
		ASSERT_TRUE(!step->accessible || dma_works(s));
	}

	dmabuf_unmap(s->new_map, getpagesize());
	dmabuf_unmap(vaddr, SLICE_SIZE);
	ASSERT_EQ(0, close(wakeup));
}

/*
 * Who may only read a DMABUF cannot have a device write it. As that came with
 * mapping and revoking of DMABUFs, there is no other sign of it.
 */
TEST_F(vfio_pci_dmabuf_import, readonly)
{
	struct vfio_region_dma_range range = {
		.offset = SLICE_OFFSET,
		.length = SLICE_SIZE,
	};
	struct setup *s = &self->s;

	if (!vfio_pci_has_feature(s->exporter, VFIO_DEVICE_FEATURE_SET |
					       VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE))
		SKIP(return, "The kernel does not revoke DMABUFs");

	iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
	ASSERT_EQ(0, close(s->fd));
	s->fd = vfio_pci_dmabuf_export(s->exporter, s->index, O_RDONLY | O_CLOEXEC, &range, 1);

	EXPECT_EQ(-EPERM, map_slice(s, RW));
	EXPECT_EQ(-EPERM, map_slice(s, IOMMU_IOAS_MAP_WRITEABLE));
	ASSERT_EQ(0, map_slice(s, IOMMU_IOAS_MAP_READABLE));

	slice_fill(s, 0xb000);
	memory_fill(s, 0xc000);
	dma_write(s);
	EXPECT_TRUE(slice_holds(s, 0xb000));
	ASSERT_EQ(0, dma_read(s));
	EXPECT_TRUE(memory_holds(s, 0xb000));
}

/* A DRM device of vgem, which imports what it can access by the CPU only. */
static int vgem_open(void)
{
	char name[32] = "";
	glob_t cards;
	int fd = -1;
	size_t i;

	if (glob("/dev/dri/card*", 0, NULL, &cards))
		return -1;

	for (i = 0; i < cards.gl_pathc && fd < 0; i++) {
		struct drm_version version = {
			.name = name,
			.name_len = sizeof(name) - 1,
		};

		fd = open(cards.gl_pathv[i], O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;

		if (ioctl(fd, DRM_IOCTL_VERSION, &version) || strcmp(name, "vgem")) {
			close(fd);
			fd = -1;
		}
	}

	globfree(&cards);
	return fd;
}

TEST_F(vfio_pci_dmabuf_import, no_peer_to_peer)
{
	struct drm_prime_handle prime = { .fd = self->s.fd };
	struct setup *s = &self->s;
	int vgem;

	vgem = vgem_open();
	if (vgem < 0)
		SKIP(return, "No importer without peer-to-peer DMA: it needs CONFIG_DRM_VGEM");

	EXPECT_EQ(-1, ioctl(vgem, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime));
	EXPECT_EQ(EOPNOTSUPP, errno);
	EXPECT_TRUE(dma_works(s));

	ASSERT_EQ(0, close(vgem));
}

/* An fd that is left over from a closed device leads nowhere. */
TEST_F(vfio_pci_dmabuf_import, exporter_closed)
{
	struct setup *s = &self->s;

	ASSERT_TRUE(dma_works(s));
	vfio_pci_device_cleanup(s->exporter);

	memory_fill(s, 0x8000);
	dma_write(s);

	/* A device that is closed may sleep, and not answer for that reason alone. */
	s->exporter = vfio_pci_device_init(exporter_bdf, s->iommu);
	s->bar = s->exporter->bars[s->index].vaddr;
	EXPECT_TRUE(slice_holds(s, 0x3000));
	EXPECT_TRUE(dma_is_dead(s));

	iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
	EXPECT_EQ(-ENODEV, map_slice(s, RW));
}

/*
 * type1 copies what the page tables of the process hold and never hears of a
 * change. So it takes BARs, which who has the device has for as long as it is
 * open, but no DMABUFs that were exported from them.
 */
FIXTURE(vfio_pci_dmabuf_type1) {
	struct iommu *iommu;
	struct iova_allocator *iova_allocator;
	struct vfio_pci_device *device;
	int index;
	int fd;
};

FIXTURE_VARIANT(vfio_pci_dmabuf_type1) {
	const char *iommu_mode;
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_type1, v1) {
	.iommu_mode = MODE_VFIO_TYPE1_IOMMU,
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_type1, v2) {
	.iommu_mode = MODE_VFIO_TYPE1V2_IOMMU,
};

FIXTURE_SETUP(vfio_pci_dmabuf_type1)
{
	char state[32];

	self->iommu = iommu_init(variant->iommu_mode);
	self->device = vfio_pci_device_init(exporter_bdf, self->iommu);
	self->iova_allocator = iova_allocator_init(self->iommu);
	self->index = vfio_pci_ram_bar(self->device);

	if (self->index < 0)
		SKIP(return, "%s has no BAR with RAM", exporter_bdf);
	if (!vfio_pci_has_feature(self->device, VFIO_DEVICE_FEATURE_GET |
						VFIO_DEVICE_FEATURE_DMA_BUF) ||
	    !vfio_pci_has_dmabuf_mmap(self->device, self->index))
		SKIP(return, "The kernel does not map exported DMABUFs");

	self->fd = vfio_pci_dmabuf_export_range(self->device, self->index, SLICE_OFFSET,
						SLICE_SIZE);

	/* What type1 knows of DMABUFs came right before the state in fdinfo. */
	if (!fdinfo_get(self->fd, "vfio-pci-state", state, sizeof(state)))
		SKIP(return, "The kernel does not keep DMABUFs out of type1");
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_type1)
{
	VFIO_ASSERT_EQ(close(self->fd), 0);
	iova_allocator_cleanup(self->iova_allocator);
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
}

TEST_F(vfio_pci_dmabuf_type1, refused)
{
	struct dma_region region = { .size = SLICE_SIZE };
	void *vaddr, *reserved;

	region.iova = iova_allocator_alloc(self->iova_allocator, 2 * SLICE_SIZE);

	/* Not before there is a translation, nor after that. */
	vaddr = dmabuf_map(self->fd, 0, SLICE_SIZE);
	region.vaddr = vaddr;
	EXPECT_EQ(-EFAULT, __iommu_map(self->iommu, &region));
	mmio_write32(vaddr, 0xd0000001);
	EXPECT_EQ(-EFAULT, __iommu_map(self->iommu, &region));

	/* Nor behind something else. */
	reserved = mmap(NULL, 2 * SLICE_SIZE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, reserved);
	ASSERT_EQ(reserved + SLICE_SIZE, mremap(vaddr, SLICE_SIZE, SLICE_SIZE,
						MREMAP_MAYMOVE | MREMAP_FIXED,
						reserved + SLICE_SIZE));
	region.vaddr = reserved;
	region.size = 2 * SLICE_SIZE;
	EXPECT_EQ(-EFAULT, __iommu_map(self->iommu, &region));

	/* What has failed leaves nothing behind, and the DMABUF in working order. */
	region.size = SLICE_SIZE;
	ASSERT_EQ(0, __iommu_map(self->iommu, &region));
	iommu_unmap(self->iommu, &region);
	ASSERT_EQ(0xd0000001, mmio_read32(reserved + SLICE_SIZE));
	dmabuf_unmap(reserved, 2 * SLICE_SIZE);
}

TEST_F(vfio_pci_dmabuf_type1, bar)
{
	struct dma_region region = {
		.vaddr = self->device->bars[self->index].vaddr + SLICE_OFFSET,
		.size = SLICE_SIZE,
	};

	region.iova = iova_allocator_alloc(self->iova_allocator, SLICE_SIZE);
	ASSERT_EQ(0, __iommu_map(self->iommu, &region));
	iommu_unmap(self->iommu, &region);
}

int main(int argc, char *argv[])
{
	int nr_bdfs;
	char **bdfs;

	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr_bdfs);
	if (nr_bdfs < 2) {
		fprintf(stderr, "Two devices are needed, skipping.\n");
		return KSFT_SKIP;
	}

	exporter_bdf = bdfs[0];
	importer_bdf = bdfs[1];
	return test_harness_run(argc, argv);
}
