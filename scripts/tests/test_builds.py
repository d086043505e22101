#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0
"""Tests of what is kept of a build; nothing is built here."""
import contextlib
import os
import re
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from house import builds                                        # noqa: E402
from house.builds import Warned, asked, no_warnings, program_name  # noqa: E402


class Warnings(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.log = Path(scratch.name) / "log"

    def test_found(self):
        for line in ("a.c:1:2: warning: unused", "ld: warning: x has LOAD segment",
                     "WARNING: modpost: missing MODULE_DESCRIPTION()"):
            self.log.write_text(f"  CC a.o\n{line}\n")
            with self.assertRaisesRegex(Warned, re.escape(line)):
                no_warnings(self.log)
            no_warnings(self.log, self.log.stat().st_size)

    def test_of_make(self):
        self.log.write_text("make[2]: warning: jobserver unavailable\n")
        no_warnings(self.log)


class Kernels(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.where = Path(scratch.name)
        self.log = self.where / "log"

    @contextlib.contextmanager
    def objects(self, *_):
        for name in ("image", ".config", "System.map"):
            (self.where / name).touch()
        with open(self.log, "a", encoding="utf-8") as log:
            log.write("of the kernel\n")
        yield self.where, self.where / "image"

    def kernel(self, key):
        with mock.patch.object(builds, "kernel_key", lambda *_: key), \
                mock.patch.object(builds, "kernel_objects", self.objects), \
                mock.patch.dict(os.environ, VFIO_DMABUF_CACHE=f"{self.where}/cache"):
            return (builds.kernel("tree", "top", "x86_64", self.log) / "log").read_text()

    def test_comments_are_not_digested(self):
        fragment, texts = self.where / "fragment", []
        for text in ("CONFIG_A=y\n# CONFIG_B is not set\n# CONFIG_C comes with it\n",
                     "# Why,\n\nCONFIG_A=y\n# and CONFIG_A\n# CONFIG_B is not set\n"
                     "# CONFIG_C comes with it\n",
                     "CONFIG_A=n\n# CONFIG_B is not set\n# CONFIG_C comes with it\n",
                     "CONFIG_A=y\n# CONFIG_C comes with it\n",
                     "CONFIG_A=y\n# CONFIG_B is not set\n"):
            fragment.write_text(text)
            texts.append(asked(fragment))
        self.assertEqual(texts[0], texts[1])
        self.assertEqual(len(set(texts)), 4)

    def test_log(self):
        self.assertEqual(self.kernel("no log before"), "of the kernel\n")
        self.log.write_text("warning: of QEMU\n")
        self.assertEqual(self.kernel("a log before"), "of the kernel\n")


class Programs(unittest.TestCase):
    def test_name(self):
        for command, name in (
                ("vfio_pci_device_test", "vfio_pci_device_test"),
                ("a_test -f one $EDU_BDFS", "a_test"),
                ("VAR=1 OTHER=/tmp/x a_test x", "a_test"),
                ("/tests/a_test -l", "a_test"),
                ("(a_test)", "command"), ("$EDU_BDFS", "command")):
            self.assertEqual(program_name(command), name)


if __name__ == "__main__":
    unittest.main()
