// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test what happens to a DMABUF of a BAR, or to a map of the BAR, while something else
 * happens to it, or to the device.
 *
 * Each test is a pair of actions that are at work at once, in two threads, many times.
 * One of them begins first. The other one does so after a time that is not longer than
 * what the first one takes when it is alone, and with real-time priority: on one CPU it
 * interrupts the first one wherever that has got to, on several ones both go on. In two
 * rounds at first they come one after the other, which tells how long each takes.
 *
 * $VFIO_SELFTESTS_ROUNDS says how often, $VFIO_SELFTESTS_SEED where the times begin.
 * The memory of the BAR is written to, such that a page tells whether it is the right
 * one, and whether it may be read.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <linux/dma-buf.h>
#include <linux/iommufd.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "lib/drivers/edu/registers.h"

#include "kselftest_harness.h"

#define FEATURE_REVOKE	(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE)
#define FEATURE_MEMATTR	(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR)
#define UNCACHED	VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR_NC
#define WRITE_COMBINING	VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR_WC
#define NSEC_PER_SEC	1000000000ULL
#define RW		(IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE)

/* Of a test, each of which may take the time of a reset, and those without a meeting. */
#define NR_ROUNDS	10
#define NR_ALONE	2

/* If none of them has had both at work at a time, it tries on for as long. */
#define MAX_FACTOR	5

/* What is lent, and how often one action of some does the same thing. */
#define NR_PAGES	4
#define NR_TIMES	3

/* Reads of one page by who waits for its end: some milliseconds. */
#define NR_READS	2000

/* Both threads sleep until one of them begins. */
#define HEAD_START_NS	300000

/* The first word of a page that is lent, and after it has been taken back. */
#define TAG		0x1e470000
#define SECRET		0x5ec20000

/* Behind the first word of the first page: what an eventfd writes there, and in time. */
#define RING_OFFSET	8
#define RING		0x51600000
#define RING_LIMIT_MS	10000

/* Until a device sleeps, and somebody meets that. */
#define WAKEUP_LIMIT_MS	10000

#define MAX_ERRORS	2

static const char *device_bdf;
static const char *other_bdf;

struct race {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int index;
	u64 random;

	/* What is lent: pages, or huge pages. */
	u64 page_size;
	u64 size;

	/* One that does DMA to what is lent, or NULL. */
	struct vfio_pci_device *other;
	struct iova_allocator *iova_allocator;
	struct dma_region memory;
	iova_t iova;

	/* Of a round: the BAR, what is lent of it, and a map of that. */
	void *bar;
	int fd;
	void *vaddr;

	/* What writes to the BAR when it is signalled. */
	struct vfio_device_ioeventfd ioeventfd;

	/* A page of registers that is lent, the same for who lends it, and what they count. */
	int frame_fd;
	void *frame;
	void *own_frame;
	u32 nr_rings;
	u32 nr_rung;

	/* What some actions leave for the look at what came of it. */
	int fds[NR_TIMES];
	void *pieces[NR_PAGES];
	pid_t child;
	int pipe[2];
};

/* One of the two: what it does, when, and what became of it. */
struct side {
	struct race *race;
	int (*act)(struct race *r);
	pthread_barrier_t *barrier;
	bool urgent;
	u64 begin_ns;
	u64 end_ns;
	int result;

	/* How long it takes if it is alone. */
	u64 span_ns;
};

FIXTURE(vfio_pci_dmabuf_race) {
	struct race r;
};

FIXTURE_VARIANT(vfio_pci_dmabuf_race) {
	/* 0 or -errno, -EOPNOTSUPP if the device or the kernel lacks what it takes. */
	int (*one)(struct race *r);
	int (*two)(struct race *r);

	/* What has to be so when both are done, by what the first one returned. */
	void (*check)(struct race *r, int result);

	/* Before they begin, if there is something to do. */
	void (*prepare)(struct race *r);

	/* What the first one may say other than 0. The second one may not. */
	int errors[MAX_ERRORS];
	bool huge;
};

static u64 now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * NSEC_PER_SEC + now.tv_nsec;
}

static u64 random_below(struct race *r, u64 limit)
{
	r->random = r->random * 6364136223846793005ULL + 1442695040888963407ULL;
	return (r->random >> 33) % limit;
}

/* --- What is lent, and what it is good for --- */

/* Each page starts with a value, and its number in it. */
static void bar_write(struct race *r, u32 value)
{
	int i;

	for (i = 0; i < NR_PAGES; i++)
		mmio_write32(r->bar + i * r->page_size, value + i);
}

static void *bar_map(struct race *r)
{
	return dmabuf_map(r->device->fd, r->device->bars[r->index].info.offset, r->size);
}

/* Whoever reads, finds what is meant for him or nothing at all: 0 or -errno. */
static int read_page(struct race *r, void *vaddr, int page)
{
	u32 value;
	int ret;

	ret = __mmio_read32(vaddr, &value);
	if (!ret)
		VFIO_ASSERT_EQ(value, TAG + page, "page %d of what is lent\n", page);
	return ret;
}

static int read_pages(struct race *r, void *vaddr)
{
	int i, ret = 0;

	for (i = 0; !ret && i < NR_PAGES; i++)
		ret = read_page(r, vaddr + i * r->page_size, i);
	return ret;
}

