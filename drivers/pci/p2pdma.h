/* SPDX-License-Identifier: GPL-2.0 */
/*
 * PCI Peer 2 Peer DMA support, private to the PCI core.
 *
 * Copyright (c) 2016-2018, Logan Gunthorpe
 * Copyright (c) 2016-2017, Microsemi Corporation
 * Copyright (c) 2017, Christoph Hellwig
 * Copyright (c) 2018, Eideticom Inc.
 */

#ifndef DRIVERS_PCI_P2PDMA_H
#define DRIVERS_PCI_P2PDMA_H

#include <linux/pci.h>
#include <linux/pci-p2pdma.h>
#include <linux/xarray.h>

struct gen_pool;

struct pci_p2pdma {
	struct gen_pool *pool;
	bool p2pmem_published;
	struct xarray map_types;
	struct p2pdma_provider mem[PCI_STD_NUM_BARS];
};

#ifdef CONFIG_PCI_P2PDMA
void pci_p2pdma_release_pool(struct pci_dev *pdev, struct pci_p2pdma *p2pdma);
#else
static inline void pci_p2pdma_release_pool(struct pci_dev *pdev,
					   struct pci_p2pdma *p2pdma)
{
}
#endif

#endif /* DRIVERS_PCI_P2PDMA_H */
