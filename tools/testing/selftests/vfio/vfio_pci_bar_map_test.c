// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test what a userspace driver may rely on when it maps BARs through the
 * device fd: which spans can be mapped, what the kernel tells about them, what
 * can be done to them afterwards, and when they are alive.
 *
 * Most of this is old behaviour, whatever the kernel maps BARs by. What comes
 * with DMABUFs is skipped where they are not used: the names of the maps, that
 * they take a file, and that remap_file_pages() is refused.
 *
 * That they take a file is tested if $VFIO_SELFTESTS_FILE_MAX is set: for a moment
 * nobody on the machine but the administrator gets a file then.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/align.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

/* Not in every libc. */
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#endif

/* Position of the region index in a file offset, an ABI by custom. */
#define REGION_SHIFT		40

/* Asks for the test for which nobody on the machine gets a file. */
#define FILE_MAX		"VFIO_SELFTESTS_FILE_MAX"

#define PAGES_PER_BAR		3
#define MAX_PAGES		(PCI_STD_NUM_BARS * PAGES_PER_BAR)

static const char *device_bdf;

/* One page of a BAR, mapped by itself. */
struct bar_page {
	int bar;
	u64 offset;
	void *vaddr;
};

/* What all tests work with. */
struct setup {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct bar_page pages[MAX_PAGES];
	int nr_pages;

	/* The largest BAR that can be mapped. */
	struct vfio_pci_bar *bar;
	long page_size;
};

/*
 * The tests of one fixture run in every IOMMU mode, which decides how the
 * device is opened, and by what it is kept open. Those of the other are about
 * what follows from a map being there: one mode is as good as any.
 */

FIXTURE(vfio_pci_bar_map_test) {
	struct setup s;
};

FIXTURE_VARIANT(vfio_pci_bar_map_test) {
	const char *iommu_mode;
};

#define FIXTURE_VARIANT_ADD_IOMMU_MODE(_iommu_mode)		\
FIXTURE_VARIANT_ADD(vfio_pci_bar_map_test, _iommu_mode) {	\
	.iommu_mode = #_iommu_mode,				\
}

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES();

#undef FIXTURE_VARIANT_ADD_IOMMU_MODE

FIXTURE(vfio_pci_bar_map_one_mode) {
	struct setup s;
};

/* Of a device that has a BAR which is smaller than a page. */
FIXTURE(vfio_pci_bar_map_small) {
	struct setup s;
};

static void pages_map(struct setup *s, int bar)
{
	u64 size = s->device->bars[bar].info.size;
	const u64 offsets[PAGES_PER_BAR] = {
		0,
		ALIGN_DOWN(size / 2, s->page_size),
		size - s->page_size,
	};
	int i;

	for (i = 0; i < PAGES_PER_BAR; i++) {
		struct bar_page *page;

		/* A small BAR has less than three pages. */
		if (i && offsets[i] <= offsets[i - 1])
			continue;

		page = &s->pages[s->nr_pages++];
		page->bar = bar;
		page->offset = offsets[i];
		page->vaddr = dmabuf_map(s->device->fd,
					 s->device->bars[bar].info.offset + offsets[i],
					 s->page_size);
	}
}

/*
 * Read from each of the pages, and through the maps of whole BARs that libvfio
 * has made. Return how many of them did not answer as @expected.
 */
static int count_unexpected(struct setup *s, int expected)
{
	int i, r, count = 0;
	u32 value;

	for (i = 0; i < s->nr_pages; i++) {
		struct bar_page *page = &s->pages[i];
		struct vfio_pci_bar *bar = &s->device->bars[page->bar];

		r = __mmio_read32(page->vaddr, &value);
		if (r != expected) {
			printf("BAR %d, offset 0x%lx: %d instead of %d\n",
			       page->bar, page->offset, r, expected);
			count++;
		}

		r = __mmio_read32(bar->vaddr + page->offset, &value);
		if (r != expected) {
			printf("BAR %d as a whole, offset 0x%lx: %d instead of %d\n",
			       page->bar, page->offset, r, expected);
			count++;
		}
	}

	return count;
}

/* Marks that tell whether a page of RAM is still the same one. */
static u32 page_mark(struct bar_page *page)
{
	return 0xba400000 + (page->bar << 16) + page->offset / SZ_4K;
}

static void marks_write(struct setup *s)
{
	int ram = vfio_pci_ram_bar(s->device);
	int i;

	for (i = 0; i < s->nr_pages; i++) {
		if (s->pages[i].bar == ram)
			mmio_write32(s->pages[i].vaddr, page_mark(&s->pages[i]));
	}
}

/*
 * Whether @vaddr is a working map of the largest BAR at @offset. That it is
 * this page and no other can only be told if there is RAM behind it.
 */
static bool maps_offset(struct setup *s, void *vaddr, u64 offset)
{
	int ram = vfio_pci_ram_bar(s->device);
	u32 mark = 0x0ff5e7 + offset, value;

	if (ram >= 0 && s->bar == &s->device->bars[ram])
		mmio_write32(s->bar->vaddr + offset, mark);
	else
		mark = mmio_read32(s->bar->vaddr + offset);

	return !__mmio_read32(vaddr, &value) && value == mark;
}

static int marks_lost(struct setup *s)
{
	int ram = vfio_pci_ram_bar(s->device);
	int i, lost = 0;

	for (i = 0; i < s->nr_pages; i++) {
		if (s->pages[i].bar == ram)
			lost += mmio_read32(s->pages[i].vaddr) != page_mark(&s->pages[i]);
	}

	return lost;
}

/* Whether what was written by the maps of pages is where it belongs. */
static int marks_misplaced(struct setup *s)
{
	int ram = vfio_pci_ram_bar(s->device);
	int i, misplaced = 0;

	for (i = 0; i < s->nr_pages; i++) {
		struct bar_page *page = &s->pages[i];
		struct vfio_pci_bar *bar = &s->device->bars[page->bar];
		u32 mapped, value = 0;
		ssize_t size;

		if (page->bar != ram)
			continue;

		mapped = mmio_read32(bar->vaddr + page->offset);
		size = pread(s->device->fd, &value, sizeof(value),
			     bar->info.offset + page->offset);
		if (size == sizeof(value) && value == page_mark(page) && mapped == value)
			continue;

		printf("BAR %d, offset 0x%lx: 0x%x by the map, 0x%x by pread(), not 0x%x\n",
		       page->bar, page->offset, mapped, value, page_mark(page));
		misplaced++;
	}

	return misplaced;
}

static bool mapped_by_dmabufs(struct setup *s)
{
	struct vma_info info;

	vma_info_get(s->bar->vaddr, &info);
	return !strncmp(info.name, "/dmabuf:", strlen("/dmabuf:"));
}

static void pages_unmap(struct setup *s)
{
	int i;

	for (i = 0; i < s->nr_pages; i++) {
		if (s->pages[i].vaddr)
			dmabuf_unmap(s->pages[i].vaddr, s->page_size);
		s->pages[i].vaddr = NULL;
	}
}

/* Nothing keeps the device open any more. */
static void device_close(struct setup *s)
{
	pages_unmap(s);
	vfio_pci_device_close(s->device);
}

/* Return why the tests cannot run, NULL if they can. */
static const char *setup_init(struct setup *s, const char *iommu_mode)
{
	int i;

	s->page_size = getpagesize();
	s->iommu = iommu_init(iommu_mode);
	s->device = vfio_pci_device_init(device_bdf, s->iommu);

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_pci_bar *bar = &s->device->bars[i];

		if (!bar->vaddr || bar->info.size < s->page_size)
			continue;

		pages_map(s, i);

		if (!s->bar || bar->info.size > s->bar->info.size)
			s->bar = bar;
	}

	return s->bar ? NULL : "The device has no BAR that can be mapped";
}

static void setup_cleanup(struct setup *s)
{
	pages_unmap(s);
	vfio_pci_device_cleanup(s->device);
	iommu_cleanup(s->iommu);
}

