/*
 * edu-plus: a PCI Express test device for VFIO and peer-to-peer DMA
 *
 * It behaves as edu does, and adds what a test of a VFIO driver needs: a BAR
 * of RAM, a BAR of independent register frames, function level reset, power
 * management, MSI-X, and a DMA engine that reaches other devices' BARs.
 * See docs/specs/edu-plus.rst.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "qemu/host-utils.h"
#include "qemu/log.h"
#include "qemu/module.h"
#include "qemu/timer.h"
#include "qapi/error.h"
#include "hw/misc/edu-plus.h"
#include "hw/pci/msi.h"
#include "hw/pci/msix.h"
#include "hw/pci/pci_device.h"
#include "hw/qdev-properties.h"
#include "hw/resettable.h"
#include "migration/vmstate.h"
#include "qom/object.h"
#include "trace.h"

OBJECT_DECLARE_SIMPLE_TYPE(EduPlusState, EDU_PLUS)

/* No request of the copy engine crosses such a boundary, as on PCI Express */
#define COPY_PIECE_SIZE         (4 * KiB)

/* Long enough for software to see EDU_PLUS_STATUS_COMPUTING */
#define FACTORIAL_NS            (100 * SCALE_US)

#define COPY_CMD_START_MASK     (EDU_PLUS_COPY_CMD_START | \
                                 EDU_PLUS_COPY_CMD_SRC_RAM | \
                                 EDU_PLUS_COPY_CMD_DST_RAM | \
                                 EDU_PLUS_COPY_CMD_IRQ)

typedef struct EduPlusFrame {
    uint32_t scratch;
    uint32_t invert;
    uint32_t doorbell_count;
    uint32_t doorbell_last;
    uint64_t scratch64;
} EduPlusFrame;

typedef struct EduPlusDma {
    uint64_t src;
    uint64_t dst;
    uint64_t count;
    uint64_t cmd;
    uint8_t buf[EDU_PLUS_DMA_BUF_SIZE];
    QEMUTimer timer;
} EduPlusDma;

typedef struct EduPlusCopy {
    uint64_t src;
    uint64_t dst;
    uint64_t len;
    uint32_t count;
    uint32_t cmd;               /* of the last or the running copy */
    uint32_t status;
    uint64_t done;
    uint8_t bounce[COPY_PIECE_SIZE];
    QEMUTimer timer;
} EduPlusCopy;

struct EduPlusState {
    PCIDevice parent_obj;

    /* properties */
    uint64_t ram_size;
    uint64_t dma_mask;
    uint32_t num_frames;
    uint32_t msix_vectors;

    MemoryRegion regs_mr;
    MemoryRegion ext_mr;
    MemoryRegion ram_mr;
    MemoryRegion frames_mr;
    EduPlusFrame *frames;

    uint32_t liveness;
    uint32_t factorial;
    uint32_t status;
    uint32_t irq_status;
    QEMUTimer factorial_timer;
    EduPlusDma dma;
    EduPlusCopy copy;
    uint32_t resets;
};

/* Interrupts */

static bool edu_plus_in_d0(EduPlusState *s)
{
    PCIDevice *pdev = PCI_DEVICE(s);
    uint16_t pmcsr = pci_get_word(pdev->config + pdev->pm_cap + PCI_PM_CTRL);

    return !(pmcsr & PCI_PM_CTRL_STATE_MASK);
}

static void edu_plus_update_intx(EduPlusState *s)
{
    PCIDevice *pdev = PCI_DEVICE(s);

    pci_set_irq(pdev, s->irq_status && edu_plus_in_d0(s) &&
                      !msi_enabled(pdev) && !msix_enabled(pdev));
}

static void edu_plus_raise_irq(EduPlusState *s, uint32_t val, unsigned vector)
{
    PCIDevice *pdev = PCI_DEVICE(s);

    s->irq_status |= val;
    trace_edu_plus_irq_raise(pci_get_bdf(pdev), val, s->irq_status);
    edu_plus_update_intx(s);

    if (!s->irq_status || !edu_plus_in_d0(s)) {
        return;
    }
    if (msix_enabled(pdev)) {
        msix_notify(pdev, vector < s->msix_vectors ? vector
                                                   : EDU_PLUS_VECTOR_EDU);
    } else if (msi_enabled(pdev)) {
        msi_notify(pdev, 0);
    }
}

static void edu_plus_ack_irq(EduPlusState *s, uint32_t val)
{
    s->irq_status &= ~val;
    trace_edu_plus_irq_ack(pci_get_bdf(PCI_DEVICE(s)), val, s->irq_status);
    edu_plus_update_intx(s);
}

static void edu_plus_send_msix(EduPlusState *s, uint32_t vector)
{
    PCIDevice *pdev = PCI_DEVICE(s);

    if (!msix_enabled(pdev) || vector >= s->msix_vectors) {
        qemu_log_mask(LOG_GUEST_ERROR,
                      "edu-plus: no MSI-X vector %" PRIu32 " to send\n",
                      vector);
        return;
    }
    trace_edu_plus_msix_send(pci_get_bdf(pdev), vector);
    msix_notify(pdev, vector);
}

/* Bus accesses of both DMA engines; they come from timers only */

/*
 * A bus address may be any device's, this one's included.  The guard turns
 * accesses to the own registers down with an error, as for a bottom half with
 * a guard.  Nothing guards configuration space: a transfer can reset the
 * device, or pull it out of its slot.  So the timers hold a reference, and
 * look after each access whether the transfer is still theirs to carry on.
 */
