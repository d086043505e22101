/*
 * QTest of the educational PCI device
 *
 * Pins what docs/specs/edu.rst promises, and what drivers have come to rely
 * on.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "libqtest.h"
#include "libqos/libqos-pc.h"
#include "hw/pci/pci.h"
#include "hw/pci/pci_ids.h"
#include "hw/pci/pci_regs.h"
#include "qemu/units.h"

#define EDU_SLOT                4

#define EDU_REG_ID              0x00
#define EDU_REG_LIVENESS        0x04
#define EDU_REG_FACTORIAL       0x08
#define EDU_REG_STATUS          0x20
#define EDU_REG_IRQ_STATUS      0x24
#define EDU_REG_IRQ_RAISE       0x60
#define EDU_REG_IRQ_ACK         0x64
#define EDU_REG_DMA_SRC         0x80
#define EDU_REG_DMA_DST         0x88
#define EDU_REG_DMA_COUNT       0x90
#define EDU_REG_DMA_CMD         0x98

#define EDU_STATUS_COMPUTING    0x01
#define EDU_STATUS_IRQFACT      0x80

#define EDU_IRQ_FACT            0x001
#define EDU_IRQ_DMA             0x100

#define EDU_DMA_RUN             0x1
#define EDU_DMA_TO_BUS          0x2
#define EDU_DMA_IRQ             0x4
#define EDU_DMA_BUF             0x40000
#define EDU_DMA_BUF_SIZE        4096
#define EDU_DMA_NS              (100 * 1000 * 1000)

/* In the guest's RAM */
#define MSI_ADDR                0x01000000
#define DATA_ADDR               0x01100000
#define BACK_ADDR               0x01200000

typedef struct TestEdu {
    QOSState *qs;
    QTestState *qts;
    QPCIDevice *dev;
    QPCIBar bar;
    uint64_t bar_size;
} TestEdu;

static void edu_start(TestEdu *edu, const char *params)
{
    edu->qs = qtest_pc_boot("-machine q35 -nodefaults "
                            "-device edu,addr=%d.0%s",
                            EDU_SLOT, params);
    edu->qts = edu->qs->qts;
    edu->dev = qpci_device_find(edu->qs->pcibus, QPCI_DEVFN(EDU_SLOT, 0));
    g_assert_nonnull(edu->dev);
    edu->bar = qpci_iomap(edu->dev, 0, &edu->bar_size);
    qpci_device_enable(edu->dev);
}

static void edu_end(TestEdu *edu)
{
    g_free(edu->dev);
    qtest_shutdown(edu->qs);
}

static uint32_t edu_read(TestEdu *edu, uint64_t reg)
{
    return qpci_io_readl(edu->dev, edu->bar, reg);
}

static uint64_t edu_read64(TestEdu *edu, uint64_t reg)
{
    return qpci_io_readq(edu->dev, edu->bar, reg);
}

static void edu_write(TestEdu *edu, uint64_t reg, uint32_t val)
{
    qpci_io_writel(edu->dev, edu->bar, reg, val);
}

static void edu_write64(TestEdu *edu, uint64_t reg, uint64_t val)
{
    qpci_io_writeq(edu->dev, edu->bar, reg, val);
}

static bool edu_intx(TestEdu *edu)
{
    return qpci_config_readw(edu->dev, PCI_STATUS) & PCI_STATUS_INTERRUPT;
}

static void edu_enable_msi(TestEdu *edu, uint16_t data)
{
    uint8_t cap = qpci_find_capability(edu->dev, PCI_CAP_ID_MSI, 0);

    g_assert_cmphex(cap, !=, 0);
    qpci_config_writel(edu->dev, cap + PCI_MSI_ADDRESS_LO, MSI_ADDR);
    qpci_config_writel(edu->dev, cap + PCI_MSI_ADDRESS_HI, 0);
    qpci_config_writew(edu->dev, cap + PCI_MSI_DATA_64, data);
    qpci_config_writew(edu->dev, cap + PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE);
}

/* Takes the message that came, 0 for none */
static uint32_t edu_take_msi(TestEdu *edu)
{
    uint32_t data = qtest_readl(edu->qts, MSI_ADDR);

    qtest_writel(edu->qts, MSI_ADDR, 0);
    return data;
}

