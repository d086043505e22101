// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of the DMABUFs behind mappings of BARs
 *
 * Such a DMABUF has no descriptor, so userspace cannot try to import it.  Here
 * it is made for a device that consists of no more than the structures, and the
 * device itself can be the importer.  What is tested of revocation goes for
 * exported DMABUFs as well, their code is the same; that they are in fact mapped
 * and that DMA gets there is left to the selftests.
 */
#include <kunit/device.h>
#include <kunit/test.h>

#include <linux/anon_inodes.h>
#include <linux/bitfield.h>
#include <linux/bits.h>
#include <linux/dma-buf.h>
#include <linux/file.h>
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/pci.h>
#include <linux/pci-p2pdma.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/unaligned.h>
#include <linux/wait_bit.h>
#include <linux/workqueue.h>

#include "../vfio_pci_priv.h"

#define BAR		5
#define BAR_PGOFF	(VFIO_PCI_INDEX_TO_OFFSET(BAR) >> PAGE_SHIFT)
/* The mapping starts at the fourth page of the BAR */
#define MAP_PGOFF	(BAR_PGOFF + 3)
#define ORDER		9
#define ORDER_PAGES	BIT(ORDER)
#define MAP_PAGES	(2 * ORDER_PAGES)
#define MAP_START	(16 * ORDER_PAGES * PAGE_SIZE)
#define MAP_PFN		(4 * ORDER_PAGES)

/* Anybody is refused if the kernel knows no peer-to-peer DMA */
#define IF_P2PDMA(ret)	(IS_ENABLED(CONFIG_PCI_P2PDMA) ? (ret) : -EOPNOTSUPP)
/* Nobody has heard of exports if the kernel knows none */
#define IF_DMABUF(ret)	(IS_ENABLED(CONFIG_VFIO_PCI_DMABUF) ? (ret) : -ENOTTY)

/* An importer that has not been told, or is waited for in vain, has this long */
#define RESCUE		(5 * HZ)

struct dmabuf_test {
	struct vfio_pci_core_device *vdev;
	struct file *device_file;
	struct p2pdma_provider provider;
	struct device *importer;
	unsigned int nr_invalidated;

	/* What an importer has that takes its time to let go of a buffer */
	struct dma_buf_attachment *attachment;
	struct sg_table *sgt;
	struct delayed_work let_go;
	bool has_let_go;
	bool was_rescued;
};

static const struct vfio_device_ops device_ops = {
	.name = "vfio-pci-kunit",
	.mmap = vfio_pci_core_mmap,
};

static int own_mmap(struct vfio_device *core_vdev, struct vm_area_struct *vma)
{
	return -ENODEV;
}

static const struct vfio_device_ops own_mmap_ops = {
	.name = "vfio-pci-kunit-mmap",
	.mmap = own_mmap,
};

static const struct file_operations device_fops = {};

static void count_invalidate(struct dma_buf_attachment *attachment)
{
	struct dmabuf_test *ctx = attachment->importer_priv;

	ctx->nr_invalidated++;
}

static const struct dma_buf_attach_ops importer_ops = {
	.allow_peer2peer = true,
	.invalidate_mappings = count_invalidate,
};

/* The first time, unmap; the second time, end what still waits for that */
static void let_go(struct work_struct *work)
{
	struct dmabuf_test *ctx = container_of(to_delayed_work(work),
					       struct dmabuf_test, let_go);
	struct vfio_pci_dma_buf *priv = ctx->attachment->dmabuf->priv;

	dma_resv_lock(&priv->resv, NULL);
	if (!ctx->has_let_go) {
		WRITE_ONCE(ctx->has_let_go, true);
		dma_buf_unmap_attachment(ctx->attachment, ctx->sgt,
					 DMA_BIDIRECTIONAL);
		schedule_delayed_work(&ctx->let_go, RESCUE);
	} else {
		WRITE_ONCE(ctx->was_rescued, true);
		store_release_wake_up(&priv->nr_maps, 0);
	}
	dma_resv_unlock(&priv->resv);
}

static void let_go_later(struct dma_buf_attachment *attachment)
{
	struct dmabuf_test *ctx = attachment->importer_priv;

	ctx->nr_invalidated++;
	mod_delayed_work(system_percpu_wq, &ctx->let_go, msecs_to_jiffies(20));
}

static const struct dma_buf_attach_ops importer_ops_slow = {
	.allow_peer2peer = true,
	.invalidate_mappings = let_go_later,
};

static const struct dma_buf_attach_ops importer_ops_no_peer2peer = {
	.invalidate_mappings = count_invalidate,
};

static const struct dma_buf_attach_ops importer_ops_no_invalidate = {
	.allow_peer2peer = true,
};

KUNIT_DEFINE_ACTION_WRAPPER(release_device, vfio_pci_core_release_dev,
			    struct vfio_device *);
KUNIT_DEFINE_ACTION_WRAPPER(fput_action, fput, struct file *);
KUNIT_DEFINE_ACTION_WRAPPER(put_device_action, put_device, struct device *);

static void free_pci_dev(struct device *dev)
{
	kfree(to_pci_dev(dev));
}

