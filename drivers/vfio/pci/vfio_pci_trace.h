/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tracepoints of vfio-pci: who may get at the memory of a device, and when
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM vfio_pci

#if !defined(VFIO_PCI_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define VFIO_PCI_TRACE_H

#include <linux/pci.h>
#include <linux/tracepoint.h>

#include "vfio_pci_priv.h"

DECLARE_EVENT_CLASS(vfio_pci_memory,
	TP_PROTO(struct vfio_pci_core_device *vdev),
	TP_ARGS(vdev),

	TP_STRUCT__entry(
		__string(dev, pci_name(vdev->pdev))
		__field(unsigned int, holds)
	),

	TP_fast_assign(
		__assign_str(dev);
		__entry->holds = vdev->mem_holds;
	),

	TP_printk("dev=%s holds=%u", __get_str(dev), __entry->holds)
);

/* All access to the memory of a device ends */
DEFINE_EVENT(vfio_pci_memory, vfio_pci_revoke_memory,
	TP_PROTO(struct vfio_pci_core_device *vdev),
	TP_ARGS(vdev)
);

/* All but the buffers that are dead can be accessed again */
DEFINE_EVENT(vfio_pci_memory, vfio_pci_restore_memory,
	TP_PROTO(struct vfio_pci_core_device *vdev),
	TP_ARGS(vdev)
);

/* One buffer is dead; @ino is the inode that maps and fdinfo show */
TRACE_EVENT(vfio_pci_dma_buf_revoke,
	TP_PROTO(struct vfio_pci_core_device *vdev,
		 struct vfio_pci_dma_buf *priv, int ret),
	TP_ARGS(vdev, priv, ret),

	TP_STRUCT__entry(
		__string(dev, pci_name(vdev->pdev))
		__field(u64, ino)
		__field(unsigned int, region)
		__field(size_t, size)
		__field(int, ret)
	),

	TP_fast_assign(
		__assign_str(dev);
		__entry->ino = priv->inode->i_ino;
		__entry->region = priv->region_index;
		__entry->size = priv->size;
		__entry->ret = ret;
	),

	TP_printk("dev=%s ino=%llu region=%u size=%zu ret=%d",
		  __get_str(dev), __entry->ino, __entry->region, __entry->size,
		  __entry->ret)
);

/* A page fault that ends in SIGBUS */
TRACE_EVENT(vfio_pci_fault_sigbus,
	TP_PROTO(const struct vfio_pci_dma_buf *priv, unsigned long address,
		 unsigned int order),
	TP_ARGS(priv, address, order),

	TP_STRUCT__entry(
		__field(u64, ino)
		__field(unsigned long, address)
		__field(unsigned int, order)
	),

	TP_fast_assign(
		__entry->ino = priv->inode->i_ino;
		__entry->address = address;
		__entry->order = order;
	),

	TP_printk("ino=%llu address=0x%lx order=%u", __entry->ino,
		  __entry->address, __entry->order)
);

#endif /* VFIO_PCI_TRACE_H */

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE vfio_pci_trace
#include <trace/define_trace.h>
