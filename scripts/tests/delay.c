// SPDX-License-Identifier: GPL-2.0-only
/*
 * Sleeps for make torture, which adds this file to vfio-pci-core and calls of it
 * to the rest, see scripts/tests/delays.
 *
 * The parameter delay names the point that sleeps: long enough for whoever else
 * is at work to get to where he waits for a lock, or goes on.  With "*" each of
 * them sleeps now and then, by chance.  delays counts.
 */
#include <linux/delay.h>
#include <linux/moduleparam.h>
#include <linux/preempt.h>
#include <linux/random.h>
#include <linux/string.h>

#include "vfio_pci_priv.h"

#define VFIO_PCI_DELAY_US	2000

static char delay[32];
module_param_string(delay, delay, sizeof(delay), 0644);

static int delays;
module_param(delays, int, 0644);

void vfio_pci_delay(const char *point)
{
	unsigned int us = VFIO_PCI_DELAY_US;

	if (delay[0] == '*') {
		if (get_random_u32_below(8))
			return;
		us = get_random_u32_below(us) + 1;
	} else if (!sysfs_streq(delay, point)) {
		return;
	}

	data_race(delays++);
	if (in_atomic() || irqs_disabled())
		udelay(us);
	else
		usleep_range(us, us + us / 4);
}