static struct vfio_pci_core_device *
alloc_device(struct kunit *test, const struct vfio_device_ops *ops)
{
	struct vfio_pci_core_device *vdev;
	struct pci_dev *pdev;

	pdev = kzalloc_obj(*pdev);
	KUNIT_ASSERT_NOT_NULL(test, pdev);
	device_initialize(&pdev->dev);
	pdev->dev.release = free_pci_dev;
	pdev->dev.init_name = "0000:00:00.0";
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test,
							   put_device_action,
							   &pdev->dev));
	/* There is no bus to make a provider of, so the buffers get none */
	pdev->non_mappable_bars = true;

	vdev = kunit_kzalloc(test, sizeof(*vdev), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, vdev);
	vdev->vdev.dev = &pdev->dev;
	vdev->vdev.device.init_name = "vfio-kunit";
	vdev->vdev.ops = ops;
	refcount_set(&vdev->vdev.refcount, 1);
	init_completion(&vdev->vdev.comp);

	vdev->vconfig = kunit_kzalloc(test, PCI_CFG_SPACE_SIZE, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, vdev->vconfig);
	put_unaligned_le16(PCI_COMMAND_MEMORY, vdev->vconfig + PCI_COMMAND);

	KUNIT_ASSERT_EQ(test, 0, vfio_pci_core_init_dev(&vdev->vdev));
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, release_device,
							   &vdev->vdev));
	return vdev;
}

static void open_device(struct vfio_pci_core_device *vdev)
{
	down_write(&vdev->memory_lock);
	vdev->mem_open = true;
	vfio_pci_restore_memory(vdev);
	up_write(&vdev->memory_lock);
}

static void hold(struct vfio_pci_core_device *vdev)
{
	down_write(&vdev->memory_lock);
	vfio_pci_begin_hold(vdev);
	up_write(&vdev->memory_lock);
}

static void unhold(struct vfio_pci_core_device *vdev)
{
	down_write(&vdev->memory_lock);
	vfio_pci_unhold_memory(vdev);
	up_write(&vdev->memory_lock);
}

static void init_vma(struct vm_area_struct *vma, struct dmabuf_test *ctx)
{
	memset(vma, 0, sizeof(*vma));
	vma->vm_start = MAP_START;
	vma->vm_end = MAP_START + MAP_PAGES * PAGE_SIZE;
	vma->vm_pgoff = MAP_PGOFF;
	vma->vm_file = ctx->device_file;
}

/* What is left to do when the last VMA has been unmapped */
static void put_bar_map(void *data)
{
	struct vfio_pci_dma_buf *priv = data;

	fput(priv->device_file);
	dma_buf_put(priv->dmabuf);
	flush_delayed_fput();
}

static struct vfio_pci_dma_buf *create_bar_map(struct kunit *test)
{
	struct dmabuf_test *ctx = test->priv;
	struct vfio_pci_dma_buf *priv;
	struct vm_area_struct *vma;

	vma = kunit_kzalloc(test, sizeof(*vma), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, vma);
	init_vma(vma, ctx);
	priv = vfio_pci_dma_buf_create_bar_map(ctx->vdev, vma, BAR,
					       PFN_PHYS(MAP_PFN));
	kunit_kfree(test, vma);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, priv);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, put_bar_map,
							   priv));
	return priv;
}

/* A buffer that can be imported where there is peer-to-peer DMA */
static struct vfio_pci_dma_buf *create_importable(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_bar_map(test);
	struct dmabuf_test *ctx = test->priv;

	priv->provider = &ctx->provider;
	return priv;
}

static enum vfio_pci_dma_buf_status get_status(struct vfio_pci_dma_buf *priv)
{
	enum vfio_pci_dma_buf_status status;

	dma_resv_lock(&priv->resv, NULL);
	status = priv->status;
	dma_resv_unlock(&priv->resv);

	return status;
}

static struct dma_buf_attachment *attach(struct kunit *test,
					 struct vfio_pci_dma_buf *priv,
					 const struct dma_buf_attach_ops *ops)
{
	struct dmabuf_test *ctx = test->priv;

	return dma_buf_dynamic_attach(priv->dmabuf, ctx->importer, ops, ctx);
}

static int try_attach(struct kunit *test, struct vfio_pci_dma_buf *priv,
		      const struct dma_buf_attach_ops *ops)
{
	struct dma_buf_attachment *attachment = attach(test, priv, ops);

	if (IS_ERR(attachment))
		return PTR_ERR(attachment);

	dma_buf_detach(priv->dmabuf, attachment);
	return 0;
}

static void detach_action(void *data)
{
	struct dma_buf_attachment *attachment = data;

	dma_buf_detach(attachment->dmabuf, attachment);
}

/* Attached until the end of the test */
static struct dma_buf_attachment *
stay_attached_by(struct kunit *test, struct vfio_pci_dma_buf *priv,
		 const struct dma_buf_attach_ops *ops)
{
	struct dma_buf_attachment *attachment;

	attachment = attach(test, priv, ops);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, attachment);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, detach_action,
							   attachment));
	return attachment;
}

static struct dma_buf_attachment *stay_attached(struct kunit *test,
						struct vfio_pci_dma_buf *priv)
{
	return stay_attached_by(test, priv, &importer_ops);
}

/* From here on there is peer-to-peer DMA with the device */
static void enable_p2pdma(struct kunit *test)
{
	struct dmabuf_test *ctx = test->priv;
	struct pci_dev *pdev = ctx->vdev->pdev;

	if (!IS_ENABLED(CONFIG_PCI_P2PDMA))
		kunit_skip(test, "no peer-to-peer DMA");

	/* The device is not on it, but has to have a domain and a number */
	pdev->bus = pci_find_next_bus(NULL);
	if (!pdev->bus)
		kunit_skip(test, "no PCI bus");
	pdev->dev.bus = &pci_bus_type;
	pdev->non_mappable_bars = false;
	KUNIT_ASSERT_EQ(test, 0, pcim_p2pdma_init(pdev));
}

