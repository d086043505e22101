#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Where the points that sleep are put, and what make torture adds up."""
import json
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from house.common import Failure                                # noqa: E402
from house.delays import Point, insert, read_points             # noqa: E402
from house.torture import FUZZ, RACE, Sum, watched               # noqa: E402

CODE = """\
static int first(int a,
		 int b)
{
	lock();
	unlock();
	return first_more();
}

int *second(void)
{
	first(1, 2);
	if (x) {
		lock();
	}
	lock();
	lock_more();
}
"""
KTAP = """\
KTAP version 1
# 12 rounds, both were at work at a time in 7, seed 1
# fail_nth.c:99:bar_map:map a BAR: 14 points, 9 errors, 8 of them ENOMEM
ok 1 fine # SKIP They never met
3 rounds, both were at work at a time in 1, seed 1
page 3 of what is lent
not ok 2 read_revoke
# hold-begun: 4 sleeps
"""
CALLS = "500 calls, 20 refused, 3 accesses with SIGBUS\nok 1 sequence\n"
SYMBOLS = "".join(f"ffffffff8100000{n % 10} t vfio_{n}{end}\n" for n in range(60)
                  for end in ("", ".part.0", "_more"))


class Torture(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.where = Path(scratch.name)

    def test_insert(self):
        text = insert(CODE, Point("a-b", "", "first", "unlock();"))
        self.assertEqual(text, CODE.replace(
            "\tunlock", '\tvfio_pci_delay("a-b");\n\tunlock'))
        text = insert(CODE, Point("c", "", "second", "if (x) {"))
        self.assertIn('\tvfio_pci_delay("c");\n\tif (x)', text)

    def test_not_one_line(self):
        for function, line in (("second", "lock();"), ("first", "if (x) {"),
                               ("second", "lock"), ("third", "lock();")):
            with self.assertRaisesRegex(Failure, r"(0|2) times"):
                insert(CODE, Point("p", "", function, line))

    def test_points(self):
        names = {point.name for point in read_points()}
        self.assertGreater(len(names), 30)
        path = self.where / "delays"
        for text in ("a\tmmap\tf\n", "A\tmmap\tf\tg\n", 2 * "a\tmmap\tf\tg\n"):
            path.write_text(text)
            with self.assertRaises(Failure):
                read_points(path)

    def test_sum(self):
        (self.where / f"{RACE}.x.ktap").write_text(KTAP)
        (self.where / f"{FUZZ}.edu-plus.ktap").write_text(CALLS)
        (self.where / "other.ktap").write_text("not ok 1 other\n")
        (self.where / "summary").write_text("".join(
            json.dumps({"name": "x", "exit": 0, "problems": problems}) + "\n"
            for problems in
            ([], ["exit status 1"], ["kernel log (x):\n[1.0] BUG: KASAN"],
             ["kernel log (after x):\nkmemleak: 3 new suspected memory leaks (see"])))
        (self.where / "console.log").write_text("unreferenced object 0x1\n" * 3)
        total = Sum()
        total.add(self.where)
        self.assertEqual((total.rounds, total.met), (15, 8))
        self.assertEqual(total.pairs, {"fine": 7, "read_revoke": 1})
        self.assertEqual((total.calls, total.refused, total.sigbus), (500, 20, 3))
        self.assertEqual((total.points, total.failed), (14, 9))
        self.assertEqual((total.splats, total.leaks, total.stale), (1, 3, 1))
        self.assertEqual(list(total.problems(["hold-begun"])), [])
        self.assertEqual(list(total.problems(["memory-zap"])),
                         ["nobody has come to memory-zap"])
        self.assertIn("20 of them refused", total.table())

    def test_nothing_done(self):
        self.assertEqual(len(list(Sum().problems(["hold-begun"]))), 7)

    def test_less_done(self):
        (self.where / f"{RACE}.races.ktap").write_text(KTAP + "ok 3 # SKIP\n")
        (self.where / f"{FUZZ}.races.ktap").write_text(CALLS)
        (self.where / "console.log").touch()
        (self.where / "summary").write_text(
            json.dumps({"name": "y", "exit": None, "problems": []}) + "\n")
        total = Sum()
        total.add(self.where)
        self.assertEqual(len(total.undone), 3)
        self.assertEqual(set(total.undone) - set(total.problems([])), set())
        total.pairs["fine"] = 0
        self.assertIn("the two of fine have never met", total.problems([]))

    def test_watched(self):
        (self.where / "System.map").write_text(SYMBOLS)
        with mock.patch("house.torture.git", return_value="".join(
                f"static int vfio_{n}(void)\n{{\n" for n in range(60))):
            found = watched(None, "top", self.where)
        self.assertEqual(len(found), 120)
        self.assertIn("vfio_7.part.0", found)
        with mock.patch("house.torture.git", return_value=""), \
                self.assertRaisesRegex(Failure, "no more than 0"):
            watched(None, "top", self.where)


if __name__ == "__main__":
    unittest.main()
