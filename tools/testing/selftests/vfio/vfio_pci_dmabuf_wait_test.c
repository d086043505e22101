// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test waiting for the importers of a DMABUF.
 *
 * Whoever was lent a DMABUF can attach a fence to it that never signals, and the
 * kernel cannot know that it is not the one of an importer. So what waits for
 * importers may wait for that. Test that this hurts nobody but the waiting
 * process, that the process can be killed, and that the wait comes to an end.
 * The importer is iommufd.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <linux/dma-buf.h>
#include <linux/iommufd.h>
#include <linux/kernel.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "lib/drivers/edu/registers.h"
#include "kselftest_harness.h"

#define FEATURE_REVOKE	(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE)
#define RW		(IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE)
#define IMPORT_IOVA	SZ_1M

/* The kernel waits 10 s for fences. */
#define FENCE_WAIT_MS	10000
#define FENCE_LIMIT_MS	(FENCE_WAIT_MS + PROMPT_MS)

/* How often a slow machine may try to kill somebody who waits for a fence. */
#define KILL_ATTEMPTS	3

static const char *device_bdf;
static const char *other_bdf;

/* Of drivers/dma-buf/sw_sync.c, which keeps them to itself. */
struct sw_sync_create_fence_data {
	__u32 value;
	char name[32];
	__s32 fence;
};

#define SW_SYNC			"/sys/kernel/debug/sync/sw_sync"
#define SW_SYNC_IOC_CREATE_FENCE _IOWR('W', 0, struct sw_sync_create_fence_data)
#define SW_SYNC_IOC_INC		_IOW('W', 1, __u32)

/* Attach a fence to a DMABUF. Return the fd of its timeline. */
static int fence_attach(int dmabuf_fd)
{
	struct dma_buf_import_sync_file import = { .flags = DMA_BUF_SYNC_RW };
	struct sw_sync_create_fence_data create = { .value = 1 };
	int timeline;

	timeline = open(SW_SYNC, O_RDWR | O_CLOEXEC);
	VFIO_ASSERT_GE(timeline, 0);
	ioctl_assert(timeline, SW_SYNC_IOC_CREATE_FENCE, &create);

	import.fd = create.fence;
	ioctl_assert(dmabuf_fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &import);
	VFIO_ASSERT_EQ(close(create.fence), 0);
	return timeline;
}

static void fence_signal(int timeline)
{
	u32 increment = 1;

	ioctl_assert(timeline, SW_SYNC_IOC_INC, &increment);
	VFIO_ASSERT_EQ(close(timeline), 0);
}

/* What all tests work with. */
struct setup {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct vfio_pci_device *other;
	long page_size;
	int index;
	void *bar;

	/* The first page of the BAR, which the test is about. */
	int fd;
	void *vaddr;
	struct iommu *importer;

	/* The next one, with no fence and no importer. */
	int next_fd;
	void *next_vaddr;
};

FIXTURE(vfio_pci_dmabuf_wait) {
	struct setup s;
};

static int import(struct setup *s)
{
	return __iommu_map_dmabuf(s->importer, s->fd, 0, s->page_size, IMPORT_IOVA, RW);
}

static void unimport(struct setup *s)
{
	iommu_unmap_dmabuf(s->importer, IMPORT_IOVA, s->page_size);
}

static void setup_lend(struct setup *s)
{
	s->fd = vfio_pci_dmabuf_export_range(s->device, s->index, 0, s->page_size);
	s->vaddr = dmabuf_map(s->fd, 0, s->page_size);
	s->next_fd = vfio_pci_dmabuf_export_range(s->device, s->index, s->page_size,
						  s->page_size);
	s->next_vaddr = dmabuf_map(s->next_fd, 0, s->page_size);
}

static void setup_take_back(struct setup *s)
{
	dmabuf_unmap(s->vaddr, s->page_size);
	dmabuf_unmap(s->next_vaddr, s->page_size);
	VFIO_ASSERT_EQ(close(s->fd), 0);
	VFIO_ASSERT_EQ(close(s->next_fd), 0);
}

