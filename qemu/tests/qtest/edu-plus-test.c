/*
 * QTest of the edu-plus device
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "libqos/libqos-pc.h"
#include "hw/misc/edu-plus.h"
#include "hw/pci-host/q35.h"
#include "hw/pci/pci.h"
#include "hw/pci/pci_ids.h"
#include "hw/pci/pci_regs.h"
#include "qobject/qdict.h"

#define SLOT_A                  4
#define SLOT_B                  5

/* Most tests do with little RAM; it is more than a step of the copy engine */
#define RAM_SIZE                (4 * MiB)
#define STEP                    EDU_PLUS_COPY_STEP_SIZE

/* In the guest's RAM, which ends at GUEST_RAM */
#define GUEST_RAM               (256 * MiB)
#define MSI_ADDR                0x01000000
#define DATA_ADDR               0x02000000
#define BACK_ADDR               0x03000000

/* In the PCI hole, where no test maps a BAR */
#define NOBODY_ADDR             0xd0000000ULL

typedef struct Device {
    QTestState *qts;
    QPCIDevice *pci;
    QPCIBar regs;
    QPCIBar ram;
    QPCIBar frames;
    QPCIBar msix;
} Device;

/* Machine and devices */

static QOSState *start(const char *devices)
{
    return qtest_pc_boot("-machine q35 -nodefaults -m %" PRIu64 "M %s",
                         (uint64_t)GUEST_RAM / MiB, devices);
}

#define DEVICE_A "-device edu-plus,id=a,addr=4.0,ram-size=4M "
#define DEVICE_B "-device edu-plus,id=b,addr=5.0,ram-size=4M "

static QPCIDevice *find(QOSState *qs, int slot)
{
    QPCIDevice *pci = qpci_device_find(qs->pcibus, QPCI_DEVFN(slot, 0));

    g_assert_nonnull(pci);
    g_assert_cmphex(qpci_config_readw(pci, PCI_DEVICE_ID), ==,
                    EDU_PLUS_DEVICE_ID);
    g_assert_cmphex(qpci_config_readb(pci, PCI_REVISION_ID), ==,
                    EDU_PLUS_REVISION);
    return pci;
}

static void open_device(Device *d, QOSState *qs, int slot)
{
    d->qts = qs->qts;
    d->pci = find(qs, slot);
    d->regs = qpci_iomap(d->pci, EDU_PLUS_BAR_REGS, NULL);
    d->ram = qpci_iomap(d->pci, EDU_PLUS_BAR_RAM, NULL);
    d->frames = qpci_iomap(d->pci, EDU_PLUS_BAR_FRAMES, NULL);
    d->msix = qpci_iomap(d->pci, EDU_PLUS_BAR_MSIX, NULL);
    qpci_device_enable(d->pci);
}

/* Gives configuration space back what a reset took */
static void reopen_device(Device *d)
{
    qpci_config_writel(d->pci, PCI_BASE_ADDRESS_0, d->regs.addr);
    qpci_config_writel(d->pci, PCI_BASE_ADDRESS_1, d->ram.addr);
    qpci_config_writel(d->pci, PCI_BASE_ADDRESS_2, 0);
    qpci_config_writel(d->pci, PCI_BASE_ADDRESS_3, d->frames.addr);
    qpci_config_writel(d->pci, PCI_BASE_ADDRESS_4, d->msix.addr);
    qpci_device_enable(d->pci);
}

static QOSState *start_one(Device *a)
{
    QOSState *qs = start(DEVICE_A);

    open_device(a, qs, SLOT_A);
    return qs;
}

static QOSState *start_two(Device *a, Device *b)
{
    QOSState *qs = start(DEVICE_A DEVICE_B);

    open_device(a, qs, SLOT_A);
    open_device(b, qs, SLOT_B);
    return qs;
}

static void end_one(QOSState *qs, Device *a)
{
    g_free(a->pci);
    qtest_shutdown(qs);
}

static void end_two(QOSState *qs, Device *a, Device *b)
{
    g_free(b->pci);
    end_one(qs, a);
}

/* Accesses */

static uint32_t rd32(Device *d, uint64_t reg)
{
    return qpci_io_readl(d->pci, d->regs, reg);
}

static uint64_t rd64(Device *d, uint64_t reg)
{
    return qpci_io_readq(d->pci, d->regs, reg);
}

static void wr32(Device *d, uint64_t reg, uint32_t val)
{
    qpci_io_writel(d->pci, d->regs, reg, val);
}

static void wr64(Device *d, uint64_t reg, uint64_t val)
{
    qpci_io_writeq(d->pci, d->regs, reg, val);
}

static uint64_t frame_off(uint32_t n, uint64_t reg)
{
    return n * (uint64_t)EDU_PLUS_FRAME_SIZE + reg;
}

static uint32_t frd32(Device *d, uint32_t n, uint64_t reg)
{
    return qpci_io_readl(d->pci, d->frames, frame_off(n, reg));
}

static uint64_t frd64(Device *d, uint32_t n, uint64_t reg)
{
    return qpci_io_readq(d->pci, d->frames, frame_off(n, reg));
}

static void fwr32(Device *d, uint32_t n, uint64_t reg, uint32_t val)
{
    qpci_io_writel(d->pci, d->frames, frame_off(n, reg), val);
}

static void fwr64(Device *d, uint32_t n, uint64_t reg, uint64_t val)
{
    qpci_io_writeq(d->pci, d->frames, frame_off(n, reg), val);
}

static uint8_t cap_of(Device *d, uint8_t id)
{
    uint8_t cap = qpci_find_capability(d->pci, id, 0);

    g_assert_cmphex(cap, !=, 0);
    return cap;
}

static bool intx(Device *d)
{
    return qpci_config_readw(d->pci, PCI_STATUS) & PCI_STATUS_INTERRUPT;
}

static uint8_t *pattern(size_t len, uint32_t seed)
{
    uint8_t *buf = g_malloc(len);

    for (size_t i = 0; i < len; i++) {
        seed = seed * 1664525 + 1013904223;
        buf[i] = seed >> 24;
    }
    return buf;
}

static uint8_t *fill(QTestState *qts, uint64_t addr, size_t len, uint32_t seed)
{
    uint8_t *buf = pattern(len, seed);

    qtest_bufwrite(qts, addr, buf, len);
    return buf;
}

static void check_mem(QTestState *qts, uint64_t addr, const uint8_t *want,
                      size_t len)
{
    g_autofree uint8_t *got = g_malloc(len);

    qtest_bufread(qts, addr, got, len);
    g_assert_true(memcmp(got, want, len) == 0);
}

static void check_zero(QTestState *qts, uint64_t addr, size_t len)
{
    g_autofree uint8_t *zero = g_malloc0(len);

    check_mem(qts, addr, zero, len);
}

/*
 * Of much memory the test looks only at what is around the steps of the copy
 * engine: a transfer of it all takes seconds.
 */
#define WINDOW                  (16 * KiB)

static size_t window(size_t step, size_t len, size_t *start)
{
    *start = step > WINDOW ? step - WINDOW : 0;
    return MIN(step + WINDOW, len) - *start;
}

static uint8_t *fill_steps(QTestState *qts, uint64_t addr, size_t len,
                           uint32_t seed)
{
    uint8_t *buf = pattern(len, seed);
    size_t start;

    for (size_t step = 0; step <= len; step += STEP) {
        size_t n = window(step, len, &start);

        qtest_bufwrite(qts, addr + start, buf + start, n);
    }
    return buf;
}

static void check_mem_steps(QTestState *qts, uint64_t addr,
                            const uint8_t *want, size_t len)
{
    size_t start;

    for (size_t step = 0; step <= len; step += STEP) {
        size_t n = window(step, len, &start);

        check_mem(qts, addr + start, want + start, n);
    }
}

static void check_zero_steps(QTestState *qts, uint64_t addr, size_t len)
{
    g_autofree uint8_t *zero = g_malloc0(len);

    check_mem_steps(qts, addr, zero, len);
}

/* Configuration space */

static void test_config(void)
{
    Device a;
    QOSState *qs = start_one(&a);
    uint8_t cap;

    g_assert_cmphex(qpci_config_readw(a.pci, PCI_VENDOR_ID), ==, 0x1234);
    g_assert_cmphex(qpci_config_readw(a.pci, PCI_DEVICE_ID), ==, 0x11e8);
    g_assert_cmphex(qpci_config_readb(a.pci, PCI_REVISION_ID), ==, 0x20);
    g_assert_cmphex(qpci_config_readw(a.pci, PCI_CLASS_DEVICE), ==,
                    PCI_CLASS_OTHERS);
    g_assert_cmphex(qpci_config_readb(a.pci, PCI_INTERRUPT_PIN), ==, 1);

    cap = cap_of(&a, PCI_CAP_ID_EXP);
    g_assert_cmphex(qpci_config_readl(a.pci, cap + PCI_EXP_DEVCAP) &
                    PCI_EXP_DEVCAP_FLR, ==, PCI_EXP_DEVCAP_FLR);

    cap = cap_of(&a, PCI_CAP_ID_PM);
    g_assert_cmphex(qpci_config_readw(a.pci, cap + PCI_PM_PMC), ==,
                    PCI_PM_CAP_VER_1_2);
    g_assert_cmphex(qpci_config_readw(a.pci, cap + PCI_PM_CTRL), ==,
                    PCI_PM_CTRL_NO_SOFT_RESET);

    cap = cap_of(&a, PCI_CAP_ID_MSI);
    g_assert_cmphex(qpci_config_readw(a.pci, cap + PCI_MSI_FLAGS), ==,
                    PCI_MSI_FLAGS_64BIT);

    cap = cap_of(&a, PCI_CAP_ID_MSIX);
    g_assert_cmphex(qpci_config_readw(a.pci, cap + PCI_MSIX_FLAGS), ==,
                    EDU_PLUS_MSIX_VECTORS_DEFAULT - 1);
    g_assert_cmphex(qpci_config_readl(a.pci, cap + PCI_MSIX_TABLE) &
                    PCI_MSIX_FLAGS_BIRMASK, ==, EDU_PLUS_BAR_MSIX);
    g_assert_cmphex(qpci_config_readl(a.pci, cap + PCI_MSIX_PBA) &
                    PCI_MSIX_FLAGS_BIRMASK, ==, EDU_PLUS_BAR_MSIX);

    end_one(qs, &a);
}

/* Behind a root port it is an endpoint, not a part of the root complex */
static void test_root_port(void)
{
    QOSState *qs = start("-device pcie-root-port,id=rp,addr=3.0 "
                         "-device edu-plus,bus=rp,ram-size=1M");
    QPCIDevice *rp = qpci_device_find(qs->pcibus, QPCI_DEVFN(3, 0));
    QPCIDevice *pci;
    uint8_t cap;

    qpci_config_writeb(rp, PCI_SECONDARY_BUS, 1);
    qpci_config_writeb(rp, PCI_SUBORDINATE_BUS, 1);
    pci = qpci_device_find(qs->pcibus, 1 << 8);
    g_assert_nonnull(pci);
    g_assert_cmphex(qpci_config_readb(pci, PCI_REVISION_ID), ==,
                    EDU_PLUS_REVISION);
    cap = qpci_find_capability(pci, PCI_CAP_ID_EXP, 0);
    g_assert_cmphex(cap, !=, 0);
    g_assert_cmphex(qpci_config_readw(pci, cap + PCI_EXP_FLAGS) &
                    PCI_EXP_FLAGS_TYPE, ==, PCI_EXP_TYPE_ENDPOINT << 4);

    g_free(pci);
    g_free(rp);
    qtest_shutdown(qs);
}