static void test_config(void)
{
    TestEdu edu;
    QPCIDevice *dev;
    uint8_t cap;

    edu_start(&edu, "");
    dev = edu.dev;

    g_assert_cmphex(qpci_config_readw(dev, PCI_VENDOR_ID), ==, 0x1234);
    g_assert_cmphex(qpci_config_readw(dev, PCI_DEVICE_ID), ==, 0x11e8);
    g_assert_cmphex(qpci_config_readb(dev, PCI_REVISION_ID), ==, 0x10);
    g_assert_cmphex(qpci_config_readw(dev, PCI_CLASS_DEVICE), ==,
                    PCI_CLASS_OTHERS);
    g_assert_cmphex(qpci_config_readb(dev, PCI_INTERRUPT_PIN), ==, 1);

    g_assert_cmphex(edu.bar_size, ==, 1 * MiB);
    g_assert_cmphex(qpci_config_readl(dev, PCI_BASE_ADDRESS_0) & 0xf, ==,
                    PCI_BASE_ADDRESS_SPACE_MEMORY);
    for (int reg = PCI_BASE_ADDRESS_1; reg <= PCI_BASE_ADDRESS_5; reg += 4) {
        qpci_config_writel(dev, reg, 0xffffffff);
        g_assert_cmphex(qpci_config_readl(dev, reg), ==, 0);
    }

    cap = qpci_find_capability(dev, PCI_CAP_ID_MSI, 0);
    g_assert_cmphex(cap, !=, 0);
    g_assert_cmphex(qpci_config_readw(dev, cap + PCI_MSI_FLAGS), ==,
                    PCI_MSI_FLAGS_64BIT);
    g_assert_cmphex(qpci_find_capability(dev, PCI_CAP_ID_MSIX, 0), ==, 0);
    g_assert_cmphex(qpci_find_capability(dev, PCI_CAP_ID_EXP, 0), ==, 0);
    g_assert_cmphex(qpci_find_capability(dev, PCI_CAP_ID_PM, 0), ==, 0);

    edu_end(&edu);
}

static void test_registers(void)
{
    static const uint32_t reg32[] = {
        EDU_REG_LIVENESS, EDU_REG_FACTORIAL, EDU_REG_STATUS,
        EDU_REG_IRQ_STATUS,
    };
    static const uint32_t reg64[] = {
        EDU_REG_DMA_SRC, EDU_REG_DMA_DST, EDU_REG_DMA_COUNT, EDU_REG_DMA_CMD,
    };
    static const uint32_t none[] = {
        0x0c, 0x10, 0x1c, 0x28, 0x5c, EDU_REG_IRQ_RAISE, EDU_REG_IRQ_ACK,
        0x68, 0x7c, 0x84, 0x9c, 0xa0, 0x1000, EDU_DMA_BUF, 0xffffc,
    };
    TestEdu edu;

    edu_start(&edu, "");

    g_assert_cmphex(edu_read(&edu, EDU_REG_ID), ==, 0x010000ed);
    edu_write(&edu, EDU_REG_ID, 0);
    g_assert_cmphex(edu_read(&edu, EDU_REG_ID), ==, 0x010000ed);

    for (int i = 0; i < ARRAY_SIZE(reg32); i++) {
        g_assert_cmphex(edu_read(&edu, reg32[i]), ==, 0);
        /* Not with 8 bytes, below 0x80 */
        g_assert_cmphex(edu_read64(&edu, reg32[i] & ~7), ==, UINT64_MAX);
    }
    for (int i = 0; i < ARRAY_SIZE(reg64); i++) {
        g_assert_cmphex(edu_read64(&edu, reg64[i]), ==, 0);
    }
    for (int i = 0; i < ARRAY_SIZE(none); i++) {
        g_assert_cmphex(edu_read(&edu, none[i]), ==, UINT32_MAX);
    }

    for (int i = 0; i < 3; i++) {
        edu_write64(&edu, reg64[i], 0x123456789abcdef0);
        g_assert_cmphex(edu_read64(&edu, reg64[i]), ==, 0x123456789abcdef0);
        g_assert_cmphex(edu_read(&edu, reg64[i]), ==, 0x9abcdef0);
        /* 4 bytes are the whole register */
        edu_write(&edu, reg64[i], 0x55aa55aa);
        g_assert_cmphex(edu_read64(&edu, reg64[i]), ==, 0x55aa55aa);
    }

    edu_end(&edu);
}

static void test_liveness(void)
{
    static const uint32_t values[] = { 0, 1, 0x12345678, 0xffffffff };
    TestEdu edu;

    edu_start(&edu, "");
    for (int i = 0; i < ARRAY_SIZE(values); i++) {
        edu_write(&edu, EDU_REG_LIVENESS, values[i]);
        g_assert_cmphex(edu_read(&edu, EDU_REG_LIVENESS), ==, ~values[i]);
    }
    edu_end(&edu);
}