/*
 * And the importer is the device itself.  There is nothing between the two, so
 * that DMA goes by bus addresses and needs no IOMMU.
 */
static void import_by_device(struct kunit *test)
{
	struct dmabuf_test *ctx = test->priv;

	enable_p2pdma(test);
	ctx->importer = &ctx->vdev->pdev->dev;
}

static struct sg_table *map(struct kunit *test,
			    struct dma_buf_attachment *attachment)
{
	struct sg_table *sgt;

	sgt = dma_buf_map_attachment_unlocked(attachment, DMA_BIDIRECTIONAL);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, sgt);
	return sgt;
}

static void unmap(struct dma_buf_attachment *attachment, struct sg_table *sgt)
{
	dma_buf_unmap_attachment_unlocked(attachment, sgt, DMA_BIDIRECTIONAL);
}

static int try_map(struct dma_buf_attachment *attachment)
{
	struct sg_table *sgt;

	sgt = dma_buf_map_attachment_unlocked(attachment, DMA_BIDIRECTIONAL);
	if (IS_ERR(sgt))
		return PTR_ERR(sgt);

	unmap(attachment, sgt);
	return 0;
}

static int vfio_pci_dmabuf_test_init(struct kunit *test)
{
	struct dmabuf_test *ctx;

	ctx = kunit_kzalloc(test, sizeof(*ctx), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, ctx);
	test->priv = ctx;

	ctx->vdev = alloc_device(test, &device_ops);
	ctx->provider.owner = ctx->vdev->vdev.dev;
	open_device(ctx->vdev);

	ctx->device_file = anon_inode_getfile("[vfio-kunit]", &device_fops,
					      NULL, O_RDWR);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, ctx->device_file);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, fput_action,
							   ctx->device_file));

	ctx->importer = kunit_device_register(test, "importer");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, ctx->importer);

	return 0;
}

static void vfio_pci_bar_map_create(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_bar_map(test);
	struct dmabuf_test *ctx = test->priv;

	KUNIT_EXPECT_EQ(test, priv->size, MAP_PAGES * PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, priv->dmabuf->size, MAP_PAGES * PAGE_SIZE);
	KUNIT_EXPECT_EQ(test, priv->vm_pgoff, MAP_PGOFF);
	KUNIT_EXPECT_EQ(test, priv->region_index, BAR);
	KUNIT_EXPECT_EQ(test, priv->nr_ranges, 1);
	KUNIT_EXPECT_EQ(test, priv->phys_vec[0].paddr, PFN_PHYS(MAP_PFN));
	KUNIT_EXPECT_EQ(test, priv->phys_vec[0].len, MAP_PAGES * PAGE_SIZE);
	KUNIT_EXPECT_NULL(test, priv->provider);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_OK);
	KUNIT_EXPECT_STREQ(test, priv->dmabuf->name,
			   "vfio-kunit:0000:00:00.0/5");

	/* It keeps the device registered and open */
	KUNIT_EXPECT_EQ(test, refcount_read(&ctx->vdev->vdev.refcount), 2);
	KUNIT_EXPECT_EQ(test, file_count(ctx->device_file), 2);
	KUNIT_EXPECT_TRUE(test, list_is_singular(&ctx->vdev->dmabufs));

	kunit_release_action(test, put_bar_map, priv);
	KUNIT_EXPECT_EQ(test, refcount_read(&ctx->vdev->vdev.refcount), 1);
	KUNIT_EXPECT_EQ(test, file_count(ctx->device_file), 1);
	KUNIT_EXPECT_TRUE(test, list_empty(&ctx->vdev->dmabufs));
}

#ifdef CONFIG_ARM64
static void expect_arch_wc(struct kunit *test, pgprot_t prot)
{
	KUNIT_EXPECT_EQ(test, FIELD_GET(PTE_ATTRINDX_MASK, pgprot_val(prot)),
			MT_NORMAL_NC);
}
#else
static void expect_arch_wc(struct kunit *test, pgprot_t prot) {}
#endif

/* A VMA to map an exported buffer with, of the mm that is attached */
static struct vm_area_struct *alloc_shared_vma(struct kunit *test)
{
	struct vm_area_struct *vma;

	vma = kunit_kzalloc(test, sizeof(*vma), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, vma);
	init_vma(vma, test->priv);
	vma_lock_init(vma, false);
	vma->vm_mm = current->mm;
	vm_flags_init(vma, VM_READ | VM_WRITE | VM_SHARED | VM_MAYSHARE);
	vma->vm_page_prot = vm_get_page_prot(vma->vm_flags);

	return vma;
}

/* remap_file_pages() comes by the file, other drivers by dma_buf_mmap() */
static void vfio_pci_bar_map_mmap(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_bar_map(test);
	struct file *file = priv->dmabuf->file;
	struct vm_area_struct *vma;

	KUNIT_ASSERT_EQ(test, 0, kunit_attach_mm());
	vma = alloc_shared_vma(test);

	mmap_write_lock(current->mm);
	KUNIT_EXPECT_EQ(test, -EINVAL, file->f_op->mmap(file, vma));
	vma->vm_pgoff = 0;
	KUNIT_EXPECT_EQ(test, -EINVAL, file->f_op->mmap(file, vma));
	KUNIT_EXPECT_EQ(test, -EINVAL, dma_buf_mmap(priv->dmabuf, vma, 0));
	mmap_write_unlock(current->mm);

	KUNIT_EXPECT_NULL(test, vma->vm_ops);
}

/* As if it were exported */
static int mmap_exported(struct vfio_pci_dma_buf *priv,
			 struct vm_area_struct *vma)
{
	int ret;

