// SPDX-License-Identifier: GPL-2.0-only
/*
 * Measure what mappings of BARs and of exported DMABUFs cost.
 *
 * A line for each figure: its name, the value, ns or bytes, and what for one of.
 * Calls are measured eleven times, and the median counts, what takes long three
 * times or once. A first touch is measured by itself, so that neither page tables
 * nor timer ticks are in the median. Of threads the fastest round counts: theirs is
 * a clock that others of the machine may slow down, which lasts for some rounds.
 *
 * What the kernel lacks is left out, so that the same program can be run on kernels
 * that are to be compared. The device has to be able to reset. Where the clock
 * counts instructions, as with QEMU's -icount, so do the figures.
 *
 * This is to be run by hand, not by the harness.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <linux/kernel.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

/* Odd, for the median; TOUCHES is for all of a BAR, page by page, which takes long. */
#define ROUNDS		11
#define TOUCHES		3
#define FAULTS		1024
#define PAGE		SZ_4K

/* Between first touches that are not to be taken for a walk. */
#define STRIDE		SZ_128K

#define SUBORDINATES	1000

/* As many of something as tell what one of it takes of memory. */
#define MANY		4096

struct bench {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	u32 index;
	u64 size;
	u64 offset;
};

static u64 clock_ns(clockid_t clock)
{
	struct timespec ts;

	VFIO_ASSERT_EQ(clock_gettime(clock, &ts), 0);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static u64 now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

static void report(const char *name, double ns, const char *what)
{
	printf("bench\t%s\t%.1f\tns\t%s\n", name, ns, what);
	fflush(stdout);
}

static int compare(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static double median(u64 *samples, int nr)
{
	qsort(samples, nr, sizeof(*samples), compare);
	return samples[nr / 2];
}

/* Nanoseconds for reading every @step bytes. */
static u64 touch(void *vaddr, u64 size, u64 step)
{
	u64 start = now_ns();
	u64 offset;

	for (offset = 0; offset < size; offset += step)
		READ_ONCE(*(u32 *)(vaddr + offset));

	return now_ns() - start;
}

/* Nanoseconds for one read, the median of @nr that are @step bytes apart. */
static double touch_each(void *vaddr, int nr, u64 step)
{
	u64 *reads = calloc_assert(nr, sizeof(*reads));
	u64 *clocks = calloc_assert(nr, sizeof(*clocks));
	double ns;
	u64 start;
	int i;

	for (i = 0; i < nr; i++) {
		start = now_ns();
		clocks[i] = now_ns() - start;
		start = now_ns();
		READ_ONCE(*(u32 *)(vaddr + i * step));
		reads[i] = now_ns() - start;
	}
	ns = median(reads, nr) - median(clocks, nr);
	free(reads);
	free(clocks);

	return ns;
}

/* Map at an address that is good for pages of @align bytes, or for small ones. */
static void *map_at(int fd, u64 offset, u64 size, u64 align, u64 skew)
{
	void *vaddr = mmap_reserve(size, align, skew);

	VFIO_ASSERT_EQ(mmap(vaddr, size, PROT_READ, MAP_SHARED | MAP_FIXED, fd, offset), vaddr);
	return vaddr;
}

static void *map_anywhere(int fd, u64 offset, u64 size)
{
	void *vaddr = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, offset);

	VFIO_ASSERT_NE(vaddr, MAP_FAILED);
	return vaddr;
}

static void bench_map(const char *kind, int fd, u64 offset, u64 size)
{
	u64 map[ROUNDS], unmap[ROUNDS];
	char name[64];
	void *vaddr;
	u64 start;
	int i;

	for (i = 0; i < ROUNDS; i++) {
		start = now_ns();
		vaddr = map_anywhere(fd, offset, size);
		map[i] = now_ns() - start;
		start = now_ns();
		dmabuf_unmap(vaddr, size);
		unmap[i] = now_ns() - start;
	}

	snprintf(name, sizeof(name), "%s mmap()", kind);
	report(name, median(map, ROUNDS), "64 MiB");
	snprintf(name, sizeof(name), "%s munmap(), untouched", kind);
	report(name, median(unmap, ROUNDS), "64 MiB");
}

/*
 * The first place that mmap() finds must not happen to be good already, so take the
 * last page of it.
 */
static u64 touch_anywhere(int fd, u64 offset, u64 size)
{
	void *vaddr, *page;
	u64 ns;

	page = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(page, MAP_FAILED);
	dmabuf_unmap(page, size - PAGE);
	page += size - PAGE;
	vaddr = map_anywhere(fd, offset, size);
	ns = touch(vaddr, size, PAGE);
	dmabuf_unmap(vaddr, size);
	dmabuf_unmap(page, PAGE);

	return ns;
}

static void bench_touch(const char *kind, int fd, u64 offset, u64 size, u64 align)
{
	const char *what = size < SZ_1G ? "64 MiB" : "1 GiB";
	u64 anywhere[TOUCHES], aligned[TOUCHES];
	char name[64];
	void *vaddr;
	int i;

	for (i = 0; i < TOUCHES; i++) {
		anywhere[i] = touch_anywhere(fd, offset, size);
		vaddr = map_at(fd, offset, size, align, 0);
		aligned[i] = touch(vaddr, size, PAGE);
		dmabuf_unmap(vaddr, size);
	}

	snprintf(name, sizeof(name), "%s touch of %s after mmap(NULL)", kind, what);
	report(name, median(anywhere, TOUCHES), what);
	snprintf(name, sizeof(name), "%s touch of %s, aligned by hand", kind, what);
	report(name, median(aligned, TOUCHES), what);
}

static void bench_small_fault(const char *kind, int fd, u64 offset)
{
	u64 samples[ROUNDS];
	char name[64];
	void *vaddr;
	int i;

	vaddr = map_at(fd, offset, SZ_64M, SZ_2M, PAGE);
	snprintf(name, sizeof(name), "%s first touch", kind);
	report(name, touch_each(vaddr, SZ_64M / STRIDE, STRIDE), "4 KiB page");
	dmabuf_unmap(vaddr, SZ_64M);

	for (i = 0; i < ROUNDS; i++) {
		vaddr = map_at(fd, offset, FAULTS * PAGE, SZ_2M, PAGE);
		samples[i] = touch(vaddr, FAULTS * PAGE, PAGE);
		dmabuf_unmap(vaddr, FAULTS * PAGE);
	}

	snprintf(name, sizeof(name), "%s walk of %d small pages", kind, FAULTS);
	report(name, median(samples, ROUNDS) / FAULTS, "4 KiB page");
}

/* Ranges of a page each that do not touch each other. */
static struct vfio_region_dma_range *scattered_ranges(u32 nr_ranges)
{
	struct vfio_region_dma_range *ranges = calloc_assert(nr_ranges, sizeof(*ranges));
	u32 i;

	for (i = 0; i < nr_ranges; i++) {
		ranges[i].offset = 2ULL * i * PAGE;
		ranges[i].length = PAGE;
	}

	return ranges;
}

static void bench_ranges(struct bench *b, u32 nr_ranges, bool can_map)
{
	u64 size = (u64)nr_ranges * PAGE;
	u64 step = max_t(u64, size / FAULTS, PAGE);
	struct vfio_region_dma_range *ranges;
	u64 samples[ROUNDS], faults[ROUNDS];
	char name[64];
	void *vaddr;
	u64 start;
	int i, fd;

	if (2 * size > b->size)
		return;

	ranges = scattered_ranges(nr_ranges);
	for (i = 0; i < ROUNDS; i++) {
		start = now_ns();
		fd = __vfio_pci_dmabuf_export(b->device, b->index, O_RDWR | O_CLOEXEC,
					      ranges, nr_ranges);
		samples[i] = now_ns() - start;
		VFIO_ASSERT_GE(fd, 0);

		if (can_map) {
			vaddr = map_anywhere(fd, 0, size);
			faults[i] = touch_each(vaddr, size / step, step);
			dmabuf_unmap(vaddr, size);
		}
		VFIO_ASSERT_EQ(close(fd), 0);
	}
	free(ranges);

	snprintf(name, sizeof(name), "export of %u ranges", nr_ranges);
	report(name, median(samples, ROUNDS), "call");
	if (!can_map)
		return;
	snprintf(name, sizeof(name), "DMABUF first touch, %u ranges", nr_ranges);
	report(name, median(faults, ROUNDS), "4 KiB page");
}

/* A process that has mapped and touched a DMABUF, and waits to be killed. */
static pid_t holder_start(int fd, u64 size, u64 skew)
{
	int ready[2];
	void *vaddr;
	pid_t pid;
	char c;

	VFIO_ASSERT_EQ(pipe(ready), 0);
	pid = process_fork();
	if (!pid) {
		vaddr = map_at(fd, 0, size, SZ_2M, skew);
		touch(vaddr, size, PAGE);
		VFIO_ASSERT_EQ(write(ready[1], "", 1), 1);
		for (;;)
			pause();
	}

	VFIO_ASSERT_EQ(read(ready[0], &c, 1), 1);
	VFIO_ASSERT_EQ(close(ready[0]), 0);
	VFIO_ASSERT_EQ(close(ready[1]), 0);
	return pid;
}

static void holder_stop(pid_t pid)
{
	int status;

	VFIO_ASSERT_EQ(kill(pid, SIGKILL), 0);
	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
}

static void bench_revoke(struct bench *b, u64 skew, int nr_processes)
{
	pid_t *pids = calloc_assert(nr_processes, sizeof(*pids));
	u64 size = SZ_64M, start;
	char name[64];
	int i, fd;

	fd = vfio_pci_dmabuf_export_range(b->device, b->index, 0, size);
	for (i = 0; i < nr_processes; i++)
		pids[i] = holder_start(fd, size, skew);

	start = now_ns();
	vfio_pci_dmabuf_revoke(b->device, fd);
	snprintf(name, sizeof(name), "revoke of 64 MiB in %s pages, %d processes",
		 skew ? "4 KiB" : "2 MiB", nr_processes);
	report(name, now_ns() - start, "call");

	for (i = 0; i < nr_processes; i++)
		holder_stop(pids[i]);
	VFIO_ASSERT_EQ(close(fd), 0);
	free(pids);
}

/*
 * A thousand processes with a page each, and nothing but that: what it takes to
 * revoke one of them, and to take the memory of the device from them all.
 */
static void bench_subordinates(struct bench *b)
{
	pid_t *pids = calloc_assert(SUBORDINATES, sizeof(*pids));
	int *fds = calloc_assert(SUBORDINATES, sizeof(*fds));
	u64 samples[ROUNDS], start;
	char name[64];
	int i;

	/* Nor the maps of the BARs that libvfio made, from here on. */
	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		struct vfio_pci_bar *bar = &b->device->bars[i];

		if (bar->vaddr)
			VFIO_ASSERT_EQ(madvise(bar->vaddr, bar->info.size, MADV_DONTFORK), 0);
	}

	for (i = 0; i < SUBORDINATES; i++) {
		fds[i] = vfio_pci_dmabuf_export_range(b->device, b->index, (u64)i * PAGE, PAGE);
		pids[i] = holder_start(fds[i], PAGE, 0);
	}

	for (i = 0; i < ROUNDS; i++) {
		start = now_ns();
		vfio_pci_dmabuf_revoke(b->device, fds[i]);
		samples[i] = now_ns() - start;
	}
	snprintf(name, sizeof(name), "revoke of one of %d subordinates", SUBORDINATES);
	report(name, median(samples, ROUNDS), "call");

	start = now_ns();
	vfio_pci_cmd_clear(b->device, PCI_COMMAND_MEMORY);
	snprintf(name, sizeof(name), "memory disable with %d subordinates",
		 SUBORDINATES - ROUNDS);
	report(name, now_ns() - start, "call");
	vfio_pci_cmd_set(b->device, PCI_COMMAND_MEMORY);

	for (i = 0; i < SUBORDINATES; i++) {
		holder_stop(pids[i]);
		VFIO_ASSERT_EQ(close(fds[i]), 0);
	}
	free(pids);
	free(fds);
}

