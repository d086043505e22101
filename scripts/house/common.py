# SPDX-License-Identifier: GPL-2.0
"""Where things are, how a step reports, how a command is run.

Layout of the working files, none of which is ever committed:

  build/           of this clone (BUILD=dir moves it): trees, objects, logs
  $VFIO_DMABUF_CACHE, by default ~/.cache/vfio-dmabuf, shared by all clones:
                   base repositories, ccache, kernels and QEMUs by their inputs

An artefact of the cache is made under a lock in a temporary directory beside
its place and renamed when whole: whoever finds it can use it, and a run that
was killed leaves nothing that a later one would believe.
"""

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# git must not see the user's configuration: hooks, signing, diff prefixes and
# whitespace fixes would all change what compose and export write.
GIT_ENV = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_CONFIG_COUNT": "1",    # a base may be another user's tree
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
}
FOREIGN = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "LLVM", "KCFLAGS", "KCPPFLAGS",
           "CFLAGS", "CPPFLAGS", "LDFLAGS", "ARCH", "CROSS_COMPILE", "CC",
           "KBUILD_OUTPUT", "KCONFIG_ALLCONFIG", "O", "V", "TEST", "TREE")
IDENTITY = ("vfio-dmabuf developers", "vfio-dmabuf@localhost")


class Failure(Exception):
    """An error that the user can act on: its text is the whole message."""