	mmap_write_lock(current->mm);
	ret = vfio_pci_dma_buf_mmap(priv->dmabuf, vma);
	mmap_write_unlock(current->mm);

	return ret;
}

static pgprot_t mapped_with(struct kunit *test, u32 memattr, pgprot_t *plain)
{
	struct vfio_pci_dma_buf *priv = create_bar_map(test);
	struct vm_area_struct *vma = alloc_shared_vma(test);

	*plain = vma->vm_page_prot;
	priv->mappable = true;
	priv->memattr = memattr;
	KUNIT_EXPECT_EQ(test, 0, mmap_exported(priv, vma));

	return vma->vm_page_prot;
}

/* Not every architecture shows the page tables of a process to a selftest */
static void vfio_pci_mmap_memattr(struct kunit *test)
{
	pgprot_t nc, wc, plain;

	KUNIT_ASSERT_EQ(test, 0, kunit_attach_mm());

	nc = mapped_with(test, VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR_NC, &plain);
	wc = mapped_with(test, VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR_WC, &plain);
	KUNIT_EXPECT_EQ(test, pgprot_val(nc),
			pgprot_val(pgprot_decrypted(pgprot_noncached(plain))));
	KUNIT_EXPECT_EQ(test, pgprot_val(wc),
			pgprot_val(pgprot_decrypted(pgprot_writecombine(plain))));
	expect_arch_wc(test, wc);
}

/* Only what the core maps itself can be mapped through a buffer as well */
static void vfio_pci_mmap_own(struct kunit *test)
{
	struct vfio_pci_core_device *own = alloc_device(test, &own_mmap_ops);
	struct dmabuf_test *ctx = test->priv;

	KUNIT_EXPECT_EQ(test, ctx->vdev->core_mmap_bars, 0x3f);
	KUNIT_EXPECT_FALSE(test, ctx->vdev->zap_bars_on_revoke);

	KUNIT_EXPECT_EQ(test, own->core_mmap_bars, 0);
	KUNIT_EXPECT_TRUE(test, own->zap_bars_on_revoke);
}

static void vfio_pci_mmap_not_mappable(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_bar_map(test);
	struct vm_area_struct *vma;

	KUNIT_ASSERT_EQ(test, 0, kunit_attach_mm());

	vma = alloc_shared_vma(test);
	KUNIT_ASSERT_FALSE(test, priv->mappable);
	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP, mmap_exported(priv, vma));
	KUNIT_EXPECT_NULL(test, vma->vm_ops);
	KUNIT_EXPECT_NULL(test, vma->vm_private_data);

	/* It is for no other reason */
	priv->mappable = true;
	KUNIT_EXPECT_EQ(test, 0, mmap_exported(priv, vma));
	KUNIT_EXPECT_NOT_NULL(test, vma->vm_ops);
	KUNIT_EXPECT_PTR_EQ(test, vma->vm_private_data, (void *)priv);
}

static const struct vfio_pci_device_ops no_export_ops = {};

static const struct vfio_pci_device_ops export_ops = {
	.get_dmabuf_phys = vfio_pci_core_get_dmabuf_phys,
};

/* All have no argument, and features one of length 0 */
struct call_case {
	const char *name;
	/* Of a feature, or else the ioctl */
	u32 flags;
	unsigned int cmd;
	/* What a driver that can export says to that */
	int ret;
};

static const struct call_case call_cases[] = {
	{
		.name = "export",
		.flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF,
		.ret = -EINVAL,
	}, {
		.name = "probe export",
		.flags = VFIO_DEVICE_FEATURE_PROBE |
			 VFIO_DEVICE_FEATURE_DMA_BUF,
	}, {
		.name = "revoke",
		.flags = VFIO_DEVICE_FEATURE_SET |
			 VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE,
		.ret = -EINVAL,
	}, {
		.name = "probe revoke",
		.flags = VFIO_DEVICE_FEATURE_PROBE |
			 VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE,
	}, {
		.name = "memattr",
		.flags = VFIO_DEVICE_FEATURE_SET |
			 VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR,
		.ret = -EINVAL,
	}, {
		.name = "probe memattr",
		.flags = VFIO_DEVICE_FEATURE_PROBE |
			 VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR,
	},
/* It is an alternative to the feature, which may be left out */
#ifdef VFIO_DEVICE_PCI_DMABUF_REVOKE
	{
		.name = "revoke by ioctl",
		.cmd = VFIO_DEVICE_PCI_DMABUF_REVOKE,
		.ret = -EFAULT,
	},
#endif
};

KUNIT_ARRAY_PARAM_DESC(call, call_cases, name);

static long call(struct vfio_pci_core_device *vdev,
		 const struct call_case *param)
{
	if (param->cmd)
		return vfio_pci_core_ioctl(&vdev->vdev, param->cmd, 0);

	return vfio_pci_core_ioctl_feature(&vdev->vdev, param->flags, NULL, 0);
}

/* Userspace tells what is not there from what has been called wrongly */
static void vfio_pci_call_unsupported(struct kunit *test)
{
	const struct call_case *param = test->param_value;
	struct dmabuf_test *ctx = test->priv;
	struct vfio_pci_core_device *vdev = ctx->vdev;

	KUNIT_ASSERT_NULL(test, vdev->pci_ops);
	KUNIT_EXPECT_EQ(test, IF_DMABUF(-EOPNOTSUPP), call(vdev, param));
	vdev->pci_ops = &no_export_ops;
	KUNIT_EXPECT_EQ(test, IF_DMABUF(-EOPNOTSUPP), call(vdev, param));
	vdev->pci_ops = &export_ops;
	KUNIT_EXPECT_EQ(test, IF_DMABUF(param->ret), call(vdev, param));
}

