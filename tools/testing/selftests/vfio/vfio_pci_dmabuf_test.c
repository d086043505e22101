// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test DMABUFs that are exported from BARs, as seen by the CPU: which can be
 * exported and mapped, what such a map shows, when it is alive, how it is taken
 * back for good, and by which memory type it is mapped.
 *
 * That an export takes a file is tested if $VFIO_SELFTESTS_FILE_MAX is set: for a
 * moment nobody on the machine but the administrator gets a file then.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <linux/align.h>
#include <linux/build_bug.h>
#include <linux/compiler.h>
#include <linux/dma-buf.h>
#include <linux/kernel.h>
#include <linux/log2.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/udmabuf.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

#define FEATURE_DMA_BUF		(VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF)
#define FEATURE_REVOKE		(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE)
#define FEATURE_MEMATTR		(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR)

#define NC			VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR_NC
#define WC			VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR_WC

/* Not in every libc. */
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#endif

/* Asks for the test for which nobody on the machine gets a file. */
#define FILE_MAX		"VFIO_SELFTESTS_FILE_MAX"

/* Kernel and tests have these from one header, and would agree on any other numbers. */
static_assert(VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE == 14);
static_assert(VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR == 15);
static_assert(_IO(';', 100 + 22) == VFIO_DEVICE_PCI_DMABUF_REVOKE);
static_assert(NC == 0);
static_assert(WC == 1);
static_assert(sizeof(struct vfio_device_feature_dma_buf_revoke) == 4);
static_assert(sizeof(struct vfio_device_feature_dma_buf_memattr) == 8);
static_assert(offsetof(struct vfio_device_feature_dma_buf_memattr, dmabuf_fd) == 0);
static_assert(offsetof(struct vfio_device_feature_dma_buf_memattr, memattr) == 4);
static_assert(sizeof(struct vfio_pci_dmabuf_revoke) == 8);
static_assert(offsetof(struct vfio_pci_dmabuf_revoke, argsz) == 0);
static_assert(offsetof(struct vfio_pci_dmabuf_revoke, dmabuf_fd) == 4);

static const char *device_bdf;

/* A second device, NULL if there is none. */
static const char *other_bdf;

/* What all fixtures work with: a device, and the BAR of it to play with. */
struct setup {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	long page_size;

	/* The BAR with RAM, if there is one, or else the largest. */
	int index;
	u64 size;
	void *bar;
	bool is_ram;
};

/* Return why the tests cannot run, NULL if they can. */
static const char *setup_init(struct setup *s, const char *iommu_mode)
{
	int i;

	s->page_size = getpagesize();
	s->iommu = iommu_init(iommu_mode);
	s->device = vfio_pci_device_init(device_bdf, s->iommu);
	s->index = vfio_pci_ram_bar(s->device);
	s->is_ram = s->index >= 0;

	for (i = 0; i < PCI_STD_NUM_BARS && !s->is_ram; i++) {
		struct vfio_pci_bar *bar = &s->device->bars[i];

		if (!bar->vaddr || bar->info.size < s->page_size)
			continue;

		if (s->index < 0 || bar->info.size > s->device->bars[s->index].info.size)
			s->index = i;
	}

	if (s->index < 0)
		return "The device has no BAR that can be mapped";

	if (!vfio_pci_has_feature(s->device, FEATURE_DMA_BUF))
		return "The kernel does not export DMABUFs from BARs of this device";

	s->bar = s->device->bars[s->index].vaddr;
	s->size = s->device->bars[s->index].info.size;
	return NULL;
}

static void setup_cleanup(struct setup *s)
{
	vfio_pci_device_cleanup(s->device);
	iommu_cleanup(s->iommu);
}

static int export_range(struct setup *s, u64 offset, u64 length)
{
	return vfio_pci_dmabuf_export_range(s->device, s->index, offset, length);
}

static int export_readonly(struct setup *s, u64 offset, u64 length)
{
	struct vfio_region_dma_range range = { .offset = offset, .length = length };

	return vfio_pci_dmabuf_export(s->device, s->index, O_RDONLY | O_CLOEXEC, &range, 1);
}

static int access_result(void *vaddr)
{
	u32 value;

	return __mmio_read32(vaddr, &value);
}

static int map_result(int fd, u64 offset, u64 size)
{
	void *vaddr;
	int r;

	r = __dmabuf_map(fd, offset, size, PROT_READ, &vaddr);
	if (!r)
		dmabuf_unmap(vaddr, size);
	return r;
}

/* The ways for the BARs to go away for a while. */
static const struct outage {
	const char *name;
	int (*begin)(struct vfio_pci_device *device);
	int (*end)(struct vfio_pci_device *device);
} outages[] = {
	{ "memory disabled", __vfio_pci_memory_disable, __vfio_pci_memory_enable },
	{ "D3hot", __vfio_pci_d3hot_entry, __vfio_pci_d3hot_exit },
	{ "low power", __vfio_pci_low_power_entry, __vfio_pci_low_power_exit },
};

/* What a device may lack, but not fail at. */
static bool is_supported(int r)
{
	if (r == -EOPNOTSUPP)
		return false;

	VFIO_ASSERT_EQ(r, 0);
	return true;
}

/* Returns whether the device can do it. */
static bool outage_begin(const struct outage *outage, struct setup *s)
{
	return is_supported(outage->begin(s->device));
}

static void outage_end(const struct outage *outage, struct setup *s)
{
	VFIO_ASSERT_EQ(outage->end(s->device), 0);
}

/* No outage like the others: any call to the driver ends it. */
static bool enter_low_power_wakeup(struct setup *s)
{
	int wakeup = eventfd(0, EFD_NONBLOCK);
	bool entered;

	VFIO_ASSERT_GE(wakeup, 0);
	entered = is_supported(__vfio_pci_low_power_entry_with_wakeup(s->device, wakeup));
	VFIO_ASSERT_EQ(close(wakeup), 0);

	if (entered)
		vfio_pci_wait_suspended(s->device);
	return entered;
}

static void wake_up(struct setup *s)
{
	vfio_pci_config_readw(s->device, PCI_VENDOR_ID);
}

/*
 * What a call that fails must leave alone: the fds of this process, what it has
 * mapped, and what the kernel knows about the buffers that vfio has exported.
 */
struct state {
	char text[SZ_32K];
};

/* Add the lines of a file that contain @part. */
static void state_add(struct state *state, const char *path, const char *part)
{
	size_t used = strlen(state->text);
	char line[1024];
	FILE *file;

	file = fopen(path, "r");
	if (!file)
		return;

	while (fgets(line, sizeof(line), file)) {
		if (!strstr(line, part))
			continue;

		VFIO_ASSERT_LT(used + strlen(line), sizeof(state->text));
		strcpy(state->text + used, line);
		used += strlen(line);
	}

	VFIO_ASSERT_EQ(fclose(file), 0);
}

static void state_get(struct state *state, int dmabuf_fd)
{
	char path[64];

	snprintf_assert(state->text, sizeof(state->text), "%d fds\n", process_count_fds());
	snprintf_assert(path, sizeof(path), "/proc/self/fdinfo/%d", dmabuf_fd);
	state_add(state, path, "");
	state_add(state, "/proc/self/maps", "/dmabuf:");
	state_add(state, "/sys/kernel/debug/dma_buf/bufinfo", "vfio_pci_core");
}

/* Tell the kernel something by one of its files. */
static void file_write(const char *directory, const char *name, const char *value)
{
	char path[256];
	int fd;

	snprintf_assert(path, sizeof(path), "%s/%s", directory, name);
	fd = open(path, O_WRONLY | O_TRUNC);
	VFIO_ASSERT_GE(fd, 0, "%s\n", path);
	VFIO_ASSERT_EQ(write(fd, value, strlen(value)), strlen(value));
	VFIO_ASSERT_EQ(close(fd), 0);
}

static int udmabuf_create(long size)
{
	struct udmabuf_create create = { .size = size };
	int device, fd;

	device = open("/dev/udmabuf", O_RDWR);
	if (device < 0)
		return -errno;

	create.memfd = memfd_create("udmabuf", MFD_ALLOW_SEALING);
	VFIO_ASSERT_EQ(ftruncate(create.memfd, size), 0);
	VFIO_ASSERT_EQ(fcntl(create.memfd, F_ADD_SEALS, F_SEAL_SHRINK), 0);
	fd = ioctl(device, UDMABUF_CREATE, &create);
	VFIO_ASSERT_GE(fd, 0);
	close(create.memfd);
	close(device);
	return fd;
}

/*
 * Export
 */

FIXTURE(vfio_pci_dmabuf_export) {
	struct setup s;
};

FIXTURE_SETUP(vfio_pci_dmabuf_export)
{
	const char *reason = setup_init(&self->s, default_iommu_mode);

	if (reason)
		SKIP(return, "%s", reason);
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_export)
{
	setup_cleanup(&self->s);
}

TEST_F(vfio_pci_dmabuf_export, size)
{
	struct setup *s = &self->s;
	struct vfio_region_dma_range ranges[] = {
		{ .offset = 0, .length = s->page_size },
		{ .offset = 0, .length = s->size },
		{ .offset = s->size - s->page_size, .length = s->page_size },
	};
	int fd;

	fd = export_range(s, 0, s->size);
	ASSERT_EQ(s->size, lseek(fd, 0, SEEK_END));
	ASSERT_EQ(0, close(fd));

	fd = vfio_pci_dmabuf_export(s->device, s->index, O_RDWR, ranges, ARRAY_SIZE(ranges));
	ASSERT_EQ(s->size + 2 * s->page_size, lseek(fd, 0, SEEK_END));
	ASSERT_EQ(0, close(fd));
}

TEST_F(vfio_pci_dmabuf_export, bad_range)
{
	struct setup *s = &self->s;
	const struct {
		struct vfio_region_dma_range range;
		int error;
	} cases[] = {
		{ { 0, 0 }, -EINVAL },
		{ { s->page_size / 2, s->page_size }, -EINVAL },
		{ { 0, s->page_size / 2 }, -EINVAL },
		{ { s->size, s->page_size }, -EINVAL },
		{ { 0, s->size + s->page_size }, -EINVAL },
		{ { s->size - s->page_size, 2 * s->page_size }, -EINVAL },
		{ { 0, 1ULL << 63 }, -EINVAL },
		{ { -(u64)s->page_size, s->page_size }, -EOVERFLOW },
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		EXPECT_EQ(cases[i].error, __vfio_pci_dmabuf_export(s->device, s->index, O_RDWR,
								   &cases[i].range, 1)) {
			TH_LOG("case %d", i);
		}
	}
}

/* One bad range among good ones spoils the whole. */
TEST_F(vfio_pci_dmabuf_export, bad_range_among_good)
{
	struct setup *s = &self->s;
	struct vfio_region_dma_range ranges[] = {
		{ .offset = 0, .length = s->page_size },
		{ .offset = s->size, .length = s->page_size },
		{ .offset = 0, .length = s->page_size },
	};

	ASSERT_EQ(-EINVAL, __vfio_pci_dmabuf_export(s->device, s->index, O_RDWR, ranges,
						    ARRAY_SIZE(ranges)));
}

TEST_F(vfio_pci_dmabuf_export, bad_region)
{
	struct setup *s = &self->s;
	const u32 indexes[] = {
		VFIO_PCI_ROM_REGION_INDEX,
		VFIO_PCI_CONFIG_REGION_INDEX,
		VFIO_PCI_NUM_REGIONS,
		UINT32_MAX,
	};
	struct vfio_region_dma_range range = { .length = s->page_size };
	int i;

	for (i = 0; i < ARRAY_SIZE(indexes); i++) {
		EXPECT_EQ(-ENODEV, __vfio_pci_dmabuf_export(s->device, indexes[i], O_RDWR,
							    &range, 1));
	}

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		if (s->device->bars[i].info.size)
			continue;

		EXPECT_EQ(-ENODEV, __vfio_pci_dmabuf_export(s->device, i, O_RDWR, &range, 1));
	}
}

TEST_F(vfio_pci_dmabuf_export, bad_arguments)
{
	struct setup *s = &self->s;
	struct {
		struct vfio_device_feature header;
		struct vfio_device_feature_dma_buf dma_buf;
		struct vfio_region_dma_range range;
	} args, good = {
		.header = {
			.argsz = sizeof(good),
			.flags = FEATURE_DMA_BUF,
		},
		.dma_buf = {
			.region_index = s->index,
			.open_flags = O_RDWR,
			.nr_ranges = 1,
		},
		.range = { .length = s->page_size },
	};
	int fd;

	args = good;
	fd = ioctl(s->device->fd, VFIO_DEVICE_FEATURE, &args);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, close(fd));

	args = good;
	args.dma_buf.nr_ranges = 0;
	EXPECT_EQ(-1, ioctl(s->device->fd, VFIO_DEVICE_FEATURE, &args));
	EXPECT_EQ(EINVAL, errno);

	args = good;
	args.dma_buf.flags = 1;
	EXPECT_EQ(-1, ioctl(s->device->fd, VFIO_DEVICE_FEATURE, &args));
	EXPECT_EQ(EINVAL, errno);

	args = good;
	args.header.flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF;
	EXPECT_EQ(-1, ioctl(s->device->fd, VFIO_DEVICE_FEATURE, &args));
	EXPECT_EQ(EINVAL, errno);

	args = good;
	args.header.argsz = sizeof(args.header) + sizeof(args.dma_buf) - 1;
	EXPECT_EQ(-1, ioctl(s->device->fd, VFIO_DEVICE_FEATURE, &args));
	EXPECT_EQ(EINVAL, errno);
}

/* Who has no fd for it gets no buffer either. */
TEST_F(vfio_pci_dmabuf_export, fd_table_full)
{
	struct rlimit old, full;
	struct setup *s = &self->s;
	struct vfio_region_dma_range range = { .length = s->page_size };
	long nr_dmabufs;
	int fd;

	fd = export_range(s, 0, s->page_size);
	ASSERT_EQ(0, close(fd));
	nr_dmabufs = dmabuf_count();

	/* The next fd would be the one that was just closed. */
	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &old));
	full = old;
	full.rlim_cur = fd;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &full));
	EXPECT_EQ(-EMFILE, __vfio_pci_dmabuf_export(s->device, s->index, O_RDWR, &range, 1));
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &old));
	EXPECT_EQ(nr_dmabufs, dmabuf_count());

	fd = export_range(s, 0, s->page_size);
	ASSERT_EQ(0, close(fd));
}

/* Who has no file for it gets neither a buffer nor a fd, and that is all. */
TEST_F(vfio_pci_dmabuf_export, out_of_files)
{
	struct setup *s = &self->s;
	struct vfio_region_dma_range range = { .length = s->page_size };
	struct state max = {};
	long nr_dmabufs;
	int fd, r, status;
	pid_t pid;

	if (!getenv(FILE_MAX))
		SKIP(return, "Nobody else may have a file then: set $" FILE_MAX " for it");

	/* The next fd would be the one that was just closed. */
	fd = export_range(s, 0, s->page_size);
	ASSERT_EQ(0, close(fd));
	nr_dmabufs = dmabuf_count();

	state_add(&max, "/proc/sys/fs/file-max", "");
	ASSERT_STRNE("", max.text);
	file_write("/proc/sys/fs", "file-max", "1");
	pid = process_fork();
	if (!pid) {
		/* The administrator may exceed the limit. */
		if (setresuid(65534, 65534, 65534))
			_exit(255);
		r = __vfio_pci_dmabuf_export(s->device, s->index, O_RDWR, &range, 1);
		/* A fd of a file that is there takes none. */
		_exit(dup(s->device->fd) == fd ? -r : 255);
	}
	waitpid(pid, &status, 0);
	file_write("/proc/sys/fs", "file-max", max.text);

	ASSERT_TRUE(WIFEXITED(status));
	EXPECT_EQ(ENFILE, WEXITSTATUS(status));
	EXPECT_EQ(nr_dmabufs, dmabuf_count());
	ASSERT_EQ(fd, export_range(s, 0, s->page_size));
	ASSERT_EQ(0, close(fd));
}

/* The fd has some of the flags, and the others are ignored. */
TEST_F(vfio_pci_dmabuf_export, open_flags)
{
	const u32 all = ~(u32)O_ACCMODE;
	const u32 flags[] = {
		0, O_NONBLOCK, O_CLOEXEC, O_APPEND | O_CREAT | O_DIRECT | O_PATH | O_TRUNC,
		all & ~(O_NONBLOCK | O_CLOEXEC), all,
	};
	struct setup *s = &self->s;
	struct vfio_region_dma_range range = { .length = s->page_size };
	int fd, i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		fd = vfio_pci_dmabuf_export(s->device, s->index, O_RDWR | flags[i], &range, 1);
		EXPECT_EQ(O_RDWR | (flags[i] & O_NONBLOCK), fcntl(fd, F_GETFL)) {
			TH_LOG("flags 0x%x", flags[i]);
		}
		EXPECT_EQ(flags[i] & O_CLOEXEC ? FD_CLOEXEC : 0, fcntl(fd, F_GETFD)) {
			TH_LOG("flags 0x%x", flags[i]);
		}
		ASSERT_EQ(0, close(fd));
	}
}

/*
 * Map
 */

FIXTURE(vfio_pci_dmabuf_map) {
	struct setup s;
};

FIXTURE_SETUP(vfio_pci_dmabuf_map)
{
	const char *reason = setup_init(&self->s, default_iommu_mode);

	if (reason)
		SKIP(return, "%s", reason);

	if (!vfio_pci_has_dmabuf_mmap(self->s.device, self->s.index))
		SKIP(return, "The kernel does not map exported DMABUFs");
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_map)
{
	setup_cleanup(&self->s);
}

/* Each page of RAM holds its number. */
static void pages_number(struct setup *s, u64 size)
{
	u64 offset;

	for (offset = 0; offset < size; offset += s->page_size)
		mmio_write32(s->bar + offset, offset / s->page_size);
}

TEST_F(vfio_pci_dmabuf_map, whole)
{
	struct setup *s = &self->s;
	void *vaddr;
	int fd;

	fd = export_range(s, 0, s->size);
	vaddr = dmabuf_map(fd, 0, s->size);

	ASSERT_EQ(0, access_result(vaddr));
	ASSERT_EQ(0, access_result(vaddr + ALIGN_DOWN(s->size / 2, s->page_size)));
	ASSERT_EQ(0, access_result(vaddr + s->size - s->page_size));

	if (s->is_ram) {
		u64 offset;

		pages_number(s, s->size);
		for (offset = 0; offset < s->size; offset += s->page_size)
			ASSERT_EQ(offset / s->page_size, mmio_read32(vaddr + offset));

		/* And the other way round. */
		mmio_write32(vaddr + s->size - 4, 0xabcd);
		ASSERT_EQ(0xabcd, mmio_read32(s->bar + s->size - 4));
	}

	dmabuf_unmap(vaddr, s->size);
	ASSERT_EQ(0, close(fd));
}

