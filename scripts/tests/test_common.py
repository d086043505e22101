# SPDX-License-Identifier: GPL-2.0
"""What the scripts run and keep, and that nothing of it outlives them."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

SCRIPTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(SCRIPTS))

from house import base                                          # noqa: E402
from house.common import Beside, Child, Failure, run_logged     # noqa: E402

# A script with a child that has one itself; what ends the child is one of WAYS
SCRIPT = """
import sys, time
from pathlib import Path
from house.common import Beside, Child, main, run_logged
argv = ["sh", "-c", "{trap}sleep 1000 & echo $$ $! >pids.new;"
        "mv pids.new pids; wait; wait"]
log = Path("log")
def beside():
    with Beside() as other:
        other.start(argv, log, print)
        time.sleep({pause})
def child():
    with Child(argv) as process:
        process.wait()
main({way})
"""
WAYS = {"runs": "lambda: run_logged(argv, log)", "child": "child",
        "beside": "beside"}


def alive(pid):
    """Whether there is such a process, other than as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


class ChildrenTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = Path(scratch.name)

    def wait_for(self, condition, seconds=20):
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.02)

    def end(self, number, way, pause=1000, trap=""):
        """Kill a script; its child and grandchild have to go with it."""
        script = SCRIPT.format(way=WAYS[way], pause=pause, trap=trap)
        pids = self.dir / "pids"
        pids.unlink(missing_ok=True)
        # what a shell puts into the background ignores SIGINT, and so do we then
        run = subprocess.Popen(
            [sys.executable, "-c", script], cwd=self.dir,
            env=os.environ | {"PYTHONPATH": str(SCRIPTS)},
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        try:
            self.wait_for(pids.exists)
            found = pids.read_text().split()
            run.send_signal(number)
            start = time.monotonic()
            self.assertNotEqual(run.wait(20), 0)
            # of a script that was killed itself, the kernel ends the child only
            gone = found[:1] if number == signal.SIGKILL else found
            self.wait_for(lambda: not any(alive(pid) for pid in gone))
        finally:
            run.kill()
            run.wait()
            if pids.exists():   # its group is that of the child
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(pids.read_text().split()[0]), signal.SIGKILL)
        return time.monotonic() - start

    def test_all_ends_at_once(self):
        for way in WAYS:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
                with self.subTest(way=way, number=number):
                    self.assertLess(self.end(number, way), 4)

    def test_ends_while_it_waits_for_the_last(self):
        self.end(signal.SIGTERM, "beside", pause=0)

    def test_a_child_that_will_not_end(self):
        self.end(signal.SIGTERM, "child", trap="trap '' TERM; ")

    def test_one_beside_another(self):
        log, seen = self.dir / "vm/log", []
        with Beside() as beside:
            for number in range(3):
                beside.start(["sh", "-c", f"echo {number}; exit {number}"], log,
                             lambda *result: seen.append(result))
                self.assertEqual(len(seen), number)
        self.assertEqual(seen, [(0, "0\n"), (1, "1\n"), (2, "2\n")])

    def test_two_beside_another(self):
        go, seen = self.dir / "go", []

        def start(number, command):
            beside.start(["sh", "-c", f"{command}; exit {number}"],
                         self.dir / f"log{number}",
                         lambda status, _: seen.append(status))

        with Beside(2) as beside:
            start(9, f"until [ -e {go} ]; do sleep 0.01; done")
            for number in range(4):
                start(number, "true")
                # the one that goes on does not hold up the others
                self.assertEqual(seen, list(range(number)))
            go.touch()
        self.assertCountEqual(seen, [0, 1, 2, 3, 9])

    def test_look_at_one_beside(self):
        go, seen = self.dir / "go", []
        with Beside() as beside:
            beside.start(["sh", "-c", f"until [ -e {go} ]; do :; done; exit 5"],
                         self.dir / "log", lambda *result: seen.append(result))
            beside.look()
            self.assertEqual(seen, [])
            go.touch()
            while not seen:
                beside.look()
            self.assertEqual(seen, [(5, "")])

    def test_beside_an_error(self):
        seen = []
        with self.assertRaises(Failure), Beside(2) as beside:
            for log in self.dir / "log1", self.dir / "log2":
                beside.start(["sleep", "1000"], log, seen.append)
            raise Failure("no kernel")
        for child, *_ in beside.running:
            self.assertFalse(alive(child.pid))
        self.assertEqual(seen, [])

    def test_status(self):
        with Child(["sh", "-c", "exit 3"]) as child:
            self.assertEqual(child.wait(), 3)
        log = self.dir / "log"
        run_logged(["echo", "fine"], log)
        with self.assertRaisesRegex(Failure, "(?s)status 3.*bad"):
            run_logged(["sh", "-c", "echo bad; exit 3"], log)
        self.assertIn("fine", log.read_text())


# Fills a place of the cache; says who has done it
FILL = """
import os, sys, time
from house.common import cached, main
def fill():
    with cached("kind", "key") as (place, new):
        if new:
            print("filling", flush=True)
            {what}
    print("there:", sorted(path.name for path in place.iterdir()))
main(fill)
"""
WRITE = "time.sleep({pause}); (new / 'file').write_bytes(bytes({size}))"


class CacheTest(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = Path(scratch.name)
        self.env = os.environ | {"PYTHONPATH": str(SCRIPTS),
                                 "VFIO_DMABUF_CACHE": str(self.dir)}

    def fill(self, pause=0, size=1, before=()):
        script = FILL.format(what=WRITE.format(pause=pause, size=size))
        return subprocess.Popen([*before, sys.executable, "-c", script], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                env=self.env)

    def test_two_at_once(self):
        runs = [self.fill(pause=3) for _ in range(3)]
        said = [run.communicate(timeout=60)[0] for run in runs]
        self.assertEqual([run.returncode for run in runs], [0, 0, 0])
        self.assertEqual(sum("filling" in text for text in said), 1, said)
        for text in said:
            self.assertIn("there: ['file']", text)

    def test_killed(self):
        for number in signal.SIGKILL, signal.SIGTERM, signal.SIGINT:
            run = self.fill(pause=1000)
            self.assertEqual(run.stdout.readline(), "filling\n")
            run.send_signal(number)
            run.communicate(timeout=60)
            self.assertFalse((self.dir / "kind/key").exists())
        self.assertIn("filling", self.fill().communicate(timeout=60)[0])
        self.assertEqual([path.name for path in (self.dir / "kind").iterdir()], ["key"])

    @unittest.skipIf(os.getuid(), "a disk of its own takes root")
    def test_full_disk(self):
        mount = ("unshare", "-m", "sh", "-c",
                 f'mount -t tmpfs -o size=64k none {self.dir} && exec "$0" "$@"')
        full = self.fill(size=1 << 20, before=mount)
        said = full.communicate(timeout=60)[0]
        self.assertEqual(full.returncode, 1)
        self.assertRegex(said, "No space left on device.*\n.*room")
        self.assertNotIn("Traceback", said)

    def test_broken_download(self):
        def fetch(package, version, downloads, _):
            path = downloads / f"{package}_{version}.deb"
            path.write_text("half of it")
            return path

        pin = {"linux_suite": "suite", "linux_package": "linux-source",
               "linux_version": "7.3", "linux_sha256": "0" * 64}
        with mock.patch.multiple(base, _run=lambda *_: "conf", _fetch_deb=fetch,
                                 _offered=lambda *_: ["7.3"]), \
                self.assertRaisesRegex(Failure, "7.3.deb.*checksum.*run it again"):
            base._import_pinned("linux", pin, self.dir)


if __name__ == "__main__":
    unittest.main()