FIXTURE_SETUP(vfio_pci_bar_map_test)
{
	const char *reason = setup_init(&self->s, variant->iommu_mode);

	if (reason)
		SKIP(return, "%s", reason);
}

FIXTURE_TEARDOWN(vfio_pci_bar_map_test)
{
	setup_cleanup(&self->s);
}

FIXTURE_SETUP(vfio_pci_bar_map_one_mode)
{
	const char *reason = setup_init(&self->s, default_iommu_mode);

	if (reason)
		SKIP(return, "%s", reason);
}

FIXTURE_TEARDOWN(vfio_pci_bar_map_one_mode)
{
	setup_cleanup(&self->s);
}

/* Of which read() does not tell all, -1 if there is none. */
static int msix_bar(struct vfio_pci_device *device)
{
	u8 pos = vfio_pci_find_capability(device, PCI_CAP_ID_MSIX);

	if (!pos)
		return -1;

	return vfio_pci_config_readl(device, pos + PCI_MSIX_TABLE) & PCI_MSIX_TABLE_BIR;
}

FIXTURE_SETUP(vfio_pci_bar_map_small)
{
	struct setup *s = &self->s;
	int i;

	setup_init(s, default_iommu_mode);
	s->bar = NULL;
	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_pci_bar *bar = &s->device->bars[i];

		if (bar->vaddr && bar->info.size < s->page_size && i != msix_bar(s->device))
			s->bar = bar;
	}

	if (!s->bar)
		SKIP(return, "The device has no BAR that is smaller than a page");
}

FIXTURE_TEARDOWN(vfio_pci_bar_map_small)
{
	setup_cleanup(&self->s);
}

TEST_F(vfio_pci_bar_map_test, every_bar_and_offset)
{
	struct setup *s = &self->s;

	ASSERT_EQ(0, count_unexpected(s, 0));

	if (vfio_pci_ram_bar(s->device) < 0)
		SKIP(return, "No BAR with RAM: whether it is the right page, cannot be told");

	marks_write(s);
	ASSERT_EQ(0, marks_misplaced(s));
}

TEST_F(vfio_pci_bar_map_test, bad_spans)
{
	struct setup *s = &self->s;
	struct vfio_region_info *info = &s->bar->info;
	int fd = s->device->fd;
	void *vaddr;
	u64 end;
	int i;

	ASSERT_EQ(-EINVAL, __dmabuf_map(fd, info->offset + info->size, s->page_size,
					PROT_READ, &vaddr));
	ASSERT_EQ(-EINVAL, __dmabuf_map(fd, info->offset, info->size + s->page_size,
					PROT_READ, &vaddr));
	ASSERT_EQ(-EINVAL, __dmabuf_map(fd, info->offset + info->size - s->page_size,
					2 * s->page_size, PROT_READ, &vaddr));

	ASSERT_EQ(-EINVAL, __dmabuf_map(fd, info->offset, 0, PROT_READ, &vaddr));
	ASSERT_EQ(-EINVAL, __dmabuf_map(fd, info->offset + s->page_size / 2, s->page_size,
					PROT_READ, &vaddr));
	/* The last page that there is an offset for, and one more. */
	end = sizeof(long) < 8 ? 1ULL << (32 + 12) : 0;
	ASSERT_EQ(-EOVERFLOW, __dmabuf_map(fd, end - s->page_size, 2 * s->page_size,
					   PROT_READ, &vaddr));

	vaddr = mmap(NULL, s->page_size, PROT_READ, MAP_PRIVATE, fd, info->offset);
	ASSERT_EQ(MAP_FAILED, vaddr);
	ASSERT_EQ(EINVAL, errno);

	vaddr = mmap(NULL, s->page_size, PROT_READ, MAP_SHARED_VALIDATE | MAP_SYNC, fd,
		     info->offset);
	ASSERT_EQ(MAP_FAILED, vaddr);
	ASSERT_EQ(EOPNOTSUPP, errno);

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		info = &s->device->bars[i].info;
		if (info->flags & VFIO_REGION_INFO_FLAG_MMAP)
			continue;

		ASSERT_EQ(-EINVAL, __dmabuf_map(fd, info->offset, s->page_size,
						PROT_READ, &vaddr));
	}
}

TEST_F(vfio_pci_bar_map_one_mode, bad_regions)
{
	struct setup *s = &self->s;
	const u64 indexes[] = {
		VFIO_PCI_ROM_REGION_INDEX,
		VFIO_PCI_CONFIG_REGION_INDEX,
		VFIO_PCI_VGA_REGION_INDEX,
		VFIO_PCI_NUM_REGIONS,
		VFIO_PCI_NUM_REGIONS + 1,
		(1 << 22) - 1,
	};
	void *vaddr;
	int i;

	ASSERT_EQ(s->device->bars[1].info.offset, 1ULL << REGION_SHIFT);

	for (i = 0; i < ARRAY_SIZE(indexes); i++) {
		ASSERT_EQ(-EINVAL, __dmabuf_map(s->device->fd, indexes[i] << REGION_SHIFT,
						s->page_size, PROT_READ, &vaddr)) {
			TH_LOG("index %lu", indexes[i]);
		}
	}
}

/* The page that a small BAR begins has nothing else in it, and is mapped as such. */
TEST_F(vfio_pci_bar_map_small, page)
{
	struct setup *s = &self->s;
	struct vfio_region_info *info = &s->bar->info;
	u32 value, again, mapped;
	void *vaddr;

	ASSERT_EQ(-EINVAL, __dmabuf_map(s->device->fd, info->offset, 2 * s->page_size,
					PROT_READ, &vaddr));
	ASSERT_EQ(-EINVAL, __dmabuf_map(s->device->fd, info->offset + s->page_size,
					s->page_size, PROT_READ, &vaddr));

	ASSERT_EQ(sizeof(value), pread(s->device->fd, &value, sizeof(value), info->offset));
	ASSERT_EQ(sizeof(again), pread(s->device->fd, &again, sizeof(again), info->offset));
	if (again != value)
		SKIP(return, "The first register of the BAR does not stand still");

	vaddr = dmabuf_map(s->device->fd, info->offset, s->page_size);
	EXPECT_EQ(value, mmio_read32(vaddr));
	EXPECT_EQ(value, mmio_read32(s->bar->vaddr));

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(-EFAULT, __mmio_read32(vaddr, &mapped));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(value, mmio_read32(vaddr));
	dmabuf_unmap(vaddr, s->page_size);
}

/* What is smaller than a page, or no memory, is lent to nobody. */
TEST_F(vfio_pci_bar_map_small, not_exported)
{
	struct vfio_region_dma_range whole = {}, page = {};
	struct setup *s = &self->s;
	int i;

	if (!vfio_pci_has_feature(s->device, VFIO_DEVICE_FEATURE_GET |
					     VFIO_DEVICE_FEATURE_DMA_BUF))
		SKIP(return, "The kernel does not export DMABUFs");

	page.length = s->page_size;
	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_pci_bar *bar = &s->device->bars[i];
		u32 base = vfio_pci_config_readl(s->device, PCI_BASE_ADDRESS_0 + 4 * i);

		if (!bar->info.size || (bar->info.size >= s->page_size &&
					!(base & PCI_BASE_ADDRESS_SPACE_IO)))
			continue;

		whole.length = bar->info.size;
		EXPECT_EQ(-EINVAL, __vfio_pci_dmabuf_export(s->device, i, O_RDWR, &page, 1));
		EXPECT_EQ(-EINVAL, __vfio_pci_dmabuf_export(s->device, i, O_RDWR, &whole, 1));
	}
}

TEST_F(vfio_pci_bar_map_test, unbound_device)
{
	struct setup *s = &self->s;
	const char *path;
	void *vaddr;
	int fd;

	if (s->iommu->mode->container_path)
		SKIP(return, "Only a character device can be open, but not bound");

	path = vfio_pci_get_cdev_path(device_bdf);
	fd = open(path, O_RDWR);
	free((void *)path);
	ASSERT_GE(fd, 0);

	EXPECT_EQ(-EINVAL, __dmabuf_map(fd, s->bar->info.offset, s->page_size,
					PROT_READ, &vaddr));
	ASSERT_EQ(0, close(fd));
}

