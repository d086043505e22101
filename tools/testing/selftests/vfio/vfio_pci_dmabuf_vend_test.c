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
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <linux/iommufd.h>
#include <linux/kernel.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

#define FEATURE_REVOKE	(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE)

/* The fd that a subordinate finds its socket at. */
#define SUBORDINATE_SOCKET	3

/* How long to wait for a subordinate, and how long a revoke may take. */
#define ANSWER_TIMEOUT_S	20
#define REVOKE_LIMIT_MS		2000

static const char *device_bdf;

/*
 * Subordinate
 */

enum operation {
	/* Receive the DMABUF that follows as a message of its own. */
	OP_RECEIVE,
	/* Map all of the DMABUF: 0 or -errno. */
	OP_MAP,
	/* Read @value: 0 or -errno. */
	OP_READ,
	/* Write @value: 0 or -errno. */
	OP_WRITE,
	/* Read over and over, without looking at the socket, until it fails. */
	OP_SPIN,
	/* Try to reach more than was handed out: how many attempts succeeded. */
	OP_ESCAPE,
};

struct request {
	enum operation operation;
	u32 value;
	u64 size;
};

struct answer {
	int result;
	u32 value;
};

#define TRY(_successes, _attempt) do {					\
	if (_attempt) {							\
		fprintf(stderr, "Subordinate succeeded: %s\n", #_attempt); \
		(_successes)++;						\
	}								\
} while (0)

static bool can_map(int fd, u64 offset, u64 size, int prot, int flags)
{
	void *vaddr = mmap(NULL, size, prot, flags, fd, offset);

	if (vaddr == MAP_FAILED)
		return false;

	munmap(vaddr, size);
	return true;
}

static bool can_grow(int fd, u64 size)
{
	void *vaddr, *new;

	vaddr = dmabuf_map(fd, 0, size);
	new = mremap(vaddr, size, 2 * size, MREMAP_MAYMOVE);
	if (new != MAP_FAILED)
		return true;

	dmabuf_unmap(vaddr, size);
	return false;
}

static bool can_reopen(int fd, int flags)
{
	char path[32];
	int new;

	snprintf_assert(path, sizeof(path), "/proc/self/fd/%d", fd);
	new = open(path, flags);
	if (new < 0)
		return false;

	close(new);
	return true;
}

static bool can_feature(int fd, u32 feature, void *data, size_t size)
{
	return vfio_device_feature_ioctl(fd, feature, data, size) >= 0;
}

/* Return how much of what must not work did. @size is that of the slice. */
static int subordinate_escape(int fd, u64 size)
{
	struct vfio_device_feature_dma_buf_memattr memattr = { .dmabuf_fd = fd };
	struct vfio_device_feature_dma_buf_revoke revoke = { .dmabuf_fd = fd };
	struct vfio_device_feature_dma_buf export = { .nr_ranges = 1 };
	struct vfio_device_info info = { .argsz = sizeof(info) };
	struct vfio_region_info region = { .argsz = sizeof(region) };
	int rw = PROT_READ | PROT_WRITE;
	int successes = 0;
	u32 value;
	int i;

	/* Beyond the slice, and by the offsets that the device fd knows. */
	TRY(successes, can_map(fd, 0, 2 * size, rw, MAP_SHARED));
	TRY(successes, can_map(fd, size, size, rw, MAP_SHARED));
	TRY(successes, can_map(fd, -size, size, rw, MAP_SHARED));
	for (i = 1; i < 9; i++)
		TRY(successes, can_map(fd, (u64)i << 40, size, rw, MAP_SHARED));
	TRY(successes, can_map(fd, 0, size, PROT_READ, MAP_PRIVATE));
	TRY(successes, can_map(fd, 0, size, PROT_READ | PROT_EXEC, MAP_SHARED));
	TRY(successes, can_grow(fd, size));

	/* By another kind of access. */
	TRY(successes, can_reopen(fd, O_RDWR));
	TRY(successes, can_reopen(fd, O_RDONLY));
	TRY(successes, read(fd, &value, sizeof(value)) > 0);
	TRY(successes, pwrite(fd, &value, sizeof(value), 0) > 0);
	TRY(successes, !ftruncate(fd, 2 * size));
	TRY(successes, !fallocate(fd, 0, 0, 2 * size));

	/* By treating it as the device. */
	TRY(successes, !ioctl(fd, VFIO_DEVICE_GET_INFO, &info));
	TRY(successes, !ioctl(fd, VFIO_DEVICE_GET_REGION_INFO, &region));
	TRY(successes, !ioctl(fd, VFIO_DEVICE_RESET, NULL));
	TRY(successes, can_feature(fd, VFIO_DEVICE_FEATURE_GET |
				       VFIO_DEVICE_FEATURE_DMA_BUF, &export, sizeof(export)));
	TRY(successes, can_feature(fd, FEATURE_REVOKE, &revoke, sizeof(revoke)));
	TRY(successes, can_feature(fd, VFIO_DEVICE_FEATURE_SET |
				       VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR,
				   &memattr, sizeof(memattr)));

	return successes;
}