/* Size of a BAR as firmware finds it; 0 if it is not there */
static uint64_t bar_size(QPCIDevice *pci, int bar, uint32_t *type)
{
    int reg = PCI_BASE_ADDRESS_0 + bar * 4;
    uint64_t mask = 0xffffffff00000000;

    qpci_config_writel(pci, reg, UINT32_MAX);
    mask |= qpci_config_readl(pci, reg);
    if (!(uint32_t)mask) {
        return 0;
    }
    *type = mask & 0xf;
    if (*type & PCI_BASE_ADDRESS_MEM_TYPE_64) {
        qpci_config_writel(pci, reg + 4, UINT32_MAX);
        mask &= UINT32_MAX;
        mask |= (uint64_t)qpci_config_readl(pci, reg + 4) << 32;
    }
    return -(mask & ~0xfULL);
}

typedef struct BarCase {
    const char *params;
    uint64_t ram, frames_bar;
    uint32_t frames, vectors;
} BarCase;

static void check_bars(const BarCase *c)
{
    g_autofree char *args = g_strdup_printf("-device edu-plus,addr=4.0%s",
                                            c->params);
    QOSState *qs = start(args);
    QPCIDevice *pci = find(qs, SLOT_A);
    uint32_t type = 0;
    QPCIBar regs;
    uint8_t cap;

    g_assert_cmphex(bar_size(pci, 0, &type), ==, 1 * MiB);
    g_assert_cmphex(type, ==, PCI_BASE_ADDRESS_SPACE_MEMORY);
    g_assert_cmphex(bar_size(pci, 1, &type), ==, c->ram);
    if (c->ram) {
        g_assert_cmphex(type, ==, PCI_BASE_ADDRESS_SPACE_MEMORY |
                        PCI_BASE_ADDRESS_MEM_TYPE_64 |
                        PCI_BASE_ADDRESS_MEM_PREFETCH);
    } else {
        g_assert_cmphex(bar_size(pci, 2, &type), ==, 0);
    }
    g_assert_cmphex(bar_size(pci, 3, &type), ==, c->frames_bar);
    g_assert_cmphex(type, ==, PCI_BASE_ADDRESS_SPACE_MEMORY);
    g_assert_cmphex(bar_size(pci, 4, &type), ==, 4 * KiB);
    g_assert_cmphex(type, ==, PCI_BASE_ADDRESS_SPACE_MEMORY);
    g_assert_cmphex(bar_size(pci, 5, &type), ==, 0);

    cap = qpci_find_capability(pci, PCI_CAP_ID_MSIX, 0);
    g_assert_cmphex(cap, !=, 0);
    g_assert_cmphex(qpci_config_readw(pci, cap + PCI_MSIX_FLAGS) &
                    PCI_MSIX_FLAGS_QSIZE, ==, c->vectors - 1);

    regs = qpci_iomap(pci, EDU_PLUS_BAR_REGS, NULL);
    qpci_device_enable(pci);
    g_assert_cmphex(qpci_io_readq(pci, regs, EDU_PLUS_REG_RAM_SIZE), ==,
                    c->ram);
    g_assert_cmphex(qpci_io_readl(pci, regs, EDU_PLUS_REG_FRAMES), ==,
                    c->frames);
    g_assert_cmphex(qpci_io_readl(pci, regs, EDU_PLUS_REG_MSIX_VECTORS), ==,
                    c->vectors);

    g_free(pci);
    qtest_shutdown(qs);
}

static void test_bars(void)
{
    static const BarCase cases[] = {
        { "", 64 * MiB, 64 * KiB, 16, 4 },
        { ",ram-size=0", 0, 64 * KiB, 16, 4 },
        { ",ram-size=1M", 1 * MiB, 64 * KiB, 16, 4 },
        { ",ram-size=1G", 1 * GiB, 64 * KiB, 16, 4 },
        { ",ram-size=4G", 4 * GiB, 64 * KiB, 16, 4 },
        { ",frames=1", 64 * MiB, 4 * KiB, 1, 4 },
        { ",frames=17", 64 * MiB, 128 * KiB, 17, 4 },
        { ",frames=65536", 64 * MiB, 256 * MiB, 65536, 4 },
        { ",msix-vectors=1", 64 * MiB, 64 * KiB, 16, 1 },
        { ",msix-vectors=64", 64 * MiB, 64 * KiB, 16, 64 },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        check_bars(&cases[i]);
    }
}

static void test_bad_properties(void)
{
    static const struct {
        const char *args, *error;
    } cases[] = {
        { "'ram-size': 3145728", "ram-size" },
        { "'ram-size': 524288", "ram-size" },
        { "'ram-size': 1", "ram-size" },
        { "'ram-size': 137438953472", "ram-size" },
        { "'ram-size': 18446744073709551615", "ram-size" },
        { "'frames': 0", "frames" },
        { "'frames': 65537", "frames" },
        { "'frames': 4294967295", "frames" },
        { "'msix-vectors': 0", "msix-vectors" },
        { "'msix-vectors': 65", "msix-vectors" },
        { "'msix-vectors': 4294967295", "msix-vectors" },
        { "'no-such': 1", "no-such" },
    };
    QTestState *qts = qtest_init("-machine pc -nodefaults");

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *cmd = g_strdup_printf(
            "{ 'execute': 'device_add', 'arguments': { 'driver': 'edu-plus',"
            " 'id': 'a', 'addr': '4.0', %s } }", cases[i].args);
        QDict *error = qtest_qmp_assert_failure_ref(qts, cmd, NULL);

        g_assert_nonnull(strstr(qdict_get_str(error, "desc"),
                                cases[i].error));
        qobject_unref(error);
    }

    /* Nothing of them is left in the way of a good one */
    qtest_qmp_device_add(qts, TYPE_EDU_PLUS, "a",
                         "{'addr': '4.0', 'ram-size': 1048576}");
    qtest_quit(qts);
}

/* Registers */

typedef struct Register {
    uint32_t addr;
    unsigned size;
    uint64_t reset;
    uint64_t writable;
} Register;

/* All registers whose content does not depend on more than a write to them */
static const Register registers[] = {
    { EDU_PLUS_REG_ID, 4, 0x010000ed, 0 },
    { EDU_PLUS_REG_FACTORIAL, 4, 0, 0 },
    { EDU_PLUS_REG_STATUS, 4, 0, EDU_PLUS_STATUS_IRQFACT },
    { EDU_PLUS_REG_IRQ_STATUS, 4, 0, 0 },
    { EDU_PLUS_REG_DMA_SRC, 8, 0, UINT64_MAX },
    { EDU_PLUS_REG_DMA_DST, 8, 0, UINT64_MAX },
    { EDU_PLUS_REG_DMA_COUNT, 8, 0, UINT64_MAX },
    { EDU_PLUS_REG_PLUS_ID, 4, 0x2b756465, 0 },
    { EDU_PLUS_REG_VERSION, 4, 0x00010000, 0 },
    { EDU_PLUS_REG_RAM_SIZE, 8, RAM_SIZE, 0 },
    { EDU_PLUS_REG_FRAMES, 4, EDU_PLUS_FRAMES_DEFAULT, 0 },
    { EDU_PLUS_REG_MSIX_VECTORS, 4, EDU_PLUS_MSIX_VECTORS_DEFAULT, 0 },
    { EDU_PLUS_REG_COPY_SRC, 8, 0, UINT64_MAX },
    { EDU_PLUS_REG_COPY_DST, 8, 0, UINT64_MAX },
    { EDU_PLUS_REG_COPY_LEN, 8, 0, UINT64_MAX },
    { EDU_PLUS_REG_COPY_COUNT, 4, 1, UINT32_MAX },
    { EDU_PLUS_REG_COPY_STATUS, 4, 0, 0 },
    { EDU_PLUS_REG_COPY_DONE, 8, 0, 0 },
};

static uint64_t rd(Device *d, const Register *r)
{
    return r->size == 8 ? rd64(d, r->addr) : rd32(d, r->addr);
}

static void wr(Device *d, const Register *r, uint64_t val)
{
    if (r->size == 8) {
        wr64(d, r->addr, val);
    } else {
        wr32(d, r->addr, val);
    }
}

static void check_reset_values(Device *d)
{
    for (int i = 0; i < ARRAY_SIZE(registers); i++) {
        g_assert_cmphex(rd(d, &registers[i]), ==, registers[i].reset);
    }
    g_assert_cmphex(rd32(d, EDU_PLUS_REG_LIVENESS), ==, 0);
    g_assert_cmphex(rd64(d, EDU_PLUS_REG_DMA_CMD), ==, 0);
    g_assert_false(intx(d));

    for (uint32_t n = 0; n < EDU_PLUS_FRAMES_DEFAULT; n++) {
        g_assert_cmphex(frd32(d, n, EDU_PLUS_FRAME_ID), ==, 0x4d415246);
        g_assert_cmphex(frd32(d, n, EDU_PLUS_FRAME_INDEX), ==, n);
        g_assert_cmphex(frd32(d, n, EDU_PLUS_FRAME_SCRATCH), ==, 0);
        g_assert_cmphex(frd32(d, n, EDU_PLUS_FRAME_INVERT), ==, 0);
        g_assert_cmphex(frd32(d, n, EDU_PLUS_FRAME_DOORBELL), ==, 0);
        g_assert_cmphex(frd32(d, n, EDU_PLUS_FRAME_DOORBELL_COUNT), ==, 0);
        g_assert_cmphex(frd32(d, n, EDU_PLUS_FRAME_DOORBELL_LAST), ==, 0);
        g_assert_cmphex(frd64(d, n, EDU_PLUS_FRAME_SCRATCH64), ==, 0);
    }
}

static void test_registers(void)
{
    static const uint64_t values[] = {
        0, UINT64_MAX, 0x123456789abcdef0, 0xfedcba9876543210,
    };
    Device a;
    QOSState *qs = start_one(&a);

    check_reset_values(&a);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_RESETS), ==, 1);
    wr32(&a, EDU_PLUS_REG_RESETS, 0);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_RESETS), ==, 1);

    /* Each keeps what can be written, and changes no other */
    for (int i = 0; i < ARRAY_SIZE(registers); i++) {
        const Register *r = &registers[i];

        if (r->addr == EDU_PLUS_REG_FACTORIAL) {
            continue;
        }
        for (int v = 0; v < ARRAY_SIZE(values); v++) {
            uint64_t size_mask = r->size == 8 ? UINT64_MAX : UINT32_MAX;

            wr(&a, r, values[v]);
            g_assert_cmphex(rd(&a, r), ==,
                            ((r->reset & ~r->writable) |
                             (values[v] & r->writable)) & size_mask);
        }
        wr(&a, r, r->reset);
        check_reset_values(&a);
    }

    wr32(&a, EDU_PLUS_REG_LIVENESS, 0x12345678);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_LIVENESS), ==, 0xedcba987);

    end_one(qs, &a);
}

