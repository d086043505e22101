// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test vending slices of a BAR to other processes.
 *
 * A primary process owns the device. It hands DMABUFs over pages of a BAR to
 * subordinates, which are processes of their own that share nothing with it but
 * a socket, and takes them back whether or not the subordinate plays along.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <linux/iommufd.h>
#include <linux/kernel.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

#define FEATURE_REVOKE	(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE)

static const char *device_bdf;

/*
 * Subordinate
 */

static int dmabuf_reopen(int fd, int flags)
{
	char path[32];
	int new;

	snprintf_assert(path, sizeof(path), "/proc/self/fd/%d", fd);
	new = open(path, flags);
	if (new < 0)
		return -errno;

	close(new);
	return 0;
}

static int dmabuf_map_flags(int fd, u64 offset, u64 size, int prot, int flags)
{
	void *vaddr = mmap(NULL, size, prot, flags, fd, offset);

	if (vaddr == MAP_FAILED)
		return -errno;

	munmap(vaddr, size);
	return 0;
}

static int dmabuf_grow(int fd, u64 size, u64 old_size, u64 new_size)
{
	void *vaddr, *new;
	int r = 0;

	vaddr = dmabuf_map(fd, 0, size);
	new = mremap(vaddr, old_size, new_size, MREMAP_MAYMOVE);
	if (new == MAP_FAILED) {
		r = -errno;
		dmabuf_unmap(vaddr, size);
	}

	return r;
}

static int dmabuf_ioctl(int fd, unsigned long request, void *arg)
{
	return ioctl(fd, request, arg) < 0 ? -errno : 0;
}

static int dmabuf_feature(int fd, u32 feature, void *data, size_t size)
{
	return vfio_device_feature_ioctl(fd, feature, data, size) < 0 ? -errno : 0;
}

static int dmabuf_type1_map(int fd, u64 size)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ,
		.size = size,
	};

	return dmabuf_ioctl(fd, VFIO_IOMMU_MAP_DMA, &map);
}

static int dmabuf_hot_reset(int fd)
{
	struct vfio_pci_hot_reset reset = { .argsz = sizeof(reset) };

	return dmabuf_ioctl(fd, VFIO_DEVICE_PCI_HOT_RESET, &reset);
}

static int dmabuf_bind(int fd)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	int r;

	/* Without one it is a bad fd that must not be looked at. */
	bind.iommufd = open("/dev/iommu", O_RDWR);
	r = dmabuf_ioctl(fd, VFIO_DEVICE_BIND_IOMMUFD, &bind);
	if (bind.iommufd >= 0)
		close(bind.iommufd);
	return r;
}

#define REFUSED(_failures, _errno, _attempt) do {			\
	int _ret = (_attempt);						\
									\
	if (_ret != -(_errno)) {					\
		fprintf(stderr, "Not " #_errno " but %d (%s): %s\n", -_ret, \
			strerror(-_ret), #_attempt);			\
		(_failures)++;						\
	}								\
} while (0)

/*
 * Try to reach more than was handed out. @size is that of the slice. Return how
 * many attempts were not refused in the way they should be.
 */