/* The mm takes VM_SHARED from what cannot be written, and that is refused. */
TEST_F(vfio_pci_bar_map_test, readonly_fd)
{
	struct setup *s = &self->s;
	const char *path;
	void *vaddr;
	int fd;

	if (s->iommu->mode->container_path)
		SKIP(return, "Only a character device can be opened for reading");

	device_close(s);

	path = vfio_pci_get_cdev_path(device_bdf);
	fd = open(path, O_RDONLY);
	free((void *)path);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, __vfio_device_bind_iommufd(fd, s->iommu->iommufd, NULL));

	EXPECT_EQ(-EACCES, __dmabuf_map(fd, s->bar->info.offset, s->page_size,
					PROT_READ | PROT_WRITE, &vaddr));
	EXPECT_EQ(-EINVAL, __dmabuf_map(fd, s->bar->info.offset, s->page_size,
					PROT_READ, &vaddr));

	ASSERT_EQ(0, close(fd));
	vfio_pci_device_reopen(s->device);
}

static long file_max_set(long max)
{
	FILE *file;
	long old;
	int nr;

	file = fopen("/proc/sys/fs/file-max", "r+");
	VFIO_ASSERT_NOT_NULL(file);
	nr = fscanf(file, "%ld", &old);
	VFIO_ASSERT_EQ(nr, 1);
	rewind(file);
	fprintf(file, "%ld", max);
	VFIO_ASSERT_EQ(fclose(file), 0);
	return old;
}

/* Who has no file for it gets no map, and that is all that happens. */
TEST_F(vfio_pci_bar_map_one_mode, out_of_files)
{
	struct setup *s = &self->s;
	void *vaddr;
	int status;
	pid_t pid;
	long old;

	if (!getenv(FILE_MAX))
		SKIP(return, "Nobody else may have a file then: set $" FILE_MAX " for it");
	if (!mapped_by_dmabufs(s))
		SKIP(return, "The kernel does not map BARs by DMABUFs");

	old = file_max_set(1);
	pid = process_fork();
	if (!pid) {
		/* The administrator may exceed the limit. */
		if (setresuid(65534, 65534, 65534))
			_exit(255);
		_exit(-__dmabuf_map(s->device->fd, s->bar->info.offset, s->page_size,
				    PROT_READ, &vaddr));
	}
	waitpid(pid, &status, 0);
	file_max_set(old);

	ASSERT_TRUE(WIFEXITED(status));
	EXPECT_EQ(ENFILE, WEXITSTATUS(status));
	EXPECT_EQ(0, count_unexpected(s, 0));

	/* The reference on the device's file that it took has been put. */
	device_close(s);
	vfio_pci_device_reopen(s->device);
}

TEST_F(vfio_pci_bar_map_test, proc_maps)
{
	struct setup *s = &self->s;
	struct vma_info info;
	int i;

	for (i = 0; i < s->nr_pages; i++) {
		struct bar_page *page = &s->pages[i];

		vma_info_get(page->vaddr, &info);
		ASSERT_EQ(s->device->bars[page->bar].info.offset + page->offset, info.offset);
		ASSERT_STREQ("rw-s", info.perms);
	}
}

TEST_F(vfio_pci_bar_map_one_mode, proc_maps_name)
{
	struct setup *s = &self->s;
	char name[64], *cdev;
	struct vma_info info;
	int i;

	if (!mapped_by_dmabufs(s))
		SKIP(return, "The kernel does not map BARs by DMABUFs");

	cdev = (char *)vfio_pci_get_cdev_path(device_bdf);

	for (i = 0; i < s->nr_pages; i++) {
		struct bar_page *page = &s->pages[i];

		snprintf_assert(name, sizeof(name), "/dmabuf:%s:%s/%d",
				strrchr(cdev, '/') + 1, device_bdf, page->bar);
		vma_info_get(page->vaddr, &info);
		ASSERT_STREQ(name, info.name);
	}

	free(cdev);
}

/* The kernel must neither dump, grow, nor touch it on behalf of others. */
TEST_F(vfio_pci_bar_map_one_mode, vma_flags)
{
	struct setup *s = &self->s;

	ASSERT_TRUE(vma_has_flag(s->bar->vaddr, "io"));
	ASSERT_TRUE(vma_has_flag(s->bar->vaddr, "pf"));
	ASSERT_TRUE(vma_has_flag(s->bar->vaddr, "de"));
	ASSERT_TRUE(vma_has_flag(s->bar->vaddr, "dd"));
	ASSERT_FALSE(vma_has_flag(s->bar->vaddr, "dc"));
}

/*
 * The character device usually lies where programs may be executed, the other one
 * never does.
 */
TEST_F(vfio_pci_bar_map_test, exec)
{
	struct setup *s = &self->s;
	bool cdev = !s->iommu->mode->container_path;
	struct statvfs statvfs;
	void *vaddr;
	bool exec;
	int r;

	ASSERT_EQ(0, fstatvfs(s->device->fd, &statvfs));
	exec = cdev && !(statvfs.f_flag & ST_NOEXEC);

	r = __dmabuf_map(s->device->fd, s->bar->info.offset, s->page_size,
			 PROT_READ | PROT_EXEC, &vaddr);
	ASSERT_EQ(exec ? 0 : -EPERM, r);
	if (!r)
		dmabuf_unmap(vaddr, s->page_size);
}

TEST_F(vfio_pci_bar_map_one_mode, munmap_hole)
{
	struct setup *s = &self->s;
	u64 size = s->bar->info.size;
	u64 hole = ALIGN_DOWN(size / 2, s->page_size);
	struct vma_info info;
	void *vaddr;
	u32 value;

	if (size < 3 * s->page_size)
		SKIP(return, "BAR too small (size=0x%lx)", size);

	vaddr = dmabuf_map(s->device->fd, s->bar->info.offset, size);
	mmio_read32(vaddr + hole);
	dmabuf_unmap(vaddr + hole, s->page_size);

	ASSERT_EQ(-EACCES, __mmio_read32(vaddr + hole, &value));
	ASSERT_TRUE(maps_offset(s, vaddr, 0));
	ASSERT_TRUE(maps_offset(s, vaddr + hole - s->page_size, hole - s->page_size));
	ASSERT_TRUE(maps_offset(s, vaddr + hole + s->page_size, hole + s->page_size));

	vma_info_get(vaddr + hole + s->page_size, &info);
	ASSERT_EQ(s->bar->info.offset + hole + s->page_size, info.offset);

	/* Both halves have to be found when the memory goes away. */
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(-EFAULT, __mmio_read32(vaddr + hole - s->page_size, &value));
	EXPECT_EQ(-EFAULT, __mmio_read32(vaddr + hole + s->page_size, &value));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);

	/* In any order, the head last. */
	dmabuf_unmap(vaddr + hole + s->page_size, size - hole - s->page_size);
	ASSERT_EQ(0, __mmio_read32(vaddr, &value));
	dmabuf_unmap(vaddr, hole);
}

TEST_F(vfio_pci_bar_map_test, munmap_in_any_order)
{
	const int orders[][3] = {
		{ 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 }, { 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 },
	};
	struct setup *s = &self->s;
	u64 size = 3 * s->page_size;
	u64 offset = s->bar->info.size - size;
	void *vaddr;
	u32 value;
	int i, j, k;

	if (s->bar->info.size < size)
		SKIP(return, "BAR too small (size=0x%llx)", s->bar->info.size);

	for (i = 0; i < ARRAY_SIZE(orders); i++) {
		vaddr = dmabuf_map(s->device->fd, s->bar->info.offset + offset, size);

		for (j = 0; j < 3; j++) {
			for (k = 0; k < 3; k++) {
				ASSERT_EQ(k < j ? -EACCES : 0,
					  __mmio_read32(vaddr + orders[i][k] * s->page_size,
							&value));
			}
			dmabuf_unmap(vaddr + orders[i][j] * s->page_size, s->page_size);
		}
	}

	/* None of that has shut the device, nor keeps it open. */
	ASSERT_EQ(0, count_unexpected(s, 0));
	device_close(s);
	vfio_pci_device_reopen(s->device);
}