static void bench_memory_disable(struct bench *b, int nr_maps, bool touched)
{
	u64 samples[ROUNDS], start;
	void **vaddrs = calloc_assert(nr_maps, sizeof(*vaddrs));
	char name[64];
	int i, j;

	for (i = 0; i < nr_maps; i++)
		vaddrs[i] = map_anywhere(b->device->fd, b->offset + (u64)i * PAGE, PAGE);

	for (j = 0; j < ROUNDS; j++) {
		for (i = 0; touched && i < nr_maps; i++)
			touch(vaddrs[i], PAGE, PAGE);
		start = now_ns();
		vfio_pci_cmd_clear(b->device, PCI_COMMAND_MEMORY);
		samples[j] = now_ns() - start;
		vfio_pci_cmd_set(b->device, PCI_COMMAND_MEMORY);
	}
	snprintf(name, sizeof(name), "memory disable with %d maps of a page%s", nr_maps,
		 touched ? "" : ", untouched");
	report(name, median(samples, ROUNDS), "call");

	for (i = 0; i < nr_maps; i++)
		dmabuf_unmap(vaddrs[i], PAGE);
	free(vaddrs);
}

static void bench_others(struct bench *b, int nr_dmabufs, bool can_revoke)
{
	u64 samples[ROUNDS], revokes[ROUNDS], disables[ROUNDS], start;
	int *fds = calloc_assert(nr_dmabufs, sizeof(*fds));
	char name[64];
	int i, fd;

	for (i = 0; i < nr_dmabufs; i++)
		fds[i] = vfio_pci_dmabuf_export_range(b->device, b->index, (u64)i * PAGE, PAGE);

	for (i = 0; i < ROUNDS; i++) {
		/* Without the time that the device is given to recover. */
		start = clock_ns(CLOCK_THREAD_CPUTIME_ID);
		VFIO_ASSERT_EQ(__vfio_pci_device_reset(b->device), 0);
		samples[i] = clock_ns(CLOCK_THREAD_CPUTIME_ID) - start;

		start = now_ns();
		vfio_pci_cmd_clear(b->device, PCI_COMMAND_MEMORY);
		disables[i] = now_ns() - start;
		vfio_pci_cmd_set(b->device, PCI_COMMAND_MEMORY);
	}

	/* Apart: a reset lets time begin at a timer tick, which the next may hit. */
	for (i = 0; can_revoke && i < ROUNDS; i++) {
		fd = vfio_pci_dmabuf_export_range(b->device, b->index, 0, PAGE);
		start = now_ns();
		vfio_pci_dmabuf_revoke(b->device, fd);
		revokes[i] = now_ns() - start;
		VFIO_ASSERT_EQ(close(fd), 0);
	}

	snprintf(name, sizeof(name), "reset with %d DMABUFs", nr_dmabufs);
	report(name, median(samples, ROUNDS), "call, CPU time");
	snprintf(name, sizeof(name), "memory disable with %d DMABUFs", nr_dmabufs);
	report(name, median(disables, ROUNDS), "call");
	if (can_revoke) {
		snprintf(name, sizeof(name), "revoke with %d other DMABUFs", nr_dmabufs);
		report(name, median(revokes, ROUNDS), "call");
	}

	for (i = 0; i < nr_dmabufs; i++)
		VFIO_ASSERT_EQ(close(fds[i]), 0);
	free(fds);
}