/* A thread of QEMU computes, so it takes real time */
static void edu_wait_computed(TestEdu *edu)
{
    int64_t deadline = g_get_monotonic_time() + 60 * G_TIME_SPAN_SECOND;

    while (edu_read(edu, EDU_REG_STATUS) & EDU_STATUS_COMPUTING) {
        g_assert_cmpint(g_get_monotonic_time(), <, deadline);
    }
}

static void test_factorial(void)
{
    static const struct {
        uint32_t n, res;
    } values[] = {
        { 0, 1 }, { 1, 1 }, { 5, 120 }, { 12, 479001600 },
        { 13, 0x7328cc00 }, { 33, 0x80000000 }, { 34, 0 }, { 1000000, 0 },
    };
    TestEdu edu;

    edu_start(&edu, "");
    for (int i = 0; i < ARRAY_SIZE(values); i++) {
        edu_write(&edu, EDU_REG_FACTORIAL, values[i].n);
        edu_wait_computed(&edu);
        g_assert_cmphex(edu_read(&edu, EDU_REG_FACTORIAL), ==, values[i].res);
        g_assert_cmphex(edu_read(&edu, EDU_REG_IRQ_STATUS), ==, 0);
    }

    /* Only the interrupt bit of the status can be written */
    edu_write(&edu, EDU_REG_STATUS, 0xffffffff);
    g_assert_cmphex(edu_read(&edu, EDU_REG_STATUS), ==, EDU_STATUS_IRQFACT);

    edu_write(&edu, EDU_REG_FACTORIAL, 6);
    edu_wait_computed(&edu);
    g_assert_cmphex(edu_read(&edu, EDU_REG_FACTORIAL), ==, 720);
    /* The interrupt comes a moment after the flag has gone */
    for (int64_t end = g_get_monotonic_time() + 60 * G_TIME_SPAN_SECOND;
         edu_read(&edu, EDU_REG_IRQ_STATUS) != EDU_IRQ_FACT;) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
    }
    g_assert_true(edu_intx(&edu));
    edu_write(&edu, EDU_REG_IRQ_ACK, EDU_IRQ_FACT);
    g_assert_false(edu_intx(&edu));

    edu_write(&edu, EDU_REG_STATUS, 0);
    g_assert_cmphex(edu_read(&edu, EDU_REG_STATUS), ==, 0);
    edu_end(&edu);
}

static void test_intx(void)
{
    TestEdu edu;

    edu_start(&edu, "");
    g_assert_false(edu_intx(&edu));

    edu_write(&edu, EDU_REG_IRQ_RAISE, 0);
    g_assert_false(edu_intx(&edu));

    edu_write(&edu, EDU_REG_IRQ_RAISE, 0x6);
    g_assert_cmphex(edu_read(&edu, EDU_REG_IRQ_STATUS), ==, 0x6);
    g_assert_true(edu_intx(&edu));
    edu_write(&edu, EDU_REG_IRQ_RAISE, 0x80000000);
    g_assert_cmphex(edu_read(&edu, EDU_REG_IRQ_STATUS), ==, 0x80000006);

    edu_write(&edu, EDU_REG_IRQ_ACK, 0x80000002);
    g_assert_cmphex(edu_read(&edu, EDU_REG_IRQ_STATUS), ==, 0x4);
    g_assert_true(edu_intx(&edu));
    edu_write(&edu, EDU_REG_IRQ_ACK, 0x4);
    g_assert_cmphex(edu_read(&edu, EDU_REG_IRQ_STATUS), ==, 0);
    g_assert_false(edu_intx(&edu));

    edu_end(&edu);
}

static void test_msi(void)
{
    TestEdu edu;

    edu_start(&edu, "");
    edu_enable_msi(&edu, 0x1234);
    g_assert_cmphex(edu_take_msi(&edu), ==, 0);

    edu_write(&edu, EDU_REG_IRQ_RAISE, 0x1);
    g_assert_cmphex(edu_take_msi(&edu), ==, 0x1234);
    /* One message for each, acknowledged or not */
    edu_write(&edu, EDU_REG_IRQ_RAISE, 0x1);
    g_assert_cmphex(edu_take_msi(&edu), ==, 0x1234);
    g_assert_false(edu_intx(&edu));

    edu_write(&edu, EDU_REG_IRQ_ACK, 0x1);
    g_assert_cmphex(edu_read(&edu, EDU_REG_IRQ_STATUS), ==, 0);
    g_assert_cmphex(edu_take_msi(&edu), ==, 0);

    edu_end(&edu);
}

