# SPDX-License-Identifier: GPL-2.0
"""What make torture runs on which kernel, and what it all came to.

    debug   KASAN, lockdep and all the rest: every program of the stack but those of
            storm, every allocation failing once
    storm   the same kernel: pairs and random calls, with sleeps by chance
    points  lockdep and a poisoned slab, with a sleep at one point of the driver
            after the other (scripts/tests/delays), all pairs at each
    kcsan   the race detector: every program of the stack. It reports what two functions of
            vfio-pci do to each other
    races   the fast kernel: how often each pair of actions meets, and how many
            random calls are made

Those that take longest come first, as two run at a time.
"""
import json
import re
from collections import namedtuple

from . import builds
from .common import Failure, git
from .plan import BDF, DEVICES, LIMIT, selftests_plan

RACE, FUZZ = "vfio_pci_dmabuf_race_test", "vfio_pci_dmabuf_fuzz_test"
SEQUENCES = 4           # of FUZZ, each makes the calls that it is asked for
SLOW = 6                # what a detector takes, most often, by plan.LIMIT
PARAMETERS = "/sys/module/vfio_pci_core/parameters"
# Those whose functions KCSAN is to report: both of a race have to be in there
OURS = ("vfio_pci_dmabuf.c", "vfio_pci_mmap.c", "vfio_pci_pfn.c", "vfio_pci_core.c",
        "vfio_pci_config.c", "vfio_pci_rdwr.c", "vfio_pci_reset.c")

# How the race and the fuzz test say that an access did what it must not
STALE = (r"page \d+ of what is lent|is_dead\(|DMA to what is revoked|"
         r"access to page \d+ of|^#? ?page \d+ of")

# A clock that counts instructions: a limit of 30 seconds of the harness is then no
# matter of how fast this machine is, and a sleep takes no time at all. A second of the
# guest is two or three of this machine, so what ends a program that hangs are the limits
# of scripts/vm, not those of the plan
COUNT = ("--icount", "0,sleep=off")
# flavour, whether the kernel has the points, whether the stack's programs are run,
# rounds of each pair, calls of each sequence, more options of scripts/vm
Run = namedtuple("Run", "flavour delays programs rounds calls options")
RUNS = {
    "debug": Run("debug", True, True, 0, 0, COUNT),
    "storm": Run("debug", True, False, 3, 25_000, COUNT),
    # behind two rounds more, which measure how long either takes
    "points": Run("faults", True, False, 1, 0, (*COUNT, "--append", "slab_debug=FZPU")),
    "kcsan": Run("kcsan", False, True, 12, 5_000, ()),
    "races": Run("x86_64", False, False, 60, 250_000, ("--smp", "3")),
}


def race(rounds):
    return f"VFIO_SELFTESTS_ROUNDS={rounds} {RACE} {DEVICES[RACE]}"


def amounts(name):
    """Lines of the plan: many rounds of each pair, and many random calls."""
    run = RUNS[name]
    delay = f"echo '*' >{PARAMETERS}/delay; " if run.delays else ""
    yield f"{RACE}.{name}", SLOW * LIMIT, delay + race(run.rounds)
    yield (f"{FUZZ}.{name}", SLOW * LIMIT,
           f"VFIO_SELFTESTS_CALLS={run.calls} {FUZZ} {BDF['edu-plus']}")


def one_by_one(points):
    """Lines of the plan: all pairs, with a sleep at one point at a time."""
    for point in points:
        yield (f"{RACE}.{point}", LIMIT,
               f"echo 0 >{PARAMETERS}/delays; echo {point} >{PARAMETERS}/delay; "
               f"{race(RUNS['points'].rounds)}; code=$?; "
               f"echo '# {point}:' $(cat {PARAMETERS}/delays) sleeps; exit $code")


def watched(tree, top, kernel):
    """The functions of the driver that are there to be watched in a kernel."""
    text = "\n".join(git("show", f"{top}:drivers/vfio/pci/{name}", cwd=tree)
                     for name in OURS)
    names = set(re.findall(r"^(?:[a-z].*[ *])?(\w+)\(", text, re.M))
    # the kernel knows one by its whole symbol, which may end in ".part.0"
    found = sorted({symbol for symbol in re.findall(
        r"^\w+ [tT] (\S+)$", (kernel / "System.map").read_text(), re.M)
        if symbol.partition(".")[0] in names})
    if len(found) < 50:
        raise Failure(f"{kernel} has no more than {len(found)} functions to watch")
    return found


