// SPDX-License-Identifier: GPL-2.0-only
/*
 * Let everything fail that can, once, on the paths behind DMABUFs of BARs.
 *
 * The kernel counts, per thread, what may fail for reasons that are not the
 * caller's: allocations of memory, and copies from and to the user. It makes the
 * one fail whose number is written to /proc/thread-self/fail-nth. Each operation
 * here is done over and over, with the first of these points failing, then the
 * second, and so on until there is none left. Either the call reports that and
 * nothing has changed, or it has succeeded all the same. In both cases the next
 * call succeeds, whatever else there is of the device goes on to work, and what
 * was made can be undone without a trace.
 *
 * What the kernel itself says about it is half of the result: run this with
 * lockdep and kmemleak.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/io.h>
#include <linux/iommufd.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

#define FEATURE_DMA_BUF	(VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF)
#define FEATURE_REVOKE	(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE)
#define FEATURE_MEMATTR	(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR)
#define WC		VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR_WC

#define RW		(IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE)
#define IMPORT_IOVA	SZ_1M

/* So many that the kernel needs whole pages for them. */
#define MANY_RANGES	1024

/* Far from everything else: a map here has no page tables yet. */
#define FAR_AWAY	((void *)0x200000000000UL)
#define FARTHER_AWAY	((void *)0x280000000000UL)

/* No operation has that many points. */
#define MAX_POINTS	2000

/* For one operation, on a slow machine and a kernel that checks a lot. */
#define SWEEP_TIMEOUT_S	300

#define DEBUGFS		"/sys/kernel/debug/"

static const char *device_bdf;

/*
 * By default allocations that may sleep never fail, those of a single page or of
 * high memory neither, and each that does dumps a stack.
 */
static struct knob {
	const char *path;
	const char *wanted;
	char saved[32];
} knobs[] = {
	{ DEBUGFS "failslab/ignore-gfp-wait", "N" },
	{ DEBUGFS "failslab/verbose", "0" },
	{ DEBUGFS "fail_page_alloc/ignore-gfp-wait", "N" },
	{ DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N" },
	{ DEBUGFS "fail_page_alloc/min-order", "0" },
	{ DEBUGFS "fail_page_alloc/verbose", "0" },
	{ DEBUGFS "fail_usercopy/verbose", "0" },
};

static bool knob_read(struct knob *knob)
{
	ssize_t length;
	int fd;

	fd = open(knob->path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;

	length = read(fd, knob->saved, sizeof(knob->saved) - 1);
	VFIO_ASSERT_GT(length, 0);
	VFIO_ASSERT_EQ(close(fd), 0);
	return true;
}

static void knob_write(const struct knob *knob, const char *value)
{
	ssize_t length = strlen(value);
	int fd;

	fd = open(knob->path, O_WRONLY | O_CLOEXEC);
	VFIO_ASSERT_GE(fd, 0);
	VFIO_ASSERT_EQ(write(fd, value, length), length, "%s to %s\n", value, knob->path);
	VFIO_ASSERT_EQ(close(fd), 0);
}

/* The kernel may have been built without one or the other. */
static void knobs_set(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(knobs); i++) {
		if (knob_read(&knobs[i]))
			knob_write(&knobs[i], knobs[i].wanted);
	}
}

static void knobs_restore(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(knobs); i++) {
		if (knobs[i].saved[0])
			knob_write(&knobs[i], knobs[i].saved);
	}
}

/* The first of them is the one that nothing works without. */
static bool knobs_are_set(void)
{
	return knobs[0].saved[0];
}

struct setup {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	long page_size;
	int index;
	void *bar;

	/* /proc/thread-self/fail-nth */
	int fail_nth;

	/* What is there all the time, and has to work all the time. */
	int other_fd;
	void *other_vaddr;

	/* What an operation works on, and what it makes. */
	int fd;
	void *vaddr;
	u64 size;