/* What a BAR of registers costs, all that becomes of it. */
static void bench_life(const char *name, int fd, u64 offset, u64 size)
{
	char title[64], what[32];
	u64 samples[ROUNDS];
	void *vaddr;
	int i;

	for (i = 0; i < ROUNDS; i++) {
		samples[i] = now_ns();
		vaddr = map_anywhere(fd, offset, size);
		touch(vaddr, size, PAGE);
		dmabuf_unmap(vaddr, size);
		samples[i] = now_ns() - samples[i];
	}
	snprintf(title, sizeof(title), "%s mmap(), touch, munmap() of BAR 0", name);
	snprintf(what, sizeof(what), "%lu KiB", size / SZ_1K);
	report(title, median(samples, ROUNDS), what);
}

static void bench_file(const char *name, const char *path, u64 size)
{
	int fd = open(path, O_RDWR | O_SYNC | O_CLOEXEC);

	VFIO_ASSERT_GE(fd, 0, "%s: %m\n", path);
	bench_life(name, fd, 0, size);
	VFIO_ASSERT_EQ(close(fd), 0);
}

static int open_sysfs(struct bench *b, u32 index)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource%u", b->device->bdf,
		 index);
	return open(path, O_RDWR | O_SYNC | O_CLOEXEC);
}