static int subordinate_main(void)
{
	struct request request;
	struct answer answer;
	void *vaddr = NULL;
	int fd = -1;

	while (read(SUBORDINATE_SOCKET, &request, sizeof(request)) == sizeof(request)) {
		answer = (struct answer) {};

		switch (request.operation) {
		case OP_RECEIVE:
			fd = fd_receive(SUBORDINATE_SOCKET, &answer.value);
			break;
		case OP_MAP:
			answer.result = __dmabuf_map(fd, 0, request.size,
						     PROT_READ | PROT_WRITE, &vaddr);
			break;
		case OP_READ:
			answer.result = __mmio_read32(vaddr, &answer.value);
			break;
		case OP_WRITE:
			answer.result = __mmio_write32(vaddr, request.value);
			break;
		case OP_SPIN:
			while (!answer.result)
				answer.result = __mmio_read32(vaddr, &answer.value);
			break;
		case OP_ESCAPE:
			answer.result = subordinate_escape(fd, request.size);
			break;
		}

		if (write(SUBORDINATE_SOCKET, &answer, sizeof(answer)) != sizeof(answer))
			break;
	}

	return KSFT_PASS;
}

/*
 * Primary
 */

struct subordinate {
	pid_t pid;
	int socket;
};

static void subordinate_start(struct subordinate *sub)
{
	struct timeval timeout = { .tv_sec = ANSWER_TIMEOUT_S };
	int sockets[2];

	VFIO_ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
	VFIO_ASSERT_EQ(setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &timeout,
				  sizeof(timeout)), 0);

	sub->pid = fork();
	VFIO_ASSERT_GE(sub->pid, 0);

	if (!sub->pid) {
		/* Leave nothing of the primary behind: no fd, no memory. */
		dup2(sockets[1], SUBORDINATE_SOCKET);
		close_range(SUBORDINATE_SOCKET + 1, UINT_MAX, 0);
		fcntl(SUBORDINATE_SOCKET, F_SETFD, 0);
		execl("/proc/self/exe", "subordinate", "--subordinate", NULL);
		_exit(KSFT_FAIL);
	}

	VFIO_ASSERT_EQ(close(sockets[1]), 0);
	sub->socket = sockets[0];
}

static void subordinate_ask_only(struct subordinate *sub, enum operation operation,
				 u64 size, u32 value)
{
	struct request request = {
		.operation = operation,
		.size = size,
		.value = value,
	};

	VFIO_ASSERT_EQ(write(sub->socket, &request, sizeof(request)), sizeof(request));
}

static struct answer subordinate_answer(struct subordinate *sub)
{
	struct answer answer;

