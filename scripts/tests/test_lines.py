#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of which lines count as reached, with a program of gcc and gcov."""
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from house.common import Failure, git  # noqa: E402
from house.lines import (Line, added, count, explain,  # noqa: E402
                         read_reasons, unreached)

BASE = """\
int old(int n)
{
	return n + 1;
}
int main(int argc, char **argv)
{
	return old(argc) == 0;
}
"""
TOP = """\
int old(int n)
{
	if (n > 100)
		return -1;
	return n + 1;
}
static int never(int n)
{
	return n - 1;
}
int main(int argc, char **argv)
{
	if (argc > 1)
		return never(argc);
	return old(argc) == 0;
}
"""


class LinesTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.where = Path(scratch.name)
        self.tree, self.data = self.where / "tree", self.where / "data/drivers"
        (self.tree / "drivers").mkdir(parents=True)
        self.data.mkdir(parents=True)
        git("init", "-q", cwd=self.tree)
        self.base = self.commit({"drivers/a.c": BASE, "drivers/gone.c": BASE})
        (self.tree / "drivers/gone.c").unlink()
        self.top = self.commit({"drivers/a.c": TOP, "drivers/b.c": "int b;\n",
                                "tools/t.c": BASE, "drivers/a.h": "int a;\n"})

    def commit(self, files):
        for name, text in files.items():
            path = self.tree / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        git("add", "-A", cwd=self.tree)
        git("-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "c",
            cwd=self.tree)
        return git("rev-parse", "HEAD", cwd=self.tree)

    def run_program(self, *args):
        name = self.tree / "drivers/a.c"
        subprocess.run(["gcc", "--coverage", "-c", "-o", "a.o", name],
                       cwd=self.data, check=True)
        subprocess.run(["gcc", "--coverage", "-o", "a", "a.o"], cwd=self.data,
                       check=True)
        subprocess.run(["./a", *args], cwd=self.data, check=False)
        return unreached(self.tree, self.base, self.top, count(self.data))

    def test_added(self):
        self.assertEqual(added(self.tree, self.base, self.top, "drivers/a.c"),
                         {3, 4, 7, 8, 9, 10, 13, 14})

    def test_unreached(self):
        found = self.run_program()
        self.assertEqual(sorted(found),
                         ["drivers/a.c", "drivers/a.h", "drivers/b.c"])
        _, missed = found["drivers/a.c"]
        self.assertEqual([(line.function, line.text) for line in missed],
                         [("old", "return -1;"), ("never", "static int never(int n)"),
                          ("never", "return n - 1;"),
                          ("main", "return never(argc);")])
        # nothing of a.h is code, nothing of b.c was compiled
        self.assertEqual(found["drivers/a.h"], ([], []))
        self.assertEqual(found["drivers/b.c"],
                         ([], [Line("drivers/b.c", 0, "", "*")]))

    def test_other_way(self):
        code, missed = self.run_program("one")["drivers/a.c"]
        self.assertGreater(len(code), 4)
        # it does not get to old()
        self.assertEqual([line.text for line in missed],
                         ["if (n > 100)", "return -1;"])

    def test_no_data(self):
        with self.assertRaisesRegex(Failure, "no data"):
            count(self.data)

    def reasons(self, text):
        path = self.where / "unreached"
        path.write_text(text)
        return read_reasons(path)

    def test_reasons(self):
        code, missed = self.run_program()["drivers/a.c"]
        reasons = self.reasons("# a comment\nNobody calls\nit.\n"
                               "\tdrivers/a.c: never: *\n\n"
                               "Too large.\n"
                               "\tdrivers/a.c: old: return -1;\n"
                               "\tdrivers/a.c: old: return -2;\n")
        why, without, unused = explain(missed, reasons, code)
        self.assertEqual({reason: len(found) for reason, found in why.items()},
                         {"Nobody calls it.": 2, "Too large.": 1})
        self.assertEqual([line.text for line in without], ["return never(argc);"])
        self.assertEqual(unused, [("drivers/a.c", "old", "return -2;")])

    def test_reason_of_a_file(self):
        why, without, unused = explain([Line("drivers/b.c", 0, "", "*")],
                                       self.reasons("Why.\n\tdrivers/b.c: *\n"), [])
        self.assertEqual((list(why), without, unused), (["Why."], [], []))

    def test_luck(self):
        reasons = self.reasons("Luck.\n\t? drivers/a.c: old: return -1;\n"
                               "\t? drivers/a.c: main: if (argc > 1)\n"
                               "\t? drivers/a.c: old: return -2;\n"
                               "\tdrivers/a.c: old: if (n > 100)\n")
        code, missed = self.run_program()["drivers/a.c"]
        why, without, unused = explain(missed, reasons, code)
        self.assertEqual([line.text for line in why["Luck."]], ["return -1;"])
        self.assertNotIn("return -1;", [line.text for line in without])
        # reached by luck, which is none of the others, and gone
        self.assertEqual([text for *_, text in unused], ["return -2;", "if (n > 100)"])

    def test_bad_reasons(self):
        for text in ("\ta.c: f: x\n", "Why.\n\ta.c\n", "Why.\n\ta.c: f\n",
                     "Why.\n\ta.c: f: x\nElse.\n\ta.c: f: x\n"):
            with self.assertRaises(Failure):
                self.reasons(text)


if __name__ == "__main__":
    unittest.main()