FIXTURE_SETUP(vfio_pci_dmabuf_wait)
{
	struct setup *s = &self->s;

	if (access(SW_SYNC, R_OK | W_OK))
		SKIP(return, "No fences: they need debugfs and CONFIG_SW_SYNC");

	s->page_size = getpagesize();
	s->iommu = iommu_init(MODE_IOMMUFD);
	s->importer = iommu_init(MODE_IOMMUFD);
	s->device = vfio_pci_device_init(device_bdf, s->iommu);
	if (other_bdf)
		s->other = vfio_pci_device_init(other_bdf, s->iommu);
	s->index = vfio_pci_ram_bar(s->device);

	if (s->index < 0)
		SKIP(return, "The device has no BAR with RAM");
	if (!vfio_pci_has_feature(s->device, FEATURE_REVOKE))
		SKIP(return, "The kernel does not revoke DMABUFs");
	if (!vfio_pci_has_dmabuf_mmap(s->device, s->index))
		SKIP(return, "The kernel does not map exported DMABUFs");

	s->bar = s->device->bars[s->index].vaddr;
	setup_lend(s);
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_wait)
{
	struct setup *s = &self->s;

	setup_take_back(s);
	if (s->other)
		vfio_pci_device_cleanup(s->other);
	vfio_pci_device_cleanup(s->device);
	iommu_cleanup(s->importer);
	iommu_cleanup(s->iommu);
}

/*
 * The operations that wait for importers. Those that do something to the device
 * undo it in the end.
 */

struct operation {
	const char *name;

	/* Runs in a child. 0 or -errno, -EOPNOTSUPP if the device cannot do it. */
	int (*act)(struct vfio_pci_device *device);

	/* Whether it has happened, by what the device says. */
	bool (*done)(struct setup *s);

	int (*undo)(struct vfio_pci_device *device);
};

static bool memory_disabled(struct setup *s)
{
	return !(vfio_pci_config_readw(s->device, PCI_COMMAND) & PCI_COMMAND_MEMORY);
}

static bool d3hot_entered(struct setup *s)
{
	u8 pos = vfio_pci_find_capability(s->device, PCI_CAP_ID_PM);

	return vfio_pci_config_readw(s->device, pos + PCI_PM_CTRL) & PCI_PM_CTRL_STATE_MASK;
}

static bool low_power_entered(struct setup *s)
{
	u32 value;

	return __mmio_read32(s->bar, &value) == -EFAULT;
}

static const struct operation operations[] = {
	{ "memory disable", __vfio_pci_memory_disable, memory_disabled,
	  __vfio_pci_memory_enable },
	{ "D3hot", __vfio_pci_d3hot_entry, d3hot_entered, __vfio_pci_d3hot_exit },
	{ "low power", __vfio_pci_low_power_entry, low_power_entered,
	  __vfio_pci_low_power_exit },
	/* Those below are noticed by the count that edu-plus keeps of them. */
	{ "FLR", __vfio_pci_device_flr },
	{ "reset", __vfio_pci_device_reset },
	{ "hot reset", __vfio_pci_device_hot_reset },
};

static u32 reset_count(struct setup *s)
{
	return mmio_read32(s->device->bars[EDU_BAR_REGS].vaddr + EDU_PLUS_RESETS);
}

static bool counts_resets(struct setup *s)
{
	return s->device->driver.ops && !strcmp(s->device->driver.ops->name, "edu-plus");
}

static int revoke_first(struct setup *s)
{
	return __vfio_pci_dmabuf_revoke(s->device, s->fd);
}

/* Do something in a child of which the exit status is the errno. */
static pid_t start(struct setup *s, int (*act)(struct setup *s))
{
	pid_t pid = process_fork();

	if (!pid)
		_exit(-act(s));

	return pid;
}

/* The same of something that is done to the device. */
static pid_t start_on_device(struct setup *s, int (*act)(struct vfio_pci_device *device))
{
	pid_t pid = process_fork();

	if (!pid)
		_exit(-act(s->device));

	return pid;
}