static void test_access_size(void)
{
    static const uint32_t none[] = {
        0x0c, 0x1c, 0x28, 0x5c, 0x68, 0x7c, 0x84, 0xa0, 0xffc, 0x101c,
        0x1044, 0x1054, 0x1058, 0x1ffc, 0x2000, EDU_PLUS_DMA_BUF_ADDR,
        EDU_PLUS_REGS_SIZE - 4, EDU_PLUS_REG_IRQ_RAISE, EDU_PLUS_REG_IRQ_ACK,
    };
    static const uint32_t some[] = {
        EDU_PLUS_REG_ID, EDU_PLUS_REG_DMA_SRC, EDU_PLUS_REG_PLUS_ID,
        EDU_PLUS_REG_COPY_SRC,
    };
    Device a;
    QOSState *qs = start_one(&a);

    for (int i = 0; i < ARRAY_SIZE(none); i++) {
        g_assert_cmphex(rd32(&a, none[i]), ==, UINT32_MAX);
        wr32(&a, none[i], 0);
        g_assert_cmphex(rd32(&a, none[i]), ==, UINT32_MAX);
    }
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_COPY_CMD), ==, 0);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_MSIX_SEND), ==, 0);

    /* Bytes and words do not exist */
    for (int i = 0; i < ARRAY_SIZE(some); i++) {
        g_assert_cmphex(qpci_io_readb(a.pci, a.regs, some[i]), ==, 0xff);
        g_assert_cmphex(qpci_io_readw(a.pci, a.regs, some[i]), ==, 0xffff);
        qpci_io_writeb(a.pci, a.regs, some[i], 0x11);
        qpci_io_writew(a.pci, a.regs, some[i] + 2, 0x2222);
    }
    g_assert_cmphex(qpci_io_readb(a.pci, a.frames, EDU_PLUS_FRAME_ID), ==,
                    0xff);
    qpci_io_writew(a.pci, a.frames, EDU_PLUS_FRAME_SCRATCH, 0x2222);
    qpci_io_writeb(a.pci, a.frames, EDU_PLUS_FRAME_DOORBELL, 0x11);
    check_reset_values(&a);

    /* Below 0x80 nor do 8 bytes; above, 4 bytes are the whole register */
    g_assert_cmphex(rd64(&a, EDU_PLUS_REG_ID), ==, UINT64_MAX);
    wr64(&a, EDU_PLUS_REG_ID, 0x1111111122222222);
    check_reset_values(&a);
    wr64(&a, EDU_PLUS_REG_DMA_SRC, 0x123456789abcdef0);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_DMA_SRC), ==, 0x9abcdef0);
    wr32(&a, EDU_PLUS_REG_DMA_SRC, 0x55aa55aa);
    g_assert_cmphex(rd64(&a, EDU_PLUS_REG_DMA_SRC), ==, 0x55aa55aa);

    /* In the extension 8 bytes are two times 4 */
    g_assert_cmphex(rd64(&a, EDU_PLUS_REG_PLUS_ID), ==, 0x000100002b756465);
    wr64(&a, EDU_PLUS_REG_COPY_SRC, 0x123456789abcdef0);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_COPY_SRC), ==, 0x9abcdef0);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_COPY_SRC + 4), ==, 0x12345678);
    wr32(&a, EDU_PLUS_REG_COPY_SRC + 4, 0x55aa55aa);
    g_assert_cmphex(rd64(&a, EDU_PLUS_REG_COPY_SRC), ==, 0x55aa55aa9abcdef0);
    wr64(&a, EDU_PLUS_REG_COPY_COUNT, 77);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_COPY_COUNT), ==, 77);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_COPY_STATUS), ==, 0);

    end_one(qs, &a);
}

static void step_until_clear(Device *d, uint32_t reg, uint32_t bit,
                             int64_t step, int steps)
{
    while (rd32(d, reg) & bit) {
        g_assert_cmpint(steps--, >, 0);
        qtest_clock_step(d->qts, step);
    }
}

static void compute(Device *d, uint32_t n, uint32_t want)
{
    wr32(d, EDU_PLUS_REG_FACTORIAL, n);
    g_assert_true(rd32(d, EDU_PLUS_REG_STATUS) & EDU_PLUS_STATUS_COMPUTING);
    wr32(d, EDU_PLUS_REG_FACTORIAL, 3);
    step_until_clear(d, EDU_PLUS_REG_STATUS, EDU_PLUS_STATUS_COMPUTING,
                     10 * 1000, 100);
    g_assert_cmphex(rd32(d, EDU_PLUS_REG_FACTORIAL), ==, want);
}

static void test_factorial(void)
{
    Device a;
    QOSState *qs = start_one(&a);

    compute(&a, 0, 1);
    compute(&a, 1, 1);
    compute(&a, 5, 120);
    compute(&a, 12, 479001600);
    compute(&a, 13, 0x7328cc00);
    compute(&a, 33, 0x80000000);
    compute(&a, 34, 0);
    compute(&a, UINT32_MAX, 0);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==, 0);

    wr32(&a, EDU_PLUS_REG_STATUS, EDU_PLUS_STATUS_IRQFACT);
    compute(&a, 6, 720);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==,
                    EDU_PLUS_IRQ_FACT);
    g_assert_true(intx(&a));

    end_one(qs, &a);
}

/* Interrupts */

static void enable_msi(Device *d, uint16_t data)
{
    uint8_t cap = cap_of(d, PCI_CAP_ID_MSI);

    qpci_config_writel(d->pci, cap + PCI_MSI_ADDRESS_LO, MSI_ADDR);
    qpci_config_writel(d->pci, cap + PCI_MSI_ADDRESS_HI, 0);
    qpci_config_writew(d->pci, cap + PCI_MSI_DATA_64, data);
    qpci_config_writew(d->pci, cap + PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE);
}

/* Vector n writes 0xa0 + n to its own place */
static uint64_t msix_addr(unsigned n)
{
    return MSI_ADDR + n * 4;
}

static void mask_msix(Device *d, unsigned n, bool mask)
{
    qpci_io_writel(d->pci, d->msix, n * PCI_MSIX_ENTRY_SIZE +
                   PCI_MSIX_ENTRY_VECTOR_CTRL, mask);
}

static void enable_msix(Device *d, unsigned vectors)
{
    for (unsigned n = 0; n < vectors; n++) {
        uint64_t entry = n * PCI_MSIX_ENTRY_SIZE;

        qpci_io_writel(d->pci, d->msix, entry + PCI_MSIX_ENTRY_LOWER_ADDR,
                       msix_addr(n));
        qpci_io_writel(d->pci, d->msix, entry + PCI_MSIX_ENTRY_UPPER_ADDR, 0);
        qpci_io_writel(d->pci, d->msix, entry + PCI_MSIX_ENTRY_DATA, 0xa0 + n);
        mask_msix(d, n, false);
    }
    qpci_config_writew(d->pci, cap_of(d, PCI_CAP_ID_MSIX) + PCI_MSIX_FLAGS,
                       PCI_MSIX_FLAGS_ENABLE);
}

/* Takes the message that came, 0 for none */
static uint32_t take_message(Device *d, uint64_t addr)
{
    uint32_t data = qtest_readl(d->qts, addr);

    qtest_writel(d->qts, addr, 0);
    return data;
}

/* Exactly this vector came, or none if it is -1 */
static void expect_vector(Device *d, int vector, unsigned vectors)
{
    for (int n = 0; n < vectors; n++) {
        g_assert_cmphex(take_message(d, msix_addr(n)), ==,
                        n == vector ? 0xa0 + n : 0);
    }
}

static void test_intx(void)
{
    Device a;
    QOSState *qs = start_one(&a);

    wr32(&a, EDU_PLUS_REG_IRQ_RAISE, 0);
    g_assert_false(intx(&a));
    wr32(&a, EDU_PLUS_REG_IRQ_RAISE, 0x6);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==, 0x6);
    g_assert_true(intx(&a));
    wr32(&a, EDU_PLUS_REG_IRQ_RAISE, 0x80000000);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==, 0x80000006);
    wr32(&a, EDU_PLUS_REG_IRQ_ACK, 0x80000002);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==, 0x4);
    g_assert_true(intx(&a));
    wr32(&a, EDU_PLUS_REG_IRQ_ACK, 0x4);
    g_assert_false(intx(&a));

    /* The pin follows the status when MSI goes on and off */
    wr32(&a, EDU_PLUS_REG_IRQ_RAISE, 0x1);
    g_assert_true(intx(&a));
    enable_msi(&a, 1);
    g_assert_false(intx(&a));
    qpci_config_writew(a.pci, cap_of(&a, PCI_CAP_ID_MSI) + PCI_MSI_FLAGS, 0);
    g_assert_true(intx(&a));

    end_one(qs, &a);
}

static void test_msi(void)
{
    Device a;
    QOSState *qs = start_one(&a);

    enable_msi(&a, 0x1234);
    g_assert_cmphex(take_message(&a, MSI_ADDR), ==, 0);
    wr32(&a, EDU_PLUS_REG_IRQ_RAISE, 0x1);
    g_assert_cmphex(take_message(&a, MSI_ADDR), ==, 0x1234);
    /* One message for each, acknowledged or not */
    wr32(&a, EDU_PLUS_REG_IRQ_RAISE, 0x1);
    g_assert_cmphex(take_message(&a, MSI_ADDR), ==, 0x1234);
    g_assert_false(intx(&a));
    wr32(&a, EDU_PLUS_REG_IRQ_ACK, 0x1);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==, 0);
    g_assert_cmphex(take_message(&a, MSI_ADDR), ==, 0);

    wr32(&a, EDU_PLUS_REG_STATUS, EDU_PLUS_STATUS_IRQFACT);
    compute(&a, 5, 120);
    g_assert_cmphex(take_message(&a, MSI_ADDR), ==, 0x1234);

    end_one(qs, &a);
}

/* The copy engine */

static void start_copy(Device *d, uint64_t src, uint64_t dst, uint64_t len,
                       uint32_t count, uint32_t flags)
{
    wr64(d, EDU_PLUS_REG_COPY_SRC, src);
    wr64(d, EDU_PLUS_REG_COPY_DST, dst);
    wr64(d, EDU_PLUS_REG_COPY_LEN, len);
    wr32(d, EDU_PLUS_REG_COPY_COUNT, count);
    wr32(d, EDU_PLUS_REG_COPY_CMD, EDU_PLUS_COPY_CMD_START | flags);
}

static void step_copy(Device *d)
{
    qtest_clock_step(d->qts, EDU_PLUS_COPY_STEP_NS);
}

static void expect_status(Device *d, uint32_t status, uint64_t done)
{
    g_assert_cmphex(rd32(d, EDU_PLUS_REG_COPY_STATUS), ==, status);
    g_assert_cmphex(rd64(d, EDU_PLUS_REG_COPY_DONE), ==, done);
}

static void finish_copy(Device *d, uint32_t result, uint64_t done)
{
    step_until_clear(d, EDU_PLUS_REG_COPY_STATUS, EDU_PLUS_COPY_STATUS_BUSY,
                     EDU_PLUS_COPY_STEP_NS, 100);
    expect_status(d, result, done);
}

static void copy(Device *d, uint64_t src, uint64_t dst, uint64_t len,
                 uint32_t flags)
{
    start_copy(d, src, dst, len, 1, flags);
    expect_status(d, EDU_PLUS_COPY_STATUS_BUSY, 0);
    finish_copy(d, EDU_PLUS_COPY_OK, len);
}

#define SRC_RAM EDU_PLUS_COPY_CMD_SRC_RAM
#define DST_RAM EDU_PLUS_COPY_CMD_DST_RAM
#define IRQ     EDU_PLUS_COPY_CMD_IRQ