static int subordinate_escape(int fd, u64 size, u32 value)
{
	struct vfio_device_feature_dma_buf_memattr memattr = { .dmabuf_fd = fd };
	struct vfio_device_feature_dma_buf_revoke revoke = { .dmabuf_fd = fd };
	struct vfio_device_feature_dma_buf export = { .nr_ranges = 1 };
	struct vfio_region_info region = { .argsz = sizeof(region) };
	struct vfio_device_info info = { .argsz = sizeof(info) };
	struct vfio_irq_set irqs = { .argsz = sizeof(irqs) };
	int rw = PROT_READ | PROT_WRITE;
	int failures = 0;
	int i;

	/* Beyond the slice, and by the offsets that the device fd knows. */
	REFUSED(failures, EINVAL, dmabuf_map_flags(fd, 0, 2 * size, rw, MAP_SHARED));
	REFUSED(failures, EINVAL, dmabuf_map_flags(fd, size, size, rw, MAP_SHARED));
	REFUSED(failures, EOVERFLOW, dmabuf_map_flags(fd, -size, 2 * size, rw, MAP_SHARED));
	for (i = 1; i < 9; i++)
		REFUSED(failures, EINVAL, dmabuf_map_flags(fd, (u64)i << 40, size, rw,
							   MAP_SHARED));
	REFUSED(failures, EINVAL, dmabuf_map_flags(fd, 0, size, PROT_READ, MAP_PRIVATE));
	REFUSED(failures, EPERM, dmabuf_map_flags(fd, 0, size, PROT_READ | PROT_EXEC,
						  MAP_SHARED));
	REFUSED(failures, EFAULT, dmabuf_grow(fd, size, size, 2 * size));
	REFUSED(failures, EFAULT, dmabuf_grow(fd, size, 0, size));

	/* By another kind of access. */
	REFUSED(failures, ENXIO, dmabuf_reopen(fd, O_RDWR));
	REFUSED(failures, ENXIO, dmabuf_reopen(fd, O_RDONLY));
	REFUSED(failures, EINVAL, read(fd, &value, sizeof(value)) < 0 ? -errno : 0);
	REFUSED(failures, ESPIPE, pread(fd, &value, sizeof(value), 0) < 0 ? -errno : 0);
	REFUSED(failures, EINVAL, write(fd, &value, sizeof(value)) < 0 ? -errno : 0);
	REFUSED(failures, ESPIPE, pwrite(fd, &value, sizeof(value), 0) < 0 ? -errno : 0);
	REFUSED(failures, EINVAL, ftruncate(fd, 2 * size) ? -errno : 0);
	REFUSED(failures, ENODEV, fallocate(fd, 0, 0, 2 * size) ? -errno : 0);

	/* By treating it as the device, or as a container with the device. */
	REFUSED(failures, ENOTTY, dmabuf_ioctl(fd, VFIO_DEVICE_GET_INFO, &info));
	REFUSED(failures, ENOTTY, dmabuf_ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &region));
	REFUSED(failures, ENOTTY, dmabuf_ioctl(fd, VFIO_DEVICE_SET_IRQS, &irqs));
	REFUSED(failures, ENOTTY, dmabuf_ioctl(fd, VFIO_DEVICE_RESET, NULL));
	REFUSED(failures, ENOTTY, dmabuf_hot_reset(fd));
	REFUSED(failures, ENOTTY, dmabuf_bind(fd));
	REFUSED(failures, ENOTTY, dmabuf_type1_map(fd, size));
	REFUSED(failures, ENOTTY, dmabuf_feature(fd, FEATURE_REVOKE, &revoke, sizeof(revoke)));
	REFUSED(failures, ENOTTY, dmabuf_feature(fd, VFIO_DEVICE_FEATURE_GET |
						     VFIO_DEVICE_FEATURE_DMA_BUF,
						 &export, sizeof(export)));
	REFUSED(failures, ENOTTY, dmabuf_feature(fd, VFIO_DEVICE_FEATURE_SET |
						     VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR,
						 &memattr, sizeof(memattr)));
	REFUSED(failures, ENOTTY, dmabuf_feature(fd, VFIO_DEVICE_FEATURE_SET |
						     VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY,
						 NULL, 0));

	return failures;
}

/*
 * Primary
 */

#define NR_SUBORDINATES 3

/* What all tests work with. */
struct setup {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	long page_size;
	int index;
	bool is_ram;

	/* One page for each of them. */
	struct subordinate subs[NR_SUBORDINATES];
	int fds[NR_SUBORDINATES];
};

FIXTURE(vfio_pci_dmabuf_vend) {
	struct setup s;
};

FIXTURE_VARIANT(vfio_pci_dmabuf_vend) {
	const char *iommu_mode;
};

/* Two ways to open the device are two ways for it to be closed. */
FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_vend, group) {
	.iommu_mode = MODE_VFIO_TYPE1V2_IOMMU,
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_vend, cdev) {
	.iommu_mode = MODE_IOMMUFD,
};

static void vend(struct setup *s, int page, struct subordinate *sub)
{
	s->fds[page] = vfio_pci_dmabuf_export_range(s->device, s->index,
						    page * s->page_size, s->page_size);
	subordinate_give(sub, s->fds[page]);
	VFIO_ASSERT_EQ(subordinate_ask(sub, SUBORDINATE_MAP, s->page_size, 0), 0);
}