	/* Prepared, so that nothing but the call is in the call. */
	struct {
		struct vfio_device_feature header;
		struct vfio_device_feature_dma_buf dma_buf;
		struct vfio_region_dma_range ranges[MANY_RANGES];
	} *args;
};

/*
 * Accesses, without a system call before or behind them, which would have points
 * of its own.
 */

static sigjmp_buf access_env;

static void access_failed(int sig)
{
	siglongjmp(access_env, 1);
}

static int access_result(void *vaddr)
{
	if (sigsetjmp(access_env, 0))
		return -EFAULT;

	readl(vaddr);
	return 0;
}

/* Not masked while it is handled, as nobody restores the mask. */
static void access_init(void)
{
	struct sigaction action = { .sa_handler = access_failed, .sa_flags = SA_NODEFER };

	VFIO_ASSERT_EQ(sigaction(SIGBUS, &action, NULL), 0);
}

/* Map something of the BAR or a DMABUF without touching it. */

static int map_at(struct setup *s, void *hint, int fd, u64 offset)
{
	s->vaddr = mmap(hint, s->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
	if (s->vaddr == MAP_FAILED)
		return -errno;

	return 0;
}

static int map_bar(struct setup *s)
{
	return map_at(s, FAR_AWAY, s->device->fd, s->device->bars[s->index].info.offset);
}

static int map_dmabuf(struct setup *s)
{
	return map_at(s, FAR_AWAY, s->fd, 0);
}

static int unmap(struct setup *s)
{
	return munmap(s->vaddr, s->size) ? -errno : 0;
}

static int import(struct setup *s)
{
	return __iommu_map_dmabuf(s->iommu, s->fd, 0, s->page_size, IMPORT_IOVA, RW);
}

static void unimport(struct setup *s)
{
	iommu_unmap_dmabuf(s->iommu, IMPORT_IOVA, s->page_size);
}

/* The address is taken for as long as there is an import. */
static bool is_imported(struct setup *s)
{
	return import(s) == -EEXIST;
}

static int close_fd(struct setup *s)
{
	return close(s->fd) ? -errno : 0;
}

/* The map shows the beginning of the BAR. */
static bool map_works(struct setup *s)
{
	static u32 value = 0xfa110000;

	if (access_result(s->bar) || access_result(s->vaddr))
		return false;

	writel(++value, s->bar);
	return readl(s->vaddr) == value;
}

static bool others_work(struct setup *s)
{
	static u32 value = 0x07e40000;
	void *vaddr;
	bool works;

	if (access_result(s->bar) || access_result(s->other_vaddr) ||
	    __dmabuf_map(s->other_fd, 0, s->page_size, PROT_READ, &vaddr))
		return false;

	writel(++value, s->bar + s->page_size);
	works = readl(s->other_vaddr) == value && !access_result(vaddr) &&
		readl(vaddr) == value;
	dmabuf_unmap(vaddr, s->page_size);
	return works;
}

/* What a call that fails must leave alone. */
struct state {
	int nr_fds;
	u64 mapped;
	long nr_dmabufs;
};

/* Not the number of maps: the mm may have split one before it runs out of memory. */
static u64 count_mapped(void)
{
	u64 start, end, mapped = 0;
	char line[1024];
	FILE *file;

	file = fopen("/proc/self/maps", "r");
	VFIO_ASSERT_NOT_NULL(file);
	while (fgets(line, sizeof(line), file)) {
		if (strstr(line, "/dmabuf:") && sscanf(line, "%lx-%lx", &start, &end) == 2)
			mapped += end - start;
	}
	VFIO_ASSERT_EQ(fclose(file), 0);
	return mapped;
}

static struct state state_get(void)
{
	struct state state = {
		.nr_fds = process_count_fds(),
		.mapped = count_mapped(),
		.nr_dmabufs = dmabuf_count(),
	};

	return state;
}

static void state_expect(struct __test_metadata *_metadata, const struct state *state)
{
	struct state now = state_get();

	EXPECT_EQ(state->nr_fds, now.nr_fds);
	EXPECT_EQ(state->mapped, now.mapped);
	EXPECT_EQ(state->nr_dmabufs, now.nr_dmabufs);
}

struct operation {
	const char *name;

	/* Whether the kernel and the device can do it. All of them, if not set. */
	bool (*is_supported)(struct setup *s);

	/* Have what the call works on. */
	void (*prepare)(struct setup *s);

	/* The call and nothing else: 0 or -errno. It may be tried again. */
	int (*call)(struct setup *s);

	/* After an error: what prepare() made is as it was. */
	bool (*is_unchanged)(struct setup *s);

	/* After a success: it has done what it is for. */
	bool (*has_worked)(struct setup *s);

	/* Undo the call, and what prepare() did. */
	void (*undo)(struct setup *s);

	/* What it may fail by, as positive numbers up to a 0. */
	int errors[4];

	/*
	 * It cannot do without memory: there has to be a point and, if the call
	 * may report it, a call that did.
	 */
	bool allocates;
};

FIXTURE(vfio_pci_dmabuf_fail_nth) {
	struct setup s;
};

FIXTURE_VARIANT(vfio_pci_dmabuf_fail_nth) {
	struct operation op;
};

static const char *setup_init(struct setup *s)
{
	s->page_size = getpagesize();
	s->size = s->page_size;

	s->fail_nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (s->fail_nth < 0 || !knobs_are_set())
		return "The kernel makes no allocation fail: it needs CONFIG_FAILSLAB, and debugfs";

	s->iommu = iommu_init(MODE_IOMMUFD);
	s->device = vfio_pci_device_init(device_bdf, s->iommu);
	s->index = vfio_pci_ram_bar(s->device);

	if (s->index < 0)
		return "The device has no BAR with RAM";
	if (!vfio_pci_has_feature(s->device, FEATURE_DMA_BUF))
		return "The kernel does not export DMABUFs from BARs of this device";
	if (!vfio_pci_has_dmabuf_mmap(s->device, s->index))
		return "The kernel does not map exported DMABUFs";

	s->bar = s->device->bars[s->index].vaddr;
	s->args = calloc_assert(1, sizeof(*s->args));
	s->other_fd = vfio_pci_dmabuf_export_range(s->device, s->index, s->page_size,
						   s->page_size);
	s->other_vaddr = dmabuf_map(s->other_fd, 0, s->page_size);
	access_init();
	return NULL;
}

FIXTURE_SETUP(vfio_pci_dmabuf_fail_nth)
{
	const char *reason = setup_init(&self->s);

	if (reason)
		SKIP(return, "%s", reason);

	if (variant->op.is_supported && !variant->op.is_supported(&self->s))
		SKIP(return, "The kernel or the device has no %s", variant->op.name);
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_fail_nth)
{
	struct setup *s = &self->s;

	dmabuf_unmap(s->other_vaddr, s->page_size);
	VFIO_ASSERT_EQ(close(s->other_fd), 0);
	VFIO_ASSERT_EQ(close(s->fail_nth), 0);
	free(s->args);
	vfio_pci_device_cleanup(s->device);
	iommu_cleanup(s->iommu);

	/* Without what a test leaves that has failed. */
	if (!_metadata->exit_code)
		EXPECT_EQ(0, __vfio_pci_rebind(device_bdf));
}

static void fail_nth_set(struct setup *s, unsigned int nth)
{
	char text[16];
	int length;

	length = snprintf(text, sizeof(text), "%u", nth);
	VFIO_ASSERT_EQ(pwrite(s->fail_nth, text, length, 0), length);
}

/*
 * End it, and return whether something has failed. If not, then what is to fail
 * may be the copy to this read or the one from this write.
 */
static bool fail_nth_end(struct setup *s)
{
	char text[16] = {};
	bool failed;

	failed = pread(s->fail_nth, text, sizeof(text) - 1, 0) > 0 && !strcmp(text, "0\n");
	if (pwrite(s->fail_nth, "0", 1, 0) != 1) {
		failed = false;
		fail_nth_set(s, 0);
	}

	return failed;
}

static bool is_allowed(const struct operation *op, int r)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(op->errors); i++) {
		if (op->errors[i] && r == -op->errors[i])
			return true;
	}

	return false;
}

