// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test random sequences of all that can be done with a BAR, with DMABUFs of it and
 * with mappings of both, right and wrong, against a model of what has to come out.
 *
 * A sequence is known by its seed. $VFIO_SELFTESTS_SEED and $VFIO_SELFTESTS_CALLS
 * replace those of the tests, to repeat a failure or for a long run.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/mman.h>

#include <linux/compiler.h>
#include <linux/iommufd.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

#define FEATURE_DMA_BUF		(VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF)
#define FEATURE_REVOKE		(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE)
#define FEATURE_MEMATTR		(VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR)

/* Each page of this much of the BAR starts with its number and this. */
#define MAX_SIZE	SZ_8M
#define TAG		0xfa220000

#define NR_BUFFERS	12
#define NR_MAPS		24
#define NR_IMPORTS	3
#define MAX_RANGES	6

/* Of a sequence, if nobody asks for more. */
#define NR_CALLS	5000

/* How many mappings are looked at every so often, on top of random ones. */
#define AUDIT_PERIOD	64
#define AUDIT_MAPS	8

static const char *device_bdf;

/* A DMABUF, which is there until its fd is closed and no mapping is left. */
struct buffer {
	int fd;
	bool writable;
	bool dead;
	/* The device has been closed since. */
	bool foreign;
	int nr_maps;
	u64 size;
	u32 nr_ranges;
	struct vfio_region_dma_range ranges[MAX_RANGES];
};

struct map {
	void *vaddr;
	u64 size;
	/* NULL for one of the BAR. */
	struct buffer *buffer;
	u64 offset;
	int prot;
	/* The page that was accessed last, which may be in the page tables. */
	u64 last;
};

/* A part of the IOAS that may have a DMABUF. */
struct import {
	iova_t iova;
	u64 size;
};

struct fuzz {
	struct iommu *iommu;
	struct iova_allocator *iova_allocator;
	struct vfio_pci_device *device;
	int index;
	u64 size;
	u64 page_size;
	bool memory;
	enum { AWAKE, D3HOT, LOW_POWER } sleep;
	bool has_revoke_ioctl;
	int not_a_dmabuf;
	struct buffer buffers[NR_BUFFERS];
	struct map maps[NR_MAPS];
	struct import imports[NR_IMPORTS];

	u64 seed;
	u64 random;
	u64 nr_calls;
	u64 nr_done;
	u64 nr_refused;
	u64 nr_sigbus;
};

FIXTURE(vfio_pci_dmabuf_fuzz) {
	struct fuzz f;
};

FIXTURE_VARIANT(vfio_pci_dmabuf_fuzz) {
	u64 seed;
};

#define SEED(_seed)						\
FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_fuzz, seed_##_seed) {	\
	.seed = _seed,						\
}

SEED(1);
SEED(2);
SEED(3);
SEED(4);

/* xorshift64*: it only has to be the same everywhere. */
static u64 random_below(struct fuzz *f, u64 limit)
{
	f->random ^= f->random >> 12;
	f->random ^= f->random << 25;
	f->random ^= f->random >> 27;
	return (f->random * 0x2545f4914f6cdd1dULL >> 11) % limit;
}

static bool one_in(struct fuzz *f, u64 n)
{
	return !random_below(f, n);
}

static u64 random_pages(struct fuzz *f, u64 size)
{
	return random_below(f, size / f->page_size) * f->page_size;
}

static __printf(4, 5)
void expect(struct fuzz *f, long result, long expected, const char *format, ...)
{
	va_list args;

	if (result == expected) {
		f->nr_refused += expected < 0;
		return;
	}

	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	VFIO_ASSERT_EQ(result, expected, "seed %lu, call %lu\n", f->seed, f->nr_done);
}

static bool is_accessible(struct fuzz *f)
{
	return f->memory && f->sleep == AWAKE;
}

static struct buffer *random_buffer(struct fuzz *f)
{
	struct buffer *b = &f->buffers[random_below(f, NR_BUFFERS)];

	return b->fd >= 0 ? b : NULL;
}

static struct map *random_map(struct fuzz *f)
{
	struct map *map = &f->maps[random_below(f, NR_MAPS)];