/* Return 0 or -errno of what start() began, -ETIMEDOUT if it does not end. */
static int finish(pid_t pid)
{
	int status;

	if (__process_wait(pid, &status, PROMPT_MS)) {
		/* What it holds, such as the device, is needed by the next test. */
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		return -ETIMEDOUT;
	}

	return WIFEXITED(status) ? -WEXITSTATUS(status) : -EINTR;
}

/* Whether what began at that time may have waited for as long as it may. */
static bool is_late(u64 start_ms)
{
	return now_ms() - start_ms >= FENCE_WAIT_MS;
}

/* Whether what start() began at that time still waits, if it may. */
static bool is_waiting(pid_t pid, u64 start_ms)
{
	siginfo_t info = {};

	VFIO_ASSERT_EQ(waitid(P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT), 0);
	return !info.si_pid || is_late(start_ms);
}

/*
 * Kill what waits since that time. Return 0 if it has ended by that, -EBUSY if
 * it had ended by itself, -ETIMEDOUT if it goes on, and -EAGAIN if there is no
 * way to tell, for the machine is slow and the wait was over.
 */
static int finish_by_kill(pid_t pid, u64 start_ms)
{
	int status, r;
	bool late;

	VFIO_ASSERT_EQ(kill(pid, SIGKILL), 0);
	late = is_late(start_ms);

	r = __process_wait(pid, &status, PROMPT_MS);
	if (r)
		waitpid(pid, &status, 0);
	else if (!WIFSIGNALED(status))
		r = -EBUSY;

	return late ? -EAGAIN : r;
}

static int read_first(struct setup *s)
{
	u32 value;

	return __mmio_read32(s->vaddr, &value);
}

/* What has nothing to do with the memory of the device, and must not wait. */
static int be_a_bystander(struct setup *s)
{
	void *vaddr;
	int fd, r;

	/* Neither mapping nor exporting, nor taking back what nobody imports. */
	fd = vfio_pci_dmabuf_export_range(s->device, s->index, 2 * s->page_size,
					  s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);
	r = __vfio_pci_dmabuf_revoke(s->device, fd);
	if (r)
		return r;
	dmabuf_unmap(vaddr, s->page_size);
	VFIO_ASSERT_EQ(close(fd), 0);

	vaddr = mmap(NULL, s->page_size, PROT_READ, MAP_SHARED, s->device->fd,
		     s->device->bars[s->index].info.offset);
	VFIO_ASSERT_NE(vaddr, MAP_FAILED);
	dmabuf_unmap(vaddr, s->page_size);

	/* Config writes, among them one that leaves the memory enabled. */
	vfio_pci_config_writew(s->device, PCI_INTERRUPT_LINE, 0xff);
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
	vfio_pci_config_readl(s->device, PCI_VENDOR_ID);

	/* Who reads about all buffers takes the locks of each. */
	dmabuf_count();

	/* And other devices altogether. */
	if (s->other) {
		if (s->other->info.flags & VFIO_DEVICE_FLAGS_RESET)
			vfio_pci_device_reset(s->other);
		vfio_pci_cmd_clear(s->other, PCI_COMMAND_MEMORY);
		vfio_pci_cmd_set(s->other, PCI_COMMAND_MEMORY);
	}

	return 0;
}

/* Whoever has another slice, or all of the BAR. */
static int be_a_neighbour(struct setup *s)
{
	void *vaddr;

	mmio_read32(s->bar);
	mmio_read32(s->next_vaddr);

	/* By a fault, too. */
	vaddr = dmabuf_map(s->next_fd, 0, s->page_size);
	mmio_write32(vaddr, 0x0b5e55ed);
	mmio_read32(vaddr);
	return 0;
}

/* CPU access has ended, and mapping anew. */
static bool cpu_is_cut_off(struct setup *s)
{
	void *vaddr;

	return read_first(s) == -EFAULT &&
	       __dmabuf_map(s->fd, 0, s->page_size, PROT_READ, &vaddr) == -ENODEV;
}