/*
 * Once with that point failing, 0 is for none. Return whether there was such a
 * point, and in @result what the call said.
 */
static bool try_nth(struct __test_metadata *_metadata, struct setup *s,
		    const struct operation *op, unsigned int nth, int *result)
{
	struct state before, prepared;
	bool failed;
	int r;

	before = state_get();
	if (!nth && before.nr_dmabufs < 0)
		TH_LOG("No debugfs: leaks are not looked at");
	if (op->prepare)
		op->prepare(s);
	prepared = state_get();

	fail_nth_set(s, nth);
	r = op->call(s);
	failed = fail_nth_end(s) && nth;
	*result = r;

	if (r) {
		/* It has a reason, and that is the one it gives. */
		EXPECT_TRUE(failed);
		EXPECT_TRUE(is_allowed(op, r)) {
			TH_LOG("%s: error %d", op->name, r);
		}
		state_expect(_metadata, &prepared);
		EXPECT_TRUE(others_work(s));
		if (op->is_unchanged)
			EXPECT_TRUE(op->is_unchanged(s));
		ASSERT_EQ(0, op->call(s));
	}

	EXPECT_TRUE(op->has_worked(s));
	EXPECT_TRUE(others_work(s));
	op->undo(s);
	state_expect(_metadata, &before);

	ASSERT_EQ(0, _metadata->exit_code) {
		TH_LOG("%s: with point %u failing", op->name, nth);
	}
	return failed;
}

