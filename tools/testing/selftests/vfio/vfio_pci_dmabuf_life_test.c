// SPDX-License-Identifier: GPL-2.0-only
/*
 * Test the end of the device that DMABUFs of BARs lead to: that it closes, is
 * unbound from its driver or removed whatever others do with what they were
 * lent, that they are cut off, and that the device works again.
 *
 * Leaves the device bound to vfio-pci.
 *
 * Hot unplug needs somebody at the device, or outside of the VM. If there are
 * commands for that in $VFIO_SELFTESTS_UNPLUG and $VFIO_SELFTESTS_PLUG it is
 * tested as well. They need not wait for the kernel.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>

#include <linux/kernel.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "kselftest_harness.h"

/*
 * How long a hot unplug may take. It begins with the 5 s in which whoever has pushed
 * the button may think better of it.
 */
#define UNPLUG_LIMIT_MS	20000

/* How long the device may take to be there again, and the command for that. */
#define PLUG_LIMIT_MS	20000

/* For all that the janitor is asked for at once, if each takes that long. */
#define JANITOR_TIMEOUT_S	60

/* A test of a device that comes to its end, and to a new beginning. */
#define END_TEST_TIMEOUT_S	180

/* Rounds of the test that depends on who is first, and DMABUFs in each. */
#define STORM_ROUNDS	5
#define STORM_DMABUFS	32

#define UNPLUG		"VFIO_SELFTESTS_UNPLUG"
#define PLUG		"VFIO_SELFTESTS_PLUG"

static const char *device_bdf;

/*
 * The janitor is a subordinate that acts on the device through sysfs, for which
 * it may not have inherited it.
 */
enum janitor_operation {
	JANITOR_UNBIND,
	JANITOR_REMOVE,
	JANITOR_UNPLUG,
	JANITOR_RESTORE,
};

static void device_wait(bool exists, u64 limit_ms)
{
	u64 end = now_ms() + limit_ms;

	while (sysfs_device_exists(device_bdf) != exists && now_ms() < end)
		usleep(1000);
	VFIO_ASSERT_EQ(sysfs_device_exists(device_bdf), exists);
}

/* The former device may not have gone entirely yet. */
static void device_plug(const char *command)
{
	u64 end = now_ms() + PLUG_LIMIT_MS;

	while (system(command) && now_ms() < end)
		usleep(100 * 1000);
	device_wait(true, PLUG_LIMIT_MS);

	/* Drivers may have it later than sysfs. A rescan waits until plugging is over. */
	sysfs_bus_rescan();
}

static void device_restore(void)
{
	const char *plug = getenv(PLUG);
	char *driver;

	if (!sysfs_device_exists(device_bdf))
		sysfs_bus_rescan();
	if (!sysfs_device_exists(device_bdf) && plug)
		device_plug(plug);

	driver = sysfs_driver_get(device_bdf);
	if (!driver)
		sysfs_driver_bind(device_bdf, "vfio-pci");
	free(driver);
}

static int janitor(int fd, u64 size, u32 value)
{
	switch ((enum janitor_operation)value) {
	case JANITOR_UNBIND:
		sysfs_driver_unbind(device_bdf);
		break;
	case JANITOR_REMOVE:
		sysfs_device_remove(device_bdf);
		break;
	case JANITOR_UNPLUG:
		VFIO_ASSERT_EQ(system(getenv(UNPLUG)), 0);
		device_wait(false, UNPLUG_LIMIT_MS);
		break;
	case JANITOR_RESTORE:
		device_restore();
		break;
	}

	return 0;
}

/* What all tests work with. */
struct setup {
	const char *iommu_mode;
	long page_size;

	/* As long as the device is open. */
	struct iommu *iommu;
	struct vfio_pci_device *device;
	int index;
	void *bar;

	/* An eventfd, by which the kernel asks for the device. */
	int request;

	struct subordinate janitor;

	/* What it has been lent, it has mapped, imported, and opened by O_PATH. */
	struct subordinate sub;
	int fd;
};

FIXTURE(vfio_pci_dmabuf_life) {
	struct setup s;
};

