// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test DMABUFs that are exported from BARs, as seen by the CPU: which can be
 * exported and mapped, what such a map shows, when it is alive, how it is taken
 * back for good, and by which memory type it is mapped.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <linux/align.h>
#include <linux/dma-buf.h>
#include <linux/kernel.h>
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

static const char *device_bdf;

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

/* Close the device as far as userspace can: its fd and all its BAR maps. */
static void device_close(struct setup *s)
{
	int i;

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_pci_bar *bar = &s->device->bars[i];

		if (bar->vaddr)
			dmabuf_unmap(bar->vaddr, bar->info.size);
		bar->vaddr = NULL;
	}

	VFIO_ASSERT_EQ(close(s->device->fd), 0);
}

static void device_reopen(struct setup *s)
{
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
		.pt_id = s->iommu->ioas_id,
	};

	if (s->iommu->mode->container_path) {
		__vfio_pci_group_get_device_fd(s->device, device_bdf, NULL);
		VFIO_ASSERT_GE(s->device->fd, 0);
		return;
	}

	vfio_pci_cdev_open(s->device, device_bdf);
	VFIO_ASSERT_EQ(__vfio_device_bind_iommufd(s->device->fd, s->iommu->iommufd, NULL), 0);
	ioctl_assert(s->device->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
}

static u8 find_capability(struct vfio_pci_device *device, u8 id)
{
	u8 pos = vfio_pci_config_readb(device, PCI_CAPABILITY_LIST);

	while (pos && vfio_pci_config_readb(device, pos + PCI_CAP_LIST_ID) != id)
		pos = vfio_pci_config_readb(device, pos + PCI_CAP_LIST_NEXT);

	return pos;
}

/*
 * The ways for the BARs to go away for a while. Each returns whether the device
 * can do it.
 */

struct outage {
	const char *name;
	bool (*begin)(struct setup *s);
	void (*end)(struct setup *s);
};

static bool memory_off(struct setup *s)
{
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	return true;
}

static void memory_on(struct setup *s)
{
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
}

static void set_power_state(struct setup *s, u8 pm, u16 state)
{
	u16 pmcsr = vfio_pci_config_readw(s->device, pm + PCI_PM_CTRL);

	pmcsr &= ~PCI_PM_CTRL_STATE_MASK;
	vfio_pci_config_writew(s->device, pm + PCI_PM_CTRL, pmcsr | state);
}

static bool enter_d3(struct setup *s)
{
	u8 pm = find_capability(s->device, PCI_CAP_ID_PM);

	if (pm)
		set_power_state(s, pm, 3);
	return pm;
}

static void leave_d3(struct setup *s)
{
	set_power_state(s, find_capability(s->device, PCI_CAP_ID_PM), 0);
}

static bool enter_low_power(struct setup *s)
{
	u32 flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY;

	return !vfio_device_feature_ioctl(s->device->fd, flags, NULL, 0);
}

static void leave_low_power(struct setup *s)
{
	u32 flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_LOW_POWER_EXIT;

	VFIO_ASSERT_EQ(vfio_device_feature_ioctl(s->device->fd, flags, NULL, 0), 0);
}

static const struct outage outages[] = {
	{ "memory disabled", memory_off, memory_on },
	{ "D3hot", enter_d3, leave_d3 },
	{ "low power", enter_low_power, leave_low_power },
};

/*
 * Export
 */

FIXTURE(vfio_pci_dmabuf_export) {
	struct setup s;
};

FIXTURE_VARIANT(vfio_pci_dmabuf_export) {
	const char *iommu_mode;
};

#define FIXTURE_VARIANT_ADD_IOMMU_MODE(_iommu_mode)		\
FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_export, _iommu_mode) {	\
	.iommu_mode = #_iommu_mode,				\
}

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES();

#undef FIXTURE_VARIANT_ADD_IOMMU_MODE

FIXTURE_SETUP(vfio_pci_dmabuf_export)
{
	const char *reason = setup_init(&self->s, variant->iommu_mode);

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

TEST_F(vfio_pci_dmabuf_export, fd_table_full)
{
	struct rlimit old, full;
	struct setup *s = &self->s;
	struct vfio_region_dma_range range = { .length = s->page_size };
	int fd;

	fd = export_range(s, 0, s->page_size);
	ASSERT_EQ(0, close(fd));

	/* The next fd would be the one that was just closed. */
	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &old));
	full = old;
	full.rlim_cur = fd;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &full));
	EXPECT_EQ(-EMFILE, __vfio_pci_dmabuf_export(s->device, s->index, O_RDWR, &range, 1));
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &old));

	fd = export_range(s, 0, s->page_size);
	ASSERT_EQ(0, close(fd));
}

/*
 * Map
 */