/* What part of the BAR the n-th of @nr ranges of one page each covers. */
typedef u64 (*layout_fn)(u64 n, u64 nr);

static u64 layout_adjacent(u64 n, u64 nr)
{
	return n;
}

static u64 layout_gaps(u64 n, u64 nr)
{
	return 2 * n + 1;
}

static u64 layout_reversed(u64 n, u64 nr)
{
	return nr - 1 - n;
}

static u64 layout_same(u64 n, u64 nr)
{
	return 3;
}

static u64 layout_pairs(u64 n, u64 nr)
{
	return n / 2 * 3 + n % 2;
}

TEST_F(vfio_pci_dmabuf_map, layouts)
{
	const layout_fn layouts[] = {
		layout_adjacent, layout_gaps, layout_reversed, layout_same, layout_pairs,
	};
	const u32 counts[] = { 1, 2, 3, 16, 255, 4096 };
	struct setup *s = &self->s;
	struct vfio_region_dma_range *ranges;
	u64 pages = s->size / s->page_size;
	int fd, l, c;
	void *vaddr;
	u32 i;

	if (!s->is_ram)
		SKIP(return, "No BAR with RAM: whether it is the right page, cannot be told");

	ranges = calloc_assert(4096, sizeof(*ranges));
	pages_number(s, s->size);

	for (l = 0; l < ARRAY_SIZE(layouts); l++) {
		for (c = 0; c < ARRAY_SIZE(counts); c++) {
			u32 nr = counts[c];

			if (2 * (u64)nr + 4 > pages)
				continue;

			for (i = 0; i < nr; i++) {
				ranges[i].offset = layouts[l](i, nr) * s->page_size;
				ranges[i].length = s->page_size;
			}

			fd = vfio_pci_dmabuf_export(s->device, s->index, O_RDWR, ranges, nr);
			vaddr = dmabuf_map(fd, 0, nr * s->page_size);

			for (i = 0; i < nr; i++) {
				u32 value = mmio_read32(vaddr + i * s->page_size);

				ASSERT_EQ(layouts[l](i, nr), value) {
					TH_LOG("layout %d, page %u of %u", l, i, nr);
				}
			}

			dmabuf_unmap(vaddr, nr * s->page_size);
			ASSERT_EQ(0, close(fd));
		}
	}

	free(ranges);
}

/*
 * Ranges of several pages, some of them over the same pages, mapped from the
 * middle of one into another.
 */
TEST_F(vfio_pci_dmabuf_map, offsets)
{
	struct setup *s = &self->s;
	const u64 expected[] = { 8, 9, 10, 11, 2, 3, 4, 20, 21, 22, 23, 24, 22, 23, 3, 3 };
	struct vfio_region_dma_range ranges[] = {
		{ .offset = 8 * s->page_size, .length = 4 * s->page_size },
		{ .offset = 2 * s->page_size, .length = 3 * s->page_size },
		{ .offset = 20 * s->page_size, .length = 5 * s->page_size },
		{ .offset = 22 * s->page_size, .length = 2 * s->page_size },
		{ .offset = 3 * s->page_size, .length = s->page_size },
		{ .offset = 3 * s->page_size, .length = s->page_size },
	};
	u64 first, last, i;
	void *vaddr;
	int fd;

	if (!s->is_ram)
		SKIP(return, "No BAR with RAM: whether it is the right page, cannot be told");

	pages_number(s, 32 * s->page_size);
	fd = vfio_pci_dmabuf_export(s->device, s->index, O_RDWR, ranges, ARRAY_SIZE(ranges));

	for (first = 0; first < ARRAY_SIZE(expected); first++) {
		for (last = first; last < ARRAY_SIZE(expected); last++) {
			u64 size = (last - first + 1) * s->page_size;

			vaddr = dmabuf_map(fd, first * s->page_size, size);
			for (i = first; i <= last; i++) {
				ASSERT_EQ(expected[i],
					  mmio_read32(vaddr + (i - first) * s->page_size));
			}
			dmabuf_unmap(vaddr, size);
		}
	}

	ASSERT_EQ(0, close(fd));
}

TEST_F(vfio_pci_dmabuf_map, past_the_end)
{
	struct setup *s = &self->s;
	int fd;

	fd = export_range(s, 0, s->page_size);
	EXPECT_EQ(0, map_result(fd, 0, s->page_size));
	EXPECT_EQ(-EINVAL, map_result(fd, 0, 2 * s->page_size));
	EXPECT_EQ(-EINVAL, map_result(fd, s->page_size, s->page_size));
	EXPECT_EQ(-EINVAL, map_result(fd, 1ULL << 40, s->page_size));
	EXPECT_EQ(-EOVERFLOW, map_result(fd, -(u64)s->page_size, s->page_size));
	EXPECT_EQ(-EOVERFLOW, map_result(fd, -(u64)s->page_size, 2 * s->page_size));
	EXPECT_EQ(-EINVAL, map_result(fd, 0, 0));

	/* Nor what only memory that is persistent has. */
	EXPECT_EQ(MAP_FAILED, mmap(NULL, s->page_size, PROT_READ,
				   MAP_SHARED_VALIDATE | MAP_SYNC, fd, 0));
	EXPECT_EQ(EOPNOTSUPP, errno);
	ASSERT_EQ(0, close(fd));
}

/* What may be done by a map follows from how the buffer was exported. */
TEST_F(vfio_pci_dmabuf_map, modes)
{
	const int prots[] = {
		PROT_NONE, PROT_READ, PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ | PROT_EXEC,
	};
	const struct {
		u32 open_flags;
		int results[ARRAY_SIZE(prots)];
	} modes[] = {
		{ O_RDWR, { 0, 0, 0, 0, -EPERM } },
		{ O_RDONLY, { 0, 0, -EACCES, -EACCES, -EPERM } },
		{ O_WRONLY, { -EACCES, -EACCES, -EACCES, -EACCES, -EACCES } },
		{ O_ACCMODE, { -EACCES, -EACCES, -EACCES, -EACCES, -EACCES } },
	};
	struct setup *s = &self->s;
	struct vfio_region_dma_range range = { .length = s->page_size };
	void *vaddr;
	int i, j, r, fd;

	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		fd = vfio_pci_dmabuf_export(s->device, s->index, modes[i].open_flags, &range, 1);

		for (j = 0; j < ARRAY_SIZE(prots); j++) {
			r = __dmabuf_map(fd, 0, s->page_size, prots[j], &vaddr);
			EXPECT_EQ(modes[i].results[j], r) {
				TH_LOG("mode %d, protection 0x%x", i, prots[j]);
			}
			if (r)
				continue;

			/* There is no more to be had afterwards. */
			EXPECT_EQ(-1, mprotect(vaddr, s->page_size, PROT_READ | PROT_EXEC));
			EXPECT_EQ(EACCES, errno);
			EXPECT_EQ(modes[i].open_flags == O_RDWR ? 0 : -1,
				  mprotect(vaddr, s->page_size, PROT_READ | PROT_WRITE));
			dmabuf_unmap(vaddr, s->page_size);
		}

		ASSERT_EQ(0, close(fd));
	}
}

TEST_F(vfio_pci_dmabuf_map, proc_maps)
{
	struct setup *s = &self->s;
	int fds[] = {
		export_range(s, 0, 3 * s->page_size),
		export_readonly(s, 0, 3 * s->page_size),
	};
	struct vma_info info;
	struct stat stat;
	void *vaddr;
	int i;

	for (i = 0; i < ARRAY_SIZE(fds); i++) {
		ASSERT_EQ(0, __dmabuf_map(fds[i], s->page_size, 2 * s->page_size, PROT_READ,
					  &vaddr));
		vma_info_get(vaddr, &info);
		EXPECT_EQ(s->page_size, info.offset);
		EXPECT_STREQ("r--s", info.perms);
		EXPECT_TRUE(vma_has_flag(vaddr, "io"));
		EXPECT_TRUE(vma_has_flag(vaddr, "pf"));
		EXPECT_TRUE(vma_has_flag(vaddr, "de"));
		EXPECT_TRUE(vma_has_flag(vaddr, "dd"));
		EXPECT_EQ(i == 0, vma_has_flag(vaddr, "mw"));
		ASSERT_EQ(0, fstat(fds[i], &stat));
		EXPECT_EQ(3 * s->page_size, stat.st_size);
		dmabuf_unmap(vaddr, 2 * s->page_size);
		ASSERT_EQ(0, close(fds[i]));
	}
}

TEST_F(vfio_pci_dmabuf_map, private)
{
	struct setup *s = &self->s;
	int fds[] = {
		export_range(s, 0, s->page_size),
		export_readonly(s, 0, s->page_size),
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(fds); i++) {
		EXPECT_EQ(MAP_FAILED, mmap(NULL, s->page_size, PROT_READ, MAP_PRIVATE, fds[i], 0));
		EXPECT_EQ(EINVAL, errno);
		ASSERT_EQ(0, close(fds[i]));
	}
}

TEST_F(vfio_pci_dmabuf_map, readonly)
{
	struct setup *s = &self->s;
	void *vaddr;
	int fd;

	fd = export_readonly(s, 0, s->page_size);

	EXPECT_EQ(-EACCES, __dmabuf_map(fd, 0, s->page_size, PROT_READ | PROT_WRITE, &vaddr));
	EXPECT_EQ(-EACCES, __dmabuf_map(fd, 0, s->page_size, PROT_WRITE, &vaddr));

	ASSERT_EQ(0, __dmabuf_map(fd, 0, s->page_size, PROT_READ, &vaddr));
	EXPECT_EQ(0, access_result(vaddr));
	EXPECT_EQ(-1, mprotect(vaddr, s->page_size, PROT_READ | PROT_WRITE));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(-EACCES, __mmio_write32(vaddr, mmio_read32(s->bar)));

	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
}

TEST_F(vfio_pci_dmabuf_map, no_way_to_more)
{
	struct setup *s = &self->s;
	char path[32];
	void *vaddr;
	int fd;

	fd = export_readonly(s, 0, s->page_size);

	/* Neither execute it, nor open it anew for writing. */
	EXPECT_EQ(-EPERM, __dmabuf_map(fd, 0, s->page_size, PROT_READ | PROT_EXEC, &vaddr));
	snprintf_assert(path, sizeof(path), "/proc/self/fd/%d", fd);
	EXPECT_EQ(-1, open(path, O_RDWR));
	EXPECT_EQ(ENXIO, errno);

	/* Nor is it the device. */
	EXPECT_EQ(-1, ioctl(fd, VFIO_DEVICE_RESET, NULL));
	EXPECT_EQ(ENOTTY, errno);
	EXPECT_EQ(-EINVAL, map_result(fd, s->device->bars[s->index].info.offset + s->page_size,
				      s->page_size));

	ASSERT_EQ(0, close(fd));
}

/* It is no file to be read or written, but tells its size. */
TEST_F(vfio_pci_dmabuf_map, file_calls)
{
	struct setup *s = &self->s;
	u32 value = 0;
	int fd;

	fd = export_range(s, 0, s->page_size);

	EXPECT_EQ(s->page_size, lseek(fd, 0, SEEK_END));
	EXPECT_EQ(0, lseek(fd, 0, SEEK_SET));
	EXPECT_EQ(-1, lseek(fd, 0, SEEK_CUR));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, lseek(fd, 1, SEEK_SET));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, lseek(fd, -1, SEEK_END));
	EXPECT_EQ(EINVAL, errno);

	EXPECT_EQ(-1, read(fd, &value, sizeof(value)));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, pread(fd, &value, sizeof(value), 0));
	EXPECT_EQ(ESPIPE, errno);
	EXPECT_EQ(-1, write(fd, &value, sizeof(value)));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, ftruncate(fd, 0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, ftruncate(fd, 2 * s->page_size));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, fallocate(fd, 0, 0, s->page_size));
	EXPECT_EQ(ENODEV, errno);

	EXPECT_EQ(s->page_size, lseek(fd, 0, SEEK_END));
	EXPECT_EQ(0, map_result(fd, 0, s->page_size));
	ASSERT_EQ(0, close(fd));
}

/* Nothing can be cut out of it, nor is it merged with anything. */
TEST_F(vfio_pci_dmabuf_map, madvise_refused)
{
	struct setup *s = &self->s;
	const struct {
		int fd;
		int remove_errno;
	} cases[] = {
		{ export_range(s, 0, s->page_size), ENODEV },
		{ export_readonly(s, 0, s->page_size), EACCES },
	};
	void *vaddr;
	int i;

	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		ASSERT_EQ(0, __dmabuf_map(cases[i].fd, 0, s->page_size, PROT_READ, &vaddr));

		EXPECT_EQ(-1, madvise(vaddr, s->page_size, MADV_REMOVE));
		EXPECT_EQ(cases[i].remove_errno, errno);
		EXPECT_EQ(-1, madvise(vaddr, s->page_size, MADV_GUARD_INSTALL));
		EXPECT_EQ(EINVAL, errno);

		/* A kernel that merges pages takes the advice, and ignores it. */
		if (madvise(vaddr, s->page_size, MADV_MERGEABLE))
			EXPECT_EQ(EINVAL, errno);
		EXPECT_FALSE(vma_has_flag(vaddr, "mg"));

		EXPECT_EQ(0, access_result(vaddr));
		dmabuf_unmap(vaddr, s->page_size);
		ASSERT_EQ(0, close(cases[i].fd));
	}
}

TEST_F(vfio_pci_dmabuf_map, aliases)
{
	struct setup *s = &self->s;
	int fds[] = {
		export_range(s, 0, s->page_size),
		export_range(s, 0, s->size),
	};
	void *vaddrs[] = {
		dmabuf_map(fds[0], 0, s->page_size),
		dmabuf_map(fds[0], 0, s->page_size),
		dmabuf_map(fds[1], 0, s->page_size),
		s->bar,
	};
	int i, j;

	for (i = 0; i < ARRAY_SIZE(vaddrs); i++) {
		ASSERT_EQ(0, access_result(vaddrs[i]));
		if (!s->is_ram)
			continue;

		mmio_write32(vaddrs[i], 0xa11a5000 + i);
		for (j = 0; j < ARRAY_SIZE(vaddrs); j++)
			ASSERT_EQ(0xa11a5000 + i, mmio_read32(vaddrs[j]));
	}

	/* One less changes nothing for the others. */
	ASSERT_EQ(0, close(fds[0]));
	dmabuf_unmap(vaddrs[0], s->page_size);
	for (i = 1; i < ARRAY_SIZE(vaddrs); i++)
		ASSERT_EQ(0, access_result(vaddrs[i]));

	dmabuf_unmap(vaddrs[1], s->page_size);
	ASSERT_EQ(0, access_result(vaddrs[2]));
	dmabuf_unmap(vaddrs[2], s->page_size);
	ASSERT_EQ(0, close(fds[1]));
}

TEST_F(vfio_pci_dmabuf_map, closed)
{
	struct setup *s = &self->s;
	int fd, copy;
	void *vaddr;

	fd = export_range(s, 0, s->page_size);
	copy = dup(fd);
	ASSERT_EQ(0, close(fd));

	vaddr = dmabuf_map(copy, 0, s->page_size);
	ASSERT_EQ(0, close(copy));
	ASSERT_EQ(0, access_result(vaddr));

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(-EFAULT, access_result(vaddr));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, access_result(vaddr));

	dmabuf_unmap(vaddr, s->page_size);
}

/*
 * Two fds of one buffer, a map of it, and a fd and a map of another one over the
 * same page, let go of in every order: what is left works.
 */
TEST_F(vfio_pci_dmabuf_map, closed_in_any_order)
{
	enum { FD, COPY, MAP, OTHER_FD, OTHER_MAP, NR };
	struct setup *s = &self->s;
	int fds[NR], order, step, rest, i, victim;
	void *vaddrs[NR];
	bool gone[NR];

	/* Each number below 5! is an order: its digits say who is next. */
	for (order = 0; order < 120; order++) {
		memset(gone, 0, sizeof(gone));
		fds[FD] = export_range(s, 0, s->page_size);
		fds[COPY] = dup(fds[FD]);
		fds[OTHER_FD] = export_range(s, 0, s->page_size);
		vaddrs[MAP] = dmabuf_map(fds[COPY], 0, s->page_size);
		vaddrs[OTHER_MAP] = dmabuf_map(fds[OTHER_FD], 0, s->page_size);

		for (step = 0, rest = order; step < NR; step++) {
			i = rest % (NR - step);
			rest /= NR - step;
			for (victim = 0; gone[victim] || i--; victim++)
				;

			gone[victim] = true;
			if (victim == MAP || victim == OTHER_MAP)
				dmabuf_unmap(vaddrs[victim], s->page_size);
			else
				ASSERT_EQ(0, close(fds[victim]));

			for (i = 0; i < NR; i++) {
				if (gone[i])
					continue;
				ASSERT_EQ(0, i == MAP || i == OTHER_MAP ?
					     access_result(vaddrs[i]) :
					     map_result(fds[i], 0, s->page_size));
			}
		}
	}

	ASSERT_EQ(0, access_result(s->bar));
}

/*
 * What a program finds of the one before: no map, and of the fds those that
 * were meant for it. Run instead of the tests, see main().
 */
static int inherited(int kept, int closed)
{
	struct state state = {};

	state_add(&state, "/proc/self/maps", "/dmabuf:");
	if (state.text[0] || fcntl(closed, F_GETFD) >= 0)
		return 1;

	return -map_result(kept, 0, getpagesize());
}

TEST_F(vfio_pci_dmabuf_map, exec)
{
	struct setup *s = &self->s;
	struct vfio_region_dma_range range = { .length = s->page_size };
	int kept, closed;
	char args[2][16];
	void *vaddr;
	pid_t pid;

	kept = vfio_pci_dmabuf_export(s->device, s->index, O_RDWR, &range, 1);
	closed = export_range(s, 0, s->page_size);
	vaddr = dmabuf_map(kept, 0, s->page_size);
	ASSERT_EQ(0, fcntl(kept, F_GETFD));
	ASSERT_EQ(FD_CLOEXEC, fcntl(closed, F_GETFD));

	pid = process_fork();
	if (!pid) {
		snprintf_assert(args[0], sizeof(args[0]), "%d", kept);
		snprintf_assert(args[1], sizeof(args[1]), "%d", closed);
		execl("/proc/self/exe", "inherited", args[0], args[1], NULL);
		_exit(255);
	}

	EXPECT_EQ(0, process_exit_status(pid));
	EXPECT_EQ(0, access_result(vaddr));

	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(kept));
	ASSERT_EQ(0, close(closed));
}