FIXTURE_VARIANT(vfio_pci_dmabuf_life) {
	const char *iommu_mode;
};

/* Two ways to open the device are two ways for it to be closed. */
FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_life, group) {
	.iommu_mode = MODE_VFIO_TYPE1V2_IOMMU,
};

FIXTURE_VARIANT_ADD(vfio_pci_dmabuf_life, cdev) {
	.iommu_mode = MODE_IOMMUFD,
};

static void device_open(struct setup *s)
{
	s->iommu = iommu_init(s->iommu_mode);
	s->device = vfio_pci_device_init(device_bdf, s->iommu);
	s->index = vfio_pci_ram_bar(s->device);
	if (s->index >= 0)
		s->bar = s->device->bars[s->index].vaddr;
}

static void device_close(struct setup *s)
{
	vfio_pci_device_cleanup(s->device);
	iommu_cleanup(s->iommu);
	s->device = NULL;
}

/* Have the kernel signal the eventfd when it wants the device back. */
static void device_request_enable(struct setup *s)
{
	struct {
		struct vfio_irq_set irq;
		int fd;
	} __packed set = {
		.irq = {
			.argsz = sizeof(set),
			.flags = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD,
			.index = VFIO_PCI_REQ_IRQ_INDEX,
			.count = 1,
		},
		.fd = s->request,
	};

	ioctl_assert(s->device->fd, VFIO_DEVICE_SET_IRQS, &set);
}

FIXTURE_SETUP(vfio_pci_dmabuf_life)
{
	struct setup *s = &self->s;

	s->iommu_mode = variant->iommu_mode;
	s->page_size = getpagesize();

	/* A test that ends at once, in the middle of it all, leaves no device. */
	subordinate_start(&s->janitor);
	subordinate_set_timeout(&s->janitor, JANITOR_TIMEOUT_S);
	ASSERT_EQ(0, subordinate_ask(&s->janitor, SUBORDINATE_OTHER, 0, JANITOR_RESTORE));

	device_open(s);

	if (s->index < 0)
		SKIP(return, "The device has no BAR with RAM");
	if (!vfio_pci_has_feature(s->device, VFIO_DEVICE_FEATURE_GET |
					     VFIO_DEVICE_FEATURE_DMA_BUF) ||
	    !vfio_pci_has_dmabuf_mmap(s->device, s->index))
		SKIP(return, "The kernel does not map exported DMABUFs");

	device_close(s);

	s->request = eventfd(0, EFD_CLOEXEC);
	ASSERT_GE(s->request, 0);
	subordinate_start(&s->sub);
}

FIXTURE_TEARDOWN(vfio_pci_dmabuf_life)
{
	struct setup *s = &self->s;

	if (s->device)
		device_close(s);
	subordinate_end(&s->sub);
	subordinate_ask(&s->janitor, SUBORDINATE_OTHER, 0, JANITOR_RESTORE);
	subordinate_end(&s->janitor);
	VFIO_ASSERT_EQ(close(s->request), 0);
}

static void sub_has_all(struct setup *s)
{
	u32 value;

	subordinate_give(&s->sub, s->fd);
	VFIO_ASSERT_EQ(subordinate_ask(&s->sub, SUBORDINATE_MAP, s->page_size, 0), 0);
	VFIO_ASSERT_EQ(subordinate_ask(&s->sub, SUBORDINATE_PIN, 0, 0), 0);
	VFIO_ASSERT_EQ(subordinate_ask(&s->sub, SUBORDINATE_IMPORT, s->page_size, 0), 0);

	mmio_write32(s->bar, 0x11fe0001);
	VFIO_ASSERT_EQ(subordinate_read(&s->sub, &value), 0);
	VFIO_ASSERT_EQ(value, 0x11fe0001);
}

/* Open the device, export a page of it, and lend that. */
static void lend(struct setup *s)
{
	device_open(s);
	device_request_enable(s);
	s->fd = vfio_pci_dmabuf_export_range(s->device, s->index, 0, s->page_size);
	sub_has_all(s);
}