static void test_msix(void)
{
    const unsigned vectors = EDU_PLUS_MSIX_VECTORS_DEFAULT;
    Device a;
    QOSState *qs = start_one(&a);

    /* Not enabled yet */
    wr32(&a, EDU_PLUS_REG_MSIX_SEND, 0);
    expect_vector(&a, -1, vectors);

    enable_msix(&a, vectors);
    expect_vector(&a, -1, vectors);
    for (int n = 0; n < vectors; n++) {
        wr32(&a, EDU_PLUS_REG_MSIX_SEND, n);
        expect_vector(&a, n, vectors);
    }
    wr32(&a, EDU_PLUS_REG_MSIX_SEND, vectors);
    wr32(&a, EDU_PLUS_REG_MSIX_SEND, UINT32_MAX);
    expect_vector(&a, -1, vectors);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==, 0);

    /* The edu part has vector 0 */
    wr32(&a, EDU_PLUS_REG_IRQ_RAISE, 0x1);
    expect_vector(&a, 0, vectors);
    wr32(&a, EDU_PLUS_REG_IRQ_RAISE, 0x1);
    expect_vector(&a, 0, vectors);
    wr32(&a, EDU_PLUS_REG_IRQ_ACK, 0x1);
    wr32(&a, EDU_PLUS_REG_STATUS, EDU_PLUS_STATUS_IRQFACT);
    compute(&a, 5, 120);
    expect_vector(&a, 0, vectors);

    /* A copy has vector 1 */
    copy(&a, 0, 64, 64, SRC_RAM | DST_RAM);
    expect_vector(&a, -1, vectors);
    copy(&a, 0, 64, 64, SRC_RAM | DST_RAM | IRQ);
    expect_vector(&a, 1, vectors);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==,
                    EDU_PLUS_IRQ_FACT | EDU_PLUS_IRQ_COPY);
    g_assert_false(intx(&a));

    /* A masked one waits */
    mask_msix(&a, 2, true);
    wr32(&a, EDU_PLUS_REG_MSIX_SEND, 2);
    expect_vector(&a, -1, vectors);
    mask_msix(&a, 2, false);
    expect_vector(&a, 2, vectors);

    end_one(qs, &a);
}

static void test_msix_vectors(void)
{
    Device a;
    QOSState *qs = start("-device edu-plus,addr=4.0,ram-size=4M,"
                         "msix-vectors=64");

    open_device(&a, qs, SLOT_A);
    enable_msix(&a, 64);
    for (int n = 0; n < 64; n++) {
        wr32(&a, EDU_PLUS_REG_MSIX_SEND, n);
        expect_vector(&a, n, 64);
    }
    wr32(&a, EDU_PLUS_REG_MSIX_SEND, 64);
    expect_vector(&a, -1, 64);
    end_one(qs, &a);

    /* With one vector the copy shares it */
    qs = start("-device edu-plus,addr=4.0,ram-size=4M,msix-vectors=1");
    open_device(&a, qs, SLOT_A);
    enable_msix(&a, 1);
    copy(&a, 0, 64, 64, SRC_RAM | DST_RAM | IRQ);
    expect_vector(&a, 0, 1);
    wr32(&a, EDU_PLUS_REG_MSIX_SEND, 1);
    expect_vector(&a, -1, 2);
    end_one(qs, &a);
}

static void test_copy_irq(void)
{
    Device a;
    QOSState *qs = start_one(&a);

    copy(&a, 0, 64, 64, SRC_RAM | DST_RAM);
    g_assert_false(intx(&a));
    copy(&a, 0, 64, 64, SRC_RAM | DST_RAM | IRQ);
    g_assert_true(intx(&a));
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==,
                    EDU_PLUS_IRQ_COPY);
    wr32(&a, EDU_PLUS_REG_IRQ_ACK, EDU_PLUS_IRQ_COPY);

    /* Failures interrupt too; an abort does not */
    start_copy(&a, 0, NOBODY_ADDR, 64, 1, SRC_RAM | IRQ);
    finish_copy(&a, EDU_PLUS_COPY_ERR_BUS, 0);
    g_assert_true(intx(&a));
    wr32(&a, EDU_PLUS_REG_IRQ_ACK, EDU_PLUS_IRQ_COPY);
    start_copy(&a, 0, 0, 0, 1, SRC_RAM | DST_RAM | IRQ);
    expect_status(&a, EDU_PLUS_COPY_ERR_RANGE, 0);
    g_assert_true(intx(&a));
    wr32(&a, EDU_PLUS_REG_IRQ_ACK, EDU_PLUS_IRQ_COPY);
    start_copy(&a, 0, 64, 64, 1, SRC_RAM | DST_RAM | IRQ);
    wr32(&a, EDU_PLUS_REG_COPY_CMD, EDU_PLUS_COPY_CMD_ABORT);
    expect_status(&a, EDU_PLUS_COPY_ERR_ABORTED, 0);
    step_copy(&a);
    g_assert_false(intx(&a));

    enable_msi(&a, 0x77);
    copy(&a, 0, 64, 64, SRC_RAM | DST_RAM | IRQ);
    g_assert_cmphex(take_message(&a, MSI_ADDR), ==, 0x77);

    end_one(qs, &a);
}

/* All kinds of source and destination, misaligned and over several steps */
static void test_copy_kinds(void)
{
    const size_t len = 2 * STEP + 4099;
    const uint64_t src_off = 5, dst_off = 1000003;
    static const struct {
        bool src_ram, dst_ram;
    } kinds[] = {
        { false, false }, { false, true }, { true, false }, { true, true },
    };
    Device a;
    QOSState *qs = start_one(&a);

    for (int i = 0; i < ARRAY_SIZE(kinds); i++) {
        uint64_t src = kinds[i].src_ram ? 0 : DATA_ADDR;
        uint64_t dst = kinds[i].dst_ram ? 0 : BACK_ADDR;
        /* Where they are on the bus */
        uint64_t src_at = (kinds[i].src_ram ? a.ram.addr : src) + src_off;
        uint64_t dst_at = (kinds[i].dst_ram ? a.ram.addr : dst) + dst_off;
        size_t n = kinds[i].src_ram && kinds[i].dst_ram ? 900001 : len;
        g_autofree uint8_t *around = fill(qs->qts, dst_at - 64, n + 128, 7);
        g_autofree uint8_t *data = fill(qs->qts, src_at, n, i);

        copy(&a, src + src_off, dst + dst_off, n,
             (kinds[i].src_ram ? SRC_RAM : 0) |
             (kinds[i].dst_ram ? DST_RAM : 0));
        check_mem(qs->qts, dst_at, data, n);
        check_mem(qs->qts, dst_at - 64, around, 64);
        check_mem(qs->qts, dst_at + n, around + 64 + n, 64);
        check_mem(qs->qts, src_at, data, n);
    }

    end_one(qs, &a);
}

static void test_copy_steps(void)
{
    Device a;
    QOSState *qs = start_one(&a);
    g_autofree uint8_t *data = fill(qs->qts, a.ram.addr, RAM_SIZE, 3);

    start_copy(&a, 0, BACK_ADDR, RAM_SIZE, 1, SRC_RAM);
    for (int i = 0; i < RAM_SIZE / STEP; i++) {
        expect_status(&a, EDU_PLUS_COPY_STATUS_BUSY, i * STEP);
        check_zero(qs->qts, BACK_ADDR + i * STEP, STEP);
        step_copy(&a);
        check_mem(qs->qts, BACK_ADDR + i * STEP, data + i * STEP, STEP);
    }
    expect_status(&a, EDU_PLUS_COPY_OK, RAM_SIZE);

    end_one(qs, &a);
}

static void test_copy_count(void)
{
    static const uint32_t counts[] = { 0, 1, 2, 1000 };
    Device a, b;
    QOSState *qs = start_two(&a, &b);
    uint32_t rings = 0;

    for (int i = 0; i < ARRAY_SIZE(counts); i++) {
        uint32_t count = counts[i];

        start_copy(&a, 0, 4096, 3000, count, SRC_RAM | DST_RAM);
        g_assert_cmphex(rd32(&a, EDU_PLUS_REG_COPY_COUNT), ==, count);
        finish_copy(&a, EDU_PLUS_COPY_OK, 3000 * MAX(count, 1));
    }

    /* A doorbell of another device counts how often it really was copied */
    for (int i = 0; i < ARRAY_SIZE(counts); i++) {
        qtest_writel(qs->qts, DATA_ADDR, 0x1000 + i);
        start_copy(&a, DATA_ADDR,
                   b.frames.addr + frame_off(3, EDU_PLUS_FRAME_DOORBELL),
                   4, counts[i], 0);
        rings += MAX(counts[i], 1);
        finish_copy(&a, EDU_PLUS_COPY_OK, 4 * MAX(counts[i], 1));
        g_assert_cmphex(frd32(&b, 3, EDU_PLUS_FRAME_DOORBELL_COUNT), ==,
                        rings);
        g_assert_cmphex(frd32(&b, 3, EDU_PLUS_FRAME_DOORBELL_LAST), ==,
                        0x1000 + i);
    }
    end_two(qs, &a, &b);
}

static void test_copy_peer(void)
{
    const size_t len = STEP + 12345;
    Device a, b;
    QOSState *qs = start_two(&a, &b);
    g_autofree uint8_t *data = fill(qs->qts, DATA_ADDR, len, 1);
    g_autofree uint8_t *own = fill(qs->qts, a.ram.addr, len, 2);

    /* Memory and own RAM to the peer's RAM */
    copy(&a, DATA_ADDR, b.ram.addr + 100, len, 0);
    check_mem(qs->qts, b.ram.addr + 100, data, len);
    copy(&a, 0, b.ram.addr + 2 * MiB, len, SRC_RAM);
    check_mem(qs->qts, b.ram.addr + 2 * MiB, own, len);
    check_mem(qs->qts, b.ram.addr + 100, data, len);
    /* And from it */
    copy(&a, b.ram.addr + 100, BACK_ADDR, len, 0);
    check_mem(qs->qts, BACK_ADDR, data, len);

    /* Its frames */
    qtest_writeq(qs->qts, DATA_ADDR, 0x123456789abcdef0);
    copy(&a, DATA_ADDR,
         b.frames.addr + frame_off(15, EDU_PLUS_FRAME_SCRATCH64), 8, 0);
    g_assert_cmphex(frd64(&b, 15, EDU_PLUS_FRAME_SCRATCH64), ==,
                    0x123456789abcdef0);
    copy(&a, DATA_ADDR,
         b.frames.addr + frame_off(15, EDU_PLUS_FRAME_SCRATCH), 4, 0);
    g_assert_cmphex(frd32(&b, 15, EDU_PLUS_FRAME_SCRATCH), ==, 0x9abcdef0);
    g_assert_cmphex(frd32(&b, 15, EDU_PLUS_FRAME_INVERT), ==, 0);
    copy(&a, b.frames.addr + frame_off(7, EDU_PLUS_FRAME_ID), 0, 8, DST_RAM);
    g_assert_cmphex(qtest_readl(qs->qts, a.ram.addr), ==,
                    EDU_PLUS_FRAME_MAGIC);
    g_assert_cmphex(qtest_readl(qs->qts, a.ram.addr + 4), ==, 7);
    g_assert_cmphex(frd32(&a, 15, EDU_PLUS_FRAME_SCRATCH), ==, 0);

    /* Whoever is asleep does not answer */
    qpci_config_writew(b.pci, cap_of(&b, PCI_CAP_ID_PM) + PCI_PM_CTRL, 3);
    start_copy(&a, DATA_ADDR, b.ram.addr, 64, 1, 0);
    finish_copy(&a, EDU_PLUS_COPY_ERR_BUS, 0);

    end_two(qs, &a, &b);
}

