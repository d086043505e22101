#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""For which reasons a test may be skipped where."""
import re
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from house.skips import may_skip                                # noqa: E402

TABLES = "Cannot look at page tables"
GROUP = "Only a character device can be open through two files"
MET = "They never met in 4 rounds"


def skips(vm, program, reason):
    return any(re.match(pattern, reason) for pattern in may_skip(vm, program))


class Skips(unittest.TestCase):
    def test_edu_plus(self):
        self.assertTrue(skips("selftests", "a.edu-plus", GROUP))
        self.assertFalse(skips("selftests", "a.edu-plus", TABLES))
        self.assertFalse(skips("selftests", "a.1GiB", GROUP))
        self.assertFalse(skips("faults", "a.faults", GROUP))
        self.assertFalse(skips("selftests", "kunit", GROUP))
        self.assertFalse(skips("i386", "a.i386", MET))
        self.assertTrue(skips("selftests", "a.1GiB", "The machine is too slow to touch "
                              "a device that wakes up"))
        self.assertFalse(skips("selftests", "a.edu-plus", "The machine is too slow"))

    def test_kunit(self):
        reason = "no peer-to-peer DMA"
        for vm, allowed in (("nop2pdma", True), ("i386", True), ("selftests", False),
                            ("arm64", False)):
            self.assertEqual(skips(vm, "kunit", reason), allowed)

    def test_elsewhere(self):
        for vm, program in (("base", "a.edu-plus.base"), ("edu", "a.edu"),
                            ("bochs", "a.bochs"), ("nop2pdma", "a_dmabuf.1GiB")):
            self.assertTrue(skips(vm, program, "whatever it may be"))
        self.assertFalse(skips("nop2pdma", "bar_map.edu-plus", "whatever"))

    def test_by_vm(self):
        for vm in "arm64", "arm64-64k", "i386":
            self.assertTrue(skips(vm, "a.edu-plus", TABLES))
            self.assertTrue(skips(vm, "a.edu-plus", GROUP))
        self.assertFalse(skips("arm64", "a.edu-plus", "Made for pages of 4 KiB"))
        for reason in "Made for pages of 4 KiB", "The kernel has no huge pages":
            self.assertTrue(skips("arm64-64k", "a.edu-plus", reason))
        for vm, allowed in ("nopat", True), ("selftests", False):
            self.assertEqual(skips(vm, f"a.{vm}", "Write-combining is refused"), allowed)
        self.assertTrue(skips("torture-kcsan", "a.edu-plus", MET))
        self.assertTrue(skips("torture-kcsan", "a.edu-plus", GROUP))
        self.assertFalse(skips("selftests", "a.edu-plus", MET))


if __name__ == "__main__":
    unittest.main()