TEST_F(vfio_pci_bar_map_one_mode, mprotect_split)
{
	struct setup *s = &self->s;
	u64 size = s->bar->info.size;
	u64 middle = ALIGN_DOWN(size / 2, s->page_size);
	const u64 pieces[] = { 0, middle, middle + s->page_size };
	struct vma_info info;
	void *vaddr;
	u32 value;
	int i;

	if (size < 3 * s->page_size)
		SKIP(return, "BAR too small (size=0x%lx)", size);

	vaddr = dmabuf_map(s->device->fd, s->bar->info.offset, size);
	value = mmio_read32(vaddr + middle);

	ASSERT_EQ(0, mprotect(vaddr + middle, s->page_size, PROT_NONE));
	ASSERT_EQ(-EACCES, __mmio_read32(vaddr + middle, &value));
	ASSERT_EQ(0, __mmio_read32(vaddr + middle - s->page_size, &value));
	ASSERT_EQ(0, __mmio_read32(vaddr + middle + s->page_size, &value));

	ASSERT_EQ(0, mprotect(vaddr + middle, s->page_size, PROT_READ));
	ASSERT_EQ(0, __mmio_read32(vaddr + middle, &value));
	ASSERT_EQ(-EACCES, __mmio_write32(vaddr + middle, value));

	for (i = 0; i < ARRAY_SIZE(pieces); i++) {
		vma_info_get(vaddr + pieces[i], &info);
		ASSERT_EQ((unsigned long)vaddr + pieces[i], info.start);
		ASSERT_EQ(s->bar->info.offset + pieces[i], info.offset);
		ASSERT_TRUE(maps_offset(s, vaddr + pieces[i], pieces[i]));
	}

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	for (i = 0; i < ARRAY_SIZE(pieces); i++)
		EXPECT_EQ(-EFAULT, __mmio_read32(vaddr + pieces[i], &value));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	for (i = 0; i < ARRAY_SIZE(pieces); i++)
		EXPECT_TRUE(maps_offset(s, vaddr + pieces[i], pieces[i]));

	dmabuf_unmap(vaddr, size);
}

/* The last page of the BAR with RAM, or of any if there is none. */
static struct bar_page *last_page(struct setup *s)
{
	int ram = vfio_pci_ram_bar(s->device);
	int i = s->nr_pages - 1;

	while (ram >= 0 && i && s->pages[i].bar != ram)
		i--;
	return &s->pages[i];
}

TEST_F(vfio_pci_bar_map_one_mode, mremap_move)
{
	struct setup *s = &self->s;
	struct bar_page *page = last_page(s);
	struct vma_info info;
	void *old, *new;
	u32 value;

	marks_write(s);

	old = page->vaddr;
	new = mmap_reserve(s->page_size, SZ_2M, 0);
	ASSERT_EQ(new, mremap(old, s->page_size, s->page_size,
			      MREMAP_MAYMOVE | MREMAP_FIXED, new));
	page->vaddr = new;

	ASSERT_EQ(-EACCES, __mmio_read32(old, &value));
	ASSERT_EQ(0, __mmio_read32(new, &value));
	if (page->bar == vfio_pci_ram_bar(s->device))
		ASSERT_EQ(page_mark(page), value);
	ASSERT_EQ(0, marks_misplaced(s));

	vma_info_get(new, &info);
	ASSERT_EQ(s->device->bars[page->bar].info.offset + page->offset, info.offset);

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-EFAULT, __mmio_read32(new, &value));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, marks_lost(s));
}

/* Several maps at once, that is what other files allow as well. */
TEST_F(vfio_pci_bar_map_one_mode, mremap_several)
{
	struct setup *s = &self->s;
	u64 offset = s->bar->info.offset;
	void *old, *new, *moved;
	u32 value;
	int i;

	if (s->bar->info.size < 4 * s->page_size)
		SKIP(return, "BAR smaller than four pages");

	/* The second one does not continue the first one. */
	old = mmap_reserve(2 * s->page_size, SZ_2M, 0);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(old + i * s->page_size,
			  mmap(old + i * s->page_size, s->page_size, PROT_READ,
			       MAP_SHARED | MAP_FIXED, s->device->fd,
			       offset + 3 * i * s->page_size));
		mmio_read32(old + i * s->page_size);
	}

	new = mmap_reserve(2 * s->page_size, SZ_2M, 0);
	moved = mremap(old, 2 * s->page_size, 2 * s->page_size,
		       MREMAP_MAYMOVE | MREMAP_FIXED, new);
	if (moved == MAP_FAILED && errno == EFAULT)
		SKIP(return, "The kernel does not move several maps at once");
	ASSERT_EQ(new, moved);

	for (i = 0; i < 2; i++) {
		EXPECT_TRUE(maps_offset(s, new + i * s->page_size, 3 * i * s->page_size));
		EXPECT_EQ(-EACCES, __mmio_read32(old + i * s->page_size, &value));
	}
	dmabuf_unmap(new, 2 * s->page_size);
}

TEST_F(vfio_pci_bar_map_one_mode, mremap_resize)
{
	struct setup *s = &self->s;
	u64 size = 2 * s->page_size;
	void *vaddr;
	u32 value;

	if (s->bar->info.size < size)
		SKIP(return, "BAR too small (size=0x%llx)", s->bar->info.size);

	vaddr = dmabuf_map(s->device->fd, s->bar->info.offset, size);

	ASSERT_EQ(vaddr, mremap(vaddr, size, s->page_size, 0));
	ASSERT_EQ(0, __mmio_read32(vaddr, &value));
	ASSERT_EQ(-EACCES, __mmio_read32(vaddr + s->page_size, &value));

	/* Growing would reach beyond what was checked by mmap(). */
	ASSERT_EQ(MAP_FAILED, mremap(vaddr, s->page_size, size, MREMAP_MAYMOVE));
	ASSERT_EQ(EFAULT, errno);

	/* Nor is there a second map by mremap()'s tricks. */
	ASSERT_EQ(MAP_FAILED, mremap(vaddr, 0, s->page_size, MREMAP_MAYMOVE));
	ASSERT_EQ(EFAULT, errno);
	ASSERT_EQ(MAP_FAILED, mremap(vaddr, s->page_size, s->page_size,
				     MREMAP_MAYMOVE | MREMAP_DONTUNMAP));
	ASSERT_EQ(EINVAL, errno);

	dmabuf_unmap(vaddr, s->page_size);
}

TEST_F(vfio_pci_bar_map_one_mode, madvise_refused)
{
	struct setup *s = &self->s;
	const int advices[] = {
		MADV_DONTNEED,
		MADV_FREE,
		MADV_WIPEONFORK,
		MADV_COLD,
		MADV_PAGEOUT,
		MADV_POPULATE_READ,
		MADV_POPULATE_WRITE,
		MADV_COLLAPSE,
		MADV_DOFORK,
		MADV_DODUMP,
		MADV_GUARD_INSTALL,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(advices); i++) {
		EXPECT_EQ(-1, madvise(s->bar->vaddr, s->page_size, advices[i]));
		EXPECT_EQ(EINVAL, errno) {
			TH_LOG("advice %d", advices[i]);
		}
	}

	/* There is no hole to be made in the file. */
	EXPECT_EQ(-1, madvise(s->bar->vaddr, s->page_size, MADV_REMOVE));
	EXPECT_EQ(ENODEV, errno);

	/* A kernel that merges pages takes the advice, and ignores it. */
	if (madvise(s->bar->vaddr, s->page_size, MADV_MERGEABLE))
		EXPECT_EQ(EINVAL, errno);
	EXPECT_FALSE(vma_has_flag(s->bar->vaddr, "mg"));
}

