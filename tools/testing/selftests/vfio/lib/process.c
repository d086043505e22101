// SPDX-License-Identifier: GPL-2.0-only
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <linux/iommufd.h>
#include <linux/kernel.h>
#include <linux/sizes.h>

#include <libvfio.h>

/* Enough to upset whoever cannot stand a DMABUF that is held by O_PATH. */
#define MAX_PINS		64

/* There is nothing else in a subordinate's IOAS. */
#define IMPORT_IOVA		SZ_1M

u64 now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000ULL + now.tv_nsec / 1000;
}

u64 number_from_env(const char *name, u64 otherwise)
{
	const char *text = getenv(name);
	char *end;
	u64 number;

	if (!text)
		return otherwise;

	number = strtoul(text, &end, 0);
	VFIO_ASSERT_TRUE(*text && !*end, "%s: '%s' is no number\n", name, text);
	return number;
}

pid_t process_fork(void)
{
	pid_t parent = getpid();
	pid_t pid;

	pid = fork();
	VFIO_ASSERT_GE(pid, 0);

	if (!pid) {
		VFIO_ASSERT_EQ(prctl(PR_SET_PDEATHSIG, SIGKILL), 0);
		if (getppid() != parent)
			_exit(KSFT_FAIL);
	}

	return pid;
}

int process_count_fds(void)
{
	struct dirent *entry;
	int nr = 0;
	DIR *dir;

	dir = opendir("/proc/self/fd");
	VFIO_ASSERT_NOT_NULL(dir);
	while ((entry = readdir(dir)))
		nr++;
	VFIO_ASSERT_EQ(closedir(dir), 0);
	return nr;
}

int process_exit_status(pid_t pid)
{
	int status;

	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	VFIO_ASSERT_TRUE(WIFEXITED(status), "%d has died, status 0x%x\n", pid, status);
	return WEXITSTATUS(status);
}

int __process_wait(pid_t pid, int *status, int timeout_ms)
{
	struct pollfd pollfd = { .events = POLLIN };
	int r;

	pollfd.fd = syscall(SYS_pidfd_open, pid, 0);
	VFIO_ASSERT_GE(pollfd.fd, 0);
	r = poll(&pollfd, 1, timeout_ms);
	VFIO_ASSERT_GE(r, 0);
	VFIO_ASSERT_EQ(close(pollfd.fd), 0);

	if (!r)
		return -ETIMEDOUT;

	VFIO_ASSERT_EQ(waitpid(pid, status, 0), pid);
	return 0;
}

int __vfio_pci_rebind(const char *bdf)
{
	char *driver, *bound;
	int status;
	pid_t pid;

	/* Nobody can wake up who waits for the driver. */
	pid = process_fork();
	if (!pid) {
		driver = sysfs_driver_get(bdf);
		sysfs_driver_unbind(bdf);
		sysfs_driver_bind(bdf, driver);

		/* A probe that fails does not fail the write to sysfs. */
		bound = sysfs_driver_get(bdf);
		VFIO_ASSERT_TRUE(bound && !strcmp(bound, driver), "%s has no driver\n", bdf);
		_exit(KSFT_PASS);
	}

	return __process_wait(pid, &status, 2 * PROMPT_MS) ?: status;
}

static char process_state(pid_t pid)
{
	char path[32], state;
	FILE *file;
	int r;

	snprintf_assert(path, sizeof(path), "/proc/%d/stat", pid);
	file = fopen(path, "r");
	/* A thread leaves no zombie behind. */
	if (!file)
		return 'Z';
	r = fscanf(file, "%*d (%*[^)]) %c", &state);
	VFIO_ASSERT_EQ(r, 1);
	fclose(file);

	return state;
}

bool process_blocks(pid_t pid)
{
	u64 end = now_ms() + PROMPT_MS;
	/* Twice in a row: it may sleep for a moment on the way there. */
	int times = 0;

	for (;;) {
		VFIO_ASSERT_LT(now_ms(), end, "%d neither blocks nor ends\n", pid);

		switch (process_state(pid)) {
		case 'D':
			if (++times == 2)
				return true;
			break;
		case 'Z':
			return false;
		default:
			times = 0;
		}

		usleep(10000);
	}
}

struct request {
	enum subordinate_operation operation;
	u32 value;
	u64 size;
};

struct answer {
	int result;
	u32 value;
};

/* What a subordinate has. */
struct possession {
	int fd;
	void *vaddr;
	u64 size;
	struct iommu *iommu;
	u64 import_size;
	int pins[MAX_PINS];
	int nr_pins;
};

static int possession_map(struct possession *p, u64 size)
{
	void *vaddr;
	int r;

	r = __dmabuf_map(p->fd, 0, size, PROT_READ | PROT_WRITE, &vaddr);
	if (r)
		return r;

	/* The last one counts, the others are there to be revoked as well. */
	p->vaddr = vaddr;
	p->size = size;
	return 0;
}

static int possession_spin(struct possession *p, u32 offset)
{
	u32 value, count = 0;
	int r;

	do {
		r = offset ? __mmio_write32(p->vaddr + offset, ++count) :
			     __mmio_read32(p->vaddr, &value);
	} while (!r);

	return r;
}

static int possession_import(struct possession *p, u64 size)
{
	if (!p->iommu)
		p->iommu = iommu_init(MODE_IOMMUFD);

	p->import_size = size;
	return __iommu_map_dmabuf(p->iommu, p->fd, 0, size, IMPORT_IOVA,
				  IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE);
}

static int possession_pin(struct possession *p)
{
	char path[32];
	int fd;

	VFIO_ASSERT_LT(p->nr_pins, MAX_PINS);
	snprintf_assert(path, sizeof(path), "/proc/self/fd/%d", p->fd);
	fd = open(path, O_PATH | O_CLOEXEC);
	if (fd < 0)
		return -errno;

	p->pins[p->nr_pins++] = fd;
	return 0;
}

