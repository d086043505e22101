#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of the configurations that are compiled only."""
import itertools
import sys
import unittest
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from house.common import Failure                                # noqa: E402
from house.kconfigs import (NEEDS, PLAIN, SWITCHES, by_flavour, fragment,  # noqa: E402
                            options, pairwise, targets, title)


class Pairwise(unittest.TestCase):
    def test_all_pairs(self):
        rows = list(pairwise(SWITCHES))
        for (one, ones), (other, others) in itertools.combinations(SWITCHES.items(), 2):
            for pair in itertools.product(ones, others):
                self.assertTrue(any((row[one], row[other]) == pair for row in rows),
                                (one, other, pair))
        self.assertLess(len(rows), 12)

    def test_one_switch(self):
        self.assertEqual(list(pairwise({"a": "yn", "b": "y"})),
                         [{"a": "y", "b": "y"}, {"a": "n", "b": "y"}])


class Fragments(unittest.TestCase):
    def test_plain(self):
        self.assertEqual(fragment(PLAIN), "")
        self.assertEqual(title(PLAIN), "as in the VM")

    def test_taken_away(self):
        text = fragment(PLAIN | {"vfio": "m", "kunit": "n"})
        self.assertIn("CONFIG_VFIO_PCI=m\n", text)
        self.assertEqual(text.count("VFIO_PCI_KUNIT_TEST"), 1)
        self.assertIn("# CONFIG_VFIO_PCI_KUNIT_TEST is not set\n", text)


class Targets(unittest.TestCase):
    def test_of_a_row(self):
        touched = ["drivers/vfio/pci/a.o", "drivers/vfio/", "mm/", "mm/memory.o",
                   "mm/huge_memory.o", "drivers/infiniband/a.o",
                   "drivers/iommu/iommufd/pages.o"]
        self.assertEqual(targets(touched, PLAIN), [
            "drivers/iommu/iommufd/", "drivers/vfio/", "mm/huge_memory.o",
            "mm/memory.o"])
        self.assertEqual(targets(touched, PLAIN | {"thp": "n", "access": "group"}),
                         ["drivers/vfio/", "mm/memory.o"])

    def test_needs(self):
        self.assertIn("TRANSPARENT_HUGEPAGE", options("x86_64"))
        self.assertNotIn("TRANSPARENT_HUGEPAGE", options("nothp"))
        self.assertNotIn("VFIO_PCI", options("x86_64", "# CONFIG_VFIO_PCI is not set\n"))
        # what a switch takes away is what these need
        for name, row in (("drivers/pci/p2pdma.o", {"p2pdma": "n"}),
                          ("arch/x86/mm/pat/memtype_interval.o", {"pat": "n"})):
            self.assertEqual(targets([name], PLAIN), [name])
            self.assertEqual(targets([name], PLAIN | row), [])

    def test_by_flavour(self):
        mock, huge = "drivers/iommu/iommufd/selftest.o", "mm/huge_memory.o"
        others = ["drivers/infiniband/a.o", "drivers/iommu/iommufd/pages.o", "mm/"]
        self.assertEqual(by_flavour([*others, mock, huge]), {
            "x86_64": [*others, huge], "nothp": others, "faults": [mock]})
        self.assertEqual(by_flavour([huge]),
                         {"x86_64": [huge], "nothp": [], "faults": []})
        self.assertEqual(set(sum(by_flavour(list(NEEDS)).values(), [])), set(NEEDS))
        with patch.dict(NEEDS, {"a.o": "NO_SUCH"}), \
                self.assertRaisesRegex(Failure, "a.o"):
            by_flavour(["a.o"])


if __name__ == "__main__":
    unittest.main()
