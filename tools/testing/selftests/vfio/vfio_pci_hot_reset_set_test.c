// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test the reset of several devices at once, while others use what they were lent
 * of each of them.
 *
 * Takes two devices that are reset together: functions of one device, or on one
 * bus. Their BARs with RAM are written to.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <linux/iommufd.h>
#include <linux/kernel.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

/* Some devices take a second for each. */
#define MAX_RESETS	10
#define RESETS_LIMIT_MS	5000

/* Where whatever can be imported would be. */
#define IMPORT_IOVA	0x10000000

static const char *bdfs[2];

/* A device of the set: its BAR, and a page of that as somebody else has it. */
struct member {
	struct vfio_pci_device *device;
	int index;
	u64 page_size;
	void *bar;
	int fd;
	void *lent;
	u32 value;

	/* Whether the kernel shows the state of what is lent, in fdinfo. */
	bool shows_state;
};

FIXTURE(vfio_pci_hot_reset_set) {
	struct iommu *iommu;
	struct member members[ARRAY_SIZE(bdfs)];
};

/* Which of them is asked to reset both: the kernel may have them in any order. */
FIXTURE_VARIANT(vfio_pci_hot_reset_set) {
	int asked;
};

FIXTURE_VARIANT_ADD(vfio_pci_hot_reset_set, by_first) {
	.asked = 0,
};

FIXTURE_VARIANT_ADD(vfio_pci_hot_reset_set, by_second) {
	.asked = 1,
};

#define ASKED	(&self->members[variant->asked])
#define OTHER	(&self->members[!variant->asked])

static void member_lend(struct member *m)
{
	m->fd = vfio_pci_dmabuf_export_range(m->device, m->index, 0, m->page_size);
	m->lent = dmabuf_map(m->fd, 0, m->page_size);
}

static void member_take_back(struct member *m)
{
	dmabuf_unmap(m->lent, m->page_size);
	VFIO_ASSERT_EQ(close(m->fd), 0);
}

/* Whether an access has the given result, and finds what is there. */
static bool reads(struct member *m, void *vaddr, int result)
{
	u32 value = 0;
	int r;

	r = __mmio_read32(vaddr, &value);
	if (r == result && (r || value == m->value))
		return true;

	printf("%s: %d and 0x%x, not %d and 0x%x\n", m->device->bdf, r, value, result, m->value);
	return false;
}

/*
 * Importers go by a state that CPU accesses do not show, but fdinfo. That of what is dead
 * does not show in there either.
 */
static bool has_state(struct member *m, const char *state)
{
	char value[32];

	if (!m->shows_state)
		return true;
	fdinfo_get(m->fd, "vfio-pci-state", value, sizeof(value));
	if (!strcmp(value, state))
		return true;

	printf("%s: %s, not %s\n", m->device->bdf, value, state);
	return false;
}

static int import(struct iommu *iommu, struct member *m)
{
	return __iommu_map_dmabuf(iommu, m->fd, 0, m->page_size, IMPORT_IOVA,
				  IOMMU_IOAS_MAP_READABLE);
}

FIXTURE_SETUP(vfio_pci_hot_reset_set)
{
	struct member *m;
	char state[32];
	int i, size;

	self->iommu = iommu_init(MODE_IOMMUFD);
	for (i = 0; i < ARRAY_SIZE(bdfs); i++) {
		m = &self->members[i];
		m->device = vfio_pci_device_init(bdfs[i], self->iommu);
		m->page_size = getpagesize();
		m->index = vfio_pci_ram_bar(m->device);
		if (m->index < 0)
			SKIP(return, "%s has no BAR with RAM", bdfs[i]);
		if (!vfio_pci_has_feature(m->device, VFIO_DEVICE_FEATURE_GET |
						     VFIO_DEVICE_FEATURE_DMA_BUF) ||
		    !vfio_pci_has_dmabuf_mmap(m->device, m->index))
			SKIP(return, "The kernel has no DMABUFs of BARs that can be mapped");
	}

	for (i = 0; i < ARRAY_SIZE(bdfs); i++) {
		m = &self->members[i];
		size = __vfio_pci_hot_reset_set_size(m->device);
		if (size != ARRAY_SIZE(bdfs))
			SKIP(return, "%s is not reset with just the other one (%d)",
			     bdfs[i], size);

		m->bar = m->device->bars[m->index].vaddr;
		m->value = 0x5e700 + i;
		mmio_write32(m->bar, m->value);
		member_lend(m);
		m->shows_state = fdinfo_get(m->fd, "vfio-pci-state", state, sizeof(state));
		if (!m->shows_state)
			TH_LOG("No state in fdinfo: that of %s is not looked at", bdfs[i]);
	}
}