	return map->vaddr ? map : NULL;
}

/* Where in the BAR a byte of a mapping is. */
static u64 map_to_bar(struct map *map, u64 offset)
{
	u32 i;

	offset += map->offset;
	if (!map->buffer)
		return offset;

	for (i = 0; offset >= map->buffer->ranges[i].length; i++)
		offset -= map->buffer->ranges[i].length;
	return map->buffer->ranges[i].offset + offset;
}

/* A page of a mapping: any, or the one before once more. */
static void access_map(struct fuzz *f, struct map *map, bool write)
{
	u64 offset = one_in(f, 2) ? map->last : random_pages(f, map->size);
	u32 value, there = TAG + map_to_bar(map, offset) / f->page_size;
	int expected = 0, r;

	map->last = offset;
	if (write && !(map->prot & PROT_WRITE))
		expected = -EACCES;
	else if (!is_accessible(f) || (map->buffer && map->buffer->dead))
		expected = -EFAULT;
	f->nr_sigbus += expected == -EFAULT;

	r = write ? __mmio_write32(map->vaddr + offset, there) :
		    __mmio_read32(map->vaddr + offset, &value);
	expect(f, r, expected, "access to page %lu of %p\n", offset / f->page_size, map->vaddr);
	if (!r && !write)
		expect(f, value, there, "page %lu of %p\n", offset / f->page_size, map->vaddr);
}

static void do_access(struct fuzz *f)
{
	struct map *map = random_map(f);

	if (map)
		access_map(f, map, one_in(f, 3));
}

/* Spoil one thing about an export. Returns what has to come out. */
static int spoil_export(struct fuzz *f, struct buffer *b, u32 *index)
{
	struct vfio_region_dma_range *range = &b->ranges[random_below(f, b->nr_ranges)];
	u64 bar_size = f->device->bars[f->index].info.size;

	switch (random_below(f, 8)) {
	case 0:
		range->offset += 1 + random_below(f, f->page_size - 1);
		return -EINVAL;
	case 1:
		range->length += 1 + random_below(f, f->page_size - 1);
		return -EINVAL;
	case 2:
		range->length = 0;
		return -EINVAL;
	case 3:
		range->offset = bar_size + random_pages(f, bar_size);
		return -EINVAL;
	case 4:
		range->length = bar_size - range->offset + f->page_size;
		return -EINVAL;
	case 5:
		range->offset = -f->page_size;
		range->length = f->page_size;
		return -EOVERFLOW;
	case 6:
		*index = VFIO_PCI_ROM_REGION_INDEX + random_below(f, INT_MAX);
		return -ENODEV;
	default:
		b->nr_ranges = 0;
		return -EINVAL;
	}
}