/* The subordinate still has everything, and reaches nothing by it. */
static bool sub_is_cut_off(struct setup *s)
{
	u32 value;

	return subordinate_read(&s->sub, &value) == -EFAULT &&
	       subordinate_ask(&s->sub, SUBORDINATE_WRITE, 0, 0x0bad) == -EFAULT &&
	       subordinate_ask(&s->sub, SUBORDINATE_MAP, s->page_size, 0) == -ENODEV;
}

static bool sub_cannot_import(struct setup *s)
{
	VFIO_ASSERT_EQ(subordinate_ask(&s->sub, SUBORDINATE_UNIMPORT, 0, 0), 0);
	return subordinate_ask(&s->sub, SUBORDINATE_IMPORT, s->page_size, 0) == -ENODEV;
}

/* How long it may take until the kernel asks for the device, and to end once it has it. */
static u64 end_limit_ms(enum janitor_operation operation)
{
	return operation == JANITOR_UNPLUG ? UNPLUG_LIMIT_MS : PROMPT_MS;
}

static bool requested(struct setup *s, enum janitor_operation operation)
{
	struct pollfd pollfd = { .fd = s->request, .events = POLLIN };

	return poll(&pollfd, 1, end_limit_ms(operation)) == 1;
}

/* Have the device end, which nobody has open. */
static void end_now(struct __test_metadata *_metadata, struct setup *s,
		    enum janitor_operation operation)
{
	u64 start = now_ms();

	ASSERT_EQ(0, subordinate_ask(&s->janitor, SUBORDINATE_OTHER, 0, operation));
	EXPECT_LT(now_ms() - start, end_limit_ms(operation));
}

/*
 * The device works, in the hands of a new owner, and nothing that is left over
 * from the last one leads to it.
 */
static bool device_works_anew(struct setup *s, bool cut_off)
{
	void *vaddr;
	bool works;
	int fd;

	device_open(s);
	fd = vfio_pci_dmabuf_export_range(s->device, s->index, 0, s->page_size);
	vaddr = dmabuf_map(fd, 0, s->page_size);
	mmio_write32(s->bar, 0x2e3a0001);
	works = mmio_read32(vaddr) == 0x2e3a0001;
	if (cut_off)
		works = works && sub_is_cut_off(s) && mmio_read32(s->bar) == 0x2e3a0001;

	VFIO_ASSERT_EQ(close(fd), 0);
	dmabuf_unmap(vaddr, s->page_size);
	device_close(s);
	return works;
}

enum party {
	DEVICE,
	DESCRIPTORS,
	/* Both refer to the file, as a descriptor does. */
	MAP_AND_IMPORT,
	PIN,
	NR_PARTIES,
};

static void party_leave(struct setup *s, enum party party)
{
	switch (party) {
	case DEVICE:
		device_close(s);
		break;
	case DESCRIPTORS:
		VFIO_ASSERT_EQ(close(s->fd), 0);
		VFIO_ASSERT_EQ(subordinate_ask(&s->sub, SUBORDINATE_CLOSE, 0, 0), 0);
		break;
	case MAP_AND_IMPORT:
		VFIO_ASSERT_EQ(subordinate_ask(&s->sub, SUBORDINATE_UNIMPORT, 0, 0), 0);
		VFIO_ASSERT_EQ(subordinate_ask(&s->sub, SUBORDINATE_UNMAP, 0, 0), 0);
		break;
	case PIN:
		VFIO_ASSERT_EQ(subordinate_ask(&s->sub, SUBORDINATE_UNPIN, 0, 0), 0);
		break;
	default:
		VFIO_FAIL("No party: %d\n", party);
	}
}

/* What the subordinate has left works if and only if the device is there. */
static bool sub_is_consistent(struct setup *s, const bool *gone)
{
	u32 value;

	if (!gone[MAP_AND_IMPORT] &&
	    subordinate_read(&s->sub, &value) != (gone[DEVICE] ? -EFAULT : 0))
		return false;

	if (!gone[DESCRIPTORS] && gone[DEVICE])
		return subordinate_ask(&s->sub, SUBORDINATE_MAP, s->page_size, 0) == -ENODEV;

	return true;
}