FIXTURE(vfio_pci_dmabuf_map) {
	struct setup s;
};

FIXTURE_VARIANT(vfio_pci_dmabuf_map) {
	const char *iommu_mode;
};

#define FIXTURE_VARIANT_ADD_IOMMU_MODE(_iommu_mode)		\
FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_map, _iommu_mode) {		\
	.iommu_mode = #_iommu_mode,				\
}

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES();

#undef FIXTURE_VARIANT_ADD_IOMMU_MODE

FIXTURE_SETUP(vfio_pci_dmabuf_map)
{
	const char *reason = setup_init(&self->s, variant->iommu_mode);

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

/* Ranges of several pages, mapped from the middle of one into another. */
TEST_F(vfio_pci_dmabuf_map, offsets)
{
	struct setup *s = &self->s;
	const u64 expected[] = { 8, 9, 10, 11, 2, 3, 4, 20, 21, 22, 23, 24 };
	struct vfio_region_dma_range ranges[] = {
		{ .offset = 8 * s->page_size, .length = 4 * s->page_size },
		{ .offset = 2 * s->page_size, .length = 3 * s->page_size },
		{ .offset = 20 * s->page_size, .length = 5 * s->page_size },
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
	ASSERT_EQ(0, close(fd));
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
	u32 value;
	int fd;

	fd = export_readonly(s, 0, s->page_size);

	/* Neither execute it, nor open it anew for writing. */
	EXPECT_EQ(-EPERM, __dmabuf_map(fd, 0, s->page_size, PROT_READ | PROT_EXEC, &vaddr));
	snprintf_assert(path, sizeof(path), "/proc/self/fd/%d", fd);
	EXPECT_EQ(-1, open(path, O_RDWR));
	EXPECT_EQ(ENXIO, errno);

	/* Nor is it a file. */
	EXPECT_EQ(-1, read(fd, &value, sizeof(value)));
	EXPECT_EQ(-1, write(fd, &value, sizeof(value)));
	EXPECT_EQ(-1, ftruncate(fd, s->page_size));

	/* Nor the device. */
	EXPECT_EQ(-1, ioctl(fd, VFIO_DEVICE_RESET, NULL));
	EXPECT_EQ(ENOTTY, errno);
	EXPECT_EQ(-EINVAL, map_result(fd, s->device->bars[s->index].info.offset + s->page_size,
				      s->page_size));

	ASSERT_EQ(0, close(fd));
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

	ASSERT_EQ(-1, remap_file_pages(moved, s->page_size, 0, 0x1000000, 0));

	dmabuf_unmap(vaddr, 2 * s->page_size);
	munmap(moved, s->page_size);
	ASSERT_EQ(0, close(fd));
}

TEST_F(vfio_pci_dmabuf_map, outages)
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

		if (!outages[i].begin(s)) {
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

		outages[i].end(s);

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

TEST_F(vfio_pci_dmabuf_map, reset)
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
TEST_F(vfio_pci_dmabuf_map, device_closed)
{
	struct setup *s = &self->s;
	int fd, unmapped;
	void *vaddr;

	fd = export_range(s, 0, s->page_size);
	unmapped = export_range(s, 0, s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);
	ASSERT_EQ(0, access_result(vaddr));

	device_close(s);

	EXPECT_EQ(-EFAULT, access_result(vaddr));
	EXPECT_EQ(-ENODEV, map_result(fd, 0, s->page_size));
	EXPECT_EQ(-ENODEV, map_result(unmapped, 0, s->page_size));

	device_reopen(s);

	/* For good. */
	EXPECT_EQ(-EFAULT, access_result(vaddr));
	EXPECT_EQ(-ENODEV, map_result(fd, 0, s->page_size));

	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, close(unmapped));
}

/* As long as a BAR map is left, the device is open and all is alive. */
TEST_F(vfio_pci_dmabuf_map, device_fd_closed)
{
	struct setup *s = &self->s;
	void *vaddr;
	int fd;

	fd = export_range(s, 0, s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);

	ASSERT_EQ(0, close(s->device->fd));
	EXPECT_EQ(0, access_result(vaddr));
	EXPECT_EQ(0, map_result(fd, 0, s->page_size));

	s->device->fd = open("/dev/null", O_RDONLY);
	device_close(s);
	EXPECT_EQ(-EFAULT, access_result(vaddr));
	EXPECT_EQ(-ENODEV, map_result(fd, 0, s->page_size));
	device_reopen(s);

	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
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

	EXPECT_EQ(0, ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync));
	EXPECT_EQ(0, access_result(vaddr));
	sync.flags = DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW;
	EXPECT_EQ(0, ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync));

	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
}