TEST_F(vfio_pci_dmabuf_wait, revoke)
{
	struct setup *s = &self->s;
	u64 start_ms;
	int timeline;
	pid_t pid;

	ASSERT_EQ(0, read_first(s));
	ASSERT_EQ(0, import(s));
	timeline = fence_attach(s->fd);

	start_ms = now_ms();
	pid = start(s, revoke_first);
	ASSERT_TRUE(process_blocks(pid) || is_late(start_ms));
	EXPECT_TRUE(cpu_is_cut_off(s));
	EXPECT_EQ(0, finish(start(s, be_a_bystander)));
	EXPECT_EQ(0, finish(start(s, be_a_neighbour)));
	EXPECT_EQ(-EBADFD, finish(start(s, revoke_first)));
	EXPECT_TRUE(is_waiting(pid, start_ms));

	fence_signal(timeline);
	EXPECT_EQ(0, finish(pid));
	EXPECT_TRUE(cpu_is_cut_off(s));

	unimport(s);
	EXPECT_EQ(-ENODEV, import(s));
}

/* With a fence that never signals. What is dead then is not waited for again. */
TEST_F_TIMEOUT(vfio_pci_dmabuf_wait, revoke_for_long, 60)
{
	struct setup *s = &self->s;
	int status, timeline;
	u64 start_ms;
	pid_t pid;

	ASSERT_EQ(0, import(s));
	timeline = fence_attach(s->fd);

	start_ms = now_ms();
	pid = start(s, revoke_first);
	ASSERT_TRUE(process_blocks(pid) || is_late(start_ms));
	ASSERT_EQ(0, __process_wait(pid, &status, FENCE_LIMIT_MS));
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_EQ(0, WEXITSTATUS(status));
	EXPECT_TRUE(cpu_is_cut_off(s));

	EXPECT_EQ(0, finish(start_on_device(s, __vfio_pci_memory_disable)));
	EXPECT_EQ(0, __vfio_pci_memory_enable(s->device));
	EXPECT_EQ(0, finish(start(s, be_a_neighbour)));

	unimport(s);
	EXPECT_EQ(-ENODEV, import(s));
	fence_signal(timeline);
}

/* False if the kernel had no more patience, and it was over before it was killed. */
static bool revoke_is_killed(struct __test_metadata *_metadata, struct setup *s)
{
	u64 start_ms = now_ms();
	pid_t pid;
	int r;

	pid = start(s, revoke_first);
	ASSERT_TRUE(process_blocks(pid) || is_late(start_ms));
	r = finish_by_kill(pid, start_ms);
	if (r == -EAGAIN)
		return false;

	ASSERT_EQ(0, r);
	return true;
}

/* The one who waits is killed: it has happened all the same. */
TEST_F_TIMEOUT(vfio_pci_dmabuf_wait, revoke_killed, 90)
{
	int timeline, attempts = KILL_ATTEMPTS;
	struct setup *s = &self->s;

	ASSERT_EQ(0, read_first(s));
	ASSERT_EQ(0, import(s));
	timeline = fence_attach(s->fd);

	while (!revoke_is_killed(_metadata, s)) {
		TH_LOG("Too slow for the kernel's patience, once more");
		ASSERT_LT(0, --attempts);
		fence_signal(timeline);
		unimport(s);
		setup_take_back(s);
		setup_lend(s);
		ASSERT_EQ(0, read_first(s));
		ASSERT_EQ(0, import(s));
		timeline = fence_attach(s->fd);
	}

	EXPECT_TRUE(cpu_is_cut_off(s));
	EXPECT_EQ(-EBADFD, finish(start(s, revoke_first)));
	EXPECT_EQ(0, finish(start(s, be_a_bystander)));
	EXPECT_EQ(0, finish(start(s, be_a_neighbour)));

	/* The importer has been told. */
	unimport(s);
	EXPECT_EQ(-ENODEV, import(s));

	/* For good, and for nobody else. */
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	EXPECT_TRUE(cpu_is_cut_off(s));
	EXPECT_EQ(0, finish(start(s, be_a_neighbour)));

	fence_signal(timeline);
	EXPECT_TRUE(cpu_is_cut_off(s));
	EXPECT_EQ(-EBADFD, revoke_first(s));
}