/* Nobody reads it, whatever is there. */
static void expect_dead_page(void *vaddr)
{
	u32 value;

	VFIO_ASSERT_EQ(__mmio_read32(vaddr, &value), -EFAULT, "a page that is_dead()\n");
}

static bool is_dead(struct race *r, void *vaddr)
{
	u32 value;
	int i;

	for (i = 0; i < NR_PAGES; i++) {
		if (__mmio_read32(vaddr + i * r->page_size, &value) != -EFAULT)
			return false;
	}

	return true;
}

static void expect_dead(struct race *r, void *vaddr)
{
	VFIO_ASSERT_TRUE(is_dead(r, vaddr));
}

static void expect_alive(struct race *r, void *vaddr)
{
	VFIO_ASSERT_EQ(read_pages(r, vaddr), 0);
}

/* A DMABUF by itself: can it be mapped, and is there something behind it? */
static void expect_alive_fd(struct race *r, int fd)
{
	void *vaddr = dmabuf_map(fd, 0, r->size);

	expect_alive(r, vaddr);
	dmabuf_unmap(vaddr, r->size);
}

static void expect_dead_fd(struct race *r, int fd)
{
	void *vaddr;

	expect_errno(ENODEV, __dmabuf_map(fd, 0, r->size, PROT_READ, &vaddr));
}

static int import_fd(struct race *r, int fd)
{
	return __iommu_map_dmabuf(r->iommu, fd, 0, r->size, r->iova, RW);
}

static int import(struct race *r)
{
	return import_fd(r, r->fd);
}

static void unimport(struct race *r)
{
	iommu_unmap_dmabuf(r->iommu, r->iova, r->size);
}

/* What the other device gets from there: the first word, or something else. */
static u32 dma_read(struct race *r, int *result)
{
	u32 *first = r->memory.vaddr;

	*first = 0;
	*result = vfio_pci_driver_memcpy(r->other, r->iova, r->memory.iova, sizeof(u64));
	return *first;
}

static void expect_import_alive(struct race *r)
{
	int result;

	if (!r->other)
		return;
	VFIO_ASSERT_EQ(dma_read(r, &result), TAG);
	VFIO_ASSERT_EQ(result, 0);
}

/* Whether the device says that it failed is up to the device. */
static void expect_import_dead(struct race *r, u32 there)
{
	int result;

	if (r->other)
		VFIO_ASSERT_NE(dma_read(r, &result), there, "DMA to what is revoked\n");
}

/* --- Actions of those who were lent it --- */

static int read_lent(struct race *r)
{
	void *vaddr;
	int i, ret;

	for (i = 0; i < NR_TIMES; i++) {
		/* What is there before may go, and may come back too early. */
		ret = read_pages(r, r->vaddr);
		if (ret)
			return ret;

		ret = __dmabuf_map(r->fd, 0, r->size, PROT_READ, &vaddr);
		if (ret)
			return ret;

		ret = read_pages(r, vaddr);
		dmabuf_unmap(vaddr, r->size);
		if (ret)
			return ret;
	}

	return 0;
}

static int read_mapped(struct race *r)
{
	return read_pages(r, r->vaddr);
}

/* Who has noticed the end of what he was lent cannot map it anew at that moment. */
static int read_until_gone(struct race *r)
{
	void *vaddr;
	int i, ret = 0;

	for (i = 0; !ret && i < NR_READS; i++)
		ret = read_page(r, r->vaddr, 0);
	if (ret)
		expect_errno(ENODEV, __dmabuf_map(r->fd, 0, r->size, PROT_READ, &vaddr));
	return ret;
}

/* The device counts them as well. */
static int ring_frame(struct race *r)
{
	int ret = 0;

	if (!r->frame)
		return -EOPNOTSUPP;
	for (r->nr_rings = 0; r->nr_rings < NR_READS; r->nr_rings++) {
		ret = __mmio_write32(r->frame + EDU_FRAME_DOORBELL, r->nr_rings);
		if (ret)
			break;
	}

	return ret;
}

/* The same of a BAR, by whoever has the device. */
static int read_bar(struct race *r)
{
	void *vaddr;
	int i, ret;

	for (i = 0; i < NR_TIMES; i++) {
		vaddr = bar_map(r);
		ret = read_pages(r, vaddr);
		dmabuf_unmap(vaddr, r->size);
		if (ret)
			return ret;
	}

	return 0;
}

/* Without looking at what is there. */
static int map_lent(struct race *r)
{
	int i, ret = 0;

	for (i = 0; !ret && i < NR_TIMES; i++)
		ret = __dmabuf_map(r->fd, 0, r->size, PROT_READ, &r->pieces[i]);
	if (ret)
		r->pieces[i - 1] = NULL;
	return ret;
}

/* What stays mapped in the end is what the last one of them has mapped. */
static int import_lent(struct race *r)
{
	int i, ret;

	for (i = 0; i < NR_TIMES; i++) {
		ret = import(r);
		if (ret)
			return ret;
		if (i < NR_TIMES - 1)
			unimport(r);
	}

	return 0;
}

/* The kernel writes to the BAR by itself, at once or when it may. */
static int ring(struct race *r)
{
	u64 value = 1;

	return write(r->ioeventfd.fd, &value, sizeof(value)) == sizeof(value) ? 0 : -errno;
}