static MemTxResult edu_plus_bus_rw(EduPlusState *s, uint64_t addr, void *buf,
                                   uint64_t len, DMADirection dir)
{
    MemReentrancyGuard *guard = &DEVICE(s)->mem_reentrancy_guard;
    bool engaged = guard->engaged_in_io;
    uint16_t bdf = pci_get_bdf(PCI_DEVICE(s));
    MemTxResult res;

    guard->engaged_in_io = true;
    res = pci_dma_rw(PCI_DEVICE(s), addr, buf, len, dir,
                     MEMTXATTRS_UNSPECIFIED);
    guard->engaged_in_io = engaged;

    trace_edu_plus_bus_rw(bdf, dir == DMA_DIRECTION_FROM_DEVICE ? "write"
                                                                : "read",
                          addr, len, res);
    return res;
}

/* edu's DMA engine */

static bool edu_plus_dma_in_buffer(uint64_t addr, uint64_t count)
{
    return addr >= EDU_PLUS_DMA_BUF_ADDR &&
           addr - EDU_PLUS_DMA_BUF_ADDR <= EDU_PLUS_DMA_BUF_SIZE &&
           count <= EDU_PLUS_DMA_BUF_SIZE - (addr - EDU_PLUS_DMA_BUF_ADDR);
}

static void edu_plus_dma_transfer(EduPlusState *s)
{
    EduPlusDma *dma = &s->dma;
    bool to_bus = dma->cmd & EDU_PLUS_DMA_TO_BUS;
    uint64_t in_buf = to_bus ? dma->src : dma->dst;
    uint64_t bus = to_bus ? dma->dst : dma->src;

    if (!edu_plus_dma_in_buffer(in_buf, dma->count)) {
        qemu_log_mask(LOG_GUEST_ERROR,
                      "edu-plus: DMA of 0x%" PRIx64 " bytes at 0x%" PRIx64
                      " leaves the buffer\n", dma->count, in_buf);
        return;
    }
    if (bus & ~s->dma_mask) {
        qemu_log_mask(LOG_GUEST_ERROR,
                      "edu-plus: DMA address 0x%" PRIx64 " clamped to 0x%"
                      PRIx64 "\n", bus, bus & s->dma_mask);
        bus &= s->dma_mask;
    }
    edu_plus_bus_rw(s, bus, dma->buf + (in_buf - EDU_PLUS_DMA_BUF_ADDR),
                    dma->count, to_bus ? DMA_DIRECTION_FROM_DEVICE
                                       : DMA_DIRECTION_TO_DEVICE);
}

static void edu_plus_dma_timer(void *opaque)
{
    EduPlusState *s = opaque;

    object_ref(OBJECT(s));
    edu_plus_dma_transfer(s);
    if (s->dma.cmd & EDU_PLUS_DMA_RUN) {
        s->dma.cmd &= ~EDU_PLUS_DMA_RUN;
        if (s->dma.cmd & EDU_PLUS_DMA_IRQ) {
            edu_plus_raise_irq(s, EDU_PLUS_IRQ_DMA, EDU_PLUS_VECTOR_EDU);
        }
    }
    object_unref(OBJECT(s));
}

static void edu_plus_dma_stop(EduPlusState *s)
{
    timer_del(&s->dma.timer);
    s->dma.cmd &= ~EDU_PLUS_DMA_RUN;
}

static void edu_plus_dma_write(EduPlusState *s, hwaddr addr, uint64_t val)
{
    EduPlusDma *dma = &s->dma;

    if (dma->cmd & EDU_PLUS_DMA_RUN) {
        qemu_log_mask(LOG_GUEST_ERROR,
                      "edu-plus: write to 0x%" HWADDR_PRIx
                      " while a DMA runs\n", addr);
        return;
    }

    switch (addr) {
    case EDU_PLUS_REG_DMA_SRC:
        dma->src = val;
        break;
    case EDU_PLUS_REG_DMA_DST:
        dma->dst = val;
        break;
    case EDU_PLUS_REG_DMA_COUNT:
        dma->count = val;
        break;
    case EDU_PLUS_REG_DMA_CMD:
        if (val & EDU_PLUS_DMA_RUN) {
            dma->cmd = val;
            trace_edu_plus_dma_start(pci_get_bdf(PCI_DEVICE(s)), dma->src,
                                     dma->dst, dma->count, val);
            timer_mod(&dma->timer, EDU_PLUS_DMA_NS +
                      qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL));
        }
        break;
    default:
        g_assert_not_reached();
    }
}

/* The copy engine */

static bool edu_plus_copy_busy(EduPlusState *s)
{
    return s->copy.status & EDU_PLUS_COPY_STATUS_BUSY;
}

static bool edu_plus_copy_range_valid(EduPlusState *s, uint64_t addr, bool ram)
{
    uint64_t len = s->copy.len;

    if (ram) {
        return addr <= s->ram_size && len <= s->ram_size - addr;
    }
    return len - 1 <= UINT64_MAX - addr;
}

/* How many bytes there are to move; false if the request is not valid */
static bool edu_plus_copy_total(EduPlusState *s, uint64_t *total)
{
    EduPlusCopy *copy = &s->copy;

    return copy->len >= 1 && copy->len <= EDU_PLUS_COPY_LEN_MAX &&
           !umul64_overflow(copy->len, MAX(copy->count, 1), total) &&
           edu_plus_copy_range_valid(s, copy->src,
                                     copy->cmd & EDU_PLUS_COPY_CMD_SRC_RAM) &&
           edu_plus_copy_range_valid(s, copy->dst,
                                     copy->cmd & EDU_PLUS_COPY_CMD_DST_RAM);
}