/* Everything that was before, other than what the importer had. */
static bool works_again(struct setup *s)
{
	if (finish(start(s, read_first)) || finish(start(s, be_a_neighbour)))
		return false;

	unimport(s);
	return !import(s);
}

/* Whether the device knows an operation, by one that need not wait. */
static bool is_supported(struct __test_metadata *_metadata, struct setup *s,
			 const struct operation *op)
{
	int r = finish(start_on_device(s, op->act));

	if (r == -EOPNOTSUPP) {
		TH_LOG("%s: not supported", op->name);
		return false;
	}

	VFIO_ASSERT_EQ(r, 0, "No %s\n", op->name);
	if (op->undo)
		VFIO_ASSERT_EQ(op->undo(s->device), 0);
	return true;
}

/* An operation that waits, and somebody else who does because of it. */
struct held {
	u64 start_ms;
	pid_t pid;
	pid_t reader;
};

/* To access the memory is to wait while it still is there, but is about to go. */
static pid_t hold_reader(struct __test_metadata *_metadata, struct setup *s, u64 start_ms)
{
	pid_t pid = start(s, read_first);

	ASSERT_TRUE(process_blocks(pid) || is_late(start_ms));
	return pid;
}

static void hold(struct __test_metadata *_metadata, struct setup *s,
		 const struct operation *op, struct held *held)
{
	held->start_ms = now_ms();
	held->pid = start_on_device(s, op->act);
	ASSERT_TRUE(process_blocks(held->pid) || is_late(held->start_ms));
	held->reader = hold_reader(_metadata, s, held->start_ms);
}

/*
 * If the one who waits is killed then nothing has been done to the device. False
 * if the kernel had no more patience: the operation is undone then.
 */
static bool hold_killed(struct __test_metadata *_metadata, struct setup *s,
			const struct operation *op)
{
	u32 resets = reset_count(s);
	struct held held;
	pid_t reader;
	int r;

	hold(_metadata, s, op, &held);
	reader = hold_reader(_metadata, s, held.start_ms);
	r = finish_by_kill(reader, held.start_ms);
	if (r != -EAGAIN)
		EXPECT_EQ(0, r);

	r = finish_by_kill(held.pid, held.start_ms);
	if (r == -EAGAIN) {
		finish(held.reader);
		ASSERT_EQ(0, op->undo ? op->undo(s->device) : 0);
		ASSERT_TRUE(works_again(s));
		return false;
	}

	ASSERT_EQ(0, r);
	ASSERT_EQ(0, finish(held.reader)) {
		TH_LOG("An access goes on to wait, as the next one would");
	}
	EXPECT_EQ(resets, reset_count(s));
	EXPECT_FALSE(op->done && op->done(s));
	ASSERT_TRUE(works_again(s));
	return true;
}

/* A thread with a fault that waits. */
struct toucher {
	void *vaddr;
	pid_t tid;
};

static void *touch(void *arg)
{
	struct toucher *toucher = arg;
	u32 value;

	__atomic_store_n(&toucher->tid, gettid(), __ATOMIC_RELEASE);
	__mmio_read32(toucher->vaddr, &value);
	return NULL;
}

/* Another thread takes the map away, and with it the last that its file has. */
static void unmap_below_a_fault(struct setup *s, void *vaddr)
{
	/* The thread has it for as long as the process lives. */
	struct toucher *toucher = calloc(1, sizeof(*toucher));
	pthread_t thread;

	VFIO_ASSERT_NOT_NULL(toucher);
	toucher->vaddr = vaddr;
	VFIO_ASSERT_EQ(pthread_create(&thread, NULL, touch, toucher), 0);
	while (!__atomic_load_n(&toucher->tid, __ATOMIC_ACQUIRE))
		sched_yield();
	VFIO_ASSERT_TRUE(process_blocks(toucher->tid));
	dmabuf_unmap(vaddr, s->page_size);
}