static void edu_dma_start(TestEdu *edu, uint64_t src, uint64_t dst,
                          uint64_t count, uint32_t cmd)
{
    edu_write64(edu, EDU_REG_DMA_SRC, src);
    edu_write64(edu, EDU_REG_DMA_DST, dst);
    edu_write64(edu, EDU_REG_DMA_COUNT, count);
    edu_write(edu, EDU_REG_DMA_CMD, cmd | EDU_DMA_RUN);
    g_assert_cmphex(edu_read(edu, EDU_REG_DMA_CMD), ==, cmd | EDU_DMA_RUN);
}

static void edu_dma(TestEdu *edu, uint64_t src, uint64_t dst, uint64_t count,
                    uint32_t cmd)
{
    edu_dma_start(edu, src, dst, count, cmd);
    qtest_clock_step(edu->qts, EDU_DMA_NS);
    g_assert_cmphex(edu_read(edu, EDU_REG_DMA_CMD), ==, cmd);
}

static void fill(uint8_t *buf, size_t len, uint8_t seed)
{
    for (size_t i = 0; i < len; i++) {
        buf[i] = seed + i + (i >> 8);
    }
}

static void test_dma(void)
{
    uint8_t data[EDU_DMA_BUF_SIZE], other[EDU_DMA_BUF_SIZE];
    uint8_t back[EDU_DMA_BUF_SIZE], zero[EDU_DMA_BUF_SIZE] = { };
    TestEdu edu;

    edu_start(&edu, "");
    fill(data, sizeof(data), 1);
    fill(other, sizeof(other), 101);
    qtest_memwrite(edu.qts, DATA_ADDR, data, sizeof(data));

    /* There and back, all of the buffer */
    edu_dma(&edu, DATA_ADDR, EDU_DMA_BUF, sizeof(data), 0);
    edu_dma(&edu, EDU_DMA_BUF, BACK_ADDR, sizeof(data), EDU_DMA_TO_BUS);
    qtest_memread(edu.qts, BACK_ADDR, back, sizeof(back));
    g_assert_cmpmem(back, sizeof(back), data, sizeof(data));
    g_assert_cmphex(edu_read(&edu, EDU_REG_IRQ_STATUS), ==, 0);

    /* A part of it, up to its end */
    qtest_memwrite(edu.qts, DATA_ADDR, other, sizeof(other));
    edu_dma(&edu, DATA_ADDR, EDU_DMA_BUF + 4000, 96, 0);
    memcpy(data + 4000, other, 96);
    edu_dma(&edu, EDU_DMA_BUF, BACK_ADDR, sizeof(data), EDU_DMA_TO_BUS);
    qtest_memread(edu.qts, BACK_ADDR, back, sizeof(back));
    g_assert_cmpmem(back, sizeof(back), data, sizeof(data));

    /* It takes its time, and lets nobody change it meanwhile */
    qtest_memwrite(edu.qts, BACK_ADDR, zero, sizeof(zero));
    edu_dma_start(&edu, EDU_DMA_BUF, BACK_ADDR, 64,
                  EDU_DMA_TO_BUS | EDU_DMA_IRQ);
    edu_write64(&edu, EDU_REG_DMA_SRC, 1);
    edu_write64(&edu, EDU_REG_DMA_DST, 1);
    edu_write64(&edu, EDU_REG_DMA_COUNT, 1);
    edu_write64(&edu, EDU_REG_DMA_CMD, 0);
    qtest_clock_step(edu.qts, EDU_DMA_NS - 2 * 1000 * 1000);
    qtest_memread(edu.qts, BACK_ADDR, back, sizeof(back));
    g_assert_cmpmem(back, sizeof(back), zero, sizeof(zero));
    g_assert_cmphex(edu_read(&edu, EDU_REG_IRQ_STATUS), ==, 0);
    qtest_clock_step(edu.qts, 2 * 1000 * 1000);
    g_assert_cmphex(edu_read64(&edu, EDU_REG_DMA_SRC), ==, EDU_DMA_BUF);
    g_assert_cmphex(edu_read64(&edu, EDU_REG_DMA_DST), ==, BACK_ADDR);
    g_assert_cmphex(edu_read64(&edu, EDU_REG_DMA_COUNT), ==, 64);
    g_assert_cmphex(edu_read64(&edu, EDU_REG_DMA_CMD), ==,
                    EDU_DMA_TO_BUS | EDU_DMA_IRQ);
    qtest_memread(edu.qts, BACK_ADDR, back, sizeof(back));
    g_assert_cmpmem(back, 64, data, 64);
    g_assert_cmpmem(back + 64, sizeof(back) - 64, zero, sizeof(zero) - 64);
    g_assert_cmphex(edu_read(&edu, EDU_REG_IRQ_STATUS), ==, EDU_IRQ_DMA);
    g_assert_true(edu_intx(&edu));

    /* Without the bit to run nothing is taken */
    edu_write(&edu, EDU_REG_DMA_CMD, 0);
    g_assert_cmphex(edu_read64(&edu, EDU_REG_DMA_CMD), ==,
                    EDU_DMA_TO_BUS | EDU_DMA_IRQ);

    edu_end(&edu);
}