TEST_F_TIMEOUT(vfio_pci_dmabuf_fail_nth, sweep, SWEEP_TIMEOUT_S)
{
	const struct operation *op = &variant->op;
	unsigned int nth, nr_errors = 0, nr_enomem = 0;
	int r;

	/* With nothing failing, to have everything in place that is made once. */
	try_nth(_metadata, &self->s, op, 0, &r);

	for (nth = 1; try_nth(_metadata, &self->s, op, nth, &r); nth++) {
		ASSERT_GT(MAX_POINTS, nth);
		nr_errors += !!r;
		nr_enomem += r == -ENOMEM;
	}

	TH_LOG("%s: %u points, %u errors, %u of them ENOMEM", op->name, nth - 1,
	       nr_errors, nr_enomem);

	if (op->allocates)
		EXPECT_LT(1, nth);
	if (op->allocates && is_allowed(op, -ENOMEM))
		EXPECT_LT(0, nr_enomem);
}

/*
 * Export
 */

static void prepare_export(struct setup *s, u32 nr_ranges)
{
	u32 i;

	s->args->header.argsz = offsetof(typeof(*s->args), ranges[nr_ranges]);
	s->args->header.flags = FEATURE_DMA_BUF;
	s->args->dma_buf.region_index = s->index;
	s->args->dma_buf.open_flags = O_RDWR | O_CLOEXEC;
	s->args->dma_buf.nr_ranges = nr_ranges;

	/* With a page between them, or they become one. */
	for (i = 0; i < nr_ranges; i++) {
		s->args->ranges[i].offset = i % 2 * 2 * s->page_size;
		s->args->ranges[i].length = s->page_size;
	}
}

static void prepare_export_one(struct setup *s)
{
	prepare_export(s, 1);
}

static void prepare_export_many(struct setup *s)
{
	prepare_export(s, MANY_RANGES);
}