/* Cut it into pieces, one of which moves away. */
static int split_map(struct race *r)
{
	u64 size = r->page_size;
	void *target;

	r->pieces[0] = r->vaddr;
	r->pieces[1] = r->vaddr + size;
	VFIO_ASSERT_EQ(mprotect(r->pieces[1], size, PROT_READ), 0);
	VFIO_ASSERT_EQ(munmap(r->vaddr + 2 * size, size), 0);

	target = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(target, MAP_FAILED);
	target = mremap(r->vaddr + 3 * size, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, target);
	VFIO_ASSERT_NE(target, MAP_FAILED);
	r->pieces[3] = target;

	r->vaddr = NULL;
	return 0;
}

/* And then away with all of them. */
static int cut_up(struct race *r)
{
	int i;

	split_map(r);
	for (i = 0; i < NR_PAGES; i++) {
		if (r->pieces[i])
			dmabuf_unmap(r->pieces[i], r->page_size);
	}

	return 0;
}

/* A child that has the maps, looks at one when it is told to, and ends then. */
static int fork_child(struct race *r)
{
	pid_t pid;
	char go;

	VFIO_ASSERT_EQ(pipe(r->pipe), 0);

	/* Not process_fork(): what began it may end, and that was a thread. */
	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (!pid) {
		close(r->pipe[1]);
		if (read(r->pipe[0], &go, 1) != 1)
			_exit(KSFT_FAIL);
		_exit(is_dead(r, r->vaddr) ? KSFT_PASS : KSFT_FAIL);
	}

	r->child = pid;
	VFIO_ASSERT_EQ(close(r->pipe[0]), 0);
	return 0;
}

/* Whoever only has the map, in a process of his own, and will not stop reading. */
static void start_reader(struct race *r)
{
	char ready;

	VFIO_ASSERT_EQ(pipe(r->pipe), 0);
	r->child = process_fork();
	if (!r->child) {
		if (read_pages(r, r->vaddr) || write(r->pipe[1], "", 1) != 1)
			_exit(KSFT_FAIL);
		while (!read_pages(r, r->vaddr))
			;
		_exit(KSFT_PASS);
	}

	VFIO_ASSERT_EQ(read(r->pipe[0], &ready, 1), 1);
	VFIO_ASSERT_EQ(close(r->pipe[0]), 0);
	VFIO_ASSERT_EQ(close(r->pipe[1]), 0);
}

/* If it was not killed then it has found the end of what it was lent. */
static int kill_reader(struct race *r)
{
	int status;

	VFIO_ASSERT_EQ(kill(r->child, SIGKILL), 0);
	VFIO_ASSERT_EQ(waitpid(r->child, &status, 0), r->child);
	VFIO_ASSERT_TRUE(!status || (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL),
			 "status 0x%x\n", status);
	return 0;
}

/* Let go of the last map and the last fd, of which one was not good for much. */
static int release_lent(struct race *r)
{
	char path[32];
	int pin;

	snprintf_assert(path, sizeof(path), "/proc/self/fd/%d", r->fd);
	pin = open(path, O_PATH | O_CLOEXEC);
	VFIO_ASSERT_GE(pin, 0);

	dmabuf_unmap(r->vaddr, r->size);
	VFIO_ASSERT_EQ(close(r->fd), 0);
	VFIO_ASSERT_EQ(close(pin), 0);
	r->vaddr = NULL;
	r->fd = -1;
	return 0;
}

/* Read a file of /proc or debugfs that need not be there. */
static void look_at(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char text[1024];

	if (fd < 0)
		return;
	while (read(fd, text, sizeof(text)) > 0)
		;
	close(fd);
}

/* All that shows a DMABUF, or what has to do with it. */
static int look_at_lent(struct race *r)
{
	struct pollfd pollfd = { .fd = r->fd, .events = POLLIN | POLLOUT };
	char path[32];
	int i;

	snprintf_assert(path, sizeof(path), "/proc/self/fdinfo/%d", r->fd);
	for (i = 0; i < NR_TIMES; i++) {
		ioctl(pollfd.fd, DMA_BUF_SET_NAME, i & 1 ? "odd" : "even");
		look_at("/proc/self/maps");
		look_at(path);
		poll(&pollfd, 1, 0);
		look_at("/sys/kernel/debug/dma_buf/bufinfo");
	}

	return 0;
}

/* --- Actions of the one who lends it --- */

/* Whoever is told that it is revoked can rely on it at that moment. */
static int revoke_only(struct race *r)
{
	int ret = __vfio_pci_dmabuf_revoke(r->device, r->fd);

	if (!ret || ret == -EBADFD)
		expect_dead(r, r->vaddr);
	return ret;
}

/* From then on the memory is for somebody else. */
static int take_back(struct race *r)
{
	int ret = revoke_only(r);

	if (!ret) {
		expect_import_dead(r, TAG);
		bar_write(r, SECRET);
		expect_import_dead(r, SECRET);
	}

	return ret;
}

/* The map is somebody else's to look at, as it may be in pieces by now. */
static int take_back_pieces(struct race *r)
{
	int ret = __vfio_pci_dmabuf_revoke(r->device, r->fd);

	if (!ret)
		bar_write(r, SECRET);
	return ret;
}

static u32 frame_count(struct race *r)
{
	return mmio_read32(r->own_frame + EDU_FRAME_DOORBELL_COUNT);
}