/* Nobody touches it ahead of the driver: these succeed and do nothing. */
/* The same page of what is lent, -1 if the kernel cannot map that. */
static int page_export(struct setup *s)
{
	int index = s->bar - s->device->bars;

	if (!vfio_pci_has_feature(s->device, VFIO_DEVICE_FEATURE_GET |
					     VFIO_DEVICE_FEATURE_DMA_BUF) ||
	    !vfio_pci_has_dmabuf_mmap(s->device, index))
		return -1;
	return vfio_pci_dmabuf_export_range(s->device, index, 0, s->page_size);
}

static void expect_not_populated(struct __test_metadata *_metadata, int fd, u64 offset)
{
	long size = getpagesize();
	void *vaddr;

	vaddr = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE | MAP_LOCKED, fd, offset);
	ASSERT_NE(MAP_FAILED, vaddr);
	ASSERT_EQ(0, mlock(vaddr, size));
	EXPECT_EQ(0, __page_mapping_count_all(vaddr, size));

	mmio_read32(vaddr);
	EXPECT_EQ(1, __page_mapping_count_all(vaddr, size));
	dmabuf_unmap(vaddr, size);
}

TEST_F(vfio_pci_bar_map_one_mode, not_populated)
{
	struct setup *s = &self->s;
	int fd;

	if (__page_mapping_count_all(s->bar->vaddr, s->page_size) == -EOPNOTSUPP)
		SKIP(return, "Cannot look at page tables");
	expect_not_populated(_metadata, s->device->fd, s->bar->info.offset);

	fd = page_export(s);
	if (fd < 0)
		return;
	expect_not_populated(_metadata, fd, 0);
	ASSERT_EQ(0, close(fd));
}

static void expect_no_foreign_access(struct __test_metadata *_metadata, void *vaddr)
{
	struct iovec remote, local;
	char path[32];
	off_t offset;
	u32 value;
	pid_t pid;
	int fd;

	offset = (uintptr_t)vaddr;
	local = (struct iovec) { .iov_base = &value, .iov_len = sizeof(value) };
	remote = (struct iovec) { .iov_base = vaddr, .iov_len = sizeof(value) };

	/* Not for a page that is not there. */
	mmio_read32(vaddr);
	pid = process_fork();
	if (!pid) {
		for (;;)
			pause();
	}

	EXPECT_EQ(-1, process_vm_readv(pid, &local, 1, &remote, 1, 0));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(-1, process_vm_writev(pid, &local, 1, &remote, 1, 0));
	EXPECT_EQ(EFAULT, errno);

	snprintf_assert(path, sizeof(path), "/proc/%d/mem", pid);
	fd = open(path, O_RDWR);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(-1, pread(fd, &value, sizeof(value), offset));
	EXPECT_EQ(EIO, errno);
	EXPECT_EQ(-1, pwrite(fd, &value, sizeof(value), offset));
	EXPECT_EQ(EIO, errno);
	ASSERT_EQ(0, close(fd));

	ASSERT_EQ(0, ptrace(PTRACE_ATTACH, pid, NULL, NULL));
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));
	errno = 0;
	EXPECT_EQ(-1, ptrace(PTRACE_PEEKDATA, pid, vaddr, NULL));
	EXPECT_EQ(EIO, errno);

	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));
}

TEST_F(vfio_pci_bar_map_one_mode, foreign_access_refused)
{
	struct setup *s = &self->s;
	void *vaddr;
	int fd;

	expect_no_foreign_access(_metadata, s->bar->vaddr);

	fd = page_export(s);
	if (fd < 0)
		return;
	vaddr = dmabuf_map(fd, 0, s->page_size);
	expect_no_foreign_access(_metadata, vaddr);
	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
}

/* There are no pages to be had, for whatever purpose. */
static void expect_no_pages(struct __test_metadata *_metadata, void *vaddr)
{
	struct iovec iov = { .iov_base = vaddr, .iov_len = sizeof(u32) };
	int fds[2];

	mmio_read32(vaddr);
	ASSERT_EQ(0, pipe(fds));
	EXPECT_EQ(-1, vmsplice(fds[1], &iov, 1, 0));
	EXPECT_EQ(EFAULT, errno);
	ASSERT_EQ(0, close(fds[0]));
	ASSERT_EQ(0, close(fds[1]));
}

TEST_F(vfio_pci_bar_map_one_mode, pages_refused)
{
	struct setup *s = &self->s;
	void *vaddr;
	int fd;

	expect_no_pages(_metadata, s->bar->vaddr);

	fd = page_export(s);
	if (fd < 0)
		return;
	vaddr = dmabuf_map(fd, 0, s->page_size);
	expect_no_pages(_metadata, vaddr);
	dmabuf_unmap(vaddr, s->page_size);
	ASSERT_EQ(0, close(fd));
}

/*
 * The kernel copies from and to it for a system call, as it does with any other
 * memory. vfio's own calls are no exception: their buffer may be the BAR that
 * they are about, and the copy then enters vfio's fault handler.
 */
TEST_F(vfio_pci_bar_map_one_mode, copied_by_the_kernel)
{
	struct setup *s = &self->s;
	int ram = vfio_pci_ram_bar(s->device);
	struct vfio_region_info *info;
	void *vaddr;
	u32 value;

	if (ram < 0)
		SKIP(return, "No BAR with RAM, which may be written to");

	vaddr = s->device->bars[ram].vaddr;
	info = &s->device->bars[ram].info;

	/* Nothing is mapped yet when each of the copies begins. */
	mmio_write32(vaddr, 0xc0b1ed);
	mmio_write32(vaddr + s->page_size, 0);
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(4, pread(s->device->fd, vaddr + s->page_size, 4, info->offset));
	ASSERT_EQ(0xc0b1ed, mmio_read32(vaddr + s->page_size));

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(4, pwrite(s->device->fd, vaddr, 4, info->offset + 2 * s->page_size));
	ASSERT_EQ(0xc0b1ed, mmio_read32(vaddr + 2 * s->page_size));

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(4, pread(s->device->fd, vaddr, 4, s->device->config_space.offset));
	vfio_pci_config_access(s->device, false, PCI_VENDOR_ID, 4, &value);
	ASSERT_EQ(value, mmio_read32(vaddr));

	/* An error, neither a signal nor a hang. */
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(-1, pread(s->device->fd, vaddr, 4, s->device->config_space.offset));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(-1, pwrite(s->device->fd, vaddr, 4,
			     s->device->config_space.offset + PCI_BASE_ADDRESS_0));
	EXPECT_EQ(EFAULT, errno);
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(value, mmio_read32(vaddr));
}

/*
 * remap_file_pages() gets at the file behind the map, which nobody has opened
 * and to which the offset that the caller passes means something else. So it
 * is refused, whatever the offset.
 *
 * It has taken the old pages away by then, as mmap() over a map does when a
 * driver refuses: they are gone, which is the caller's loss and no one else's.
 */
TEST_F(vfio_pci_bar_map_one_mode, remap_file_pages)
{
	struct setup *s = &self->s;
	u64 size = 3 * s->page_size;
	u64 end = s->bar->info.size / s->page_size;
	struct vma_info before, after;
	void *vaddr, *middle;
	u32 value;
	int i;

	if (s->bar->info.size < size)
		SKIP(return, "BAR too small");
	if (!mapped_by_dmabufs(s))
		SKIP(return, "The kernel does not map BARs by DMABUFs");

	vaddr = dmabuf_map(s->device->fd, s->bar->info.offset, size);
	middle = vaddr + s->page_size;
	vma_info_get(middle, &before);
	before.offset += s->page_size;

	const u64 pgoffs[] = {
		0,
		1,
		end,
		before.offset / s->page_size,
		before.offset / s->page_size + 1,
		1ULL << (REGION_SHIFT - 12),
		1ULL << 51,
	};

	for (i = 0; i < ARRAY_SIZE(pgoffs); i++) {
		EXPECT_EQ(-1, remap_file_pages(middle, s->page_size, 0, pgoffs[i], 0)) {
			TH_LOG("page %lu", pgoffs[i]);
		}

		if (__vma_info_get(middle, &after)) {
			EXPECT_EQ(-EACCES, __mmio_read32(middle, &value));
		} else {
			EXPECT_EQ(before.offset - after.offset,
				  (unsigned long)middle - after.start);
			dmabuf_unmap(middle, s->page_size);
		}
		EXPECT_EQ(0, __mmio_read32(vaddr, &value));
		EXPECT_EQ(0, __mmio_read32(vaddr + 2 * s->page_size, &value));

		ASSERT_EQ(middle, mmap(middle, s->page_size, PROT_READ, MAP_SHARED | MAP_FIXED,
				       s->device->fd, before.offset));
		ASSERT_EQ(0, __mmio_read32(middle, &value));
	}

	/* What was lost neither shuts the device nor keeps it open. */
	dmabuf_unmap(vaddr, size);
	ASSERT_EQ(0, count_unexpected(s, 0));
	device_close(s);
	vfio_pci_device_reopen(s->device);
}