static int export(struct setup *s)
{
	s->fd = ioctl(s->device->fd, VFIO_DEVICE_FEATURE, s->args);
	return s->fd < 0 ? -errno : 0;
}

static bool is_exported(struct setup *s)
{
	u64 size = s->args->dma_buf.nr_ranges * s->page_size;
	bool works;

	if (lseek(s->fd, 0, SEEK_END) != size || map_dmabuf(s))
		return false;

	works = map_works(s);
	VFIO_ASSERT_EQ(unmap(s), 0);
	return works;
}

static void undo_export(struct setup *s)
{
	VFIO_ASSERT_EQ(close_fd(s), 0);
}

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, export_one) {
	.op = {
		.name = "export of one range",
		.prepare = prepare_export_one,
		.call = export,
		.has_worked = is_exported,
		.undo = undo_export,
		.errors = { ENOMEM, EFAULT },
		.allocates = true,
	},
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, export_many) {
	.op = {
		.name = "export of many ranges",
		.prepare = prepare_export_many,
		.call = export,
		.has_worked = is_exported,
		.undo = undo_export,
		.errors = { ENOMEM, EFAULT },
		.allocates = true,
	},
};

/*
 * Maps: to make them, to access them first, to move them and to remove them. An
 * access that finds no memory for page tables is tried again by the kernel.
 */

static void prepare_dmabuf(struct setup *s)
{
	s->fd = vfio_pci_dmabuf_export_range(s->device, s->index, 0, s->size);
}

static void prepare_bar_map(struct setup *s)
{
	VFIO_ASSERT_EQ(map_bar(s), 0);
}

static void prepare_dmabuf_map(struct setup *s)
{
	prepare_dmabuf(s);
	VFIO_ASSERT_EQ(map_dmabuf(s), 0);
}

static void prepare_bar_access(struct setup *s)
{
	prepare_bar_map(s);
	VFIO_ASSERT_EQ(access_result(s->vaddr), 0);
}

/* The map is all that is left of it. */
static void prepare_dmabuf_access(struct setup *s)
{
	prepare_dmabuf_map(s);
	VFIO_ASSERT_EQ(access_result(s->vaddr), 0);
	VFIO_ASSERT_EQ(close_fd(s), 0);
}

static int access_map(struct setup *s)
{
	return access_result(s->vaddr);
}

static void undo_map(struct setup *s)
{
	VFIO_ASSERT_EQ(unmap(s), 0);
}

static void undo_dmabuf_map(struct setup *s)
{
	undo_map(s);
	undo_export(s);
}

static void undo_nothing(struct setup *s)
{
}

static bool is_unmapped(struct setup *s)
{
	struct vma_info info;

	return __vma_info_get(s->vaddr, &info) == -ENOENT;
}

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, map_bar) {
	.op = {
		.name = "mmap() of the BAR",
		.call = map_bar,
		.has_worked = map_works,
		.undo = undo_map,
		.errors = { ENOMEM },
		.allocates = true,
	},
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, map_dmabuf) {
	.op = {
		.name = "mmap() of a DMABUF",
		.prepare = prepare_dmabuf,
		.call = map_dmabuf,
		.has_worked = map_works,
		.undo = undo_dmabuf_map,
		.errors = { ENOMEM },
		.allocates = true,
	},
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, access_bar) {
	.op = {
		.name = "first access to the BAR",
		.prepare = prepare_bar_map,
		.call = access_map,
		.has_worked = map_works,
		.undo = undo_map,
		.errors = { EFAULT },
		.allocates = true,
	},
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, access_dmabuf) {
	.op = {
		.name = "first access to a DMABUF",
		.prepare = prepare_dmabuf_map,
		.call = access_map,
		.has_worked = map_works,
		.undo = undo_dmabuf_map,
		.errors = { EFAULT },
		.allocates = true,
	},
};

/* By a huge page, where the kernel has those. */

