#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""The table of what ran where."""
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from house.matrix import counts, matrix, results                # noqa: E402

LOG = """TAP version 13
1..3
# ok 7 not_a_result
ok 1 a.one
not ok 2 a.two
ok 3 a.three # SKIP The device has no RAM
"""


class Matrix(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.where = Path(scratch.name)

    def log(self, vm, name, text):
        (self.where / vm).mkdir(exist_ok=True)
        (self.where / vm / name).write_text(text)

    def test_results(self):
        self.log("edu", "a.edu.ktap", LOG)
        found = results(self.where / "edu/a.edu.ktap")
        self.assertEqual(found, {"a.one": "passed", "a.two": "failed",
                                 "a.three": "skipped"})
        self.assertEqual(counts(found), "1 failed, 1 passed, 1 skipped")
        self.assertEqual(results(self.where / "edu/none"), {})
        self.assertEqual(counts({}), "no result")

    def test_nothing(self):
        self.assertEqual(matrix(self.where), [])
        self.log("boot-03", "a.03.ktap", LOG)
        self.assertEqual(matrix(self.where), [])

    def test_table(self):
        self.log("i386", "a.i386.ktap", LOG)
        self.log("arm64-64k", "a.edu-plus.ktap", "ok 1 a.one\n")
        self.log("arm64-64k", "a.1GiB.ktap", "ok 1 a.one\n")
        self.log("arm64-64k", "b.edu-plus.ktap", "")
        self.assertEqual([line.split() for line in matrix(self.where)], [
            ["architecture", "i386", "arm64"],
            ["IOMMU", "intel", "SMMUv3"],
            ["pages", "4", "KiB", "64", "KiB"],
            ["what", "else"],
            ["a", "1", "1s", "1F", "2"],
            ["b", "-", "-"]])


unittest.main()
