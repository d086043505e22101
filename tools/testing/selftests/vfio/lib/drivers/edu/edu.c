// SPDX-License-Identifier: GPL-2.0-only
/*
 * Drivers for QEMU's educational PCI device, and for a superset of it that has
 * been made for these tests and is not part of QEMU itself.
 *
 * edu:      Copies through a 4 KiB buffer in the device, in two steps of
 *           100 ms each, with 28 bits of DMA address. Interrupts by MSI.
 * edu-plus: Adds an engine that copies from anywhere to anywhere at once and
 *           repeats that by itself. Interrupts by MSI-X.
 */
#include <stdint.h>
#include <unistd.h>

#include <linux/errno.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>

#include <libvfio.h>

#include "registers.h"

/* Vector that send_msi() signals, of MSI or MSI-X. */
#define EDU_MSI_VECTOR		0

/*
 * The device always answers, so running into one of these means that it (or
 * the VM) is stuck. DMA might still be in flight then, hence no attempt is
 * made to carry on.
 */
#define EDU_POLL_US		100
#define EDU_POLL_ATTEMPTS	(30 * 1000 * 1000 / EDU_POLL_US)

/*
 * Leave the end of the buffer alone: QEMU's older versions take a transfer that
 * includes its last byte for one out of range, and then abort.
 */
#define EDU_MAX_MEMCPY_SIZE	(EDU_DMA_BUFFER_SIZE / 2)

/* At 200 ms per copy, keeps the time that tests spend on repetition short. */
#define EDU_MAX_MEMCPY_COUNT	10

/*
 * The engine takes up to 16 GiB at once and 2^32 - 1 repetitions. It is the
 * emulating CPU that does the copying, and the emulated CPU that fills and
 * compares the buffers, so leave it at what these do in a few seconds.
 */
#define EDU_PLUS_MAX_MEMCPY_SIZE	SZ_2M
#define EDU_PLUS_MAX_MEMCPY_COUNT	64

/* The copy that memcpy_start() began and that memcpy_wait() has to finish. */
struct edu_state {
	iova_t src;
	iova_t dst;
	u64 size;
	u64 count;
	int error;
};

static inline struct edu_state *to_edu_state(struct vfio_pci_device *device)
{
	return device->driver.region.vaddr;
}

static inline void *edu_regs(struct vfio_pci_device *device)
{
	return device->bars[EDU_BAR_REGS].vaddr;
}

static bool edu_match(struct vfio_pci_device *device, u8 revision)
{
	if (!vfio_pci_device_match(device, PCI_VENDOR_ID_EDU, PCI_DEVICE_ID_EDU))
		return false;

	return vfio_pci_config_readb(device, PCI_REVISION_ID) == revision;
}

static int edu_check_id(struct vfio_pci_device *device, u32 offset, u32 expected)
{
	u32 id;

	VFIO_ASSERT_NOT_NULL(edu_regs(device));

	id = readl(edu_regs(device) + offset);
	if (id == expected)
		return 0;

	dev_err(device, "edu: Unexpected identification 0x%x at 0x%x\n", id, offset);
	return -ENODEV;
}

static void edu_pci_init(struct vfio_pci_device *device)
{
	vfio_pci_cmd_set(device, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
				 PCI_COMMAND_INTX_DISABLE);

	/* A left over status bit would assert INTx once MSIs are disabled. */
	writel(UINT32_MAX, edu_regs(device) + EDU_IRQ_ACK);
}

static int edu_probe(struct vfio_pci_device *device)
{
	if (!edu_match(device, EDU_REVISION))
		return -EINVAL;

	return edu_check_id(device, EDU_ID, EDU_ID_VALUE);
}

static void edu_dma_wait(struct vfio_pci_device *device)
{
	int attempts = EDU_POLL_ATTEMPTS;

	while (readq(edu_regs(device) + EDU_DMA_CMD) & EDU_DMA_CMD_RUN) {
		VFIO_ASSERT_GT(--attempts, 0, "edu: DMA does not finish\n");
		usleep(EDU_POLL_US);
	}
}