static int take_back_frame(struct race *r)
{
	int ret;

	if (!r->frame)
		return -EOPNOTSUPP;
	ret = __vfio_pci_dmabuf_revoke(r->device, r->frame_fd);
	r->nr_rung = frame_count(r) - r->nr_rung;
	return ret;
}

static int memory_off(struct race *r)
{
	return __vfio_pci_memory_disable(r->device);
}

static void memory_on(struct race *r)
{
	VFIO_ASSERT_EQ(__vfio_pci_memory_enable(r->device), 0);
}

static int memory_off_and_on(struct race *r)
{
	return __vfio_pci_memory_disable(r->device) ?: __vfio_pci_memory_enable(r->device);
}

static int d3hot_and_back(struct race *r)
{
	return __vfio_pci_d3hot_entry(r->device) ?: __vfio_pci_d3hot_exit(r->device);
}

/* An access in between by a call of the driver wakes it up for a moment. */
static int low_power_and_back(struct race *r)
{
	int ret = __vfio_pci_low_power_entry(r->device);

	if (ret)
		return ret;

	vfio_pci_wait_suspended(r->device);
	return __vfio_pci_low_power_exit(r->device);
}

/* The first call of the driver, by whomever, that finds it asleep wakes it up for good. */
static int low_power_and_wakeup(struct race *r)
{
	struct pollfd wakeup = { .fd = eventfd(0, EFD_CLOEXEC), .events = POLLIN };
	u64 end = now_ns() + WAKEUP_LIMIT_MS * (NSEC_PER_SEC / 1000);
	int ret;

	VFIO_ASSERT_GE(wakeup.fd, 0);
	ret = __vfio_pci_low_power_entry_with_wakeup(r->device, wakeup.fd);
	while (!ret && !poll(&wakeup, 1, 1)) {
		VFIO_ASSERT_LT(now_ns(), end, "It stays awake\n");
		vfio_pci_config_readw(r->device, PCI_VENDOR_ID);
	}

	VFIO_ASSERT_EQ(close(wakeup.fd), 0);
	return ret;
}

static int reset(struct race *r)
{
	int ret;

	/* Somebody else may be at it in sysfs. */
	do {
		ret = __vfio_pci_device_reset(r->device);
	} while (ret == -EAGAIN);

	return ret;
}

static int hot_reset(struct race *r)
{
	return __vfio_pci_device_hot_reset(r->device);
}

/* Where no map of the BAR is left this is the end of what the device was open for. */
static int close_device(struct race *r)
{
	dmabuf_unmap(r->bar, r->size);
	VFIO_ASSERT_EQ(close(r->device->fd), 0);
	r->bar = NULL;
	return 0;
}

static int export(struct race *r)
{
	struct vfio_region_dma_range range = { .length = r->size };

	return __vfio_pci_dmabuf_export(r->device, r->index, O_RDWR | O_CLOEXEC, &range, 1);
}

static int export_several(struct race *r)
{
	int i;

	for (i = 0; i < NR_TIMES; i++) {
		r->fds[i] = export(r);
		if (r->fds[i] < 0)
			return r->fds[i];
	}

	return 0;
}

static int change_attribute(struct race *r)
{
	int i, ret;

	for (i = 0; i < NR_TIMES; i++) {
		ret = __vfio_pci_dmabuf_memattr(r->device, r->fd, WRITE_COMBINING) ?:
		      __vfio_pci_dmabuf_memattr(r->device, r->fd, UNCACHED);
		if (ret)
			return ret;
	}

	return 0;
}

/* Of a map that is read meanwhile, and of the one that was there before. */
static int map_and_read(struct race *r)
{
	int i;

	for (i = 0; i < NR_TIMES; i++) {
		r->pieces[i] = dmabuf_map(r->fd, 0, r->size);
		expect_alive(r, r->pieces[i]);
	}

	expect_alive(r, r->vaddr);
	return 0;
}

/* --- Before and after --- */

/* All of it is in the page tables, for others to inherit or to move. */
static void touch(struct race *r)
{
	expect_alive(r, r->vaddr);
}

/* In the place of what was lent, all of it. */
static void use_bar(struct race *r)
{
	dmabuf_unmap(r->vaddr, r->size);
	r->vaddr = bar_map(r);
	touch(r);
}

static void use_ioeventfd(struct race *r)
{
	mmio_write32(r->bar + RING_OFFSET, 0);
	r->ioeventfd = (struct vfio_device_ioeventfd) {
		.argsz = sizeof(r->ioeventfd),
		.flags = VFIO_DEVICE_IOEVENTFD_32,
		.offset = r->device->bars[r->index].info.offset + RING_OFFSET,
		.data = RING,
		.fd = eventfd(0, EFD_CLOEXEC),
	};
	VFIO_ASSERT_GE(r->ioeventfd.fd, 0);
	ioctl_assert(r->device->fd, VFIO_DEVICE_IOEVENTFD, &r->ioeventfd);
}

/* Of a device that has such registers. */
static void lend_frame(struct race *r)
{
	u64 size = getpagesize();

	r->frame = NULL;
	if (!r->device->driver.ops || strcmp(r->device->driver.ops->name, "edu-plus"))
		return;

	r->own_frame = dmabuf_map(r->device->fd, r->device->bars[EDU_PLUS_BAR_FRAMES].info.offset,
				  size);
	r->frame_fd = vfio_pci_dmabuf_export_range(r->device, EDU_PLUS_BAR_FRAMES, 0, size);
	r->frame = dmabuf_map(r->frame_fd, 0, size);
	r->nr_rung = frame_count(r);
}