FIXTURE_TEARDOWN(vfio_pci_hot_reset_set)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(bdfs); i++) {
		member_take_back(&self->members[i]);
		vfio_pci_device_cleanup(self->members[i].device);
	}
	iommu_cleanup(self->iommu);
}

/* What a thread reads of one of them. */
struct view {
	struct repeater repeater;
	struct member *member;
	void *vaddr;
};

static bool view_once(void *arg)
{
	struct view *view = arg;

	return reads(view->member, view->vaddr, 0);
}

static void views_wait(struct view *views, int nr)
{
	while (nr--)
		repeater_wait(&views[nr].repeater);
}

/* All are reset, and nobody sees more than a pause. */
TEST_F(vfio_pci_hot_reset_set, open)
{
	struct view views[2 * ARRAY_SIZE(bdfs)];
	u64 end = now_ms() + RESETS_LIMIT_MS;
	struct member *m;
	int i, round;

	for (i = 0; i < ARRAY_SIZE(views); i++) {
		m = &self->members[i / 2];
		views[i].member = m;
		views[i].vaddr = i % 2 ? m->lent : m->bar;
		repeater_start(&views[i].repeater, view_once, &views[i]);
	}

	for (round = 0; round < MAX_RESETS && now_ms() < end; round++) {
		views_wait(views, ARRAY_SIZE(views));
		EXPECT_EQ(0, __vfio_pci_device_hot_reset(ASKED->device));
	}
	views_wait(views, ARRAY_SIZE(views));

	for (i = 0; i < ARRAY_SIZE(views); i++) {
		repeater_stop(&views[i].repeater);
		EXPECT_EQ(0, views[i].repeater.nr_failed);
	}
	EXPECT_TRUE(has_state(ASKED, "ok"));
	EXPECT_TRUE(has_state(OTHER, "ok"));
}

static bool touch_new_map(void *arg)
{
	struct member *m = arg;
	void *vaddr;
	bool ok;

	vaddr = dmabuf_map(m->fd, 0, m->page_size);
	ok = reads(m, vaddr, 0);
	dmabuf_unmap(vaddr, m->page_size);
	return ok;
}

/* Faults of those who have nothing but a page of another device delay no reset. */
TEST_F(vfio_pci_hot_reset_set, storm)
{
	u64 end = now_ms() + RESETS_LIMIT_MS;
	struct repeater storms[2];
	int i, round;

	for (i = 0; i < ARRAY_SIZE(storms); i++)
		repeater_start(&storms[i], touch_new_map, OTHER);

	for (round = 0; round < MAX_RESETS && now_ms() < end; round++) {
		for (i = 0; i < ARRAY_SIZE(storms); i++)
			repeater_wait(&storms[i]);
		EXPECT_EQ(0, __vfio_pci_device_hot_reset(ASKED->device));
	}

	for (i = 0; i < ARRAY_SIZE(storms); i++) {
		repeater_stop(&storms[i]);
		EXPECT_EQ(0, storms[i].nr_failed);
	}
}

/* A reset by another device switches no memory on that its user has switched off. */
TEST_F(vfio_pci_hot_reset_set, memory_off)
{
	u16 command = vfio_pci_config_readw(OTHER->device, PCI_COMMAND);
	struct member *m = OTHER;

	vfio_pci_config_writew(m->device, PCI_COMMAND, command & ~PCI_COMMAND_MEMORY);
	EXPECT_TRUE(reads(m, m->bar, -EFAULT));
	EXPECT_TRUE(reads(m, m->lent, -EFAULT));

	EXPECT_EQ(0, __vfio_pci_device_hot_reset(ASKED->device));
	EXPECT_EQ(0, vfio_pci_config_readw(m->device, PCI_COMMAND) & PCI_COMMAND_MEMORY);
	EXPECT_TRUE(has_state(m, "revoked temporarily"));
	EXPECT_TRUE(reads(m, m->bar, -EFAULT));
	EXPECT_TRUE(reads(m, m->lent, -EFAULT));
	EXPECT_TRUE(has_state(ASKED, "ok"));
	EXPECT_TRUE(reads(ASKED, ASKED->bar, 0));
	EXPECT_TRUE(reads(ASKED, ASKED->lent, 0));

	vfio_pci_config_writew(m->device, PCI_COMMAND, command);
	EXPECT_TRUE(has_state(m, "ok"));
	EXPECT_TRUE(reads(m, m->bar, 0));
	EXPECT_TRUE(reads(m, m->lent, 0));
}