TEST_F(vfio_pci_dmabuf_map, split)
{
	struct setup *s = &self->s;
	u64 size = 4 * s->page_size;
	void *vaddr, *moved;
	int fd;

	if (s->size < size)
		SKIP(return, "BAR too small");

	fd = export_range(s, 0, size);
	vaddr = dmabuf_map(fd, 0, size);
	if (s->is_ram)
		pages_number(s, size);

	ASSERT_EQ(0, mprotect(vaddr + s->page_size, s->page_size, PROT_READ));
	dmabuf_unmap(vaddr + 2 * s->page_size, s->page_size);
	ASSERT_EQ(0, access_result(vaddr));
	ASSERT_EQ(0, access_result(vaddr + s->page_size));
	ASSERT_EQ(-EACCES, access_result(vaddr + 2 * s->page_size));
	ASSERT_EQ(0, access_result(vaddr + 3 * s->page_size));

	moved = mmap_reserve(s->page_size, SZ_2M, 0);
	ASSERT_EQ(moved, mremap(vaddr + 3 * s->page_size, s->page_size, s->page_size,
				MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	if (s->is_ram)
		ASSERT_EQ(3, mmio_read32(moved));

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(-EFAULT, access_result(vaddr));
	EXPECT_EQ(-EFAULT, access_result(vaddr + s->page_size));
	EXPECT_EQ(-EFAULT, access_result(moved));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, access_result(vaddr));
	if (s->is_ram)
		ASSERT_EQ(3, mmio_read32(moved));

	dmabuf_unmap(vaddr, 2 * s->page_size);
	munmap(moved, s->page_size);
	ASSERT_EQ(0, close(fd));
}

/* The file is the buffer here, so its offsets are what the caller means. */
TEST_F(vfio_pci_dmabuf_map, remap_file_pages)
{
	struct setup *s = &self->s;
	u64 size = 4 * s->page_size;
	struct vma_info info;
	void *vaddr;
	int fd;

	if (s->size < size)
		SKIP(return, "BAR too small");

	if (s->is_ram)
		pages_number(s, size);
	fd = export_range(s, 0, size);
	vaddr = dmabuf_map(fd, 0, size);

	ASSERT_EQ(0, remap_file_pages(vaddr, s->page_size, 0, 3, 0));
	vma_info_get(vaddr, &info);
	EXPECT_EQ(3 * s->page_size, info.offset);
	if (s->is_ram)
		EXPECT_EQ(3, mmio_read32(vaddr));

	/* Past the end; what was there before is gone by then, see mmap(). */
	EXPECT_EQ(-1, remap_file_pages(vaddr + s->page_size, s->page_size, 0, 4, 0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, remap_file_pages(vaddr + 2 * s->page_size, s->page_size, 0, 0x1000000, 0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(0, access_result(vaddr + 3 * s->page_size));

	ASSERT_EQ(0, munmap(vaddr, size));
	ASSERT_EQ(0, close(fd));
}

/*
 * The mm takes the write permission from all page table entries of a process to
 * learn what it writes to. Return false if the kernel does not do that.
 */
static bool track_writes(void)
{
	int fd = open("/proc/self/clear_refs", O_WRONLY);
	bool tracks = fd >= 0 && write(fd, "4", 1) == 1;

	if (fd >= 0)
		VFIO_ASSERT_EQ(close(fd), 0);
	return tracks;
}

/* A write to a huge page must get past that. */
TEST_F(vfio_pci_dmabuf_map, soft_dirty)
{
	struct setup *s = &self->s;
	u64 size = min_t(u64, s->size, SZ_4M);
	void *vaddr;
	int fd;

	if (!s->is_ram)
		SKIP(return, "No BAR with RAM, which may be written to");

	fd = export_range(s, 0, size);
	vaddr = mmap_reserve(size, SZ_2M, 0);
	ASSERT_EQ(vaddr, mmap(vaddr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0));
	mmio_write32(vaddr, 1);

	if (!track_writes())
		SKIP(return, "The kernel does not track writes");

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);

	mmio_write32(vaddr, 2);
	EXPECT_EQ(2, mmio_read32(s->bar));
	mmio_write32(s->bar + s->page_size, 3);
	EXPECT_EQ(3, mmio_read32(vaddr + s->page_size));

	dmabuf_unmap(vaddr, size);
	ASSERT_EQ(0, close(fd));
}

/* An access that meets a reset waits for it, and then works. */
TEST_F(vfio_pci_dmabuf_map, access_during_reset)
{
	struct setup *s = &self->s;
	struct mmio_reader readers[2];
	void *vaddrs[2];
	int fds[2], i, round;

	if (!(s->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "Device does not support reset");

	fds[0] = export_range(s, 0, s->size);
	fds[1] = export_readonly(s, s->size - s->page_size, s->page_size);
	for (i = 0; i < ARRAY_SIZE(readers); i++) {
		u64 size = lseek(fds[i], 0, SEEK_END);

		ASSERT_EQ(0, __dmabuf_map(fds[i], 0, size, PROT_READ, &vaddrs[i]));
		/* Not each page of what is no RAM may be read. */
		mmio_reader_start(&readers[i], vaddrs[i], s->is_ram ? size : s->page_size);
	}

	for (round = 0; round < 10; round++) {
		vfio_pci_device_reset(s->device);
		for (i = 0; i < ARRAY_SIZE(readers); i++)
			repeater_wait(&readers[i].repeater);
	}

	for (i = 0; i < ARRAY_SIZE(readers); i++) {
		repeater_stop(&readers[i].repeater);
		EXPECT_EQ(0, readers[i].repeater.nr_failed);
		munmap(vaddrs[i], lseek(fds[i], 0, SEEK_END));
		ASSERT_EQ(0, close(fds[i]));
	}
}

/* What somebody maps, touches and unmaps all the time. */
struct storm {
	struct repeater repeater;
	int fd;
	u64 offset;
	u64 size;
};

static bool storm_once(void *arg)
{
	struct storm *storm = arg;
	void *vaddr;
	int r;

	vaddr = dmabuf_map(storm->fd, storm->offset, storm->size);
	r = access_result(vaddr);
	dmabuf_unmap(vaddr, storm->size);
	return !r;
}

/* Page faults, be they of a subordinate, do not stand in the way of a reset. */
TEST_F(vfio_pci_dmabuf_map, hot_reset_in_a_storm)
{
	struct setup *s = &self->s;
	struct storm storms[] = {
		{ .fd = export_range(s, 0, s->size), .size = s->page_size },
		{ .fd = export_range(s, 0, s->size), .size = s->size },
		{ .fd = s->device->fd, .offset = s->device->bars[s->index].info.offset,
		  .size = s->page_size },
	};
	int i, r, round;
	time_t start;

	r = __vfio_pci_device_hot_reset(s->device);
	if (r == -EOPNOTSUPP || r == -ENOTTY)
		SKIP(return, "Device cannot be reset by its bus alone (%d)", r);
	ASSERT_EQ(0, r);

	for (i = 0; i < ARRAY_SIZE(storms); i++) {
		repeater_start(&storms[i].repeater, storm_once, &storms[i]);
		repeater_wait(&storms[i].repeater);
	}

	/* Some devices take a second for each. */
	start = time(NULL);
	for (round = 0; round < 50 && time(NULL) < start + 5; round++) {
		EXPECT_EQ(0, __vfio_pci_device_hot_reset(s->device)) {
			TH_LOG("round %d", round);
		}
		for (i = 0; i < ARRAY_SIZE(storms); i++)
			repeater_wait(&storms[i].repeater);
	}

	for (i = 0; i < ARRAY_SIZE(storms); i++) {
		repeater_stop(&storms[i].repeater);
		EXPECT_EQ(0, storms[i].repeater.nr_failed);
	}
	printf("%d resets\n", round);
	ASSERT_EQ(0, close(storms[0].fd));
	ASSERT_EQ(0, close(storms[1].fd));
}

TEST_F(vfio_pci_dmabuf_map, dma_buf_ioctls)
{
	struct dma_buf_sync sync = { .flags = DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW };
	struct setup *s = &self->s;
	struct vma_info info;
	void *vaddr;
	int fd;

	fd = export_range(s, 0, s->page_size);
	EXPECT_EQ(0, ioctl(fd, DMA_BUF_SET_NAME, "slice"));
	vaddr = dmabuf_map(fd, 0, s->page_size);
	vma_info_get(vaddr, &info);
	EXPECT_STREQ("/dmabuf:slice", info.name);

	/* Nobody can make up a line of the file by it. */
	EXPECT_EQ(0, ioctl(fd, DMA_BUF_SET_NAME, "a\nb"));
	vma_info_get(vaddr, &info);
	EXPECT_STREQ("/dmabuf:a\\012b", info.name);
	EXPECT_EQ(-1, ioctl(fd, DMA_BUF_SET_NAME, "far too long for the name of a DMABUF"));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, ioctl(fd, DMA_BUF_SET_NAME, NULL));
	EXPECT_EQ(EFAULT, errno);

	EXPECT_EQ(0, ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync));
	EXPECT_EQ(0, access_result(vaddr));
	sync.flags = DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW;
	EXPECT_EQ(0, ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync));
	sync.flags = 1ULL << 63;
	EXPECT_EQ(-1, ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync));
	EXPECT_EQ(EINVAL, errno);

	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
}

static long translations(void *vaddr, u64 size, u64 page_size)
{
	u64 offset;

	for (offset = 0; offset < size; offset += SZ_4K)
		mmio_read32(vaddr + offset);

	return __page_mapping_count(vaddr, size, page_size);
}

/* Why no huge pages can be seen here, or NULL. */
static const char *no_huge_pages(struct setup *s)
{
	if (!s->is_ram)
		return "Not each page of the BAR may be read";
	if (s->size < SZ_8M)
		return "BAR too small";
	if (__page_mapping_count(s->bar, SZ_8M, SZ_2M) < 0)
		return "Cannot look at page tables";
	if (!has_huge_pages(SZ_2M))
		return "The kernel has no huge pages";

	return NULL;
}

TEST_F(vfio_pci_dmabuf_map, huge_pages)
{
	struct setup *s = &self->s;
	struct vfio_region_dma_range adjacent[] = {
		{ .offset = 0, .length = SZ_1M },
		{ .offset = SZ_1M, .length = SZ_2M },
		{ .offset = SZ_1M + SZ_2M, .length = SZ_1M },
	};
	const char *why;
	void *vaddr;
	int fd;

	why = no_huge_pages(s);
	if (why)
		SKIP(return, "%s", why);

	/* All of it. */
	fd = export_range(s, 0, SZ_8M);
	vaddr = mmap_reserve(SZ_8M, SZ_2M, 0);
	ASSERT_EQ(vaddr, mmap(vaddr, SZ_8M, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0));
	EXPECT_EQ(4, translations(vaddr, SZ_8M, SZ_2M));
	EXPECT_EQ(0, __page_mapping_count(vaddr, SZ_8M, SZ_4K));
	dmabuf_unmap(vaddr, SZ_8M);

	/* Head and tail do not fill a huge page. */
	vaddr = mmap_reserve(SZ_4M, SZ_2M, SZ_1M);
	ASSERT_EQ(vaddr, mmap(vaddr, SZ_4M, PROT_READ, MAP_SHARED | MAP_FIXED, fd, SZ_1M));
	EXPECT_EQ(1, translations(vaddr, SZ_4M, SZ_2M));
	EXPECT_EQ(SZ_2M / SZ_4K, __page_mapping_count(vaddr, SZ_4M, SZ_4K));
	dmabuf_unmap(vaddr, SZ_4M);

	/* No address is good for both, page table and BAR. */
	vaddr = mmap_reserve(SZ_4M, SZ_2M, SZ_4K);
	ASSERT_EQ(vaddr, mmap(vaddr, SZ_4M, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0));
	EXPECT_EQ(0, translations(vaddr, SZ_4M, SZ_2M));
	EXPECT_EQ(SZ_4M / SZ_4K, __page_mapping_count(vaddr, SZ_4M, SZ_4K));
	dmabuf_unmap(vaddr, SZ_4M);
	ASSERT_EQ(0, close(fd));

	/* Too small a range. */
	fd = export_range(s, 0, SZ_1M);
	vaddr = mmap_reserve(SZ_1M, SZ_2M, 0);
	ASSERT_EQ(vaddr, mmap(vaddr, SZ_1M, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0));
	EXPECT_EQ(0, translations(vaddr, SZ_1M, SZ_2M));
	dmabuf_unmap(vaddr, SZ_1M);
	ASSERT_EQ(0, close(fd));

	/* Ranges which are one in fact. */
	fd = vfio_pci_dmabuf_export(s->device, s->index, O_RDONLY, adjacent,
				    ARRAY_SIZE(adjacent));
	vaddr = mmap_reserve(SZ_4M, SZ_2M, 0);
	ASSERT_EQ(vaddr, mmap(vaddr, SZ_4M, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0));
	EXPECT_EQ(2, translations(vaddr, SZ_4M, SZ_2M));
	dmabuf_unmap(vaddr, SZ_4M);
	ASSERT_EQ(0, close(fd));
}

/* mmap() by itself finds a place that is good for huge pages. */
TEST_F(vfio_pci_dmabuf_map, huge_pages_unaided)
{
	struct setup *s = &self->s;
	struct vfio_region_dma_range ranges[] = {
		{ .offset = 0, .length = SZ_64K },
		{ .offset = SZ_2M + SZ_1M, .length = SZ_4M },
		{ .offset = SZ_2M, .length = s->page_size },
	};
	const char *why;
	void *vaddr;
	int fd;

	why = no_huge_pages(s);
	if (why)
		SKIP(return, "%s", why);

	/* The offset in the DMABUF says nothing about the physical address. */
	fd = export_range(s, SZ_1M, SZ_4M);
	vaddr = dmabuf_map(fd, 0, SZ_4M);
	if ((unsigned long)vaddr % SZ_2M != SZ_1M && !maps_ahead(fd, 0))
		SKIP(return, "The kernel does not look for a place that suits huge pages");
	ASSERT_EQ(SZ_1M, (unsigned long)vaddr % SZ_2M);
	EXPECT_EQ(1, translations(vaddr, SZ_4M, SZ_2M));
	dmabuf_unmap(vaddr, SZ_4M);

	vaddr = dmabuf_map(fd, SZ_1M - s->page_size, SZ_2M + s->page_size);
	EXPECT_EQ(1, translations(vaddr, SZ_2M + s->page_size, SZ_2M));
	EXPECT_EQ(1, __page_mapping_count(vaddr, SZ_2M + s->page_size, SZ_4K));
	dmabuf_unmap(vaddr, SZ_2M + s->page_size);
	ASSERT_EQ(0, close(fd));

	/* Of several ranges it is the one that takes most of the mapping. */
	fd = vfio_pci_dmabuf_export(s->device, s->index, O_RDWR, ranges, ARRAY_SIZE(ranges));
	vaddr = dmabuf_map(fd, 0, SZ_64K + SZ_4M + s->page_size);
	EXPECT_EQ(1, translations(vaddr, SZ_64K + SZ_4M + s->page_size, SZ_2M));
	dmabuf_unmap(vaddr, SZ_64K + SZ_4M + s->page_size);

	/* Beyond the end there is nothing to suit. */
	EXPECT_EQ(MAP_FAILED, mmap(NULL, SZ_4M, PROT_READ, MAP_SHARED, fd, SZ_8M));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, SZ_4M, PROT_READ, MAP_SHARED, fd, -SZ_4M));
	ASSERT_EQ(0, close(fd));

	if (s->size < 2ULL * SZ_1G)
		return;
	fd = export_range(s, SZ_4K, s->size - SZ_4K);
	vaddr = dmabuf_map(fd, 0, s->size - SZ_4K);
	EXPECT_EQ(SZ_4K, (unsigned long)vaddr % SZ_1G);
	dmabuf_unmap(vaddr, s->size - SZ_4K);
	ASSERT_EQ(0, close(fd));
}

/* Map and touch the first two GiB of the BAR, at a place for pages of 1 GiB. */
static void *map_gigantic(struct setup *s, u64 size, int *fd)
{
	void *vaddr = mmap_reserve(size, SZ_1G, 0);

	*fd = export_range(s, 0, size);
	VFIO_ASSERT_EQ(mmap(vaddr, size, PROT_READ, MAP_SHARED | MAP_FIXED, *fd, 0), vaddr);
	mmio_read32(vaddr);
	mmio_read32(vaddr + size - s->page_size);

	return vaddr;
}

/* The same for pages of 1 GiB, which a holder may cut in two as well. */
TEST_F(vfio_pci_dmabuf_map, gigantic_pages)
{
	struct setup *s = &self->s;
	u64 size = 2ULL * SZ_1G;
	void *vaddr, *hole;
	int fd;

	if (s->size < size)
		SKIP(return, "BAR too small for 1 GiB pages (size=0x%lx)", s->size);
	if (__page_mapping_count(s->bar, SZ_1G, SZ_1G) < 0)
		SKIP(return, "Cannot look at page tables");
	if (!has_huge_pages(SZ_1G))
		SKIP(return, "The kernel or the CPU has no 1 GiB pages");

	vaddr = map_gigantic(s, size, &fd);
	hole = vaddr + SZ_1G + SZ_4M + s->page_size;
	EXPECT_EQ(2, __page_mapping_count(vaddr, size, SZ_1G));

	/* All of them go, and come back. */
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(0, __page_mapping_count_all(vaddr, size));
	EXPECT_EQ(-EFAULT, access_result(vaddr + SZ_1G));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(0, access_result(vaddr));
	EXPECT_EQ(0, access_result(vaddr + SZ_1G));
	EXPECT_EQ(2, __page_mapping_count(vaddr, size, SZ_1G));

	/* A hole costs the one that it is in, the rest of which works on. */
	dmabuf_unmap(hole, s->page_size);
	EXPECT_EQ(1, __page_mapping_count(vaddr, size, SZ_1G));
	EXPECT_EQ(-EACCES, access_result(hole));
	EXPECT_EQ(0, access_result(hole - s->page_size));
	EXPECT_EQ(0, access_result(hole + s->page_size));

	/* So does a piece with another protection. */
	ASSERT_EQ(0, mprotect(vaddr + SZ_2M + s->page_size, s->page_size, PROT_NONE));
	EXPECT_EQ(0, __page_mapping_count(vaddr, size, SZ_1G));
	EXPECT_EQ(-EACCES, access_result(vaddr + SZ_2M + s->page_size));
	EXPECT_EQ(0, access_result(vaddr + SZ_2M));
	EXPECT_EQ(0, access_result(vaddr + SZ_1G - s->page_size));

	ASSERT_EQ(0, munmap(vaddr, size));
	ASSERT_EQ(0, close(fd));
}