static bool is_huge_bar(struct setup *s)
{
	return s->device->bars[s->index].info.size >= SZ_2M;
}

static void prepare_huge_bar_map(struct setup *s)
{
	s->size = SZ_2M;
	prepare_bar_map(s);
	madvise(s->vaddr, s->size, MADV_HUGEPAGE);
}

static void prepare_huge_dmabuf_map(struct setup *s)
{
	s->size = SZ_2M;
	prepare_dmabuf_map(s);
	madvise(s->vaddr, s->size, MADV_HUGEPAGE);
}

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, access_huge_bar) {
	.op = {
		.name = "first access to 2 MiB of the BAR",
		.is_supported = is_huge_bar,
		.prepare = prepare_huge_bar_map,
		.call = access_map,
		.has_worked = map_works,
		.undo = undo_map,
		.errors = { EFAULT },
		.allocates = true,
	},
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, access_huge_dmabuf) {
	.op = {
		.name = "first access to a DMABUF of 2 MiB",
		.is_supported = is_huge_bar,
		.prepare = prepare_huge_dmabuf_map,
		.call = access_map,
		.has_worked = map_works,
		.undo = undo_dmabuf_map,
		.errors = { EFAULT },
		.allocates = true,
	},
};

/* The mm may lack memory to remember that there is no map any more. */
FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, unmap_bar) {
	.op = {
		.name = "munmap() of the BAR",
		.prepare = prepare_bar_access,
		.call = unmap,
		.is_unchanged = map_works,
		.has_worked = is_unmapped,
		.undo = undo_nothing,
		.errors = { ENOMEM },
	},
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, unmap_dmabuf) {
	.op = {
		.name = "munmap() of a DMABUF",
		.prepare = prepare_dmabuf_access,
		.call = unmap,
		.is_unchanged = map_works,
		.has_worked = is_unmapped,
		.undo = undo_nothing,
		.errors = { ENOMEM },
	},
};

/* Three pages, of which the second one goes. */

static void prepare_split(struct setup *s)
{
	s->size = 3 * s->page_size;
	prepare_bar_access(s);
}

static int unmap_middle(struct setup *s)
{
	return munmap(s->vaddr + s->page_size, s->page_size) ? -errno : 0;
}

static bool all_is_mapped(struct setup *s)
{
	return map_works(s) && !access_result(s->vaddr + s->page_size) &&
	       !access_result(s->vaddr + 2 * s->page_size);
}

static bool middle_is_unmapped(struct setup *s)
{
	struct vma_info info;

	return map_works(s) && !access_result(s->vaddr + 2 * s->page_size) &&
	       __vma_info_get(s->vaddr + s->page_size, &info) == -ENOENT;
}

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, unmap_middle) {
	.op = {
		.name = "munmap() in the middle of a map of the BAR",
		.prepare = prepare_split,
		.call = unmap_middle,
		.is_unchanged = all_is_mapped,
		.has_worked = middle_is_unmapped,
		.undo = undo_map,
		.errors = { ENOMEM },
		.allocates = true,
	},
};

static int move(struct setup *s)
{
	void *vaddr;

	vaddr = mremap(s->vaddr, s->size, s->size, MREMAP_MAYMOVE | MREMAP_FIXED, FARTHER_AWAY);
	if (vaddr == MAP_FAILED)
		return -errno;

	s->vaddr = vaddr;
	return 0;
}

/* The mm leaves an empty map behind if it lacks the memory to remove that. */
static bool has_moved(struct setup *s)
{
	return s->vaddr == FARTHER_AWAY && map_works(s) && !munmap(FAR_AWAY, s->size);
}

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, move_bar) {
	.op = {
		.name = "mremap() of the BAR",
		.prepare = prepare_bar_access,
		.call = move,
		.is_unchanged = map_works,
		.has_worked = has_moved,
		.undo = undo_map,
		.errors = { ENOMEM },
		.allocates = true,
	},
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, move_dmabuf) {
	.op = {
		.name = "mremap() of a DMABUF",
		.prepare = prepare_dmabuf_access,
		.call = move,
		.is_unchanged = map_works,
		.has_worked = has_moved,
		.undo = undo_map,
		.errors = { ENOMEM },
		.allocates = true,
	},
};