FIXTURE_SETUP(vfio_pci_dmabuf_vend)
{
	struct setup *s = &self->s;
	int i;

	s->page_size = getpagesize();
	s->iommu = iommu_init(variant->iommu_mode);
	s->device = vfio_pci_device_init(device_bdf, s->iommu);
	s->index = vfio_pci_ram_bar(s->device);
	s->is_ram = s->index >= 0;

	for (i = 0; i < PCI_STD_NUM_BARS && s->index < 0; i++) {
		struct vfio_pci_bar *bar = &s->device->bars[i];

		if (bar->vaddr && bar->info.size >= (NR_SUBORDINATES + 1) * s->page_size)
			s->index = i;
	}

	if (s->index < 0)
		SKIP(return, "The device has no BAR that is large enough");

	if (!vfio_pci_has_feature(s->device, FEATURE_REVOKE))
		SKIP(return, "The kernel does not revoke DMABUFs");

	if (!vfio_pci_has_dmabuf_mmap(s->device, s->index))
		SKIP(return, "The kernel does not map exported DMABUFs");

	for (i = 0; i < NR_SUBORDINATES; i++) {
		subordinate_start(&s->subs[i]);
		vend(s, i, &s->subs[i]);
	}
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_vend)
{
	struct setup *s = &self->s;
	int i;

	for (i = 0; i < NR_SUBORDINATES; i++) {
		VFIO_ASSERT_EQ(close(s->fds[i]), 0);
		subordinate_end(&s->subs[i]);
	}

	vfio_pci_device_cleanup(s->device);
	iommu_cleanup(s->iommu);
}

/* Take the slice of the first subordinate back while it is busy elsewhere. */
static int revoke_first(struct setup *s, u64 *ms)
{
	u64 start = now_ms();
	int r;

	r = __vfio_pci_dmabuf_revoke(s->device, s->fds[0]);
	*ms = now_ms() - start;
	return r;
}

/* Where each subordinate that spins leaves its count, in the first page of the BAR. */
#define SPIN_OFFSET(_i)	(((_i) + 1) * sizeof(u32))

static void spin_start(struct subordinate *subs, int i)
{
	subordinate_ask_only(&subs[i], SUBORDINATE_SPIN, 0, SPIN_OFFSET(i));
}

/* Wait until the count of a subordinate that spins has moved. */
static void spin_wait(struct vfio_pci_bar *bar, int i)
{
	void *count = bar->vaddr + SPIN_OFFSET(i);
	u32 before = mmio_read32(count);
	u64 end = now_ms() + PROMPT_MS;

	while (mmio_read32(count) == before) {
		VFIO_ASSERT_LT(now_ms(), end, "Subordinate %d does not spin\n", i);
		usleep(1000);
	}
}

static int others_alive(struct setup *s)
{
	int i, alive = 0;
	u32 value;

	for (i = 1; i < NR_SUBORDINATES; i++)
		alive += !subordinate_read(&s->subs[i], &value);

	return alive;
}

TEST_F(vfio_pci_dmabuf_vend, isolation)
{
	struct setup *s = &self->s;
	void *bar = s->device->bars[s->index].vaddr;
	u32 value;
	int i;

	if (!s->is_ram)
		SKIP(return, "No BAR with RAM: what a subordinate writes, cannot be told");

	for (i = 0; i <= NR_SUBORDINATES; i++)
		mmio_write32(bar + i * s->page_size, 0);

	for (i = 0; i < NR_SUBORDINATES; i++) {
		ASSERT_EQ(0, subordinate_read(&s->subs[i], &value));
		ASSERT_EQ(0, value);
		ASSERT_EQ(0, subordinate_ask(&s->subs[i], SUBORDINATE_WRITE, 0, 0x5b000001 + i));
	}

	for (i = 0; i < NR_SUBORDINATES; i++) {
		ASSERT_EQ(0, subordinate_read(&s->subs[i], &value));
		ASSERT_EQ(0x5b000001 + i, value);
		ASSERT_EQ(0x5b000001 + i, mmio_read32(bar + i * s->page_size));
	}

	ASSERT_EQ(0, mmio_read32(bar + NR_SUBORDINATES * s->page_size));
}