static void edu_plus_copy_end(EduPlusState *s, uint32_t result)
{
    EduPlusCopy *copy = &s->copy;

    timer_del(&copy->timer);
    copy->status = result;
    trace_edu_plus_copy_end(pci_get_bdf(PCI_DEVICE(s)), result, copy->done);

    if (result != EDU_PLUS_COPY_ERR_ABORTED &&
        (copy->cmd & EDU_PLUS_COPY_CMD_IRQ)) {
        edu_plus_raise_irq(s, EDU_PLUS_IRQ_COPY, EDU_PLUS_VECTOR_COPY);
    }
}

static MemTxResult edu_plus_copy_rw(EduPlusState *s, uint64_t addr,
                                    uint64_t len, bool ram, DMADirection dir)
{
    uint8_t *ptr;

    if (!ram) {
        return edu_plus_bus_rw(s, addr, s->copy.bounce, len, dir);
    }

    ptr = (uint8_t *)memory_region_get_ram_ptr(&s->ram_mr) + addr;
    if (dir == DMA_DIRECTION_FROM_DEVICE) {
        memcpy(ptr, s->copy.bounce, len);
        memory_region_set_dirty(&s->ram_mr, addr, len);
    } else {
        memcpy(s->copy.bounce, ptr, len);
    }
    return MEMTX_OK;
}

/* Moves at most @max bytes, and ends the copy if that fails */
static uint64_t edu_plus_copy_piece(EduPlusState *s, uint64_t max)
{
    EduPlusCopy *copy = &s->copy;
    uint64_t offset = copy->done % copy->len;
    uint64_t src = copy->src + offset;
    uint64_t dst = copy->dst + offset;
    uint64_t len = MIN(max, copy->len - offset);
    MemTxResult res;

    len = MIN(len, COPY_PIECE_SIZE - src % COPY_PIECE_SIZE);
    len = MIN(len, COPY_PIECE_SIZE - dst % COPY_PIECE_SIZE);

    res = edu_plus_copy_rw(s, src, len, copy->cmd & EDU_PLUS_COPY_CMD_SRC_RAM,
                           DMA_DIRECTION_TO_DEVICE);
    if (res == MEMTX_OK && edu_plus_copy_busy(s)) {
        res = edu_plus_copy_rw(s, dst, len,
                               copy->cmd & EDU_PLUS_COPY_CMD_DST_RAM,
                               DMA_DIRECTION_FROM_DEVICE);
    }
    if (!edu_plus_copy_busy(s)) {
        return 0;
    }
    if (res != MEMTX_OK) {
        edu_plus_copy_end(s, EDU_PLUS_COPY_ERR_BUS);
        return 0;
    }
    copy->done += len;
    return len;
}

static void edu_plus_copy_schedule(EduPlusState *s)
{
    timer_mod(&s->copy.timer, EDU_PLUS_COPY_STEP_NS +
              qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL));
}

static void edu_plus_copy_timer(void *opaque)
{
    EduPlusState *s = opaque;
    uint64_t budget = EDU_PLUS_COPY_STEP_SIZE;
    uint64_t total;

    if (!edu_plus_copy_total(s, &total)) {
        g_assert_not_reached();
    }

    object_ref(OBJECT(s));
    while (edu_plus_copy_busy(s) && budget && s->copy.done < total) {
        budget -= edu_plus_copy_piece(s, budget);
    }
    if (edu_plus_copy_busy(s)) {
        trace_edu_plus_copy_step(pci_get_bdf(PCI_DEVICE(s)), s->copy.done,
                                 total);
        if (s->copy.done < total) {
            edu_plus_copy_schedule(s);
        } else {
            edu_plus_copy_end(s, EDU_PLUS_COPY_OK);
        }
    }
    object_unref(OBJECT(s));
}

static void edu_plus_copy_start(EduPlusState *s, uint32_t cmd)
{
    EduPlusCopy *copy = &s->copy;
    uint64_t total;

    copy->cmd = cmd;
    copy->done = 0;
    trace_edu_plus_copy_start(pci_get_bdf(PCI_DEVICE(s)), copy->src, copy->dst,
                              copy->len, copy->count, cmd);

    if (!edu_plus_copy_total(s, &total)) {
        qemu_log_mask(LOG_GUEST_ERROR,
                      "edu-plus: copy from 0x%" PRIx64 " to 0x%" PRIx64
                      ", 0x%" PRIx64 " bytes, out of range\n",
                      copy->src, copy->dst, copy->len);
        edu_plus_copy_end(s, EDU_PLUS_COPY_ERR_RANGE);
        return;
    }
    copy->status = EDU_PLUS_COPY_STATUS_BUSY;
    edu_plus_copy_schedule(s);
}

static void edu_plus_copy_command(EduPlusState *s, uint32_t cmd)
{
    if (cmd == 0) {
        return;
    }
    if (cmd == EDU_PLUS_COPY_CMD_ABORT) {
        if (edu_plus_copy_busy(s)) {
            edu_plus_copy_end(s, EDU_PLUS_COPY_ERR_ABORTED);
        }
        return;
    }
    if (edu_plus_copy_busy(s)) {
        qemu_log_mask(LOG_GUEST_ERROR,
                      "edu-plus: command 0x%" PRIx32 " while a copy runs\n",
                      cmd);
        return;
    }
    if (!(cmd & EDU_PLUS_COPY_CMD_START) || (cmd & ~COPY_CMD_START_MASK)) {
        qemu_log_mask(LOG_GUEST_ERROR,
                      "edu-plus: malformed copy command 0x%" PRIx32 "\n", cmd);
        s->copy.status = EDU_PLUS_COPY_ERR_RANGE;
        return;
    }
    edu_plus_copy_start(s, cmd);
}