/*
 * Import
 */

/*
 * The last thing that may fail is to tell the user where it has been mapped. iommufd
 * does not undo the map for that, so do it here.
 */
static int import_or_nothing(struct setup *s)
{
	struct iommu_ioas_unmap args = {
		.size = sizeof(args),
		.ioas_id = s->iommu->ioas_id,
		.iova = IMPORT_IOVA,
		.length = s->page_size,
	};
	int r = import(s);

	if (r == -EFAULT)
		ioctl(s->iommu->iommufd, IOMMU_IOAS_UNMAP, &args);
	return r;
}

static void undo_import(struct setup *s)
{
	unimport(s);
	undo_export(s);
}

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, import) {
	.op = {
		.name = "IOMMU_IOAS_MAP_FILE",
		.prepare = prepare_dmabuf,
		.call = import_or_nothing,
		.has_worked = is_imported,
		.undo = undo_import,
		/* With CONFIG_IOMMUFD_TEST iommufd may not find its objects. */
		.errors = { ENOMEM, EFAULT, ENOENT },
		.allocates = true,
	},
};

/*
 * What needs no memory, once it has its arguments: a DMABUF is taken back, gets
 * an attribute, or goes with its last descriptor.
 */

static bool has_revoke(struct setup *s)
{
	return vfio_pci_has_feature(s->device, FEATURE_REVOKE);
}

static bool has_revoke_ioctl(struct setup *s)
{
	return has_revoke(s) && vfio_pci_has_revoke_ioctl(s->device);
}

/* Mapped and imported. */
static void prepare_lent(struct setup *s)
{
	prepare_dmabuf_map(s);
	VFIO_ASSERT_EQ(access_result(s->vaddr), 0);
	VFIO_ASSERT_EQ(import(s), 0);
}

static int revoke_feature(struct setup *s)
{
	return __vfio_pci_dmabuf_revoke(s->device, s->fd);
}

static int revoke_ioctl(struct setup *s)
{
	return __vfio_pci_dmabuf_revoke_ioctl(s->device, s->fd);
}

static bool is_lent(struct setup *s)
{
	return map_works(s) && is_imported(s);
}

static bool is_revoked(struct setup *s)
{
	void *vaddr;

	if (access_result(s->vaddr) != -EFAULT || revoke_feature(s) != -EBADFD ||
	    __dmabuf_map(s->fd, 0, s->size, PROT_READ, &vaddr) != -ENODEV)
		return false;

	unimport(s);
	return import(s) == -ENODEV;
}

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, revoke) {
	.op = {
		.name = "VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE",
		.is_supported = has_revoke,
		.prepare = prepare_lent,
		.call = revoke_feature,
		.is_unchanged = is_lent,
		.has_worked = is_revoked,
		.undo = undo_dmabuf_map,
		.errors = { EFAULT },
	},
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, revoke_ioctl) {
	.op = {
		.name = "VFIO_DEVICE_PCI_DMABUF_REVOKE",
		.is_supported = has_revoke_ioctl,
		.prepare = prepare_lent,
		.call = revoke_ioctl,
		.is_unchanged = is_lent,
		.has_worked = is_revoked,
		.undo = undo_dmabuf_map,
		.errors = { EFAULT },
	},
};

static int set_wc(struct setup *s)
{
	return __vfio_pci_dmabuf_memattr(s->device, s->fd, WC);
}

static bool has_wc(struct setup *s)
{
	int r;

	if (!vfio_pci_has_feature(s->device, FEATURE_MEMATTR))
		return false;

	prepare_dmabuf(s);
	r = set_wc(s);
	undo_export(s);
	return !r;
}