static void bench_registers(struct bench *b)
{
	struct vfio_pci_bar *bar = &b->device->bars[0];
	int fd = open_sysfs(b, 0);

	if (bar->info.flags & VFIO_REGION_INFO_FLAG_MMAP)
		bench_life("BAR", b->device->fd, bar->info.offset, bar->info.size);
	if (fd < 0)
		return;
	bench_life("sysfs", fd, 0, bar->info.size);
	VFIO_ASSERT_EQ(close(fd), 0);
}

static void bench_sysfs(struct bench *b)
{
	int fd = open_sysfs(b, b->index);

	if (fd < 0)
		return;

	bench_map("sysfs", fd, 0, SZ_64M);
	bench_touch("sysfs", fd, 0, SZ_64M, SZ_2M);
	VFIO_ASSERT_EQ(close(fd), 0);
}

static bool write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool ok;

	if (fd < 0)
		return false;
	ok = write(fd, text, strlen(text)) == strlen(text);
	VFIO_ASSERT_EQ(close(fd), 0);

	return ok;
}

static long memory_charged(void)
{
	FILE *file = fopen("/sys/fs/cgroup/vfio_bench/memory.current", "re");
	long bytes;
	int n;

	if (!file)
		return -1;
	n = fscanf(file, "%ld", &bytes);
	VFIO_ASSERT_EQ(n, 1);
	VFIO_ASSERT_EQ(fclose(file), 0);

	return bytes;
}