static void test_copy_range(void)
{
    static const struct {
        uint64_t src, dst, len;
        uint32_t count, flags;
    } bad[] = {
        { 0, 4096, 0, 1, SRC_RAM | DST_RAM },
        { 0, 1, RAM_SIZE, 1, SRC_RAM | DST_RAM },
        { 1, 0, RAM_SIZE, 1, SRC_RAM | DST_RAM },
        { DATA_ADDR, 1, RAM_SIZE, 1, DST_RAM },
        { 1, DATA_ADDR, RAM_SIZE, 1, SRC_RAM },
        { RAM_SIZE, 0, 1, 1, SRC_RAM | DST_RAM },
        { 0, RAM_SIZE, 1, 1, SRC_RAM | DST_RAM },
        { UINT64_MAX, 0, 1, 1, SRC_RAM | DST_RAM },
        { 0, UINT64_MAX - 7, 16, 1, SRC_RAM | DST_RAM },
        { UINT64_MAX - 7, 0, 16, 1, DST_RAM },
        { 0, UINT64_MAX, 2, 1, SRC_RAM },
        { DATA_ADDR, BACK_ADDR, EDU_PLUS_COPY_LEN_MAX + 1, 1, 0 },
        { DATA_ADDR, BACK_ADDR, UINT64_MAX, 1, 0 },
        { DATA_ADDR, BACK_ADDR, EDU_PLUS_COPY_LEN_MAX, 1 << 30, 0 },
    };
    Device a;
    QOSState *qs = start_one(&a);

    fill(qs->qts, DATA_ADDR, 4096, 1);
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        /* In between one that is good, up to the very end */
        copy(&a, 0, RAM_SIZE / 2, RAM_SIZE / 2, SRC_RAM | DST_RAM);
        start_copy(&a, bad[i].src, bad[i].dst, bad[i].len, bad[i].count,
                   bad[i].flags);
        expect_status(&a, EDU_PLUS_COPY_ERR_RANGE, 0);
        step_copy(&a);
        expect_status(&a, EDU_PLUS_COPY_ERR_RANGE, 0);
    }
    check_zero_steps(qs->qts, a.ram.addr, RAM_SIZE);
    check_zero(qs->qts, BACK_ADDR, 4096);

    /* All that the registers can say is possible: 16 GiB, and the last byte */
    start_copy(&a, DATA_ADDR, BACK_ADDR, EDU_PLUS_COPY_LEN_MAX,
               (1 << 30) - 1, 0);
    expect_status(&a, EDU_PLUS_COPY_STATUS_BUSY, 0);
    wr32(&a, EDU_PLUS_REG_COPY_CMD, EDU_PLUS_COPY_CMD_ABORT);
    start_copy(&a, UINT64_MAX, 0, 1, 1, DST_RAM);
    finish_copy(&a, EDU_PLUS_COPY_ERR_BUS, 0);

    end_one(qs, &a);
}

static void test_copy_no_ram(void)
{
    QOSState *qs = start("-device edu-plus,addr=4.0,ram-size=0");
    Device a = { .qts = qs->qts, .pci = find(qs, SLOT_A) };

    a.regs = qpci_iomap(a.pci, EDU_PLUS_BAR_REGS, NULL);
    qpci_device_enable(a.pci);
    start_copy(&a, 0, DATA_ADDR, 1, 1, SRC_RAM);
    expect_status(&a, EDU_PLUS_COPY_ERR_RANGE, 0);
    start_copy(&a, DATA_ADDR, 0, 1, 1, DST_RAM);
    expect_status(&a, EDU_PLUS_COPY_ERR_RANGE, 0);
    copy(&a, DATA_ADDR, BACK_ADDR, 4096, 0);

    end_one(qs, &a);
}

static void test_copy_command(void)
{
    static const uint32_t bad[] = {
        EDU_PLUS_COPY_CMD_START | 0x10, EDU_PLUS_COPY_CMD_START | 0x40000000,
        EDU_PLUS_COPY_CMD_START | EDU_PLUS_COPY_CMD_ABORT,
        SRC_RAM | DST_RAM, IRQ, EDU_PLUS_COPY_CMD_ABORT | IRQ, 0x10,
    };
    Device a;
    QOSState *qs = start_one(&a);
    g_autofree uint8_t *data = fill(qs->qts, a.ram.addr, 4096, 1);

    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        copy(&a, 0, 8192, 4096, SRC_RAM | DST_RAM);
        wr64(&a, EDU_PLUS_REG_COPY_DST, 4096);
        wr32(&a, EDU_PLUS_REG_COPY_CMD, bad[i]);
        g_assert_cmphex(rd32(&a, EDU_PLUS_REG_COPY_STATUS), ==,
                        EDU_PLUS_COPY_ERR_RANGE);
        step_copy(&a);
        check_zero(qs->qts, a.ram.addr + 4096, 4096);
        g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==, 0);
    }

    /* No command, and nothing to abort: the result stays */
    copy(&a, 0, 8192, 4096, SRC_RAM | DST_RAM);
    wr32(&a, EDU_PLUS_REG_COPY_CMD, 0);
    expect_status(&a, EDU_PLUS_COPY_OK, 4096);
    wr32(&a, EDU_PLUS_REG_COPY_CMD, EDU_PLUS_COPY_CMD_ABORT);
    expect_status(&a, EDU_PLUS_COPY_OK, 4096);
    check_mem(qs->qts, a.ram.addr + 8192, data, 4096);

    end_one(qs, &a);
}

static void test_copy_busy(void)
{
    Device a;
    QOSState *qs = start_one(&a);
    g_autofree uint8_t *data = fill_steps(qs->qts, a.ram.addr, RAM_SIZE, 1);

    start_copy(&a, 0, BACK_ADDR, RAM_SIZE, 1, SRC_RAM);
    step_copy(&a);
    wr64(&a, EDU_PLUS_REG_COPY_SRC, 1);
    wr64(&a, EDU_PLUS_REG_COPY_DST, 2);
    wr64(&a, EDU_PLUS_REG_COPY_LEN, 3);
    wr32(&a, EDU_PLUS_REG_COPY_COUNT, 4);
    wr32(&a, EDU_PLUS_REG_COPY_CMD, EDU_PLUS_COPY_CMD_START | SRC_RAM);
    wr32(&a, EDU_PLUS_REG_COPY_CMD, 0x10);
    wr32(&a, EDU_PLUS_REG_COPY_CMD, EDU_PLUS_COPY_CMD_ABORT | IRQ);
    expect_status(&a, EDU_PLUS_COPY_STATUS_BUSY, STEP);
    g_assert_cmphex(rd64(&a, EDU_PLUS_REG_COPY_SRC), ==, 0);
    g_assert_cmphex(rd64(&a, EDU_PLUS_REG_COPY_DST), ==, BACK_ADDR);
    g_assert_cmphex(rd64(&a, EDU_PLUS_REG_COPY_LEN), ==, RAM_SIZE);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_COPY_COUNT), ==, 1);
    finish_copy(&a, EDU_PLUS_COPY_OK, RAM_SIZE);
    check_mem_steps(qs->qts, BACK_ADDR, data, RAM_SIZE);

    end_one(qs, &a);
}

static void test_copy_abort(void)
{
    Device a;
    QOSState *qs = start_one(&a);
    g_autofree uint8_t *data = fill_steps(qs->qts, a.ram.addr, RAM_SIZE, 1);

    start_copy(&a, 0, BACK_ADDR, RAM_SIZE, 1, SRC_RAM);
    step_copy(&a);
    wr32(&a, EDU_PLUS_REG_COPY_CMD, EDU_PLUS_COPY_CMD_ABORT);
    expect_status(&a, EDU_PLUS_COPY_ERR_ABORTED, STEP);
    for (int i = 0; i < 10; i++) {
        step_copy(&a);
    }
    expect_status(&a, EDU_PLUS_COPY_ERR_ABORTED, STEP);
    check_mem_steps(qs->qts, BACK_ADDR, data, STEP);
    check_zero_steps(qs->qts, BACK_ADDR + STEP, RAM_SIZE - STEP);

    /* It can start again */
    copy(&a, 0, BACK_ADDR, RAM_SIZE, SRC_RAM);
    check_mem_steps(qs->qts, BACK_ADDR, data, RAM_SIZE);

    end_one(qs, &a);
}

static void test_copy_bus_error(void)
{
    Device a;
    QOSState *qs = start_one(&a);
    g_autofree uint8_t *data = fill(qs->qts, GUEST_RAM - 8192, 8192, 1);
    uint16_t cmd;

    start_copy(&a, NOBODY_ADDR, 0, 64, 1, DST_RAM);
    finish_copy(&a, EDU_PLUS_COPY_ERR_BUS, 0);
    start_copy(&a, 0, NOBODY_ADDR, 64, 1, SRC_RAM);
    finish_copy(&a, EDU_PLUS_COPY_ERR_BUS, 0);

    /* Halfway: up to the last good byte */
    start_copy(&a, GUEST_RAM - 8192 + 3, 0, 16384, 1, DST_RAM);
    finish_copy(&a, EDU_PLUS_COPY_ERR_BUS, 8192 - 3);
    check_mem(qs->qts, a.ram.addr, data + 3, 8192 - 3);
    check_zero(qs->qts, a.ram.addr + 8192 - 3, 16384);

    /* No bus master */
    cmd = qpci_config_readw(a.pci, PCI_COMMAND);
    qpci_config_writew(a.pci, PCI_COMMAND, cmd & ~PCI_COMMAND_MASTER);
    start_copy(&a, DATA_ADDR, 0, 64, 1, DST_RAM);
    finish_copy(&a, EDU_PLUS_COPY_ERR_BUS, 0);
    copy(&a, 0, 64, 64, SRC_RAM | DST_RAM);
    qpci_config_writew(a.pci, PCI_COMMAND, cmd);
    copy(&a, DATA_ADDR, 0, 64, DST_RAM);

    end_one(qs, &a);
}

/* Copies that go for the device itself */
static void test_copy_own_bars(void)
{
    Device a;
    QOSState *qs = start_one(&a);
    g_autofree uint8_t *data = NULL;

    /* Its registers do not answer it, whatever is written there */
    qtest_writel(qs->qts, DATA_ADDR, EDU_PLUS_COPY_CMD_ABORT);
    start_copy(&a, DATA_ADDR, a.regs.addr + EDU_PLUS_REG_COPY_CMD, 4, 1, 0);
    finish_copy(&a, EDU_PLUS_COPY_ERR_BUS, 0);
    start_copy(&a, DATA_ADDR, a.regs.addr + EDU_PLUS_REG_IRQ_RAISE, 4, 1, 0);
    finish_copy(&a, EDU_PLUS_COPY_ERR_BUS, 0);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==, 0);
    start_copy(&a, a.regs.addr, 0, 4096, 1, DST_RAM);
    finish_copy(&a, EDU_PLUS_COPY_ERR_BUS, 0);
    start_copy(&a, DATA_ADDR, a.frames.addr + EDU_PLUS_FRAME_SCRATCH, 4, 1, 0);
    finish_copy(&a, EDU_PLUS_COPY_ERR_BUS, 0);
    g_assert_cmphex(frd32(&a, 0, EDU_PLUS_FRAME_SCRATCH), ==, 0);
    start_copy(&a, DATA_ADDR, a.msix.addr, 64, 1, 0);
    finish_copy(&a, EDU_PLUS_COPY_ERR_BUS, 0);
    /* They still answer others */
    wr32(&a, EDU_PLUS_REG_IRQ_RAISE, 1);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==, 1);

    /* Its RAM does */
    data = fill(qs->qts, DATA_ADDR, 2 * STEP, 1);
    copy(&a, DATA_ADDR, a.ram.addr, 2 * STEP, 0);
    check_mem(qs->qts, a.ram.addr, data, 2 * STEP);
    end_one(qs, &a);
}

static void enable_mmconfig(QOSState *qs)
{
    QPCIDevice *mch = qpci_device_find(qs->pcibus, QPCI_DEVFN(0, 0));

    g_assert_nonnull(mch);
    qpci_config_writel(mch, MCH_HOST_BRIDGE_PCIEXBAR + 4, 0);
    qpci_config_writel(mch, MCH_HOST_BRIDGE_PCIEXBAR,
                       MCH_HOST_BRIDGE_PCIEXBAR_DEFAULT |
                       MCH_HOST_BRIDGE_PCIEXBAREN);
    g_free(mch);
}