TEST_F(vfio_pci_bar_map_test, fork)
{
	struct subordinate child;
	struct setup *s = &self->s;
	u32 value;

	subordinate_fork(&child, s->bar->vaddr);

	ASSERT_EQ(0, subordinate_read(&child, &value));
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-EFAULT, subordinate_read(&child, &value));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, subordinate_read(&child, &value));

	/* The child's map stays without the parent's. */
	dmabuf_unmap(s->bar->vaddr, s->bar->info.size);
	s->bar->vaddr = NULL;
	ASSERT_EQ(0, subordinate_read(&child, &value));

	ASSERT_EQ(0, subordinate_end(&child));
}

TEST_F(vfio_pci_bar_map_one_mode, dontfork)
{
	struct setup *s = &self->s;
	pid_t pid;
	u32 value;

	ASSERT_EQ(0, madvise(s->bar->vaddr, s->bar->info.size, MADV_DONTFORK));

	pid = process_fork();
	if (!pid)
		_exit(-__mmio_read32(s->bar->vaddr, &value));

	ASSERT_EQ(EACCES, process_exit_status(pid));
	ASSERT_EQ(0, __mmio_read32(s->bar->vaddr, &value));
}

TEST_F(vfio_pci_bar_map_test, memory_disable)
{
	struct setup *s = &self->s;

	marks_write(s);
	ASSERT_EQ(0, count_unexpected(s, 0));

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, count_unexpected(s, -EFAULT));

	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, count_unexpected(s, 0));
	ASSERT_EQ(0, marks_lost(s));
}

/* Not that an access fails, but that there is nothing to access by. */
TEST_F(vfio_pci_bar_map_one_mode, memory_disable_unmaps)
{
	struct setup *s = &self->s;
	int i;

	if (__page_mapping_count_all(s->bar->vaddr, s->page_size) == -EOPNOTSUPP)
		SKIP(return, "Cannot look at page tables");

	ASSERT_EQ(0, count_unexpected(s, 0));
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);

	for (i = 0; i < s->nr_pages; i++)
		EXPECT_EQ(0, __page_mapping_count_all(s->pages[i].vaddr, s->page_size));

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_pci_bar *bar = &s->device->bars[i];

		if (bar->vaddr)
			EXPECT_EQ(0, __page_mapping_count_all(bar->vaddr, bar->info.size));
	}

	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
}

/* mmap() never fails for the state that the device is in, only access does. */
TEST_F(vfio_pci_bar_map_test, map_while_disabled)
{
	struct setup *s = &self->s;
	void *vaddrs[MAX_PAGES];
	u32 value;
	int i;

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	for (i = 0; i < s->nr_pages; i++) {
		struct vfio_pci_bar *bar = &s->device->bars[s->pages[i].bar];

		ASSERT_EQ(0, __dmabuf_map(s->device->fd, bar->info.offset + s->pages[i].offset,
					  s->page_size, PROT_READ, &vaddrs[i]));
		ASSERT_EQ(-EFAULT, __mmio_read32(vaddrs[i], &value));
	}

	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	for (i = 0; i < s->nr_pages; i++) {
		ASSERT_EQ(0, __mmio_read32(vaddrs[i], &value));
		dmabuf_unmap(vaddrs[i], s->page_size);
	}
}

TEST_F(vfio_pci_bar_map_test, reset)
{
	struct setup *s = &self->s;

	if (!(s->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "Device does not support reset");

	ASSERT_EQ(0, count_unexpected(s, 0));
	vfio_pci_device_reset(s->device);
	ASSERT_EQ(0, count_unexpected(s, 0));

	/* Same pages, whether or not the device keeps what they hold. */
	marks_write(s);
	ASSERT_EQ(0, marks_misplaced(s));
}

/* Its owner says who he is by the iommufd or by his group. */
TEST_F(vfio_pci_bar_map_test, hot_reset)
{
	struct setup *s = &self->s;
	int r;

	ASSERT_EQ(0, count_unexpected(s, 0));
	r = __vfio_pci_device_hot_reset(s->device);
	if (r == -EOPNOTSUPP)
		SKIP(return, "Device has no hot reset of its own");

	ASSERT_EQ(0, r);
	ASSERT_EQ(0, count_unexpected(s, 0));
	marks_write(s);
	ASSERT_EQ(0, marks_misplaced(s));
}

/* How much of a BAR may be read from: each page only of a device that is known. */
static u64 harmless_size(struct setup *s, struct vfio_pci_bar *bar)
{
	if (s->device->driver.ops || vfio_pci_ram_bar(s->device) >= 0)
		return bar->info.size;

	return s->page_size;
}

/*
 * An access that meets a reset waits for it, and then works. An emulator that flushes
 * the TLBs of busy CPUs page by page takes seconds for each reset.
 */
TEST_F_TIMEOUT(vfio_pci_bar_map_one_mode, access_during_reset, 120)
{
	struct setup *s = &self->s;
	struct mmio_reader readers[PCI_STD_NUM_BARS];
	int nr_readers = 0, i, round;
	u64 nr_reads = 0;

	if (!(s->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "Device does not support reset");

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_pci_bar *bar = &s->device->bars[i];

		if (bar->vaddr)
			mmio_reader_start(&readers[nr_readers++], bar->vaddr,
					  harmless_size(s, bar));
	}

	for (round = 0; round < 10; round++) {
		vfio_pci_device_reset(s->device);
		for (i = 0; i < nr_readers; i++)
			repeater_wait(&readers[i].repeater);
	}

	for (i = 0; i < nr_readers; i++) {
		repeater_stop(&readers[i].repeater);
		EXPECT_EQ(0, readers[i].repeater.nr_failed);
		nr_reads += readers[i].repeater.nr_rounds;
	}

	printf("%lu reads during %d resets\n", nr_reads, round);
}

/* What a BAR begins with, to be read by the device fd. */
struct region_value {
	int fd;
	off_t offset;
	u32 expected;
};

static bool region_value_is_read(void *arg)
{
	struct region_value *region = arg;
	u32 value;

	return pread(region->fd, &value, sizeof(value), region->offset) == sizeof(value) &&
	       value == region->expected;
}

/*
 * Find a BAR that does not begin with what a device reads as that does not respond,
 * and begins alike after a reset.
 */
static bool region_value_init(struct region_value *region, struct setup *s)
{
	u32 before[PCI_STD_NUM_BARS], after;
	int i;

	for (i = 0; i < PCI_STD_NUM_BARS; i++)
		if (s->device->bars[i].vaddr)
			before[i] = mmio_read32(s->device->bars[i].vaddr);

	vfio_pci_device_reset(s->device);
	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		if (!s->device->bars[i].vaddr)
			continue;
		after = mmio_read32(s->device->bars[i].vaddr);
		if (!after || after == ~0U || after != before[i])
			continue;

		region->fd = s->device->fd;
		region->offset = s->device->bars[i].info.offset;
		region->expected = after;
		return true;
	}

	return false;
}