static void swap_parties(enum party *a, enum party *b)
{
	enum party other = *a;

	*a = *b;
	*b = other;
}

static bool next_permutation(enum party *order)
{
	int i, j;

	for (i = NR_PARTIES - 1; i > 0 && order[i - 1] > order[i]; i--)
		continue;
	if (!i)
		return false;

	for (j = NR_PARTIES - 1; order[j] < order[i - 1]; j--)
		continue;
	swap_parties(&order[i - 1], &order[j]);

	for (j = NR_PARTIES - 1; i < j; i++, j--)
		swap_parties(&order[i], &order[j]);
	return true;
}

TEST_F_TIMEOUT(vfio_pci_dmabuf_life, close_orders, 60)
{
	enum party order[] = { DEVICE, DESCRIPTORS, MAP_AND_IMPORT, PIN };
	struct setup *s = &self->s;
	long nr_dmabufs = dmabuf_count();
	int i;

	if (nr_dmabufs < 0)
		TH_LOG("No debugfs: leaks are not looked at");

	do {
		bool gone[NR_PARTIES] = {};

		lend(s);
		for (i = 0; i < NR_PARTIES; i++) {
			party_leave(s, order[i]);
			gone[order[i]] = true;
			ASSERT_TRUE(sub_is_consistent(s, gone)) {
				TH_LOG("Order %d %d %d %d, after step %d", order[0],
				       order[1], order[2], order[3], i);
			}
		}
		ASSERT_EQ(nr_dmabufs, dmabuf_count());
	} while (next_permutation(order));
}

static void end_open_device(struct __test_metadata *_metadata, struct setup *s,
			    enum janitor_operation operation)
{
	u64 start;
	u32 value;

	lend(s);

	/* It is up to the owner, nothing changes until he lets go. */
	subordinate_ask_only(&s->janitor, SUBORDINATE_OTHER, 0, operation);
	ASSERT_TRUE(requested(s, operation));
	EXPECT_EQ(0, subordinate_read(&s->sub, &value));
	EXPECT_EQ(0x11fe0001, value);

	start = now_ms();
	device_close(s);
	EXPECT_TRUE(sub_is_cut_off(s));
	ASSERT_EQ(0, subordinate_answer(&s->janitor, NULL));
	EXPECT_LT(now_ms() - start, end_limit_ms(operation));

	EXPECT_TRUE(sub_is_cut_off(s));
	ASSERT_EQ(0, subordinate_ask(&s->janitor, SUBORDINATE_OTHER, 0, JANITOR_RESTORE));
	EXPECT_TRUE(device_works_anew(s, true));
	EXPECT_TRUE(sub_cannot_import(s));
	ASSERT_EQ(0, close(s->fd));
}

static void end_closed_device(struct __test_metadata *_metadata, struct setup *s,
			      enum janitor_operation operation)
{
	lend(s);
	device_close(s);
	end_now(_metadata, s, operation);

	EXPECT_TRUE(sub_is_cut_off(s));
	EXPECT_TRUE(sub_cannot_import(s));
	ASSERT_EQ(0, subordinate_ask(&s->janitor, SUBORDINATE_OTHER, 0, JANITOR_RESTORE));
	EXPECT_TRUE(device_works_anew(s, true));
	ASSERT_EQ(0, close(s->fd));
}

TEST_F_TIMEOUT(vfio_pci_dmabuf_life, unbind_open, END_TEST_TIMEOUT_S)
{
	end_open_device(_metadata, &self->s, JANITOR_UNBIND);
}

TEST_F_TIMEOUT(vfio_pci_dmabuf_life, unbind_closed, END_TEST_TIMEOUT_S)
{
	end_closed_device(_metadata, &self->s, JANITOR_UNBIND);
}

TEST_F_TIMEOUT(vfio_pci_dmabuf_life, remove_open, END_TEST_TIMEOUT_S)
{
	end_open_device(_metadata, &self->s, JANITOR_REMOVE);
}

