// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test that another device's DMA reaches a BAR through its DMABUF, and that it
 * ends when the memory behind the BAR goes away or the DMABUF is revoked.
 *
 * Takes two devices: the first one has a BAR with RAM, the second one has a
 * driver in libvfio and is made to read and write that.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include <sys/mman.h>

#include <linux/iommufd.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

#define SLICE_OFFSET	SZ_64K
#define SLICE_SIZE	SZ_64K
#define RW		(IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE)

static const char *exporter_bdf;
static const char *importer_bdf;

/* What all tests work with. */
struct setup {
	struct iommu *iommu;
	struct iova_allocator *iova_allocator;
	struct vfio_pci_device *exporter;
	struct vfio_pci_device *importer;

	/* The BAR of the exporter, and the slice of it that is exported. */
	int index;
	void *bar;
	int fd;
	iova_t slice_iova;

	/* Memory for the importer to copy from and to. */
	struct dma_region memory;
};

FIXTURE(vfio_pci_dmabuf_import) {
	struct setup s;
};

static void region_setup(struct setup *s, struct dma_region *region, u64 size)
{
	region->vaddr = mmap(NULL, size, PROT_READ | PROT_WRITE,
			     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	VFIO_ASSERT_NE(region->vaddr, MAP_FAILED);
	region->iova = iova_allocator_alloc(s->iova_allocator, size);
	region->size = size;
	iommu_map(s->iommu, region);
}

static int map_slice(struct setup *s, u32 flags)
{
	return __iommu_map_dmabuf(s->iommu, s->fd, 0, SLICE_SIZE, s->slice_iova, flags);
}

FIXTURE_SETUP(vfio_pci_dmabuf_import)
{
	struct setup *s = &self->s;

	s->iommu = iommu_init(MODE_IOMMUFD);
	s->iova_allocator = iova_allocator_init(s->iommu);
	s->exporter = vfio_pci_device_init(exporter_bdf, s->iommu);
	s->importer = vfio_pci_device_init(importer_bdf, s->iommu);
	s->index = vfio_pci_ram_bar(s->exporter);

	if (s->index < 0)
		SKIP(return, "%s has no BAR with RAM", exporter_bdf);
	if (!s->importer->driver.ops)
		SKIP(return, "There is no driver for %s", importer_bdf);
	if (!vfio_pci_has_feature(s->exporter, VFIO_DEVICE_FEATURE_GET |
					       VFIO_DEVICE_FEATURE_DMA_BUF))
		SKIP(return, "The kernel does not export DMABUFs from BARs of %s", exporter_bdf);

	s->bar = s->exporter->bars[s->index].vaddr;
	region_setup(s, &s->memory, SLICE_SIZE);
	region_setup(s, &s->importer->driver.region, SZ_2M);
	vfio_pci_driver_init(s->importer);

	s->fd = vfio_pci_dmabuf_export_range(s->exporter, s->index, SLICE_OFFSET, SLICE_SIZE);
	s->slice_iova = iova_allocator_alloc(s->iova_allocator, SLICE_SIZE);
	VFIO_ASSERT_EQ(map_slice(s, RW), 0);
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_import)
{
	struct setup *s = &self->s;

	VFIO_ASSERT_EQ(close(s->fd), 0);
	iova_allocator_cleanup(s->iova_allocator);
	vfio_pci_device_cleanup(s->importer);
	vfio_pci_device_cleanup(s->exporter);
	iommu_cleanup(s->iommu);
}

/* Bytes of a pattern: 0 to stay clear of what devices read from nowhere. */
static void memory_fill(struct setup *s, u32 value)
{
	u32 *word = s->memory.vaddr;
	int i;

	for (i = 0; i < SLICE_SIZE / sizeof(*word); i++)
		word[i] = value + i;
}

static bool memory_holds(struct setup *s, u32 value)
{
	u32 *word = s->memory.vaddr;
	int i;

	for (i = 0; i < SLICE_SIZE / sizeof(*word); i++) {
		if (word[i] != value + i)
			return false;
	}

	return true;
}

static void slice_fill(struct setup *s, u32 value)
{
	int i;

	for (i = 0; i < SLICE_SIZE / sizeof(u32); i++)
		mmio_write32(s->bar + SLICE_OFFSET + i * sizeof(u32), value + i);
}

static bool slice_holds(struct setup *s, u32 value)
{
	int i;

	for (i = 0; i < SLICE_SIZE / sizeof(u32); i++) {
		if (mmio_read32(s->bar + SLICE_OFFSET + i * sizeof(u32)) != value + i)
			return false;
	}

	return true;
}

/* DMA from memory into the slice, and back. */

static int dma_write(struct setup *s)
{
	return vfio_pci_driver_memcpy(s->importer, s->memory.iova, s->slice_iova, SLICE_SIZE);
}

static int dma_read(struct setup *s)
{
	return vfio_pci_driver_memcpy(s->importer, s->slice_iova, s->memory.iova, SLICE_SIZE);
}

static bool dma_works(struct setup *s)
{
	slice_fill(s, 0x1000);
	memory_fill(s, 0x2000);
	if (dma_write(s) || !slice_holds(s, 0x2000))
		return false;

	slice_fill(s, 0x3000);
	return !dma_read(s) && memory_holds(s, 0x3000);
}

/*
 * Neither direction moves any data, whatever the device says about it. The
 * slice has to be accessible for the CPU.
 */
static bool dma_is_dead(struct setup *s)
{
	slice_fill(s, 0x4000);
	memory_fill(s, 0x5000);
	dma_write(s);
	if (!slice_holds(s, 0x4000))
		return false;

	dma_read(s);
	return !memory_holds(s, 0x4000);
}

TEST_F(vfio_pci_dmabuf_import, read_write)
{
	struct setup *s = &self->s;

	ASSERT_TRUE(dma_works(s));

	/* Not one byte beside it. */
	mmio_write32(s->bar + SLICE_OFFSET - 4, 0xed6e0001);
	mmio_write32(s->bar + SLICE_OFFSET + SLICE_SIZE, 0xed6e0002);
	ASSERT_EQ(0, dma_write(s));
	ASSERT_EQ(0xed6e0001, mmio_read32(s->bar + SLICE_OFFSET - 4));
	ASSERT_EQ(0xed6e0002, mmio_read32(s->bar + SLICE_OFFSET + SLICE_SIZE));

	iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
	ASSERT_TRUE(dma_is_dead(s));
}

TEST_F(vfio_pci_dmabuf_import, bad_span)
{
	struct setup *s = &self->s;
	iova_t iova = iova_allocator_alloc(s->iova_allocator, SZ_1M);

	EXPECT_NE(0, __iommu_map_dmabuf(s->iommu, s->fd, 0, 2 * SLICE_SIZE, iova, RW));
	EXPECT_NE(0, __iommu_map_dmabuf(s->iommu, s->fd, SLICE_SIZE, SZ_4K, iova, RW));
	EXPECT_NE(0, __iommu_map_dmabuf(s->iommu, s->fd, 0, 0, iova, RW));
}

/* The importer's map goes with the memory and stays away; a new one works. */
TEST_F(vfio_pci_dmabuf_import, memory_disable)
{
	struct setup *s = &self->s;

	ASSERT_TRUE(dma_works(s));

	vfio_pci_cmd_clear(s->exporter, PCI_COMMAND_MEMORY);
	EXPECT_EQ(-ENODEV, map_slice(s, RW));
	vfio_pci_cmd_set(s->exporter, PCI_COMMAND_MEMORY);
	ASSERT_TRUE(dma_is_dead(s));

	iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
	ASSERT_EQ(0, map_slice(s, RW));
	ASSERT_TRUE(dma_works(s));
}

TEST_F(vfio_pci_dmabuf_import, reset)
{
	struct setup *s = &self->s;

	if (!(s->exporter->info.flags & VFIO_DEVICE_FLAGS_RESET))
		SKIP(return, "Device does not support reset");

	ASSERT_TRUE(dma_works(s));
	vfio_pci_device_reset(s->exporter);
	ASSERT_TRUE(dma_is_dead(s));

	iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
	ASSERT_EQ(0, map_slice(s, RW));
	ASSERT_TRUE(dma_works(s));
}

TEST_F(vfio_pci_dmabuf_import, low_power)
{
	struct setup *s = &self->s;
	int fd = s->exporter->fd;

	if (vfio_device_feature_ioctl(fd, VFIO_DEVICE_FEATURE_SET |
					  VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, NULL, 0))
		SKIP(return, "Device has no low power state");

	EXPECT_EQ(-ENODEV, map_slice(s, RW));
	ASSERT_EQ(0, vfio_device_feature_ioctl(fd, VFIO_DEVICE_FEATURE_SET |
						   VFIO_DEVICE_FEATURE_LOW_POWER_EXIT, NULL, 0));
	ASSERT_TRUE(dma_is_dead(s));

	iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
	ASSERT_EQ(0, map_slice(s, RW));
	ASSERT_TRUE(dma_works(s));
}

TEST_F(vfio_pci_dmabuf_import, revoke)
{
	struct setup *s = &self->s;

	if (!vfio_pci_has_feature(s->exporter, VFIO_DEVICE_FEATURE_SET |
					       VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE))
		SKIP(return, "The kernel does not revoke DMABUFs");

	ASSERT_TRUE(dma_works(s));
	vfio_pci_dmabuf_revoke(s->exporter, s->fd);
	ASSERT_TRUE(dma_is_dead(s));

	iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
	ASSERT_EQ(-ENODEV, map_slice(s, RW));

	/* Not even after the device has been away. */
	vfio_pci_cmd_clear(s->exporter, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(s->exporter, PCI_COMMAND_MEMORY);
	ASSERT_EQ(-ENODEV, map_slice(s, RW));

	/* The range may be lent again at once, to the same one. */
	ASSERT_EQ(0, close(s->fd));
	s->fd = vfio_pci_dmabuf_export_range(s->exporter, s->index, SLICE_OFFSET, SLICE_SIZE);
	ASSERT_EQ(0, map_slice(s, RW));
	ASSERT_TRUE(dma_works(s));
}

/* In the middle of a transfer: once revoke has returned, not a byte more. */
TEST_F(vfio_pci_dmabuf_import, revoke_during_dma)
{
	struct setup *s = &self->s;

	if (!vfio_pci_has_feature(s->exporter, VFIO_DEVICE_FEATURE_SET |
					       VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE))
		SKIP(return, "The kernel does not revoke DMABUFs");

	memory_fill(s, 0x6000);
	vfio_pci_driver_memcpy_start(s->importer, s->memory.iova, s->slice_iova,
				     min_t(u64, SLICE_SIZE, s->importer->driver.max_memcpy_size),
				     s->importer->driver.max_memcpy_count);
	vfio_pci_dmabuf_revoke(s->exporter, s->fd);
	slice_fill(s, 0x7000);
	vfio_pci_driver_memcpy_wait(s->importer);
	ASSERT_TRUE(slice_holds(s, 0x7000));
}

/* An fd that is left over from a closed device leads nowhere. */
TEST_F(vfio_pci_dmabuf_import, exporter_closed)
{
	struct setup *s = &self->s;

	ASSERT_TRUE(dma_works(s));
	vfio_pci_device_cleanup(s->exporter);

	memory_fill(s, 0x8000);
	dma_write(s);
	iommu_unmap_dmabuf(s->iommu, s->slice_iova, SLICE_SIZE);
	EXPECT_EQ(-ENODEV, map_slice(s, RW));

	s->exporter = vfio_pci_device_init(exporter_bdf, s->iommu);
	s->bar = s->exporter->bars[s->index].vaddr;
	EXPECT_TRUE(slice_holds(s, 0x3000));
	EXPECT_EQ(-ENODEV, map_slice(s, RW));
}

int main(int argc, char *argv[])
{
	int nr_bdfs;
	char **bdfs;

	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr_bdfs);
	if (nr_bdfs < 2) {
		fprintf(stderr, "Two devices are needed, skipping.\n");
		return KSFT_SKIP;
	}

	exporter_bdf = bdfs[0];
	importer_bdf = bdfs[1];
	return test_harness_run(argc, argv);
}