static void edu_plus_copy_write(EduPlusState *s, hwaddr addr, uint32_t val)
{
    EduPlusCopy *copy = &s->copy;
    unsigned shift = addr & 4 ? 32 : 0;

    if (edu_plus_copy_busy(s)) {
        qemu_log_mask(LOG_GUEST_ERROR,
                      "edu-plus: write to 0x%" HWADDR_PRIx
                      " while a copy runs\n", addr);
        return;
    }

    switch (addr) {
    case EDU_PLUS_REG_COPY_SRC:
    case EDU_PLUS_REG_COPY_SRC + 4:
        copy->src = deposit64(copy->src, shift, 32, val);
        break;
    case EDU_PLUS_REG_COPY_DST:
    case EDU_PLUS_REG_COPY_DST + 4:
        copy->dst = deposit64(copy->dst, shift, 32, val);
        break;
    case EDU_PLUS_REG_COPY_LEN:
    case EDU_PLUS_REG_COPY_LEN + 4:
        copy->len = deposit64(copy->len, shift, 32, val);
        break;
    case EDU_PLUS_REG_COPY_COUNT:
        copy->count = val;
        break;
    default:
        g_assert_not_reached();
    }
}

/* BAR 0: the registers that edu has */

static bool edu_plus_access_valid(hwaddr addr, unsigned size)
{
    if ((size == 4 || size == 8) && !(addr & (size - 1))) {
        return true;
    }
    qemu_log_mask(LOG_GUEST_ERROR,
                  "edu-plus: access of %u bytes at 0x%" HWADDR_PRIx "\n",
                  size, addr);
    return false;
}

static void edu_plus_log_no_register(const char *what, hwaddr addr)
{
    qemu_log_mask(LOG_GUEST_ERROR,
                  "edu-plus: no such register to %s at 0x%" HWADDR_PRIx "\n",
                  what, addr);
}

/* Wraps as edu's does: from 34! on the result is a multiple of 2^32 */
static uint32_t edu_plus_factorial_of(uint32_t n)
{
    uint32_t res = 1;

    while (n > 1 && res) {
        res *= n--;
    }
    return res;
}

static void edu_plus_factorial_timer(void *opaque)
{
    EduPlusState *s = opaque;

    s->factorial = edu_plus_factorial_of(s->factorial);
    s->status &= ~EDU_PLUS_STATUS_COMPUTING;
    if (s->status & EDU_PLUS_STATUS_IRQFACT) {
        edu_plus_raise_irq(s, EDU_PLUS_IRQ_FACT, EDU_PLUS_VECTOR_EDU);
    }
}

static uint64_t edu_plus_edu_read(EduPlusState *s, hwaddr addr, unsigned size)
{
    if (size == 4 || addr >= EDU_PLUS_REG_DMA_SRC) {
        switch (addr) {
        case EDU_PLUS_REG_ID:
            return EDU_PLUS_ID;
        case EDU_PLUS_REG_LIVENESS:
            return s->liveness;
        case EDU_PLUS_REG_FACTORIAL:
            return s->factorial;
        case EDU_PLUS_REG_STATUS:
            return s->status;
        case EDU_PLUS_REG_IRQ_STATUS:
            return s->irq_status;
        case EDU_PLUS_REG_DMA_SRC:
            return s->dma.src;
        case EDU_PLUS_REG_DMA_DST:
            return s->dma.dst;
        case EDU_PLUS_REG_DMA_COUNT:
            return s->dma.count;
        case EDU_PLUS_REG_DMA_CMD:
            return s->dma.cmd;
        }
    }
    edu_plus_log_no_register("read", addr);
    return ~0ULL;
}

static void edu_plus_edu_write(EduPlusState *s, hwaddr addr, uint64_t val,
                               unsigned size)
{
    if (size == 4 || addr >= EDU_PLUS_REG_DMA_SRC) {
        switch (addr) {
        case EDU_PLUS_REG_LIVENESS:
            s->liveness = ~val;
            return;
        case EDU_PLUS_REG_FACTORIAL:
            if (!(s->status & EDU_PLUS_STATUS_COMPUTING)) {
                s->factorial = val;
                s->status |= EDU_PLUS_STATUS_COMPUTING;
                timer_mod(&s->factorial_timer, FACTORIAL_NS +
                          qemu_clock_get_ns(QEMU_CLOCK_VIRTUAL));
            }
            return;
        case EDU_PLUS_REG_STATUS:
            s->status &= ~EDU_PLUS_STATUS_IRQFACT;
            s->status |= val & EDU_PLUS_STATUS_IRQFACT;
            return;
        case EDU_PLUS_REG_IRQ_RAISE:
            edu_plus_raise_irq(s, val, EDU_PLUS_VECTOR_EDU);
            return;
        case EDU_PLUS_REG_IRQ_ACK:
            edu_plus_ack_irq(s, val);
            return;
        case EDU_PLUS_REG_DMA_SRC:
        case EDU_PLUS_REG_DMA_DST:
        case EDU_PLUS_REG_DMA_COUNT:
        case EDU_PLUS_REG_DMA_CMD:
            edu_plus_dma_write(s, addr, val);
            return;
        }
    }
    edu_plus_log_no_register("write", addr);
}

static uint64_t edu_plus_regs_read(void *opaque, hwaddr addr, unsigned size)
{
    EduPlusState *s = opaque;
    uint64_t val = ~0ULL;

    if (edu_plus_access_valid(addr, size)) {
        val = edu_plus_edu_read(s, addr, size);
    }
    trace_edu_plus_regs_read(pci_get_bdf(PCI_DEVICE(s)), addr, size, val);
    return val;
}

