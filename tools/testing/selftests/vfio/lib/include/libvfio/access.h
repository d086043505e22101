/* SPDX-License-Identifier: GPL-2.0-only */
#ifndef SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_ACCESS_H
#define SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_ACCESS_H

#include <pthread.h>
#include <stdbool.h>

#include <sys/types.h>

#include <linux/types.h>

#include <libvfio/assert.h>
#include <libvfio/vfio_pci_device.h>

/*
 * Functions come in up to three forms: __x() returns -errno for the caller to
 * look at, x() asserts that it succeeds, and expect_errno() around __x()
 * asserts that it fails, and how.
 */
#define expect_errno(_errno, _call) VFIO_ASSERT_EQ((_call), -(_errno))

/**
 * __mmio_read32() - Read from an address that may turn out to be dead.
 * @addr: Where to read from.
 * @value: Where to store what was read.
 *
 * May be used by several threads at once. While it runs, a SIGBUS or SIGSEGV
 * of the calling thread is taken as the result of the access; those raised by
 * any other access end the process as usual.
 *
 * Return: 0 on success, -EFAULT if the access raised SIGBUS at @addr, -EACCES
 * if it raised SIGSEGV.
 */
int __mmio_read32(const void *addr, u32 *value);

/**
 * __mmio_write32() - Write to an address that may turn out to be dead.
 *
 * The counterpart of __mmio_read32().
 */
int __mmio_write32(void *addr, u32 value);

static inline u32 mmio_read32(const void *addr)
{
	u32 value;

	VFIO_ASSERT_EQ(__mmio_read32(addr, &value), 0, "No read access to %p\n", addr);
	return value;
}

static inline void mmio_write32(void *addr, u32 value)
{
	VFIO_ASSERT_EQ(__mmio_write32(addr, value), 0, "No write access to %p\n", addr);
}

/* A thread that does the same thing over and over, until it is stopped. */
struct repeater {
	pthread_t thread;
	bool (*once)(void *arg);
	void *arg;
	bool stop;
	u64 nr_rounds;
	u64 nr_failed;
};

/**
 * repeater_start() - Start a thread that calls a function until it is stopped.
 * @once: The function. It returns whether the round went as it should.
 * @arg: Passed to it. The thread's until repeater_stop().
 */
void repeater_start(struct repeater *repeater, bool (*once)(void *arg), void *arg);

/* Wait for the end of a round that began after this call did. */
void repeater_wait(struct repeater *repeater);

/* Stop it. The counts of its rounds, and of those that failed, are final then. */
void repeater_stop(struct repeater *repeater);

/* One that reads from one page after the other. */
struct mmio_reader {
	struct repeater repeater;
	const void *addr;
	u64 size;
	u64 offset;
};

/**
 * mmio_reader_start() - Start a thread that reads until it is stopped.
 * @addr: What it reads from, page by page and around.
 * @size: In bytes
 */
void mmio_reader_start(struct mmio_reader *reader, const void *addr, u64 size);

/**
 * __vfio_pci_wait_suspended() - Wait until a device that may sleep does so.
 *
 * Return: 0, -ETIMEDOUT if it stays awake.
 */
int __vfio_pci_wait_suspended(struct vfio_pci_device *device);

static inline void vfio_pci_wait_suspended(struct vfio_pci_device *device)
{
	VFIO_ASSERT_EQ(__vfio_pci_wait_suspended(device), 0, "%s stays awake\n", device->bdf);
}

/* One line of /proc/PID/maps. */
struct vma_info {
	unsigned long start;
	unsigned long end;
	char perms[5];
	u64 offset;
	char name[256];
};

/**
 * __vma_info_get() - Look up how the kernel presents a mapping to userspace.
 *
 * Return: 0 on success, -ENOENT if nothing is mapped at @vaddr.
 */
int __vma_info_get(const void *vaddr, struct vma_info *info);

static inline void vma_info_get(const void *vaddr, struct vma_info *info)
{
	VFIO_ASSERT_EQ(__vma_info_get(vaddr, info), 0, "%p is not mapped\n", vaddr);
}

/* The same for a mapping of another process. */
int __vma_info_get_of(pid_t pid, const void *vaddr, struct vma_info *info);

/**
 * vma_has_flag() - Tell whether a mapping has one of the flags of "VmFlags:"
 * in /proc/self/smaps, e.g. "pf".
 */
bool vma_has_flag(const void *vaddr, const char *flag);

enum memory_type {
	MEMORY_TYPE_UNKNOWN,
	MEMORY_TYPE_CACHED,
	MEMORY_TYPE_WRITE_COMBINING,
	MEMORY_TYPE_UNCACHED,
};

/* What the page tables hold for an address. */
struct page_mapping {
	u64 size;
	bool writable;
	enum memory_type type;
};

/**
 * __page_mapping_get() - Look at the calling process' page tables.
 * @vaddr: The address to look up. It is not accessed.
 * @mapping: The result. All 0 if there is no translation.
 *
 * Needs CONFIG_PTDUMP_DEBUGFS and debugfs. Only implemented for x86, where the
 * kernel dumps the tables of the current process.
 *
 * Return: 0 on success, -EOPNOTSUPP if there is no way to tell.
 */
int __page_mapping_get(const void *vaddr, struct page_mapping *mapping);

/**
 * __page_tables_open() - Open what __page_mapping_get() looks at.
 *
 * Opening takes privileges, reading does not, and shows the page tables of the
 * reader: the fd can be passed to a process that is to look at its own ones.
 *
 * Return: An fd for __page_mapping_get_from(), -EOPNOTSUPP if there is no way
 * to tell.
 */
int __page_tables_open(void);

/* __page_mapping_get() through an fd of __page_tables_open(). */
int __page_mapping_get_from(int fd, const void *vaddr, struct page_mapping *mapping);

/**
 * __page_mapping_count() - Count the translations of a given size.
 *
 * Return: The number of translations of @page_size bytes each that lie in
 * [@vaddr, @vaddr + @size), -EOPNOTSUPP if there is no way to tell.
 */
long __page_mapping_count(const void *vaddr, u64 size, u64 page_size);

/*
 * The same for translations of any size, and for those that lie there in part:
 * is anything there at all?
 */
long __page_mapping_count_all(const void *vaddr, u64 size);

/**
 * has_huge_pages() - Tell whether a BAR may be mapped by pages of 2 MiB or 1 GiB.
 *
 * That is up to the CPU and to how the kernel is configured. Where they allow it
 * a driver that maps small pages alone is at fault.
 */
bool has_huge_pages(u64 page_size);

#endif /* SELFTESTS_VFIO_LIB_INCLUDE_LIBVFIO_ACCESS_H */