static void possession_unpin(struct possession *p)
{
	while (p->nr_pins)
		VFIO_ASSERT_EQ(close(p->pins[--p->nr_pins]), 0);
}

static struct answer subordinate_do(struct possession *p, struct request *request,
				    int (*other)(int fd, u64 size, u32 value))
{
	struct answer answer = {};

	switch (request->operation) {
	case SUBORDINATE_RECEIVE:
		p->fd = fd_receive(SUBORDINATE_SOCKET, &answer.value);
		break;
	case SUBORDINATE_CLOSE:
		VFIO_ASSERT_EQ(close(p->fd), 0);
		p->fd = -1;
		break;
	case SUBORDINATE_MAP:
		answer.result = possession_map(p, request->size);
		break;
	case SUBORDINATE_UNMAP:
		dmabuf_unmap(p->vaddr, p->size);
		break;
	case SUBORDINATE_READ:
		answer.result = __mmio_read32(p->vaddr, &answer.value);
		break;
	case SUBORDINATE_WRITE:
		answer.result = __mmio_write32(p->vaddr, request->value);
		break;
	case SUBORDINATE_SPIN:
		answer.result = possession_spin(p, request->value);
		break;
	case SUBORDINATE_IMPORT:
		answer.result = possession_import(p, request->size);
		break;
	case SUBORDINATE_UNIMPORT:
		iommu_unmap_dmabuf(p->iommu, IMPORT_IOVA, p->import_size);
		break;
	case SUBORDINATE_PIN:
		answer.result = possession_pin(p);
		break;
	case SUBORDINATE_UNPIN:
		possession_unpin(p);
		break;
	case SUBORDINATE_OTHER:
		answer.result = other(p->fd, request->size, request->value);
		break;
	}

	return answer;
}

static int subordinate_serve(struct possession *p, int (*other)(int fd, u64 size, u32 value))
{
	struct request request;
	struct answer answer;

	while (read(SUBORDINATE_SOCKET, &request, sizeof(request)) == sizeof(request)) {
		answer = subordinate_do(p, &request, other);
		if (write(SUBORDINATE_SOCKET, &answer, sizeof(answer)) != sizeof(answer))
			break;
	}

	return KSFT_PASS;
}

int subordinate_main(int (*other)(int fd, u64 size, u32 value))
{
	struct possession p = { .fd = -1 };

	return subordinate_serve(&p, other);
}

/* No other fd is left of the other process, and of other subordinates. */
static void subordinate_keep_socket(int socket)
{
	VFIO_ASSERT_EQ(dup2(socket, SUBORDINATE_SOCKET), SUBORDINATE_SOCKET);
	VFIO_ASSERT_EQ(fcntl(SUBORDINATE_SOCKET, F_SETFD, 0), 0);
	VFIO_ASSERT_EQ(close_range(SUBORDINATE_SOCKET + 1, UINT_MAX, 0), 0);
}

/* Returns twice, as fork() does: true in the subordinate. */
static bool subordinate_split(struct subordinate *sub)
{
	int sockets[2];

	VFIO_ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);

	sub->pid = process_fork();
	if (!sub->pid) {
		subordinate_keep_socket(sockets[1]);
		return true;
	}

	VFIO_ASSERT_EQ(close(sockets[1]), 0);
	sub->socket = sockets[0];
	subordinate_set_timeout(sub, SUBORDINATE_TIMEOUT_S);
	return false;
}

void subordinate_exec(int socket, const char *arg)
{
	subordinate_keep_socket(socket);
	execl("/proc/self/exe", "subordinate", SUBORDINATE_ARG, arg, NULL);
	_exit(KSFT_FAIL);
}

void subordinate_start(struct subordinate *sub)
{
	if (subordinate_split(sub))
		subordinate_exec(SUBORDINATE_SOCKET, NULL);
}

void subordinate_fork(struct subordinate *sub, void *vaddr)
{
	struct possession p = { .fd = -1, .vaddr = vaddr };

	if (subordinate_split(sub))
		_exit(subordinate_serve(&p, NULL));
}

void subordinate_set_timeout(struct subordinate *sub, int seconds)
{
	struct timeval timeout = { .tv_sec = seconds };

	VFIO_ASSERT_EQ(setsockopt(sub->socket, SOL_SOCKET, SO_RCVTIMEO, &timeout,
				  sizeof(timeout)), 0);
}

int subordinate_end(struct subordinate *sub)
{
	int status;

	VFIO_ASSERT_EQ(close(sub->socket), 0);
	VFIO_ASSERT_EQ(waitpid(sub->pid, &status, 0), sub->pid);
	return status;
}

void subordinate_ask_only(struct subordinate *sub, enum subordinate_operation operation,
			  u64 size, u32 value)
{
	struct request request = {
		.operation = operation,
		.size = size,
		.value = value,
	};

	VFIO_ASSERT_EQ(write(sub->socket, &request, sizeof(request)), sizeof(request));
}

int subordinate_answer(struct subordinate *sub, u32 *value)
{
	struct answer answer;

	VFIO_ASSERT_EQ(read(sub->socket, &answer, sizeof(answer)), sizeof(answer),
		       "Subordinate %d does not answer\n", sub->pid);
	if (value)
		*value = answer.value;
	return answer.result;
}

void subordinate_give(struct subordinate *sub, int fd)
{
	subordinate_ask_only(sub, SUBORDINATE_RECEIVE, 0, 0);
	fd_send(sub->socket, fd, 0);
	VFIO_ASSERT_EQ(subordinate_answer(sub, NULL), 0);
}