/* A write gets past that it is tracked, to one that is there to read as well. */
TEST_F(vfio_pci_dmabuf_map, gigantic_soft_dirty)
{
	struct setup *s = &self->s;
	void *vaddr;
	int fd;

	if (!s->is_ram)
		SKIP(return, "No BAR with RAM, which may be written to");
	if (s->size < SZ_1G)
		SKIP(return, "BAR too small for 1 GiB pages (size=0x%lx)", s->size);
	if (__page_mapping_count(s->bar, SZ_1G, SZ_1G) < 0)
		SKIP(return, "Cannot look at page tables");
	if (!has_huge_pages(SZ_1G))
		SKIP(return, "The kernel or the CPU has no 1 GiB pages");

	fd = export_range(s, 0, SZ_1G);
	vaddr = mmap_reserve(SZ_1G, SZ_1G, 0);
	ASSERT_EQ(vaddr, mmap(vaddr, SZ_1G, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
			      fd, 0));
	mmio_write32(vaddr, 1);
	if (!track_writes())
		SKIP(return, "The kernel does not track writes");

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(1, mmio_read32(vaddr));
	EXPECT_EQ(1, __page_mapping_count(vaddr, SZ_1G, SZ_1G));
	mmio_write32(vaddr, 2);
	EXPECT_EQ(2, mmio_read32(s->bar));
	EXPECT_EQ(1, __page_mapping_count(vaddr, SZ_1G, SZ_1G));

	dmabuf_unmap(vaddr, SZ_1G);
	ASSERT_EQ(0, close(fd));
}

