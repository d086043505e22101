/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Where to place mappings of PFNs, for page table entries as huge as they can be
 */
#ifndef _LINUX_HUGE_PFNMAP_H
#define _LINUX_HUGE_PFNMAP_H

#include <linux/sched/mm.h>
#include <linux/types.h>

struct file;

#ifdef CONFIG_TRANSPARENT_HUGEPAGE
/**
 * huge_pfnmap_get_unmapped_area - choose the address of a mapping of PFNs
 * @file: the file to be mapped
 * @addr: the address that the user asks for, or 0
 * @len: the length of the mapping in bytes
 * @pgoff: the offset in @file in pages
 * @flags: the flags of mmap()
 *
 * For file_operations.get_unmapped_area of files whose offsets are congruent
 * with the physical addresses behind them, modulo the largest page that fits.
 *
 * MAP_FIXED is obeyed, and so is a hint where there is room. Otherwise the
 * address is congruent with the offset modulo PUD_SIZE, or else PMD_SIZE, if such
 * pages fit into the mapping, there is support for them, and there is room for
 * the padding.
 *
 * Context: mmap_lock held for write.
 * Return: the address, or a negative errno.
 */
unsigned long huge_pfnmap_get_unmapped_area(struct file *file,
					    unsigned long addr,
					    unsigned long len,
					    unsigned long pgoff,
					    unsigned long flags);

/**
 * huge_pfnmap_get_unmapped_area_phys - the same by the physical address
 * @file: the file to be mapped
 * @addr: the address that the user asks for, or 0
 * @len: the length of the mapping in bytes
 * @pgoff: the offset in @file in pages
 * @flags: the flags of mmap()
 * @phys: what the address is to be congruent with
 *
 * For files whose offsets say nothing about physical addresses.
 *
 * Context: mmap_lock held for write.
 * Return: the address, or a negative errno.
 */
unsigned long huge_pfnmap_get_unmapped_area_phys(struct file *file,
						 unsigned long addr,
						 unsigned long len,
						 unsigned long pgoff,
						 unsigned long flags,
						 phys_addr_t phys);
#else
#define huge_pfnmap_get_unmapped_area NULL

#ifdef CONFIG_MMU
static inline unsigned long
huge_pfnmap_get_unmapped_area_phys(struct file *file, unsigned long addr,
				   unsigned long len, unsigned long pgoff,
				   unsigned long flags, phys_addr_t phys)
{
	return mm_get_unmapped_area(file, addr, len, pgoff, flags);
}
#endif
#endif

#endif /* _LINUX_HUGE_PFNMAP_H */
