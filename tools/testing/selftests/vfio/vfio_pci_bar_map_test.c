// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test what a userspace driver may rely on when it maps BARs through the
 * device fd: which spans can be mapped, what the kernel tells about them, what
 * can be done to them afterwards, and when they are alive.
 *
 * All of this is old behaviour, whatever the kernel maps BARs by.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/align.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

/* Position of the region index in a file offset, an ABI by custom. */
#define REGION_SHIFT		40

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

FIXTURE_SETUP(vfio_pci_bar_map_test)
{
	struct setup *s = &self->s;
	int i;

	s->page_size = getpagesize();
	s->iommu = iommu_init(variant->iommu_mode);
	s->device = vfio_pci_device_init(device_bdf, s->iommu);

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_pci_bar *bar = &s->device->bars[i];

		if (!bar->vaddr || bar->info.size < s->page_size)
			continue;

		pages_map(s, i);

		if (!s->bar || bar->info.size > s->bar->info.size)
			s->bar = bar;
	}

	if (!s->bar)
		SKIP(return, "No mappable BAR found on device %s", device_bdf);
}

FIXTURE_TEARDOWN(vfio_pci_bar_map_test)
{
	struct setup *s = &self->s;
	int i;

	for (i = 0; i < s->nr_pages; i++) {
		if (s->pages[i].vaddr)
			dmabuf_unmap(s->pages[i].vaddr, s->page_size);
	}

	vfio_pci_device_cleanup(s->device);
	iommu_cleanup(s->iommu);
}

TEST_F(vfio_pci_bar_map_test, every_bar_and_offset)
{
	struct setup *s = &self->s;
	int i;

	ASSERT_EQ(0, count_unexpected(s, 0));

	if (vfio_pci_ram_bar(s->device) < 0)
		SKIP(return, "No BAR with RAM: whether it is the right page, cannot be told");

	marks_write(s);

	for (i = 0; i < s->nr_pages; i++) {
		struct bar_page *page = &s->pages[i];
		struct vfio_pci_bar *bar = &s->device->bars[page->bar];
		u32 value;

		if (page->bar != vfio_pci_ram_bar(s->device))
			continue;

		ASSERT_EQ(page_mark(page), mmio_read32(bar->vaddr + page->offset));
		ASSERT_EQ(sizeof(value), pread(s->device->fd, &value, sizeof(value),
					       bar->info.offset + page->offset));
		ASSERT_EQ(page_mark(page), value);
	}
}

TEST_F(vfio_pci_bar_map_test, bad_spans)
{
	struct setup *s = &self->s;
	struct vfio_region_info *info = &s->bar->info;
	int fd = s->device->fd;
	void *vaddr;
	int i;

	ASSERT_EQ(-EINVAL, __dmabuf_map(fd, info->offset + info->size, s->page_size,
					PROT_READ, &vaddr));
	ASSERT_EQ(-EINVAL, __dmabuf_map(fd, info->offset, info->size + s->page_size,
					PROT_READ, &vaddr));
	ASSERT_EQ(-EINVAL, __dmabuf_map(fd, info->offset + info->size - s->page_size,
					2 * s->page_size, PROT_READ, &vaddr));

	vaddr = mmap(NULL, s->page_size, PROT_READ, MAP_PRIVATE, fd, info->offset);
	ASSERT_EQ(MAP_FAILED, vaddr);
	ASSERT_EQ(EINVAL, errno);

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		info = &s->device->bars[i].info;
		if (info->flags & VFIO_REGION_INFO_FLAG_MMAP)
			continue;

		ASSERT_EQ(-EINVAL, __dmabuf_map(fd, info->offset, s->page_size,
						PROT_READ, &vaddr));
	}
}

TEST_F(vfio_pci_bar_map_test, bad_regions)
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

