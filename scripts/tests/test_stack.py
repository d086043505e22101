# SPDX-License-Identifier: GPL-2.0
"""The stack as files and as commits: round trip, refusals, conflicts.

Runs on a small base of its own, in seconds; scripts/check does the round trip
of the real stack on the real base as well.
"""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from house.base import REF, base_repo                          # noqa: E402
from house.common import Failure, git                          # noqa: E402
from house.stack import (BASE_REF, Stack, compose, drifted, export,  # noqa: E402
                         fingerprint, format_series, load, read_patch, stack_id,
                         working_commit)

WHEN = "2026-11-20T12:00:{:02d}+0000"


def snapshot(directory):
    """Every file below DIRECTORY with its content and mode."""
    return {str(f.relative_to(directory)): (f.read_bytes(),
                                            f.stat().st_mode & 0o777)
            for f in sorted(directory.rglob("*"))
            if f.is_file() and ".git" not in f.parts}


class StackTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        top = Path(scratch.name)
        self.base_repo = top / "base"
        self.base_repo.mkdir()
        git("init", "-q", cwd=self.base_repo)
        lines = "".join(f"line {n}\n" for n in range(40))
        (self.base_repo / "drivers").mkdir()
        (self.base_repo / "drivers/core.c").write_text(lines)
        (self.base_repo / "drivers/Makefile").write_text("obj-y := core.o\n")
        (self.base_repo / ".gitignore").write_text("/*\n")
        git("add", "-A", "-f", cwd=self.base_repo)
        self.commit(self.base_repo, "base", 0)
        self.base = git("rev-parse", "HEAD", cwd=self.base_repo)
        self.house = top / "house"
        (self.house / "patches").mkdir(parents=True)
        self.stack = Stack("linux", self.house, self.house / "patches",
                           ("drivers", "lib"))
        self.tree = top / "tree"
        self.mails = top / "mails"
        self.clock = 0
        compose(self.stack, self.base_repo, self.base, self.tree, self.mails)

    def commit(self, tree, subject, second, body="A reason.\n"):
        git("commit", "-q", "-m", f"{subject}\n\n{body}", cwd=tree, env={
            "GIT_AUTHOR_NAME": "A U Thor", "GIT_AUTHOR_EMAIL": "a@example.org",
            "GIT_COMMITTER_NAME": "C", "GIT_COMMITTER_EMAIL": "c@example.org",
            "GIT_AUTHOR_DATE": WHEN.format(second),
            "GIT_COMMITTER_DATE": WHEN.format(second)})

    def change(self, subject, files, body="A reason.\n"):
        """Commit FILES (path -> text or function of the old text)."""
        for path, text in files.items():
            file = self.tree / path
            if callable(text):
                text = text(file.read_text())
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(text.encode())
            git("add", "-f", path, cwd=self.tree)
        self.clock += 1
        self.commit(self.tree, subject, self.clock, body)

    def two_commits(self):
        self.change("drivers: Add a", {
            "drivers/a.c": "int a;\n",
            "drivers/Makefile": lambda old: old + "obj-y += a.o\n"})
        self.change("drivers: Change the core", {
            "drivers/core.c": lambda old: old.replace("line 20", "line twenty")})

    def compose(self):
        return compose(self.stack, self.base_repo, self.base, self.tree,
                       self.mails)

    def test_export_then_compose_is_the_identity(self):
        self.two_commits()
        script = "#!/bin/sh\necho ä\n--- not a patch\ndiff --git a/x b/x\n"
        self.change("drivers: Add odd files", {
            "drivers/odd/no-newline": "one\ntwo",
            "drivers/odd/empty": "",
            "drivers/odd/crlf": "a\r\nb\r\n",
            "drivers/odd/one line": "x\n",
            "drivers/odd/run.sh": script},
            "Text with ünicode,\n\n    indented: code\n\nFixes: 012 (\"x\")\n"
            "Link: <20260101@example.org>\n")
        (self.tree / "drivers/odd/run.sh").chmod(0o755)
        git("add", "-u", cwd=self.tree)
        git("commit", "-q", "--amend", "--no-edit", cwd=self.tree)
        before = git("rev-parse", "HEAD^{tree}", cwd=self.tree)
        log = git("log", "--format=%an%ae%ad%B", f"{BASE_REF}..", cwd=self.tree)
        export(self.stack, self.tree)
        self.assertEqual((self.house / "drivers/a.c").read_text(), "int a;\n")
        self.assertTrue(os.access(self.house / "drivers/odd/run.sh", os.X_OK))
        self.compose()
        self.assertEqual(git("rev-parse", "HEAD^{tree}", cwd=self.tree), before)
        self.assertEqual(git("log", "--format=%an%ae%ad%B", f"{BASE_REF}..",
                             cwd=self.tree), log)

    def test_compose_then_export_is_the_identity(self):
        self.two_commits()
        export(self.stack, self.tree)
        top = self.compose()
        files = snapshot(self.house)
        self.assertEqual(export(self.stack, self.tree), [])
        self.assertEqual(snapshot(self.house), files)
        self.assertEqual(self.compose(), top, "commit ids are reproducible")

    def test_dropped_and_renamed_commits(self):
        self.two_commits()
        self.change("drivers: Change the end", {
            "drivers/core.c": lambda old: old + "end\n"})
        export(self.stack, self.tree)
        series = self.stack.series
        names = ["drivers-add-a.patch", "drivers-change-the-core.patch",
                 "drivers-change-the-end.patch"]
        series.write_text(f"# Files\n{names[0]}  # Not-yet: a\n# Core\n"
                          f"{names[1]}  # Not-yet: b\n"
                          f"{names[2]}  # Not-yet: c\n# The end.\n")
        self.compose()
        git("reset", "-q", "--hard", f"{BASE_REF}", cwd=self.tree)
        git("cherry-pick", "stack@{1}", cwd=self.tree)
        git("commit", "-q", "--amend", "-m", "drivers: Say end\n\nWhy.",
            cwd=self.tree)
        export(self.stack, self.tree)
        self.assertEqual(series.read_text(),
                         "# Files\n# Core\ndrivers-say-end.patch  "
                         "# Not-yet: c\n# The end.\n")
        self.assertFalse((self.house / "drivers/a.c").exists())
        self.assertFalse((self.stack.patches / names[0]).exists())

    def test_whole_file_of_two_commits_is_refused(self):
        self.two_commits()
        self.change("drivers: Grow a", {"drivers/a.c": "int a;\nint b;\n"})
        before = snapshot(self.house)
        with self.assertRaises(Failure) as caught:
            export(self.stack, self.tree)
        for words in ("drivers/a.c", "drivers: Add a", "drivers: Grow a"):
            self.assertIn(words, str(caught.exception))
        self.assertEqual(snapshot(self.house), before, "nothing was written")
        export(self.stack, self.tree, grows=["drivers/a.c"])
        self.assertFalse((self.house / "drivers/a.c").exists())
        self.compose()
        self.assertEqual(export(self.stack, self.tree), [])

    def test_file_of_the_base_is_no_whole_file(self):
        git("rm", "-q", "drivers/core.c", cwd=self.tree)
        self.commit(self.tree, "drivers: Drop the core", 1)
        self.change("drivers: Add the core", {"drivers/core.c": "new\n"})
        with self.assertRaisesRegex(Failure, "drivers/core.c"):
            export(self.stack, self.tree)

    def test_uncommitted_work_is_refused(self):
        self.two_commits()
        (self.tree / "drivers/core.c").write_text("half\n")
        with self.assertRaisesRegex(Failure, "in no commit"):
            export(self.stack, self.tree)
        git("checkout", "-q", "--", ".", cwd=self.tree)
        (self.tree / "drivers/new.c").write_text("forgotten\n")
        with self.assertRaisesRegex(Failure, "drivers/new.c"):
            export(self.stack, self.tree)

    def test_working_commit_has_all_that_is_there(self):
        head = git("rev-parse", "HEAD", cwd=self.tree)
        (self.tree / "drivers/Makefile").write_text("obj-y := core.o new.o\n")
        (self.tree / "drivers/new.c").write_text("new\n")
        with self.assertRaisesRegex(Failure, "(?s)git add -f.*drivers/new.c"):
            working_commit(self.tree)       # this base ignores all new files
        (self.tree / ".gitignore").write_text("*.o\n")
        (self.tree / "drivers/core.c").unlink()
        before = git("status", "--porcelain", cwd=self.tree)
        commit = working_commit(self.tree)
        self.assertEqual(git("diff", "--name-status", head, commit,
                             cwd=self.tree).split(),
                         ["M", ".gitignore", "M", "drivers/Makefile",
                          "D", "drivers/core.c", "A", "drivers/new.c"])
        self.assertEqual(git("rev-parse", f"{commit}^", "HEAD", cwd=self.tree),
                         f"{head}\n{head}")
        self.assertEqual(git("status", "--porcelain", cwd=self.tree), before)

    def test_fuzz_is_refused_and_named(self):
        self.two_commits()
        export(self.stack, self.tree)
        patch = self.stack.patches / "drivers-change-the-core.patch"
        patch.write_text(patch.read_text().replace(" line 18", " line 18 x"))
        with self.assertRaises(Failure) as caught:
            self.compose()
        for words in ("drivers-change-the-core.patch", "drivers/core.c",
                      "hunk at line"):
            self.assertIn(words, str(caught.exception))
        # and it can be mended where it stopped
        file = self.tree / "drivers/core.c"
        file.write_text(file.read_text().replace("line 20", "line twenty"))
        git("add", "-A", cwd=self.tree)
        git("am", "--continue", cwd=self.tree)
        export(self.stack, self.tree)
        self.compose()

    def test_bad_files_are_refused(self):
        self.two_commits()
        export(self.stack, self.tree)
        orphan = self.house / "drivers/orphan.c"
        orphan.write_text("x\n")
        with self.assertRaisesRegex(Failure, "orphan.c"):
            load(self.stack)
        orphan.unlink()
        (self.house / "drivers/a.c").unlink()
        with self.assertRaisesRegex(Failure, "drivers/a.c is missing"):
            stack_id(self.stack, self.base)
        (self.house / "drivers/a.c").write_text("int a;\n")
        core = self.stack.patches / "drivers-change-the-core.patch"
        text = core.read_text()
        core.write_text(text.replace("---\n\n",
                                     "---\nWhole-file: drivers/a.c\n\n"))
        with self.assertRaisesRegex(Failure, "belongs to two patches"):
            load(self.stack)
        core.write_text(text.replace("drivers/core.c", "drivers/a.c"))
        with self.assertRaisesRegex(Failure, "touches the whole file"):
            load(self.stack)
        core.write_text(text)
        self.stack.series.write_text("no-such.patch  # Not-yet: x\n")
        with self.assertRaisesRegex(Failure, "no-such.patch"):
            load(self.stack)

    def test_what_git_am_would_change_is_refused(self):
        for number, (subject, body) in enumerate((
                ("drivers: Cut", "Why.\n\n---\nlost\n"),
                ("drivers: Steal", "From: B <b@example.org>\n\nWhy.\n"),
                ("[PATCH] drivers: Prefix", "Why.\n"),
                ("fixup! drivers: Core", "Why.\n"),
                ("ä", "Why.\n"))):
            self.change(subject, {"drivers/core.c": f"{number}\n"}, body)
            with self.assertRaises(Failure, msg=subject):
                export(self.stack, self.tree)
            git("reset", "-q", "--hard", "HEAD~1", cwd=self.tree)
        git("commit", "-q", "--allow-empty", "-m", "drivers: Nothing\n\nWhy.",
            cwd=self.tree)
        with self.assertRaisesRegex(Failure, "changes nothing"):
            export(self.stack, self.tree)

    def test_line_ends_and_encodings(self):
        self.change("drivers: Use CRLF", {
            "drivers/core.c": lambda old: old.replace("line 7\n", "7\r\n")})
        wanted = git("rev-parse", "HEAD^{tree}", cwd=self.tree)
        export(self.stack, self.tree)
        self.compose()
        self.assertEqual(git("rev-parse", "HEAD^{tree}", cwd=self.tree), wanted)
        (self.tree / "drivers/core.c").write_bytes(b"latin \xe4\n")
        git("add", "-u", cwd=self.tree)
        self.commit(self.tree, "drivers: Latin", 9)
        with self.assertRaisesRegex(Failure, "UTF-8"):
            export(self.stack, self.tree)

    def test_status_does_not_go_to_a_stranger(self):
        self.two_commits()
        export(self.stack, self.tree)
        self.stack.series.write_text(
            self.stack.series.read_text().replace("Unsorted: say where it stands",
                                                  "Posted: a link"))
        self.compose()
        self.clock = 0      # the date of the first commit again
        self.change("drivers: Add b", {"drivers/b.c": "int b;\n",
                                       "drivers/Makefile": "obj-y := b.o\n"})
        export(self.stack, self.tree)
        self.assertRegex(self.stack.series.read_text(), r"add-b.* Unsorted")

    def test_a_house_that_does_not_fit_is_refused(self):
        self.two_commits()
        export(self.stack, self.tree)
        (self.stack.patches / "lost.patch").write_text("x")
        with self.assertRaisesRegex(Failure, "lost.patch"):
            load(self.stack)
        (self.stack.patches / "lost.patch").unlink()
        first = self.stack.patches / "drivers-add-a.patch"
        text = first.read_text()
        for path in ("Makefile", "../precious", "drivers/../../x", "other/x"):
            first.write_text(text.replace("Whole-file: drivers/a.c",
                                          f"Whole-file: {path}"))
            with self.assertRaisesRegex(Failure, "no place"):
                load(self.stack)
        first.write_text(text)
        git("reset", "-q", "--hard", BASE_REF, cwd=self.tree)
        with self.assertRaisesRegex(Failure, "no commit"):
            export(self.stack, self.tree)

    def test_series_applies_without_our_tools(self):
        self.two_commits()
        export(self.stack, self.tree)
        self.compose()
        mails = format_series(self.stack, self.tree, self.mails / "out",
                              "A cover\n\nIts text.\n")
        self.assertIn("Its text.", mails[0].read_text())
        self.assertIn(f"base-commit: {self.base}",
                      "".join(m.read_text() for m in mails))
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@y",
                        "am", "-q", *mails[1:]], cwd=self.base_repo, check=True)
        self.assertEqual(git("rev-parse", "HEAD^{tree}", cwd=self.base_repo),
                         git("rev-parse", "HEAD^{tree}", cwd=self.tree))

    def test_another_base(self):
        self.change("one", {"drivers/core.c": lambda t: t.replace("line 3\n", "3\n")})
        self.change("two", {"drivers/Makefile": lambda t: t + "# two\n",
                            "lib/two.c": "int two;\n"})
        self.change("three", {"drivers/core.c": lambda t: t.replace("line 30\n", "")})
        export(self.stack, self.tree)
        plain = self.stack.on(self.base_repo, self.base)
        self.assertIsNone(plain.older)

        # a base that has "two" already, and another line in the way of "three"
        file = self.base_repo / "drivers/core.c"
        file.write_text(file.read_text().replace("line 31\n", "thirty-one\n"))
        (self.base_repo / "Makefile").write_text(
            "VERSION = 7\nPATCHLEVEL = 2\nSUBLEVEL = 12\n")
        git("add", "-A", "-f", cwd=self.base_repo)
        self.commit(self.base_repo, "older", 1)
        older = git("rev-parse", "HEAD", cwd=self.base_repo)
        patches = self.stack.patches
        (patches / "7.2").mkdir()
        (patches / "7.2/without").write_text("# why\ntwo.patch  # it is there\n")
        (patches / "7.2/three.patch").write_text(
            (patches / "three.patch").read_text().replace(" line 31\n",
                                                         " thirty-one\n"))
        other = self.stack.on(self.base_repo, older)
        self.assertIsNone(self.stack.on(self.base_repo, self.base).older)
        self.assertNotEqual(stack_id(other, older), stack_id(self.stack, older))
        tree = self.tree.with_name("other")
        compose(other, self.base_repo, older, tree, self.mails)
        text = (tree / "drivers/core.c").read_text()
        self.assertIn("thirty-one\n", text)
        self.assertNotIn("line 30\n", text)
        self.assertNotIn("two", (tree / "drivers/Makefile").read_text())
        with self.assertRaisesRegex(Failure, "7.2 is for"):
            export(other, tree)
        with self.assertRaisesRegex(Failure, "three.patch does not apply") as caught:
            compose(self.stack, self.base_repo, older, self.tree.with_name("no"),
                    self.mails)
        self.assertNotIn("The base is", str(caught.exception))
        (patches / "7.2/without").write_text("tow.patch\n")
        with self.assertRaisesRegex(Failure, "leaves out what .*\n  tow.patch"):
            load(other)

    def test_base_that_nothing_is_for(self):
        self.change("one", {"drivers/core.c": lambda t: t.replace("line 3\n", "3\n")})
        export(self.stack, self.tree)
        (self.stack.patches / "7.2").mkdir()
        file = self.base_repo / "drivers/core.c"
        file.write_text(file.read_text().replace("line 4\n", "four\n"))
        for version, said in (("6\nPATCHLEVEL = 12", True), ("7\nPATCHLEVEL = 2", False),
                              ("7\nPATCHLEVEL = 3", False), ("none", False)):
            (self.base_repo / "Makefile").write_text(f"VERSION = {version}\n")
            git("add", "-A", "-f", cwd=self.base_repo)
            self.commit(self.base_repo, version, 1)
            base = git("rev-parse", "HEAD", cwd=self.base_repo)
            with self.assertRaises(Failure) as caught, \
                    mock.patch("house.stack.pins", lambda: {"linux_version": "7.3.4-1"}):
                compose(self.stack.on(self.base_repo, base), self.base_repo, base,
                        self.tree.with_name("no"), self.mails)
            self.assertEqual("there are patches for 7.3.4, 7.2," in
                             str(caught.exception), said, version)
            git("am", "--abort", cwd=self.tree.with_name("no"))

    def test_patches_for_another_base_keep_in_step(self):
        self.change("one", {"drivers/core.c": lambda t: t.replace("line 3\n", "3\n")})
        export(self.stack, self.tree)
        file = self.stack.patches / "one.patch"
        plain, twin = file.read_text(), self.stack.patches / "7.2/one.patch"
        made = f"---\nMade-from: {fingerprint(read_patch(self.stack, file.name))}\n"
        twin.parent.mkdir()
        twin.write_text(plain.replace(" line 5\n", " five\n"))
        other, = self.stack.others()
        advice, = drifted(other)
        self.assertIn(made.removeprefix("---\n"), advice.replace("  ", ""))
        twin.write_text(twin.read_text().replace("---\n", made, 1))
        self.assertEqual(list(drifted(other)), [])

        # it has moved, as patches in front of it have changed
        file.write_text(plain.replace("@@ -1,7", "@@ -2,7").replace("index ", "index 1"))
        self.assertNotEqual(file.read_text(), plain)
        self.assertEqual(list(drifted(other)), [])
        for old, new in (("+3\n", "+three\n"), ("A reason", "Reasons"),
                         ("line 6\n", "line six\n")):
            file.write_text(plain.replace(old, new))
            with self.subTest(old):
                self.assertRegex(*drifted(other), "was made from another form")
        file.write_text(plain)
        twin.write_text(twin.read_text().replace("Subject: ", "Subject: t"))
        self.assertRegex(*drifted(other), "another author, date or subject")
        # what is not for another base was made from nothing, and export would drop it
        file.write_text(plain.replace("---\n", made, 1))
        with self.assertRaisesRegex(Failure, "only 'Whole-file"):
            load(self.stack)

    def test_directory_as_base(self):
        files = [".gitignore", "Kbuild", "MAINTAINERS", "tools/.gitignore"]
        other = self.house.parent / "other"
        for name in files + ["tools/.git/HEAD"]:
            (other / name).parent.mkdir(parents=True, exist_ok=True)
            (other / name).touch()
        cache = str(self.house.parent / "cache")
        with mock.patch.dict(os.environ, LINUX=str(other), VFIO_DMABUF_CACHE=cache):
            repo, commit, _ = base_repo("linux")
        self.assertEqual(git("rev-parse", REF, cwd=repo), commit)
        self.assertEqual(git("ls-tree", "-r", "--name-only", commit,
                             cwd=repo).splitlines(), files)


if __name__ == "__main__":
    unittest.main()