/* One wakes a device up, as a reset by its own user does. */
TEST_F(vfio_pci_hot_reset_set, d3hot)
{
	struct member *m = OTHER;
	int r;

	r = __vfio_pci_d3hot_entry(m->device);
	if (r == -EOPNOTSUPP)
		SKIP(return, "%s has no power management", m->device->bdf);
	ASSERT_EQ(0, r);
	EXPECT_TRUE(reads(m, m->bar, -EFAULT));
	EXPECT_TRUE(reads(m, m->lent, -EFAULT));

	EXPECT_EQ(0, __vfio_pci_device_hot_reset(ASKED->device));
	EXPECT_TRUE(has_state(m, "ok"));
	EXPECT_TRUE(reads(m, m->bar, 0));
	EXPECT_TRUE(reads(m, m->lent, 0));
	EXPECT_TRUE(reads(ASKED, ASKED->lent, 0));
}

/* What was lent of a device that has been closed since does not come back by it. */
TEST_F(vfio_pci_hot_reset_set, closed)
{
	struct member *m = OTHER, old = *m;
	void *vaddr;

	/* It would not be ours to reset. */
	if (sysfs_iommu_group_get(bdfs[0]) != sysfs_iommu_group_get(bdfs[1]))
		SKIP(return, "Each has an IOMMU group of its own");

	vfio_pci_device_close(m->device);
	EXPECT_TRUE(reads(&old, old.lent, -EFAULT));

	EXPECT_EQ(0, __vfio_pci_device_hot_reset(ASKED->device));
	EXPECT_TRUE(has_state(&old, "revoked permanently"));
	EXPECT_EQ(-ENODEV, import(self->iommu, &old));
	EXPECT_TRUE(reads(&old, old.lent, -EFAULT));
	EXPECT_EQ(-ENODEV, __dmabuf_map(old.fd, 0, old.page_size, PROT_READ, &vaddr));
	EXPECT_TRUE(has_state(ASKED, "ok"));
	EXPECT_TRUE(reads(ASKED, ASKED->bar, 0));
	EXPECT_TRUE(reads(ASKED, ASKED->lent, 0));

	/* Nor when it is open again, while what is lent from then on does. */
	vfio_pci_device_reopen(m->device);
	member_lend(m);
	mmio_write32(m->lent, m->value);
	EXPECT_EQ(0, __vfio_pci_device_hot_reset(ASKED->device));
	EXPECT_TRUE(has_state(m, "ok"));
	EXPECT_TRUE(reads(m, m->lent, 0));
	EXPECT_TRUE(reads(&old, old.lent, -EFAULT));
	EXPECT_EQ(-ENODEV, __dmabuf_map(old.fd, 0, old.page_size, PROT_READ, &vaddr));
	member_take_back(&old);
}

/* What was revoked stays so, whoever resets the device. */
TEST_F(vfio_pci_hot_reset_set, revoked)
{
	struct member *m = OTHER;

	if (!vfio_pci_has_feature(m->device, VFIO_DEVICE_FEATURE_SET |
					     VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE))
		SKIP(return, "The kernel cannot revoke DMABUFs for good");

	vfio_pci_dmabuf_revoke(m->device, m->fd);
	EXPECT_EQ(0, __vfio_pci_device_hot_reset(ASKED->device));
	EXPECT_TRUE(has_state(m, "revoked permanently"));
	EXPECT_EQ(-ENODEV, import(self->iommu, m));
	EXPECT_TRUE(reads(m, m->lent, -EFAULT));
	EXPECT_TRUE(reads(m, m->bar, 0));
	EXPECT_TRUE(reads(ASKED, ASKED->lent, 0));
}

int main(int argc, char *argv[])
{
	int nr_bdfs, i;
	char **args;

	args = vfio_selftests_get_bdfs(&argc, argv, &nr_bdfs);
	if (nr_bdfs != ARRAY_SIZE(bdfs)) {
		fprintf(stderr, "Two devices that are reset together are needed, skipping.\n");
		return KSFT_SKIP;
	}

	for (i = 0; i < nr_bdfs; i++)
		bdfs[i] = args[i];
	return test_harness_run(argc, argv);
}