	VFIO_ASSERT_EQ(read(sub->socket, &answer, sizeof(answer)), sizeof(answer),
		       "Subordinate %d does not answer\n", sub->pid);
	return answer;
}

static int subordinate_ask(struct subordinate *sub, enum operation operation,
			   u64 size, u32 value)
{
	subordinate_ask_only(sub, operation, size, value);
	return subordinate_answer(sub).result;
}

static int subordinate_read(struct subordinate *sub, u32 *value)
{
	struct answer answer;

	subordinate_ask_only(sub, OP_READ, 0, 0);
	answer = subordinate_answer(sub);
	*value = answer.value;
	return answer.result;
}

static void subordinate_give(struct subordinate *sub, int fd)
{
	subordinate_ask_only(sub, OP_RECEIVE, 0, 0);
	fd_send(sub->socket, fd, 0);
	VFIO_ASSERT_EQ(subordinate_answer(sub).result, 0);
}

static int subordinate_end(struct subordinate *sub)
{
	int status;

	VFIO_ASSERT_EQ(close(sub->socket), 0);
	VFIO_ASSERT_EQ(waitpid(sub->pid, &status, 0), sub->pid);
	return status;
}

static u64 now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000ULL + now.tv_nsec / 1000000;
}

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

#define FIXTURE_VARIANT_ADD_IOMMU_MODE(_iommu_mode)		\
FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_vend, _iommu_mode) {	\
	.iommu_mode = #_iommu_mode,				\
}

FIXTURE_VARIANT_ADD_ALL_IOMMU_MODES();

#undef FIXTURE_VARIANT_ADD_IOMMU_MODE

static void vend(struct setup *s, int page, struct subordinate *sub)
{
	s->fds[page] = vfio_pci_dmabuf_export_range(s->device, s->index,
						    page * s->page_size, s->page_size);
	subordinate_give(sub, s->fds[page]);
	VFIO_ASSERT_EQ(subordinate_ask(sub, OP_MAP, s->page_size, 0), 0);
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
		ASSERT_EQ(0, subordinate_ask(&s->subs[i], OP_WRITE, 0, 0x5b000001 + i));
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

	ASSERT_EQ(0, subordinate_ask(&s->subs[0], OP_ESCAPE, s->page_size, 0));
	ASSERT_EQ(NR_SUBORDINATES - 1, others_alive(s));
}

TEST_F(vfio_pci_dmabuf_vend, revoke_idle)
{
	struct setup *s = &self->s;
	u32 value;
	u64 ms;

	ASSERT_EQ(0, subordinate_read(&s->subs[0], &value));
	ASSERT_EQ(0, revoke_first(s, &ms));
	EXPECT_LT(ms, REVOKE_LIMIT_MS);

	EXPECT_EQ(-EFAULT, subordinate_read(&s->subs[0], &value));
	EXPECT_EQ(-ENODEV, subordinate_ask(&s->subs[0], OP_MAP, s->page_size, 0));
	EXPECT_EQ(NR_SUBORDINATES - 1, others_alive(s));
}

TEST_F(vfio_pci_dmabuf_vend, revoke_spinning)
{
	struct setup *s = &self->s;
	u64 ms;

	subordinate_ask_only(&s->subs[0], OP_SPIN, 0, 0);
	EXPECT_EQ(NR_SUBORDINATES - 1, others_alive(s));

	ASSERT_EQ(0, revoke_first(s, &ms));
	EXPECT_LT(ms, REVOKE_LIMIT_MS);
	EXPECT_EQ(-EFAULT, subordinate_answer(&s->subs[0]).result);
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
	EXPECT_LT(ms, REVOKE_LIMIT_MS);

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
	EXPECT_LT(ms, REVOKE_LIMIT_MS);
	EXPECT_EQ(NR_SUBORDINATES - 1, others_alive(s));

	/* Somebody has to be there for teardown, and can have the slice. */
	ASSERT_EQ(0, close(s->fds[0]));
	subordinate_start(&s->subs[0]);
	vend(s, 0, &s->subs[0]);
}

