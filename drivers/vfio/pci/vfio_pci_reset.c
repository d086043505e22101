// SPDX-License-Identifier: GPL-2.0-only
/*
 * Keeping everybody off a device while it is reset
 *
 * A reset is done without memory_lock, as it takes locks that are held elsewhere
 * when memory_lock is taken.  Who touches the device by other means than a page
 * fault looks at a flag under memory_lock instead, and waits for its end.
 */
#include <linux/pm_runtime.h>
#include <linux/wait_bit.h>

#include "vfio_pci_priv.h"

/* Both as a hint and under memory_lock */
static bool vfio_pci_in_reset(struct vfio_pci_core_device *vdev)
{
	return READ_ONCE(vdev->in_reset);
}

/**
 * vfio_pci_core_down_read - Take memory_lock for read to access the device
 * @vdev: The device
 *
 * Waits for the end of a reset.  For whoever is about to touch the device or
 * its memory; page faults wait otherwise, see vfio_pci_core_fault_wait().  The
 * caller drops memory_lock by up_read().
 *
 * The caller has no lock that a reset takes and waits for.  It may have
 * device_lock, which a reset of ours only tries, and igate, although that is
 * taken in a resume: who resets has the device resumed before.
 */
void vfio_pci_core_down_read(struct vfio_pci_core_device *vdev)
{
	down_read(&vdev->memory_lock);
	while (vfio_pci_in_reset(vdev)) {
		up_read(&vdev->memory_lock);
		wait_var_event(&vdev->in_reset, !vfio_pci_in_reset(vdev));
		down_read(&vdev->memory_lock);
	}
}
EXPORT_SYMBOL_GPL(vfio_pci_core_down_read);

/**
 * vfio_pci_down_write - Take memory_lock for write to change the device
 * @vdev: The device
 *
 * As vfio_pci_core_down_read().  Whoever changes nothing but what vfio knows
 * about the device need not wait for a reset, and takes the lock by itself.
 */
void vfio_pci_down_write(struct vfio_pci_core_device *vdev)
{
	down_write(&vdev->memory_lock);
	while (vfio_pci_in_reset(vdev)) {
		up_write(&vdev->memory_lock);
		wait_var_event(&vdev->in_reset, !vfio_pci_in_reset(vdev));
		down_write(&vdev->memory_lock);
	}
}

/**
 * vfio_pci_begin_reset - Keep everybody off the device and drop memory_lock
 * @vdev: The device, held, with memory_lock taken by vfio_pci_down_write()
 *
 * A reset takes locks of the PCI core and of hotplug drivers, some of which are
 * held elsewhere when a device is resumed or a page fault is served.  So it must
 * not be called with memory_lock held.  The caller keeps the device from being
 * suspended, so that nobody waits for the reset in order to resume it.
 */
void vfio_pci_begin_reset(struct vfio_pci_core_device *vdev)
{
	lockdep_assert_held_write(&vdev->memory_lock);
	WARN_ON(vdev->in_reset || !vdev->mem_holds);
	WARN_ON(!pm_runtime_active(&vdev->pdev->dev));

	WRITE_ONCE(vdev->in_reset, true);
	up_write(&vdev->memory_lock);
}

/**
 * vfio_pci_end_reset - Take memory_lock for write and let others in again
 * @vdev: The device
 */
void vfio_pci_end_reset(struct vfio_pci_core_device *vdev)
{
	down_write(&vdev->memory_lock);
	store_release_wake_up(&vdev->in_reset, false);
}