static void edu_plus_regs_write(void *opaque, hwaddr addr, uint64_t val,
                                unsigned size)
{
    EduPlusState *s = opaque;

    trace_edu_plus_regs_write(pci_get_bdf(PCI_DEVICE(s)), addr, size, val);
    if (edu_plus_access_valid(addr, size)) {
        edu_plus_edu_write(s, addr, val, size);
    }
}

static const MemoryRegionOps edu_plus_regs_ops = {
    .read = edu_plus_regs_read,
    .write = edu_plus_regs_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = {
        .min_access_size = 1,
        .max_access_size = 8,
    },
    .impl = {
        .min_access_size = 1,
        .max_access_size = 8,
    },
};

/*
 * BAR 0: the extension.  Its registers, and those of BAR 3, are accessed in
 * units of 4 bytes; an access of 8 bytes is two, the lower address first.
 */

static uint32_t edu_plus_ext_read32(EduPlusState *s, hwaddr addr)
{
    unsigned shift = addr & 4 ? 32 : 0;

    switch (addr) {
    case EDU_PLUS_REG_PLUS_ID:
        return EDU_PLUS_PLUS_ID;
    case EDU_PLUS_REG_VERSION:
        return EDU_PLUS_VERSION;
    case EDU_PLUS_REG_RAM_SIZE:
    case EDU_PLUS_REG_RAM_SIZE + 4:
        return extract64(s->ram_size, shift, 32);
    case EDU_PLUS_REG_FRAMES:
        return s->num_frames;
    case EDU_PLUS_REG_MSIX_VECTORS:
        return s->msix_vectors;
    case EDU_PLUS_REG_RESETS:
        return s->resets;
    case EDU_PLUS_REG_COPY_SRC:
    case EDU_PLUS_REG_COPY_SRC + 4:
        return extract64(s->copy.src, shift, 32);
    case EDU_PLUS_REG_COPY_DST:
    case EDU_PLUS_REG_COPY_DST + 4:
        return extract64(s->copy.dst, shift, 32);
    case EDU_PLUS_REG_COPY_LEN:
    case EDU_PLUS_REG_COPY_LEN + 4:
        return extract64(s->copy.len, shift, 32);
    case EDU_PLUS_REG_COPY_COUNT:
        return s->copy.count;
    case EDU_PLUS_REG_COPY_STATUS:
        return s->copy.status;
    case EDU_PLUS_REG_COPY_DONE:
    case EDU_PLUS_REG_COPY_DONE + 4:
        return extract64(s->copy.done, shift, 32);
    case EDU_PLUS_REG_COPY_CMD:
    case EDU_PLUS_REG_MSIX_SEND:
        return 0;
    default:
        edu_plus_log_no_register("read", addr);
        return ~0U;
    }
}

static void edu_plus_ext_write32(EduPlusState *s, hwaddr addr, uint32_t val)
{
    switch (addr) {
    case EDU_PLUS_REG_COPY_SRC:
    case EDU_PLUS_REG_COPY_SRC + 4:
    case EDU_PLUS_REG_COPY_DST:
    case EDU_PLUS_REG_COPY_DST + 4:
    case EDU_PLUS_REG_COPY_LEN:
    case EDU_PLUS_REG_COPY_LEN + 4:
    case EDU_PLUS_REG_COPY_COUNT:
        edu_plus_copy_write(s, addr, val);
        break;
    case EDU_PLUS_REG_COPY_CMD:
        edu_plus_copy_command(s, val);
        break;
    case EDU_PLUS_REG_MSIX_SEND:
        edu_plus_send_msix(s, val);
        break;
    default:
        edu_plus_log_no_register("write", addr);
        break;
    }
}

static uint64_t edu_plus_ext_read(void *opaque, hwaddr offset, unsigned size)
{
    EduPlusState *s = opaque;
    hwaddr addr = EDU_PLUS_EXT_BASE + offset;
    uint64_t val = ~0ULL;

    if (edu_plus_access_valid(addr, size)) {
        val = edu_plus_ext_read32(s, addr);
        if (size == 8) {
            val |= (uint64_t)edu_plus_ext_read32(s, addr + 4) << 32;
        }
    }
    trace_edu_plus_regs_read(pci_get_bdf(PCI_DEVICE(s)), addr, size, val);
    return val;
}

static void edu_plus_ext_write(void *opaque, hwaddr offset, uint64_t val,
                               unsigned size)
{
    EduPlusState *s = opaque;
    hwaddr addr = EDU_PLUS_EXT_BASE + offset;

    trace_edu_plus_regs_write(pci_get_bdf(PCI_DEVICE(s)), addr, size, val);
    if (edu_plus_access_valid(addr, size)) {
        edu_plus_ext_write32(s, addr, val);
        if (size == 8) {
            edu_plus_ext_write32(s, addr + 4, val >> 32);
        }
    }
}

static const MemoryRegionOps edu_plus_ext_ops = {
    .read = edu_plus_ext_read,
    .write = edu_plus_ext_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = {
        .min_access_size = 1,
        .max_access_size = 8,
    },
    .impl = {
        .min_access_size = 1,
        .max_access_size = 8,
    },
};

/* BAR 3: the frames */

static bool edu_plus_frame_valid(EduPlusState *s, hwaddr addr)
{
    if (addr / EDU_PLUS_FRAME_SIZE < s->num_frames) {
        return true;
    }
    qemu_log_mask(LOG_GUEST_ERROR,
                  "edu-plus: no frame at 0x%" HWADDR_PRIx "\n", addr);
    return false;
}