/* An unprivileged holder must not keep the buffer by a path to it. */
TEST_F(vfio_pci_dmabuf_map, o_path)
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
	device_close(s);
	device_reopen(s);

	ASSERT_EQ(0, close(pin));
}

static long translations(void *vaddr, u64 size, u64 page_size)
{
	u64 offset;

	for (offset = 0; offset < size; offset += SZ_4K)
		mmio_read32(vaddr + offset);

	return __page_mapping_count(vaddr, size, page_size);
}

TEST_F(vfio_pci_dmabuf_map, huge_pages)
{
	struct setup *s = &self->s;
	struct vfio_region_dma_range adjacent[] = {
		{ .offset = 0, .length = SZ_1M },
		{ .offset = SZ_1M, .length = SZ_2M },
		{ .offset = SZ_1M + SZ_2M, .length = SZ_1M },
	};
	void *vaddr;
	int fd;

	if (s->size < SZ_8M)
		SKIP(return, "BAR too small (size=0x%lx)", s->size);
	if (__page_mapping_count(s->bar, SZ_8M, SZ_2M) < 0)
		SKIP(return, "Cannot look at page tables");
	if (translations(s->bar, SZ_8M, SZ_2M) +
	    __page_mapping_count(s->bar, SZ_8M, SZ_1G) == 0)
		SKIP(return, "The kernel has no huge pages");

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

/*
 * Revoke
 */

typedef int (*revoke_fn)(struct vfio_pci_device *device, int dmabuf_fd);

FIXTURE(vfio_pci_dmabuf_revoke) {
	struct setup s;
};

FIXTURE_VARIANT(vfio_pci_dmabuf_revoke) {
	const char *iommu_mode;
	revoke_fn revoke;
};

#define FIXTURE_VARIANT_ADD_IOMMU_MODE(_iommu_mode, _name, _revoke)		\
FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_revoke, _iommu_mode ## _ ## _name) {	\
	.iommu_mode = #_iommu_mode,						\
	.revoke = (_revoke),							\
}

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES(feature, __vfio_pci_dmabuf_revoke);
FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES(ioctl, __vfio_pci_dmabuf_revoke_ioctl);

#undef FIXTURE_VARIANT_ADD_IOMMU_MODE

FIXTURE_SETUP(vfio_pci_dmabuf_revoke)
{
	const char *reason = setup_init(&self->s, variant->iommu_mode);
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
		if (!outages[i].begin(s))
			continue;
		outages[i].end(s);

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

		if (outages[i].begin(s)) {
			EXPECT_EQ(0, variant->revoke(s->device, fd)) TH_LOG("%s", outages[i].name);
			EXPECT_EQ(-EBADFD, variant->revoke(s->device, fd));
			outages[i].end(s);

			EXPECT_EQ(-EFAULT, access_result(vaddr)) TH_LOG("%s", outages[i].name);
			EXPECT_EQ(-ENODEV, map_result(fd, 0, s->page_size));
		}

		dmabuf_unmap(vaddr, s->page_size);
		ASSERT_EQ(0, close(fd));
	}
}

static int child_access(void *vaddr, int commands)
{
	char command;
	int r;

	while (read(commands, &command, 1) == 1) {
		r = access_result(vaddr);
		VFIO_ASSERT_EQ(write(commands, &r, sizeof(r)), sizeof(r));
	}

	return 0;
}

static int child_ask(int commands)
{
	int r;

	VFIO_ASSERT_EQ(write(commands, "", 1), 1);
	VFIO_ASSERT_EQ(read(commands, &r, sizeof(r)), sizeof(r));
	return r;
}

TEST_F(vfio_pci_dmabuf_revoke, processes)
{
	struct setup *s = &self->s;
	int sockets[4][2], fd, status, i, j;
	pid_t pids[4];
	void *vaddr;

	fd = export_range(s, 0, s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);

	for (i = 0; i < ARRAY_SIZE(pids); i++) {
		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets[i]));
		pids[i] = fork();
		ASSERT_GE(pids[i], 0);
		if (!pids[i]) {
			for (j = 0; j <= i; j++)
				close(sockets[j][1]);
			_exit(child_access(vaddr, sockets[i][0]));
		}
		close(sockets[i][0]);
	}

	for (i = 0; i < ARRAY_SIZE(pids); i++)
		ASSERT_EQ(0, child_ask(sockets[i][1]));

	ASSERT_EQ(0, variant->revoke(s->device, fd));

	for (i = 0; i < ARRAY_SIZE(pids); i++) {
		EXPECT_EQ(-EFAULT, child_ask(sockets[i][1]));
		close(sockets[i][1]);
		ASSERT_EQ(pids[i], waitpid(pids[i], &status, 0));
		ASSERT_EQ(0, status);
	}

	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
}

