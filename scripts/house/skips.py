# SPDX-License-Identifier: GPL-2.0
"""Why a test may be skipped, by the VM and the program that it is part of.

A reason that is not here is a failure: a test that is skipped tests nothing, and
nobody would notice.
"""
import re

from .plan import NEEDS_P2PDMA

ANYTHING = ("",)
# On edu-plus, which is there to run them all
EDU_PLUS = (
    # its RAM is 64 MiB, as is the whole window of its port
    "BAR too small for 1 GiB pages",
    # nor is one of its BARs below a page
    "The device has no BAR that is smaller than a page",
    # variants of tests that are about the character device, for groups
    "Only a character device can be open",
    # what revokes is one thing for both calls: one variant of two is enough
    "The feature shows it",
    # on the debug kernel
    "kmemleak allocates more",
    # but on the kernel of the step faults
    "The kernel makes no allocation fail",
)
# It has some seconds or milliseconds, and has them again when the test is run again
TIME = ("The machine is too slow to touch a device that wakes up",)
# No dump of what translates the addresses of programs, and a CPU flag of x86
NOT_X86_64 = (
    "Cannot look at page tables",
    "Nothing is mapped ahead, or nobody can tell",
    "The kernel or the CPU has no 1 GiB pages",
)
# In a VM of its own, whose kernel is told not to use the CPU's page attribute table
NO_PAT = ("Write-combining is refused",)
# Of KUnit, where nothing can be exported
NO_P2PDMA = ("no peer-to-peer DMA",)
NO_EXPORT = ("The kernel does not export DMABUFs",)
# Nor are there hugetlb pages of 2 MiB and 1 GiB
PAGES_64K = ("Made for pages of 4 KiB", r"mmap\(\) failed", "The kernel has no huge pages")
# house/torture.py minds a race that has not met in any run
TORTURE = ("They never met",)
# What the base's tests skip is compared with the top, and stock edu and bochs-display
# lack what most tests need
COMPARED = re.compile(r"\.(base|edu|bochs)$")


def may_skip(vm, program):
    """The reasons, as regular expressions, for which PROGRAM may skip in VM."""
    if COMPARED.search(program):
        return ANYTHING
    if vm == "nop2pdma" and NEEDS_P2PDMA.search(program):
        return ANYTHING
    if vm == "nop2pdma" and program.endswith(".small"):
        return NO_EXPORT
    if program == "kunit":
        return NO_P2PDMA if vm in ("nop2pdma", "i386") else ()
    reasons = TIME
    if not program.endswith((".1GiB", ".faults", ".small")):
        reasons += EDU_PLUS
    if vm.startswith("torture-"):
        reasons += TORTURE
    if vm == "nopat":
        reasons += NO_PAT
    if vm == "i386" or vm.startswith("arm64"):
        reasons += NOT_X86_64
    if vm == "arm64-64k":
        reasons += PAGES_64K
    return reasons