/* By what the memory cgroup is charged, page tables are not made by this. */
static void bench_memory(struct bench *b)
{
	void **vaddrs = calloc_assert(MANY, sizeof(*vaddrs));
	int *fds = calloc_assert(MANY, sizeof(*fds));
	long before;
	int i;

	mkdir("/sys/fs/cgroup/vfio_bench", 0755);
	write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory");
	if (!write_file("/sys/fs/cgroup/vfio_bench/cgroup.procs", "0") || memory_charged() < 0)
		goto out;

	before = memory_charged();
	for (i = 0; i < MANY; i++)
		vaddrs[i] = map_anywhere(b->device->fd, b->offset + (u64)i * PAGE, PAGE);
	printf("bench\tmemory charged for a map of a BAR\t%ld\tbytes\tmap\n",
	       (memory_charged() - before) / MANY);
	for (i = 0; i < MANY; i++)
		dmabuf_unmap(vaddrs[i], PAGE);

	before = memory_charged();
	for (i = 0; i < MANY; i++)
		fds[i] = vfio_pci_dmabuf_export_range(b->device, b->index, 0, PAGE);
	printf("bench\tmemory charged for an exported DMABUF\t%ld\tbytes\tDMABUF\n",
	       (memory_charged() - before) / MANY);
	for (i = 0; i < MANY; i++)
		VFIO_ASSERT_EQ(close(fds[i]), 0);
out:
	write_file("/sys/fs/cgroup/cgroup.procs", "0");
	rmdir("/sys/fs/cgroup/vfio_bench");
	free(vaddrs);
	free(fds);
}

