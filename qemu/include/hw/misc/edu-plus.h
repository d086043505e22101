/*
 * edu-plus: a PCI Express test device for VFIO and peer-to-peer DMA
 *
 * Register offsets and values, shared by the device and its qtest; see
 * docs/specs/edu-plus.rst.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MISC_EDU_PLUS_H
#define HW_MISC_EDU_PLUS_H

#include "qemu/units.h"

#define TYPE_EDU_PLUS "edu-plus"

#define EDU_PLUS_DEVICE_ID              0x11e8
#define EDU_PLUS_REVISION               0x20

#define EDU_PLUS_BAR_REGS               0
#define EDU_PLUS_BAR_RAM                1
#define EDU_PLUS_BAR_FRAMES             3
#define EDU_PLUS_BAR_MSIX               4

#define EDU_PLUS_REGS_SIZE              (1 * MiB)
#define EDU_PLUS_RAM_SIZE_MIN           (1 * MiB)
#define EDU_PLUS_RAM_SIZE_MAX           (64 * GiB)
#define EDU_PLUS_RAM_SIZE_DEFAULT       (64 * MiB)
#define EDU_PLUS_FRAMES_MAX             65536
#define EDU_PLUS_FRAMES_DEFAULT         16
#define EDU_PLUS_MSIX_VECTORS_MAX       64
#define EDU_PLUS_MSIX_VECTORS_DEFAULT   4

/* BAR 0, the part that edu has as well */
#define EDU_PLUS_REG_ID                 0x00
#define EDU_PLUS_REG_LIVENESS           0x04
#define EDU_PLUS_REG_FACTORIAL          0x08
#define EDU_PLUS_REG_STATUS             0x20
#define EDU_PLUS_REG_IRQ_STATUS         0x24
#define EDU_PLUS_REG_IRQ_RAISE          0x60
#define EDU_PLUS_REG_IRQ_ACK            0x64
#define EDU_PLUS_REG_DMA_SRC            0x80
#define EDU_PLUS_REG_DMA_DST            0x88
#define EDU_PLUS_REG_DMA_COUNT          0x90
#define EDU_PLUS_REG_DMA_CMD            0x98

#define EDU_PLUS_ID                     0x010000edu

#define EDU_PLUS_STATUS_COMPUTING       0x01
#define EDU_PLUS_STATUS_IRQFACT         0x80

#define EDU_PLUS_IRQ_FACT               0x00000001
#define EDU_PLUS_IRQ_DMA                0x00000100
#define EDU_PLUS_IRQ_COPY               0x00000200

#define EDU_PLUS_DMA_RUN                0x1
#define EDU_PLUS_DMA_TO_BUS             0x2
#define EDU_PLUS_DMA_IRQ                0x4

/* The DMA engine knows its buffer by this address; it is not mapped */
#define EDU_PLUS_DMA_BUF_ADDR           0x40000
#define EDU_PLUS_DMA_BUF_SIZE           4096
#define EDU_PLUS_DMA_MASK_DEFAULT       0x0fffffffULL
#define EDU_PLUS_DMA_NS                 (100 * 1000 * 1000)

/* BAR 0, the extension */
#define EDU_PLUS_EXT_BASE               0x1000
#define EDU_PLUS_EXT_SIZE               0x1000

#define EDU_PLUS_REG_PLUS_ID            0x1000
#define EDU_PLUS_REG_VERSION            0x1004
#define EDU_PLUS_REG_RAM_SIZE           0x1008
#define EDU_PLUS_REG_FRAMES             0x1010
#define EDU_PLUS_REG_MSIX_VECTORS       0x1014
#define EDU_PLUS_REG_RESETS             0x1018
#define EDU_PLUS_REG_COPY_SRC           0x1020
#define EDU_PLUS_REG_COPY_DST           0x1028
#define EDU_PLUS_REG_COPY_LEN           0x1030
#define EDU_PLUS_REG_COPY_COUNT         0x1038
#define EDU_PLUS_REG_COPY_CMD           0x103c
#define EDU_PLUS_REG_COPY_STATUS        0x1040
#define EDU_PLUS_REG_COPY_DONE          0x1048
#define EDU_PLUS_REG_MSIX_SEND          0x1050

#define EDU_PLUS_PLUS_ID                0x2b756465 /* "edu+" */
#define EDU_PLUS_VERSION                0x00010000

#define EDU_PLUS_COPY_LEN_MAX           (16 * GiB)

/* The copy engine moves so much, pauses, and goes on */
#define EDU_PLUS_COPY_STEP_SIZE         (1 * MiB)
#define EDU_PLUS_COPY_STEP_NS           (10 * 1000)

#define EDU_PLUS_COPY_CMD_START         0x00000001
#define EDU_PLUS_COPY_CMD_SRC_RAM       0x00000002
#define EDU_PLUS_COPY_CMD_DST_RAM       0x00000004
#define EDU_PLUS_COPY_CMD_IRQ           0x00000008
#define EDU_PLUS_COPY_CMD_ABORT         0x80000000

#define EDU_PLUS_COPY_STATUS_RESULT     0x000000ff
#define EDU_PLUS_COPY_STATUS_BUSY       0x80000000

#define EDU_PLUS_COPY_OK                0
#define EDU_PLUS_COPY_ERR_BUS           1
#define EDU_PLUS_COPY_ERR_RANGE         2
#define EDU_PLUS_COPY_ERR_ABORTED       3

/* The MSI-X vector of a finished copy; the edu part has vector 0 */
#define EDU_PLUS_VECTOR_EDU             0
#define EDU_PLUS_VECTOR_COPY            1

/* BAR 3, in each frame */
#define EDU_PLUS_FRAME_SIZE             4096

#define EDU_PLUS_FRAME_ID               0x00
#define EDU_PLUS_FRAME_INDEX            0x04
#define EDU_PLUS_FRAME_SCRATCH          0x08
#define EDU_PLUS_FRAME_INVERT           0x0c
#define EDU_PLUS_FRAME_DOORBELL         0x10
#define EDU_PLUS_FRAME_DOORBELL_COUNT   0x14
#define EDU_PLUS_FRAME_DOORBELL_LAST    0x18
#define EDU_PLUS_FRAME_SCRATCH64        0x20

#define EDU_PLUS_FRAME_MAGIC            0x4d415246 /* "FRAM" */

#endif /* HW_MISC_EDU_PLUS_H */