static void vfio_pci_attach(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_importable(test);

	KUNIT_EXPECT_EQ(test, IF_P2PDMA(0),
			try_attach(test, priv, &importer_ops));
}

static void vfio_pci_attach_without_provider(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_bar_map(test);

	KUNIT_ASSERT_NULL(test, priv->provider);
	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
			try_attach(test, priv, &importer_ops));

	/* No matter what else there is to say */
	hold(priv->vdev);
	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
			try_attach(test, priv, &importer_ops));
	unhold(priv->vdev);
}

static void vfio_pci_attach_without_peer2peer(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_importable(test);

	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
			try_attach(test, priv, &importer_ops_no_peer2peer));
	/* This is what dma_buf_attach() has */
	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP, try_attach(test, priv, NULL));
}

static void vfio_pci_attach_without_invalidate(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_importable(test);

	KUNIT_EXPECT_EQ(test, -EOPNOTSUPP,
			try_attach(test, priv, &importer_ops_no_invalidate));
}

static void vfio_pci_attach_revoked(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_importable(test);

	hold(priv->vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_REVOKED);
	KUNIT_EXPECT_EQ(test, IF_P2PDMA(-ENODEV),
			try_attach(test, priv, &importer_ops));

	unhold(priv->vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_OK);
	KUNIT_EXPECT_EQ(test, IF_P2PDMA(0),
			try_attach(test, priv, &importer_ops));
}

static void vfio_pci_attach_dead(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_importable(test);

	KUNIT_EXPECT_EQ(test, 0, vfio_pci_dma_buf_revoke(priv->vdev, priv));
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_DEAD);
	KUNIT_EXPECT_EQ(test, IF_P2PDMA(-ENODEV),
			try_attach(test, priv, &importer_ops));
}

/* The buffer outlives the device: somebody still has its file */
static void vfio_pci_attach_closed(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_importable(test);
	struct dmabuf_test *ctx = test->priv;

	vfio_pci_dma_buf_cleanup(ctx->vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_DEAD);
	KUNIT_EXPECT_NULL(test, priv->vdev);
	KUNIT_EXPECT_TRUE(test, list_empty(&ctx->vdev->dmabufs));
	KUNIT_EXPECT_EQ(test, refcount_read(&ctx->vdev->vdev.refcount), 1);
	KUNIT_EXPECT_EQ(test, IF_P2PDMA(-ENODEV),
			try_attach(test, priv, &importer_ops));

	open_device(ctx->vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_DEAD);
	KUNIT_EXPECT_EQ(test, -ENODEV,
			vfio_pci_dma_buf_revoke(ctx->vdev, priv));
}

/* Each mapping counts, no matter whose, until it is unmapped */
static void vfio_pci_map_counted(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_importable(test);
	struct dma_buf_attachment *attachment, *another;
	struct sg_table *first, *second, *third;

	import_by_device(test);
	attachment = stay_attached(test, priv);
	another = stay_attached(test, priv);
	KUNIT_EXPECT_EQ(test, priv->nr_maps, 0);

	first = map(test, attachment);
	KUNIT_EXPECT_EQ(test, priv->nr_maps, 1);
	KUNIT_EXPECT_EQ(test, first->nents, 1);
	KUNIT_EXPECT_EQ(test, sg_dma_address(first->sgl), PFN_PHYS(MAP_PFN));
	KUNIT_EXPECT_EQ(test, sg_dma_len(first->sgl), MAP_PAGES * PAGE_SIZE);

	second = map(test, attachment);
	KUNIT_EXPECT_EQ(test, priv->nr_maps, 2);
	third = map(test, another);
	KUNIT_EXPECT_EQ(test, priv->nr_maps, 3);

	unmap(attachment, first);
	KUNIT_EXPECT_EQ(test, priv->nr_maps, 2);
	unmap(another, third);
	KUNIT_EXPECT_EQ(test, priv->nr_maps, 1);
	unmap(attachment, second);
	KUNIT_EXPECT_EQ(test, priv->nr_maps, 0);
}

static void vfio_pci_map_fails(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_importable(test);
	struct dma_buf_attachment *attachment;

	enable_p2pdma(test);
	attachment = stay_attached(test, priv);
	/* The importer is no PCI device */
	KUNIT_EXPECT_EQ(test, -EINVAL, try_map(attachment));
	KUNIT_EXPECT_EQ(test, priv->nr_maps, 0);
}

static void vfio_pci_map_revoked(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_importable(test);
	struct dma_buf_attachment *attachment;

	import_by_device(test);
	attachment = stay_attached(test, priv);
	KUNIT_EXPECT_EQ(test, 0, try_map(attachment));
	hold(priv->vdev);
	KUNIT_EXPECT_EQ(test, -ENODEV, try_map(attachment));
	unhold(priv->vdev);
	KUNIT_EXPECT_EQ(test, 0, try_map(attachment));

	/* Nobody would end the wait for another one */
	KUNIT_ASSERT_EQ(test, priv->nr_maps, 0);
	KUNIT_EXPECT_EQ(test, 0, vfio_pci_dma_buf_revoke(priv->vdev, priv));
	KUNIT_EXPECT_EQ(test, -ENODEV, try_map(attachment));
	KUNIT_EXPECT_EQ(test, priv->nr_maps, 0);
}