/* So does a read of the region. */
TEST_F(vfio_pci_bar_map_one_mode, read_during_reset)
{
	struct setup *s = &self->s;
	struct region_value region;
	struct repeater reader;
	int round;

	if (!(s->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "Device does not support reset");
	if (!region_value_init(&region, s))
		SKIP(return, "No BAR tells whether the device responds");

	repeater_start(&reader, region_value_is_read, &region);
	for (round = 0; round < 10; round++) {
		repeater_wait(&reader);
		vfio_pci_device_reset(s->device);
	}

	repeater_stop(&reader);
	EXPECT_EQ(0, reader.nr_failed);
	printf("%lu reads during %d resets\n", reader.nr_rounds, round);
}

TEST_F(vfio_pci_bar_map_test, d3hot)
{
	u8 pm = vfio_pci_find_capability(self->s.device, PCI_CAP_ID_PM);
	struct setup *s = &self->s;

	if (!pm)
		SKIP(return, "Device has no power management");

	marks_write(s);
	ASSERT_EQ(0, __vfio_pci_d3hot_entry(s->device));
	ASSERT_EQ(0, count_unexpected(s, -EFAULT));

	ASSERT_EQ(0, __vfio_pci_d3hot_exit(s->device));
	ASSERT_EQ(0, count_unexpected(s, 0));

	if (vfio_pci_config_readw(s->device, pm + PCI_PM_CTRL) & PCI_PM_CTRL_NO_SOFT_RESET)
		ASSERT_EQ(0, marks_lost(s));
}

TEST_F(vfio_pci_bar_map_test, low_power)
{
	struct setup *s = &self->s;
	int r;

	r = __vfio_pci_low_power_entry(s->device);
	if (r == -EOPNOTSUPP)
		SKIP(return, "Device has no low power state");

	ASSERT_EQ(0, r);
	EXPECT_EQ(0, count_unexpected(s, -EFAULT));

	/* Once is enough. */
	EXPECT_EQ(-EINVAL, __vfio_pci_low_power_entry(s->device));
	EXPECT_EQ(0, count_unexpected(s, -EFAULT));

	ASSERT_EQ(0, __vfio_pci_low_power_exit(s->device));
	ASSERT_EQ(0, count_unexpected(s, 0));
}

/* A device that was woken up is awake, there need not be a LOW_POWER_EXIT. */
TEST_F(vfio_pci_bar_map_test, low_power_wakeup)
{
	struct setup *s = &self->s;
	int wakeup, r;
	u64 count;

	marks_write(s);
	wakeup = eventfd(0, EFD_NONBLOCK);
	ASSERT_GE(wakeup, 0);
	r = __vfio_pci_low_power_entry_with_wakeup(s->device, wakeup);
	if (r == -EOPNOTSUPP)
		SKIP(return, "Device has no low power state");
	ASSERT_EQ(0, r);

	/* It goes to sleep by itself, and an access by a map does not wake it. */
	vfio_pci_wait_suspended(s->device);
	EXPECT_EQ(0, count_unexpected(s, -EFAULT));
	EXPECT_EQ(-1, read(wakeup, &count, sizeof(count)));
	EXPECT_EQ(EAGAIN, errno);

	vfio_pci_config_readw(s->device, PCI_VENDOR_ID);
	EXPECT_EQ(sizeof(count), read(wakeup, &count, sizeof(count)));
	EXPECT_EQ(0, count_unexpected(s, 0));
	EXPECT_EQ(0, marks_lost(s));

	EXPECT_EQ(0, __vfio_pci_low_power_exit(s->device));
	EXPECT_EQ(0, count_unexpected(s, 0));
	ASSERT_EQ(0, close(wakeup));
}

/*
 * A path to the file of a map, by which it is not open but is kept from going.
 * Return -1 if that is for the administrator alone.
 */
static int vma_pin(const void *vaddr)
{
	struct vma_info info;
	char path[64];
	int fd;

	vma_info_get(vaddr, &info);
	snprintf_assert(path, sizeof(path), "/proc/self/map_files/%lx-%lx", info.start, info.end);
	fd = open(path, O_PATH | O_CLOEXEC);
	VFIO_ASSERT_TRUE(fd >= 0 || errno == EPERM || errno == EACCES, "%s\n", path);
	return fd;
}

/*
 * A live map keeps the device open: it works on, and nobody else gets in. What was
 * a map does not, even if there still is a path to it.
 */
TEST_F(vfio_pci_bar_map_test, fd_closed)
{
	struct setup *s = &self->s;
	int i, pin;

	ASSERT_EQ(0, close(s->device->fd));
	ASSERT_EQ(0, count_unexpected(s, 0));

	if (s->iommu->mode->container_path) {
		vfio_pci_device_reopen(s->device);
		return;
	}

	vfio_pci_cdev_open(s->device, device_bdf);
	ASSERT_NE(0, __vfio_device_bind_iommufd(s->device->fd, s->iommu->iommufd, NULL));

	pin = vma_pin(s->bar->vaddr);
	pages_unmap(s);

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_pci_bar *bar = &s->device->bars[i];

		if (!bar->vaddr)
			continue;

		ASSERT_NE(0, __vfio_device_bind_iommufd(s->device->fd,
							s->iommu->iommufd, NULL));
		dmabuf_unmap(bar->vaddr, bar->info.size);
		bar->vaddr = NULL;
	}

	ASSERT_EQ(0, __vfio_device_bind_iommufd(s->device->fd, s->iommu->iommufd, NULL));
	if (pin >= 0)
		ASSERT_EQ(0, close(pin));
}

TEST_F(vfio_pci_bar_map_one_mode, huge_pages)
{
	struct setup *s = &self->s;
	u64 size = min_t(u64, s->bar->info.size, SZ_64M);
	void *vaddr;
	u64 offset;

	if (size < SZ_2M)
		SKIP(return, "BAR too small (size=0x%lx)", size);
	if (!has_huge_pages(SZ_2M))
		SKIP(return, "The kernel has no huge pages");
	if (__page_mapping_count(s->bar->vaddr, size, SZ_2M) == -EOPNOTSUPP)
		SKIP(return, "Cannot look at page tables");

	/* A map of its own leaves pages of 1 GiB aside. */
	vaddr = mmap_reserve(size, SZ_2M, 0);
	ASSERT_EQ(vaddr, mmap(vaddr, size, PROT_READ, MAP_SHARED | MAP_FIXED, s->device->fd,
			      s->bar->info.offset));
	ASSERT_EQ(0, __page_mapping_count_all(vaddr, size));

	for (offset = 0; offset < size; offset += SZ_2M)
		mmio_read32(vaddr + offset);

	ASSERT_EQ(size / SZ_2M, __page_mapping_count(vaddr, size, SZ_2M));
	ASSERT_EQ(size / SZ_2M, __page_mapping_count_all(vaddr, size));

	/* A part of one is something that is there, too. */
	ASSERT_EQ(1, __page_mapping_count_all(vaddr + s->page_size, s->page_size));
	dmabuf_unmap(vaddr, size);
}