def main(run):
    """Run a script's function; a Failure is one message and status 1."""
    # Debian's python3 has the modules that scripts of the trees import
    os.environ["PATH"] = "/usr/sbin:/usr/bin:/sbin:/bin:" + os.environ["PATH"]
    # What a build depends on is in its key, not in the caller's environment
    for name in list(os.environ):
        if name in FOREIGN or name.startswith("GIT_"):
            del os.environ[name]
    os.environ.update(GIT_ENV)
    # A kill must unwind like an interrupt, or children would live on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(run())
    except (Failure, OSError) as error:
        sys.stdout.flush()
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        if getattr(error, "errno", 0) == errno.ENOSPC:
            print(f"make room there, then run it again: {cache_dir()} may be deleted",
                  file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def build_dir():
    """The clone's build directory; kbuild wants nothing odd in its path."""
    chosen = Path(os.environ.get("BUILD") or ROOT / "build").absolute()
    if re.search(r"[^\w/.,+@=~-]", str(chosen)):
        real = cache_dir() / "clones" / digest(str(chosen))[:16]
        real.mkdir(parents=True, exist_ok=True)
        if chosen.is_symlink():
            chosen.unlink()     # the clone may have moved
        elif chosen.exists():
            raise Failure(f"'{chosen}' is in the way: a build directory with a "
                          "blank or colon in its path has to be a link into "
                          "the cache")
        chosen.symlink_to(real)
        chosen = real
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen


def cache_dir():
    path = os.environ.get("VFIO_DMABUF_CACHE")
    if not path:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        path = Path(base) / "vfio-dmabuf"
    path = Path(path).absolute()
    if re.search(r"[\s:]", str(path)):
        raise Failure(f"the cache '{path}' has a blank or a colon in its path, "
                      "which kernel builds cannot have; set VFIO_DMABUF_CACHE")
    path.mkdir(parents=True, exist_ok=True)
    return path


def pins():
    """scripts/pins as a dictionary."""
    found = {}
    for line in (ROOT / "scripts" / "pins").read_text().splitlines():
        if match := re.fullmatch(r"(\w+)='?([^']*)'?", line):
            found[match[1]] = match[2]
    return found


def digest(*parts):
    """A hash of texts, bytes and files' contents."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            part = part.read_bytes()
        elif isinstance(part, str):
            part = part.encode()
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


@contextlib.contextmanager
def lock(path):
    """Hold the lock file PATH; says so when somebody else has it.

    Children inherit it: the next run waits for those of a killed one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        os.set_inheritable(file.fileno(), True)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"    waiting for another run to finish with {path.stem}",
                  flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def cached(kind, key):
    """Yield (place, scratch): scratch is None when place is already there.

    The caller fills the scratch directory; it becomes the place when the block
    ends without an exception.
    """
    place = cache_dir() / kind / key
    if place.exists():
        yield place, None
        return
    with lock(cache_dir() / "locks" / f"{kind}-{key}.lock"):
        if place.exists():
            yield place, None
            return
        scratch = place.with_name(f".{key}.tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            yield place, scratch
            scratch.rename(place)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def git(*args, cwd, input=None, check=True, env=None, binary=False):
    """Run git without the user's configuration; returns its output."""
    done = subprocess.run(
        ["git", *map(str, args)], cwd=cwd, input=input,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False,
        close_fds=False, env={**os.environ, **GIT_ENV, **(env or {})})
    if check and done.returncode:
        lines = (done.stderr or done.stdout).decode(
            errors="replace").strip().splitlines()
        if len(lines) > 8:      # a full disk has a line for each file
            lines[3:-3] = ["..."]
        raise Failure(f"git {args[0]} in {cwd} failed: " + "\n  ".join(lines))
    if not check:
        return done
    return done.stdout if binary else done.stdout.decode().rstrip("\n")


def die_with_parent():
    """For preexec_fn: a child in a process group of its own, killed with us.

    To be started in the main thread: it dies with the thread that forked.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.setpgid(0, 0)


ENDING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def undisturbed():
    """Have the signals that end us wait for the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child(subprocess.Popen):
    """A command in a group of its own that ends with its block at the latest.

    Signals that end us wait from before it is there until its block begins, or
    until somebody who can end it has called signals().
    """

    def __init__(self, argv, **options):
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
            super().__init__(list(map(str, argv)), stdin=subprocess.DEVNULL,
                             close_fds=False, preexec_fn=self.prepare, **options)
        except BaseException:
            self.signals()
            raise

    def prepare(self):
        """In the child: it is not to have our mask."""
        die_with_parent()
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)

    def signals(self):
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)

    def __enter__(self):
        try:
            self.signals()
        except BaseException:
            self.end()
            raise
        return super().__enter__()

    # Popen looks at its process under a lock that the exception of a signal's
    # handler can leave locked, and then end() would wait for it for ever

    def poll(self):
        with undisturbed():
            return super().poll()

    def wait(self, timeout=None):
        if self.poll() is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                if not select.select([pidfd], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(self.args, timeout)
            finally:
                os.close(pidfd)
        with undisturbed():
            return super().wait()

    def end(self):
        """End it now: it may clean up, but not for long."""
        if self.poll() is not None:
            return
        try:
            self.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.wait(5)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def __exit__(self, *reason):
        self.end()
        return super().__exit__(*reason)


class Beside:
    """Commands that run beside us, MOST at a time: VMs of what was built last.

    All in the main thread. The block waits for them; when something else ends
    the block, a signal too, it ends them at once.
    """

    def __init__(self, most=1):
        self.most = most
        self.running = []

    def __enter__(self):
        return self

    def start(self, argv, log, done):
        """Run ARGV when there is room; then DONE(its status, its output)."""
        self.finish(self.most - 1)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as out:
            child = Child(argv, stdout=out, stderr=subprocess.STDOUT)
        self.running.append((child, log, done))
        child.signals()

    def look(self):
        """Do not wait, but be done with those that have ended."""
        for entry in [e for e in self.running if e[0].poll() is not None]:
            self.running.remove(entry)
            child, log, done = entry
            done(child.wait(), log.read_text(errors="replace"))

    def finish(self, most=0):
        """Wait until no more than MOST run, whichever end first."""
        self.look()
        while len(self.running) > most:
            with contextlib.ExitStack() as held:
                ends = [os.pidfd_open(child.pid) for child, *_ in self.running]
                for end in ends:
                    held.callback(os.close, end)
                select.select(ends, (), ())
            self.look()

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.finish()
        finally:
            for child, *_ in self.running:
                child.end()


def run_logged(argv, log, cwd=None, env=None, progress=None):
    """Run a long command with its output in LOG; Failure shows what matters.

    PROGRESS(text) turns the log's tail into a few words, printed every ten
    seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with open(log, "ab") as out:
        out.write(f"+ {' '.join(map(str, argv))}\n".encode())
        out.flush()
        with Child(argv, cwd=cwd, stdout=out, stderr=subprocess.STDOUT,
                   env={**os.environ, **(env or {})}) as child:
            while child.poll() is None:
                try:
                    child.wait(timeout=10)
                except subprocess.TimeoutExpired:
                    words = progress(log) if progress else ""
                    print(f"    {time.monotonic() - start:5.0f} s  {words}",
                          flush=True)
    if child.returncode:
        raise Failure(f"{argv[0]} failed (status {child.returncode}), "
                      f"log: {log}\n{telling_lines(log)}")


def telling_lines(log, most=12):
    """The lines of a build log that say what went wrong."""
    lines = log.read_text(errors="replace").splitlines()
    errors = [i for i, line in enumerate(lines)
              if re.search(r"\berror\b:|Error \d|undefined reference|FAILED:"
                           r"|No space left", line)]
    picked = lines[-most:]
    if errors:
        first = errors[0]
        picked = lines[first:first + 4] + [
            lines[i] for i in errors[1:most - 4] if i >= first + 4]
    return "\n".join(f"  | {line}" for line in picked)


class Steps:
    """Numbered steps with their time, their log and, at the end, a table."""

    def __init__(self, total=None):
        self.total = total
        self.count = 0

    def title(self, title, log=None):
        self.count += 1
        number = f"{self.count}/{self.total}" if self.total else self.count
        where = f"  (log: {relative(log)})" if log else ""
        print(f"[{number}] {title}{where}", flush=True)

    @contextlib.contextmanager
    def step(self, title, log=None):
        self.title(title, log)
        start = time.monotonic()
        try:
            yield
        except BaseException:
            print(f"    FAILED after {time.monotonic() - start:.0f} s",
                  flush=True)
            raise
        print(f"    done in {time.monotonic() - start:.1f} s", flush=True)


def relative(path):
    try:
        return Path(path).relative_to(Path.cwd())
    except ValueError:
        return path