static uint32_t edu_plus_frame_read32(EduPlusState *s, hwaddr addr)
{
    uint32_t index = addr / EDU_PLUS_FRAME_SIZE;
    EduPlusFrame *frame = &s->frames[index];

    switch (addr % EDU_PLUS_FRAME_SIZE) {
    case EDU_PLUS_FRAME_ID:
        return EDU_PLUS_FRAME_MAGIC;
    case EDU_PLUS_FRAME_INDEX:
        return index;
    case EDU_PLUS_FRAME_SCRATCH:
        return frame->scratch;
    case EDU_PLUS_FRAME_INVERT:
        return frame->invert;
    case EDU_PLUS_FRAME_DOORBELL:
        return 0;
    case EDU_PLUS_FRAME_DOORBELL_COUNT:
        return frame->doorbell_count;
    case EDU_PLUS_FRAME_DOORBELL_LAST:
        return frame->doorbell_last;
    case EDU_PLUS_FRAME_SCRATCH64:
        return extract64(frame->scratch64, 0, 32);
    case EDU_PLUS_FRAME_SCRATCH64 + 4:
        return extract64(frame->scratch64, 32, 32);
    default:
        edu_plus_log_no_register("read", addr);
        return ~0U;
    }
}

static void edu_plus_frame_write32(EduPlusState *s, hwaddr addr, uint32_t val)
{
    EduPlusFrame *frame = &s->frames[addr / EDU_PLUS_FRAME_SIZE];

    switch (addr % EDU_PLUS_FRAME_SIZE) {
    case EDU_PLUS_FRAME_SCRATCH:
        frame->scratch = val;
        break;
    case EDU_PLUS_FRAME_INVERT:
        frame->invert = ~val;
        break;
    case EDU_PLUS_FRAME_DOORBELL:
        frame->doorbell_count++;
        frame->doorbell_last = val;
        break;
    case EDU_PLUS_FRAME_SCRATCH64:
        frame->scratch64 = deposit64(frame->scratch64, 0, 32, val);
        break;
    case EDU_PLUS_FRAME_SCRATCH64 + 4:
        frame->scratch64 = deposit64(frame->scratch64, 32, 32, val);
        break;
    default:
        edu_plus_log_no_register("write", addr);
        break;
    }
}

static uint64_t edu_plus_frames_read(void *opaque, hwaddr addr, unsigned size)
{
    EduPlusState *s = opaque;
    uint64_t val = ~0ULL;

    if (edu_plus_access_valid(addr, size) && edu_plus_frame_valid(s, addr)) {
        val = edu_plus_frame_read32(s, addr);
        if (size == 8) {
            val |= (uint64_t)edu_plus_frame_read32(s, addr + 4) << 32;
        }
    }
    trace_edu_plus_frames_read(pci_get_bdf(PCI_DEVICE(s)), addr, size, val);
    return val;
}

static void edu_plus_frames_write(void *opaque, hwaddr addr, uint64_t val,
                                  unsigned size)
{
    EduPlusState *s = opaque;

    trace_edu_plus_frames_write(pci_get_bdf(PCI_DEVICE(s)), addr, size, val);
    if (edu_plus_access_valid(addr, size) && edu_plus_frame_valid(s, addr)) {
        edu_plus_frame_write32(s, addr, val);
        if (size == 8) {
            edu_plus_frame_write32(s, addr + 4, val >> 32);
        }
    }
}

static const MemoryRegionOps edu_plus_frames_ops = {
    .read = edu_plus_frames_read,
    .write = edu_plus_frames_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = {
        .min_access_size = 1,
        .max_access_size = 8,
    },
    .impl = {
        .min_access_size = 1,
        .max_access_size = 8,
    },
};

/* Configuration space, reset */

static void edu_plus_config_write(PCIDevice *pdev, uint32_t addr,
                                  uint32_t val, int len)
{
    EduPlusState *s = EDU_PLUS(pdev);
    bool was_in_d0 = edu_plus_in_d0(s);
    bool in_d0;

    pci_default_write_config(pdev, addr, val, len);
    pcie_cap_flr_write_config(pdev, addr, val, len);

    in_d0 = edu_plus_in_d0(s);
    if (was_in_d0 != in_d0) {
        trace_edu_plus_power(pci_get_bdf(pdev), in_d0 ? "D0" : "D3hot");
    }
    /* A function that is not in D0 sends no requests */
    if (!in_d0) {
        edu_plus_dma_stop(s);
        if (edu_plus_copy_busy(s)) {
            edu_plus_copy_end(s, EDU_PLUS_COPY_ERR_ABORTED);
        }
    }
    edu_plus_update_intx(s);
}

static void edu_plus_reset_hold(Object *obj, ResetType type)
{
    EduPlusState *s = EDU_PLUS(obj);

    timer_del(&s->factorial_timer);
    s->liveness = 0;
    s->factorial = 0;
    s->status = 0;
    s->irq_status = 0;

    edu_plus_dma_stop(s);
    s->dma.src = 0;
    s->dma.dst = 0;
    s->dma.count = 0;
    s->dma.cmd = 0;
    memset(s->dma.buf, 0, sizeof(s->dma.buf));

    timer_del(&s->copy.timer);
    s->copy.src = 0;
    s->copy.dst = 0;
    s->copy.len = 0;
    s->copy.count = 1;
    s->copy.cmd = 0;
    s->copy.status = EDU_PLUS_COPY_OK;
    s->copy.done = 0;

    memset(s->frames, 0, s->num_frames * sizeof(*s->frames));
    edu_plus_update_intx(s);

    s->resets++;
    trace_edu_plus_reset(pci_get_bdf(PCI_DEVICE(s)), type, s->resets);
}

