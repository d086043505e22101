// SPDX-License-Identifier: GPL-2.0-only
/*
 * Vend an edu-plus device to other processes, slice by slice, and report.
 *
 * Three kinds of processes take part. The primary owns the device. Subordinates
 * are started by it, without privileges and with nothing but a socket, through
 * which it hands each of them two DMABUFs: over a frame of registers, and over
 * a slice of the RAM. The observer, the process that one starts, has nothing to
 * do with the device until the primary has been killed; then it asks the
 * subordinates what is left to them.
 *
 * This is a demonstration to be read and run by hand, not a test for the
 * harness. It nevertheless checks everything that it claims: the exit status
 * is 0 only if all of it holds.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <linux/dma-buf.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "lib/drivers/edu/registers.h"

#define SUBORDINATES_MIN	4
#define SUBORDINATES_MAX	16
#define RAM_SLICE_MAX		SZ_4M
#define PAGE			SZ_4K

/* Who a subordinate is */
#define NOBODY			65534

/* Rounds of work before a subordinate says that it is busy. */
#define ROUNDS			100

/* PCI Express gives a function this long after a reset, and so does Linux. */
#define RESET_MIN_US		100000

/* For all of it, which takes a few seconds on a machine that is not busy. */
#define DEADLINE_S		240

/*
 * Report. The observer continues the primary's, so this is in shared memory.
 */

struct report {
	unsigned int held;
	unsigned int broken;
};

static struct report *report;

static __printf(1, 2) void section(const char *fmt, ...)
{
	va_list args;

	printf("\n");
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
}

static __printf(2, 3) void check(bool holds, const char *fmt, ...)
{
	va_list args;

	if (holds)
		report->held++;
	else
		report->broken++;

	printf("  %s  ", holds ? "ok  " : "FAIL");
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
}

static __printf(1, 2) void note(const char *fmt, ...)
{
	va_list args;

	printf("        ");
	va_start(args, fmt);
	vprintf(fmt, args);
	va_end(args);
	printf("\n");
}

/*
 * What passes between the primary and a subordinate: each request has exactly
 * one answer.
 */

enum operation {
	/* How much is there of what should not be, fds, maps, and privileges? */
	OP_INVENTORY,
	/* Receive the fd that follows as a message of its own. */
	OP_RECEIVE,
	/* Map all of a slice: the address. */
	OP_MAP,
	/* Read or write a word of a slice. */
	OP_READ,
	OP_WRITE,
	/* Look up the memory type in the page tables. */
	OP_MEMORY_TYPE,
	/* Put values into frame and RAM, and look whether they are there. */
	OP_SETTLE,
	OP_INSPECT,
	/* Try what should not work. */
	OP_TRY,
	/* Work until told to stop; do it so eagerly as to never be told. */
	OP_WORK,
	OP_SPIN,
	/* How much work has been done? To stop is the same, for the last time. */
	OP_TELL,
	OP_STOP,
};

enum slice {
	SLICE_FRAME,
	SLICE_RAM,
	SLICE_RAM_WC,
	SLICE_READONLY,
	/* No slice, but also something to be received. */
	PAGE_TABLES,
	NR_SLICES,
};

struct request {
	enum operation operation;
	enum slice slice;
	u32 value;
	u64 size;
};

struct work {
	/* 0 as long as all goes well, else -errno */
	int result;
	u64 accesses;
	u32 rings;

	/* Around a reset, as far as there was one. */
	u64 accesses_before;
	u64 last_before_us;
	u64 first_after_us;
};

struct inspection {
	bool identity;
	bool scratch;
	bool inverter;
	bool doorbell;
	u64 pages;
};

struct answer {
	int result;
	union {
		u64 value;
		struct work work;
		struct inspection inspection;
	};
};

/* The values that the owner number @index leaves in its slices. */

static u32 frame_value(u32 index)
{
	return 0xf0000000U | (index + 1) * 0x101U;
}

static u32 ram_value(u32 index, u64 page)
{
	return (index + 1) << 20 | page;
}

/* Words of a page of RAM: the value from above, and some to play with. */
#define RAM_VALUE		0x0
#define RAM_WORK		0x8
#define RAM_WC			0x10

/* In the scratch register of a frame that is being worked; reset clears it. */
#define SCRATCH_AT_WORK		0x3057feedU

/*
 * Subordinate
 */

struct self {
	const char *bdf;
	int fd_of_primary;
	struct {
		int fd;
		void *vaddr;
		u64 size;
	} slices[NR_SLICES];

	enum { IDLE, WORKING, SPINNING } state;
	struct work work;
};

static int count_foreign_fds(void)
{
	struct dirent *entry;
	int count = 0;
	DIR *dir;

	dir = opendir("/proc/self/fd");
	VFIO_ASSERT_NOT_NULL(dir);

	/* Its own are standard input, output and error, the socket and this. */
	while ((entry = readdir(dir))) {
		int fd = atoi(entry->d_name);

		count += fd > SUBORDINATE_SOCKET && fd != dirfd(dir);
	}

	closedir(dir);
	return count;
}

static int count_device_maps(void)
{
	char line[1024];
	int count = 0;
	FILE *file;

	file = fopen("/proc/self/maps", "r");
	VFIO_ASSERT_NOT_NULL(file);

	while (fgets(line, sizeof(line), file))
		count += strstr(line, "dmabuf") || strstr(line, "/dev/");

	fclose(file);
	return count;
}

static void do_inventory(struct self *self, const struct request *request, struct answer *answer)
{
	answer->value = count_foreign_fds() + count_device_maps() + !getuid() + !geteuid();
}

static void do_receive(struct self *self, const struct request *request, struct answer *answer)
{
	u32 value;

	self->slices[request->slice].fd = fd_receive(SUBORDINATE_SOCKET, &value);
}

static void do_map(struct self *self, const struct request *request, struct answer *answer)
{
	int prot = request->slice == SLICE_READONLY ? PROT_READ : PROT_READ | PROT_WRITE;
	void *vaddr;

	answer->result = __dmabuf_map(self->slices[request->slice].fd, 0, request->size,
				      prot, &vaddr);
	if (answer->result)
		return;

	self->slices[request->slice].vaddr = vaddr;
	self->slices[request->slice].size = request->size;
	answer->value = (unsigned long)vaddr;
}

static void do_read(struct self *self, const struct request *request, struct answer *answer)
{
	u32 value = 0;

	answer->result = __mmio_read32(self->slices[request->slice].vaddr, &value);
	answer->value = value;
}

static void do_write(struct self *self, const struct request *request, struct answer *answer)
{
	void *vaddr = self->slices[request->slice].vaddr;

	answer->result = __mmio_write32(vaddr + RAM_WC, request->value);
}