/* The device that reads by DMA what is lent, if there is one that can. */
static void other_init(struct race *r)
{
	struct vfio_pci_device *other;

	if (!other_bdf)
		return;

	other = vfio_pci_device_init(other_bdf, r->iommu);
	if (!other->driver.ops) {
		vfio_pci_device_cleanup(other);
		return;
	}

	dma_region_setup(r->iommu, r->iova_allocator, &r->memory, getpagesize());
	dma_region_setup(r->iommu, r->iova_allocator, &other->driver.region, SZ_2M);
	vfio_pci_driver_init(other);
	r->other = other;
}

/* It does before it is taken back. */
static void keep_import(struct race *r)
{
	VFIO_ASSERT_EQ(import(r), 0);
	expect_import_alive(r);
}

static void use_other(struct race *r)
{
	keep_import(r);
	unimport(r);
}

static void cut_off(struct race *r)
{
	expect_dead(r, r->vaddr);
	expect_dead_fd(r, r->fd);
	expect_errno(EBADFD, take_back(r));
}

/* An importer does not go by what the CPU goes by, and comes before the next revoke. */
static void revoked(struct race *r, int result)
{
	expect_errno(ENODEV, import(r));
	cut_off(r);
}

static void revoked_with_maps(struct race *r, int result)
{
	int i;

	revoked(r, result);
	for (i = 0; i < NR_TIMES; i++) {
		if (!r->pieces[i])
			continue;
		expect_dead(r, r->pieces[i]);
		dmabuf_unmap(r->pieces[i], r->size);
	}
}

static void revoked_with_import(struct race *r, int result)
{
	cut_off(r);
	/* Nor what was imported after the one who took it back had looked. */
	expect_import_dead(r, SECRET);
	if (!result)
		unimport(r);
	expect_errno(ENODEV, import(r));
}

/* Whatever has come through has come through before the end. */
static void frame_revoked(struct race *r, int result)
{
	u64 size = getpagesize();

	VFIO_ASSERT_EQ(r->nr_rung, r->nr_rings, "rings that the device has counted\n");
	expect_dead_page(r->frame);

	dmabuf_unmap(r->frame, size);
	dmabuf_unmap(r->own_frame, size);
	VFIO_ASSERT_EQ(close(r->frame_fd), 0);
}

/* The other one of them has got 0 if this one has not. */
static void revoked_once(struct race *r, int result)
{
	u32 value;

	revoked(r, result);
	VFIO_ASSERT_EQ(__mmio_read32(r->bar, &value), 0);
	VFIO_ASSERT_EQ(value, SECRET);
}

/* Not by the outage, nor undone by its end. */
static void revoked_in_outage(struct race *r, int result)
{
	revoked(r, result);
	expect_alive(r, r->bar);
}

/* What was imported before either has gone with the one or with the other. */
static void revoked_and_imported(struct race *r, int result)
{
	expect_import_dead(r, TAG);
	unimport(r);
	revoked_in_outage(r, result);
}

/* Whatever has become of the pieces, all of them are dead. */
static void revoked_in_pieces(struct race *r, int result)
{
	int i;

	expect_dead_fd(r, r->fd);
	for (i = 0; i < NR_PAGES; i++) {
		if (!r->pieces[i])
			continue;
		expect_dead_page(r->pieces[i]);
		dmabuf_unmap(r->pieces[i], r->page_size);
	}
}

static void expect_lent_dead(struct race *r)
{
	if (r->vaddr)
		expect_dead(r, r->vaddr);
	if (r->fd >= 0)
		expect_dead_fd(r, r->fd);
}

/* And who opens it next does not bring it back to life. */
static void closed(struct race *r, int result)
{
	expect_lent_dead(r);
	vfio_pci_device_reopen(r->device);
	expect_lent_dead(r);
}

static void closed_with_exports(struct race *r, int result)
{
	int i;

	for (i = 0; i < NR_TIMES; i++) {
		if (r->fds[i] < 0)
			continue;
		expect_dead_fd(r, r->fds[i]);
		expect_errno(ENODEV, import_fd(r, r->fds[i]));
		VFIO_ASSERT_EQ(close(r->fds[i]), 0);
	}

	closed(r, result);
}

static void closed_with_import(struct race *r, int result)
{
	expect_import_dead(r, TAG);
	if (!result)
		unimport(r);
	expect_errno(ENODEV, import(r));
	closed(r, result);
}

/* Whoever reads may have noticed it, or has waited for its end, and it is over. */
static void back_for_cpus(struct race *r)
{
	if (r->vaddr)
		expect_alive(r, r->vaddr);
	expect_alive(r, r->bar);
	if (r->fd >= 0)
		expect_alive_fd(r, r->fd);
}

static void expect_importable(struct race *r, int fd)
{
	VFIO_ASSERT_EQ(import_fd(r, fd), 0);
	unimport(r);
}

static void back_again(struct race *r, int result)
{
	back_for_cpus(r);
	if (r->fd >= 0)
		expect_importable(r, r->fd);
}