/* Life */

static bool edu_plus_check_properties(EduPlusState *s, Error **errp)
{
    if (s->ram_size && (!is_power_of_2(s->ram_size) ||
                        s->ram_size < EDU_PLUS_RAM_SIZE_MIN ||
                        s->ram_size > EDU_PLUS_RAM_SIZE_MAX)) {
        error_setg(errp, "ram-size must be 0, or a power of two between "
                   "1 MiB and 64 GiB");
        return false;
    }
    if (s->num_frames < 1 || s->num_frames > EDU_PLUS_FRAMES_MAX) {
        error_setg(errp, "frames must be between 1 and %d",
                   EDU_PLUS_FRAMES_MAX);
        return false;
    }
    if (s->msix_vectors < 1 || s->msix_vectors > EDU_PLUS_MSIX_VECTORS_MAX) {
        error_setg(errp, "msix-vectors must be between 1 and %d",
                   EDU_PLUS_MSIX_VECTORS_MAX);
        return false;
    }
    return true;
}

static void edu_plus_init_bars(EduPlusState *s)
{
    PCIDevice *pdev = PCI_DEVICE(s);
    Object *obj = OBJECT(s);

    memory_region_init_io(&s->regs_mr, obj, &edu_plus_regs_ops, s,
                          "edu-plus-regs", EDU_PLUS_REGS_SIZE);
    memory_region_init_io(&s->ext_mr, obj, &edu_plus_ext_ops, s,
                          "edu-plus-ext", EDU_PLUS_EXT_SIZE);
    memory_region_add_subregion(&s->regs_mr, EDU_PLUS_EXT_BASE, &s->ext_mr);
    pci_register_bar(pdev, EDU_PLUS_BAR_REGS, PCI_BASE_ADDRESS_SPACE_MEMORY,
                     &s->regs_mr);

    if (s->ram_size) {
        pci_register_bar(pdev, EDU_PLUS_BAR_RAM,
                         PCI_BASE_ADDRESS_SPACE_MEMORY |
                         PCI_BASE_ADDRESS_MEM_TYPE_64 |
                         PCI_BASE_ADDRESS_MEM_PREFETCH, &s->ram_mr);
    }

    s->frames = g_new0(EduPlusFrame, s->num_frames);
    memory_region_init_io(&s->frames_mr, obj, &edu_plus_frames_ops, s,
                          "edu-plus-frames", EDU_PLUS_FRAME_SIZE *
                          pow2ceil(s->num_frames));
    pci_register_bar(pdev, EDU_PLUS_BAR_FRAMES, PCI_BASE_ADDRESS_SPACE_MEMORY,
                     &s->frames_mr);
}

static bool edu_plus_init_caps(PCIDevice *pdev, Error **errp)
{
    int pm;

    if (pcie_endpoint_cap_init(pdev, 0) < 0) {
        error_setg(errp, "no room for the PCI Express capability");
        return false;
    }
    pcie_cap_flr_init(pdev);

    pm = pci_pm_init(pdev, 0, errp);
    if (pm < 0) {
        return false;
    }
    pci_set_word(pdev->config + pm + PCI_PM_PMC, PCI_PM_CAP_VER_1_2);
    pci_set_word(pdev->config + pm + PCI_PM_CTRL, PCI_PM_CTRL_NO_SOFT_RESET);
    pci_set_word(pdev->wmask + pm + PCI_PM_CTRL, PCI_PM_CTRL_STATE_MASK);

    pci_config_set_interrupt_pin(pdev->config, 1);
    return true;
}

static bool edu_plus_init_msi(EduPlusState *s, Error **errp)
{
    PCIDevice *pdev = PCI_DEVICE(s);

    if (msi_init(pdev, 0, 1, true, false, errp)) {
        return false;
    }
    if (msix_init_exclusive_bar(pdev, s->msix_vectors, EDU_PLUS_BAR_MSIX,
                                errp)) {
        msi_uninit(pdev);
        return false;
    }
    for (unsigned i = 0; i < s->msix_vectors; i++) {
        msix_vector_use(pdev, i);
    }
    return true;
}

static void edu_plus_realize(PCIDevice *pdev, Error **errp)
{
    EduPlusState *s = EDU_PLUS(pdev);

    if (!edu_plus_check_properties(s, errp)) {
        return;
    }
    if (s->ram_size && !memory_region_init_ram(&s->ram_mr, OBJECT(s),
                                               "edu-plus-ram", s->ram_size,
                                               errp)) {
        return;
    }
    if (!edu_plus_init_caps(pdev, errp) || !edu_plus_init_msi(s, errp)) {
        return;
    }
    edu_plus_init_bars(s);

    timer_init_ns(&s->factorial_timer, QEMU_CLOCK_VIRTUAL,
                  edu_plus_factorial_timer, s);
    timer_init_ns(&s->dma.timer, QEMU_CLOCK_VIRTUAL, edu_plus_dma_timer, s);
    timer_init_ns(&s->copy.timer, QEMU_CLOCK_VIRTUAL, edu_plus_copy_timer, s);
}

static void edu_plus_exit(PCIDevice *pdev)
{
    EduPlusState *s = EDU_PLUS(pdev);

    timer_del(&s->factorial_timer);
    edu_plus_dma_stop(s);
    timer_del(&s->copy.timer);
    s->copy.status &= ~EDU_PLUS_COPY_STATUS_BUSY;

    msix_uninit_exclusive_bar(pdev);
    msi_uninit(pdev);
    pcie_cap_exit(pdev);
    /* It holds a reference to its owner, this device */
    memory_region_del_subregion(&s->regs_mr, &s->ext_mr);
    if (s->ram_size) {
        vmstate_unregister_ram(&s->ram_mr, DEVICE(s));
    }
}