TEST_F(vfio_pci_dmabuf_vend, no_escape)
{
	struct setup *s = &self->s;

	ASSERT_EQ(0, subordinate_ask(&s->subs[0], SUBORDINATE_OTHER, s->page_size, 0));
	ASSERT_EQ(NR_SUBORDINATES - 1, others_alive(s));
}

TEST_F(vfio_pci_dmabuf_vend, revoke_idle)
{
	struct setup *s = &self->s;
	u32 value;
	u64 ms;

	ASSERT_EQ(0, subordinate_read(&s->subs[0], &value));
	ASSERT_EQ(0, revoke_first(s, &ms));
	EXPECT_LT(ms, PROMPT_MS);

	EXPECT_EQ(-EFAULT, subordinate_read(&s->subs[0], &value));
	EXPECT_EQ(-ENODEV, subordinate_ask(&s->subs[0], SUBORDINATE_MAP, s->page_size, 0));
	EXPECT_EQ(NR_SUBORDINATES - 1, others_alive(s));
}

TEST_F(vfio_pci_dmabuf_vend, revoke_spinning)
{
	struct setup *s = &self->s;
	u64 ms;

	if (!s->is_ram)
		SKIP(return, "No BAR with RAM: whether a subordinate spins, cannot be told");

	spin_start(s->subs, 0);
	EXPECT_EQ(NR_SUBORDINATES - 1, others_alive(s));
	spin_wait(&s->device->bars[s->index], 0);

	ASSERT_EQ(0, revoke_first(s, &ms));
	EXPECT_LT(ms, PROMPT_MS);
	EXPECT_EQ(-EFAULT, subordinate_answer(&s->subs[0], NULL));
	EXPECT_EQ(NR_SUBORDINATES - 1, others_alive(s));
}

TEST_F(vfio_pci_dmabuf_vend, revoke_stopped)
{
	struct setup *s = &self->s;
	u32 value;
	u64 ms;

	ASSERT_EQ(0, subordinate_read(&s->subs[0], &value));
	ASSERT_EQ(0, kill(s->subs[0].pid, SIGSTOP));

	ASSERT_EQ(0, revoke_first(s, &ms));
	EXPECT_LT(ms, PROMPT_MS);

	ASSERT_EQ(0, kill(s->subs[0].pid, SIGCONT));
	EXPECT_EQ(-EFAULT, subordinate_read(&s->subs[0], &value));
	EXPECT_EQ(NR_SUBORDINATES - 1, others_alive(s));
}

TEST_F(vfio_pci_dmabuf_vend, revoke_crashed)
{
	struct setup *s = &self->s;
	u64 ms;

	ASSERT_EQ(0, kill(s->subs[0].pid, SIGKILL));
	ASSERT_EQ(SIGKILL, WTERMSIG(subordinate_end(&s->subs[0])));

	ASSERT_EQ(0, revoke_first(s, &ms));
	EXPECT_LT(ms, PROMPT_MS);
	EXPECT_EQ(NR_SUBORDINATES - 1, others_alive(s));

	/* Somebody has to be there for teardown, and can have the slice. */
	ASSERT_EQ(0, close(s->fds[0]));
	subordinate_start(&s->subs[0]);
	vend(s, 0, &s->subs[0]);
}

/* One slice, all of them, two maps each. */
TEST_F(vfio_pci_dmabuf_vend, revoke_shared)
{
	struct setup *s = &self->s;
	u32 value;
	u64 ms;
	int i;

	if (!s->is_ram)
		SKIP(return, "No BAR with RAM: whether a subordinate spins, cannot be told");

	for (i = 1; i < NR_SUBORDINATES; i++) {
		subordinate_give(&s->subs[i], s->fds[0]);
		ASSERT_EQ(0, subordinate_ask(&s->subs[i], SUBORDINATE_MAP, s->page_size, 0));
		ASSERT_EQ(0, subordinate_read(&s->subs[i], &value));
		ASSERT_EQ(0, subordinate_ask(&s->subs[i], SUBORDINATE_MAP, s->page_size, 0));
	}
	for (i = 0; i < NR_SUBORDINATES; i++)
		ASSERT_EQ(0, subordinate_read(&s->subs[i], &value));
	for (i = 0; i < NR_SUBORDINATES; i++)
		spin_start(s->subs, i);
	for (i = 0; i < NR_SUBORDINATES; i++)
		spin_wait(&s->device->bars[s->index], i);

	ASSERT_EQ(0, revoke_first(s, &ms));
	EXPECT_LT(ms, PROMPT_MS);

	for (i = 0; i < NR_SUBORDINATES; i++) {
		EXPECT_EQ(-EFAULT, subordinate_answer(&s->subs[i], NULL));
		EXPECT_EQ(-ENODEV, subordinate_ask(&s->subs[i], SUBORDINATE_MAP,
						   s->page_size, 0));
	}
}