static void do_memory_type(struct self *self, const struct request *request, struct answer *answer)
{
	void *vaddr = self->slices[request->slice].vaddr;
	struct page_mapping mapping;

	mmio_read32(vaddr);
	answer->result = __page_mapping_get_from(self->slices[PAGE_TABLES].fd, vaddr, &mapping);
	answer->value = mapping.type;
}

static void do_settle(struct self *self, const struct request *request, struct answer *answer)
{
	void *frame = self->slices[SLICE_FRAME].vaddr;
	void *ram = self->slices[SLICE_RAM].vaddr;
	u64 pages = self->slices[SLICE_RAM].size / PAGE;
	u32 index = request->value, i;

	mmio_write32(frame + EDU_FRAME_SCRATCH, frame_value(index));
	mmio_write32(frame + EDU_FRAME_INVERT, frame_value(index));
	for (i = 0; i <= index; i++)
		mmio_write32(frame + EDU_FRAME_DOORBELL, frame_value(index) + i);

	for (i = 0; i < pages; i++)
		mmio_write32(ram + i * PAGE + RAM_VALUE, ram_value(index, i));
}

static void do_inspect(struct self *self, const struct request *request, struct answer *answer)
{
	void *frame = self->slices[SLICE_FRAME].vaddr;
	void *ram = self->slices[SLICE_RAM].vaddr;
	u64 pages = self->slices[SLICE_RAM].size / PAGE;
	u32 index = request->value, value = frame_value(index), i;

	answer->inspection = (struct inspection) {
		.identity = mmio_read32(frame + EDU_FRAME_ID) == EDU_FRAME_ID_VALUE &&
			    mmio_read32(frame + EDU_FRAME_INDEX) == index,
		.scratch = mmio_read32(frame + EDU_FRAME_SCRATCH) == value,
		.inverter = mmio_read32(frame + EDU_FRAME_INVERT) == ~value,
		.doorbell = mmio_read32(frame + EDU_FRAME_DOORBELL_COUNT) == index + 1 &&
			    mmio_read32(frame + EDU_FRAME_DOORBELL_LAST) == value + index,
	};

	for (i = 0; i < pages; i++) {
		u32 found = mmio_read32(ram + i * PAGE + RAM_VALUE);

		answer->inspection.pages += found == ram_value(index, i);
	}
}

/*
 * Attempts to reach more than what was vended: a call, or an mmap() if there is
 * none. Each gives 0 if it succeeds, -errno if not.
 */

struct attempt {
	const char *what;
	int (*call)(struct self *self);

	enum slice slice;
	u64 offset;
	u64 size;
	int prot;
	int flags;

	/* How it is refused, and what to call that. */
	int error;
	const char *name;
};

static int result_of(int ret)
{
	return ret < 0 ? -errno : 0;
}

static int try_mmap(struct self *self, const struct attempt *attempt)
{
	void *vaddr;

	vaddr = mmap(NULL, attempt->size, attempt->prot, attempt->flags,
		     self->slices[attempt->slice].fd, attempt->offset);
	if (vaddr == MAP_FAILED)
		return -errno;

	munmap(vaddr, attempt->size);
	return 0;
}