static int unmap_below_faults(struct setup *s)
{
	void *vaddr;
	int fd;

	fd = vfio_pci_dmabuf_export_range(s->device, s->index, 2 * s->page_size,
					  s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);
	VFIO_ASSERT_EQ(close(fd), 0);
	unmap_below_a_fault(s, vaddr);
	unmap_below_a_fault(s, dmabuf_map(s->device->fd,
					  s->device->bars[s->index].info.offset,
					  s->page_size));
	return 0;
}

/* It is done once the fence has signalled, and until then hurts nobody else. */
static void hold_signalled(struct __test_metadata *_metadata, struct setup *s,
			   const struct operation *op, int timeline)
{
	u32 resets = reset_count(s);
	struct held held;

	hold(_metadata, s, op, &held);
	EXPECT_EQ(0, finish(start(s, be_a_bystander)));
	EXPECT_TRUE(!finish(start(s, unmap_below_faults)) || is_late(held.start_ms));
	EXPECT_TRUE(is_waiting(held.pid, held.start_ms));
	EXPECT_TRUE(is_waiting(held.reader, held.start_ms));

	fence_signal(timeline);
	EXPECT_EQ(0, finish(held.pid));
	if (op->done) {
		EXPECT_EQ(-EFAULT, finish(held.reader));
		EXPECT_TRUE(op->done(s));
		EXPECT_EQ(0, op->undo(s->device));
	} else {
		EXPECT_EQ(0, finish(held.reader));
		EXPECT_LT(resets, reset_count(s));
	}
	ASSERT_TRUE(works_again(s));
}

static void hold_twice(struct __test_metadata *_metadata, struct setup *s,
		       const struct operation *op)
{
	int attempts = KILL_ATTEMPTS;
	int timeline;

	ASSERT_EQ(0, read_first(s));
	ASSERT_EQ(0, import(s));
	timeline = fence_attach(s->fd);

	while (!hold_killed(_metadata, s, op)) {
		TH_LOG("Too slow for the kernel's patience, once more");
		ASSERT_LT(0, --attempts);
	}
	hold_signalled(_metadata, s, op, timeline);
	unimport(s);
}

TEST_F_TIMEOUT(vfio_pci_dmabuf_wait, hold, 240)
{
	struct setup *s = &self->s;
	int i, nr_done = 0;

	if (!counts_resets(s))
		SKIP(return, "The device does not count its resets");

	for (i = 0; i < ARRAY_SIZE(operations); i++) {
		TH_LOG("%s", operations[i].name);
		if (!is_supported(_metadata, s, &operations[i]))
			continue;
		hold_twice(_metadata, s, &operations[i]);
		nr_done++;
	}
	EXPECT_LT(0, nr_done);
}

static int expect_cut_off(struct setup *s)
{
	return cpu_is_cut_off(s) ? 0 : -EIO;
}

/* Neither waits for the other: the revocation stays when the memory comes back. */
TEST_F_TIMEOUT(vfio_pci_dmabuf_wait, revoke_in_hold, 60)
{
	const struct operation *op = &operations[0];
	struct setup *s = &self->s;
	struct held held;
	pid_t revoker;
	int timeline;

	ASSERT_EQ(0, read_first(s));
	ASSERT_EQ(0, import(s));
	timeline = fence_attach(s->fd);

	hold(_metadata, s, op, &held);
	revoker = start(s, revoke_first);
	ASSERT_TRUE(process_blocks(revoker) || is_late(held.start_ms));
	/* Which need not wait for anything. */
	EXPECT_EQ(0, finish(start(s, expect_cut_off)));
	EXPECT_TRUE(is_waiting(held.pid, held.start_ms));

	fence_signal(timeline);
	EXPECT_EQ(0, finish(held.pid));
	EXPECT_EQ(0, finish(revoker));
	EXPECT_EQ(-EFAULT, finish(held.reader));
	EXPECT_TRUE(op->done(s));
	EXPECT_EQ(0, op->undo(s->device));

	EXPECT_TRUE(cpu_is_cut_off(s));
	EXPECT_EQ(0, finish(start(s, be_a_neighbour)));
	unimport(s);
	EXPECT_EQ(-ENODEV, import(s));
}

static int read_bar(struct setup *s)
{
	u32 value;

	return __mmio_read32(s->bar, &value);
}