/* Importers are told on the way into revocation, once, and not out of it */
static void vfio_pci_invalidate(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_importable(test);
	struct dmabuf_test *ctx = test->priv;

	if (!IS_ENABLED(CONFIG_PCI_P2PDMA))
		kunit_skip(test, "no peer-to-peer DMA");

	stay_attached(test, priv);
	KUNIT_EXPECT_EQ(test, ctx->nr_invalidated, 0);
	hold(ctx->vdev);
	KUNIT_EXPECT_EQ(test, ctx->nr_invalidated, 1);
	hold(ctx->vdev);
	KUNIT_EXPECT_EQ(test, ctx->nr_invalidated, 1);
	unhold(ctx->vdev);
	unhold(ctx->vdev);
	KUNIT_EXPECT_EQ(test, ctx->nr_invalidated, 1);
	KUNIT_EXPECT_EQ(test, 0, vfio_pci_dma_buf_revoke(ctx->vdev, priv));
	KUNIT_EXPECT_EQ(test, ctx->nr_invalidated, 2);
	hold(ctx->vdev);
	unhold(ctx->vdev);
	KUNIT_EXPECT_EQ(test, ctx->nr_invalidated, 2);
}

/* What revokes a buffer returns when its importers have let go of it */
static void expect_wait(struct kunit *test,
			void (*act)(struct kunit *test,
				    struct vfio_pci_dma_buf *priv))
{
	struct vfio_pci_dma_buf *priv = create_importable(test);
	struct dmabuf_test *ctx = test->priv;

	import_by_device(test);
	INIT_DELAYED_WORK(&ctx->let_go, let_go);
	ctx->attachment = stay_attached_by(test, priv, &importer_ops_slow);
	ctx->sgt = map(test, ctx->attachment);
	/* A test that fails must not stop the boot */
	schedule_delayed_work(&ctx->let_go, RESCUE);

	act(test, priv);
	KUNIT_EXPECT_EQ(test, ctx->nr_invalidated, 1);
	KUNIT_EXPECT_TRUE(test, READ_ONCE(ctx->has_let_go));
	KUNIT_EXPECT_FALSE(test, READ_ONCE(ctx->was_rescued));

	/* If it has not been waited for, unmap now */
	if (!READ_ONCE(ctx->has_let_go))
		flush_delayed_work(&ctx->let_go);
	KUNIT_EXPECT_EQ(test, priv->nr_maps, 0);
	cancel_delayed_work_sync(&ctx->let_go);
}

static void revoke_and_wait(struct kunit *test, struct vfio_pci_dma_buf *priv)
{
	KUNIT_EXPECT_EQ(test, 0, vfio_pci_dma_buf_revoke(priv->vdev, priv));
}

static void vfio_pci_revoke_waits(struct kunit *test)
{
	expect_wait(test, revoke_and_wait);
}

static void close_and_wait(struct kunit *test, struct vfio_pci_dma_buf *priv)
{
	vfio_pci_dma_buf_cleanup(priv->vdev);
}

static void vfio_pci_close_waits(struct kunit *test)
{
	expect_wait(test, close_and_wait);
}

/* A new buffer is in the state that the device is in */
static void vfio_pci_status_of_new(struct kunit *test)
{
	struct vfio_pci_core_device *closed = alloc_device(test, &device_ops);
	struct vfio_pci_dma_buf *priv;
	struct dmabuf_test *ctx = test->priv;

	hold(ctx->vdev);
	priv = create_bar_map(test);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_REVOKED);
	unhold(ctx->vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_OK);

	ctx->vdev = closed;
	priv = create_bar_map(test);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_REVOKED);
	open_device(closed);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_OK);
}

static void vfio_pci_status_holds(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_bar_map(test);

	hold(priv->vdev);
	hold(priv->vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_REVOKED);
	unhold(priv->vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_REVOKED);
	unhold(priv->vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_OK);
}

/* The last hold is dropped, but what has been done meanwhile decides */
static void vfio_pci_status_memory_off(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_bar_map(test);
	struct vfio_pci_core_device *vdev = priv->vdev;

	hold(vdev);
	put_unaligned_le16(0, vdev->vconfig + PCI_COMMAND);
	unhold(vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_REVOKED);

	hold(vdev);
	put_unaligned_le16(PCI_COMMAND_MEMORY, vdev->vconfig + PCI_COMMAND);
	vdev->pdev->current_state = PCI_D3hot;
	unhold(vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_REVOKED);

	hold(vdev);
	vdev->pdev->current_state = PCI_D0;
	vdev->pm_runtime_engaged = true;
	unhold(vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_REVOKED);

	hold(vdev);
	vdev->pm_runtime_engaged = false;
	unhold(vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_OK);
}

struct revocation {
	struct work_struct work;
	struct vfio_pci_dma_buf *priv;
	int ret;
};

static void revoke_work(struct work_struct *work)
{
	struct revocation *r = container_of(work, struct revocation, work);

	r->ret = vfio_pci_dma_buf_revoke(r->priv->vdev, r->priv);
}

static void hold_work(struct work_struct *work)
{
	struct revocation *r = container_of(work, struct revocation, work);

	hold(r->priv->vdev);
}

/* Begin, and see it come to the CPU mappings of a buffer */
static void expect_zap(struct kunit *test, struct work_struct *work,
		       struct vfio_pci_dma_buf *priv)
{
	struct address_space *mapping = priv->inode->i_mapping;
	unsigned long end = jiffies + RESCUE;