/* A process maps what it was lent as often as it likes, and who takes it back zaps all. */
static void bench_maps(struct bench *b, int nr_maps)
{
	int fd = vfio_pci_dmabuf_export_range(b->device, b->index, 0, PAGE);
	void **vaddrs = calloc(nr_maps, sizeof(*vaddrs));
	char name[64];
	u64 start;
	int i;

	VFIO_ASSERT_NOT_NULL(vaddrs);
	for (i = 0; i < nr_maps; i++) {
		vaddrs[i] = dmabuf_map(fd, 0, PAGE);
		mmio_read32(vaddrs[i]);
	}

	start = now_ns();
	VFIO_ASSERT_EQ(__vfio_pci_dmabuf_revoke(b->device, fd), 0);
	snprintf(name, sizeof(name), "revoke of a page mapped %d times", nr_maps);
	report(name, now_ns() - start, "call");

	for (i = 0; i < nr_maps; i++)
		dmabuf_unmap(vaddrs[i], PAGE);
	VFIO_ASSERT_EQ(close(fd), 0);
	free(vaddrs);
}

static void bench_init(struct bench *b, const char *bdf)
{
	b->iommu = iommu_init("iommufd");
	b->device = vfio_pci_device_init(bdf, b->iommu);
	VFIO_ASSERT_GE(vfio_pci_ram_bar(b->device), 0, "No BAR of %s is known to be RAM\n", bdf);
	b->index = vfio_pci_ram_bar(b->device);
	b->size = b->device->bars[b->index].info.size;
	b->offset = b->device->bars[b->index].info.offset;
}

static void bench_cleanup(struct bench *b)
{
	vfio_pci_device_cleanup(b->device);
	iommu_cleanup(b->iommu);
}

/* Everything that 64 MiB are enough for. */
static void bench_small(const char *bdf)
{
	struct bench b;
	int fd = -1, n;

	bench_init(&b, bdf);
	VFIO_ASSERT_GE(b.size, (u64)SZ_64M);

	bench_map("BAR", b.device->fd, b.offset, SZ_64M);
	bench_small_fault("BAR", b.device->fd, b.offset);
	bench_touch("BAR", b.device->fd, b.offset, SZ_64M, SZ_2M);
	bench_sysfs(&b);
	bench_registers(&b);
	bench_memory_disable(&b, 512, true);
	bench_memory_disable(&b, 512, false);

	if (!vfio_pci_has_feature(b.device, VFIO_DEVICE_FEATURE_GET |
					    VFIO_DEVICE_FEATURE_DMA_BUF)) {
		bench_cleanup(&b);
		return;
	}

	if (vfio_pci_has_dmabuf_mmap(b.device, b.index)) {
		fd = vfio_pci_dmabuf_export_range(b.device, b.index, 0, SZ_64M);
		bench_map("DMABUF", fd, 0, SZ_64M);
		bench_small_fault("DMABUF", fd, 0);
		bench_touch("DMABUF", fd, 0, SZ_64M, SZ_2M);
		VFIO_ASSERT_EQ(close(fd), 0);
	}

	for (n = 1; n <= 4096; n = n == 1 ? 64 : n * 8)
		bench_ranges(&b, n, fd >= 0);

	for (n = 1; n <= 1000; n = n == 1 ? 100 : n * 10)
		bench_others(&b, n, fd >= 0);

	for (n = 1; fd >= 0 && n <= 64; n *= 8) {
		bench_revoke(&b, PAGE, n);
		bench_revoke(&b, 0, n);
	}
	for (n = 200; fd >= 0 && n <= 20000; n *= 10)
		bench_maps(&b, n);
	if (fd >= 0)
		bench_subordinates(&b);
	bench_memory(&b);

	bench_cleanup(&b);
}

struct toucher {
	pthread_t thread;
	pthread_barrier_t *barrier;
	void *vaddr;
};

static void *toucher_thread(void *arg)
{
	struct toucher *t = arg;

	pthread_barrier_wait(t->barrier);
	touch(t->vaddr, SZ_16M, PAGE);

	return NULL;
}