/* Where there is no memory there is nothing to wait for, whoever waits for importers. */
TEST_F(vfio_pci_dmabuf_wait, hold_without_memory)
{
	struct setup *s = &self->s;
	u64 start_ms;
	int timeline;
	pid_t pid;

	if (!(s->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "Device does not support reset");

	ASSERT_EQ(0, import(s));
	ASSERT_EQ(0, __vfio_pci_memory_disable(s->device));
	timeline = fence_attach(s->fd);

	start_ms = now_ms();
	pid = start_on_device(s, __vfio_pci_device_reset);
	ASSERT_TRUE(process_blocks(pid) || is_late(start_ms));
	EXPECT_EQ(-EFAULT, finish(start(s, read_first)));
	EXPECT_EQ(-EFAULT, finish(start(s, read_bar)));
	EXPECT_TRUE(is_waiting(pid, start_ms));

	fence_signal(timeline);
	EXPECT_EQ(0, finish(pid));
	EXPECT_EQ(0, __vfio_pci_memory_enable(s->device));
	EXPECT_TRUE(works_again(s));
	unimport(s);
}

/* Nobody waits for the fences of a buffer that is not imported. */
TEST_F(vfio_pci_dmabuf_wait, no_importer)
{
	struct setup *s = &self->s;
	int i, timeline, next_timeline, nr_done = 0;

	timeline = fence_attach(s->fd);
	next_timeline = fence_attach(s->next_fd);

	for (i = 0; i < ARRAY_SIZE(operations); i++) {
		TH_LOG("%s", operations[i].name);
		nr_done += is_supported(_metadata, s, &operations[i]);
		EXPECT_EQ(0, finish(start(s, be_a_neighbour)));
	}
	EXPECT_LT(0, nr_done);

	/* The importer has come and gone. */
	ASSERT_EQ(0, import(s));
	unimport(s);

	EXPECT_EQ(0, finish(start(s, revoke_first)));
	EXPECT_TRUE(cpu_is_cut_off(s));
	fence_signal(timeline);
	fence_signal(next_timeline);
}

/* A child has inherited what is lent, and would keep it. */
static int disable_empty_handed(struct setup *s)
{
	setup_take_back(s);
	return __vfio_pci_memory_disable(s->device);
}

/* A buffer is released while somebody waits for its importer, whichever is the first. */
TEST_F(vfio_pci_dmabuf_wait, released)
{
	const u64 next_iova = IMPORT_IOVA + SZ_1M;
	struct setup *s = &self->s;
	int timeline, next_timeline;
	u64 start_ms;
	pid_t pid;

	ASSERT_EQ(0, import(s));
	ASSERT_EQ(0, __iommu_map_dmabuf(s->importer, s->next_fd, 0, s->page_size,
					next_iova, RW));
	timeline = fence_attach(s->fd);
	next_timeline = fence_attach(s->next_fd);

	start_ms = now_ms();
	pid = start(s, disable_empty_handed);
	ASSERT_TRUE(process_blocks(pid) || is_late(start_ms));

	unimport(s);
	iommu_unmap_dmabuf(s->importer, next_iova, s->page_size);
	setup_take_back(s);
	EXPECT_TRUE(is_waiting(pid, start_ms));

	fence_signal(timeline);
	fence_signal(next_timeline);
	EXPECT_EQ(0, finish(pid));
	EXPECT_TRUE(memory_disabled(s));
	EXPECT_EQ(0, __vfio_pci_memory_enable(s->device));

	setup_lend(s);
	EXPECT_EQ(0, finish(start(s, be_a_neighbour)));
}

/*
 * Nobody can be killed who closes a device: it waits for a while.
 */
FIXTURE(vfio_pci_dmabuf_close) {
	struct setup s;
	pid_t primary;
	int timeline;
};

FIXTURE_VARIANT(vfio_pci_dmabuf_close) {
	bool imported;
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_close, imported) {
	.imported = true,
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_close, not_imported) {
	.imported = false,
};

/* A process of its own has the device open, and hands out one DMABUF. */
static void primary(int socket)
{
	struct vfio_pci_device *device;
	struct iommu *iommu;
	int index;

	iommu = iommu_init(MODE_IOMMUFD);
	device = vfio_pci_device_init(device_bdf, iommu);
	index = vfio_pci_ram_bar(device);
	if (index < 0 || !vfio_pci_has_feature(device, FEATURE_REVOKE) ||
	    !vfio_pci_has_dmabuf_mmap(device, index))
		_exit(KSFT_SKIP);

	fd_send(socket, vfio_pci_dmabuf_export_range(device, index, 0, getpagesize()), 0);
	pause();
	_exit(KSFT_FAIL);
}

FIXTURE_SETUP(vfio_pci_dmabuf_close)
{
	struct setup *s = &self->s;
	int sockets[2], status;
	u32 value;

	if (access(SW_SYNC, R_OK | W_OK))
		SKIP(return, "No fences: they need debugfs and CONFIG_SW_SYNC");

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets));
	self->primary = process_fork();
	if (!self->primary) {
		close(sockets[0]);
		primary(sockets[1]);
	}
	ASSERT_EQ(0, close(sockets[1]));

	s->page_size = getpagesize();
	s->fd = __fd_receive(sockets[0], &value);
	ASSERT_EQ(0, close(sockets[0]));
	if (s->fd == -EPIPE) {
		ASSERT_EQ(self->primary, waitpid(self->primary, &status, 0));
		ASSERT_TRUE(WIFEXITED(status));
		ASSERT_EQ(KSFT_SKIP, WEXITSTATUS(status));
		SKIP(return, "The device or the kernel lacks what it takes");
	}

	s->vaddr = dmabuf_map(s->fd, 0, s->page_size);
	s->importer = iommu_init(MODE_IOMMUFD);
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_close)
{
	struct setup *s = &self->s;

	dmabuf_unmap(s->vaddr, s->page_size);
	VFIO_ASSERT_EQ(close(s->fd), 0);
	VFIO_ASSERT_EQ(close(self->timeline), 0);
	iommu_cleanup(s->importer);
}

