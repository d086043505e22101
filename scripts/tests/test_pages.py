# SPDX-License-Identifier: GPL-2.0
"""Which pages are rendered for a stack, and whose Sphinx's warnings are."""

import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from house.common import git                                    # noqa: E402
from house.pages import pages, warnings                         # noqa: E402

PAGES = {
    "index.rst": "", "api/index.rst": "", "other/index.rst": "",
    "api/new.rst": "See Documentation/other/old.rst and Documentation/no/where.rst.",
    "api/takes.rst": ".. kernel-doc:: drivers/a.c\n   :export:\n",
    "api/exports.rst": ".. kernel-doc:: lib/b.c\n   :export: drivers/a.c\n",
    "api/names.rst": "It is in drivers/a.c\n",
    "api/like.rst": ".. kernel-doc:: drivers/a_c\n",
    "other/old.rst": "", "other/more.rst": "",
    "translations/takes.rst": ".. kernel-doc:: drivers/a.c\n",
}
FILES = ["Documentation/api/index.rst", "Documentation/api/new.rst", "drivers/a.c",
         "MAINTAINERS"]
OURS = """\
/t/Documentation/api/new.rst:2: ERROR: Malformed table.

= =
WARNING: ./drivers/a.c:8 function parameter 'x' not described in 'a'
/t/Documentation/api/new:7: ./lib/b.c:1: WARNING: undefined label: 'y'
/t/Documentation/api/index.rst:1: WARNING: toctree contains reference to nonexisting \
document 'api/newest'
"""
THEIRS = """\
/t/Documentation/other/old.rst:1: WARNING: Title underline too short.
/t/Documentation/other/drivers/a.c-new.rst:1: WARNING: Title underline too short.
"""
NOT_RENDERED = """\
/t/Documentation/api/index.rst:1: WARNING: toctree contains reference to nonexisting \
document 'other/more'
"""


class Pages(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.tree = Path(scratch.name)
        for name, text in PAGES.items():
            path = self.tree / "Documentation" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        git("init", "-q", cwd=self.tree)
        git("add", "-A", cwd=self.tree)

    def test_pages(self):
        self.assertEqual(pages(self.tree, FILES), [
            "api/exports.rst", "api/index.rst", "api/new.rst", "api/takes.rst",
            "index.rst", "other/index.rst", "other/old.rst"])

    def test_warnings(self):
        ours, theirs = warnings(OURS + THEIRS + NOT_RENDERED, self.tree, FILES)
        self.assertIn("no Documentation/no/where.rst", ours[0])
        self.assertEqual("\n".join(ours[1:]) + "\n", OURS)
        self.assertEqual("\n".join(theirs) + "\n", THEIRS)


if __name__ == "__main__":
    unittest.main()