/*
 * As many maps as each likes, of one page: in the end the primary has to wait for them
 * all. A kernel that looks at all maps of a process for each new one, to debug itself,
 * does not come that far.
 */
#define NR_MAPPERS	4
#define NR_MAPS		10000
#define MAPPING_MS	10000
#define MANY_MAPS_MS	20000

/* It tells how many there are. */
static pid_t mapper_start(struct setup *s, int ready)
{
	u64 end = now_ms() + MAPPING_MS;
	pid_t pid = process_fork();
	int i;

	if (pid)
		return pid;

	for (i = 0; i < NR_MAPS && now_ms() < end; i++)
		mmio_read32(dmabuf_map(s->fds[0], 0, s->page_size));
	if (write(ready, &i, sizeof(i)) == sizeof(i))
		pause();
	_exit(KSFT_FAIL);
}

TEST_F_TIMEOUT(vfio_pci_dmabuf_vend, revoke_many_maps, 240)
{
	struct setup *s = &self->s;
	pid_t pids[NR_MAPPERS];
	int i, nr, total = 0, ready[2];
	u64 ms;

	ASSERT_EQ(0, pipe(ready));
	for (i = 0; i < NR_MAPPERS; i++)
		pids[i] = mapper_start(s, ready[1]);
	ASSERT_EQ(0, close(ready[1]));
	for (i = 0; i < NR_MAPPERS; i++) {
		ASSERT_EQ(sizeof(nr), read(ready[0], &nr, sizeof(nr)));
		total += nr;
	}

	EXPECT_EQ(0, revoke_first(s, &ms));
	EXPECT_GT(MANY_MAPS_MS, ms);
	TH_LOG("Took %lu ms to take it back, with %d maps", ms, total);
	EXPECT_EQ(NR_SUBORDINATES - 1, others_alive(s));

	for (i = 0; i < NR_MAPPERS; i++) {
		ASSERT_EQ(0, kill(pids[i], SIGKILL));
		ASSERT_EQ(pids[i], waitpid(pids[i], NULL, 0));
	}
	ASSERT_EQ(0, close(ready[0]));
}

TEST_F(vfio_pci_dmabuf_vend, vend_anew)
{
	struct setup *s = &self->s;
	struct subordinate *first = &s->subs[0], *second = &s->subs[1];
	u32 value;
	u64 ms;

	if (s->is_ram)
		ASSERT_EQ(0, subordinate_ask(first, SUBORDINATE_WRITE, 0, 0x0bad0bad));
	ASSERT_EQ(0, revoke_first(s, &ms));
	ASSERT_EQ(0, close(s->fds[0]));

	/* The page of the first now is with the second; it sees what was left. */
	vend(s, 0, second);
	ASSERT_EQ(0, subordinate_read(second, &value));
	if (s->is_ram)
		ASSERT_EQ(0x0bad0bad, value);

	EXPECT_EQ(-EFAULT, subordinate_read(first, &value));
	EXPECT_EQ(-ENODEV, subordinate_ask(first, SUBORDINATE_MAP, s->page_size, 0));
}