/* A copy, and a DMA, that reset the device which makes them */
static void test_copy_own_reset(void)
{
    Device a;
    QOSState *qs = start_one(&a);
    uint64_t config = MCH_HOST_BRIDGE_PCIEXBAR_DEFAULT +
                      (QPCI_DEVFN(SLOT_A, 0) << 12);
    uint64_t devctl = cap_of(&a, PCI_CAP_ID_EXP) + PCI_EXP_DEVCTL;
    uint32_t resets = rd32(&a, EDU_PLUS_REG_RESETS);

    enable_mmconfig(qs);
    g_assert_cmphex(qtest_readl(qs->qts, config), ==, 0x11e81234);

    qtest_writel(qs->qts, DATA_ADDR, PCI_EXP_DEVCTL_BCR_FLR);
    start_copy(&a, DATA_ADDR, config + devctl, 4, 1000, IRQ);
    step_copy(&a);
    g_assert_cmphex(qpci_config_readw(a.pci, PCI_COMMAND), ==, 0);
    reopen_device(&a);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_RESETS), ==, resets + 1);
    check_reset_values(&a);
    step_copy(&a);
    check_reset_values(&a);

    wr64(&a, EDU_PLUS_REG_DMA_SRC, DATA_ADDR);
    wr64(&a, EDU_PLUS_REG_DMA_DST, EDU_PLUS_DMA_BUF_ADDR);
    wr64(&a, EDU_PLUS_REG_DMA_COUNT, 4);
    wr32(&a, EDU_PLUS_REG_DMA_CMD, EDU_PLUS_DMA_RUN);
    qtest_clock_step(qs->qts, EDU_PLUS_DMA_NS);
    /* This address is beyond the default mask: it has to be clamped away */
    wr64(&a, EDU_PLUS_REG_DMA_SRC, EDU_PLUS_DMA_BUF_ADDR);
    wr64(&a, EDU_PLUS_REG_DMA_DST, config + devctl);
    wr32(&a, EDU_PLUS_REG_DMA_CMD, EDU_PLUS_DMA_RUN | EDU_PLUS_DMA_TO_BUS);
    qtest_clock_step(qs->qts, EDU_PLUS_DMA_NS);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_RESETS), ==, resets + 1);
    end_one(qs, &a);

    qs = start("-device edu-plus,addr=4.0,ram-size=4M,dma-mask=0xffffffff");
    open_device(&a, qs, SLOT_A);
    enable_mmconfig(qs);
    resets = rd32(&a, EDU_PLUS_REG_RESETS);
    qtest_writel(qs->qts, DATA_ADDR, PCI_EXP_DEVCTL_BCR_FLR);
    wr64(&a, EDU_PLUS_REG_DMA_SRC, DATA_ADDR);
    wr64(&a, EDU_PLUS_REG_DMA_DST, EDU_PLUS_DMA_BUF_ADDR);
    wr64(&a, EDU_PLUS_REG_DMA_COUNT, 4);
    wr32(&a, EDU_PLUS_REG_DMA_CMD, EDU_PLUS_DMA_RUN);
    qtest_clock_step(qs->qts, EDU_PLUS_DMA_NS);
    wr64(&a, EDU_PLUS_REG_DMA_SRC, EDU_PLUS_DMA_BUF_ADDR);
    wr64(&a, EDU_PLUS_REG_DMA_DST, config + devctl);
    wr32(&a, EDU_PLUS_REG_DMA_CMD,
         EDU_PLUS_DMA_RUN | EDU_PLUS_DMA_TO_BUS | EDU_PLUS_DMA_IRQ);
    qtest_clock_step(qs->qts, EDU_PLUS_DMA_NS);
    reopen_device(&a);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_RESETS), ==, resets + 1);
    check_reset_values(&a);
    end_one(qs, &a);
}

/* edu's DMA engine */

static void start_dma(Device *d, uint64_t src, uint64_t dst, uint64_t count,
                      uint32_t cmd)
{
    wr64(d, EDU_PLUS_REG_DMA_SRC, src);
    wr64(d, EDU_PLUS_REG_DMA_DST, dst);
    wr64(d, EDU_PLUS_REG_DMA_COUNT, count);
    wr32(d, EDU_PLUS_REG_DMA_CMD, cmd | EDU_PLUS_DMA_RUN);
    g_assert_cmphex(rd32(d, EDU_PLUS_REG_DMA_CMD), ==,
                    cmd | EDU_PLUS_DMA_RUN);
}

static void dma(Device *d, uint64_t src, uint64_t dst, uint64_t count,
                uint32_t cmd)
{
    start_dma(d, src, dst, count, cmd);
    qtest_clock_step(d->qts, EDU_PLUS_DMA_NS);
    g_assert_cmphex(rd32(d, EDU_PLUS_REG_DMA_CMD), ==, cmd);
}

#define BUF      EDU_PLUS_DMA_BUF_ADDR
#define BUF_SIZE EDU_PLUS_DMA_BUF_SIZE
#define TO_BUS   EDU_PLUS_DMA_TO_BUS

static void test_dma(void)
{
    Device a, b;
    QOSState *qs = start_two(&a, &b);
    g_autofree uint8_t *data = fill(qs->qts, DATA_ADDR, BUF_SIZE, 1);
    g_autofree uint8_t *other = fill(qs->qts, DATA_ADDR + BUF_SIZE, BUF_SIZE,
                                     2);

    dma(&a, DATA_ADDR, BUF, BUF_SIZE, 0);
    dma(&a, BUF, BACK_ADDR, BUF_SIZE, TO_BUS);
    check_mem(qs->qts, BACK_ADDR, data, BUF_SIZE);
    check_zero(qs->qts, BACK_ADDR + BUF_SIZE, 64);

    /* A part of the buffer, up to its end */
    dma(&a, DATA_ADDR + BUF_SIZE, BUF + 4000, 96, 0);
    memcpy(data + 4000, other, 96);
    dma(&a, BUF, BACK_ADDR, BUF_SIZE, TO_BUS);
    check_mem(qs->qts, BACK_ADDR, data, BUF_SIZE);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==, 0);

    /* It takes its time, and lets nobody change it meanwhile */
    qtest_memset(qs->qts, BACK_ADDR, 0, BUF_SIZE);
    start_dma(&a, BUF, BACK_ADDR, 64, TO_BUS | EDU_PLUS_DMA_IRQ);
    wr64(&a, EDU_PLUS_REG_DMA_SRC, 1);
    wr64(&a, EDU_PLUS_REG_DMA_DST, 1);
    wr64(&a, EDU_PLUS_REG_DMA_COUNT, 1);
    wr64(&a, EDU_PLUS_REG_DMA_CMD, 0);
    qtest_clock_step(qs->qts, EDU_PLUS_DMA_NS - 1000);
    check_zero(qs->qts, BACK_ADDR, BUF_SIZE);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==, 0);
    qtest_clock_step(qs->qts, 1000);
    g_assert_cmphex(rd64(&a, EDU_PLUS_REG_DMA_SRC), ==, BUF);
    g_assert_cmphex(rd64(&a, EDU_PLUS_REG_DMA_DST), ==, BACK_ADDR);
    g_assert_cmphex(rd64(&a, EDU_PLUS_REG_DMA_COUNT), ==, 64);
    g_assert_cmphex(rd64(&a, EDU_PLUS_REG_DMA_CMD), ==,
                    TO_BUS | EDU_PLUS_DMA_IRQ);
    check_mem(qs->qts, BACK_ADDR, data, 64);
    check_zero(qs->qts, BACK_ADDR + 64, BUF_SIZE - 64);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==, EDU_PLUS_IRQ_DMA);
    g_assert_true(intx(&a));

    /* Without the bit to run nothing is taken */
    wr32(&a, EDU_PLUS_REG_DMA_CMD, 0);
    g_assert_cmphex(rd64(&a, EDU_PLUS_REG_DMA_CMD), ==,
                    TO_BUS | EDU_PLUS_DMA_IRQ);
    end_two(qs, &a, &b);
}

static void test_dma_range(void)
{
    static const struct {
        uint64_t addr, count;
    } bad[] = {
        { BUF, BUF_SIZE + 1 }, { BUF + 1, BUF_SIZE }, { BUF - 1, 2 },
        { BUF + BUF_SIZE, 1 }, { BUF + BUF_SIZE + 1, 0 }, { BUF, UINT64_MAX },
        { BUF + 8, UINT64_MAX - 4 }, { UINT64_MAX, 1 }, { 0, 1 },
    };
    Device a;
    QOSState *qs = start_one(&a);
    g_autofree uint8_t *data = fill(qs->qts, DATA_ADDR, BUF_SIZE, 1);
    g_autofree uint8_t *other = NULL;

    dma(&a, DATA_ADDR, BUF, BUF_SIZE, 0);
    other = fill(qs->qts, DATA_ADDR, 2 * BUF_SIZE, 2);
    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        dma(&a, DATA_ADDR, bad[i].addr, bad[i].count, 0);
        dma(&a, bad[i].addr, BACK_ADDR, bad[i].count,
            TO_BUS | EDU_PLUS_DMA_IRQ);
        check_zero(qs->qts, BACK_ADDR, 2 * BUF_SIZE);
        /* Failed or not, it is over */
        g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==,
                        EDU_PLUS_IRQ_DMA);
        wr32(&a, EDU_PLUS_REG_IRQ_ACK, EDU_PLUS_IRQ_DMA);
    }
    dma(&a, BUF, BACK_ADDR, BUF_SIZE, TO_BUS);
    check_mem(qs->qts, BACK_ADDR, data, BUF_SIZE);

    end_one(qs, &a);
}

static void check_dma_mask(const char *params, uint64_t above)
{
    g_autofree char *args = g_strdup_printf(
        "-device edu-plus,addr=4.0,ram-size=4M%s", params);
    QOSState *qs = start(args);
    g_autofree uint8_t *data = fill(qs->qts, DATA_ADDR & ~above, 64, 1);
    Device a;

    open_device(&a, qs, SLOT_A);
    dma(&a, above | DATA_ADDR, BUF, 64, 0);
    dma(&a, BUF, above | BACK_ADDR, 64, TO_BUS);
    check_mem(qs->qts, BACK_ADDR & ~above, data, 64);
    end_one(qs, &a);
}

static void test_dma_mask(void)
{
    check_dma_mask("", 1ULL << 28);
    check_dma_mask("", 0xfffffffff0000000);
    check_dma_mask(",dma-mask=0x3ffffff", 1ULL << 26);

}

/* A wide mask reaches what the default does not */
static void test_dma_peer(void)
{
    QOSState *qs = start("-device edu-plus,addr=4.0,ram-size=4M,"
                         "dma-mask=0xffffffffffffffff " DEVICE_B);
    g_autofree uint8_t *data = fill(qs->qts, DATA_ADDR, 64, 1);
    Device a, b;

    open_device(&a, qs, SLOT_A);
    open_device(&b, qs, SLOT_B);
    dma(&a, DATA_ADDR, BUF, 64, 0);
    dma(&a, BUF, b.ram.addr, 64, TO_BUS);
    check_mem(qs->qts, b.ram.addr, data, 64);
    end_two(qs, &a, &b);
}

/* Frames */

static uint32_t frame_seed(uint32_t n, uint32_t what)
{
    return (n + 1) * 2654435761u + what * 40503u;
}

static void fill_frame(Device *d, uint32_t n)
{
    fwr32(d, n, EDU_PLUS_FRAME_SCRATCH, frame_seed(n, 1));
    fwr32(d, n, EDU_PLUS_FRAME_INVERT, frame_seed(n, 2));
    for (uint32_t i = 0; i <= n % 4; i++) {
        fwr32(d, n, EDU_PLUS_FRAME_DOORBELL, frame_seed(n, 3) + i);
    }
    fwr64(d, n, EDU_PLUS_FRAME_SCRATCH64,
          ((uint64_t)frame_seed(n, 4) << 32) | frame_seed(n, 5));
}