static int try_mremap(struct self *self)
{
	void *vaddr = dmabuf_map(self->slices[SLICE_FRAME].fd, 0, PAGE);

	return result_of(mremap(vaddr, PAGE, 2 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED ? -1 : 0);
}

static int try_remap_file_pages(struct self *self)
{
	void *vaddr = dmabuf_map(self->slices[SLICE_FRAME].fd, 0, PAGE);

	return result_of(remap_file_pages(vaddr, PAGE, 0, 1, 0));
}

static int try_readonly_mprotect(struct self *self)
{
	return result_of(mprotect(self->slices[SLICE_READONLY].vaddr, PAGE,
				  PROT_READ | PROT_WRITE));
}

static int try_readonly_store(struct self *self)
{
	return __mmio_write32(self->slices[SLICE_READONLY].vaddr + RAM_VALUE, 0xbad);
}

static int try_open(const char *path)
{
	int fd = open(path, O_RDWR);

	if (fd < 0)
		return -errno;

	close(fd);
	return 0;
}

static int try_readonly_reopen(struct self *self)
{
	char path[32];

	snprintf_assert(path, sizeof(path), "/proc/self/fd/%d", self->slices[SLICE_READONLY].fd);
	return try_open(path);
}

static int try_ftruncate(struct self *self)
{
	return result_of(ftruncate(self->slices[SLICE_FRAME].fd, 2 * PAGE));
}

static int try_ioctl_reset(struct self *self)
{
	return result_of(ioctl(self->slices[SLICE_FRAME].fd, VFIO_DEVICE_RESET, NULL));
}

static int try_feature(struct self *self, u32 feature, void *data, size_t size)
{
	return result_of(vfio_device_feature_ioctl(self->slices[SLICE_FRAME].fd, feature, data,
						   size));
}

static int try_ioctl_export(struct self *self)
{
	struct vfio_device_feature_dma_buf dma_buf = { .nr_ranges = 1 };

	return try_feature(self, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF,
			   &dma_buf, sizeof(dma_buf));
}

static int try_ioctl_revoke(struct self *self)
{
	struct vfio_device_feature_dma_buf_revoke revoke = {
		.dmabuf_fd = self->slices[SLICE_READONLY].fd,
	};

	return try_feature(self, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE,
			   &revoke, sizeof(revoke));
}

static int try_open_cdev(struct self *self)
{
	const char *path = vfio_pci_get_cdev_path(self->bdf);
	int result = try_open(path);

	free((void *)path);
	return result;
}

static int try_open_resource(struct self *self)
{
	char path[PATH_MAX];

	snprintf_assert(path, sizeof(path), "/sys/bus/pci/devices/%s/resource%d", self->bdf,
			EDU_PLUS_BAR_RAM);
	return try_open(path);
}

static int try_take_fd(struct self *self)
{
	int pidfd = syscall(SYS_pidfd_open, getppid(), 0);

	VFIO_ASSERT_GE(pidfd, 0);
	return result_of(syscall(SYS_pidfd_getfd, pidfd, self->fd_of_primary, 0));
}

#define MMAP(_error, _slice, _offset, _size, _prot, _flags, _what)		\
	{ .what = _what, .slice = _slice, .offset = _offset, .size = _size,	\
	  .prot = _prot, .flags = _flags, .error = _error, .name = #_error }
#define CALL(_error, _call, _what)						\
	{ .what = _what, .call = _call, .error = _error, .name = #_error }

static const struct attempt attempts[] = {
	MMAP(EINVAL, SLICE_FRAME, 0, 2 * PAGE, PROT_READ, MAP_SHARED,
	     "map its frame and one page more"),
	MMAP(EINVAL, SLICE_FRAME, PAGE, PAGE, PROT_READ, MAP_SHARED,
	     "map the page behind its frame"),
	MMAP(EOVERFLOW, SLICE_FRAME, -PAGE, PAGE, PROT_READ, MAP_SHARED,
	     "map the page in front of it"),
	MMAP(EINVAL, SLICE_FRAME, 1ULL << 40, PAGE, PROT_READ, MAP_SHARED,
	     "map where the device's own file has BAR 1"),
	CALL(EFAULT, try_mremap, "let a map of its frame grow, mremap()"),
	CALL(EINVAL, try_remap_file_pages, "move one to the next frame, remap_file_pages()"),
	MMAP(EINVAL, SLICE_FRAME, 0, PAGE, PROT_READ, MAP_PRIVATE, "map its frame privately"),
	MMAP(EPERM, SLICE_FRAME, 0, PAGE, PROT_READ | PROT_EXEC, MAP_SHARED,
	     "map its frame executable"),
	MMAP(EACCES, SLICE_READONLY, 0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
	     "map the read-only DMABUF for writing"),
	CALL(EACCES, try_readonly_mprotect, "make a map of it writable, mprotect()"),
	{
		.what = "write to it all the same",
		.call = try_readonly_store,
		.error = EACCES,
		.name = "SIGSEGV",
	},
	CALL(EACCES, try_readonly_reopen, "open it anew for writing, /proc/self/fd/N"),
	CALL(EINVAL, try_ftruncate, "make a DMABUF longer, ftruncate()"),
	CALL(ENOTTY, try_ioctl_reset, "VFIO_DEVICE_RESET on a DMABUF"),
	CALL(ENOTTY, try_ioctl_export, "VFIO_DEVICE_FEATURE_DMA_BUF on a DMABUF"),
	CALL(ENOTTY, try_ioctl_revoke, "VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE on a DMABUF"),
	CALL(EACCES, try_open_cdev, "open the device, /dev/vfio/devices/vfioN"),
	CALL(EACCES, try_open_resource, "open its RAM in sysfs, resource1"),
	CALL(EPERM, try_take_fd, "take the device's fd from the primary, pidfd_getfd()"),
};

static void do_try(struct self *self, const struct request *request, struct answer *answer)
{
	const struct attempt *attempt = &attempts[request->value];

	self->fd_of_primary = request->size;
	answer->result = attempt->call ? attempt->call(self) : try_mmap(self, attempt);
}

/* Work: a round of accesses to both slices, over and over. */

static int work_read(struct work *work, void *addr, u32 *value)
{
	work->accesses++;
	return __mmio_read32(addr, value);
}

static int work_write(struct work *work, void *addr, u32 value)
{
	work->accesses++;
	return __mmio_write32(addr, value);
}

/* The scratch register tells whether the device has been reset meanwhile. */
static int work_look(struct self *self)
{
	void *frame = self->slices[SLICE_FRAME].vaddr;
	struct work *work = &self->work;
	u64 start = now_us();
	u32 scratch;
	int r;

	r = work_read(work, frame + EDU_FRAME_SCRATCH, &scratch);
	if (r)
		return r;

	if (!work->first_after_us && scratch == SCRATCH_AT_WORK) {
		work->last_before_us = start;
		return 0;
	}

	if (scratch)
		return -EILSEQ;

	if (work->first_after_us)
		return 0;

	/* The last ring may have come after the reset, others cannot. */
	work->first_after_us = now_us();
	work->accesses_before = work->accesses - 1;
	r = work_read(work, frame + EDU_FRAME_DOORBELL_COUNT, &work->rings);
	return r ?: work->rings > 1 ? -EILSEQ : 0;
}

static int work_round(struct self *self)
{
	void *frame = self->slices[SLICE_FRAME].vaddr;
	void *ram = self->slices[SLICE_RAM].vaddr;
	struct work *work = &self->work;
	u32 value = work->accesses, found;
	int r;

	r = work_look(self);
	if (r)
		return r;

	r = work_write(work, frame + EDU_FRAME_DOORBELL, value);
	if (r)
		return r;
	work->rings++;

	r = work_write(work, ram + RAM_WORK, value);
	if (r)
		return r;

	r = work_read(work, ram + RAM_WORK, &found);
	return r ?: found == value ? 0 : -EILSEQ;
}

static void work_rounds(struct self *self, int rounds)
{
	while (rounds-- && !self->work.result)
		self->work.result = work_round(self);

	if (self->work.result)
		self->state = IDLE;
}

static void do_work(struct self *self, const struct request *request, struct answer *answer)
{
	void *frame = self->slices[SLICE_FRAME].vaddr;

	self->state = request->operation == OP_WORK ? WORKING : SPINNING;
	self->work = (struct work) {};
	self->work.result = __mmio_write32(frame + EDU_FRAME_SCRATCH, SCRATCH_AT_WORK);
	work_rounds(self, ROUNDS);
	answer->result = self->work.result;
}

static void do_tell(struct self *self, const struct request *request, struct answer *answer)
{
	work_rounds(self, self->state == IDLE ? 0 : ROUNDS);
	if (request->operation == OP_STOP)
		self->state = IDLE;
	answer->result = self->work.result;
	answer->work = self->work;
}

static void (*const operations[])(struct self *self, const struct request *request,
				  struct answer *answer) = {
	[OP_INVENTORY] = do_inventory,
	[OP_RECEIVE] = do_receive,
	[OP_MAP] = do_map,
	[OP_READ] = do_read,
	[OP_WRITE] = do_write,
	[OP_MEMORY_TYPE] = do_memory_type,
	[OP_SETTLE] = do_settle,
	[OP_INSPECT] = do_inspect,
	[OP_TRY] = do_try,
	[OP_WORK] = do_work,
	[OP_SPIN] = do_work,
	[OP_TELL] = do_tell,
	[OP_STOP] = do_tell,
};

static bool next_request(struct self *self, struct request *request)
{
	/* Without so much as a look at the socket. */
	while (self->state == SPINNING)
		work_rounds(self, 1);

	while (self->state == WORKING) {
		ssize_t size = recv(SUBORDINATE_SOCKET, request, sizeof(*request), MSG_DONTWAIT);

		if (size >= 0 || errno != EAGAIN)
			return size == sizeof(*request);
		work_rounds(self, 1);
	}

	return recv(SUBORDINATE_SOCKET, request, sizeof(*request), 0) == sizeof(*request);
}

static int child_main(const char *bdf)
{
	struct self self = { .bdf = bdf };
	struct request request;

	while (next_request(&self, &request)) {
		struct answer answer = {};

		operations[request.operation](&self, &request, &answer);
		if (send(SUBORDINATE_SOCKET, &answer, sizeof(answer), MSG_NOSIGNAL) !=
		    sizeof(answer))
			break;
	}

	return KSFT_PASS;
}

/*
 * Subordinates, as seen by the primary and after that by the observer.
 */

struct child {
	pid_t pid;
	int number;
	bool lost;

	/* Both ends of its socket, while it has not been started. */
	int socket;
	int its_socket;

	/* Where it has mapped its slices. */
	u64 vaddrs[NR_SLICES];
};

struct demo {
	struct report report;
	const char *bdf;
	pid_t primary;

	/* The primary has shown all that it has to, and is at its end. */
	bool finished;

	/* One for each frame, and behind them the heir of the first one. */
	struct child subs[SUBORDINATES_MAX + 1];
	int nr;
};

static void child_start(struct demo *demo, int number)
{
	struct child *sub = &demo->subs[number];
	pid_t pid;

	pid = fork();
	VFIO_ASSERT_GE(pid, 0);

	if (!pid) {
		/* Leave everything of the primary behind: fds, memory, privileges. */
		VFIO_ASSERT_EQ(setgroups(0, NULL), 0);
		VFIO_ASSERT_EQ(setresgid(NOBODY, NOBODY, NOBODY), 0);
		VFIO_ASSERT_EQ(setresuid(NOBODY, NOBODY, NOBODY), 0);
		subordinate_exec(sub->its_socket, demo->bdf);
	}

	VFIO_ASSERT_EQ(close(sub->its_socket), 0);
	sub->number = number;
	sub->pid = pid;
}

static const char *status_text(int status)
{
	static char text[64];

	if (WIFEXITED(status))
		snprintf(text, sizeof(text), "exit status %d", WEXITSTATUS(status));
	else
		snprintf(text, sizeof(text), "signal %d, %s", WTERMSIG(status),
			 strsignal(WTERMSIG(status)));

	return text;
}

/* It is past help: say so once, and do without it from now on. */
static void child_lose(struct child *sub, bool silent)
{
	int status;

	if (silent)
		kill(sub->pid, SIGKILL);

	sub->lost = true;
	VFIO_ASSERT_EQ(waitpid(sub->pid, &status, 0), sub->pid);
	if (silent)
		check(false, "subordinate %d, pid %d, does not answer", sub->number, sub->pid);
	else
		check(false, "subordinate %d, pid %d, died: %s", sub->number, sub->pid,
		      status_text(status));
}

static void child_send(struct child *sub, const struct request *request)
{
	if (!sub->lost && send(sub->socket, request, sizeof(*request), MSG_NOSIGNAL) < 0)
		child_lose(sub, false);
}

static struct answer child_answer(struct child *sub)
{
	struct answer answer;
	ssize_t size;

	if (!sub->lost) {
		size = recv(sub->socket, &answer, sizeof(answer), 0);
		if (size == sizeof(answer))
			return answer;
		child_lose(sub, size < 0 && errno == EAGAIN);
	}

	memset(&answer, 0, sizeof(answer));
	answer.result = -ESRCH;
	return answer;
}

static struct answer child_ask(struct child *sub, struct request request)
{
	child_send(sub, &request);
	return child_answer(sub);
}

static int child_result(struct child *sub, enum operation operation, enum slice slice,
			u64 size)
{
	return child_ask(sub, (struct request) {
		.operation = operation,
		.slice = slice,
		.size = size,
	}).result;
}

/* Some of the subordinates, who are asked the same at the same time. */
struct team {
	struct child *subs;
	int nr;
	struct answer answers[SUBORDINATES_MAX + 1];
};

static void team_ask(struct team *team, enum operation operation)
{
	int i;

	for (i = 0; i < team->nr; i++) {
		struct request request = {
			.operation = operation,
			.value = team->subs[i].number,
		};

		child_send(&team->subs[i], &request);
	}

	for (i = 0; i < team->nr; i++)
		team->answers[i] = child_answer(&team->subs[i]);
}

static int team_count(struct team *team, int result)
{
	int i, count = 0;

	for (i = 0; i < team->nr; i++)
		count += team->answers[i].result == result;

	return count;
}

static u64 team_accesses(struct team *team)
{
	u64 sum = 0;
	int i;

	for (i = 0; i < team->nr; i++)
		sum += team->answers[i].work.accesses;

	return sum;
}

/* Of all that it ever mapped: what gives SIGBUS, and ENODEV for a new mmap()? */
struct dead {
	int all;
	int maps;
	int fds;
};

static void count_dead(struct child *sub, struct dead *dead)
{
	enum slice slice;

	for (slice = 0; slice < NR_SLICES; slice++) {
		if (!sub->vaddrs[slice])
			continue;

		dead->all++;
		dead->maps += child_result(sub, OP_READ, slice, 0) == -EFAULT;
		dead->fds += child_result(sub, OP_MAP, slice, PAGE) == -ENODEV;
	}
}

/*
 * Primary
 */

struct primary {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	const char *cdev;

	/* The BARs as the primary has them mapped. */
	void *regs;
	void *ram;
	void *frames;
	u64 slice_size;

	/* What has been vended to whom. */
	int fds[SUBORDINATES_MAX + 1][NR_SLICES];
};

static void *frame_of(struct primary *primary, int index)
{
	return primary->frames + index * EDU_FRAME_SIZE;
}

static void *ram_of(struct primary *primary, int index)
{
	return primary->ram + index * primary->slice_size;
}

/* How many pages of a slice of RAM hold the values of its owner? */
static u64 count_pages(struct primary *primary, int index)
{
	u64 page, count = 0;

	for (page = 0; page < primary->slice_size / PAGE; page++) {
		u32 found = readl(ram_of(primary, index) + page * PAGE + RAM_VALUE);

		count += found == ram_value(index, page);
	}

	return count;
}

static int export_slice(struct primary *primary, enum slice slice, int index, const char *name)
{
	struct vfio_region_dma_range range = {
		.offset = index * primary->slice_size,
		.length = primary->slice_size,
	};
	u32 bar = EDU_PLUS_BAR_RAM, flags = O_RDWR;
	int fd;

	if (slice == SLICE_FRAME) {
		bar = EDU_PLUS_BAR_FRAMES;
		range.offset = index * EDU_FRAME_SIZE;
		range.length = EDU_FRAME_SIZE;
	} else if (slice == SLICE_READONLY) {
		flags = O_RDONLY;
	}

	fd = vfio_pci_dmabuf_export(primary->device, bar, flags | O_CLOEXEC, &range, 1);
	VFIO_ASSERT_EQ(ioctl(fd, DMA_BUF_SET_NAME, name), 0);
	return fd;
}

static int hand_over(struct child *sub, enum slice slice, int fd)
{
	struct request request = {
		.operation = OP_RECEIVE,
		.slice = slice,
	};

	if (sub->lost)
		return -ESRCH;

	child_send(sub, &request);
	fd_send(sub->socket, fd, slice);
	return child_answer(sub).result;
}

/* Have a subordinate map what it was handed. */
static int map_slice(struct primary *primary, struct child *sub, enum slice slice)
{
	struct answer answer;

	answer = child_ask(sub, (struct request) {
		.operation = OP_MAP,
		.slice = slice,
		.size = slice == SLICE_FRAME ? EDU_FRAME_SIZE : primary->slice_size,
	});
	sub->vaddrs[slice] = answer.value;
	return answer.result;
}

/* Vend the frame and the slice of RAM of that index. */
static int vend(struct primary *primary, struct child *sub, int index)
{
	enum slice slice;
	char name[32];
	int r;

	for (slice = SLICE_FRAME; slice <= SLICE_RAM; slice++) {
		snprintf_assert(name, sizeof(name), "%s-%d",
				slice == SLICE_FRAME ? "frame" : "ram", index);
		primary->fds[sub->number][slice] = export_slice(primary, slice, index, name);

		r = hand_over(sub, slice, primary->fds[sub->number][slice]);
		r = r ?: map_slice(primary, sub, slice);
		if (r)
			return r;
	}

	return 0;
}

/* Open the device as somebody else would: 0, with an fd to be closed, or -errno. */
static int open_beside(const char *bdf, int *fd)
{
	const char *path = vfio_pci_get_cdev_path(bdf);
	int iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	int r;

	*fd = open(path, O_RDWR | O_CLOEXEC);
	r = *fd < 0 ? -errno : __vfio_device_bind_iommufd(*fd, iommufd, NULL);

	close(iommufd);
	free((void *)path);
	return r;
}

static void demo_vend(struct demo *demo, struct primary *primary)
{
	struct team all = { .subs = demo->subs, .nr = demo->nr };
	int i, n = demo->nr, empty = 0, vended = 0;

	section("Vending: to %d subordinates, processes of user %d with a socket each", n, NOBODY);

	for (i = 0; i < n; i++)
		child_start(demo, i);

	team_ask(&all, OP_INVENTORY);
	for (i = 0; i < n; i++)
		empty += !all.answers[i].result && !all.answers[i].value;
	check(empty == n, "%d of %d start with no fd, no map of the device, no privileges",
	      empty, n);

	for (i = 0; i < n; i++)
		vended += !vend(primary, &demo->subs[i], i);
	check(vended == n, "%d of %d map two DMABUFs: a frame of 4 KiB, and %lu KiB of RAM",
	      vended, n, primary->slice_size / SZ_1K);
}

static void demo_work(struct demo *demo, struct primary *primary)
{
	int identity = 0, scratch = 0, inverter = 0, doorbell = 0, frames = 0;
	struct team all = { .subs = demo->subs, .nr = demo->nr };
	u64 pages, seen = 0, held = 0;
	int i, n = demo->nr;

	section("Work: each one in its slices, all at the same time");

	team_ask(&all, OP_SETTLE);
	team_ask(&all, OP_INSPECT);
	for (i = 0; i < n; i++) {
		struct inspection *inspection = &all.answers[i].inspection;

		identity += inspection->identity;
		scratch += inspection->scratch;
		inverter += inspection->inverter;
		doorbell += inspection->doorbell;
		held += inspection->pages;

		frames += readl(frame_of(primary, i) + EDU_FRAME_SCRATCH) == frame_value(i);
		seen += count_pages(primary, i);
	}

	pages = n * primary->slice_size / PAGE;
	check(identity == n, "%d of %d frames are the one that it should be", identity, n);
	check(scratch == n, "%d of %d keep what their subordinate wrote", scratch, n);
	check(inverter == n, "%d of %d invert", inverter, n);
	check(doorbell == n, "%d of %d have counted their doorbell, %d rings in all", doorbell, n,
	      n * (n + 1) / 2);
	check(held == pages, "%lu of %lu pages of RAM hold a value of their own", held, pages);
	check(frames == n && seen == pages,
	      "the primary sees the same through its maps of the BARs");
}

static void demo_isolation(struct demo *demo, struct primary *primary)
{
	struct child *sub = &demo->subs[1];
	int i, fd, r, frames = 0, n = demo->nr;
	struct answer answer = {};
	u64 pages, held = 0;

	section("Isolation: what subordinate %d tries, and what it gets", sub->number);

	fd = export_slice(primary, SLICE_READONLY, 2, "ram-2-readonly");
	primary->fds[sub->number][SLICE_READONLY] = fd;
	r = hand_over(sub, SLICE_READONLY, fd);
	r = r ?: map_slice(primary, sub, SLICE_READONLY);
	if (!r)
		answer = child_ask(sub, (struct request) {
			.operation = OP_READ,
			.slice = SLICE_READONLY,
		});
	check(!r && !answer.result && answer.value == ram_value(2, 0), "%-58s works",
	      "read the RAM of subordinate 2 by a read-only DMABUF");

	for (i = 0; i < ARRAY_SIZE(attempts); i++) {
		const struct attempt *attempt = &attempts[i];

		r = child_ask(sub, (struct request) {
			.operation = OP_TRY,
			.value = i,
			.size = primary->device->fd,
		}).result;

		if (r == -attempt->error)
			check(true, "%-58s %s", attempt->what, attempt->name);
		else
			check(false, "%-58s %s", attempt->what, r ? strerror(-r) : "works");
	}

	r = open_beside(demo->bdf, &fd);
	check(r == -EINVAL, "%-58s EINVAL", "as root: bind the device to a second iommufd");
	close(fd);

	for (i = 0; i < n; i++) {
		frames += readl(frame_of(primary, i) + EDU_FRAME_SCRATCH) == frame_value(i);
		held += count_pages(primary, i);
	}
	pages = n * primary->slice_size / PAGE;
	check(frames == n && held == pages, "%d frames and %lu pages of RAM are as they were",
	      frames, held);
}

/* A line of /proc/PID/maps, of which device and inode say nothing here. */
static void show_map(pid_t pid, u64 vaddr, const char *perms, u64 offset, const char *name)
{
	struct vma_info info = {};
	int r;

	r = __vma_info_get_of(pid, (void *)vaddr, &info);
	check(!r && !strcmp(info.perms, perms) && info.offset == offset && !strcmp(info.name, name),
	      "%lx-%lx %s %08lx %s", info.start, info.end, info.perms, info.offset, info.name);
}

static void show_fdinfo(int fd, const char *key, const char *value)
{
	char found[128];

	if (fdinfo_get(fd, key, found, sizeof(found)))
		check(!strcmp(found, value), "%s: %s", key, found);
	else
		check(false, "%s: is missing", key);
}

static void demo_looks(struct demo *demo, struct primary *primary)
{
	struct vfio_pci_bar *bar = &primary->device->bars[EDU_PLUS_BAR_RAM];
	struct child *sub = &demo->subs[1];
	char name[64];

	section("/proc/PID/maps (without device and inode) of the primary and subordinate %d",
		sub->number);

	snprintf_assert(name, sizeof(name), "/dmabuf:%s:%s/%d", primary->cdev, demo->bdf,
			EDU_PLUS_BAR_RAM);
	show_map(getpid(), (u64)primary->ram, "rw-s", bar->info.offset, name);
	if (!sub->lost) {
		show_map(sub->pid, sub->vaddrs[SLICE_FRAME], "rw-s", 0, "/dmabuf:frame-1");
		show_map(sub->pid, sub->vaddrs[SLICE_RAM], "rw-s", 0, "/dmabuf:ram-1");
		show_map(sub->pid, sub->vaddrs[SLICE_READONLY], "r--s", 0,
			 "/dmabuf:ram-2-readonly");
	}

	section("/proc/PID/fdinfo of the DMABUF over the frame of subordinate 1");
	show_fdinfo(primary->fds[1][SLICE_FRAME], "exp_name", "vfio_pci_core");
	show_fdinfo(primary->fds[1][SLICE_FRAME], "name", "frame-1");
	show_fdinfo(primary->fds[1][SLICE_FRAME], "vfio-pci-state", "ok");
	show_fdinfo(primary->fds[1][SLICE_FRAME], "vfio-pci-memattr", "nc");
	show_fdinfo(primary->fds[1][SLICE_FRAME], "vfio-pci-region", "3");
	show_fdinfo(primary->fds[1][SLICE_FRAME], "vfio-pci-range", "0x1000+0x1000");
}

static void check_type(struct child *sub, enum slice slice, enum memory_type type,
		       const char *what)
{
	static const char * const names[] = {
		[MEMORY_TYPE_UNKNOWN] = "unknown",
		[MEMORY_TYPE_CACHED] = "cached",
		[MEMORY_TYPE_WRITE_COMBINING] = "write-combining",
		[MEMORY_TYPE_UNCACHED] = "uncached",
	};
	struct answer answer;

	answer = child_ask(sub, (struct request) {
		.operation = OP_MEMORY_TYPE,
		.slice = slice,
	});
	check(!answer.result && answer.value == type, "%-58s %s", what,
	      answer.result ? strerror(-answer.result) : names[answer.value]);
}

/* In debugfs of an x86 kernel that uses the PAT */
#define PAT_LIST	"/sys/kernel/debug/x86/pat_memtype_list"

static void demo_write_combining(struct demo *demo, struct primary *primary)
{
	struct child *sub = &demo->subs[2];
	enum memory_type expected;
	int r, refused, tables;

	section("Memory attribute: write-combining for the RAM of subordinate 2");

	refused = __vfio_pci_dmabuf_memattr(primary->device, primary->fds[2][SLICE_RAM],
					    VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR_WC);
	/* An x86 kernel that uses the PAT has no reason to refuse it */
	check(!refused || (refused == -EOPNOTSUPP && access(PAT_LIST, F_OK)),
	      "%-58s %s", "VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR",
	      refused ? strerror(-refused) : "done");
	expected = refused ? MEMORY_TYPE_UNCACHED : MEMORY_TYPE_WRITE_COMBINING;

	r = hand_over(sub, SLICE_RAM_WC, primary->fds[2][SLICE_RAM]);
	r = r ?: map_slice(primary, sub, SLICE_RAM_WC);
	r = r ?: child_ask(sub, (struct request) {
		.operation = OP_WRITE,
		.slice = SLICE_RAM_WC,
		.value = 0xc0b1e0,
	}).result;
	check(!r && readl(ram_of(primary, 2) + RAM_WC) == 0xc0b1e0,
	      "what it writes through a new map arrives, as the primary sees");

	tables = __page_tables_open();
	if (tables < 0) {
		note("page tables cannot be seen here, so their memory type is unproven");
		return;
	}

	hand_over(sub, PAGE_TABLES, tables);
	close(tables);
	check_type(sub, SLICE_RAM_WC, expected, "its page tables, of the new map");
	check_type(sub, SLICE_RAM, MEMORY_TYPE_UNCACHED, "of the map that it had before");
	check_type(sub, SLICE_FRAME, MEMORY_TYPE_UNCACHED, "of its frame");
}

static void show_accesses(struct team *team)
{
	int i;

	note("Accesses by each of them, before the reset + after it:");
	for (i = 0; i < team->nr; i++) {
		struct work *work = &team->answers[i].work;

		printf("%s%7lu + %5lu%s", i % 4 ? "   " : "        ", work->accesses_before,
		       work->accesses - work->accesses_before,
		       i % 4 == 3 || i == team->nr - 1 ? "\n" : "");
	}
}

static void demo_reset(struct demo *demo, struct primary *primary)
{
	int i, n = demo->nr, paused = 0, cleared = 0, rung = 0;
	struct team all = { .subs = demo->subs, .nr = n };
	u64 shortest = UINT64_MAX, longest = 0;
	u64 start, took, pages, held = 0;
	u32 resets;

	section("Reset: VFIO_DEVICE_RESET while all subordinates are at work");

	resets = readl(primary->regs + EDU_PLUS_RESETS);
	team_ask(&all, OP_WORK);
	check(team_count(&all, 0) == n, "%d of %d are at work", team_count(&all, 0), n);

	start = now_us();
	vfio_pci_device_reset(primary->device);
	took = now_us() - start;
	check(readl(primary->regs + EDU_PLUS_RESETS) == resets + 1,
	      "the device was reset once, which took %lu ms", took / 1000);

	team_ask(&all, OP_STOP);
	for (i = 0; i < n; i++) {
		struct work *work = &all.answers[i].work;
		u64 pause = work->first_after_us - work->last_before_us;
		void *frame = frame_of(primary, i);

		if (work->first_after_us) {
			shortest = min(shortest, pause);
			longest = max(longest, pause);
			paused += pause >= RESET_MIN_US;
		}

		cleared += !readl(frame + EDU_FRAME_SCRATCH);
		rung += readl(frame + EDU_FRAME_DOORBELL_COUNT) == work->rings;
		held += count_pages(primary, i);
	}

	pages = n * primary->slice_size / PAGE;
	check(team_count(&all, 0) == n, "%d of %d work on, none has seen a SIGBUS",
	      team_count(&all, 0), n);
	check(paused == n, "%d of %d paused meanwhile, %lu to %lu ms until they ran again", paused,
	      n, longest ? shortest / 1000 : 0, longest / 1000);
	show_accesses(&all);
	check(cleared == n, "%d of %d frames are cleared, which this device's reset does", cleared,
	      n);
	check(rung == n, "%d of %d have counted each ring since then", rung, n);
	check(held == pages, "%lu of %lu pages of RAM are as before, which it leaves alone", held,
	      pages);
}

/* Read a count until it has grown: 0, or -ETIMEDOUT. */
static int wait_for_rings(void *frame, u32 rings)
{
	u64 end = now_us() + SUBORDINATE_TIMEOUT_S * 1000000ULL;
	u32 start = readl(frame + EDU_FRAME_DOORBELL_COUNT);

	while (readl(frame + EDU_FRAME_DOORBELL_COUNT) - start < rings) {
		if (now_us() > end)
			return -ETIMEDOUT;
	}

	return 0;
}

static void demo_revoke(struct demo *demo, struct primary *primary)
{
	struct team others = { .subs = demo->subs + 1, .nr = demo->nr - 1 };
	struct child *sub = &demo->subs[0];
	void *frame = frame_of(primary, 0);
	struct request tell = { .operation = OP_TELL };
	u64 start, took, accesses;
	struct answer answer;
	struct dead dead = {};
	int n = others.nr, r;
	u32 before, after;

	section("Revoke: subordinate 0 hangs in a loop around its doorbell, others work");

	before = readl(frame + EDU_FRAME_DOORBELL_COUNT);
	r = child_result(sub, OP_SPIN, 0, 0);
	team_ask(&others, OP_WORK);

	/* It is given every chance to answer. */
	child_send(sub, &tell);
	r = r ?: wait_for_rings(frame, ROUNDS);
	check(!r && recv(sub->socket, &answer, sizeof(answer), MSG_DONTWAIT | MSG_PEEK) < 0,
	      "it rings on and does not answer the primary");

	team_ask(&others, OP_TELL);
	accesses = team_accesses(&others);

	start = now_us();
	r = __vfio_pci_dmabuf_revoke(primary->device, primary->fds[0][SLICE_FRAME]);
	r = r ?: __vfio_pci_dmabuf_revoke(primary->device, primary->fds[0][SLICE_RAM]);
	took = now_us() - start;
	after = readl(frame + EDU_FRAME_DOORBELL_COUNT);
	check(!r, "the primary revokes both its DMABUFs, in %lu.%lu ms", took / 1000,
	      took / 100 % 10);

	answer = child_answer(sub);
	check(answer.result == -EFAULT, "it has got SIGBUS, in its access number %lu",
	      answer.work.accesses);

	team_ask(&others, OP_STOP);
	accesses = team_accesses(&others) - accesses;
	check(team_count(&others, 0) == n, "%d of %d others work on, %lu accesses since",
	      team_count(&others, 0), n, accesses);

	check(after - before == answer.work.rings &&
	      readl(frame + EDU_FRAME_DOORBELL_COUNT) == after,
	      "its frame has counted the %u rings that it made, and counts no more",
	      answer.work.rings);

	count_dead(sub, &dead);
	check(dead.maps == 2, "%d of its 2 maps give SIGBUS", dead.maps);
	check(dead.fds == 2, "%d of its 2 DMABUFs give ENODEV to a new mmap()", dead.fds);
	show_fdinfo(primary->fds[0][SLICE_FRAME], "vfio-pci-state", "revoked permanently");
}

static void demo_anew(struct demo *demo, struct primary *primary)
{
	struct team team = { .subs = demo->subs + 1, .nr = demo->nr };
	struct child *sub = &demo->subs[demo->nr];
	u64 pages = primary->slice_size / PAGE;
	struct request request = {};
	struct inspection found;
	struct dead dead = {};
	int n = team.nr, r;

	section("Vending anew: what was taken from subordinate 0 goes to subordinate %d", demo->nr);

	child_start(demo, demo->nr);
	r = vend(primary, sub, 0);
	request.operation = OP_INSPECT;
	found = child_ask(sub, request).inspection;
	check(!r && found.identity, "it maps new DMABUFs over frame 0 and its RAM");
	check(found.pages == pages, "it finds %lu of %lu pages of RAM as they were left",
	      found.pages, pages);

	team_ask(&team, OP_WORK);
	vfio_pci_device_reset(primary->device);
	team_ask(&team, OP_STOP);
	check(team_count(&team, 0) == n, "%d of %d work with it, and through one more reset",
	      team_count(&team, 0), n);

	count_dead(&demo->subs[0], &dead);
	check(dead.maps == 2 && dead.fds == 2,
	      "nothing of that brings back what subordinate 0 had");
}

static void demo_open(struct demo *demo, struct primary *primary)
{
	struct vfio_pci_device *device;
	const char *path;
	u32 frames;
	u64 size;

	primary->iommu = iommu_init(MODE_IOMMUFD);
	device = vfio_pci_device_init(demo->bdf, primary->iommu);
	primary->device = device;
	primary->regs = device->bars[EDU_BAR_REGS].vaddr;
	primary->ram = device->bars[EDU_PLUS_BAR_RAM].vaddr;
	primary->frames = device->bars[EDU_PLUS_BAR_FRAMES].vaddr;

	if (!device->driver.ops || strcmp(device->driver.ops->name, "edu-plus") || !primary->ram) {
		fprintf(stderr, "%s is no edu-plus with RAM, skipping.\n", demo->bdf);
		exit(KSFT_SKIP);
	}

	frames = readl(primary->regs + EDU_PLUS_FRAMES);
	size = readq(primary->regs + EDU_PLUS_RAM_SIZE);
	demo->nr = min_t(u32, frames, SUBORDINATES_MAX);
	primary->slice_size = min_t(u64, size / SUBORDINATES_MAX, RAM_SLICE_MAX);

	if (getpagesize() != PAGE) {
		fprintf(stderr, "A page is larger than a frame, skipping.\n");
		exit(KSFT_SKIP);
	}

	if (demo->nr < SUBORDINATES_MIN) {
		fprintf(stderr, "%s has less than %d frames, skipping.\n", demo->bdf,
			SUBORDINATES_MIN);
		exit(KSFT_SKIP);
	}

	if (!vfio_pci_has_feature(device, VFIO_DEVICE_FEATURE_SET |
					  VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE) ||
	    !vfio_pci_has_dmabuf_mmap(device, EDU_PLUS_BAR_RAM)) {
		fprintf(stderr, "The kernel does not map and revoke DMABUFs, skipping.\n");
		exit(KSFT_SKIP);
	}

	path = vfio_pci_get_cdev_path(demo->bdf);
	primary->cdev = strdup(basename((char *)path));
	section("Primary: owns the edu-plus %s through %s", demo->bdf, path);
	check(readl(primary->regs + EDU_PLUS_ID) == EDU_PLUS_ID_VALUE &&
	      device->bars[EDU_PLUS_BAR_FRAMES].info.size >= (u64)frames * EDU_FRAME_SIZE &&
	      device->bars[EDU_PLUS_BAR_RAM].info.size == size,
	      "which has %u frames of registers in BAR 3, and %lu MiB of RAM in BAR 1", frames,
	      size / SZ_1M);
}

static void primary_main(struct demo *demo)
{
	struct team rest = { .subs = demo->subs + 1 };
	struct primary primary = {};

	VFIO_ASSERT_EQ(prctl(PR_SET_PDEATHSIG, SIGKILL), 0);

	demo_open(demo, &primary);
	demo_vend(demo, &primary);
	demo_work(demo, &primary);
	demo_isolation(demo, &primary);
	demo_looks(demo, &primary);
	demo_write_combining(demo, &primary);
	demo_reset(demo, &primary);
	demo_revoke(demo, &primary);
	demo_anew(demo, &primary);

	section("The end: the primary is killed while its %d subordinates are at work", demo->nr);

	rest.nr = demo->nr;
	team_ask(&rest, OP_WORK);
	check(team_count(&rest, 0) == demo->nr, "%d of %d are at work", team_count(&rest, 0),
	      demo->nr);

	demo->finished = true;
	kill(getpid(), SIGKILL);
}

/*
 * Observer
 */

static struct demo *running_demo;

static void kill_all(struct demo *demo)
{
	int i;

	kill(demo->primary, SIGKILL);
	for (i = 0; i < ARRAY_SIZE(demo->subs); i++) {
		if (demo->subs[i].pid && !demo->subs[i].lost)
			kill(demo->subs[i].pid, SIGKILL);
	}
}

static void deadline(int signal)
{
	static const char text[] = "\nVERDICT: not at the end in time, NOT all is well\n";
	ssize_t size __maybe_unused;

	kill_all(running_demo);
	size = write(STDOUT_FILENO, text, sizeof(text) - 1);
	_exit(KSFT_FAIL);
}

static void count_all_dead(struct demo *demo, struct dead *dead)
{
	int i;

	*dead = (struct dead) {};
	for (i = 0; i <= demo->nr; i++)
		count_dead(&demo->subs[i], dead);
}

/* The subordinates have become children of the observer. */
static void demo_end(struct demo *demo)
{
	struct team rest = { .subs = demo->subs + 1, .nr = demo->nr };
	int i, fd, r, status, n = demo->nr, ended = 0;
	struct dead dead;

	team_ask(&rest, OP_STOP);
	check(team_count(&rest, -EFAULT) == n, "%d of %d get SIGBUS in the middle of it",
	      team_count(&rest, -EFAULT), n);

	count_all_dead(demo, &dead);
	check(dead.maps == dead.all, "%d of %d maps of all %d give SIGBUS", dead.maps, dead.all,
	      n + 1);
	check(dead.fds == dead.all, "%d of %d fds give ENODEV to a new mmap()", dead.fds, dead.all);

	r = open_beside(demo->bdf, &fd);
	count_all_dead(demo, &dead);
	check(!r, "they do not hold the device: somebody else opens it");
	check(dead.maps == dead.all && dead.fds == dead.all, "which brings back none of these");
	close(fd);

	for (i = 0; i <= n; i++) {
		struct child *sub = &demo->subs[i];

		close(sub->socket);
		if (!sub->lost)
			ended += waitpid(sub->pid, &status, 0) == sub->pid && !status;
	}
	check(ended == n + 1, "%d of %d end by themselves, without an error", ended, n + 1);
}

/* It has failed an assertion or was killed. Was a subordinate the reason? */
static void demo_end_early(struct demo *demo)
{
	int i, status;

	kill_all(demo);

	for (i = 0; i < ARRAY_SIZE(demo->subs); i++) {
		struct child *sub = &demo->subs[i];

		if (!sub->pid || sub->lost || waitpid(sub->pid, &status, 0) != sub->pid)
			continue;
		if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
			check(false, "subordinate %d, pid %d, died: %s", i, sub->pid,
			      status_text(status));
	}
}

static int observer_main(const char *bdf)
{
	struct timeval timeout = { .tv_sec = SUBORDINATE_TIMEOUT_S };
	struct demo *demo;
	int i, status;
	pid_t pid;

	demo = mmap(NULL, sizeof(*demo), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(demo, MAP_FAILED);
	demo->bdf = bdf;
	report = &demo->report;
	running_demo = demo;

	for (i = 0; i < ARRAY_SIZE(demo->subs); i++) {
		int sockets[2];

		VFIO_ASSERT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets), 0);
		VFIO_ASSERT_EQ(setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &timeout,
					  sizeof(timeout)), 0);
		demo->subs[i].socket = sockets[0];
		demo->subs[i].its_socket = sockets[1];
	}

	/* Inherit the subordinates when the primary is dead. */
	VFIO_ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
	signal(SIGPIPE, SIG_IGN);

	pid = fork();
	VFIO_ASSERT_GE(pid, 0);
	if (!pid) {
		primary_main(demo);
		_exit(KSFT_FAIL);
	}

	demo->primary = pid;
	signal(SIGALRM, deadline);
	alarm(DEADLINE_S);

	for (i = 0; i < ARRAY_SIZE(demo->subs); i++)
		close(demo->subs[i].its_socket);

	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	if (demo->finished) {
		check(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL,
		      "the primary is dead: %s", status_text(status));
		demo_end(demo);
	} else {
		if (WIFEXITED(status) && WEXITSTATUS(status) == KSFT_SKIP)
			return KSFT_SKIP;
		check(false, "the primary ended ahead of time: %s", status_text(status));
		demo_end_early(demo);
	}

	section("VERDICT: %u of %u hold%s", report->held, report->held + report->broken,
		report->broken ? ", NOT all is well" : ", all is well");

	return report->broken ? KSFT_FAIL : KSFT_PASS;
}

int main(int argc, char *argv[])
{
	/* A report that is cut short still shows how far it came. */
	setvbuf(stdout, NULL, _IOLBF, 0);

	if (argc == 3 && !strcmp(argv[1], SUBORDINATE_ARG))
		return child_main(argv[2]);

	return observer_main(vfio_selftests_get_bdf(&argc, argv));
}
