/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Registers of QEMU's educational PCI device (edu) and of edu-plus, a superset
 * that is not part of QEMU itself. Both carry the same PCI IDs; edu-plus has a
 * higher revision and the extension block from EDU_PLUS_ID on.
 */
#ifndef SELFTESTS_VFIO_LIB_DRIVERS_EDU_REGISTERS_H
#define SELFTESTS_VFIO_LIB_DRIVERS_EDU_REGISTERS_H

#define PCI_VENDOR_ID_EDU		0x1234
#define PCI_DEVICE_ID_EDU		0x11e8

#define EDU_REVISION			0x10
#define EDU_PLUS_REVISION		0x20

/* BARs. Stock edu only has the first one. */
#define EDU_BAR_REGS			0
#define EDU_PLUS_BAR_RAM		1
#define EDU_PLUS_BAR_FRAMES		3
#define EDU_PLUS_BAR_MSIX		4

/* BAR 0: edu. Everything below 0x80 only takes 32-bit accesses. */
#define EDU_ID				0x00
#define EDU_ID_VALUE			0x010000edU
#define EDU_INVERT			0x04
#define EDU_FACTORIAL			0x08
#define EDU_STATUS			0x20
#define EDU_STATUS_COMPUTING		0x01
#define EDU_STATUS_IRQ_FACTORIAL	0x80
#define EDU_IRQ_STATUS			0x24
#define EDU_IRQ_RAISE			0x60
#define EDU_IRQ_ACK			0x64
#define EDU_DMA_SRC			0x80	/* 64-bit */
#define EDU_DMA_DST			0x88	/* 64-bit */
#define EDU_DMA_COUNT			0x90	/* 64-bit */
#define EDU_DMA_CMD			0x98	/* 64-bit */
#define EDU_DMA_CMD_RUN			0x01
#define EDU_DMA_CMD_FROM_DEVICE		0x02
#define EDU_DMA_CMD_IRQ			0x04

/* The DMA engine's view of its buffer. Not accessible by the CPU. */
#define EDU_DMA_BUFFER			0x40000
#define EDU_DMA_BUFFER_SIZE		0x1000

/* By default, the DMA engine drops all address bits above these. */
#define EDU_DMA_MASK			((1ULL << 28) - 1)

/* BAR 0: the extension of edu-plus. */
#define EDU_PLUS_ID			0x1000
#define EDU_PLUS_ID_VALUE		0x2b756465U	/* "edu+" */
#define EDU_PLUS_VERSION		0x1004
#define EDU_PLUS_VERSION_MAJOR(_v)	((_v) >> 16)
#define EDU_PLUS_RAM_SIZE		0x1008	/* 64-bit */
#define EDU_PLUS_FRAMES			0x1010
#define EDU_PLUS_MSIX_VECTORS		0x1014
#define EDU_PLUS_RESETS			0x1018
#define EDU_PLUS_COPY_SRC		0x1020	/* 64-bit */
#define EDU_PLUS_COPY_DST		0x1028	/* 64-bit */
#define EDU_PLUS_COPY_LEN		0x1030	/* 64-bit */
#define EDU_PLUS_COPY_COUNT		0x1038
#define EDU_PLUS_COPY_CMD		0x103c
#define EDU_PLUS_COPY_CMD_START		0x00000001U
#define EDU_PLUS_COPY_CMD_SRC_RAM	0x00000002U
#define EDU_PLUS_COPY_CMD_DST_RAM	0x00000004U
#define EDU_PLUS_COPY_CMD_IRQ		0x00000008U
#define EDU_PLUS_COPY_CMD_ABORT		0x80000000U
#define EDU_PLUS_COPY_STATUS		0x1040
#define EDU_PLUS_COPY_STATUS_BUSY	0x80000000U
#define EDU_PLUS_COPY_STATUS_RESULT	0x000000ffU
#define EDU_PLUS_COPY_OK		0
#define EDU_PLUS_COPY_BUS_ERROR		1
#define EDU_PLUS_COPY_BAD_RANGE		2
#define EDU_PLUS_COPY_ABORTED		3
#define EDU_PLUS_COPY_DONE		0x1048	/* 64-bit */
#define EDU_PLUS_MSIX_SEND		0x1050

/* BAR 3: one frame of registers per 4 KiB, each independent of the others. */
#define EDU_FRAME_SIZE			0x1000
#define EDU_FRAME_ID			0x00
#define EDU_FRAME_ID_VALUE		0x4d415246U	/* "FRAM" */
#define EDU_FRAME_INDEX			0x04
#define EDU_FRAME_SCRATCH		0x08
#define EDU_FRAME_INVERT		0x0c
#define EDU_FRAME_DOORBELL		0x10
#define EDU_FRAME_DOORBELL_COUNT	0x14
#define EDU_FRAME_DOORBELL_LAST		0x18
#define EDU_FRAME_SCRATCH64		0x20	/* 64-bit */

#endif /* SELFTESTS_VFIO_LIB_DRIVERS_EDU_REGISTERS_H */
