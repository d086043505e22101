/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Write-combining PFN mappings, beside what linux/pgtable.h has for the cache
 * modes of PFN ranges.
 *
 * A VMA with VM_ALLOW_ANY_UNCACHED says that any uncached memory type is safe
 * for what is behind it. If its vm_page_prot is write-combining, the interface of
 * vmf_insert_pfn() keeps that for PFNs that are tracked as nothing but UC- or WC.
 */
#ifndef _LINUX_PFNMAP_H
#define _LINUX_PFNMAP_H

#include <linux/pgtable.h>

#ifdef __HAVE_PFNMAP_TRACKING
/**
 * pfnmap_setup_cachemode_wc - setup the cachemode, but keep write-combining
 * @pfn: the start of the pfn range
 * @size: the size of the pfn range in bytes
 * @prot: the pgprot to modify
 *
 * For VMAs with VM_ALLOW_ANY_UNCACHED. A @prot that is write-combining stays so
 * if pfnmap_wc_effective() says that the range allows it, also where UC- is
 * tracked for it. In all other cases this does the same as
 * pfnmap_setup_cachemode_pfn().
 */
void pfnmap_setup_cachemode_wc(unsigned long pfn, unsigned long size,
			       pgprot_t *prot);

/**
 * pfnmap_wc_effective - is write-combining effective for a pfn range
 * @pfn: the start of the pfn range
 * @size: the size of the pfn range in bytes
 *
 * Drivers can ask for a write-combining mapping by pgprot_writecombine(), but
 * that is not binding: the platform may lack the type, and a hardware
 * implementation of memory types may know better what a page is. This tells
 * beforehand whether page table entries for the range will really be
 * write-combining if they are made by the vmf_insert_pfn*() interface in a VMA
 * that has VM_ALLOW_ANY_UNCACHED and such a vm_page_prot.
 *
 * The answer holds while the caller itself keeps the range mapped uncached, for
 * instance by ioremap(), because no other mode can be chosen for it then. A
 * caller that puts write-combining mappings in page tables has to do that for
 * as long as they exist, lest someone else maps the range cacheable.
 *
 * Return: true if write-combining mappings of the range are effective.
 */
bool pfnmap_wc_effective(unsigned long pfn, unsigned long size);
#else
static inline void pfnmap_setup_cachemode_wc(unsigned long pfn,
					     unsigned long size, pgprot_t *prot)
{
}

static inline bool pfnmap_wc_effective(unsigned long pfn, unsigned long size)
{
	return pgprot_val(pgprot_writecombine(__pgprot(0))) !=
	       pgprot_val(pgprot_noncached(__pgprot(0)));
}
#endif

#endif /* _LINUX_PFNMAP_H */