/* What has been asked of the kernel has been put off, and not been lost. */
static void rung(struct race *r, int result)
{
	u64 end = now_ns() + RING_LIMIT_MS * (NSEC_PER_SEC / 1000);
	int fd = r->ioeventfd.fd;

	back_again(r, result);
	while (mmio_read32(r->bar + RING_OFFSET) != RING)
		VFIO_ASSERT_LT(now_ns(), end);

	r->ioeventfd.fd = -1;
	ioctl_assert(r->device->fd, VFIO_DEVICE_IOEVENTFD, &r->ioeventfd);
	VFIO_ASSERT_EQ(close(fd), 0);
}

static void back_with_exports(struct race *r, int result)
{
	int i;

	back_again(r, result);
	for (i = 0; i < NR_TIMES; i++) {
		expect_alive_fd(r, r->fds[i]);
		expect_importable(r, r->fds[i]);
		VFIO_ASSERT_EQ(close(r->fds[i]), 0);
	}
}

/* What comes while the memory is off is no better than what was there before. */
static void gone_with_exports(struct race *r, int result)
{
	int i;

	for (i = 0; i < NR_TIMES; i++)
		expect_errno(ENODEV, import_fd(r, r->fds[i]));

	memory_on(r);
	back_with_exports(r, result);
}

/* An importer has to map it anew. */
static void back_imported(struct race *r, int result)
{
	back_for_cpus(r);
	if (!result)
		unimport(r);
	VFIO_ASSERT_EQ(import(r), 0);
	expect_import_alive(r);
	unimport(r);
}

static void expect_dead_in_child(struct race *r)
{
	VFIO_ASSERT_EQ(write(r->pipe[1], "", 1), 1);
	VFIO_ASSERT_EQ(process_exit_status(r->child), KSFT_PASS, "is_dead() in a child\n");
	VFIO_ASSERT_EQ(close(r->pipe[1]), 0);
}

static void revoked_in_child(struct race *r, int result)
{
	expect_dead_in_child(r);
	revoked(r, result);
}

static void gone_in_child(struct race *r, int result)
{
	expect_dead(r, r->vaddr);
	expect_dead_in_child(r);

	memory_on(r);
	expect_alive(r, r->vaddr);
}

static void gone_in_pieces(struct race *r, int result)
{
	int i;

	for (i = 0; i < NR_PAGES; i++) {
		if (r->pieces[i])
			expect_dead_page(r->pieces[i]);
	}

	memory_on(r);
	for (i = 0; i < NR_PAGES; i++) {
		if (!r->pieces[i])
			continue;
		VFIO_ASSERT_EQ(read_page(r, r->pieces[i], i), 0);
		dmabuf_unmap(r->pieces[i], r->page_size);
	}
}

/* A map has one attribute, that of the time when it was made. */
static void one_attribute(struct race *r, int result)
{
	u64 last = r->size - r->page_size;
	struct page_mapping begin, end;
	int i;

	for (i = 0; i < NR_TIMES; i++) {
		if (!__page_mapping_get(r->pieces[i], &begin) &&
		    !__page_mapping_get(r->pieces[i] + last, &end))
			VFIO_ASSERT_EQ(begin.type, end.type);
		dmabuf_unmap(r->pieces[i], r->size);
	}

	if (!__page_mapping_get(r->vaddr + last, &end))
		VFIO_ASSERT_EQ(end.type, MEMORY_TYPE_UNCACHED);
}

/* --- Rounds --- */

static void *side_run(void *arg)
{
	struct sched_param param = { .sched_priority = 1 };
	struct side *side = arg;
	struct timespec begin;

	/* If it is not allowed, then several CPUs do as well. */
	if (side->urgent)
		pthread_setschedparam(pthread_self(), SCHED_FIFO, &param);

	/* It is there, and it is told when to begin. */
	pthread_barrier_wait(side->barrier);
	pthread_barrier_wait(side->barrier);

	begin.tv_sec = side->begin_ns / NSEC_PER_SEC;
	begin.tv_nsec = side->begin_ns % NSEC_PER_SEC;
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &begin, NULL))
		;

	side->begin_ns = now_ns();
	side->result = side->act(side->race);
	side->end_ns = now_ns();
	return NULL;
}

static void round_begin(struct race *r)
{
	r->bar = bar_map(r);
	bar_write(r, TAG);
	r->fd = vfio_pci_dmabuf_export_range(r->device, r->index, 0, r->size);
	r->vaddr = dmabuf_map(r->fd, 0, r->size);

	/* Some pages are there before, others are not. */
	VFIO_ASSERT_EQ(read_page(r, r->vaddr, 0), 0);
	memset(r->pieces, 0, sizeof(r->pieces));
	memset(r->fds, -1, sizeof(r->fds));
}

static void round_end(struct race *r)
{
	if (r->vaddr)
		dmabuf_unmap(r->vaddr, r->size);
	if (r->fd >= 0)
		VFIO_ASSERT_EQ(close(r->fd), 0);
	if (r->bar)
		dmabuf_unmap(r->bar, r->size);
}

/* One after the other, the first one of which is measured. */
static void run_alone(struct side *first, struct side *second)
{
	u64 begin_ns = now_ns();

	first->result = first->act(first->race);
	first->span_ns = now_ns() - begin_ns;
	second->result = second->act(second->race);
}