static void check_frame(Device *d, uint32_t n, bool filled)
{
    g_assert_cmphex(frd32(d, n, EDU_PLUS_FRAME_ID), ==, EDU_PLUS_FRAME_MAGIC);
    g_assert_cmphex(frd32(d, n, EDU_PLUS_FRAME_INDEX), ==, n);
    g_assert_cmphex(frd32(d, n, EDU_PLUS_FRAME_SCRATCH), ==,
                    filled ? frame_seed(n, 1) : 0);
    g_assert_cmphex(frd32(d, n, EDU_PLUS_FRAME_INVERT), ==,
                    filled ? ~frame_seed(n, 2) : 0);
    g_assert_cmphex(frd32(d, n, EDU_PLUS_FRAME_DOORBELL_COUNT), ==,
                    filled ? n % 4 + 1 : 0);
    g_assert_cmphex(frd32(d, n, EDU_PLUS_FRAME_DOORBELL_LAST), ==,
                    filled ? frame_seed(n, 3) + n % 4 : 0);
    g_assert_cmphex(frd64(d, n, EDU_PLUS_FRAME_SCRATCH64), ==,
                    filled ? ((uint64_t)frame_seed(n, 4) << 32) |
                             frame_seed(n, 5) : 0);
}

static void test_frame_registers(void)
{
    static const uint32_t read_only[] = {
        EDU_PLUS_FRAME_ID, EDU_PLUS_FRAME_INDEX,
        EDU_PLUS_FRAME_DOORBELL_COUNT, EDU_PLUS_FRAME_DOORBELL_LAST,
    };
    static const uint32_t none[] = { 0x1c, 0x28, 0x2c, 0x800, 0xffc };
    Device a;
    QOSState *qs = start_one(&a);

    for (int i = 0; i < ARRAY_SIZE(read_only); i++) {
        fwr32(&a, 5, read_only[i], 0x55555555);
    }
    check_frame(&a, 5, false);
    for (int i = 0; i < ARRAY_SIZE(none); i++) {
        g_assert_cmphex(frd32(&a, 5, none[i]), ==, UINT32_MAX);
        fwr32(&a, 5, none[i], 0);
        g_assert_cmphex(frd32(&a, 5, none[i]), ==, UINT32_MAX);
    }
    check_frame(&a, 5, false);
    g_assert_cmphex(frd32(&a, 5, EDU_PLUS_FRAME_DOORBELL), ==, 0);

    fill_frame(&a, 5);
    check_frame(&a, 5, true);

    /* Halves, and pairs */
    fwr64(&a, 5, EDU_PLUS_FRAME_SCRATCH64, 0x123456789abcdef0);
    g_assert_cmphex(frd32(&a, 5, EDU_PLUS_FRAME_SCRATCH64), ==, 0x9abcdef0);
    g_assert_cmphex(frd32(&a, 5, EDU_PLUS_FRAME_SCRATCH64 + 4), ==,
                    0x12345678);
    fwr32(&a, 5, EDU_PLUS_FRAME_SCRATCH64 + 4, 0x55aa55aa);
    g_assert_cmphex(frd64(&a, 5, EDU_PLUS_FRAME_SCRATCH64), ==,
                    0x55aa55aa9abcdef0);
    fwr64(&a, 5, EDU_PLUS_FRAME_SCRATCH, 0x1111111122222222);
    g_assert_cmphex(frd64(&a, 5, EDU_PLUS_FRAME_SCRATCH), ==,
                    0xeeeeeeee22222222);
    g_assert_cmphex(frd64(&a, 5, EDU_PLUS_FRAME_ID), ==, 0x000000054d415246);

    end_one(qs, &a);
}

/* What happens in one frame is seen in that one only */
static void test_frames_independent(void)
{
    Device a;
    QOSState *qs = start_one(&a);

    for (uint32_t n = 0; n < EDU_PLUS_FRAMES_DEFAULT; n++) {
        fill_frame(&a, n);
        for (uint32_t m = 0; m < EDU_PLUS_FRAMES_DEFAULT; m++) {
            check_frame(&a, m, m <= n);
        }
    }
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==, 0);
    end_one(qs, &a);
}

static void test_frames_end(void)
{
    Device a;
    QOSState *qs = start("-device edu-plus,addr=4.0,ram-size=4M,frames=17");

    open_device(&a, qs, SLOT_A);
    fill_frame(&a, 16);
    check_frame(&a, 16, true);
    for (uint32_t n = 17; n < 32; n++) {
        fill_frame(&a, n);
        g_assert_cmphex(frd32(&a, n, EDU_PLUS_FRAME_ID), ==, UINT32_MAX);
        g_assert_cmphex(frd32(&a, n, EDU_PLUS_FRAME_SCRATCH), ==, UINT32_MAX);
        g_assert_cmphex(frd64(&a, n, EDU_PLUS_FRAME_SCRATCH64), ==,
                        UINT64_MAX);
    }
    for (uint32_t n = 0; n < 17; n++) {
        check_frame(&a, n, n == 16);
    }
    end_one(qs, &a);
}

/* Reset, power, life */

static void flr(Device *d)
{
    uint8_t cap = cap_of(d, PCI_CAP_ID_EXP);

    qpci_config_writew(d->pci, cap + PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_BCR_FLR);
}

/* Leaves nothing at its reset value, and all engines running */
static void make_dirty(Device *d)
{
    enable_msix(d, 1);
    for (uint32_t n = 0; n < EDU_PLUS_FRAMES_DEFAULT; n++) {
        fill_frame(d, n);
    }
    wr32(d, EDU_PLUS_REG_LIVENESS, 0x1234);
    wr32(d, EDU_PLUS_REG_STATUS, EDU_PLUS_STATUS_IRQFACT);
    wr32(d, EDU_PLUS_REG_FACTORIAL, 5);
    wr32(d, EDU_PLUS_REG_IRQ_RAISE, 0x55);
    start_dma(d, BUF, BACK_ADDR, 64, TO_BUS | EDU_PLUS_DMA_IRQ);
    start_copy(d, 0, BACK_ADDR + 4096, RAM_SIZE, 7, SRC_RAM | IRQ);
    step_copy(d);
    expect_status(d, EDU_PLUS_COPY_STATUS_BUSY, STEP);
}

static void check_after_reset(Device *d, const uint8_t *ram, uint32_t resets)
{
    /* Nothing of what ran comes to an end, nor writes */
    reopen_device(d);
    g_assert_cmphex(rd32(d, EDU_PLUS_REG_RESETS), ==, resets);
    check_reset_values(d);
    qtest_memset(d->qts, BACK_ADDR, 0, 4096 + RAM_SIZE);
    qtest_clock_step(d->qts, 2 * EDU_PLUS_DMA_NS);
    check_zero_steps(d->qts, BACK_ADDR, 4096 + RAM_SIZE);
    check_reset_values(d);
    g_assert_cmphex(take_message(d, MSI_ADDR), ==, 0);

    g_assert_cmphex(qpci_config_readw(d->pci, cap_of(d, PCI_CAP_ID_MSIX) +
                                      PCI_MSIX_FLAGS) &
                    PCI_MSIX_FLAGS_ENABLE, ==, 0);
    check_mem_steps(d->qts, d->ram.addr, ram, RAM_SIZE);

    /* The DMA engine's buffer is empty as well */
    qtest_memset(d->qts, BACK_ADDR, 0x55, BUF_SIZE);
    dma(d, BUF, BACK_ADDR, BUF_SIZE, TO_BUS);
    check_zero(d->qts, BACK_ADDR, BUF_SIZE);
    /* And everything works */
    copy(d, 0, BACK_ADDR, RAM_SIZE, SRC_RAM);
    check_mem_steps(d->qts, BACK_ADDR, ram, RAM_SIZE);
}

static void test_flr(void)
{
    Device a, b;
    QOSState *qs = start_two(&a, &b);
    g_autofree uint8_t *ram = fill_steps(qs->qts, a.ram.addr, RAM_SIZE, 1);
    uint32_t resets = rd32(&a, EDU_PLUS_REG_RESETS);

    fill_frame(&b, 3);
    for (int i = 1; i <= 2; i++) {
        g_autofree uint8_t *buf = fill(qs->qts, DATA_ADDR, BUF_SIZE, 2);

        dma(&a, DATA_ADDR, BUF, BUF_SIZE, 0);
        make_dirty(&a);
        take_message(&a, MSI_ADDR);
        flr(&a);
        g_assert_cmphex(qpci_config_readw(a.pci, PCI_COMMAND), ==, 0);
        check_after_reset(&a, ram, resets + i);
    }
    /* It is the function's own reset */
    check_frame(&b, 3, true);
    g_assert_cmphex(rd32(&b, EDU_PLUS_REG_RESETS), ==, 1);

    end_two(qs, &a, &b);
}

static void test_system_reset(void)
{
    Device a;
    QOSState *qs = start_one(&a);
    g_autofree uint8_t *ram = fill_steps(qs->qts, a.ram.addr, RAM_SIZE, 1);
    uint32_t resets = rd32(&a, EDU_PLUS_REG_RESETS);

    make_dirty(&a);
    take_message(&a, MSI_ADDR);
    qtest_system_reset(qs->qts);
    check_after_reset(&a, ram, resets + 1);
    end_one(qs, &a);
}

static void set_power(Device *d, unsigned state)
{
    qpci_config_writew(d->pci, cap_of(d, PCI_CAP_ID_PM) + PCI_PM_CTRL, state);
}

static unsigned get_power(Device *d)
{
    return qpci_config_readw(d->pci, cap_of(d, PCI_CAP_ID_PM) + PCI_PM_CTRL) &
           PCI_PM_CTRL_STATE_MASK;
}

static void test_power(void)
{
    Device a;
    QOSState *qs = start_one(&a);
    g_autofree uint8_t *ram = fill_steps(qs->qts, a.ram.addr, RAM_SIZE, 1);
    uint32_t resets = rd32(&a, EDU_PLUS_REG_RESETS);

    fill_frame(&a, 3);
    wr32(&a, EDU_PLUS_REG_LIVENESS, 0x1234);
    wr64(&a, EDU_PLUS_REG_COPY_SRC, 0x5678);

    /* There is no D1 nor D2 */
    set_power(&a, 1);
    g_assert_cmphex(get_power(&a), ==, 0);
    set_power(&a, 2);
    g_assert_cmphex(get_power(&a), ==, 0);

    set_power(&a, 3);
    g_assert_cmphex(get_power(&a), ==, 3);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_PLUS_ID), !=, EDU_PLUS_PLUS_ID);
    g_assert_cmphex(frd32(&a, 3, EDU_PLUS_FRAME_ID), !=,
                    EDU_PLUS_FRAME_MAGIC);
    wr32(&a, EDU_PLUS_REG_LIVENESS, 0);
    fwr32(&a, 3, EDU_PLUS_FRAME_DOORBELL, 1);
    qtest_memset(qs->qts, a.ram.addr, 0, 4096);
    check_zero(qs->qts, a.ram.addr, 4096);

    set_power(&a, 0);
    g_assert_cmphex(get_power(&a), ==, 0);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_PLUS_ID), ==, EDU_PLUS_PLUS_ID);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_LIVENESS), ==, ~0x1234u);
    g_assert_cmphex(rd64(&a, EDU_PLUS_REG_COPY_SRC), ==, 0x5678);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_RESETS), ==, resets);
    check_frame(&a, 3, true);
    check_mem_steps(qs->qts, a.ram.addr, ram, RAM_SIZE);

    end_one(qs, &a);
}