TEST_F(vfio_pci_bar_map_test, proc_maps_name)
{
	struct setup *s = &self->s;
	char name[64], *cdev;
	struct vma_info info;
	int i;

	vma_info_get(s->bar->vaddr, &info);
	if (strncmp(info.name, "/dmabuf:", strlen("/dmabuf:")))
		SKIP(return, "The kernel does not map BARs by DMABUFs: %s", info.name);

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
TEST_F(vfio_pci_bar_map_test, vma_flags)
{
	struct setup *s = &self->s;

	ASSERT_TRUE(vma_has_flag(s->bar->vaddr, "io"));
	ASSERT_TRUE(vma_has_flag(s->bar->vaddr, "pf"));
	ASSERT_TRUE(vma_has_flag(s->bar->vaddr, "de"));
	ASSERT_TRUE(vma_has_flag(s->bar->vaddr, "dd"));
	ASSERT_FALSE(vma_has_flag(s->bar->vaddr, "dc"));
}

/* The character device lies where programs may be executed, the other does not. */
TEST_F(vfio_pci_bar_map_test, exec)
{
	struct setup *s = &self->s;
	bool cdev = !s->iommu->mode->container_path;
	void *vaddr;
	int r;

	r = __dmabuf_map(s->device->fd, s->bar->info.offset, s->page_size,
			 PROT_READ | PROT_EXEC, &vaddr);
	ASSERT_EQ(cdev ? 0 : -EPERM, r);
	if (!r)
		dmabuf_unmap(vaddr, s->page_size);
}

TEST_F(vfio_pci_bar_map_test, munmap_hole)
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
	ASSERT_EQ(0, __mmio_read32(vaddr, &value));
	ASSERT_EQ(0, __mmio_read32(vaddr + hole - s->page_size, &value));
	ASSERT_EQ(0, __mmio_read32(vaddr + hole + s->page_size, &value));

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

TEST_F(vfio_pci_bar_map_test, mprotect_split)
{
	struct setup *s = &self->s;
	u64 size = s->bar->info.size;
	u64 middle = ALIGN_DOWN(size / 2, s->page_size);
	void *vaddr;
	u32 value;

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

	dmabuf_unmap(vaddr, size);
}

TEST_F(vfio_pci_bar_map_test, mremap_move)
{
	struct setup *s = &self->s;
	struct bar_page *page = &s->pages[s->nr_pages - 1];
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
	ASSERT_EQ(0, marks_lost(s));

	vma_info_get(new, &info);
	ASSERT_EQ(s->device->bars[page->bar].info.offset + page->offset, info.offset);

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-EFAULT, __mmio_read32(new, &value));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, marks_lost(s));
}

TEST_F(vfio_pci_bar_map_test, mremap_resize)
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

	/* Nor is there a second map by mremap()'s old trick. */
	ASSERT_EQ(MAP_FAILED, mremap(vaddr, 0, s->page_size, MREMAP_MAYMOVE));

	dmabuf_unmap(vaddr, s->page_size);
}

TEST_F(vfio_pci_bar_map_test, madvise_refused)
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
		MADV_DODUMP,
	};
	int i;

	for (i = 0; i < ARRAY_SIZE(advices); i++) {
		EXPECT_EQ(-1, madvise(s->bar->vaddr, s->page_size, advices[i]));
		EXPECT_EQ(EINVAL, errno) {
			TH_LOG("advice %d", advices[i]);
		}
	}
}

TEST_F(vfio_pci_bar_map_test, foreign_access_refused)
{
	struct setup *s = &self->s;
	struct iovec remote, local;
	u32 value;
	int fd;

	local = (struct iovec) { .iov_base = &value, .iov_len = sizeof(value) };
	remote = (struct iovec) { .iov_base = s->bar->vaddr, .iov_len = sizeof(value) };

	ASSERT_EQ(-1, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	ASSERT_EQ(EFAULT, errno);

	fd = open("/proc/self/mem", O_RDONLY);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(-1, pread(fd, &value, sizeof(value), (off_t)s->bar->vaddr));
	ASSERT_EQ(EIO, errno);
	ASSERT_EQ(0, close(fd));
}

TEST_F(vfio_pci_bar_map_test, remap_file_pages)
{
	struct setup *s = &self->s;
	struct bar_page *page = &s->pages[0];
	struct vma_info before, after;

	if (s->device->bars[page->bar].info.size < 2 * s->page_size)
		SKIP(return, "BAR too small");

	vma_info_get(page->vaddr, &before);
	if (strncmp(before.name, "/dmabuf:", strlen("/dmabuf:")))
		SKIP(return, "The kernel does not map BARs by DMABUFs: %s", before.name);

	/* Must not map what the caller can not have meant, wherever that is. */
	ASSERT_EQ(-1, remap_file_pages(page->vaddr, s->page_size, 0,
				       before.offset / s->page_size + 1, 0));
	ASSERT_EQ(-1, remap_file_pages(page->vaddr, s->page_size, 0, 0x1000000, 0));

	/* It unmaps before it asks: either all is as before or all is gone. */
	if (!__vma_info_get(page->vaddr, &after))
		ASSERT_EQ(before.offset, after.offset);
}

static int child_access(void *vaddr, int commands)
{
	char command;
	u32 value;
	int r;

	while (read(commands, &command, 1) == 1) {
		r = __mmio_read32(vaddr, &value);
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

TEST_F(vfio_pci_bar_map_test, fork)
{
	struct setup *s = &self->s;
	int sockets[2], status;
	pid_t pid;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets));

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		close(sockets[1]);
		_exit(child_access(s->bar->vaddr, sockets[0]));
	}
	close(sockets[0]);

	ASSERT_EQ(0, child_ask(sockets[1]));
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-EFAULT, child_ask(sockets[1]));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, child_ask(sockets[1]));

	/* The child's map stays without the parent's. */
	dmabuf_unmap(s->bar->vaddr, s->bar->info.size);
	s->bar->vaddr = NULL;
	ASSERT_EQ(0, child_ask(sockets[1]));

	close(sockets[1]);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_EQ(0, status);
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

/* mmap() never fails for the state that the device is in, only access does. */
TEST_F(vfio_pci_bar_map_test, map_while_disabled)
{
	struct setup *s = &self->s;
	void *vaddr;
	u32 value;

	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, __dmabuf_map(s->device->fd, s->bar->info.offset, s->page_size,
				  PROT_READ, &vaddr));
	ASSERT_EQ(-EFAULT, __mmio_read32(vaddr, &value));
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	ASSERT_EQ(0, __mmio_read32(vaddr, &value));
	dmabuf_unmap(vaddr, s->page_size);
}