	i_mmap_lock_write(mapping);
	schedule_work(work);
	while (!rwsem_is_contended(&mapping->i_mmap_rwsem) &&
	       time_before(jiffies, end))
		schedule_timeout_uninterruptible(1);
	KUNIT_EXPECT_TRUE(test, rwsem_is_contended(&mapping->i_mmap_rwsem));
	i_mmap_unlock_write(mapping);
}

/* Whoever has the reservation lock delays what follows, but not the end of CPU access */
static void vfio_pci_revoke_cuts_off_first(struct kunit *test)
{
	struct revocation r = { .priv = create_bar_map(test), .ret = -EINPROGRESS };
	struct vm_area_struct *vma;

	KUNIT_ASSERT_EQ(test, 0, kunit_attach_mm());
	vma = alloc_shared_vma(test);
	r.priv->mappable = true;
	KUNIT_EXPECT_EQ(test, 0, mmap_exported(r.priv, vma));

	INIT_WORK_ONSTACK(&r.work, revoke_work);
	mmap_write_lock(current->mm);
	dma_resv_lock(&r.priv->resv, NULL);
	expect_zap(test, &r.work, r.priv);
	KUNIT_EXPECT_EQ(test, r.priv->status, VFIO_PCI_DMA_BUF_OK);
	KUNIT_EXPECT_EQ(test, -ENODEV,
			vfio_pci_dma_buf_mmap(r.priv->dmabuf, vma));
	dma_resv_unlock(&r.priv->resv);
	mmap_write_unlock(current->mm);

	flush_work(&r.work);
	destroy_work_on_stack(&r.work);
	KUNIT_EXPECT_EQ(test, r.ret, 0);
	KUNIT_EXPECT_EQ(test, get_status(r.priv), VFIO_PCI_DMA_BUF_DEAD);
}

/* The same where all buffers of a device are revoked, be it the lock of the first */
static void vfio_pci_hold_zaps_all_first(struct kunit *test)
{
	struct revocation r = { .priv = create_bar_map(test) };
	struct vfio_pci_dma_buf *last = create_bar_map(test);

	INIT_WORK_ONSTACK(&r.work, hold_work);
	dma_resv_lock(&r.priv->resv, NULL);
	expect_zap(test, &r.work, last);
	dma_resv_unlock(&r.priv->resv);

	flush_work(&r.work);
	destroy_work_on_stack(&r.work);
	KUNIT_EXPECT_EQ(test, get_status(last), VFIO_PCI_DMA_BUF_REVOKED);
	unhold(last->vdev);
}

static void vfio_pci_revoke(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_bar_map(test);
	struct vfio_pci_dma_buf *other = create_bar_map(test);
	struct vfio_pci_core_device *stranger = alloc_device(test, &device_ops);
	struct vfio_pci_core_device *vdev = priv->vdev;

	KUNIT_EXPECT_EQ(test, -ENODEV, vfio_pci_dma_buf_revoke(stranger, priv));
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_OK);

	KUNIT_EXPECT_EQ(test, 0, vfio_pci_dma_buf_revoke(vdev, priv));
	KUNIT_EXPECT_EQ(test, -EBADFD, vfio_pci_dma_buf_revoke(vdev, priv));
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_DEAD);
	KUNIT_EXPECT_EQ(test, get_status(other), VFIO_PCI_DMA_BUF_OK);

	/* Neither the way into revocation nor that out of it changes it */
	hold(vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_DEAD);
	unhold(vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_DEAD);
	KUNIT_EXPECT_EQ(test, get_status(other), VFIO_PCI_DMA_BUF_OK);
}

static void vfio_pci_revoke_revoked(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_bar_map(test);
	struct vfio_pci_core_device *vdev = priv->vdev;

	hold(vdev);
	KUNIT_EXPECT_EQ(test, 0, vfio_pci_dma_buf_revoke(vdev, priv));
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_DEAD);
	unhold(vdev);
	KUNIT_EXPECT_EQ(test, get_status(priv), VFIO_PCI_DMA_BUF_DEAD);
}

/* A VMA, which starts and ends that far inside of the mapping */
struct vma_case {
	const char *name;
	unsigned long head;
	unsigned long tail;
	/* Add this to the addresses, but not to the mmap offset */
	long move;
	/* Add this to the mmap offset, but not to the addresses */
	long slip;
	/* The address, as a page of the mapping */
	unsigned long page;
	unsigned int order;
	int ret;
	unsigned long pfn;
};