static void edu_plus_finalize(Object *obj)
{
    EduPlusState *s = EDU_PLUS(obj);

    /* Not earlier: a vCPU may be on its way into the frames' handlers */
    g_free(s->frames);
}

/* The stream is not trusted: a copy in it must be one that could be started */
static int edu_plus_post_load(void *opaque, int version_id)
{
    EduPlusState *s = opaque;
    uint64_t total;

    if (edu_plus_copy_busy(s) &&
        (!edu_plus_copy_total(s, &total) || s->copy.done >= total)) {
        return -EINVAL;
    }
    if (!edu_plus_copy_busy(s)) {
        timer_del(&s->copy.timer);
    }
    return 0;
}

static const VMStateDescription edu_plus_frame_vmstate = {
    .name = "edu-plus/frame",
    .version_id = 1,
    .minimum_version_id = 1,
    .fields = (const VMStateField[]) {
        VMSTATE_UINT32(scratch, EduPlusFrame),
        VMSTATE_UINT32(invert, EduPlusFrame),
        VMSTATE_UINT32(doorbell_count, EduPlusFrame),
        VMSTATE_UINT32(doorbell_last, EduPlusFrame),
        VMSTATE_UINT64(scratch64, EduPlusFrame),
        VMSTATE_END_OF_LIST()
    }
};

static const VMStateDescription edu_plus_vmstate = {
    .name = TYPE_EDU_PLUS,
    .version_id = 1,
    .minimum_version_id = 1,
    .post_load = edu_plus_post_load,
    .fields = (const VMStateField[]) {
        VMSTATE_PCI_DEVICE(parent_obj, EduPlusState),
        VMSTATE_MSIX(parent_obj, EduPlusState),
        VMSTATE_UINT32_EQUAL(num_frames, EduPlusState,
                             "the property frames differs"),
        VMSTATE_STRUCT_VARRAY_POINTER_UINT32(frames, EduPlusState, num_frames,
                                             edu_plus_frame_vmstate,
                                             EduPlusFrame),
        VMSTATE_UINT32(liveness, EduPlusState),
        VMSTATE_UINT32(factorial, EduPlusState),
        VMSTATE_UINT32(status, EduPlusState),
        VMSTATE_UINT32(irq_status, EduPlusState),
        VMSTATE_TIMER(factorial_timer, EduPlusState),
        VMSTATE_UINT64(dma.src, EduPlusState),
        VMSTATE_UINT64(dma.dst, EduPlusState),
        VMSTATE_UINT64(dma.count, EduPlusState),
        VMSTATE_UINT64(dma.cmd, EduPlusState),
        VMSTATE_BUFFER(dma.buf, EduPlusState),
        VMSTATE_TIMER(dma.timer, EduPlusState),
        VMSTATE_UINT64(copy.src, EduPlusState),
        VMSTATE_UINT64(copy.dst, EduPlusState),
        VMSTATE_UINT64(copy.len, EduPlusState),
        VMSTATE_UINT32(copy.count, EduPlusState),
        VMSTATE_UINT32(copy.cmd, EduPlusState),
        VMSTATE_UINT32(copy.status, EduPlusState),
        VMSTATE_UINT64(copy.done, EduPlusState),
        VMSTATE_TIMER(copy.timer, EduPlusState),
        VMSTATE_UINT32(resets, EduPlusState),
        VMSTATE_END_OF_LIST()
    }
};

static const Property edu_plus_properties[] = {
    DEFINE_PROP_SIZE("ram-size", EduPlusState, ram_size,
                     EDU_PLUS_RAM_SIZE_DEFAULT),
    DEFINE_PROP_UINT32("frames", EduPlusState, num_frames,
                       EDU_PLUS_FRAMES_DEFAULT),
    DEFINE_PROP_UINT64("dma-mask", EduPlusState, dma_mask,
                       EDU_PLUS_DMA_MASK_DEFAULT),
    DEFINE_PROP_UINT32("msix-vectors", EduPlusState, msix_vectors,
                       EDU_PLUS_MSIX_VECTORS_DEFAULT),
};

static void edu_plus_class_init(ObjectClass *klass, void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    PCIDeviceClass *pc = PCI_DEVICE_CLASS(klass);
    ResettableClass *rc = RESETTABLE_CLASS(klass);

    rc->phases.hold = edu_plus_reset_hold;

    pc->realize = edu_plus_realize;
    pc->exit = edu_plus_exit;
    pc->config_write = edu_plus_config_write;
    pc->vendor_id = PCI_VENDOR_ID_QEMU;
    pc->device_id = EDU_PLUS_DEVICE_ID;
    pc->revision = EDU_PLUS_REVISION;
    pc->class_id = PCI_CLASS_OTHERS;

    dc->desc = "PCI Express test device for VFIO and peer-to-peer DMA";
    dc->vmsd = &edu_plus_vmstate;
    device_class_set_props(dc, edu_plus_properties);
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
}

static const TypeInfo edu_plus_types[] = {
    {
        .name = TYPE_EDU_PLUS,
        .parent = TYPE_PCI_DEVICE,
        .instance_size = sizeof(EduPlusState),
        .instance_finalize = edu_plus_finalize,
        .class_init = edu_plus_class_init,
        .interfaces = (InterfaceInfo[]) {
            { INTERFACE_PCIE_DEVICE },
            { }
        },
    },
};

DEFINE_TYPES(edu_plus_types)