/* Whoever only has the fd takes the locks of the buffer, and does not wait for them. */
static int be_late(struct setup *s)
{
	dmabuf_count();
	return __iommu_map_dmabuf(s->importer, s->fd, 0, s->page_size,
				  IMPORT_IOVA + s->page_size, RW);
}

TEST_F_TIMEOUT(vfio_pci_dmabuf_close, close, 60)
{
	struct setup *s = &self->s;
	u64 start_ms;
	int status;

	ASSERT_EQ(0, read_first(s));
	if (variant->imported)
		ASSERT_EQ(0, import(s));
	self->timeline = fence_attach(s->fd);

	start_ms = now_ms();
	ASSERT_EQ(0, kill(self->primary, SIGKILL));
	if (variant->imported) {
		ASSERT_TRUE(process_blocks(self->primary));
		EXPECT_EQ(-EFAULT, read_first(s));
		/* Nobody else has to wait for that, who looks at buffers or comes too late. */
		EXPECT_EQ(-ENODEV, finish(start(s, be_late)));
		ASSERT_EQ(0, __process_wait(self->primary, &status, FENCE_LIMIT_MS));
		/* A reset, which comes then, blocks as well, but for less. */
		EXPECT_LT(FENCE_WAIT_MS / 2, now_ms() - start_ms);
	} else {
		ASSERT_EQ(0, __process_wait(self->primary, &status, PROMPT_MS));
	}
	EXPECT_TRUE(cpu_is_cut_off(s));

	/* The fence still is there, but leads to nothing any more. */
	if (variant->imported)
		unimport(s);
	EXPECT_EQ(-ENODEV, import(s));

	s->iommu = iommu_init(MODE_IOMMUFD);
	s->device = vfio_pci_device_init(device_bdf, s->iommu);
	s->index = vfio_pci_ram_bar(s->device);
	mmio_read32(s->device->bars[s->index].vaddr);
	EXPECT_TRUE(cpu_is_cut_off(s));
	vfio_pci_device_cleanup(s->device);
	iommu_cleanup(s->iommu);
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