/* A reset is a pause for those who are in the middle of it, and no more. */
TEST_F(vfio_pci_dmabuf_vend, reset)
{
	struct setup *s = &self->s;
	u32 value;
	int i;

	if (!(s->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "Device does not support reset");
	if (!s->is_ram)
		SKIP(return, "No BAR with RAM: whether a subordinate spins, cannot be told");

	spin_start(s->subs, 0);

	for (i = 0; i < 3; i++) {
		spin_wait(&s->device->bars[s->index], 0);
		vfio_pci_device_reset(s->device);
		EXPECT_EQ(NR_SUBORDINATES - 1, others_alive(s));
	}
	spin_wait(&s->device->bars[s->index], 0);

	/* It has no answer to give, for it never met a SIGBUS. */
	EXPECT_EQ(-1, recv(s->subs[0].socket, &value, sizeof(value), MSG_DONTWAIT));
	EXPECT_EQ(EAGAIN, errno);

	vfio_pci_dmabuf_revoke(s->device, s->fds[0]);
	EXPECT_EQ(-EFAULT, subordinate_answer(&s->subs[0], NULL));
}

#define CGROUP_ROOT	"/sys/fs/cgroup"
#define CGROUP		CGROUP_ROOT "/vfio_pci_dmabuf_vend_test"
#define CGROUP_LIMIT	SZ_8M

/* More than there is memory for. */
#define MANY_FILES	(1024 * 1024)

/* Enough not to mistake what others allocate meanwhile for something of theirs. */
#define MANY_EXPORTS	4000

/* The least that each takes, with a file and an inode, and how often to look. */
#define EXPORT_SIZE	SZ_512
#define ACCOUNT_ATTEMPTS 3

/* Enough for the kernel to need more than a few pages at once. */
#define MANY_RANGES	4096

/* No longer than it takes to fill CGROUP_LIMIT, on a slow machine. */
#define HUNGRY_LIMIT_MS	60000

static int file_write(const char *path, const char *text)
{
	int fd, r = 0;

	fd = open(path, O_WRONLY);
	if (fd < 0)
		return -errno;

	if (write(fd, text, strlen(text)) < 0)
		r = -errno;
	close(fd);
	return r;
}

static bool cgroup_make(const char *limit)
{
	return !file_write(CGROUP_ROOT "/cgroup.subtree_control", "+memory") &&
	       (!mkdir(CGROUP, 0755) || errno == EEXIST) &&
	       !file_write(CGROUP "/memory.max", limit);
}

static void cgroup_enter(void)
{
	struct rlimit limit = { MANY_FILES, MANY_FILES };

	VFIO_ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
	VFIO_ASSERT_EQ(file_write(CGROUP "/cgroup.procs", "0"), 0);
}

/* Export and map until that fails or somebody puts an end to it, and count. */
static void hungry(struct setup *s, int nr_ranges, u64 *nr_exports)
{
	struct vfio_region_dma_range *ranges = calloc_assert(nr_ranges, sizeof(*ranges));
	void *vaddr;
	int i, r;

	for (i = 0; i < nr_ranges; i++) {
		ranges[i].offset = (i & 1) * s->page_size;
		ranges[i].length = s->page_size;
	}

	cgroup_enter();

	do {
		r = __vfio_pci_dmabuf_export(s->device, s->index, O_RDWR, ranges, nr_ranges);
		if (r >= 0)
			r = __dmabuf_map(r, 0, s->page_size, PROT_READ, &vaddr);
		if (!r)
			mmio_read32(vaddr);
		(*nr_exports)++;
	} while (!r);

	_exit(-r);
}

static void feed(struct __test_metadata *_metadata, struct setup *s, int nr_ranges)
{
	u64 *nr_exports;
	int status = -1;
	pid_t pid;

	nr_exports = mmap(NULL, sizeof(*nr_exports), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, nr_exports);

	pid = process_fork();
	if (!pid)
		hungry(s, nr_ranges, nr_exports);

	EXPECT_EQ(0, __process_wait(pid, &status, HUNGRY_LIMIT_MS)) {
		kill(pid, SIGKILL);
		waitpid(pid, &status, 0);
	}

	EXPECT_EQ(WIFEXITED(status) ? ENOMEM : SIGKILL,
		  WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
	TH_LOG("%d ranges, %lu times: %s", nr_ranges, *nr_exports,
	       WIFEXITED(status) ? "ENOMEM" : "killed");

	/* A range is at the least where it begins and ends. */
	EXPECT_GE(CGROUP_LIMIT, *nr_exports * nr_ranges * 2 * sizeof(u64));
	ASSERT_EQ(0, munmap(nr_exports, sizeof(*nr_exports)));
}

/* Whoever exports cannot have more memory by that than he may have. */
TEST_F_TIMEOUT(vfio_pci_dmabuf_vend, memory_limit, 150)
{
	struct setup *s = &self->s;
	long nr_dmabufs = dmabuf_count();
	char limit[32];

	if (nr_dmabufs < 0)
		TH_LOG("No debugfs: leaks are not looked at");

	snprintf_assert(limit, sizeof(limit), "%u", CGROUP_LIMIT);
	if (!cgroup_make(limit))
		SKIP(return, "No limits of memory: they need cgroup2 at " CGROUP_ROOT);

	feed(_metadata, s, 1);
	feed(_metadata, s, MANY_RANGES);

	EXPECT_EQ(nr_dmabufs, dmabuf_count());
	EXPECT_EQ(0, rmdir(CGROUP));
	EXPECT_EQ(NR_SUBORDINATES - 1, others_alive(s));
}

/* The value in a line of "KEY VALUE". */
static u64 file_value(const char *path, const char *key)
{
	char line[256], name[64];
	bool found = false;
	FILE *file;
	u64 value;

	file = fopen(path, "r");
	VFIO_ASSERT_NOT_NULL(file);
	while (!found && fgets(line, sizeof(line), file))
		found = sscanf(line, "%63s %lu", name, &value) == 2 && !strcmp(name, key);
	fclose(file);

	VFIO_ASSERT_TRUE(found, "No %s in %s\n", key, path);
	return value;
}

/* Of the kernel's small objects, in bytes. What is taken of it can be negative. */
struct memory {
	s64 charged;
	s64 allocated;
};

static struct memory memory_now(void)
{
	return (struct memory) {
		.charged = file_value(CGROUP "/memory.stat", "slab"),
		.allocated = file_value("/proc/meminfo", "Slab:") * SZ_1K,
	};
}

static void export_often(struct setup *s, int times)
{
	while (times--)
		vfio_pci_dmabuf_export_range(s->device, s->index, 0, s->page_size);
}

/* Return what it takes, once the kernel has used up what others have freed. */
static void measure_exports(struct setup *s, struct memory *taken)
{
	struct memory before, after;

	cgroup_enter();
	export_often(s, MANY_EXPORTS);
	before = memory_now();
	export_often(s, MANY_EXPORTS);
	after = memory_now();

	taken->charged = after.charged - before.charged;
	taken->allocated = after.allocated - before.allocated;
	_exit(KSFT_PASS);
}

static bool is_accounted(const struct memory *taken)
{
	return taken->allocated >= MANY_EXPORTS * EXPORT_SIZE &&
	       taken->charged >= taken->allocated / 10 * 9;
}

/*
 * What the kernel allocates for a DMABUF is on the account of who exports it. Not only
 * a part of it, by which a limit is reached as well, if later: that struct dma_buf is
 * missing shows here. Something much smaller does not. Nor is there a way to keep
 * others from allocating and freeing: once without that is enough.
 */
TEST_F_TIMEOUT(vfio_pci_dmabuf_vend, memory_account, 90)
{
	struct setup *s = &self->s;
	bool accounted = false;
	struct memory *taken;
	int i, status;
	pid_t pid;

	/* Whose record of each allocation is larger than many of these, and free. */
	if (!access("/sys/kernel/debug/kmemleak", F_OK))
		SKIP(return, "kmemleak allocates more than it looks after");
	if (!cgroup_make("max"))
		SKIP(return, "No account of memory: it needs cgroup2 at " CGROUP_ROOT);

	taken = mmap(NULL, sizeof(*taken), PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, taken);

	for (i = 0; i < ACCOUNT_ATTEMPTS && !accounted; i++) {
		pid = process_fork();
		if (!pid)
			measure_exports(s, taken);
		ASSERT_EQ(0, __process_wait(pid, &status, HUNGRY_LIMIT_MS));
		ASSERT_TRUE(WIFEXITED(status));
		ASSERT_EQ(KSFT_PASS, WEXITSTATUS(status));

		TH_LOG("%d exports: %ld of %ld bytes", MANY_EXPORTS, taken->charged,
		       taken->allocated);
		accounted = is_accounted(taken);
	}

	EXPECT_TRUE(accounted);
	EXPECT_EQ(0, rmdir(CGROUP));
}

/*
 * The primary itself is a process that dies. There is no fixture for it, as it
 * must be the only one that has the device open.
 */
static void doomed_primary(struct subordinate *subs)
{
	struct vfio_pci_device *device;
	struct iommu *iommu;
	int index, fd, i;

	iommu = iommu_init(default_iommu_mode);
	device = vfio_pci_device_init(device_bdf, iommu);
	index = vfio_pci_ram_bar(device);

	if (index < 0 || !vfio_pci_has_feature(device, FEATURE_REVOKE) ||
	    !vfio_pci_has_dmabuf_mmap(device, index))
		_exit(KSFT_SKIP);

	fd = vfio_pci_dmabuf_export_range(device, index, 0, getpagesize());
	for (i = 0; i < NR_SUBORDINATES; i++) {
		subordinate_give(&subs[i], fd);
		VFIO_ASSERT_EQ(subordinate_ask(&subs[i], SUBORDINATE_MAP, getpagesize(), 0), 0);
		VFIO_ASSERT_EQ(subordinate_ask(&subs[i], SUBORDINATE_WRITE, 0, 0x11fe), 0);
	}
	spin_start(subs, 0);
	spin_wait(&device->bars[index], 0);
	kill(subs[1].pid, SIGSTOP);

	kill(getpid(), SIGKILL);
}

TEST(primary_dies_first)
{
	struct subordinate subs[NR_SUBORDINATES];
	struct vfio_pci_device *device;
	struct iommu *iommu;
	int fd, i, status;
	u32 value;
	void *bar;
	pid_t pid;

	for (i = 0; i < NR_SUBORDINATES; i++)
		subordinate_start(&subs[i]);

	pid = process_fork();
	if (!pid)
		doomed_primary(subs);

	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	if (WIFEXITED(status)) {
		for (i = 0; i < NR_SUBORDINATES; i++)
			subordinate_end(&subs[i]);
		ASSERT_EQ(KSFT_SKIP, WEXITSTATUS(status));
		SKIP(return, "The device or the kernel lacks what it takes");
	}

	/* Its successor need not wait for anybody to lend the slice again. */
	iommu = iommu_init(default_iommu_mode);
	device = vfio_pci_device_init(device_bdf, iommu);
	bar = device->bars[vfio_pci_ram_bar(device)].vaddr;
	mmio_write32(bar, 0x5ccce550);
	fd = vfio_pci_dmabuf_export_range(device, vfio_pci_ram_bar(device), 0, getpagesize());

	EXPECT_EQ(-EFAULT, subordinate_answer(&subs[0], NULL));
	ASSERT_EQ(0, kill(subs[1].pid, SIGCONT));
	for (i = 0; i < NR_SUBORDINATES; i++) {
		EXPECT_EQ(-EFAULT, subordinate_read(&subs[i], &value));
		EXPECT_EQ(-EFAULT, subordinate_ask(&subs[i], SUBORDINATE_WRITE, 0, 0x0bad));
		EXPECT_EQ(-ENODEV, subordinate_ask(&subs[i], SUBORDINATE_MAP,
						   getpagesize(), 0));
	}

	subordinate_give(&subs[2], fd);
	ASSERT_EQ(0, subordinate_ask(&subs[2], SUBORDINATE_MAP, getpagesize(), 0));
	ASSERT_EQ(0, subordinate_read(&subs[2], &value));
	EXPECT_EQ(0x5ccce550, value);
	EXPECT_EQ(-EFAULT, subordinate_read(&subs[1], &value));

	for (i = 0; i < NR_SUBORDINATES; i++)
		ASSERT_EQ(0, subordinate_end(&subs[i]));
	ASSERT_EQ(0, close(fd));
	vfio_pci_device_cleanup(device);
	iommu_cleanup(iommu);
}

int main(int argc, char *argv[])
{
	if (argc == 2 && !strcmp(argv[1], SUBORDINATE_ARG))
		return subordinate_main(subordinate_escape);

	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
