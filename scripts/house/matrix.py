# SPDX-License-Identifier: GPL-2.0
"""What the selftests gave in each VM, by architecture, IOMMU and size of pages."""

import re
from collections import Counter

HEAD = ("architecture", "IOMMU", "pages", "what else")
# By the name of the VM
PLACES = {
    "base": ("x86_64", "intel", "4 KiB", "base"),
    "selftests": ("x86_64", "intel", "4 KiB", ""),
    "edu": ("x86_64", "intel", "4 KiB", "stock edu"),
    "bochs": ("x86_64", "intel", "4 KiB", "bochs"),
    "nopat": ("x86_64", "intel", "4 KiB", "no PAT"),
    "nop2pdma": ("x86_64", "intel", "4 KiB", "no P2PDMA"),
    "amd-iommu": ("x86_64", "amd", "4 KiB", ""),
    "virtio-iommu": ("x86_64", "virtio", "4 KiB", ""),
    "i386": ("i386", "intel", "4 KiB", ""),
    "arm64": ("arm64", "SMMUv3", "4 KiB", ""),
    "arm64-64k": ("arm64", "SMMUv3", "64 KiB", ""),
    "locks": ("x86_64", "intel", "4 KiB", "KASAN"),
    "faults": ("x86_64", "intel", "4 KiB", "faults"),
    "debug": ("x86_64", "intel", "4 KiB", "KASAN, all"),
}


def results(path):
    """A program's tests and what became of them, by its log."""
    text = path.read_text(errors="replace") if path.exists() else ""
    return {name: "skipped" if skipped else "failed" if failed else "passed"
            for failed, name, skipped in
            re.findall(r"^(not )?ok \d+ (\S+)(.*# SKIP)?", text, re.M)}


def counts(tests):
    """How many tests have which result."""
    return ", ".join(f"{number} {result}" for result, number
                     in sorted(Counter(tests.values()).items())) or "no result"


def cell(tests):
    """The same in a few characters: passed, skipped (s), failed (F)."""
    number = Counter(tests)
    words = [f"{number[result]}{letter}" for result, letter in
             (("passed", ""), ("skipped", "s"), ("failed", "F")) if number[result]]
    return " ".join(words) or "-"


def matrix(where):
    """Lines of the table of the VMs that have their logs in WHERE."""
    columns = {}
    for vm in PLACES:
        for path in sorted((where / vm).glob("*.ktap")):
            program = path.name.partition(".")[0]
            columns.setdefault(vm, {}).setdefault(program, []).extend(
                results(path).values())
    if not columns:
        return []
    table = [(head, *(PLACES[vm][number] for vm in columns))
             for number, head in enumerate(HEAD)]
    table += [(program, *(cell(tests.get(program, ())) for tests in columns.values()))
              for program in sorted(set().union(*columns.values()))]
    widths = [max(map(len, column)) for column in zip(*table)]
    return ["  ".join(text.ljust(width) if not number else text.rjust(width)
                      for number, (text, width) in enumerate(zip(row, widths)))
            for row in table]