static void test_power_engines(void)
{
    Device a;
    QOSState *qs = start_one(&a);
    g_autofree uint8_t *ram = fill_steps(qs->qts, a.ram.addr, RAM_SIZE, 1);

    /* What runs stops; the interrupt that comes meanwhile is pending */
    start_copy(&a, 0, BACK_ADDR, RAM_SIZE, 1, SRC_RAM | IRQ);
    start_dma(&a, BUF, BACK_ADDR, 64, TO_BUS | EDU_PLUS_DMA_IRQ);
    step_copy(&a);
    wr32(&a, EDU_PLUS_REG_STATUS, EDU_PLUS_STATUS_IRQFACT);
    wr32(&a, EDU_PLUS_REG_FACTORIAL, 5);
    set_power(&a, 3);
    qtest_clock_step(qs->qts, 2 * EDU_PLUS_DMA_NS);
    g_assert_false(intx(&a));
    check_mem_steps(qs->qts, BACK_ADDR, ram, STEP);
    check_zero_steps(qs->qts, BACK_ADDR + STEP, RAM_SIZE - STEP);

    set_power(&a, 0);
    expect_status(&a, EDU_PLUS_COPY_ERR_ABORTED, STEP);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_DMA_CMD), ==,
                    TO_BUS | EDU_PLUS_DMA_IRQ);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_FACTORIAL), ==, 120);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==,
                    EDU_PLUS_IRQ_FACT);
    g_assert_true(intx(&a));
    qtest_clock_step(qs->qts, 2 * EDU_PLUS_DMA_NS);
    check_zero_steps(qs->qts, BACK_ADDR + STEP, RAM_SIZE - STEP);

    /* No messages from there either */
    wr32(&a, EDU_PLUS_REG_IRQ_ACK, EDU_PLUS_IRQ_FACT);
    enable_msi(&a, 0x99);
    wr32(&a, EDU_PLUS_REG_FACTORIAL, 5);
    set_power(&a, 3);
    qtest_clock_step(qs->qts, EDU_PLUS_DMA_NS);
    g_assert_cmphex(take_message(&a, MSI_ADDR), ==, 0);
    set_power(&a, 0);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_IRQ_STATUS), ==,
                    EDU_PLUS_IRQ_FACT);
    wr32(&a, EDU_PLUS_REG_IRQ_RAISE, 2);
    g_assert_cmphex(take_message(&a, MSI_ADDR), ==, 0x99);

    /* A function level reset wakes it */
    set_power(&a, 3);
    flr(&a);
    g_assert_cmphex(get_power(&a), ==, 0);
    reopen_device(&a);
    check_reset_values(&a);

    end_one(qs, &a);
}

static void test_unplug(void)
{
    QOSState *qs = qtest_pc_boot("-machine pc -nodefaults -m 256M " DEVICE_A);
    g_autofree uint8_t *zero = g_malloc0(4096);
    Device a;

    for (int i = 0; i < 3; i++) {
        open_device(&a, qs, SLOT_A);
        g_assert_cmphex(rd32(&a, EDU_PLUS_REG_RESETS), ==, 1);
        check_mem(qs->qts, a.ram.addr, zero, 4096);
        /* It leaves with everything running */
        g_free(fill_steps(qs->qts, a.ram.addr, RAM_SIZE, i + 1));
        make_dirty(&a);
        qtest_memset(qs->qts, BACK_ADDR, 0, 4096 + RAM_SIZE);
        qpci_unplug_acpi_device_test(qs->qts, "a", SLOT_A);
        g_assert_null(qpci_device_find(qs->pcibus, QPCI_DEVFN(SLOT_A, 0)));
        qtest_clock_step(qs->qts, 2 * EDU_PLUS_DMA_NS);
        check_zero_steps(qs->qts, BACK_ADDR, 4096 + RAM_SIZE);
        g_free(a.pci);

        qtest_qmp_device_add(qs->qts, TYPE_EDU_PLUS, "a",
                             "{'addr': '4.0', 'ram-size': 4194304}");
    }
    qtest_shutdown(qs);
}

static QOSState *start_incoming(const char *uri, const char *params)
{
    g_autofree char *args = g_strdup_printf(
        "-incoming %s -device edu-plus,id=a,addr=4.0,ram-size=4M%s", uri,
        params);

    return start(args);
}

/* A copy that switches off the slot which its own device is in */
static void test_own_unplug(void)
{
    QOSState *qs = start("-global ICH9-LPC.acpi-pci-hotplug-with-bridge-"
                         "support=off -device pcie-root-port,id=rp,addr=3.0 "
                         "-device edu-plus,id=a,bus=rp,ram-size=4M");
    QPCIDevice *rp = qpci_device_find(qs->pcibus, QPCI_DEVFN(3, 0));
    Device a = { .qts = qs->qts };
    uint64_t bars, slot_control;
    uint16_t off;
    uint8_t cap;

    g_assert_nonnull(rp);
    enable_mmconfig(qs);
    qpci_config_writeb(rp, PCI_SECONDARY_BUS, 1);
    qpci_config_writeb(rp, PCI_SUBORDINATE_BUS, 1);
    a.pci = qpci_device_find(qs->pcibus, 1 << 8);
    g_assert_nonnull(a.pci);
    a.regs = qpci_iomap(a.pci, EDU_PLUS_BAR_REGS, &bars);
    qpci_config_writew(rp, PCI_MEMORY_BASE, a.regs.addr >> 16);
    qpci_config_writew(rp, PCI_MEMORY_LIMIT, (a.regs.addr + bars - 1) >> 16);
    qpci_device_enable(rp);
    qpci_device_enable(a.pci);
    g_assert_cmphex(rd32(&a, EDU_PLUS_REG_PLUS_ID), ==, EDU_PLUS_PLUS_ID);

    cap = qpci_find_capability(rp, PCI_CAP_ID_EXP, 0);
    slot_control = MCH_HOST_BRIDGE_PCIEXBAR_DEFAULT +
                   (QPCI_DEVFN(3, 0) << 12) + cap + PCI_EXP_SLTCTL;
    off = PCI_EXP_SLTCTL_PCC | PCI_EXP_SLTCTL_PWR_IND_OFF;
    qtest_writew(qs->qts, DATA_ADDR, off);
    start_copy(&a, DATA_ADDR, slot_control, 2, 1000, IRQ);
    expect_status(&a, EDU_PLUS_COPY_STATUS_BUSY, 0);
    step_copy(&a);
    qtest_qmp_eventwait(qs->qts, "DEVICE_DELETED");
    step_copy(&a);
    g_assert_null(qpci_device_find(qs->pcibus, 1 << 8));

    g_free(rp);
    end_one(qs, &a);
}

static void test_migrate(void)
{
    g_autofree char *dir = g_dir_make_tmp("edu-plus-test-XXXXXX", NULL);
    g_autofree char *path = g_strdup_printf("%s/socket", dir);
    g_autofree char *uri = g_strdup_printf("unix:%s", path);
    QOSState *from, *to;
    Device a, b;
    g_autofree uint8_t *ram = NULL;

    from = start_one(&a);
    to = start_incoming(uri, "");
    ram = fill_steps(from->qts, a.ram.addr, RAM_SIZE, 1);
    make_dirty(&a);
    g_assert_cmphex(take_message(&a, MSI_ADDR), ==, 0xa0);
    flr(&a);
    reopen_device(&a);
    make_dirty(&a);
    take_message(&a, MSI_ADDR);

    migrate(from, to, uri);

    /* All goes on over there, from where it was */
    b = a;
    b.qts = to->qts;
    b.pci = qpci_device_find(to->pcibus, QPCI_DEVFN(SLOT_A, 0));
    g_assert_nonnull(b.pci);
    g_assert_cmphex(rd32(&b, EDU_PLUS_REG_RESETS), ==, 2);
    g_assert_cmphex(rd32(&b, EDU_PLUS_REG_LIVENESS), ==, ~0x1234u);
    g_assert_cmphex(rd32(&b, EDU_PLUS_REG_STATUS), ==,
                    EDU_PLUS_STATUS_IRQFACT | EDU_PLUS_STATUS_COMPUTING);
    g_assert_cmphex(rd32(&b, EDU_PLUS_REG_IRQ_STATUS), ==, 0x55);
    for (uint32_t n = 0; n < EDU_PLUS_FRAMES_DEFAULT; n++) {
        check_frame(&b, n, true);
    }
    check_mem_steps(to->qts, b.ram.addr, ram, RAM_SIZE);
    expect_status(&b, EDU_PLUS_COPY_STATUS_BUSY, STEP);
    finish_copy(&b, EDU_PLUS_COPY_OK, 7 * RAM_SIZE);
    check_mem_steps(to->qts, BACK_ADDR + 4096, ram, RAM_SIZE);
    g_assert_cmphex(take_message(&b, MSI_ADDR), ==, 0xa0);
    qtest_clock_step(to->qts, EDU_PLUS_DMA_NS);
    g_assert_cmphex(rd32(&b, EDU_PLUS_REG_IRQ_STATUS), ==, 0x55 |
                    EDU_PLUS_IRQ_FACT | EDU_PLUS_IRQ_DMA | EDU_PLUS_IRQ_COPY);

    end_one(from, &a);
    end_one(to, &b);
    unlink(path);
    rmdir(dir);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/edu-plus/config", test_config);
    qtest_add_func("/edu-plus/root-port", test_root_port);
    qtest_add_func("/edu-plus/bars", test_bars);
    qtest_add_func("/edu-plus/bad-properties", test_bad_properties);
    qtest_add_func("/edu-plus/registers", test_registers);
    qtest_add_func("/edu-plus/access-size", test_access_size);
    qtest_add_func("/edu-plus/factorial", test_factorial);
    qtest_add_func("/edu-plus/irq/intx", test_intx);
    qtest_add_func("/edu-plus/irq/msi", test_msi);
    qtest_add_func("/edu-plus/irq/msix", test_msix);
    qtest_add_func("/edu-plus/irq/msix-vectors", test_msix_vectors);
    qtest_add_func("/edu-plus/dma/transfer", test_dma);
    qtest_add_func("/edu-plus/dma/range", test_dma_range);
    qtest_add_func("/edu-plus/dma/mask", test_dma_mask);
    qtest_add_func("/edu-plus/dma/peer", test_dma_peer);
    qtest_add_func("/edu-plus/frames/registers", test_frame_registers);
    qtest_add_func("/edu-plus/frames/independent", test_frames_independent);
    qtest_add_func("/edu-plus/frames/end", test_frames_end);
    qtest_add_func("/edu-plus/copy/kinds", test_copy_kinds);
    qtest_add_func("/edu-plus/copy/steps", test_copy_steps);
    qtest_add_func("/edu-plus/copy/count", test_copy_count);
    qtest_add_func("/edu-plus/copy/peer", test_copy_peer);
    qtest_add_func("/edu-plus/copy/irq", test_copy_irq);
    qtest_add_func("/edu-plus/copy/range", test_copy_range);
    qtest_add_func("/edu-plus/copy/no-ram", test_copy_no_ram);
    qtest_add_func("/edu-plus/copy/command", test_copy_command);
    qtest_add_func("/edu-plus/copy/busy", test_copy_busy);
    qtest_add_func("/edu-plus/copy/abort", test_copy_abort);
    qtest_add_func("/edu-plus/copy/bus-error", test_copy_bus_error);
    qtest_add_func("/edu-plus/copy/own-bars", test_copy_own_bars);
    qtest_add_func("/edu-plus/copy/own-reset", test_copy_own_reset);
    qtest_add_func("/edu-plus/reset/flr", test_flr);
    qtest_add_func("/edu-plus/reset/system", test_system_reset);
    qtest_add_func("/edu-plus/power/bars", test_power);
    qtest_add_func("/edu-plus/power/engines", test_power_engines);
    qtest_add_func("/edu-plus/unplug/running", test_unplug);
    qtest_add_func("/edu-plus/unplug/own", test_own_unplug);
    qtest_add_func("/edu-plus/migrate", test_migrate);

    return g_test_run();
}
