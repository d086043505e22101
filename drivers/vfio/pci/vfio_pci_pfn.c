// SPDX-License-Identifier: GPL-2.0-only
/*
 * Look up the PFNs of a DMABUF
 *
 * A DMABUF consists of physical ranges that appear back to back in the buffer.
 * What is here knows these ranges and nothing else, neither a device nor a VMA,
 * and so can be tested without them.
 */
#include <linux/align.h>
#include <linux/pfn.h>

#include <kunit/visibility.h>

#include "vfio_pci_priv.h"

/**
 * vfio_pci_merge_ranges - Join ranges that are physically adjacent
 * @phys_vec: Ranges in the order of the buffer
 * @range_start: Offset in the buffer at which each of them starts
 * @nr_ranges: Number of ranges, at least one
 *
 * Every two ranges that follow each other both in the buffer and in physical
 * memory become one, in place.  A huge page can then span them.  The caller has
 * checked that the sum of all the lengths does not overflow.
 *
 * Return: The number of ranges that are left.
 */
u32 vfio_pci_merge_ranges(struct phys_vec *phys_vec, u64 *range_start,
			  u32 nr_ranges)
{
	u32 last = 0;
	u32 i;

	for (i = 1; i < nr_ranges; i++) {
		struct phys_vec *prev = &phys_vec[last];

		if (prev->paddr + prev->len == phys_vec[i].paddr) {
			prev->len += phys_vec[i].len;
		} else {
			last++;
			phys_vec[last] = phys_vec[i];
			range_start[last] = range_start[i];
		}
	}

	return last + 1;
}
EXPORT_SYMBOL_IF_KUNIT(vfio_pci_merge_ranges);

/**
 * vfio_pci_find_pfn - Look up the PFN of a page of a buffer
 * @phys_vec: Ranges in the order of the buffer
 * @range_start: Offset in the buffer at which each of them starts; NULL will do
 *	for a single one
 * @nr_ranges: Number of ranges, at least one
 * @fault_offset: Offset in the buffer of the first byte of the page
 * @order: Order of the page
 * @pfn: The result
 *
 * A page is found if all of it lies in one range, and if the PFN that it starts
 * with is aligned to its order.  As ranges consist of whole pages, a page of
 * order 0 is found at every page of the buffer.
 *
 * Return: 0 on success, -EAGAIN if a page of a smaller order might be found at
 * this offset, -ERANGE if the offset is behind the end of the buffer.
 */
int vfio_pci_find_pfn(const struct phys_vec *phys_vec, const u64 *range_start,
		      u32 nr_ranges, u64 fault_offset, unsigned int order,
		      unsigned long *pfn)
{
	u64 fault_end, start, range_end;
	u32 first = 0, last = nr_ranges - 1;

	/* The last range that does not start behind the page */
	while (first < last) {
		u32 mid = last - (last - first) / 2;

		if (range_start[mid] <= fault_offset)
			first = mid;
		else
			last = mid - 1;
	}

	start = first ? range_start[first] : 0;
	range_end = start + phys_vec[first].len;
	if (fault_offset >= range_end)
		return -ERANGE;

	/* No overflow: the offset is in the buffer, and a page is smaller */
	fault_end = fault_offset + ((u64)PAGE_SIZE << order);
	if (fault_end > range_end)
		return -EAGAIN;

	*pfn = PHYS_PFN(phys_vec[first].paddr) +
	       ((fault_offset - start) >> PAGE_SHIFT);
	if (!IS_ALIGNED(*pfn, 1UL << order))
		return -EAGAIN;

	return 0;
}
EXPORT_SYMBOL_IF_KUNIT(vfio_pci_find_pfn);