/* Returns whether both were at work at a time. */
static bool run_both(struct race *r, struct side *first, struct side *second)
{
	u64 offset_ns = first->span_ns ? random_below(r, first->span_ns) : 0;
	pthread_barrier_t barrier;
	pthread_t threads[2];

	VFIO_ASSERT_EQ(pthread_barrier_init(&barrier, NULL, 3), 0);
	first->barrier = &barrier;
	first->urgent = false;
	second->barrier = &barrier;
	second->urgent = true;
	VFIO_ASSERT_EQ(pthread_create(&threads[0], NULL, side_run, first), 0);
	VFIO_ASSERT_EQ(pthread_create(&threads[1], NULL, side_run, second), 0);

	pthread_barrier_wait(&barrier);
	first->begin_ns = now_ns() + HEAD_START_NS;
	second->begin_ns = first->begin_ns + offset_ns;
	pthread_barrier_wait(&barrier);

	VFIO_ASSERT_EQ(pthread_join(threads[0], NULL), 0);
	VFIO_ASSERT_EQ(pthread_join(threads[1], NULL), 0);
	VFIO_ASSERT_EQ(pthread_barrier_destroy(&barrier), 0);

	return first->begin_ns < second->end_ns && second->begin_ns < first->end_ns;
}

FIXTURE_SETUP(vfio_pci_dmabuf_race)
{
	struct race *r = &self->r;

	r->iommu = iommu_init(MODE_IOMMUFD);
	r->iova_allocator = iova_allocator_init(r->iommu);
	r->device = vfio_pci_device_init(device_bdf, r->iommu);
	r->page_size = variant->huge ? SZ_2M : getpagesize();
	r->size = NR_PAGES * r->page_size;
	r->random = number_from_env("VFIO_SELFTESTS_SEED", 1);
	r->index = vfio_pci_ram_bar(r->device);

	if (r->index < 0)
		SKIP(return, "The device has no BAR with RAM");
	if (!vfio_pci_has_feature(r->device, FEATURE_REVOKE))
		SKIP(return, "The kernel does not revoke DMABUFs");
	if (!vfio_pci_has_dmabuf_mmap(r->device, r->index))
		SKIP(return, "The kernel does not map exported DMABUFs");
	if (r->device->bars[r->index].info.size < r->size)
		SKIP(return, "BAR too small");

	/* The tests have maps of their own, which they can do without. */
	vfio_pci_bar_unmap_all(r->device);
	r->iova = iova_allocator_alloc(r->iova_allocator, r->size);
	if (variant->prepare == use_other || variant->prepare == keep_import) {
		other_init(r);
		if (!r->other)
			TH_LOG("No other device: whether DMA reaches anything is not looked at");
	}
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_race)
{
	struct race *r = &self->r;

	if (r->other)
		vfio_pci_device_cleanup(r->other);
	vfio_pci_device_cleanup(r->device);
	iova_allocator_cleanup(r->iova_allocator);
	iommu_cleanup(r->iommu);

	/* Nothing keeps the driver. If the test has failed, then what is left may. */
	if (!_metadata->exit_code)
		EXPECT_EQ(0, __vfio_pci_rebind(device_bdf));
}

#define PAIR(_name, ...)					\
FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_race, _name) { __VA_ARGS__ }

#define ERRORS(...)	.errors = { __VA_ARGS__ }

PAIR(read_revoke, read_lent, take_back, revoked, ERRORS(EFAULT, ENODEV));
PAIR(read_revoke_huge, read_lent, take_back, revoked, ERRORS(EFAULT, ENODEV), .huge = true);
PAIR(gone_revoke, read_until_gone, take_back, revoked, ERRORS(EFAULT));
PAIR(ring_revoke, ring_frame, take_back_frame, frame_revoked, lend_frame, ERRORS(EFAULT));
PAIR(map_revoke, map_lent, take_back, revoked_with_maps, ERRORS(ENODEV));
PAIR(import_revoke, import_lent, take_back, revoked_with_import, use_other, ERRORS(ENODEV));
PAIR(exit_revoke, kill_reader, take_back, revoked, start_reader);
PAIR(revoke_revoke, take_back, take_back, revoked_once, ERRORS(EBADFD));
PAIR(revoke_memory_off, revoke_only, memory_off_and_on, revoked_in_outage);
PAIR(revoke_d3hot, revoke_only, d3hot_and_back, revoked_in_outage);
PAIR(revoke_low_power, revoke_only, low_power_and_back, revoked_in_outage);
PAIR(revoke_reset, revoke_only, reset, revoked_in_outage);
PAIR(revoke_hot_reset, revoke_only, hot_reset, revoked_in_outage);
PAIR(revoke_import_reset, revoke_only, reset, revoked_and_imported, keep_import);
PAIR(revoke_import_memory_off, revoke_only, memory_off_and_on, revoked_and_imported, keep_import);
PAIR(revoke_wakeup, revoke_only, low_power_and_wakeup, revoked_in_outage);
PAIR(fork_revoke, fork_child, take_back_pieces, revoked_in_child, touch);
PAIR(fork_revoke_huge, fork_child, take_back_pieces, revoked_in_child, touch, .huge = true);
PAIR(split_revoke, split_map, take_back_pieces, revoked_in_pieces, touch);
PAIR(split_revoke_huge, split_map, take_back_pieces, revoked_in_pieces, touch, .huge = true);