TEST_F(vfio_pci_bar_map_test, reset)
{
	struct setup *s = &self->s;

	if (!(s->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "Device does not support reset");

	ASSERT_EQ(0, count_unexpected(s, 0));
	vfio_pci_device_reset(s->device);
	ASSERT_EQ(0, count_unexpected(s, 0));
}

static u8 find_capability(struct vfio_pci_device *device, u8 id)
{
	u8 pos = vfio_pci_config_readb(device, PCI_CAPABILITY_LIST);

	while (pos && vfio_pci_config_readb(device, pos + PCI_CAP_LIST_ID) != id)
		pos = vfio_pci_config_readb(device, pos + PCI_CAP_LIST_NEXT);

	return pos;
}

TEST_F(vfio_pci_bar_map_test, d3hot)
{
	struct setup *s = &self->s;
	u8 pm = find_capability(s->device, PCI_CAP_ID_PM);
	u16 pmcsr;

	if (!pm)
		SKIP(return, "Device has no power management");

	marks_write(s);
	pmcsr = vfio_pci_config_readw(s->device, pm + PCI_PM_CTRL);
	pmcsr &= ~PCI_PM_CTRL_STATE_MASK;

	vfio_pci_config_writew(s->device, pm + PCI_PM_CTRL, pmcsr | 3);
	ASSERT_EQ(0, count_unexpected(s, -EFAULT));

	vfio_pci_config_writew(s->device, pm + PCI_PM_CTRL, pmcsr);
	ASSERT_EQ(0, count_unexpected(s, 0));

	if (pmcsr & PCI_PM_CTRL_NO_SOFT_RESET)
		ASSERT_EQ(0, marks_lost(s));
}

TEST_F(vfio_pci_bar_map_test, low_power)
{
	struct setup *s = &self->s;
	int fd = s->device->fd;

	if (!vfio_pci_has_feature(s->device, VFIO_DEVICE_FEATURE_SET |
						VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY))
		SKIP(return, "Device has no low power state");

	ASSERT_EQ(0, vfio_device_feature_ioctl(fd, VFIO_DEVICE_FEATURE_SET |
						   VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, NULL, 0));
	EXPECT_EQ(0, count_unexpected(s, -EFAULT));

	ASSERT_EQ(0, vfio_device_feature_ioctl(fd, VFIO_DEVICE_FEATURE_SET |
						   VFIO_DEVICE_FEATURE_LOW_POWER_EXIT, NULL, 0));
	ASSERT_EQ(0, count_unexpected(s, 0));
}

/* A live map keeps the device open: it works on, and nobody else gets in. */
TEST_F(vfio_pci_bar_map_test, fd_closed)
{
	struct setup *s = &self->s;
	int i;

	ASSERT_EQ(0, close(s->device->fd));
	ASSERT_EQ(0, count_unexpected(s, 0));

	if (s->iommu->mode->container_path) {
		__vfio_pci_group_get_device_fd(s->device, device_bdf, NULL);
		ASSERT_GE(s->device->fd, 0);
		return;
	}

	vfio_pci_cdev_open(s->device, device_bdf);
	ASSERT_NE(0, __vfio_device_bind_iommufd(s->device->fd, s->iommu->iommufd, NULL));

	for (i = 0; i < s->nr_pages; i++) {
		dmabuf_unmap(s->pages[i].vaddr, s->page_size);
		s->pages[i].vaddr = NULL;
	}

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
}

TEST_F(vfio_pci_bar_map_test, huge_pages)
{
	struct setup *s = &self->s;
	u64 size = s->bar->info.size;
	u64 offset;
	long count;

	if (size < SZ_2M)
		SKIP(return, "BAR too small (size=0x%lx)", size);

	/* Leave 1 GiB pages aside, which the whole map might get. */
	size = min_t(u64, size, SZ_64M);
	if (!IS_ALIGNED((u64)s->bar->vaddr, SZ_2M))
		SKIP(return, "BAR is not mapped at a multiple of 2 MiB");

	count = __page_mapping_count(s->bar->vaddr, size, SZ_2M);
	if (count == -EOPNOTSUPP)
		SKIP(return, "Cannot look at page tables");
	ASSERT_EQ(0, count);

	for (offset = 0; offset < size; offset += SZ_2M)
		mmio_read32(s->bar->vaddr + offset);

	count = __page_mapping_count(s->bar->vaddr, size, SZ_2M) +
		__page_mapping_count(s->bar->vaddr, size, SZ_1G) * (SZ_1G / SZ_2M);
	if (!count && access("/sys/kernel/mm/transparent_hugepage", F_OK))
		SKIP(return, "The kernel has no huge pages");
	ASSERT_EQ(size / SZ_2M, count);
	ASSERT_EQ(0, __page_mapping_count(s->bar->vaddr, size, SZ_4K));
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