static void edu_dma_start(struct vfio_pci_device *device, u64 src, u64 dst,
			  u64 size, u64 cmd)
{
	void *regs = edu_regs(device);

	writeq(src, regs + EDU_DMA_SRC);
	writeq(dst, regs + EDU_DMA_DST);
	writeq(size, regs + EDU_DMA_COUNT);
	writeq(cmd | EDU_DMA_CMD_RUN, regs + EDU_DMA_CMD);
}

static void edu_init(struct vfio_pci_device *device)
{
	VFIO_ASSERT_GE(device->driver.region.size, sizeof(struct edu_state));

	edu_pci_init(device);

	/* No reset stops a transfer that a previous owner has begun. */
	edu_dma_wait(device);

	vfio_pci_msi_enable(device, EDU_MSI_VECTOR, 1);

	device->driver.msi = EDU_MSI_VECTOR;
	device->driver.max_memcpy_size = EDU_MAX_MEMCPY_SIZE;
	device->driver.max_memcpy_count = EDU_MAX_MEMCPY_COUNT;
}

static void edu_remove(struct vfio_pci_device *device)
{
	edu_dma_wait(device);
	vfio_pci_msi_disable(device);
	vfio_pci_cmd_clear(device, PCI_COMMAND_MASTER);
}

static void edu_memcpy_read(struct vfio_pci_device *device)
{
	struct edu_state *edu = to_edu_state(device);

	edu_dma_start(device, edu->src, EDU_DMA_BUFFER, edu->size, 0);
}

static void edu_memcpy_write(struct vfio_pci_device *device)
{
	struct edu_state *edu = to_edu_state(device);

	edu_dma_start(device, EDU_DMA_BUFFER, edu->dst, edu->size,
		      EDU_DMA_CMD_FROM_DEVICE);
}

static bool edu_can_reach(iova_t iova, u64 size)
{
	return iova <= EDU_DMA_MASK && size - 1 <= EDU_DMA_MASK - iova;
}

/*
 * The device can only be told about one half of one copy at a time: start the
 * first, leave the rest to memcpy_wait(). Never let it see an IOVA that it
 * would clamp: the copy would go to memory of somebody else.
 */
static void edu_memcpy_start(struct vfio_pci_device *device, iova_t src,
			     iova_t dst, u64 size, u64 count)
{
	struct edu_state *edu = to_edu_state(device);

	*edu = (struct edu_state) {
		.src = src,
		.dst = dst,
		.size = size,
		.count = count,
	};

	if (!edu_can_reach(src, size) || !edu_can_reach(dst, size)) {
		edu->error = -ERANGE;
		return;
	}

	edu_memcpy_read(device);
}

static int edu_memcpy_wait(struct vfio_pci_device *device)
{
	struct edu_state *edu = to_edu_state(device);

	if (edu->error) {
		dev_err(device, "edu: 0x%lx -> 0x%lx (size 0x%lx) exceeds the DMA mask 0x%llx\n",
			edu->src, edu->dst, edu->size, EDU_DMA_MASK);
		return edu->error;
	}

	for (;;) {
		edu_dma_wait(device);
		edu_memcpy_write(device);
		edu_dma_wait(device);

		if (!--edu->count)
			return 0;

		edu_memcpy_read(device);
	}
}

static void edu_send_msi(struct vfio_pci_device *device)
{
	writel(1, edu_regs(device) + EDU_IRQ_RAISE);
	writel(1, edu_regs(device) + EDU_IRQ_ACK);
}

const struct vfio_pci_driver_ops edu_ops = {
	.name = "edu",
	.probe = edu_probe,
	.init = edu_init,
	.remove = edu_remove,
	.memcpy_start = edu_memcpy_start,
	.memcpy_wait = edu_memcpy_wait,
	.send_msi = edu_send_msi,
};