def plan(name, tree, top, programs, points, functions):
    """All lines of a run's plan."""
    if name == "points":
        return list(one_by_one(points))
    lines = []
    if RUNS[name].programs:
        # The base's own are the step debug's. On KCSAN two of them map 1 GiB, and to let
        # go of that takes longer than the harness waits: the device remains busy
        without = {RACE, FUZZ, *builds.programs(tree, builds.BASE_REF)}
        lines += [(line, SLOW * limit, command) for line, limit, command in
                  selftests_plan(tree, top, programs, devices=("edu-plus",))
                  if line.partition(".")[0] not in without]
    if RUNS[name].rounds:
        lines += amounts(name)
    if name == "kcsan":
        # a stop of 0.2 ms after every 40th access
        watch = ("skip_watch=40", "udelay_task=200", *functions)
        lines = [("kcsan-on", 60, f"kcsan {' '.join(watch)}"), *lines,
                 ("kcsan-off", 60, "kcsan off")]
    return lines


class Sum:
    """What all runs have done, from what their programs and kernels said."""

    def __init__(self):
        self.rounds = self.met = self.calls = self.refused = self.sigbus = 0
        self.operations, self.points, self.failed = set(), 0, 0
        self.slept, self.pairs = {}, {}
        self.splats = self.leaks = self.stale = 0
        self.undone = []        # what did less than it was there for

    def add(self, where):
        """Add the logs of a VM."""
        for path in where.glob("*.ktap"):
            self.add_ktap(path.name, path.read_text(errors="replace"))
        for line in (where / "summary").read_text().splitlines():
            row = json.loads(line)
            if row["exit"] is None:
                self.undone.append(f"{where.name}: {row['name']} has no end")
            for problem in row["problems"]:
                if problem.startswith("kernel log"):
                    self.splats += not re.search(
                        "unreferenced object|suspected memory leak",
                        problem.splitlines()[1])
        self.leaks += (where / "console.log").read_text(
            errors="replace").count("unreferenced object")

    def add_ktap(self, name, text):
        races = re.findall(r"(\d+) rounds, both were at work at a time in (\d+)", text)
        self.rounds += sum(int(rounds) for rounds, _ in races)
        self.met += sum(int(met) for _, met in races)
        sequences = re.findall(
            r"(\d+) calls, (\d+) refused, (\d+) accesses with SIGBUS", text)
        self.calls += sum(int(calls) for calls, _, _ in sequences)
        self.refused += sum(int(refused) for _, refused, _ in sequences)
        self.sigbus += sum(int(sigbus) for _, _, sigbus in sequences)
        program, _, run = name.removesuffix(".ktap").partition(".")
        tests = len(re.findall(r"^(?:not )?ok \d+ ", text, re.M))
        if program == RACE:
            if not 0 < tests == len(races):
                self.undone.append(f"{name}: {len(races)} races in {tests} tests")
            for met, test in re.findall(r"both were at work at a time in (\d+)"
                                        r"(?:.*\n)+?(?:not )?ok \d+ (\S+)", text):
                self.pairs[test] = self.pairs.get(test, 0) + int(met)
        if program == FUZZ and run in RUNS:
            wanted = SEQUENCES * RUNS[run].calls
            done = sum(int(calls) for calls, _, _ in sequences)
            if done < wanted:
                self.undone.append(f"{name}: {done} calls, not {wanted}")
        for operation, points, errors in re.findall(
                r"(\S[^:\n]*): (\d+) points, (\d+) errors", text):
            self.operations.add(operation)
            self.points += int(points)
            self.failed += int(errors)
        for point, sleeps in re.findall(r"^# ([a-z-]+): (\d+) sleeps$", text, re.M):
            self.slept[point] = int(sleeps)
        # libvfio's assertions and the harness' expectations say so in these words
        self.stale += len(re.findall(STALE, text, re.M))

    def table(self):
        slept = [point for point, sleeps in self.slept.items() if sleeps]
        return "\n".join(f"{name:22} {text}" for name, text in (
            ("random calls", f"{self.calls:,}, {self.refused:,} of them refused, "
                             f"{self.sigbus:,} accesses with SIGBUS"),
            ("fault points", f"{self.points:,} in {len(self.operations)} operations, "
                             f"{self.failed:,} with an error"),
            ("race rounds", f"{self.rounds:,}, both at work at a time in "
                            f"{self.met:,}"),
            ("points that sleep", f"{len(slept)} of {len(self.slept)}, "
                                  f"{sum(self.slept.values()):,} sleeps"),
            ("splats", str(self.splats)),
            ("leaks", str(self.leaks)),
            ("stale accesses", str(self.stale)),
        ))

    def problems(self, points):
        """What was to be done, and was not."""
        for name in ("calls", "refused", "sigbus", "rounds", "met", "points"):
            if not getattr(self, name):
                yield f"{name}: none"
        yield from self.undone
        for test, met in self.pairs.items():
            if not met:
                yield f"the two of {test} have never met"
        for point in points:
            if not self.slept.get(point):
                yield f"nobody has come to {point}"