TEST_F(vfio_pci_dmabuf_revoke, bad_fd)
{
	struct setup *s = &self->s;
	char path[32];
	int fd, other;

	EXPECT_EQ(-EBADF, variant->revoke(s->device, -1));
	EXPECT_EQ(-EBADF, variant->revoke(s->device, 1 << 20));

	fd = export_range(s, 0, s->page_size);
	snprintf_assert(path, sizeof(path), "/proc/self/fd/%d", fd);
	other = open(path, O_PATH);
	ASSERT_GE(other, 0);
	EXPECT_EQ(-EBADF, variant->revoke(s->device, other));
	ASSERT_EQ(0, close(other));

	other = memfd_create("not a DMABUF", 0);
	EXPECT_EQ(-EINVAL, variant->revoke(s->device, other));
	ASSERT_EQ(0, close(other));
	EXPECT_EQ(-EINVAL, variant->revoke(s->device, s->device->fd));

	/* None of these has changed anything. */
	EXPECT_EQ(0, map_result(fd, 0, s->page_size));
	EXPECT_EQ(0, variant->revoke(s->device, fd));
	ASSERT_EQ(0, close(fd));
}

/* A DMABUF of the device before it was closed is none of it any more. */
TEST_F(vfio_pci_dmabuf_revoke, former_life)
{
	struct setup *s = &self->s;
	int fd;

	fd = export_range(s, 0, s->page_size);
	device_close(s);
	device_reopen(s);
	EXPECT_EQ(-ENODEV, variant->revoke(s->device, fd));
	ASSERT_EQ(0, close(fd));
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

TEST_F(vfio_pci_dmabuf_revoke, bad_arguments)
{
	struct vfio_device_feature_dma_buf_revoke revoke;
	struct setup *s = &self->s;
	int fd = export_range(s, 0, s->page_size);
	void *page;

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

	/* None of these has changed anything. */
	EXPECT_EQ(0, map_result(fd, 0, s->page_size));
	ASSERT_EQ(0, close(fd));
}

/*
 * Memory attribute
 */

FIXTURE(vfio_pci_dmabuf_memattr) {
	struct setup s;
	int fd;
};

FIXTURE_VARIANT(vfio_pci_dmabuf_memattr) {
	const char *iommu_mode;
};

#define FIXTURE_VARIANT_ADD_IOMMU_MODE(_iommu_mode)		\
FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_memattr, _iommu_mode) {	\
	.iommu_mode = #_iommu_mode,				\
}

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES();

#undef FIXTURE_VARIANT_ADD_IOMMU_MODE

FIXTURE_SETUP(vfio_pci_dmabuf_memattr)
{
	const char *reason = setup_init(&self->s, variant->iommu_mode);

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
	if (r)
		ASSERT_EQ(-EOPNOTSUPP, r);
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

TEST_F(vfio_pci_dmabuf_memattr, unknown_value)
{
	struct setup *s = &self->s;

	EXPECT_EQ(-ENOENT, __vfio_pci_dmabuf_memattr(s->device, self->fd, 2));
	EXPECT_EQ(-ENOENT, __vfio_pci_dmabuf_memattr(s->device, self->fd, UINT32_MAX));
	EXPECT_EQ(0, __vfio_pci_dmabuf_memattr(s->device, self->fd, NC));
}

TEST_F(vfio_pci_dmabuf_memattr, bad_fd)
{
	struct setup *s = &self->s;
	int other;

	EXPECT_EQ(-EBADF, __vfio_pci_dmabuf_memattr(s->device, -1, NC));
	EXPECT_EQ(-EINVAL, __vfio_pci_dmabuf_memattr(s->device, s->device->fd, NC));

	other = udmabuf_create(s->page_size);
	if (other >= 0) {
		EXPECT_EQ(-ENODEV, __vfio_pci_dmabuf_memattr(s->device, other, NC));
		ASSERT_EQ(0, close(other));
	}

	device_close(s);
	device_reopen(s);
	EXPECT_EQ(-ENODEV, __vfio_pci_dmabuf_memattr(s->device, self->fd, NC));
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

TEST_F(vfio_pci_dmabuf_memattr, revoked)
{
	struct setup *s = &self->s;

	/* While it is away for a while, it can be set for later. */
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(0, __vfio_pci_dmabuf_memattr(s->device, self->fd, NC));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);

	if (!vfio_pci_has_feature(s->device, FEATURE_REVOKE))
		SKIP(return, "The kernel does not revoke DMABUFs");

	vfio_pci_dmabuf_revoke(s->device, self->fd);
	EXPECT_EQ(-EBADFD, __vfio_pci_dmabuf_memattr(s->device, self->fd, NC));
	EXPECT_EQ(-EBADFD, __vfio_pci_dmabuf_memattr(s->device, self->fd, WC));
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