static int edu_plus_probe(struct vfio_pci_device *device)
{
	u32 version;
	int r;

	if (!edu_match(device, EDU_PLUS_REVISION))
		return -EINVAL;

	r = edu_check_id(device, EDU_ID, EDU_ID_VALUE);
	if (r)
		return r;

	r = edu_check_id(device, EDU_PLUS_ID, EDU_PLUS_ID_VALUE);
	if (r)
		return r;

	version = readl(edu_regs(device) + EDU_PLUS_VERSION);
	if (EDU_PLUS_VERSION_MAJOR(version) != 1) {
		dev_err(device, "edu-plus: Unsupported version: 0x%x\n", version);
		return -EINVAL;
	}

	return 0;
}

/* Return the final status, or die if the engine makes no progress. */
static u32 edu_plus_copy_wait(struct vfio_pci_device *device)
{
	void *regs = edu_regs(device);
	int attempts = EDU_POLL_ATTEMPTS;
	u64 done, last = 0;
	u32 status;

	for (;;) {
		status = readl(regs + EDU_PLUS_COPY_STATUS);
		if (!(status & EDU_PLUS_COPY_STATUS_BUSY))
			return status;

		done = readq(regs + EDU_PLUS_COPY_DONE);
		if (done != last)
			attempts = EDU_POLL_ATTEMPTS;
		last = done;

		VFIO_ASSERT_GT(--attempts, 0, "edu-plus: Copy is stuck at 0x%lx\n", done);
		usleep(EDU_POLL_US);
	}
}

static void edu_plus_copy_stop(struct vfio_pci_device *device)
{
	writel(EDU_PLUS_COPY_CMD_ABORT, edu_regs(device) + EDU_PLUS_COPY_CMD);
	edu_plus_copy_wait(device);
}

static void edu_plus_init(struct vfio_pci_device *device)
{
	edu_pci_init(device);
	edu_plus_copy_stop(device);

	vfio_pci_msix_enable(device, EDU_MSI_VECTOR, 1);

	device->driver.msi = EDU_MSI_VECTOR;
	device->driver.max_memcpy_size = EDU_PLUS_MAX_MEMCPY_SIZE;
	device->driver.max_memcpy_count = EDU_PLUS_MAX_MEMCPY_COUNT;
}

static void edu_plus_remove(struct vfio_pci_device *device)
{
	edu_plus_copy_stop(device);
	vfio_pci_msix_disable(device);
	vfio_pci_cmd_clear(device, PCI_COMMAND_MASTER);
}

static void edu_plus_memcpy_start(struct vfio_pci_device *device, iova_t src,
				  iova_t dst, u64 size, u64 count)
{
	void *regs = edu_regs(device);

	writeq(src, regs + EDU_PLUS_COPY_SRC);
	writeq(dst, regs + EDU_PLUS_COPY_DST);
	writeq(size, regs + EDU_PLUS_COPY_LEN);
	writel(count, regs + EDU_PLUS_COPY_COUNT);
	writel(EDU_PLUS_COPY_CMD_START, regs + EDU_PLUS_COPY_CMD);
}

static int edu_plus_memcpy_wait(struct vfio_pci_device *device)
{
	void *regs = edu_regs(device);
	u32 status;

	status = edu_plus_copy_wait(device) & EDU_PLUS_COPY_STATUS_RESULT;
	if (status == EDU_PLUS_COPY_OK)
		return 0;

	dev_err(device, "edu-plus: Copy of 0x%lx -> 0x%lx failed after 0x%lx bytes: %u\n",
		readq(regs + EDU_PLUS_COPY_SRC), readq(regs + EDU_PLUS_COPY_DST),
		readq(regs + EDU_PLUS_COPY_DONE), status);

	return status == EDU_PLUS_COPY_BAD_RANGE ? -ERANGE : -EIO;
}

static void edu_plus_send_msi(struct vfio_pci_device *device)
{
	writel(EDU_MSI_VECTOR, edu_regs(device) + EDU_PLUS_MSIX_SEND);
}

const struct vfio_pci_driver_ops edu_plus_ops = {
	.name = "edu-plus",
	.probe = edu_plus_probe,
	.init = edu_plus_init,
	.remove = edu_plus_remove,
	.memcpy_start = edu_plus_memcpy_start,
	.memcpy_wait = edu_plus_memcpy_wait,
	.send_msi = edu_plus_send_msi,
};