static bool memattr_is(struct setup *s, const char *memattr)
{
	char value[16];

	return fdinfo_get(s->fd, "vfio-pci-memattr", value, sizeof(value)) &&
	       !strcmp(value, memattr);
}

static bool is_nc(struct setup *s)
{
	return memattr_is(s, "nc");
}

static bool is_wc(struct setup *s)
{
	return memattr_is(s, "wc");
}

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, memattr) {
	.op = {
		.name = "VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR",
		.is_supported = has_wc,
		.prepare = prepare_dmabuf,
		.call = set_wc,
		.is_unchanged = is_nc,
		.has_worked = is_wc,
		.undo = undo_export,
		.errors = { EFAULT },
	},
};

static bool is_closed(struct setup *s)
{
	return fcntl(s->fd, F_GETFD) == -1 && errno == EBADF;
}

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, close) {
	.op = {
		.name = "close() of a DMABUF",
		.prepare = prepare_dmabuf,
		.call = close_fd,
		.has_worked = is_closed,
		.undo = undo_nothing,
	},
};

/*
 * The memory of the device goes away, and comes back. An importer, which has been
 * told to let go before anything can fail, imports anew.
 */

static int reset(struct setup *s)
{
	return __vfio_pci_device_reset(s->device);
}

static int hot_reset(struct setup *s)
{
	return __vfio_pci_device_hot_reset(s->device);
}

static bool has_reset(struct setup *s)
{
	return s->device->info.flags & VFIO_DEVICE_FLAGS_RESET;
}

static bool has_hot_reset(struct setup *s)
{
	return hot_reset(s) != -EOPNOTSUPP;
}

static bool map_works_anew(struct setup *s)
{
	if (!map_works(s))
		return false;

	unimport(s);
	return !import(s);
}

static void undo_lent(struct setup *s)
{
	unimport(s);
	undo_dmabuf_map(s);
}

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, reset) {
	.op = {
		.name = "VFIO_DEVICE_RESET",
		.is_supported = has_reset,
		.prepare = prepare_lent,
		.call = reset,
		.is_unchanged = map_works_anew,
		.has_worked = map_works_anew,
		.undo = undo_lent,
		.errors = { ENOMEM },
	},
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, hot_reset) {
	.op = {
		.name = "VFIO_DEVICE_PCI_HOT_RESET",
		.is_supported = has_hot_reset,
		.prepare = prepare_lent,
		.call = hot_reset,
		.is_unchanged = map_works_anew,
		.has_worked = map_works_anew,
		.undo = undo_lent,
		.errors = { ENOMEM, EFAULT },
	},
};

static int command_write(struct setup *s, bool memory)
{
	u16 command = PCI_COMMAND_MASTER | (memory ? PCI_COMMAND_MEMORY : 0);
	ssize_t ret;

	ret = pwrite(s->device->fd, &command, sizeof(command),
		     s->device->config_space.offset + PCI_COMMAND);
	return ret < 0 ? -errno : 0;
}

static int memory_disable(struct setup *s)
{
	return command_write(s, false);
}

static bool is_disabled(struct setup *s)
{
	return access_result(s->vaddr) == -EFAULT && access_result(s->bar) == -EFAULT;
}

static bool can_be_enabled(struct setup *s)
{
	return is_disabled(s) && !command_write(s, true) && map_works_anew(s);
}

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fail_nth, memory_disable) {
	.op = {
		.name = "memory disable",
		.prepare = prepare_lent,
		.call = memory_disable,
		.is_unchanged = is_lent,
		.has_worked = can_be_enabled,
		.undo = undo_lent,
		.errors = { EFAULT },
	},
};

int main(int argc, char *argv[])
{
	int ret;

	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	knobs_set();
	ret = test_harness_run(argc, argv);
	knobs_restore();
	return ret;
}
