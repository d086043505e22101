# SPDX-License-Identifier: GPL-2.0
"""What the VM runs: the stack's programs, each on the devices that it needs."""

import re

from . import builds
from .common import Failure

# The device that a program runs on, or those that it needs
BDF = {"edu-plus": "${EDU_PLUS_BDFS%% *}", "edu": "$EDU_BDFS",
       "bochs": "$BOCHS_BDFS"}
# What shows all of it, and is no test of the Makefile
DEMO = "vfio_pci_vend_demo"
# Those that need several: peer-to-peer DMA is between two, and one may disturb
# another
DEVICES = {
    "vfio_pci_dmabuf_import_test": "$EDU_PLUS_BDFS",
    "vfio_pci_dmabuf_race_test": "$EDU_PLUS_BDFS",
    "vfio_pci_dmabuf_test": "$EDU_PLUS_BDFS",
    "vfio_pci_dmabuf_wait_test": "$EDU_PLUS_BDFS",
    "vfio_pci_hot_reset_set_test": "$EDU_PLUS_PAIR",
    DEMO: "$EDU_PLUS_BDFS",
}
# What exports DMABUFs
NEEDS_P2PDMA = re.compile("dmabuf|hot_reset_set")
# What unplugs the first edu-plus and plugs it in again, see scripts/guest/host
HOTPLUG = {
    "vfio_pci_dmabuf_life_test":
        'VFIO_SELFTESTS_UNPLUG="host device_del plus0" '
        'VFIO_SELFTESTS_PLUG="host device_add edu-plus,id=plus0,bus=rp0" ',
}
# What programs do only if they are asked to, for it disturbs the whole machine
ASKS = {
    "vfio_pci_bar_map_test": "VFIO_SELFTESTS_FILE_MAX=1 ",
    "vfio_pci_dmabuf_test": "VFIO_SELFTESTS_FILE_MAX=1 ",
}
# What of them is about pages of 1 GiB, for the edu-plus with a large BAR, the last one
LARGE = "${EDU_PLUS_BDFS##* }"
ON_LARGE = {
    "vfio_pci_bar_map_test": "-t gigantic_pages -t huge_pages_unaided "
                             "-t huge_page_meets_small -t memory_disable_unmaps "
                             "-t munmap_hole -t mprotect_split -t mremap_move",
    "vfio_pci_dmabuf_test": "-t gigantic_pages -t gigantic_pages_move "
                            "-t gigantic_pages_move_zapped -t gigantic_soft_dirty "
                            "-t write_combining_gigantic -t huge_pages_unaided",
}
# Of a device that has a BAR which is smaller than a page
ON_SMALL = {"vfio_pci_bar_map_test": "-f vfio_pci_bar_map_small $SMALL_BDFS"}
LIMIT = 600             # seconds for a program; on a busy machine one took 271


def write_plan(path, lines):
    """Write a plan for scripts/vm: name, limit in seconds, command."""
    path.write_text("".join(f"{name}\t{limit}\t{command}\n"
                            for name, limit, command in lines))
    return path


def command(name, device="edu-plus", options=""):
    """How a program is run on a device, or on those that it needs."""
    devices, env = BDF[device], ASKS.get(name, "")
    if device == "edu-plus":
        devices, env = DEVICES.get(name, devices), HOTPLUG.get(name, "") + env
    return f"{env}{name} {options}{devices}"


def selftests_plan(tree, top, programs, devices=("edu-plus", "edu"), large=True):
    """Lines of the plan: KUnit, all programs on each device, some on LARGE."""
    suites = builds.kunit_suites(tree, top)
    if not suites:
        raise Failure("the stack has no KUnit suite")
    if devices != ("edu",):     # that VM is one beside another
        yield "kunit", 60, f"kunit {' '.join(suites)}"
    names = re.findall(r"^vfio:(\w+)$",
                       (programs / "kselftest-list.txt").read_text(), re.M)
    wanted = builds.programs(tree, top)
    if not wanted or set(wanted) != set(names):
        raise Failure(f"built {sorted(names)}, the Makefile has "
                      f"{sorted(wanted)}")
    for device in devices:
        for name in names:
            if name not in builds.NOT_HERE:
                yield f"{name}.{device}", LIMIT, command(name, device)
    if "edu-plus" not in devices:
        return
    for name, tests in ON_LARGE.items() if large else ():
        env = ASKS.get(name, "")
        yield f"{name}.1GiB", LIMIT, f"{env}{name} {tests} {LARGE}"
    for name, arguments in ON_SMALL.items():
        yield f"{name}.small", LIMIT, f"{name} {arguments}"