/* mmap() by itself finds a place that is good for huge pages. */
TEST_F(vfio_pci_bar_map_one_mode, huge_pages_unaided)
{
	struct setup *s = &self->s;
	u64 size = min_t(u64, s->bar->info.size, SZ_64M);
	void *vaddr, *hint;
	u64 offset;

	if (size < SZ_8M)
		SKIP(return, "BAR too small (size=0x%lx)", size);
	if (!has_huge_pages(SZ_2M))
		SKIP(return, "The kernel has no huge pages");
	if (__page_mapping_count(s->bar->vaddr, size, SZ_2M) == -EOPNOTSUPP)
		SKIP(return, "Cannot look at page tables");

	/* The last page keeps another one from being huge. */
	vaddr = mmap(NULL, size - s->page_size, PROT_READ, MAP_SHARED, s->device->fd,
		     s->bar->info.offset);
	ASSERT_NE(MAP_FAILED, vaddr);
	if (!IS_ALIGNED((unsigned long)vaddr, SZ_2M) &&
	    !maps_ahead(s->device->fd, s->bar->info.offset))
		SKIP(return, "The kernel does not look for a place that suits huge pages");
	ASSERT_EQ(0, (unsigned long)vaddr % SZ_2M);
	for (offset = 0; offset < size - s->page_size; offset += s->page_size)
		mmio_read32(vaddr + offset);
	EXPECT_EQ(size / SZ_2M - 1, __page_mapping_count(vaddr, size - s->page_size, SZ_2M));
	EXPECT_EQ(SZ_2M / s->page_size - 1,
		  __page_mapping_count(vaddr, size - s->page_size, s->page_size));
	dmabuf_unmap(vaddr, size - s->page_size);

	/* What counts is the physical address, also where the map begins midway. */
	vaddr = mmap(NULL, SZ_4M, PROT_READ, MAP_SHARED, s->device->fd,
		     s->bar->info.offset + SZ_2M - s->page_size);
	ASSERT_NE(MAP_FAILED, vaddr);
	EXPECT_EQ(SZ_2M - s->page_size, (unsigned long)vaddr % SZ_2M);
	mmio_read32(vaddr + s->page_size);
	EXPECT_EQ(1, __page_mapping_count(vaddr, SZ_4M, SZ_2M));
	dmabuf_unmap(vaddr, SZ_4M);

	/* A hint is taken where there is room, even if it does not suit. */
	hint = mmap_reserve(SZ_4M, SZ_2M, s->page_size);
	ASSERT_EQ(0, munmap(hint, SZ_4M));
	vaddr = mmap(hint, SZ_4M, PROT_READ, MAP_SHARED, s->device->fd, s->bar->info.offset);
	EXPECT_EQ(hint, vaddr);

	/* Where there is none it is no worse than no hint. */
	hint = vaddr;
	vaddr = mmap(hint, SZ_4M, PROT_READ, MAP_SHARED, s->device->fd, s->bar->info.offset);
	ASSERT_NE(MAP_FAILED, vaddr);
	EXPECT_TRUE(IS_ALIGNED((unsigned long)vaddr, SZ_2M));
	dmabuf_unmap(vaddr, SZ_4M);

	vaddr = mmap(hint, SZ_4M, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, s->device->fd,
		     s->bar->info.offset);
	EXPECT_EQ(MAP_FAILED, vaddr);
	EXPECT_EQ(EEXIST, errno);
	dmabuf_unmap(hint, SZ_4M);

	if (s->bar->info.size < 2ULL * SZ_1G)
		return;
	vaddr = mmap(NULL, 2ULL * SZ_1G, PROT_READ, MAP_SHARED, s->device->fd,
		     s->bar->info.offset);
	ASSERT_NE(MAP_FAILED, vaddr);
	EXPECT_TRUE(IS_ALIGNED((unsigned long)vaddr, SZ_1G));
	dmabuf_unmap(vaddr, 2ULL * SZ_1G);
}

/* The same for pages of 1 GiB, if the BAR is made for them. */
TEST_F(vfio_pci_bar_map_one_mode, gigantic_pages)
{
	struct setup *s = &self->s;
	u64 size = s->bar->info.size;
	void *vaddr;

	if (size < 2ULL * SZ_1G)
		SKIP(return, "BAR too small for 1 GiB pages in and around a hole (size=0x%lx)",
		     size);
	if (__page_mapping_count(s->bar->vaddr, SZ_1G, SZ_1G) == -EOPNOTSUPP)
		SKIP(return, "Cannot look at page tables");
	if (!has_huge_pages(SZ_1G))
		SKIP(return, "The kernel or the CPU has no 1 GiB pages");

	mmio_read32(s->bar->vaddr);
	mmio_read32(s->bar->vaddr + size - s->page_size);
	EXPECT_EQ(2, __page_mapping_count(s->bar->vaddr, size, SZ_1G));

	/* All of it goes, also beyond the first one. */
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	EXPECT_EQ(0, __page_mapping_count_all(s->bar->vaddr, size));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);

	/* A page of 1 GiB does not fit in any more. */
	vaddr = mmap_reserve(SZ_1G, SZ_1G, SZ_2M);
	ASSERT_EQ(vaddr, mmap(vaddr, SZ_1G, PROT_READ, MAP_SHARED | MAP_FIXED, s->device->fd,
			      s->bar->info.offset + SZ_2M));
	mmio_read32(vaddr);
	EXPECT_EQ(1, __page_mapping_count_all(vaddr, SZ_1G));
	EXPECT_EQ(1, __page_mapping_count(vaddr, SZ_1G, SZ_2M));
	dmabuf_unmap(vaddr, SZ_1G);
}

struct waker {
	struct vfio_pci_device *device;
	pthread_t thread;
	bool done;
	int result;
};

static void *wake(void *arg)
{
	struct waker *waker = arg;

	waker->result = __vfio_pci_d3hot_exit(waker->device);
	WRITE_ONCE(waker->done, true);
	return NULL;
}

struct toucher {
	pthread_t thread;
	void *vaddr;
	int result;
};

static void *touch(void *arg)
{
	struct toucher *toucher = arg;
	u32 value;

	toucher->result = __mmio_read32(toucher->vaddr, &value);
	return NULL;
}

/*
 * Touch a map at two places while the device wakes up, first when the process may
 * have huge pages and then when it may not. Returns whether both have met.
 *
 * Not the other way round: the small page waits with the lock of the mm held, and
 * prctl() for that lock.
 */
static bool touch_both(struct setup *s, void *vaddr)
{
	struct waker waker = { .device = s->device };
	struct toucher touchers[] = {
		{ .vaddr = vaddr },
		{ .vaddr = vaddr + s->page_size },
	};
	bool met;
	int i;

	VFIO_ASSERT_EQ(__vfio_pci_d3hot_entry(s->device), 0);
	VFIO_ASSERT_EQ(pthread_create(&waker.thread, NULL, wake, &waker), 0);
	/* It takes ten milliseconds, by the standard. */
	usleep(2000);
	for (i = 0; i < ARRAY_SIZE(touchers); i++) {
		VFIO_ASSERT_EQ(prctl(PR_SET_THP_DISABLE, i, 0, 0, 0), 0);
		VFIO_ASSERT_EQ(pthread_create(&touchers[i].thread, NULL, touch, &touchers[i]), 0);
		usleep(1000);
	}
	met = !READ_ONCE(waker.done);

	VFIO_ASSERT_EQ(pthread_join(waker.thread, NULL), 0);
	VFIO_ASSERT_EQ(waker.result, 0);
	for (i = 0; i < ARRAY_SIZE(touchers); i++) {
		VFIO_ASSERT_EQ(pthread_join(touchers[i].thread, NULL), 0);
		/* The access was before the wake-up if that had not begun. */
		met &= !touchers[i].result;
	}
	VFIO_ASSERT_EQ(prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0), 0);
	return met;
}

/*
 * Two threads touch the same 2 MiB, one is to have a huge page and the other one a
 * small page. The access of the second one works, too. A kernel that does not
 * expect that says so in its log, or stops.
 */
TEST_F(vfio_pci_bar_map_one_mode, huge_page_meets_small)
{
	struct setup *s = &self->s;
	void *vaddr;
	int met = 0;
	int i;

	if (s->bar->info.size < SZ_2M)
		SKIP(return, "BAR too small (size=0x%llx)", s->bar->info.size);
	if (!has_huge_pages(SZ_2M))
		SKIP(return, "The kernel has no huge pages");
	if (!vfio_pci_find_capability(s->device, PCI_CAP_ID_PM))
		SKIP(return, "Device has no power management");
	/* Others retry the fault as if memory were short. */
	if (!mapped_by_dmabufs(s))
		SKIP(return, "The kernel does not map BARs by DMABUFs");

	for (i = 0; i < 50 && met < 4; i++) {
		/* A new one has no page table yet. */
		vaddr = mmap_reserve(SZ_2M, SZ_2M, 0);
		ASSERT_EQ(vaddr, mmap(vaddr, SZ_2M, PROT_READ, MAP_SHARED | MAP_FIXED,
				      s->device->fd, s->bar->info.offset));
		met += touch_both(s, vaddr);
		mmio_read32(vaddr);
		mmio_read32(vaddr + s->page_size);
		dmabuf_unmap(vaddr, SZ_2M);
	}
	if (!met)
		SKIP(return, "The machine is too slow to touch a device that wakes up");
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