TEST_F_TIMEOUT(vfio_pci_dmabuf_life, remove_closed, END_TEST_TIMEOUT_S)
{
	end_closed_device(_metadata, &self->s, JANITOR_REMOVE);
}

TEST_F_TIMEOUT(vfio_pci_dmabuf_life, unplug_open, END_TEST_TIMEOUT_S)
{
	if (!getenv(UNPLUG) || !getenv(PLUG))
		SKIP(return, "No commands in $" UNPLUG " and $" PLUG);

	end_open_device(_metadata, &self->s, JANITOR_UNPLUG);
}

TEST_F_TIMEOUT(vfio_pci_dmabuf_life, unplug_closed, END_TEST_TIMEOUT_S)
{
	if (!getenv(UNPLUG) || !getenv(PLUG))
		SKIP(return, "No commands in $" UNPLUG " and $" PLUG);

	end_closed_device(_metadata, &self->s, JANITOR_UNPLUG);
}

/*
 * Somebody who was lent a DMABUF can hold it by no more than a path to it. That
 * must be no way to hold the device.
 */
TEST_F_TIMEOUT(vfio_pci_dmabuf_life, unbind_o_path, END_TEST_TIMEOUT_S)
{
	struct setup *s = &self->s;

	lend(s);
	party_leave(s, MAP_AND_IMPORT);
	party_leave(s, DESCRIPTORS);

	/* All of these walk over the buffers of the device. */
	vfio_pci_cmd_clear(s->device, PCI_COMMAND_MEMORY);
	vfio_pci_cmd_set(s->device, PCI_COMMAND_MEMORY);
	if (s->device->info.flags & VFIO_DEVICE_FLAGS_RESET)
		vfio_pci_device_reset(s->device);
	party_leave(s, DEVICE);

	end_now(_metadata, s, JANITOR_UNBIND);
	ASSERT_EQ(0, subordinate_ask(&s->janitor, SUBORDINATE_OTHER, 0, JANITOR_RESTORE));
	EXPECT_TRUE(device_works_anew(s, false));

	party_leave(s, PIN);
	EXPECT_TRUE(device_works_anew(s, false));
}

/* The last paths go away at the same time as the device. */
TEST_F_TIMEOUT(vfio_pci_dmabuf_life, o_path_storm, END_TEST_TIMEOUT_S)
{
	struct setup *s = &self->s;
	long nr_dmabufs = dmabuf_count();
	int i, j;

	if (nr_dmabufs < 0)
		TH_LOG("No debugfs: leaks are not looked at");

	for (i = 0; i < STORM_ROUNDS; i++) {
		device_open(s);
		for (j = 0; j < STORM_DMABUFS; j++) {
			s->fd = vfio_pci_dmabuf_export_range(s->device, s->index,
							     j * s->page_size, s->page_size);
			subordinate_give(&s->sub, s->fd);
			ASSERT_EQ(0, subordinate_ask(&s->sub, SUBORDINATE_PIN, 0, 0));
			ASSERT_EQ(0, subordinate_ask(&s->sub, SUBORDINATE_CLOSE, 0, 0));
			ASSERT_EQ(0, close(s->fd));
		}

		subordinate_ask_only(&s->sub, SUBORDINATE_UNPIN, 0, 0);
		device_close(s);
		ASSERT_EQ(0, subordinate_answer(&s->sub, NULL));
		ASSERT_EQ(nr_dmabufs, dmabuf_count());
	}

	end_now(_metadata, s, JANITOR_UNBIND);
	ASSERT_EQ(0, subordinate_ask(&s->janitor, SUBORDINATE_OTHER, 0, JANITOR_RESTORE));
	EXPECT_TRUE(device_works_anew(s, false));
}

int main(int argc, char *argv[])
{
	/* What a subordinate runs has no BDF among its arguments. */
	if (argc == 2 && !strcmp(argv[1], SUBORDINATE_ARG)) {
		device_bdf = getenv("VFIO_SELFTESTS_BDF");
		return subordinate_main(janitor);
	}

	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	setenv("VFIO_SELFTESTS_BDF", device_bdf, 1);
	return test_harness_run(argc, argv);
}