static const struct vma_case vma_cases[] = {
	{
		.name = "first page",
		.page = 0,
		.pfn = MAP_PFN,
	}, {
		.name = "last page",
		.page = MAP_PAGES - 1,
		.pfn = MAP_PFN + MAP_PAGES - 1,
	}, {
		.name = "split, first page",
		.head = 5,
		.page = 5,
		.pfn = MAP_PFN + 5,
	}, {
		.name = "split, last page",
		.tail = 5,
		.page = MAP_PAGES - 6,
		.pfn = MAP_PFN + MAP_PAGES - 6,
	}, {
		.name = "moved",
		.move = 7,
		.page = 5,
		.pfn = MAP_PFN + 5,
	}, {
		.name = "split and moved",
		.head = 5,
		.move = -7,
		.page = 6,
		.pfn = MAP_PFN + 6,
	}, {
		.name = "huge, first address",
		.page = 0,
		.order = ORDER,
		.pfn = MAP_PFN,
	}, {
		.name = "huge, last address",
		.page = MAP_PAGES - 1,
		.order = ORDER,
		.pfn = MAP_PFN + ORDER_PAGES,
	}, {
		.name = "huge, split in its middle",
		.head = 5,
		.page = 6,
		.order = ORDER,
		.ret = -EAGAIN,
	}, {
		.name = "huge, split in front of it",
		.head = 5,
		.page = ORDER_PAGES + 6,
		.order = ORDER,
		.pfn = MAP_PFN + ORDER_PAGES,
	}, {
		.name = "huge, split before its end",
		.tail = 1,
		.page = ORDER_PAGES,
		.order = ORDER,
		.ret = -EAGAIN,
	}, {
		.name = "huge, split behind it",
		.tail = ORDER_PAGES,
		.page = 0,
		.order = ORDER,
		.pfn = MAP_PFN,
	}, {
		.name = "huge, moved by a page",
		.move = 1,
		.page = ORDER_PAGES,
		.order = ORDER,
		.ret = -EAGAIN,
	}, {
		.name = "huge, moved by a huge page",
		.move = ORDER_PAGES,
		.page = 0,
		.order = ORDER,
		.pfn = MAP_PFN,
	}, {
		.name = "mmap offset behind the end",
		.slip = MAP_PAGES,
		.page = 0,
		.ret = -ERANGE,
	}, {
		.name = "mmap offset before the start",
		.slip = -1,
		.page = 0,
		.ret = -ERANGE,
	}, {
		.name = "mmap offset of the BAR before",
		.slip = -(long)(BAR_PGOFF / BAR),
		.page = 0,
		.ret = -ERANGE,
	}, {
		.name = "mmap offset without a BAR",
		.slip = -(long)BAR_PGOFF,
		.page = 0,
		.ret = -ERANGE,
	}, {
		.name = "mmap offset 0",
		.slip = -(long)MAP_PGOFF,
		.page = 0,
		.ret = -ERANGE,
	},
};

KUNIT_ARRAY_PARAM_DESC(vma, vma_cases, name);

static void vfio_pci_vma_find_pfn_table(struct kunit *test)
{
	struct vfio_pci_dma_buf *priv = create_bar_map(test);
	const struct vma_case *param = test->param_value;
	unsigned long pfn = ULONG_MAX, address;
	struct vm_area_struct *vma;
	pgoff_t pgoff;

	vma = kunit_kzalloc(test, sizeof(*vma), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, vma);
	init_vma(vma, test->priv);
	vma->vm_private_data = priv;
	vma->vm_start += (param->head + param->move) * PAGE_SIZE;
	vma->vm_end += (param->move - param->tail) * PAGE_SIZE;
	vma->vm_pgoff += param->head + param->slip;

	address = MAP_START + (param->page + param->move) * PAGE_SIZE;
	KUNIT_EXPECT_EQ(test, param->ret,
			vfio_pci_vma_find_pfn(vma, address, param->order,
					      &pfn));
	if (!param->ret)
		KUNIT_EXPECT_EQ(test, pfn, param->pfn);
	if (param->order)
		return;

	/* What page faults use instead, for one page */
	pfn = ULONG_MAX;
	pgoff = linear_page_index(vma, address);
	KUNIT_EXPECT_EQ(test, !param->ret,
			vfio_pci_bar_map_find_pfn(priv, pgoff, &pfn));
	if (!param->ret)
		KUNIT_EXPECT_EQ(test, pfn, param->pfn);
}

static struct kunit_case vfio_pci_dmabuf_cases[] = {
	KUNIT_CASE(vfio_pci_bar_map_create),
	KUNIT_CASE(vfio_pci_bar_map_mmap),
	KUNIT_CASE(vfio_pci_mmap_memattr),
	KUNIT_CASE(vfio_pci_mmap_own),
	KUNIT_CASE(vfio_pci_mmap_not_mappable),
	KUNIT_CASE_PARAM(vfio_pci_call_unsupported, call_gen_params),
	KUNIT_CASE(vfio_pci_attach),
	KUNIT_CASE(vfio_pci_attach_without_provider),
	KUNIT_CASE(vfio_pci_attach_without_peer2peer),
	KUNIT_CASE(vfio_pci_attach_without_invalidate),
	KUNIT_CASE(vfio_pci_attach_revoked),
	KUNIT_CASE(vfio_pci_attach_dead),
	KUNIT_CASE(vfio_pci_attach_closed),
	KUNIT_CASE(vfio_pci_map_counted),
	KUNIT_CASE(vfio_pci_map_fails),
	KUNIT_CASE(vfio_pci_map_revoked),
	KUNIT_CASE(vfio_pci_invalidate),
	KUNIT_CASE(vfio_pci_revoke_waits),
	KUNIT_CASE(vfio_pci_close_waits),
	KUNIT_CASE(vfio_pci_status_of_new),
	KUNIT_CASE(vfio_pci_status_holds),
	KUNIT_CASE(vfio_pci_status_memory_off),
	KUNIT_CASE(vfio_pci_revoke_cuts_off_first),
	KUNIT_CASE(vfio_pci_hold_zaps_all_first),
	KUNIT_CASE(vfio_pci_revoke),
	KUNIT_CASE(vfio_pci_revoke_revoked),
	KUNIT_CASE_PARAM(vfio_pci_vma_find_pfn_table, vma_gen_params),
	{}
};

static struct kunit_suite vfio_pci_dmabuf_suite = {
	.name = "vfio_pci_dmabuf",
	.init = vfio_pci_dmabuf_test_init,
	.test_cases = vfio_pci_dmabuf_cases,
};

kunit_test_suite(vfio_pci_dmabuf_suite);

MODULE_DESCRIPTION("KUnit tests of vfio-pci's DMABUFs");
MODULE_IMPORT_NS("DMA_BUF");
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
MODULE_LICENSE("GPL");