/* Threads that fault on one device at the same time, each in a place of its own. */
static void bench_threads(const char *bdf, int nr_threads, int nr_rounds)
{
	struct toucher *threads = calloc_assert(nr_threads, sizeof(*threads));
	pthread_barrier_t barrier;
	u64 *samples = calloc_assert(nr_rounds, sizeof(*samples));
	char name[64];
	struct bench b;
	int i, j;

	bench_init(&b, bdf);
	VFIO_ASSERT_GE(b.size, (u64)SZ_16M * nr_threads);

	for (j = 0; j < nr_rounds; j++) {
		VFIO_ASSERT_EQ(pthread_barrier_init(&barrier, NULL, nr_threads + 1), 0);
		for (i = 0; i < nr_threads; i++) {
			threads[i].barrier = &barrier;
			threads[i].vaddr = map_at(b.device->fd, b.offset + (u64)i * SZ_16M,
						  SZ_16M, SZ_2M, PAGE);
			/* A fault for each page: it is the locks that are looked at. */
			VFIO_ASSERT_EQ(madvise(threads[i].vaddr, SZ_16M, MADV_RANDOM), 0);
			VFIO_ASSERT_EQ(pthread_create(&threads[i].thread, NULL, toucher_thread,
						      &threads[i]), 0);
		}

		samples[j] = now_ns();
		pthread_barrier_wait(&barrier);
		for (i = 0; i < nr_threads; i++)
			VFIO_ASSERT_EQ(pthread_join(threads[i].thread, NULL), 0);
		samples[j] = now_ns() - samples[j];

		for (i = 0; i < nr_threads; i++)
			dmabuf_unmap(threads[i].vaddr, SZ_16M);
		VFIO_ASSERT_EQ(pthread_barrier_destroy(&barrier), 0);
	}
	snprintf(name, sizeof(name), "BAR faults, %d threads at once", nr_threads);
	qsort(samples, nr_rounds, sizeof(*samples), compare);
	report(name, (double)samples[0] / (SZ_16M / PAGE), "4 KiB page of each");

	bench_cleanup(&b);
	free(samples);
	free(threads);
}

static void bench_large(const char *bdf)
{
	struct bench b;
	int fd;

	bench_init(&b, bdf);
	VFIO_ASSERT_GE(b.size, (u64)SZ_1G);

	bench_touch("BAR", b.device->fd, b.offset, SZ_1G, SZ_1G);
	if (vfio_pci_has_dmabuf_mmap(b.device, b.index)) {
		fd = vfio_pci_dmabuf_export_range(b.device, b.index, 0, SZ_1G);
		bench_touch("DMABUF", fd, 0, SZ_1G, SZ_1G);
		VFIO_ASSERT_EQ(close(fd), 0);
		bench_ranges(&b, 65536, true);
	}

	bench_cleanup(&b);
}

int main(int argc, char *argv[])
{
	struct rlimit limit = { .rlim_cur = 2 * MANY, .rlim_max = 2 * MANY };

	if (argc == 5 && !strcmp(argv[1], "--threads") && atoi(argv[2]) > 0 &&
	    atoi(argv[3]) > 0) {
		bench_threads(argv[4], atoi(argv[2]), atoi(argv[3]));
		return 0;
	}
	if (argc == 5 && !strcmp(argv[1], "--file") && atoi(argv[4]) > 0) {
		bench_file(argv[2], argv[3], (u64)atoi(argv[4]) * SZ_1K);
		return 0;
	}
	if (argc < 2 || argc > 3 || argv[1][0] == '-') {
		fprintf(stderr, "usage: %s BDF [BDF of a device with a BAR of 1 GiB]\n"
				"       %s --threads NUMBER ROUNDS BDF\n"
				"       %s --file NAME FILE KIB, that maps BAR 0\n",
			argv[0], argv[0], argv[0]);
		return 1;
	}

	VFIO_ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
	bench_small(argv[1]);
	if (argc > 2)
		bench_large(argv[2]);

	return 0;
}