static void do_export(struct fuzz *f)
{
	struct buffer *b = &f->buffers[random_below(f, NR_BUFFERS)], spoilt;
	u32 i, index = f->index;
	int fd, expected;

	if (b->fd >= 0 || b->nr_maps)
		return;

	*b = (struct buffer) { .fd = -1, .nr_ranges = 1 + random_below(f, MAX_RANGES) };
	b->writable = !one_in(f, 4);
	for (i = 0; i < b->nr_ranges; i++) {
		struct vfio_region_dma_range *range = &b->ranges[i];

		/* Some that are adjacent to the one before. */
		range->offset = random_pages(f, f->size);
		if (i && one_in(f, 3) && range[-1].offset + range[-1].length < f->size)
			range->offset = range[-1].offset + range[-1].length;
		range->length = f->page_size + random_pages(f, f->size - range->offset);
		if (one_in(f, 2))
			range->length = min_t(u64, range->length, 8 * f->page_size);
		b->size += range->length;
	}

	if (one_in(f, 3)) {
		spoilt = *b;
		expected = spoil_export(f, &spoilt, &index);
		fd = __vfio_pci_dmabuf_export(f->device, index, O_RDWR | O_CLOEXEC,
					      spoilt.ranges, spoilt.nr_ranges);
		expect(f, fd, expected, "spoilt export of %u ranges of %u\n", b->nr_ranges, index);
		return;
	}

	fd = __vfio_pci_dmabuf_export(f->device, index,
				      (b->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC |
				      (one_in(f, 4) ? O_NONBLOCK : 0),
				      b->ranges, b->nr_ranges);
	expect(f, fd < 0 ? fd : 0, 0, "export of %u ranges\n", b->nr_ranges);
	b->fd = fd;
}

static void do_close(struct fuzz *f)
{
	struct buffer *b = random_buffer(f);
	int fd;

	if (!b)
		return;

	/* Which of several descriptors is left makes no difference. */
	fd = b->fd;
	b->fd = one_in(f, 2) ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
	expect(f, close(fd), 0, "close\n");
}

static void do_map(struct fuzz *f)
{
	struct map *map = &f->maps[random_below(f, NR_MAPS)];
	u64 whole, offset, size, region = 0;
	int prot, expected = 0, fd, r;
	struct buffer *b = NULL;
	void *vaddr;

	if (map->vaddr)
		return;

	whole = f->size;
	fd = f->device->fd;
	if (one_in(f, 6)) {
		region = f->device->bars[f->index].info.offset;
	} else {
		b = random_buffer(f);
		if (!b)
			return;
		whole = b->size;
		fd = b->fd;
	}

	offset = random_pages(f, whole);
	size = f->page_size + random_pages(f, whole - offset);
	prot = one_in(f, 3) ? PROT_READ : PROT_READ | PROT_WRITE;

	if (b && one_in(f, 8)) {
		/* Behind the end there is nothing; that comes before what it is. */
		size = whole - offset + f->page_size + random_pages(f, whole);
		expected = -EINVAL;
	} else if (b && b->dead) {
		expected = -ENODEV;
	}
	/* What the file may be used for comes before anything else. */
	if (b && !b->writable && (prot & PROT_WRITE))
		expected = -EACCES;

	r = __dmabuf_map(fd, region + offset, size, prot, &vaddr);
	expect(f, r, expected, "mmap of 0x%lx at 0x%lx of 0x%lx\n", size, offset, whole);
	if (r)
		return;

	*map = (struct map) {
		.vaddr = vaddr,
		.size = size,
		.buffer = b,
		.offset = offset,
		.prot = prot,
	};
	if (b)
		b->nr_maps++;
}

/* All of a mapping, or what is in front of or behind some page. */
static void do_unmap(struct fuzz *f)
{
	struct map *map = random_map(f);
	u64 cut;

	if (!map)
		return;

	cut = random_pages(f, map->size);
	if (!cut) {
		dmabuf_unmap(map->vaddr, map->size);
		if (map->buffer)
			map->buffer->nr_maps--;
		*map = (struct map) {};
	} else if (one_in(f, 2)) {
		dmabuf_unmap(map->vaddr, cut);
		map->vaddr += cut;
		map->offset += cut;
		map->size -= cut;
		map->last -= min_t(u64, map->last, cut);
	} else {
		dmabuf_unmap(map->vaddr + cut, map->size - cut);
		map->size = cut;
		map->last = min_t(u64, map->last, cut - f->page_size);
	}
}

/* What the mm does to a mapping by itself. */
static void do_mm(struct fuzz *f)
{
	struct map *map = random_map(f);
	void *vaddr;
	int prot, r;

	if (!map)
		return;

	switch (random_below(f, 3)) {
	case 0:
		prot = one_in(f, 2) ? PROT_READ : PROT_READ | PROT_WRITE;
		r = mprotect(map->vaddr, map->size, prot) ? -errno : 0;
		expect(f, r, map->buffer && !map->buffer->writable && (prot & PROT_WRITE) ?
			     -EACCES : 0, "mprotect\n");
		if (!r)
			map->prot = prot;
		break;
	case 1:
		vaddr = mmap_reserve(map->size, f->page_size, 0);
		r = mremap(map->vaddr, map->size, map->size, MREMAP_MAYMOVE | MREMAP_FIXED,
			   vaddr) == vaddr ? 0 : -errno;
		expect(f, r, 0, "mremap\n");
		map->vaddr = vaddr;
		break;
	default:
		/* There are no pages to be dropped. */
		r = madvise(map->vaddr, map->size, MADV_DONTNEED) ? -errno : 0;
		expect(f, r, -EINVAL, "madvise\n");
	}
}

static void do_revoke(struct fuzz *f)
{
	struct buffer *b = random_buffer(f);
	bool by_ioctl = f->has_revoke_ioctl && one_in(f, 3);
	int fd = -1, expected = -EBADF, i, r;

	if (one_in(f, 4)) {
		fd = f->not_a_dmabuf;
		expected = -EINVAL;
	} else if (b) {
		fd = b->fd;
		expected = b->foreign ? -ENODEV : b->dead ? -EBADFD : 0;
	}

	r = by_ioctl ? __vfio_pci_dmabuf_revoke_ioctl(f->device, fd) :
		       __vfio_pci_dmabuf_revoke(f->device, fd);
	expect(f, r, expected, "revoke of fd %d\n", fd);
	if (r)
		return;

	/* What was in the page tables is what is most easily forgotten there. */
	b->dead = true;
	for (i = 0; i < NR_MAPS; i++) {
		if (f->maps[i].vaddr && f->maps[i].buffer == b)
			access_map(f, &f->maps[i], false);
	}
}

static void do_memattr(struct fuzz *f)
{
	static const u32 memattrs[] = {
		VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR_NC,
		VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR_WC,
	};
	struct buffer *b = random_buffer(f);
	u32 memattr = memattrs[random_below(f, 2)];
	int expected = 0, r;

	if (!b)
		return;

	if (one_in(f, 4)) {
		memattr = 2 + random_below(f, INT_MAX);
		expected = -ENOENT;
	}
	if (b->dead)
		expected = b->foreign ? -ENODEV : -EBADFD;

	r = __vfio_pci_dmabuf_memattr(f->device, b->fd, memattr);
	/* Depends on the CPU. */
	if (r == -EOPNOTSUPP && memattr == VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR_WC && !expected)
		return;
	expect(f, r, expected, "memattr %u\n", memattr);
}

/* What an importer sees of it: adjacent ranges are one. */
static bool has_one_range(struct buffer *b)
{
	struct vfio_region_dma_range *range;

	for (range = b->ranges + 1; range < b->ranges + b->nr_ranges; range++) {
		if (range->offset != range[-1].offset + range[-1].length)
			return false;
	}

	return true;
}

static void unimport(struct fuzz *f, struct import *import)
{
	iommu_unmap_dmabuf(f->iommu, import->iova, import->size);
	import->size = 0;
}

/* The device itself is the one that could do DMA to it. */
static void do_import(struct fuzz *f)
{
	struct import *import = &f->imports[random_below(f, NR_IMPORTS)];
	u32 flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE;
	struct buffer *b = random_buffer(f);
	int expected = 0, r;

	if (import->size) {
		unimport(f, import);
		return;
	}
	if (!b || b->size > f->size)
		return;

	if (!b->writable && one_in(f, 2))
		flags = IOMMU_IOAS_MAP_READABLE;
	if (!b->writable && (flags & IOMMU_IOAS_MAP_WRITEABLE))
		expected = -EPERM;
	else if (b->dead || !is_accessible(f))
		expected = -ENODEV;
	else if (!has_one_range(b))
		expected = -EOPNOTSUPP;

	r = __iommu_map_dmabuf(f->iommu, b->fd, 0, b->size, import->iova, flags);
	expect(f, r, expected, "import of 0x%lx\n", b->size);
	if (!r)
		import->size = b->size;
}

/* Anything but an export, which alone would succeed without the model. */
static void do_garbage(struct fuzz *f)
{
	static const u32 features[] = { FEATURE_DMA_BUF, FEATURE_REVOKE, FEATURE_MEMATTR };
	u32 feature = features[random_below(f, ARRAY_SIZE(features))];
	u32 args[8];
	int i, r;

	for (i = 0; i < ARRAY_SIZE(args); i++)
		args[i] = random_below(f, 1ULL << 32);
	/* The fd, or the region index, which may be a good one: flags are not. */
	args[0] = INT_MAX - random_below(f, 1 << 20);
	if (feature == FEATURE_DMA_BUF && one_in(f, 2)) {
		args[0] = random_below(f, VFIO_PCI_NUM_REGIONS);
		args[2] |= 1;
	}

	r = vfio_device_feature_ioctl(f->device->fd, feature, args,
				      random_below(f, sizeof(args) + 1));
	expect(f, r < 0, true, "garbage for feature 0x%x\n", feature);
}

/* Devices lack some of it. Returns whether it has happened. */
static bool change_device(struct fuzz *f, int result, const char *what)
{
	if (result == -EOPNOTSUPP || result == -ENOTTY)
		return false;

	expect(f, result, 0, "%s\n", what);
	return true;
}

static void do_device(struct fuzz *f)
{
	u16 command;
	int r;

	switch (random_below(f, f->sleep == AWAKE ? 64 : 4)) {
	case 0:
		if (f->sleep == D3HOT) {
			expect(f, __vfio_pci_d3hot_exit(f->device), 0, "D0\n");
			f->sleep = AWAKE;
		} else if (f->sleep == LOW_POWER) {
			expect(f, __vfio_pci_low_power_exit(f->device), 0, "no low power\n");
			f->sleep = AWAKE;
		} else if (change_device(f, __vfio_pci_d3hot_entry(f->device), "D3hot")) {
			f->sleep = D3HOT;
		}
		return;
	case 1:
		if (f->sleep == AWAKE &&
		    change_device(f, __vfio_pci_low_power_entry(f->device), "low power"))
			f->sleep = LOW_POWER;
		return;
	case 2:
		if (f->sleep == LOW_POWER || !(f->device->info.flags & VFIO_DEVICE_FLAGS_RESET))
			return;
		r = one_in(f, 2) ? __vfio_pci_device_hot_reset(f->device) :
				   __vfio_pci_device_reset(f->device);
		/* Somebody else may be at it in sysfs. */
		if (r != -EAGAIN && change_device(f, r, "reset"))
			f->sleep = AWAKE;
		return;
	}

	command = vfio_pci_config_readw(f->device, PCI_COMMAND);
	f->memory = !f->memory;
	vfio_pci_config_writew(f->device, PCI_COMMAND, command ^ PCI_COMMAND_MEMORY);
}

/* Nothing of before is alive again, but mappings of it and imports may be there. */
static void do_reopen(struct fuzz *f)
{
	int i;

	/* These keep it open. */
	for (i = 0; i < NR_MAPS; i++) {
		struct map *map = &f->maps[i];

		if (map->vaddr && !map->buffer) {
			dmabuf_unmap(map->vaddr, map->size);
			*map = (struct map) {};
		}
	}

	expect(f, close(f->device->fd), 0, "close of the device\n");
	vfio_pci_device_reopen(f->device);
	for (i = 0; i < NR_BUFFERS; i++) {
		f->buffers[i].dead = true;
		f->buffers[i].foreign = true;
	}
	f->memory = true;
	f->sleep = AWAKE;
	expect(f, vfio_pci_config_readw(f->device, PCI_COMMAND) & PCI_COMMAND_MEMORY,
	       PCI_COMMAND_MEMORY, "memory of a device that was opened\n");
}

static void audit(struct fuzz *f, int nr)
{
	struct map *map;

	while (nr--) {
		map = random_map(f);
		if (map)
			access_map(f, map, false);
	}
}

/* Somebody else has the same mappings. */
static void do_fork(struct fuzz *f)
{
	pid_t pid;

	pid = process_fork();
	if (!pid) {
		audit(f, AUDIT_MAPS);
		_exit(KSFT_PASS);
	}
	expect(f, process_exit_status(pid), KSFT_PASS, "in a child\n");
}

static const struct {
	void (*call)(struct fuzz *f);
	int weight;
} calls[] = {
	{ do_access, 300 },
	{ do_map, 200 },
	{ do_unmap, 150 },
	{ do_export, 100 },
	{ do_mm, 60 },
	{ do_close, 50 },
	{ do_revoke, 40 },
	{ do_memattr, 40 },
	{ do_import, 40 },
	{ do_garbage, 40 },
	{ do_device, 18 },
	{ do_fork, 2 },
	{ do_reopen, 1 },
};

static void do_call(struct fuzz *f)
{
	int i, total = 0, which;

	for (i = 0; i < ARRAY_SIZE(calls); i++)
		total += calls[i].weight;

	which = random_below(f, total);
	for (i = 0; which >= calls[i].weight; i++)
		which -= calls[i].weight;
	calls[i].call(f);
}

FIXTURE_SETUP(vfio_pci_dmabuf_fuzz)
{
	struct fuzz *f = &self->f;
	void *bar;
	u64 page;
	int i;

	f->iommu = iommu_init(MODE_IOMMUFD);
	f->device = vfio_pci_device_init(device_bdf, f->iommu);
	f->index = vfio_pci_ram_bar(f->device);
	if (f->index < 0)
		SKIP(return, "The device has no BAR with RAM");
	if (!vfio_pci_has_feature(f->device, FEATURE_DMA_BUF) ||
	    !vfio_pci_has_feature(f->device, FEATURE_REVOKE) ||
	    !vfio_pci_has_feature(f->device, FEATURE_MEMATTR) ||
	    !vfio_pci_has_dmabuf_mmap(f->device, f->index))
		SKIP(return, "The kernel has no DMABUFs of BARs that can be revoked");

	f->page_size = getpagesize();
	f->size = min_t(u64, f->device->bars[f->index].info.size, MAX_SIZE);
	bar = f->device->bars[f->index].vaddr;
	for (page = 0; page < f->size / f->page_size; page++)
		mmio_write32(bar + page * f->page_size, TAG + page);

	/* They would keep the device open. */
	vfio_pci_bar_unmap_all(f->device);

	f->iova_allocator = iova_allocator_init(f->iommu);
	for (i = 0; i < NR_IMPORTS; i++)
		f->imports[i].iova = iova_allocator_alloc(f->iova_allocator, f->size);

	f->memory = true;
	f->has_revoke_ioctl = vfio_pci_has_revoke_ioctl(f->device);
	f->not_a_dmabuf = eventfd(0, EFD_CLOEXEC);
	ASSERT_GE(f->not_a_dmabuf, 0);
	for (i = 0; i < NR_BUFFERS; i++)
		f->buffers[i].fd = -1;

	f->seed = number_from_env("VFIO_SELFTESTS_SEED", variant->seed);
	f->nr_calls = number_from_env("VFIO_SELFTESTS_CALLS", NR_CALLS);
	/* It must not be 0. */
	f->random = f->seed * 2 + 1;
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_fuzz)
{
	struct fuzz *f = &self->f;

	ASSERT_EQ(0, close(f->not_a_dmabuf));
	vfio_pci_device_cleanup(f->device);
	if (f->iova_allocator)
		iova_allocator_cleanup(f->iova_allocator);
	iommu_cleanup(f->iommu);
}

/* A long run is for whoever asks for it. */
TEST_F_TIMEOUT(vfio_pci_dmabuf_fuzz, sequence, 24 * 60 * 60)
{
	long before = dmabuf_count();
	struct fuzz *f = &self->f;
	int i;

	if (before < 0)
		TH_LOG("No debugfs: leaks are not looked at");

	for (; f->nr_done < f->nr_calls; f->nr_done++) {
		do_call(f);
		if (f->nr_done % AUDIT_PERIOD == 0)
			audit(f, AUDIT_MAPS);
	}

	printf("%lu calls, %lu refused, %lu accesses with SIGBUS\n", f->nr_done,
	       f->nr_refused, f->nr_sigbus);

	/* It has done all of that, if it was let, and nothing of it is left. */
	if (f->nr_calls >= NR_CALLS) {
		EXPECT_LT(0, f->nr_refused);
		EXPECT_LT(0, f->nr_sigbus);
	}
	for (i = 0; i < NR_MAPS; i++) {
		if (f->maps[i].vaddr)
			dmabuf_unmap(f->maps[i].vaddr, f->maps[i].size);
	}
	for (i = 0; i < NR_IMPORTS; i++) {
		if (f->imports[i].size)
			unimport(f, &f->imports[i]);
	}
	for (i = 0; i < NR_BUFFERS; i++) {
		if (f->buffers[i].fd >= 0)
			VFIO_ASSERT_EQ(close(f->buffers[i].fd), 0);
	}
	EXPECT_EQ(before, dmabuf_count());
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}