TEST_F(vfio_pci_dmabuf_vend, vend_anew)
{
	struct setup *s = &self->s;
	struct subordinate *first = &s->subs[0], *second = &s->subs[1];
	u32 value;
	u64 ms;

	if (s->is_ram)
		ASSERT_EQ(0, subordinate_ask(first, OP_WRITE, 0, 0x0bad0bad));
	ASSERT_EQ(0, revoke_first(s, &ms));
	ASSERT_EQ(0, close(s->fds[0]));

	/* The page of the first now is with the second; it sees what was left. */
	vend(s, 0, second);
	ASSERT_EQ(0, subordinate_read(second, &value));
	if (s->is_ram)
		ASSERT_EQ(0x0bad0bad, value);

	EXPECT_EQ(-EFAULT, subordinate_read(first, &value));
	EXPECT_EQ(-ENODEV, subordinate_ask(first, OP_MAP, s->page_size, 0));
}

/* A reset is a pause for those who are in the middle of it, and no more. */
TEST_F(vfio_pci_dmabuf_vend, reset)
{
	struct setup *s = &self->s;
	u32 value;
	int i;

	if (!(s->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "Device does not support reset");

	subordinate_ask_only(&s->subs[0], OP_SPIN, 0, 0);

	for (i = 0; i < 3; i++) {
		vfio_pci_device_reset(s->device);
		EXPECT_EQ(NR_SUBORDINATES - 1, others_alive(s));
	}

	/* It has no answer to give, for it never met a SIGBUS. */
	EXPECT_EQ(-1, recv(s->subs[0].socket, &value, sizeof(value), MSG_DONTWAIT));
	EXPECT_EQ(EAGAIN, errno);

	vfio_pci_dmabuf_revoke(s->device, s->fds[0]);
	EXPECT_EQ(-EFAULT, subordinate_answer(&s->subs[0]).result);
}

/*
 * The primary itself is a process that dies. There is no fixture for it, as it
 * must be the only one that has the device open.
 */
static void doomed_primary(const char *mode, struct subordinate *sub)
{
	struct vfio_pci_device *device;
	struct iommu *iommu;
	int index, fd;

	iommu = iommu_init(mode);
	device = vfio_pci_device_init(device_bdf, iommu);
	index = vfio_pci_ram_bar(device);

	if (index < 0 || !vfio_pci_has_feature(device, FEATURE_REVOKE) ||
	    !vfio_pci_has_dmabuf_mmap(device, index))
		_exit(KSFT_SKIP);

	fd = vfio_pci_dmabuf_export_range(device, index, 0, getpagesize());
	subordinate_give(sub, fd);
	VFIO_ASSERT_EQ(subordinate_ask(sub, OP_MAP, getpagesize(), 0), 0);
	VFIO_ASSERT_EQ(subordinate_ask(sub, OP_WRITE, 0, 0x11fe), 0);
	subordinate_ask_only(sub, OP_SPIN, 0, 0);

	kill(getpid(), SIGKILL);
}

TEST(primary_dies_first)
{
	struct subordinate sub;
	int status;
	pid_t pid;

	subordinate_start(&sub);

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		doomed_primary(default_iommu_mode, &sub);

	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	if (WIFEXITED(status)) {
		subordinate_end(&sub);
		ASSERT_EQ(KSFT_SKIP, WEXITSTATUS(status));
		SKIP(return, "The device or the kernel lacks what it takes");
	}

	EXPECT_EQ(-EFAULT, subordinate_answer(&sub).result);
	EXPECT_EQ(-ENODEV, subordinate_ask(&sub, OP_MAP, getpagesize(), 0));
	ASSERT_EQ(0, subordinate_end(&sub));
}

int main(int argc, char *argv[])
{
	if (argc == 2 && !strcmp(argv[1], "--subordinate"))
		return subordinate_main();

	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