PAIR(read_close, read_mapped, close_device, closed, ERRORS(EFAULT));
PAIR(map_close, read_lent, close_device, closed, ERRORS(EFAULT, ENODEV));
PAIR(import_close, import_lent, close_device, closed_with_import, use_other, ERRORS(ENODEV));
PAIR(release_close, release_lent, close_device, closed);
PAIR(look_close, look_at_lent, close_device, closed);
PAIR(revoke_close, revoke_only, close_device, closed, ERRORS(EBADF));
PAIR(export_close, export_several, close_device, closed_with_exports, ERRORS(EBADF, ENOTTY));
PAIR(bar_split_close, cut_up, close_device, closed, use_bar);

PAIR(read_reset, read_lent, reset, back_again);
PAIR(read_hot_reset, read_lent, hot_reset, back_again);
PAIR(bar_read_reset, read_bar, reset, back_again);
PAIR(bar_read_reset_huge, read_bar, reset, back_again, .huge = true);
PAIR(ring_reset, ring, reset, rung, use_ioeventfd);
PAIR(memory_off_reset, memory_off_and_on, reset, back_again);
PAIR(export_reset, export_several, reset, back_with_exports);
PAIR(export_memory_off, export_several, memory_off_and_on, back_with_exports);
PAIR(export_outage, export_several, memory_off, gone_with_exports);
PAIR(export_low_power, export_several, low_power_and_back, back_with_exports);
PAIR(export_wakeup, export_several, low_power_and_wakeup, back_with_exports);
PAIR(import_reset, import_lent, reset, back_imported, use_other, ERRORS(ENODEV));
PAIR(import_memory_off, import_lent, memory_off_and_on, back_imported, use_other, ERRORS(ENODEV));
PAIR(release_reset, release_lent, reset, back_again);
PAIR(release_memory_off, release_lent, memory_off_and_on, back_again);
PAIR(look_release, look_at_lent, release_lent, back_again);
PAIR(read_memory_off, read_lent, memory_off_and_on, back_again, ERRORS(EFAULT));
PAIR(read_memory_off_huge, read_lent, memory_off_and_on, back_again, ERRORS(EFAULT), .huge = true);
PAIR(bar_read_memory_off, read_bar, memory_off_and_on, back_again, ERRORS(EFAULT));
PAIR(read_d3hot, read_lent, d3hot_and_back, back_again, ERRORS(EFAULT));
PAIR(read_low_power, read_lent, low_power_and_back, back_again, ERRORS(EFAULT));

PAIR(fork_memory_off, fork_child, memory_off, gone_in_child, touch);
PAIR(fork_memory_off_huge, fork_child, memory_off, gone_in_child, touch, .huge = true);
PAIR(split_memory_off, split_map, memory_off, gone_in_pieces, touch);
PAIR(split_memory_off_huge, split_map, memory_off, gone_in_pieces, touch, .huge = true);
PAIR(bar_fork_memory_off, fork_child, memory_off, gone_in_child, use_bar);
PAIR(bar_split_memory_off, split_map, memory_off, gone_in_pieces, use_bar);
PAIR(read_attribute, map_and_read, change_attribute, one_attribute);

static bool may_return(const int *errors, int result)
{
	int i;

	for (i = 0; i < MAX_ERRORS; i++) {
		if (result == -errors[i])
			return true;
	}

	return !result;
}

TEST_F_TIMEOUT(vfio_pci_dmabuf_race, both, 3600)
{
	u64 nr = number_from_env("VFIO_SELFTESTS_ROUNDS", NR_ROUNDS), round, both = 0;
	struct race *r = &self->r;
	struct side sides[2] = {
		{ .race = r, .act = variant->one },
		{ .race = r, .act = variant->two },
	};
	struct side *one = &sides[0], *two = &sides[1], *first, *second;
	u64 seed = r->random;
	long before = dmabuf_count();

	if (variant->two == change_attribute &&
	    !vfio_pci_has_feature(r->device, FEATURE_MEMATTR))
		SKIP(return, "The kernel has no memory attributes");
	if (before < 0)
		TH_LOG("No debugfs: leaks are not looked at");

	nr += NR_ALONE;
	for (round = 0; round < nr || (!both && round < nr * MAX_FACTOR); round++) {
		round_begin(r);
		if (variant->prepare)
			variant->prepare(r);

		first = round & 1 ? two : one;
		second = round & 1 ? one : two;
		if (round < NR_ALONE)
			run_alone(first, second);
		else
			both += run_both(r, first, second);

		if (!round && (one->result == -EOPNOTSUPP || two->result == -EOPNOTSUPP))
			SKIP(return, "The device or the kernel lacks what it takes");
		VFIO_ASSERT_TRUE(may_return(variant->errors, one->result),
				 "The first one: %d\n", one->result);
		/* What both do alike is done by one of them. */
		VFIO_ASSERT_EQ(two->result,
			       one->act == two->act && !one->result ? -EBADFD : 0);
		variant->check(r, one->result);
		round_end(r);
	}

	printf("%lu rounds, both were at work at a time in %lu, seed %lu\n",
	       round - NR_ALONE, both, seed);
	EXPECT_EQ(before, dmabuf_count());
	if (!both && !_metadata->exit_code)
		SKIP(return, "They never met: too few CPUs, or rounds");
}

int main(int argc, char *argv[])
{
	int nr_bdfs;
	char **bdfs;

	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr_bdfs);
	device_bdf = bdfs[0];
	if (nr_bdfs > 1)
		other_bdf = bdfs[1];
	return test_harness_run(argc, argv);
}