static void test_dma_range(void)
{
    static const struct {
        uint64_t addr, count;
    } bad[] = {
        { EDU_DMA_BUF, EDU_DMA_BUF_SIZE + 1 },
        { EDU_DMA_BUF + 1, EDU_DMA_BUF_SIZE },
        { EDU_DMA_BUF - 1, 2 },
        { EDU_DMA_BUF + EDU_DMA_BUF_SIZE, 1 },
        { EDU_DMA_BUF, UINT64_MAX },
        { EDU_DMA_BUF + 8, UINT64_MAX - 4 },
        { UINT64_MAX, 1 },
        { 0, 1 },
    };
    uint8_t data[EDU_DMA_BUF_SIZE], other[EDU_DMA_BUF_SIZE];
    uint8_t back[EDU_DMA_BUF_SIZE], zero[EDU_DMA_BUF_SIZE] = { };
    TestEdu edu;

    edu_start(&edu, "");
    fill(data, sizeof(data), 1);
    fill(other, sizeof(other), 101);
    qtest_memwrite(edu.qts, DATA_ADDR, data, sizeof(data));
    edu_dma(&edu, DATA_ADDR, EDU_DMA_BUF, sizeof(data), 0);
    qtest_memwrite(edu.qts, DATA_ADDR, other, sizeof(other));

    for (int i = 0; i < ARRAY_SIZE(bad); i++) {
        edu_dma(&edu, DATA_ADDR, bad[i].addr, bad[i].count, 0);
        edu_dma(&edu, bad[i].addr, BACK_ADDR, bad[i].count,
                EDU_DMA_TO_BUS | EDU_DMA_IRQ);
        qtest_memread(edu.qts, BACK_ADDR, back, sizeof(back));
        g_assert_cmpmem(back, sizeof(back), zero, sizeof(zero));
        g_assert_cmphex(edu_read(&edu, EDU_REG_IRQ_STATUS), ==, EDU_IRQ_DMA);
        edu_write(&edu, EDU_REG_IRQ_ACK, EDU_IRQ_DMA);
    }

    edu_dma(&edu, EDU_DMA_BUF, BACK_ADDR, sizeof(data), EDU_DMA_TO_BUS);
    qtest_memread(edu.qts, BACK_ADDR, back, sizeof(back));
    g_assert_cmpmem(back, sizeof(back), data, sizeof(data));

    edu_end(&edu);
}

static void dma_mask(const char *params, uint64_t above)
{
    uint8_t data[64], back[64];
    TestEdu edu;

    edu_start(&edu, params);
    fill(data, sizeof(data), 7);
    qtest_memwrite(edu.qts, DATA_ADDR, data, sizeof(data));
    edu_dma(&edu, above | DATA_ADDR, EDU_DMA_BUF, sizeof(data), 0);
    edu_dma(&edu, EDU_DMA_BUF, above | BACK_ADDR, sizeof(data),
            EDU_DMA_TO_BUS);
    qtest_memread(edu.qts, BACK_ADDR, back, sizeof(back));
    g_assert_cmpmem(back, sizeof(back), data, sizeof(data));
    edu_end(&edu);
}

static void test_dma_mask(void)
{
    dma_mask("", 1ULL << 28);
    dma_mask("", 0xfffffffff0000000);
    dma_mask(",dma_mask=0x1ffffff", 1ULL << 25);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    qtest_add_func("/edu/config", test_config);
    qtest_add_func("/edu/registers", test_registers);
    qtest_add_func("/edu/liveness", test_liveness);
    qtest_add_func("/edu/factorial", test_factorial);
    qtest_add_func("/edu/irq/intx", test_intx);
    qtest_add_func("/edu/irq/msi", test_msi);
    qtest_add_func("/edu/dma/transfer", test_dma);
    qtest_add_func("/edu/dma/range", test_dma_range);
    qtest_add_func("/edu/dma/mask", test_dma_mask);

    return g_test_run();
}