/* What cannot be moved as a page of 1 GiB is faulted in anew at the other place. */
TEST_F(vfio_pci_dmabuf_map, gigantic_pages_move)
{
	struct setup *s = &self->s;
	void *vaddr, *piece, *moved;
	u64 size = 2ULL * SZ_1G;
	int fd;

	if (s->size < size)
		SKIP(return, "BAR too small for 1 GiB pages (size=0x%lx)", s->size);
	if (__page_mapping_count(s->bar, SZ_1G, SZ_1G) < 0)
		SKIP(return, "Cannot look at page tables");
	if (!has_huge_pages(SZ_1G))
		SKIP(return, "The kernel or the CPU has no 1 GiB pages");

	vaddr = map_gigantic(s, size, &fd);
	ASSERT_EQ(2, __page_mapping_count(vaddr, size, SZ_1G));

	/* A page out of the middle, which costs the one that it was in. */
	piece = vaddr + SZ_4M;
	moved = mmap_reserve(s->page_size, SZ_4M, 0);
	ASSERT_EQ(moved, mremap(piece, s->page_size, s->page_size,
				MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	EXPECT_EQ(1, __page_mapping_count(vaddr, size, SZ_1G));
	EXPECT_EQ(0, access_result(moved));
	EXPECT_EQ(-EACCES, access_result(piece));
	EXPECT_EQ(0, access_result(piece + s->page_size));
	ASSERT_EQ(0, munmap(moved, s->page_size));

	/* All of one, to an address that is aligned to pages of 2 MiB only. */
	moved = mmap_reserve(SZ_1G, SZ_1G, SZ_2M);
	ASSERT_EQ(moved, mremap(vaddr + SZ_1G, SZ_1G, SZ_1G,
				MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	EXPECT_EQ(0, __page_mapping_count_all(moved, SZ_1G));
	EXPECT_EQ(0, access_result(moved));
	EXPECT_EQ(0, access_result(moved + SZ_1G - s->page_size));
	EXPECT_EQ(2, __page_mapping_count(moved, SZ_1G, SZ_2M));
	EXPECT_EQ(-EACCES, access_result(vaddr + SZ_1G));

	/* To one that suits, it goes as it is. */
	piece = moved;
	ASSERT_EQ(0, munmap(vaddr, size));
	ASSERT_EQ(vaddr, mmap(vaddr, SZ_1G, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0));
	moved = mmap_reserve(SZ_1G, SZ_1G, 0);
	mmio_read32(vaddr);
	EXPECT_EQ(1, __page_mapping_count(vaddr, SZ_1G, SZ_1G));
	ASSERT_EQ(moved, mremap(vaddr, SZ_1G, SZ_1G, MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	EXPECT_EQ(1, __page_mapping_count(moved, SZ_1G, SZ_1G));
	EXPECT_EQ(mmio_read32(s->bar), mmio_read32(moved));
	EXPECT_EQ(-EACCES, access_result(vaddr));

	/* Nor does the CPU remember where it was. */
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(-EFAULT, access_result(moved));
	EXPECT_EQ(-EFAULT, access_result(piece));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);

	ASSERT_EQ(0, munmap(piece, SZ_1G));
	ASSERT_EQ(0, munmap(moved, SZ_1G));

	/* Where 2 MiB is the largest that fits, the table of them goes in one. */
	vaddr = mmap_reserve(SZ_1G, SZ_1G, 0);
	ASSERT_EQ(vaddr, mmap(vaddr, SZ_1G, PROT_READ, MAP_SHARED | MAP_FIXED, fd, SZ_2M));
	mmio_read32(vaddr);
	mmio_read32(vaddr + SZ_1G - SZ_2M);
	ASSERT_EQ(2, __page_mapping_count(vaddr, SZ_1G, SZ_2M));
	moved = mmap_reserve(SZ_1G, SZ_1G, 0);
	ASSERT_EQ(moved, mremap(vaddr, SZ_1G, SZ_1G, MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	EXPECT_EQ(2, __page_mapping_count(moved, SZ_1G, SZ_2M));
	EXPECT_EQ(0, __page_mapping_count_all(vaddr, SZ_1G));
	EXPECT_EQ(mmio_read32(s->bar + SZ_2M), mmio_read32(moved));
	EXPECT_EQ(-EACCES, access_result(vaddr));

	ASSERT_EQ(0, munmap(moved, SZ_1G));
	ASSERT_EQ(0, close(fd));
}

static bool toggle_memory(void *arg)
{
	vfio_pci_cmd_clear(arg, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(arg, PCI_COMMAND_MEMORY);
	return true;
}

/* One that is zapped while it is moved is not taken for anything else. */
TEST_F(vfio_pci_dmabuf_map, gigantic_pages_move_zapped)
{
	u32 value, mark = 0x5eed1e55;
	struct setup *s = &self->s;
	struct repeater toggler;
	void *from, *to, *tmp;
	int fd, r, round;
	u64 end;

	if (!s->is_ram)
		SKIP(return, "No BAR with RAM, which may be written to");
	if (s->size < SZ_1G)
		SKIP(return, "BAR too small for 1 GiB pages (size=0x%lx)", s->size);
	if (!has_huge_pages(SZ_1G))
		SKIP(return, "The kernel or the CPU has no 1 GiB pages");

	mmio_write32(s->bar + SZ_4M, mark);
	from = map_gigantic(s, SZ_1G, &fd);
	to = mmap_reserve(SZ_1G, SZ_1G, 0);
	repeater_start(&toggler, toggle_memory, s->device);
	end = now_ms() + 5000;
	for (round = 0; round < 1000 && now_ms() < end; round++) {
		__mmio_read32(from, &value);
		ASSERT_EQ(to, mremap(from, SZ_1G, SZ_1G, MREMAP_MAYMOVE | MREMAP_FIXED, to));
		r = __mmio_read32(to + SZ_4M, &value);
		ASSERT_TRUE(r == -EFAULT || (!r && value == mark));

		tmp = from;
		from = to;
		to = tmp;
	}
	repeater_stop(&toggler);
	EXPECT_EQ(mark, mmio_read32(from + SZ_4M));

	ASSERT_EQ(0, munmap(from, SZ_1G));
	ASSERT_EQ(0, close(fd));
}

/* Where no huge page fits: at the last page of 64 KiB. */
static void *map_small(int fd, u64 offset, u64 size, int prot)
{
	void *vaddr = mmap_reserve(size, SZ_2M, SZ_64K - SZ_4K);

	VFIO_ASSERT_EQ(mmap(vaddr, size, prot, MAP_SHARED | MAP_FIXED, fd, offset), vaddr);
	return vaddr;
}

/*
 * A walk is mapped ahead, to a multiple of 64 KiB, and nothing else is. What is
 * mapped where is told by the page tables, as a touch would map it.
 */
TEST_F(vfio_pci_dmabuf_map, mapped_ahead)
{
	struct setup *s = &self->s;
	struct vfio_region_dma_range gap[] = {
		{ .offset = 0, .length = 4 * SZ_4K },
		{ .offset = SZ_64K, .length = 4 * SZ_4K },
	};
	u64 size = SZ_256K, offset;
	void *vaddr;
	int fd, i;

	if (s->page_size != SZ_4K || s->size < SZ_1M)
		SKIP(return, "Made for pages of 4 KiB, and BARs of 1 MiB");
	if (__page_mapping_count(s->bar, size, SZ_4K) < 0)
		SKIP(return, "Cannot look at page tables");

	if (s->is_ram)
		pages_number(s, SZ_1M);
	fd = export_range(s, 0, size);

	/* The first page behind the multiple is the second one. */
	vaddr = map_small(fd, 0, size, PROT_READ);
	mmio_read32(vaddr);
	EXPECT_EQ(1, __page_mapping_count_all(vaddr, size));
	mmio_read32(vaddr + SZ_4K);
	if (__page_mapping_count_all(vaddr, size) == 2) {
		dmabuf_unmap(vaddr, size);
		ASSERT_EQ(0, close(fd));
		ASSERT_EQ(KSFT_PASS, _metadata->exit_code);
		SKIP(return, "The kernel maps nothing ahead");
	}
	EXPECT_EQ(17, __page_mapping_count(vaddr, size, SZ_4K));
	mmio_read32(vaddr + 17 * SZ_4K);
	EXPECT_EQ(33, __page_mapping_count(vaddr, size, SZ_4K));

	/* What is there already is no end, nor are two such pages. */
	mmio_read32(vaddr + 37 * SZ_4K);
	mmio_read32(vaddr + 41 * SZ_4K);
	mmio_read32(vaddr + 40 * SZ_4K);
	mmio_read32(vaddr + 34 * SZ_4K);
	mmio_read32(vaddr + 35 * SZ_4K);
	EXPECT_EQ(33 + 15, __page_mapping_count(vaddr, size, SZ_4K));
	for (offset = 0; s->is_ram && offset < size; offset += SZ_4K)
		ASSERT_EQ(offset / SZ_4K, mmio_read32(vaddr + offset));
	dmabuf_unmap(vaddr, size);
	vaddr = map_small(fd, 0, size, PROT_READ);

	/* Not a walk: back, to and fro, and one page left out. */
	mmio_read32(vaddr + 60 * SZ_4K);
	mmio_read32(vaddr + 59 * SZ_4K);
	mmio_read32(vaddr + 40 * SZ_4K);
	mmio_read32(vaddr + 42 * SZ_4K);
	mmio_read32(vaddr + 41 * SZ_4K);
	EXPECT_EQ(5, __page_mapping_count(vaddr, size, SZ_4K));
	for (offset = 0; s->is_ram && offset < size; offset += SZ_4K)
		ASSERT_EQ(offset / SZ_4K, mmio_read32(vaddr + offset));
	dmabuf_unmap(vaddr, size);

	/* No further than the mapping, be it the end of it or of a piece. */
	vaddr = map_small(fd, 0, size, PROT_READ);
	dmabuf_unmap(vaddr + 8 * SZ_4K, SZ_4K);
	mmio_read32(vaddr + 2 * SZ_4K);
	mmio_read32(vaddr + 3 * SZ_4K);
	EXPECT_EQ(6, __page_mapping_count(vaddr, size, SZ_4K));
	EXPECT_EQ(-EACCES, access_result(vaddr + 8 * SZ_4K));
	dmabuf_unmap(vaddr, 8 * SZ_4K);
	dmabuf_unmap(vaddr + 9 * SZ_4K, size - 9 * SZ_4K);

	/* The user knows better. */
	vaddr = map_small(fd, 0, size, PROT_READ);
	ASSERT_EQ(0, madvise(vaddr, size, MADV_RANDOM));
	for (i = 0; i < 4; i++)
		mmio_read32(vaddr + i * SZ_4K);
	EXPECT_EQ(4, __page_mapping_count(vaddr, size, SZ_4K));

	/* What was never touched goes like all the rest, and comes back like it. */
	ASSERT_EQ(0, madvise(vaddr, size, MADV_NORMAL));
	mmio_read32(vaddr + 4 * SZ_4K);
	mmio_read32(vaddr + 5 * SZ_4K);
	EXPECT_EQ(17, __page_mapping_count(vaddr, size, SZ_4K));
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(0, __page_mapping_count_all(vaddr, size));
	EXPECT_EQ(-EFAULT, access_result(vaddr + 9 * SZ_4K));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(0, access_result(vaddr + 9 * SZ_4K));

	if (vfio_pci_has_feature(s->device, VFIO_DEVICE_FEATURE_SET |
					    VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE)) {
		mmio_read32(vaddr + 10 * SZ_4K);
		EXPECT_EQ(8, __page_mapping_count(vaddr, size, SZ_4K));
		vfio_pci_dmabuf_revoke(s->device, fd);
		EXPECT_EQ(0, __page_mapping_count_all(vaddr, size));
		EXPECT_EQ(-EFAULT, access_result(vaddr + 12 * SZ_4K));
	}
	dmabuf_unmap(vaddr, size);
	ASSERT_EQ(0, close(fd));

	/* A range ends, the next one is elsewhere. */
	fd = vfio_pci_dmabuf_export(s->device, s->index, O_RDONLY, gap, ARRAY_SIZE(gap));
	vaddr = map_small(fd, 0, 8 * SZ_4K, PROT_READ);
	mmio_read32(vaddr);
	mmio_read32(vaddr + SZ_4K);
	EXPECT_EQ(4, __page_mapping_count(vaddr, 8 * SZ_4K, SZ_4K));
	mmio_read32(vaddr + 4 * SZ_4K);
	EXPECT_EQ(8, __page_mapping_count(vaddr, 8 * SZ_4K, SZ_4K));
	for (i = 0; s->is_ram && i < 8; i++)
		EXPECT_EQ(i < 4 ? i : 12 + i, mmio_read32(vaddr + i * SZ_4K));
	dmabuf_unmap(vaddr, 8 * SZ_4K);
	ASSERT_EQ(0, close(fd));

	/* A mapping of the BAR itself, whose offset is not the buffer's. */
	offset = s->device->bars[s->index].info.offset + SZ_64K;
	vaddr = map_small(s->device->fd, offset, size, PROT_READ);
	mmio_read32(vaddr);
	mmio_read32(vaddr + SZ_4K);
	EXPECT_EQ(17, __page_mapping_count(vaddr, size, SZ_4K));
	for (i = 0; s->is_ram && i < 17; i++)
		EXPECT_EQ(16 + i, mmio_read32(vaddr + i * SZ_4K));
	dmabuf_unmap(vaddr, size);
}

/* Where the mm learns what is written to, it learns it of what is mapped ahead. */
TEST_F(vfio_pci_dmabuf_map, mapped_ahead_to_write)
{
	struct setup *s = &self->s;
	struct page_mapping mapping;
	void *vaddr;
	int fd;

	if (!s->is_ram)
		SKIP(return, "No BAR with RAM, which may be written to");
	if (s->page_size != SZ_4K || s->size < SZ_256K)
		SKIP(return, "Made for pages of 4 KiB, and a BAR of 256 KiB");

	fd = export_range(s, 0, SZ_256K);
	vaddr = map_small(fd, 0, SZ_256K, PROT_READ | PROT_WRITE);
	if (!track_writes())
		SKIP(return, "The kernel does not track writes");

	mmio_write32(vaddr, 1);
	mmio_write32(vaddr + SZ_4K, 2);
	if (__page_mapping_get(vaddr + 9 * SZ_4K, &mapping) || !mapping.size)
		SKIP(return, "Nothing is mapped ahead, or nobody can tell");
	EXPECT_TRUE(mapping.writable);
	mmio_write32(vaddr + 9 * SZ_4K, 3);
	EXPECT_EQ(3, mmio_read32(s->bar + 9 * SZ_4K));

	dmabuf_unmap(vaddr, SZ_256K);
	ASSERT_EQ(0, close(fd));
}

/* Offsets in a buffer have more than 32 bits, however small the BAR is. */
TEST_F(vfio_pci_dmabuf_map, far_ranges)
{
	struct setup *s = &self->s;
	/* The last one begins at 4 GiB or more. */
	u32 i, nr = max_t(u64, SZ_2G / s->size * 2 + 1, 3);
	struct vfio_region_dma_range *ranges;
	void *vaddr;
	int fd;

	if (sizeof(size_t) < 8)
		SKIP(return, "The size of a buffer has 32 bits");
	if (!s->is_ram)
		SKIP(return, "No BAR with RAM, which tells its pages apart");

	pages_number(s, 8 * s->page_size);
	ranges = calloc_assert(nr, sizeof(*ranges));
	for (i = 0; i < nr; i++)
		ranges[i].length = s->size;
	ranges[nr - 1].offset = 5 * s->page_size;
	ranges[nr - 1].length = 2 * s->page_size;
	fd = vfio_pci_dmabuf_export(s->device, s->index, O_RDWR | O_CLOEXEC, ranges, nr);
	free(ranges);

	vaddr = dmabuf_map(fd, (nr - 1) * s->size, 2 * s->page_size);
	EXPECT_EQ(5, mmio_read32(vaddr));
	EXPECT_EQ(6, mmio_read32(vaddr + s->page_size));

	dmabuf_unmap(vaddr, 2 * s->page_size);
	ASSERT_EQ(0, close(fd));
}

/*
 * What depends on how the device is opened and closed, so in every IOMMU mode, with
 * lend_and_take_back below. Elsewhere one is as good as any.
 */

FIXTURE(vfio_pci_dmabuf_life) {
	struct setup s;
};

FIXTURE_VARIANT(vfio_pci_dmabuf_life) {
	const char *iommu_mode;
};

#define FIXTURE_VARIANT_ADD_IOMMU_MODE(_iommu_mode)		\
FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_life, _iommu_mode) {	\
	.iommu_mode = #_iommu_mode,				\
}

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES();

#undef FIXTURE_VARIANT_ADD_IOMMU_MODE

FIXTURE_SETUP(vfio_pci_dmabuf_life)
{
	const char *reason = setup_init(&self->s, variant->iommu_mode);

	if (reason)
		SKIP(return, "%s", reason);

	if (!vfio_pci_has_dmabuf_mmap(self->s.device, self->s.index))
		SKIP(return, "The kernel does not map exported DMABUFs");
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_life)
{
	setup_cleanup(&self->s);
}

TEST_F(vfio_pci_dmabuf_life, outages)
{
	struct setup *s = &self->s;
	int fd, before, i;
	void *vaddr, *tail, *early, *late;

	if (s->is_ram)
		pages_number(s, s->size);

	before = export_range(s, 0, s->size);
	vaddr = dmabuf_map(before, 0, s->size);
	tail = vaddr + s->size - s->page_size;

	for (i = 0; i < ARRAY_SIZE(outages); i++) {
		ASSERT_EQ(0, access_result(vaddr));
		ASSERT_EQ(0, access_result(tail));

		if (!outage_begin(&outages[i], s)) {
			printf("The device has no state \"%s\"\n", outages[i].name);
			continue;
		}

		EXPECT_EQ(-EFAULT, access_result(vaddr)) TH_LOG("%s", outages[i].name);
		EXPECT_EQ(-EFAULT, access_result(tail)) TH_LOG("%s", outages[i].name);
		EXPECT_EQ(-EFAULT, access_result(s->bar)) TH_LOG("%s", outages[i].name);

		/* Both an old and a new DMABUF can be mapped now, for later. */
		early = dmabuf_map(before, 0, s->page_size);
		fd = export_range(s, 0, s->page_size);
		late = dmabuf_map(fd, 0, s->page_size);
		EXPECT_EQ(-EFAULT, access_result(early)) TH_LOG("%s", outages[i].name);
		EXPECT_EQ(-EFAULT, access_result(late)) TH_LOG("%s", outages[i].name);

		outage_end(&outages[i], s);

		EXPECT_EQ(0, access_result(vaddr)) TH_LOG("%s", outages[i].name);
		EXPECT_EQ(0, access_result(tail)) TH_LOG("%s", outages[i].name);
		EXPECT_EQ(0, access_result(s->bar)) TH_LOG("%s", outages[i].name);
		EXPECT_EQ(0, access_result(early)) TH_LOG("%s", outages[i].name);
		EXPECT_EQ(0, access_result(late)) TH_LOG("%s", outages[i].name);

		if (s->is_ram)
			EXPECT_EQ(s->size / s->page_size - 1, mmio_read32(tail));

		dmabuf_unmap(early, s->page_size);
		dmabuf_unmap(late, s->page_size);
		ASSERT_EQ(0, close(fd));
	}

	dmabuf_unmap(vaddr, s->size);
	ASSERT_EQ(0, close(before));
}

TEST_F(vfio_pci_dmabuf_life, reset)
{
	struct setup *s = &self->s;
	void *vaddr;
	int fd;

	if (!(s->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "Device does not support reset");

	fd = export_range(s, 0, s->size);
	vaddr = dmabuf_map(fd, 0, s->size);
	ASSERT_EQ(0, access_result(vaddr));

	vfio_pci_device_reset(s->device);

	ASSERT_EQ(0, access_result(vaddr));
	ASSERT_EQ(0, access_result(vaddr + s->size - s->page_size));
	ASSERT_EQ(0, map_result(fd, 0, s->size));

	dmabuf_unmap(vaddr, s->size);
	ASSERT_EQ(0, close(fd));
}

/* Neither the fd nor the map keeps the device open; both die with it. */
TEST_F(vfio_pci_dmabuf_life, device_closed)
{
	struct setup *s = &self->s;
	int fd, unmapped;
	void *vaddr;

	fd = export_range(s, 0, s->page_size);
	unmapped = export_range(s, 0, s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);
	ASSERT_EQ(0, access_result(vaddr));

	vfio_pci_device_close(s->device);

	EXPECT_EQ(-EFAULT, access_result(vaddr));
	EXPECT_EQ(-ENODEV, map_result(fd, 0, s->page_size));
	EXPECT_EQ(-ENODEV, map_result(unmapped, 0, s->page_size));

	vfio_pci_device_reopen(s->device);

	/* For good. */
	EXPECT_EQ(-EFAULT, access_result(vaddr));
	EXPECT_EQ(-ENODEV, map_result(fd, 0, s->page_size));

	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, close(unmapped));
}

static int close_device(struct vfio_pci_device *device, int dmabuf_fd)
{
	vfio_pci_device_close(device);
	return 0;
}

/* What else can be done with a buffer that is dead by @end, and a map of it, does no harm. */
static void check_harmless(struct __test_metadata *_metadata, struct setup *s,
			   int (*end)(struct vfio_pci_device *device, int dmabuf_fd))
{
	struct dma_buf_sync sync = { .flags = DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW };
	struct dma_buf_export_sync_file sync_file = { .flags = DMA_BUF_SYNC_RW };
	u64 size = 4 * s->page_size;
	struct pollfd poll_fd;
	void *vaddr, *moved;
	pid_t pid;
	int fd;

	fd = export_range(s, 0, size);
	vaddr = dmabuf_map(fd, 0, size);
	ASSERT_EQ(0, access_result(vaddr));
	ASSERT_EQ(0, end(s->device, fd));

	EXPECT_EQ(size, lseek(fd, 0, SEEK_END));
	EXPECT_EQ(0, ioctl(fd, DMA_BUF_SET_NAME, "dead"));
	EXPECT_EQ(0, ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync));
	if (!ioctl(fd, DMA_BUF_IOCTL_EXPORT_SYNC_FILE, &sync_file))
		EXPECT_EQ(0, close(sync_file.fd));
	poll_fd = (struct pollfd) { .fd = fd, .events = POLLIN | POLLOUT };
	EXPECT_EQ(1, poll(&poll_fd, 1, 0));

	EXPECT_EQ(0, mprotect(vaddr + s->page_size, s->page_size, PROT_READ));
	dmabuf_unmap(vaddr + 2 * s->page_size, s->page_size);
	moved = mmap_reserve(s->page_size, s->page_size, 0);
	EXPECT_EQ(moved, mremap(vaddr + 3 * s->page_size, s->page_size, s->page_size,
				MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	EXPECT_EQ(-EFAULT, access_result(vaddr));
	EXPECT_EQ(-EFAULT, access_result(vaddr + s->page_size));
	EXPECT_EQ(-EFAULT, access_result(moved));
	EXPECT_EQ(-EFAULT, __mmio_write32(moved, 0));

	pid = process_fork();
	if (!pid)
		_exit(-access_result(vaddr));
	EXPECT_EQ(EFAULT, process_exit_status(pid));

	dmabuf_unmap(vaddr, 2 * s->page_size);
	dmabuf_unmap(moved, s->page_size);
	ASSERT_EQ(0, close(fd));
}

TEST_F(vfio_pci_dmabuf_life, harmless_afterwards)
{
	struct setup *s = &self->s;

	if (s->size < 4 * s->page_size)
		SKIP(return, "BAR too small");

	check_harmless(_metadata, s, close_device);
	vfio_pci_device_reopen(s->device);
}

/* As long as a BAR map is left, the device is open and all is alive. */
TEST_F(vfio_pci_dmabuf_life, device_fd_closed)
{
	struct setup *s = &self->s;
	void *vaddr;
	int fd;

	fd = export_range(s, 0, s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);

	ASSERT_EQ(0, close(s->device->fd));
	EXPECT_EQ(0, access_result(vaddr));
	EXPECT_EQ(0, map_result(fd, 0, s->page_size));

	vfio_pci_bar_unmap_all(s->device);
	EXPECT_EQ(-EFAULT, access_result(vaddr));
	EXPECT_EQ(-ENODEV, map_result(fd, 0, s->page_size));
	vfio_pci_device_reopen(s->device);

	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
}

/* An unprivileged holder must not keep the buffer by a path to it. */
TEST_F(vfio_pci_dmabuf_life, o_path)
{
	struct setup *s = &self->s;
	char path[32];
	int fd, pin;

	fd = export_range(s, 0, s->page_size);
	snprintf_assert(path, sizeof(path), "/proc/self/fd/%d", fd);
	pin = open(path, O_PATH);
	ASSERT_GE(pin, 0);
	ASSERT_EQ(0, close(fd));

	/* All of this walks over the device's buffers. */
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	vfio_pci_device_close(s->device);
	vfio_pci_device_reopen(s->device);

	ASSERT_EQ(0, close(pin));
}

/*
 * Revoke
 */

typedef int (*revoke_fn)(struct vfio_pci_device *device, int dmabuf_fd);

FIXTURE(vfio_pci_dmabuf_revoke) {
	struct setup s;
};

FIXTURE_VARIANT(vfio_pci_dmabuf_revoke) {
	revoke_fn revoke;
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_revoke, feature) {
	.revoke = __vfio_pci_dmabuf_revoke,
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_revoke, ioctl) {
	.revoke = __vfio_pci_dmabuf_revoke_ioctl,
};

FIXTURE_SETUP(vfio_pci_dmabuf_revoke)
{
	const char *reason = setup_init(&self->s, default_iommu_mode);
	bool supported;

	if (reason)
		SKIP(return, "%s", reason);

	if (variant->revoke == __vfio_pci_dmabuf_revoke)
		supported = vfio_pci_has_feature(self->s.device, FEATURE_REVOKE);
	else
		supported = vfio_pci_has_revoke_ioctl(self->s.device);

	if (!supported)
		SKIP(return, "The kernel does not revoke DMABUFs by this call");

	if (!vfio_pci_has_dmabuf_mmap(self->s.device, self->s.index))
		SKIP(return, "The kernel does not map exported DMABUFs");
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_revoke)
{
	setup_cleanup(&self->s);
}

TEST_F(vfio_pci_dmabuf_revoke, revoke)
{
	struct setup *s = &self->s;
	void *vaddr, *other_vaddr;
	int fd, other;

	fd = export_range(s, 0, s->size);
	vaddr = dmabuf_map(fd, 0, s->size);
	other = export_range(s, 0, s->page_size);
	other_vaddr = dmabuf_map(other, 0, s->page_size);
	ASSERT_EQ(0, access_result(vaddr));
	ASSERT_EQ(0, access_result(vaddr + s->size - s->page_size));

	ASSERT_EQ(0, variant->revoke(s->device, fd));

	/* Pages that were accessed before, and those that were not. */
	EXPECT_EQ(-EFAULT, access_result(vaddr));
	EXPECT_EQ(-EFAULT, access_result(vaddr + s->size - s->page_size));
	EXPECT_EQ(-EFAULT, access_result(vaddr + ALIGN_DOWN(s->size / 2, s->page_size)));
	EXPECT_EQ(-ENODEV, map_result(fd, 0, s->page_size));
	EXPECT_EQ(-EBADFD, variant->revoke(s->device, fd));

	/* Nobody else notices. */
	EXPECT_EQ(0, access_result(other_vaddr));
	EXPECT_EQ(0, access_result(s->bar));
	EXPECT_EQ(0, map_result(other, 0, s->page_size));

	dmabuf_unmap(vaddr, s->size);
	dmabuf_unmap(other_vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, close(other));
}

TEST_F(vfio_pci_dmabuf_revoke, export_anew)
{
	struct setup *s = &self->s;
	void *old_vaddr, *vaddr;
	int old, fd;

	old = export_range(s, 0, s->page_size);
	old_vaddr = dmabuf_map(old, 0, s->page_size);
	ASSERT_EQ(0, access_result(old_vaddr));
	ASSERT_EQ(0, variant->revoke(s->device, old));

	fd = export_range(s, 0, s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);
	ASSERT_EQ(0, access_result(vaddr));
	if (s->is_ram) {
		mmio_write32(vaddr, 0x600d600d);
		ASSERT_EQ(0x600d600d, mmio_read32(s->bar));
	}
	EXPECT_EQ(-EFAULT, access_result(old_vaddr));

	dmabuf_unmap(vaddr, s->page_size);
	dmabuf_unmap(old_vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, close(old));
}

/* The buffer is meant, not the fd: a copy will do, and stands for the same. */
TEST_F(vfio_pci_dmabuf_revoke, dup)
{
	struct setup *s = &self->s;
	void *vaddr;
	int fd, copy;

	fd = export_range(s, 0, s->page_size);
	copy = dup(fd);
	vaddr = dmabuf_map(fd, 0, s->page_size);

	ASSERT_EQ(0, variant->revoke(s->device, copy));
	EXPECT_EQ(-EFAULT, access_result(vaddr));
	EXPECT_EQ(-ENODEV, map_result(fd, 0, s->page_size));
	EXPECT_EQ(-EBADFD, variant->revoke(s->device, fd));

	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, close(copy));
}

/* Nothing brings it back. */
TEST_F(vfio_pci_dmabuf_revoke, for_good)
{
	struct setup *s = &self->s;
	void *vaddr;
	int fd, i;

	fd = export_range(s, 0, s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);
	ASSERT_EQ(0, access_result(vaddr));
	ASSERT_EQ(0, variant->revoke(s->device, fd));

	for (i = 0; i < ARRAY_SIZE(outages); i++) {
		if (!outage_begin(&outages[i], s))
			continue;
		outage_end(&outages[i], s);

		EXPECT_EQ(-EFAULT, access_result(vaddr)) TH_LOG("%s", outages[i].name);
		EXPECT_EQ(-ENODEV, map_result(fd, 0, s->page_size)) TH_LOG("%s", outages[i].name);
	}

	if (s->device->info.flags & VFIO_DEVICE_FLAGS_RESET) {
		vfio_pci_device_reset(s->device);
		EXPECT_EQ(-EFAULT, access_result(vaddr));
		EXPECT_EQ(-ENODEV, map_result(fd, 0, s->page_size));
	}

	EXPECT_EQ(-EBADFD, variant->revoke(s->device, fd));
	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
}

TEST_F(vfio_pci_dmabuf_revoke, during_outage)
{
	struct setup *s = &self->s;
	void *vaddr;
	int fd, i;

	for (i = 0; i < ARRAY_SIZE(outages); i++) {
		fd = export_range(s, 0, s->page_size);
		vaddr = dmabuf_map(fd, 0, s->page_size);
		ASSERT_EQ(0, access_result(vaddr));

		if (outage_begin(&outages[i], s)) {
			EXPECT_EQ(0, variant->revoke(s->device, fd)) TH_LOG("%s", outages[i].name);
			EXPECT_EQ(-EBADFD, variant->revoke(s->device, fd));
			outage_end(&outages[i], s);

			EXPECT_EQ(-EFAULT, access_result(vaddr)) TH_LOG("%s", outages[i].name);
			EXPECT_EQ(-ENODEV, map_result(fd, 0, s->page_size));
		}

		dmabuf_unmap(vaddr, s->page_size);
		ASSERT_EQ(0, close(fd));
	}
}

TEST_F(vfio_pci_dmabuf_revoke, processes)
{
	struct subordinate children[4];
	struct setup *s = &self->s;
	void *vaddr;
	u32 value;
	int fd, i;

	fd = export_range(s, 0, s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);

	for (i = 0; i < ARRAY_SIZE(children); i++)
		subordinate_fork(&children[i], vaddr);

	for (i = 0; i < ARRAY_SIZE(children); i++)
		ASSERT_EQ(0, subordinate_read(&children[i], &value));

	ASSERT_EQ(0, variant->revoke(s->device, fd));

	for (i = 0; i < ARRAY_SIZE(children); i++) {
		EXPECT_EQ(-EFAULT, subordinate_read(&children[i], &value));
		ASSERT_EQ(0, subordinate_end(&children[i]));
	}

	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
}

/* Nothing is left to get at it by, in this process and in a child of it. */
TEST_F(vfio_pci_dmabuf_revoke, unmaps)
{
	struct setup *s = &self->s;
	u64 size = min_t(u64, s->size, SZ_8M);
	int fd, sockets[2];
	long count;
	pid_t pid;
	void *vaddr;
	char go;

	if (__page_mapping_count_all(s->bar, s->page_size) < 0)
		SKIP(return, "Cannot look at page tables");

	fd = export_range(s, 0, size);
	vaddr = mmap_reserve(size, SZ_2M, 0);
	ASSERT_EQ(vaddr, mmap(vaddr, size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0));
	mmio_read32(vaddr);
	mmio_read32(vaddr + size - s->page_size);
	mmio_read32(s->bar);
	count = __page_mapping_count_all(s->bar, s->size);

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets));
	pid = process_fork();
	if (!pid) {
		mmio_read32(vaddr);
		mmio_read32(vaddr + size - s->page_size);
		VFIO_ASSERT_EQ(write(sockets[0], "", 1), 1);
		VFIO_ASSERT_EQ(read(sockets[0], &go, 1), 1);
		_exit(__page_mapping_count_all(vaddr, size) != 0);
	}
	ASSERT_EQ(1, read(sockets[1], &go, 1));
	EXPECT_LT(0, __page_mapping_count_all(vaddr, size));

	ASSERT_EQ(0, variant->revoke(s->device, fd));
	EXPECT_EQ(0, __page_mapping_count_all(vaddr, size));
	ASSERT_EQ(1, write(sockets[1], "", 1));
	EXPECT_EQ(0, process_exit_status(pid));

	/* That of the BAR has not been touched. */
	EXPECT_EQ(count, __page_mapping_count_all(s->bar, s->size));

	dmabuf_unmap(vaddr, size);
	ASSERT_EQ(0, close(fd));
}

/* What is written after somebody was shut out, and must not be seen by him. */
#define SECRET	0x5ec4e7

static bool secret_is_kept(void *vaddr)
{
	u32 value;

	return __mmio_read32(vaddr, &value) || value != SECRET;
}

TEST_F(vfio_pci_dmabuf_revoke, secret)
{
	struct setup *s = &self->s;
	struct repeater watchers[2];
	int fd, round, i;
	void *vaddr;

	if (!s->is_ram)
		SKIP(return, "No BAR with RAM to write to");

	for (round = 0; round < 20; round++) {
		mmio_write32(s->bar, 0);
		fd = export_range(s, 0, s->page_size);
		vaddr = dmabuf_map(fd, 0, s->page_size);
		for (i = 0; i < ARRAY_SIZE(watchers); i++) {
			repeater_start(&watchers[i], secret_is_kept, vaddr);
			repeater_wait(&watchers[i]);
		}

		ASSERT_EQ(0, variant->revoke(s->device, fd));
		mmio_write32(s->bar, SECRET);

		for (i = 0; i < ARRAY_SIZE(watchers); i++) {
			repeater_wait(&watchers[i]);
			repeater_stop(&watchers[i]);
			EXPECT_EQ(0, watchers[i].nr_failed);
		}
		dmabuf_unmap(vaddr, s->page_size);
		ASSERT_EQ(0, close(fd));
	}
}

TEST_F(vfio_pci_dmabuf_revoke, harmless_afterwards)
{
	struct setup *s = &self->s;

	if (s->size < 4 * s->page_size)
		SKIP(return, "BAR too small");

	check_harmless(_metadata, s, variant->revoke);
}

TEST_F(vfio_pci_dmabuf_revoke, bad_fd)
{
	struct setup *s = &self->s;
	struct state before, after;
	int fd, pin, fds[4], i;
	char path[32];
	void *vaddr;

	fd = export_range(s, 0, s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);
	snprintf_assert(path, sizeof(path), "/proc/self/fd/%d", fd);
	pin = open(path, O_PATH);
	fds[0] = memfd_create("not a DMABUF", 0);
	fds[1] = eventfd(0, 0);
	fds[2] = socket(AF_UNIX, SOCK_STREAM, 0);
	fds[3] = open("/dev/null", O_RDWR);

	state_get(&before, fd);

	EXPECT_EQ(-EBADF, variant->revoke(s->device, -1));
	EXPECT_EQ(-EBADF, variant->revoke(s->device, INT_MIN));
	EXPECT_EQ(-EBADF, variant->revoke(s->device, INT_MAX));
	EXPECT_EQ(-EBADF, variant->revoke(s->device, 1 << 20));
	EXPECT_EQ(-EBADF, variant->revoke(s->device, pin));
	EXPECT_EQ(-EINVAL, variant->revoke(s->device, s->device->fd));
	for (i = 0; i < ARRAY_SIZE(fds); i++) {
		EXPECT_EQ(-EINVAL, variant->revoke(s->device, fds[i])) {
			TH_LOG("fd %d", i);
		}
	}

	state_get(&after, fd);
	EXPECT_STREQ(before.text, after.text);
	EXPECT_EQ(0, access_result(vaddr));

	for (i = 0; i < ARRAY_SIZE(fds); i++)
		ASSERT_EQ(0, close(fds[i]));
	ASSERT_EQ(0, close(pin));
	EXPECT_EQ(0, variant->revoke(s->device, fd));

	/* The second time is an error, and changes nothing either. */
	state_get(&before, fd);
	EXPECT_EQ(-EBADFD, variant->revoke(s->device, fd));
	state_get(&after, fd);
	EXPECT_STREQ(before.text, after.text);

	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
}

/* A DMABUF of the device before it was closed is none of it any more. */
TEST_F(vfio_pci_dmabuf_revoke, former_life)
{
	struct setup *s = &self->s;
	int fd;

	fd = export_range(s, 0, s->page_size);
	vfio_pci_device_close(s->device);
	vfio_pci_device_reopen(s->device);
	EXPECT_EQ(-ENODEV, variant->revoke(s->device, fd));
	ASSERT_EQ(0, close(fd));
}

TEST_F(vfio_pci_dmabuf_revoke, foreign_exporter)
{
	struct setup *s = &self->s;
	int fd;

	fd = udmabuf_create(s->page_size);
	if (fd < 0)
		SKIP(return, "No udmabuf");

	EXPECT_EQ(-ENODEV, variant->revoke(s->device, fd));
	EXPECT_EQ(0, map_result(fd, 0, s->page_size));
	ASSERT_EQ(0, close(fd));
}

TEST_F(vfio_pci_dmabuf_revoke, other_device)
{
	struct setup *s = &self->s, other = {};
	struct state before, after;
	void *vaddr;
	int fd;

	if (!other_bdf)
		SKIP(return, "Needs two devices");

	other.page_size = s->page_size;
	other.device = vfio_pci_device_init(other_bdf, s->iommu);
	other.index = vfio_pci_ram_bar(other.device);
	if (other.index < 0)
		SKIP(return, "The other device has no BAR with RAM");
	fd = export_range(&other, 0, s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);

	state_get(&before, fd);
	EXPECT_EQ(-ENODEV, variant->revoke(s->device, fd));
	if (vfio_pci_has_feature(s->device, FEATURE_MEMATTR))
		EXPECT_EQ(-ENODEV, __vfio_pci_dmabuf_memattr(s->device, fd, WC));
	state_get(&after, fd);
	EXPECT_STREQ(before.text, after.text);
	EXPECT_EQ(0, access_result(vaddr));

	/* Whose it is comes before what state it is in. */
	EXPECT_EQ(0, variant->revoke(other.device, fd));
	EXPECT_EQ(-ENODEV, variant->revoke(s->device, fd));
	EXPECT_EQ(-EBADFD, variant->revoke(other.device, fd));

	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
	vfio_pci_device_cleanup(other.device);
}

TEST_F(vfio_pci_dmabuf_revoke, bad_arguments)
{
	struct vfio_device_feature_dma_buf_revoke revoke;
	struct setup *s = &self->s;
	int fd = export_range(s, 0, s->page_size);
	struct state before, after;
	void *page;

	state_get(&before, fd);

	if (variant->revoke == __vfio_pci_dmabuf_revoke) {
		u32 get = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE;

		revoke.dmabuf_fd = fd;
		EXPECT_EQ(-1, vfio_device_feature_ioctl(s->device->fd, get, &revoke,
							sizeof(revoke)));
		EXPECT_EQ(EINVAL, errno);
		EXPECT_EQ(-1, vfio_device_feature_ioctl(s->device->fd, FEATURE_REVOKE, &revoke,
							sizeof(revoke) - 1));
		EXPECT_EQ(EINVAL, errno);
	} else {
		struct vfio_pci_dmabuf_revoke args = {
			.argsz = sizeof(args) - 1,
			.dmabuf_fd = fd,
		};

		EXPECT_EQ(-1, ioctl(s->device->fd, VFIO_DEVICE_PCI_DMABUF_REVOKE, &args));
		EXPECT_EQ(EINVAL, errno);
	}

	/* The argument ends where nothing is mapped any more. */
	page = mmap(NULL, 2 * s->page_size, PROT_READ | PROT_WRITE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, page);
	ASSERT_EQ(0, munmap(page + s->page_size, s->page_size));

	if (variant->revoke == __vfio_pci_dmabuf_revoke) {
		struct vfio_device_feature *feature;

		feature = page + s->page_size - sizeof(*feature);
		feature->argsz = sizeof(*feature) + sizeof(revoke);
		feature->flags = FEATURE_REVOKE;
		EXPECT_EQ(-1, ioctl(s->device->fd, VFIO_DEVICE_FEATURE, feature));
	} else {
		u32 *argsz = page + s->page_size - sizeof(*argsz);

		*argsz = sizeof(struct vfio_pci_dmabuf_revoke);
		EXPECT_EQ(-1, ioctl(s->device->fd, VFIO_DEVICE_PCI_DMABUF_REVOKE, argsz));
	}
	EXPECT_EQ(EFAULT, errno);
	ASSERT_EQ(0, munmap(page, s->page_size));

	/* Such errors come before the look at the fd. */
	if (variant->revoke == __vfio_pci_dmabuf_revoke) {
		revoke.dmabuf_fd = -1;
		EXPECT_EQ(-1, vfio_device_feature_ioctl(s->device->fd, FEATURE_REVOKE, &revoke,
							sizeof(revoke) - 1));
		EXPECT_EQ(EINVAL, errno);
	}

	/* None of these has changed anything. */
	state_get(&after, fd);
	EXPECT_STREQ(before.text, after.text);
	EXPECT_EQ(0, map_result(fd, 0, s->page_size));
	ASSERT_EQ(0, close(fd));
}

/*
 * The call's argument may lie in the BAR itself, or in the very map that goes
 * away by it, and the kernel then gets to it by vfio's fault handler.
 */
TEST_F(vfio_pci_dmabuf_revoke, argument_in_bar)
{
	struct vfio_device_feature_dma_buf_revoke *revoke;
	struct setup *s = &self->s;
	struct vfio_device_feature *feature;
	void *vaddr;
	int fd;

	if (!s->is_ram)
		SKIP(return, "No BAR with RAM to write to");
	if (variant->revoke != __vfio_pci_dmabuf_revoke)
		SKIP(return, "The feature shows it");

	fd = export_range(s, 0, s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);
	feature = vaddr;
	revoke = (void *)feature->data;
	mmio_write32(&feature->argsz, sizeof(*feature) + sizeof(*revoke));
	mmio_write32(&feature->flags, FEATURE_REVOKE);
	mmio_write32(&revoke->dmabuf_fd, fd);

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(-1, ioctl(s->device->fd, VFIO_DEVICE_FEATURE, vaddr));
	EXPECT_EQ(EFAULT, errno);
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(0, access_result(vaddr));

	EXPECT_EQ(0, ioctl(s->device->fd, VFIO_DEVICE_FEATURE, vaddr));
	EXPECT_EQ(-EFAULT, access_result(vaddr));
	EXPECT_EQ(-1, ioctl(s->device->fd, VFIO_DEVICE_FEATURE, vaddr));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(-1, ioctl(s->device->fd, VFIO_DEVICE_FEATURE, s->bar));
	EXPECT_EQ(EBADFD, errno);

	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
}

/*
 * Memory attribute
 */

FIXTURE(vfio_pci_dmabuf_memattr) {
	struct setup s;
	int fd;
};

FIXTURE_SETUP(vfio_pci_dmabuf_memattr)
{
	const char *reason = setup_init(&self->s, default_iommu_mode);

	if (reason)
		SKIP(return, "%s", reason);

	if (!vfio_pci_has_feature(self->s.device, FEATURE_MEMATTR))
		SKIP(return, "The kernel has no memory attributes for DMABUFs");

	self->fd = export_range(&self->s, 0, self->s.page_size);
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_memattr)
{
	VFIO_ASSERT_EQ(close(self->fd), 0);
	setup_cleanup(&self->s);
}

/* The type that the page tables hold once @vaddr has been accessed. */
static int memory_type(void *vaddr)
{
	struct page_mapping mapping;
	int r;

	mmio_read32(vaddr);
	r = __page_mapping_get(vaddr, &mapping);
	return r ?: mapping.type;
}

TEST_F(vfio_pci_dmabuf_memattr, default_uncached)
{
	struct setup *s = &self->s;
	void *vaddr;

	vaddr = dmabuf_map(self->fd, 0, s->page_size);
	if (memory_type(vaddr) == -EOPNOTSUPP)
		SKIP(return, "Cannot look at page tables");

	EXPECT_EQ(MEMORY_TYPE_UNCACHED, memory_type(vaddr));
	vfio_pci_dmabuf_memattr(s->device, self->fd, NC);
	EXPECT_EQ(MEMORY_TYPE_UNCACHED, memory_type(vaddr));
	dmabuf_unmap(vaddr, s->page_size);
}

/* If not then it is set. */
static bool refuses_wc(struct setup *s, int fd)
{
	int r = __vfio_pci_dmabuf_memattr(s->device, fd, WC);

	VFIO_ASSERT_TRUE(!r || r == -EOPNOTSUPP, "Write-combining: %d\n", r);
	return r;
}

/* In debugfs of an x86 kernel that uses the PAT. */
#define PAT_LIST	"/sys/kernel/debug/x86/pat_memtype_list"

/* Either it is honestly refused and nothing changes, or it is in effect. */
TEST_F(vfio_pci_dmabuf_memattr, write_combining)
{
	struct setup *s = &self->s;
	void *old, *new, *later, *moved;
	int r, expected;

	old = dmabuf_map(self->fd, 0, s->page_size);
	if (memory_type(old) == -EOPNOTSUPP)
		SKIP(return, "Cannot look at page tables");

	r = __vfio_pci_dmabuf_memattr(s->device, self->fd, WC);
	if (r) {
		ASSERT_EQ(-EOPNOTSUPP, r);
		/* Where there is PAT there is no reason to refuse it. */
		EXPECT_NE(0, access(PAT_LIST, F_OK));
	}
	expected = r ? MEMORY_TYPE_UNCACHED : MEMORY_TYPE_WRITE_COMBINING;
	printf("Write-combining is %s\n", r ? "refused" : "in effect");

	new = dmabuf_map(self->fd, 0, s->page_size);
	EXPECT_EQ(expected, memory_type(new));
	EXPECT_EQ(MEMORY_TYPE_UNCACHED, memory_type(old));
	EXPECT_EQ(MEMORY_TYPE_UNCACHED, memory_type(s->bar));

	/* Each keeps its own when it has to be faulted in again. */
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(expected, memory_type(new));
	EXPECT_EQ(MEMORY_TYPE_UNCACHED, memory_type(old));

	/* Back, for those to come. */
	vfio_pci_dmabuf_memattr(s->device, self->fd, NC);
	later = dmabuf_map(self->fd, 0, s->page_size);
	EXPECT_EQ(MEMORY_TYPE_UNCACHED, memory_type(later));
	EXPECT_EQ(expected, memory_type(new));

	moved = mmap_reserve(s->page_size, SZ_2M, 0);
	ASSERT_EQ(moved, mremap(new, s->page_size, s->page_size,
				MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	EXPECT_EQ(expected, memory_type(moved));

	if (s->is_ram) {
		mmio_write32(moved, 0xc0b1e0);
		EXPECT_EQ(0xc0b1e0, mmio_read32(moved));
	}

	dmabuf_unmap(old, s->page_size);
	dmabuf_unmap(moved, s->page_size);
	dmabuf_unmap(later, s->page_size);
}

/* What is mapped ahead has the attribute of the mapping, too. */
TEST_F(vfio_pci_dmabuf_memattr, write_combining_ahead)
{
	struct setup *s = &self->s;
	struct page_mapping mapping;
	void *vaddr;
	int fd;

	if (s->page_size != SZ_4K || s->size < SZ_256K)
		SKIP(return, "Made for pages of 4 KiB, and a BAR of 256 KiB");

	fd = export_range(s, 0, SZ_256K);
	if (refuses_wc(s, fd))
		SKIP(return, "Write-combining is refused");

	vaddr = map_small(fd, 0, SZ_256K, PROT_READ);
	mmio_read32(vaddr);
	mmio_read32(vaddr + SZ_4K);
	if (__page_mapping_get(vaddr + 9 * SZ_4K, &mapping) || !mapping.size)
		SKIP(return, "Nothing is mapped ahead, or nobody can tell");
	EXPECT_EQ(MEMORY_TYPE_WRITE_COMBINING, mapping.type);

	dmabuf_unmap(vaddr, SZ_256K);
	ASSERT_EQ(0, close(fd));
}

/* A huge page has its bits elsewhere; pieces and copies of a map keep them. */
TEST_F(vfio_pci_dmabuf_memattr, write_combining_huge)
{
	struct setup *s = &self->s;
	struct page_mapping mapping;
	void *vaddr;
	pid_t pid;
	int fd;

	if (s->size < SZ_4M)
		SKIP(return, "BAR too small (size=0x%lx)", s->size);

	fd = export_range(s, 0, SZ_4M);
	if (refuses_wc(s, fd))
		SKIP(return, "Write-combining is refused");

	vaddr = mmap_reserve(SZ_4M, SZ_2M, 0);
	ASSERT_EQ(vaddr, mmap(vaddr, SZ_4M, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0));
	mmio_read32(vaddr);
	if (__page_mapping_get(vaddr, &mapping))
		SKIP(return, "Cannot look at page tables");
	EXPECT_EQ(MEMORY_TYPE_WRITE_COMBINING, mapping.type);
	if (has_huge_pages(SZ_2M))
		EXPECT_EQ(SZ_2M, mapping.size);

	pid = process_fork();
	if (!pid)
		_exit(memory_type(vaddr));
	EXPECT_EQ(MEMORY_TYPE_WRITE_COMBINING, process_exit_status(pid));

	ASSERT_EQ(0, mprotect(vaddr + SZ_2M, s->page_size, PROT_READ));
	EXPECT_EQ(MEMORY_TYPE_WRITE_COMBINING, memory_type(vaddr));
	EXPECT_EQ(MEMORY_TYPE_WRITE_COMBINING, memory_type(vaddr + SZ_2M));
	EXPECT_EQ(MEMORY_TYPE_WRITE_COMBINING, memory_type(vaddr + SZ_2M + s->page_size));
	dmabuf_unmap(vaddr + SZ_2M, s->page_size);
	EXPECT_EQ(MEMORY_TYPE_WRITE_COMBINING, memory_type(vaddr + SZ_2M + s->page_size));

	ASSERT_EQ(0, munmap(vaddr, SZ_4M));
	ASSERT_EQ(0, close(fd));
}

/* And a page of 1 GiB once more. */
TEST_F(vfio_pci_dmabuf_memattr, write_combining_gigantic)
{
	struct setup *s = &self->s;
	struct page_mapping mapping;
	void *vaddr;
	int fd;

	if (s->size < SZ_1G)
		SKIP(return, "BAR too small for 1 GiB pages (size=0x%lx)", s->size);
	if (!has_huge_pages(SZ_1G))
		SKIP(return, "The kernel or the CPU has no 1 GiB pages");

	fd = export_range(s, 0, SZ_1G);
	if (refuses_wc(s, fd))
		SKIP(return, "Write-combining is refused");

	vaddr = mmap_reserve(SZ_1G, SZ_1G, 0);
	ASSERT_EQ(vaddr, mmap(vaddr, SZ_1G, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0));
	mmio_read32(vaddr);
	if (__page_mapping_get(vaddr, &mapping))
		SKIP(return, "Cannot look at page tables");
	ASSERT_EQ(SZ_1G, mapping.size);
	EXPECT_EQ(MEMORY_TYPE_WRITE_COMBINING, mapping.type);

	ASSERT_EQ(0, mprotect(vaddr + SZ_2M, s->page_size, PROT_NONE));
	EXPECT_EQ(MEMORY_TYPE_WRITE_COMBINING, memory_type(vaddr));
	EXPECT_EQ(MEMORY_TYPE_WRITE_COMBINING, memory_type(vaddr + SZ_2M + s->page_size));

	ASSERT_EQ(0, munmap(vaddr, SZ_1G));
	ASSERT_EQ(0, close(fd));
}

/* The buffer has it, not the memory: others over the same page have their own. */
TEST_F(vfio_pci_dmabuf_memattr, others_unchanged)
{
	struct setup *s = &self->s;
	void *vaddr;
	int other;

	other = export_range(s, 0, s->page_size);
	if (refuses_wc(s, self->fd))
		SKIP(return, "Write-combining is refused");

	vaddr = dmabuf_map(other, 0, s->page_size);
	if (memory_type(vaddr) == -EOPNOTSUPP)
		SKIP(return, "Cannot look at page tables");
	EXPECT_EQ(MEMORY_TYPE_UNCACHED, memory_type(vaddr));
	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(other));

	vaddr = dmabuf_map(s->device->fd, s->device->bars[s->index].info.offset, s->page_size);
	EXPECT_EQ(MEMORY_TYPE_UNCACHED, memory_type(vaddr));
	dmabuf_unmap(vaddr, s->page_size);
}

TEST_F(vfio_pci_dmabuf_memattr, unknown_value)
{
	const u32 values[] = { 2, 3, INT_MAX, 1U << 31, UINT32_MAX };
	struct setup *s = &self->s;
	struct state before, after;
	int i, memattr;

	for (memattr = NC; memattr <= WC; memattr++) {
		if (__vfio_pci_dmabuf_memattr(s->device, self->fd, memattr))
			continue;

		state_get(&before, self->fd);
		for (i = 0; i < ARRAY_SIZE(values); i++) {
			EXPECT_EQ(-ENOENT, __vfio_pci_dmabuf_memattr(s->device, self->fd,
								     values[i]));
		}
		state_get(&after, self->fd);
		EXPECT_STREQ(before.text, after.text);
	}

	EXPECT_EQ(0, __vfio_pci_dmabuf_memattr(s->device, self->fd, NC));
}

/* Which fd it is comes before what is asked for. */
TEST_F(vfio_pci_dmabuf_memattr, bad_fd)
{
	const u32 values[] = { NC, WC, 2 };
	struct setup *s = &self->s;
	struct state before, after;
	int pin, memfd, foreign, i;
	char path[32];

	snprintf_assert(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	pin = open(path, O_PATH);
	memfd = memfd_create("not a DMABUF", 0);
	foreign = udmabuf_create(s->page_size);
	state_get(&before, self->fd);

	for (i = 0; i < ARRAY_SIZE(values); i++) {
		EXPECT_EQ(-EBADF, __vfio_pci_dmabuf_memattr(s->device, -1, values[i]));
		EXPECT_EQ(-EBADF, __vfio_pci_dmabuf_memattr(s->device, 1 << 20, values[i]));
		EXPECT_EQ(-EBADF, __vfio_pci_dmabuf_memattr(s->device, pin, values[i]));
		EXPECT_EQ(-EINVAL, __vfio_pci_dmabuf_memattr(s->device, memfd, values[i]));
		EXPECT_EQ(-EINVAL, __vfio_pci_dmabuf_memattr(s->device, s->device->fd, values[i]));
		if (foreign >= 0) {
			EXPECT_EQ(-ENODEV, __vfio_pci_dmabuf_memattr(s->device, foreign,
								     values[i]));
		}
	}

	state_get(&after, self->fd);
	EXPECT_STREQ(before.text, after.text);
	ASSERT_EQ(0, close(pin));
	ASSERT_EQ(0, close(memfd));
	if (foreign >= 0)
		ASSERT_EQ(0, close(foreign));

	/* A former life's. */
	vfio_pci_device_close(s->device);
	vfio_pci_device_reopen(s->device);
	for (i = 0; i < ARRAY_SIZE(values); i++)
		EXPECT_EQ(-ENODEV, __vfio_pci_dmabuf_memattr(s->device, self->fd, values[i]));
}

TEST_F(vfio_pci_dmabuf_memattr, bad_arguments)
{
	struct vfio_device_feature_dma_buf_memattr args = { .dmabuf_fd = self->fd };
	u32 get = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR;
	int fd = self->s.device->fd;

	EXPECT_EQ(-1, vfio_device_feature_ioctl(fd, get, &args, sizeof(args)));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, vfio_device_feature_ioctl(fd, FEATURE_MEMATTR, &args, sizeof(args) - 1));
	EXPECT_EQ(EINVAL, errno);
}

/* While it is away for a while, it is set for the maps that are made from then on. */
TEST_F(vfio_pci_dmabuf_memattr, set_while_away)
{
	struct setup *s = &self->s;
	void *before, *early, *late;
	char value[64];
	int expected;
	bool refused;

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(0, __vfio_pci_dmabuf_memattr(s->device, self->fd, NC));
	before = dmabuf_map(self->fd, 0, s->page_size);
	refused = refuses_wc(s, self->fd);
	early = dmabuf_map(self->fd, 0, s->page_size);
	if (fdinfo_get(self->fd, "vfio-pci-memattr", value, sizeof(value)))
		EXPECT_STREQ(refused ? "nc" : "wc", value);
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	late = dmabuf_map(self->fd, 0, s->page_size);

	ASSERT_EQ(KSFT_PASS, _metadata->exit_code);
	if (memory_type(before) == -EOPNOTSUPP)
		SKIP(return, "Cannot look at page tables");

	expected = refused ? MEMORY_TYPE_UNCACHED : MEMORY_TYPE_WRITE_COMBINING;
	EXPECT_EQ(MEMORY_TYPE_UNCACHED, memory_type(before));
	EXPECT_EQ(expected, memory_type(early));
	EXPECT_EQ(expected, memory_type(late));

	dmabuf_unmap(before, s->page_size);
	dmabuf_unmap(early, s->page_size);
	dmabuf_unmap(late, s->page_size);
}

TEST_F(vfio_pci_dmabuf_memattr, revoked)
{
	struct setup *s = &self->s;

	if (!vfio_pci_has_feature(s->device, FEATURE_REVOKE))
		SKIP(return, "The kernel does not revoke DMABUFs");

	vfio_pci_dmabuf_revoke(s->device, self->fd);
	EXPECT_EQ(-EBADFD, __vfio_pci_dmabuf_memattr(s->device, self->fd, NC));
	EXPECT_EQ(-EBADFD, __vfio_pci_dmabuf_memattr(s->device, self->fd, WC));
	EXPECT_EQ(-EBADFD, __vfio_pci_dmabuf_memattr(s->device, self->fd, 2));
}

/*
 * All of it together
 */

/* What a primary does with a slice, however it has opened the device. */
TEST_F(vfio_pci_dmabuf_life, lend_and_take_back)
{
	int type = MEMORY_TYPE_UNCACHED;
	struct setup *s = &self->s;
	struct subordinate sub;
	void *vaddr, *anew;
	u32 value;
	int fd;

	if (!vfio_pci_has_feature(s->device, FEATURE_REVOKE))
		SKIP(return, "The kernel does not revoke DMABUFs");

	fd = export_range(s, 0, s->page_size);
	if (vfio_pci_has_feature(s->device, FEATURE_MEMATTR) && !refuses_wc(s, fd))
		type = MEMORY_TYPE_WRITE_COMBINING;

	vaddr = dmabuf_map(fd, 0, s->page_size);
	if (memory_type(vaddr) != -EOPNOTSUPP)
		EXPECT_EQ(type, memory_type(vaddr));
	subordinate_fork(&sub, vaddr);
	EXPECT_EQ(0, subordinate_read(&sub, &value));

	EXPECT_EQ(0, __vfio_pci_dmabuf_revoke(s->device, fd));
	EXPECT_EQ(-EFAULT, subordinate_read(&sub, &value));
	EXPECT_EQ(-EFAULT, access_result(vaddr));
	EXPECT_EQ(-ENODEV, map_result(fd, 0, s->page_size));
	EXPECT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(s->device, fd));
	EXPECT_EQ(0, access_result(s->bar));
	ASSERT_EQ(0, close(fd));

	/* Its successor is not write-combining. */
	fd = export_range(s, 0, s->page_size);
	anew = dmabuf_map(fd, 0, s->page_size);
	if (memory_type(anew) != -EOPNOTSUPP)
		EXPECT_EQ(MEMORY_TYPE_UNCACHED, memory_type(anew));
	EXPECT_EQ(0, access_result(anew));
	EXPECT_EQ(-EFAULT, subordinate_read(&sub, &value));

	EXPECT_EQ(0, subordinate_end(&sub));
	dmabuf_unmap(anew, s->page_size);
	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
}

/*
 * Bad input: every call fails as it should and leaves all as it was
 */

/* Of a call without a DMABUF: -EBADF if there is the feature, else what there is not. */
static bool lacks(struct vfio_pci_device *device, u32 feature, int result, int export)
{
	if (vfio_pci_has_feature(device, feature))
		return result == -EBADF;

	/* Export is the older one, which fails for what it was passed if it is there. */
	if (vfio_pci_has_feature(device, FEATURE_DMA_BUF))
		return result == -ENOTTY;

	return result == -ENOTTY || result == export;
}

/*
 * A kernel without DMABUFs, or a driver that exports none, lacks all that is for
 * them, and gives the same reason for each.
 */
TEST(lacks_what_it_says)
{
	struct vfio_region_dma_range nothing = {};
	struct vfio_pci_device *device;
	struct iommu *iommu;
	int export, r;

	iommu = iommu_init(default_iommu_mode);
	device = vfio_pci_device_init(device_bdf, iommu);

	export = __vfio_pci_dmabuf_export(device, 0, O_RDWR, &nothing, 1);
	if (!vfio_pci_has_feature(device, FEATURE_DMA_BUF))
		EXPECT_TRUE(export == -ENOTTY || export == -EOPNOTSUPP);

	r = __vfio_pci_dmabuf_revoke(device, -1);
	EXPECT_TRUE(lacks(device, FEATURE_REVOKE, r, export));
	if (vfio_pci_has_revoke_ioctl(device))
		EXPECT_EQ(r, __vfio_pci_dmabuf_revoke_ioctl(device, -1));

	r = __vfio_pci_dmabuf_memattr(device, -1, NC);
	EXPECT_TRUE(lacks(device, FEATURE_MEMATTR, r, export));

	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
}

FIXTURE(vfio_pci_dmabuf_bad_input) {
	struct setup s;
	struct state before, after;
	/* Neither it nor its map must suffer. */
	void *vaddr;
	int fd;
};

FIXTURE_SETUP(vfio_pci_dmabuf_bad_input)
{
	const char *reason = setup_init(&self->s, default_iommu_mode);

	if (reason)
		SKIP(return, "%s", reason);

	if (!vfio_pci_has_feature(self->s.device, FEATURE_REVOKE) ||
	    !vfio_pci_has_feature(self->s.device, FEATURE_MEMATTR))
		SKIP(return, "The kernel lacks one of the features");

	self->fd = export_range(&self->s, 0, self->s.page_size);
	self->vaddr = dmabuf_map(self->fd, 0, self->s.page_size);
	state_get(&self->before, self->fd);
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_bad_input)
{
	state_get(&self->after, self->fd);
	EXPECT_STREQ(self->before.text, self->after.text);
	EXPECT_EQ(0, access_result(self->vaddr));

	dmabuf_unmap(self->vaddr, self->s.page_size);
	VFIO_ASSERT_EQ(close(self->fd), 0);
	setup_cleanup(&self->s);
}

/* The features, and for each of them an argument that is good but for an fd. */
struct argument {
	struct vfio_device_feature header;
	union {
		struct {
			struct vfio_device_feature_dma_buf dma_buf;
			struct vfio_region_dma_range range;
		};
		struct vfio_device_feature_dma_buf_revoke revoke;
		struct vfio_device_feature_dma_buf_memattr memattr;
	};
};

struct feature {
	u32 number;
	u32 direction;
	size_t size;
};

static const struct feature features[] = {
	{
		VFIO_DEVICE_FEATURE_DMA_BUF, VFIO_DEVICE_FEATURE_GET,
		sizeof(struct vfio_device_feature_dma_buf),
	}, {
		VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE, VFIO_DEVICE_FEATURE_SET,
		sizeof(struct vfio_device_feature_dma_buf_revoke),
	}, {
		VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR, VFIO_DEVICE_FEATURE_SET,
		sizeof(struct vfio_device_feature_dma_buf_memattr),
	},
};

static void argument_init(struct argument *arg, struct setup *s,
			  const struct feature *feature, int fd)
{
	*arg = (struct argument) {
		.header = {
			.argsz = sizeof(arg->header) + feature->size,
			.flags = feature->direction | feature->number,
		},
	};

	switch (feature->number) {
	case VFIO_DEVICE_FEATURE_DMA_BUF:
		arg->dma_buf.region_index = s->index;
		arg->dma_buf.open_flags = O_RDWR;
		arg->dma_buf.nr_ranges = 1;
		arg->range.length = s->page_size;
		break;
	case VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE:
		arg->revoke.dmabuf_fd = fd;
		break;
	case VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR:
		arg->memattr.dmabuf_fd = fd;
		arg->memattr.memattr = WC;
		break;
	}
}

static int feature_call(struct setup *s, void *arg)
{
	int ret = ioctl(s->device->fd, VFIO_DEVICE_FEATURE, arg);

	return ret < 0 ? -errno : ret;
}

TEST_F(vfio_pci_dmabuf_bad_input, header)
{
	const u32 direction = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_SET;
	struct setup *s = &self->s;
	struct argument good, arg;
	int i;

	for (i = 0; i < ARRAY_SIZE(features); i++) {
		const struct feature *feature = &features[i];
		const u32 sizes[] = {
			0, 1, sizeof(good.header) - 1, sizeof(good.header),
			sizeof(good.header) + feature->size - 1,
		};
		const u32 flags[] = {
			feature->number,
			feature->number | direction,
			feature->number | (feature->direction ^ direction),
			feature->number | feature->direction | 1 << 19,
			feature->number | feature->direction | 1U << 31,
			feature->number | (feature->direction ^ direction) |
				VFIO_DEVICE_FEATURE_PROBE,
		};
		int j;

		argument_init(&good, s, feature, self->fd);

		for (j = 0; j < ARRAY_SIZE(sizes); j++) {
			arg = good;
			arg.header.argsz = sizes[j];
			EXPECT_EQ(-EINVAL, feature_call(s, &arg)) {
				TH_LOG("feature %u, size %u", feature->number, sizes[j]);
			}
		}

		for (j = 0; j < ARRAY_SIZE(flags); j++) {
			arg = good;
			arg.header.flags = flags[j];
			EXPECT_EQ(-EINVAL, feature_call(s, &arg)) {
				TH_LOG("feature %u, flags 0x%x", feature->number, flags[j]);
			}
		}

		/* To ask is no error, and has no effect. */
		arg = good;
		arg.header.flags |= VFIO_DEVICE_FEATURE_PROBE;
		EXPECT_EQ(0, feature_call(s, &arg));
		arg.header.flags &= ~direction;
		EXPECT_EQ(0, feature_call(s, &arg));

		/* There is none of that number. */
		arg = good;
		arg.header.flags |= VFIO_DEVICE_FEATURE_MASK;
		EXPECT_EQ(-ENOTTY, feature_call(s, &arg));
	}
}

/* The kernel takes a page fault on the device in the middle of a call for it. */
TEST_F(vfio_pci_dmabuf_bad_input, argument_in_bar)
{
	struct setup *s = &self->s;
	struct argument arg;
	u32 *words = (u32 *)&arg;
	int fd, i, j, r;

	if (!s->is_ram)
		SKIP(return, "No BAR with RAM to write to");

	fd = export_range(s, s->page_size, s->page_size);
	for (i = 0; i < ARRAY_SIZE(features); i++) {
		const struct feature *feature = &features[i];

		/* See argument_in_bar of the revocation. */
		if (feature->number == VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE)
			continue;

		argument_init(&arg, s, feature, fd);
		for (j = 0; j < sizeof(arg) / sizeof(*words); j++)
			mmio_write32(s->bar + j * sizeof(*words), words[j]);

		vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
		EXPECT_EQ(-EFAULT, feature_call(s, s->bar));
		vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);

		r = feature_call(s, s->bar);
		if (feature->number == VFIO_DEVICE_FEATURE_DMA_BUF) {
			ASSERT_LE(0, r);
			ASSERT_EQ(0, close(r));
		} else {
			EXPECT_EQ(feature_call(s, &arg), r);
		}
	}
	ASSERT_EQ(0, close(fd));
}

TEST_F(vfio_pci_dmabuf_bad_input, pointers)
{
	struct setup *s = &self->s;
	void *page, *hole, *arg;
	struct argument good;
	size_t size, cut;
	int i;

	/* A good page between two that cannot be accessed, each in its way. */
	page = mmap(NULL, 3 * s->page_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, page);
	page += s->page_size;
	ASSERT_EQ(0, mprotect(page, s->page_size, PROT_READ | PROT_WRITE));
	hole = page + s->page_size;
	ASSERT_EQ(0, munmap(hole, s->page_size));

	for (i = 0; i < ARRAY_SIZE(features); i++) {
		argument_init(&good, s, &features[i], self->fd);
		size = good.header.argsz;

		EXPECT_EQ(-EFAULT, feature_call(s, NULL));
		EXPECT_EQ(-EFAULT, feature_call(s, (void *)(1UL << 63)));
		EXPECT_EQ(-EFAULT, feature_call(s, (void *)-s->page_size));
		EXPECT_EQ(-EFAULT, feature_call(s, page - s->page_size));
		EXPECT_EQ(-EFAULT, feature_call(s, hole));

		/* The end of the argument lies where nothing is. */
		for (cut = 1; cut < size; cut++) {
			arg = hole - size + cut;
			memcpy(arg, &good, size - cut);
			EXPECT_EQ(-EFAULT, feature_call(s, arg)) {
				TH_LOG("feature %u, %lu bytes", features[i].number, size - cut);
			}
		}
	}

	/* That of the ranges as well, which are behind it. */
	argument_init(&good, s, &features[0], self->fd);
	size = offsetof(struct argument, range) + sizeof(good.range);

	for (cut = 1; cut <= sizeof(good.range); cut++) {
		arg = hole - size + cut;
		memcpy(arg, &good, size - cut);
		EXPECT_EQ(-EFAULT, feature_call(s, arg)) {
			TH_LOG("%lu bytes of the range missing", cut);
		}
	}

	ASSERT_EQ(0, munmap(page - s->page_size, 2 * s->page_size));
}

TEST_F(vfio_pci_dmabuf_bad_input, unbound_device)
{
	struct argument arg;
	struct setup *s = &self->s;
	const char *path;
	int fd, i;

	path = vfio_pci_get_cdev_path(device_bdf);
	fd = open(path, O_RDWR);
	free((void *)path);
	ASSERT_GE(fd, 0);

	for (i = 0; i < ARRAY_SIZE(features); i++) {
		argument_init(&arg, s, &features[i], self->fd);
		EXPECT_EQ(-1, ioctl(fd, VFIO_DEVICE_FEATURE, &arg));
		EXPECT_EQ(EINVAL, errno);
	}

	ASSERT_EQ(0, close(fd));
}

TEST_F(vfio_pci_dmabuf_bad_input, export_fields)
{
	const u32 values[] = { 6, 7, 8, 9, 10, 0xff, INT_MAX, 1U << 31, UINT32_MAX };
	struct setup *s = &self->s;
	struct argument good, arg;
	int i, r;

	argument_init(&good, s, &features[0], -1);

	for (i = 0; i < ARRAY_SIZE(values); i++) {
		arg = good;
		arg.dma_buf.flags = values[i];
		EXPECT_EQ(-EINVAL, feature_call(s, &arg));

		arg = good;
		arg.dma_buf.region_index = values[i];
		EXPECT_EQ(-ENODEV, feature_call(s, &arg)) {
			TH_LOG("region %u", values[i]);
		}
	}

	arg = good;
	arg.dma_buf.nr_ranges = 0;
	EXPECT_EQ(-EINVAL, feature_call(s, &arg));

	/* More than there is memory for, or at this address; which, is not said. */
	arg.dma_buf.nr_ranges = UINT32_MAX;
	r = feature_call(s, &arg);
	EXPECT_TRUE(r == -ENOMEM || r == -EFAULT || r == -E2BIG) {
		TH_LOG("%d", r);
	}
	arg.dma_buf.nr_ranges = 1U << 31;
	r = feature_call(s, &arg);
	EXPECT_TRUE(r == -ENOMEM || r == -EFAULT || r == -E2BIG) {
		TH_LOG("%d", r);
	}
}

/* Every start with every length: what cannot be right is refused. */
TEST_F(vfio_pci_dmabuf_bad_input, export_ranges)
{
	struct setup *s = &self->s;
	const u64 page = s->page_size;
	const u64 values[] = {
		0, 1, page - 1, page, page + 1, s->size - page, s->size, s->size + page,
		1ULL << 32, 1ULL << 63, -page, -1ULL,
	};
	struct argument arg;
	int i, j, r;

	argument_init(&arg, s, &features[0], -1);

	for (i = 0; i < ARRAY_SIZE(values); i++) {
		for (j = 0; j < ARRAY_SIZE(values); j++) {
			u64 offset = values[i], length = values[j];
			bool aligned = !(offset % page) && !(length % page);
			int expected = 0;

			if (!length || !aligned || length >> 63)
				expected = -EINVAL;
			else if (offset == -page)
				expected = -EOVERFLOW;	/* BARs do not begin at 0 */
			else if (offset > s->size || length > s->size - offset)
				expected = -EINVAL;

			arg.range.offset = offset;
			arg.range.length = length;
			r = feature_call(s, &arg);
			EXPECT_EQ(expected, min(r, 0)) {
				TH_LOG("0x%lx+0x%lx", offset, length);
			}
			if (r >= 0)
				ASSERT_EQ(0, close(r));
		}
	}
}

/* Lengths beyond all bounds are refused, however many there are. */
TEST_F(vfio_pci_dmabuf_bad_input, export_sum)
{
	struct setup *s = &self->s;
	struct vfio_region_dma_range ranges[4] = {};
	int i;

	for (i = 0; i < ARRAY_SIZE(ranges); i++)
		ranges[i].length = 1ULL << 62;

	for (i = 1; i <= ARRAY_SIZE(ranges); i++) {
		EXPECT_EQ(-EINVAL, __vfio_pci_dmabuf_export(s->device, s->index, O_RDWR,
							    ranges, i));
	}
}

/*
 * To see from outside
 */

FIXTURE(vfio_pci_dmabuf_observe) {
	struct setup s;
	char trace[128];
};

FIXTURE_SETUP(vfio_pci_dmabuf_observe)
{
	const char *reason = setup_init(&self->s, default_iommu_mode);

	if (reason)
		SKIP(return, "%s", reason);

	if (!vfio_pci_has_feature(self->s.device, FEATURE_REVOKE))
		SKIP(return, "The kernel does not revoke DMABUFs");

	snprintf_assert(self->trace, sizeof(self->trace),
			"/sys/kernel/tracing/instances/vfio_pci_dmabuf_test.%d", getpid());
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_observe)
{
	/* It may not have been made. */
	rmdir(self->trace);
	setup_cleanup(&self->s);
}

TEST_F(vfio_pci_dmabuf_observe, fdinfo)
{
	struct setup *s = &self->s;
	char value[64], expected[64];
	int fd, i;

	fd = export_range(s, s->page_size, 2 * s->page_size);
	if (!fdinfo_get(fd, "vfio-pci-state", value, sizeof(value)))
		SKIP(return, "The kernel does not show it");
	EXPECT_STREQ("ok", value);

	fdinfo_get(fd, "vfio-pci-region", value, sizeof(value));
	EXPECT_EQ(s->index, atoi(value));
	fdinfo_get(fd, "vfio-pci-ranges", value, sizeof(value));
	EXPECT_STREQ("1", value);
	fdinfo_get(fd, "vfio-pci-range", value, sizeof(value));
	snprintf_assert(expected, sizeof(expected), "0x%lx+0x%lx", s->page_size,
			2 * s->page_size);
	EXPECT_STREQ(expected, value);

	for (i = 0; i < ARRAY_SIZE(outages); i++) {
		int late;

		if (!outage_begin(&outages[i], s))
			continue;

		late = export_range(s, 0, s->page_size);
		fdinfo_get(fd, "vfio-pci-state", value, sizeof(value));
		EXPECT_STREQ("revoked temporarily", value) TH_LOG("%s", outages[i].name);
		fdinfo_get(late, "vfio-pci-state", value, sizeof(value));
		EXPECT_STREQ("revoked temporarily", value) TH_LOG("%s", outages[i].name);

		outage_end(&outages[i], s);

		fdinfo_get(fd, "vfio-pci-state", value, sizeof(value));
		EXPECT_STREQ("ok", value) TH_LOG("%s", outages[i].name);
		fdinfo_get(late, "vfio-pci-state", value, sizeof(value));
		EXPECT_STREQ("ok", value) TH_LOG("%s", outages[i].name);
		ASSERT_EQ(0, close(late));
	}

	if (enter_low_power_wakeup(s)) {
		fdinfo_get(fd, "vfio-pci-state", value, sizeof(value));
		EXPECT_STREQ("revoked temporarily", value);
		wake_up(s);
		fdinfo_get(fd, "vfio-pci-state", value, sizeof(value));
		EXPECT_STREQ("ok", value);
	}

	fdinfo_get(fd, "vfio-pci-memattr", value, sizeof(value));
	EXPECT_STREQ("nc", value);
	if (!__vfio_pci_dmabuf_memattr(s->device, fd, WC)) {
		fdinfo_get(fd, "vfio-pci-memattr", value, sizeof(value));
		EXPECT_STREQ("wc", value);
	}

	vfio_pci_dmabuf_revoke(s->device, fd);
	for (i = 0; i < ARRAY_SIZE(outages); i++) {
		fdinfo_get(fd, "vfio-pci-state", value, sizeof(value));
		EXPECT_STREQ("revoked permanently", value);

		if (outage_begin(&outages[i], s)) {
			fdinfo_get(fd, "vfio-pci-state", value, sizeof(value));
			EXPECT_STREQ("revoked permanently", value);
			outage_end(&outages[i], s);
		}
	}
	ASSERT_EQ(0, close(fd));

	fd = export_range(s, 0, s->page_size);
	vfio_pci_device_close(s->device);
	fdinfo_get(fd, "vfio-pci-state", value, sizeof(value));
	EXPECT_STREQ("revoked permanently", value);
	vfio_pci_device_reopen(s->device);
	fdinfo_get(fd, "vfio-pci-state", value, sizeof(value));
	EXPECT_STREQ("revoked permanently", value);
	ASSERT_EQ(0, close(fd));
}

/* Those that follow each other in the BAR are one, and of all the first 32 are shown. */
TEST_F(vfio_pci_dmabuf_observe, fdinfo_ranges)
{
	const layout_fn layouts[] = {
		layout_adjacent, layout_gaps, layout_reversed, layout_same, layout_pairs,
	};
	const u32 counts[] = { 3, 32, 33, 40, 66 };
	struct vfio_region_dma_range ranges[66];
	u64 offsets[66], lengths[66];
	char expected[SZ_4K], path[64], value[64];
	struct setup *s = &self->s;
	int fd, l, c;

	/* For the fewest of them. */
	if (s->size / s->page_size < 2 * counts[0] + 4)
		SKIP(return, "BAR too small");

	fd = export_range(s, 0, s->page_size);
	if (!fdinfo_get(fd, "vfio-pci-ranges", value, sizeof(value)))
		SKIP(return, "The kernel does not show it");
	ASSERT_EQ(0, close(fd));

	for (l = 0; l < ARRAY_SIZE(layouts); l++) {
		for (c = 0; c < ARRAY_SIZE(counts); c++) {
			u32 nr = counts[c], nr_left = 0, i;
			struct state seen = {};

			if (2 * (u64)nr + 4 > s->size / s->page_size)
				continue;

			for (i = 0; i < nr; i++) {
				u64 offset = layouts[l](i, nr) * s->page_size;

				ranges[i].offset = offset;
				ranges[i].length = s->page_size;
				if (i && offset == ranges[i - 1].offset + s->page_size) {
					lengths[nr_left - 1] += s->page_size;
				} else {
					offsets[nr_left] = offset;
					lengths[nr_left++] = s->page_size;
				}
			}

			snprintf_assert(expected, sizeof(expected), "vfio-pci-ranges:\t%u\n",
					nr_left);
			for (i = 0; i < min_t(u32, nr_left, 32); i++) {
				size_t used = strlen(expected);

				snprintf_assert(expected + used, sizeof(expected) - used,
						"vfio-pci-range:\t0x%lx+0x%lx\n",
						offsets[i], lengths[i]);
			}

			fd = vfio_pci_dmabuf_export(s->device, s->index, O_RDWR, ranges, nr);
			snprintf_assert(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
			state_add(&seen, path, "vfio-pci-range");
			EXPECT_STREQ(expected, seen.text) {
				TH_LOG("layout %d, %u ranges", l, nr);
			}
			ASSERT_EQ(0, close(fd));
		}
	}
}

/* How often the event has been since trace_clear(), and with @what. */
static int trace_count(const char *trace, const char *event, const char *what)
{
	char path[256], line[512], name[64];
	int count = 0;
	FILE *file;

	snprintf_assert(name, sizeof(name), " %s: ", event);
	snprintf_assert(path, sizeof(path), "%s/trace", trace);
	file = fopen(path, "r");
	VFIO_ASSERT_NOT_NULL(file);
	while (fgets(line, sizeof(line), file))
		count += strstr(line, name) && strstr(line, what);
	VFIO_ASSERT_EQ(fclose(file), 0);
	return count;
}

static void trace_clear(const char *trace)
{
	file_write(trace, "trace", "\n");
}

/* Each thing that happens is told once, and nothing is that does not. */
TEST_F(vfio_pci_dmabuf_observe, tracepoints)
{
	struct setup *s = &self->s;
	char dev[64], ino[64], bar_ino[64];
	struct stat stat;
	void *vaddr;
	int fd, i;

	if (access("/sys/kernel/tracing/events/vfio_pci", F_OK) || mkdir(self->trace, 0700))
		SKIP(return, "There are no tracepoints of vfio_pci");

	fd = export_range(s, 0, s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);
	ASSERT_EQ(0, access_result(vaddr));
	ASSERT_EQ(0, access_result(s->bar));

	ASSERT_EQ(0, fstat(fd, &stat));
	snprintf_assert(ino, sizeof(ino), " ino=%lu ", stat.st_ino);
	snprintf_assert(bar_ino, sizeof(bar_ino), " address=0x%lx ", (unsigned long)s->bar);
	snprintf_assert(dev, sizeof(dev), " dev=%s ", device_bdf);
	file_write(self->trace, "events/vfio_pci/enable", "1");

	for (i = 0; i < ARRAY_SIZE(outages); i++) {
		trace_clear(self->trace);
		if (!outage_begin(&outages[i], s))
			continue;

		EXPECT_EQ(1, trace_count(self->trace, "vfio_pci_revoke_memory", dev)) {
			TH_LOG("%s", outages[i].name);
		}
		EXPECT_EQ(0, trace_count(self->trace, "vfio_pci_fault_sigbus", ""));
		EXPECT_EQ(-EFAULT, access_result(vaddr));
		EXPECT_EQ(-EFAULT, access_result(s->bar));
		EXPECT_EQ(1, trace_count(self->trace, "vfio_pci_fault_sigbus", ino));
		EXPECT_EQ(1, trace_count(self->trace, "vfio_pci_fault_sigbus", bar_ino));
		EXPECT_EQ(0, trace_count(self->trace, "vfio_pci_restore_memory", dev)) {
			TH_LOG("%s", outages[i].name);
		}

		trace_clear(self->trace);
		outage_end(&outages[i], s);
		EXPECT_EQ(0, access_result(vaddr));
		EXPECT_EQ(0, access_result(s->bar));
		EXPECT_EQ(0, trace_count(self->trace, "vfio_pci_revoke_memory", dev)) {
			TH_LOG("%s", outages[i].name);
		}
		EXPECT_EQ(1, trace_count(self->trace, "vfio_pci_restore_memory", dev)) {
			TH_LOG("%s", outages[i].name);
		}
		EXPECT_EQ(0, trace_count(self->trace, "vfio_pci_fault_sigbus", ""));
	}

	if (s->device->info.flags & VFIO_DEVICE_FLAGS_RESET) {
		trace_clear(self->trace);
		vfio_pci_device_reset(s->device);
		EXPECT_EQ(1, trace_count(self->trace, "vfio_pci_revoke_memory", dev));
		EXPECT_EQ(1, trace_count(self->trace, "vfio_pci_restore_memory", dev));
	}

	trace_clear(self->trace);
	vfio_pci_dmabuf_revoke(s->device, fd);
	EXPECT_EQ(-EBADFD, __vfio_pci_dmabuf_revoke(s->device, fd));
	EXPECT_EQ(1, trace_count(self->trace, "vfio_pci_dma_buf_revoke", ino));
	EXPECT_EQ(1, trace_count(self->trace, "vfio_pci_dma_buf_revoke", " ret=0\n"));
	EXPECT_EQ(-EFAULT, access_result(vaddr));
	EXPECT_EQ(1, trace_count(self->trace, "vfio_pci_fault_sigbus", ino));
	EXPECT_EQ(0, trace_count(self->trace, "vfio_pci_revoke_memory", dev));
	EXPECT_EQ(0, trace_count(self->trace, "vfio_pci_restore_memory", dev));

	file_write(self->trace, "events/vfio_pci/enable", "0");
	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
}

/* And what is told, from the name of the event to the end of the line. */
TEST_F(vfio_pci_dmabuf_observe, trace_fields)
{
	struct setup *s = &self->s;
	struct page_mapping mapping;
	struct stat stat;
	char line[256];
	void *vaddr;
	int fd;

	if (s->size < 3 * s->page_size)
		SKIP(return, "BAR too small");
	if (access("/sys/kernel/tracing/events/vfio_pci", F_OK) || mkdir(self->trace, 0700))
		SKIP(return, "There are no tracepoints of vfio_pci");

	fd = export_range(s, s->page_size, 2 * s->page_size);
	vaddr = dmabuf_map(fd, s->page_size, s->page_size);
	ASSERT_EQ(0, fstat(fd, &stat));
	ASSERT_EQ(0, access_result(s->bar));
	if (__page_mapping_get(s->bar, &mapping))
		mapping.size = 0;
	file_write(self->trace, "events/vfio_pci/enable", "1");

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	snprintf_assert(line, sizeof(line), ": dev=%s holds=1\n", device_bdf);
	EXPECT_EQ(1, trace_count(self->trace, "vfio_pci_revoke_memory", line));

	EXPECT_EQ(-EFAULT, access_result(vaddr));
	snprintf_assert(line, sizeof(line), ": ino=%lu address=0x%lx order=0\n", stat.st_ino,
			(unsigned long)vaddr);
	EXPECT_EQ(1, trace_count(self->trace, "vfio_pci_fault_sigbus", line));

	/* The page is as large as the one that was there, if anybody can tell. */
	if (mapping.size) {
		EXPECT_EQ(-EFAULT, access_result(s->bar));
		snprintf_assert(line, sizeof(line), " address=0x%lx order=%d\n",
				(unsigned long)s->bar, ilog2(mapping.size / s->page_size));
		EXPECT_EQ(1, trace_count(self->trace, "vfio_pci_fault_sigbus", line));
	}

	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	snprintf_assert(line, sizeof(line), ": dev=%s holds=0\n", device_bdf);
	EXPECT_EQ(1, trace_count(self->trace, "vfio_pci_restore_memory", line));

	vfio_pci_dmabuf_revoke(s->device, fd);
	snprintf_assert(line, sizeof(line), ": dev=%s ino=%lu region=%d size=%ld ret=0\n",
			device_bdf, stat.st_ino, s->index, 2 * s->page_size);
	EXPECT_EQ(1, trace_count(self->trace, "vfio_pci_dma_buf_revoke", line));

	file_write(self->trace, "events/vfio_pci/enable", "0");
	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
}

int main(int argc, char *argv[])
{
	char **bdfs;
	int nr_bdfs;

	if (argc == 3 && !strcmp(argv[0], "inherited"))
		return inherited(atoi(argv[1]), atoi(argv[2]));

	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr_bdfs);
	device_bdf = bdfs[0];
	if (nr_bdfs > 1)
		other_bdf = bdfs[1];

	return test_harness_run(argc, argv);
}
