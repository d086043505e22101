#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of the configurations that are compiled only."""
import itertools
import sys
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from house.kconfigs import SWITCHES, fragment, pairwise, title  # noqa: E402

PLAIN = {switch: next(iter(choices)) for switch, choices in SWITCHES.items()}


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


if __name__ == "__main__":
    unittest.main()
