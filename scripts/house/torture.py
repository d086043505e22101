# SPDX-License-Identifier: GPL-2.0
"""What make torture runs on which kernel, and what it all came to.

    races   the fast kernel: how often each pair of actions meets, and how many
            random calls are made
    points  lockdep and a poisoned slab, with a sleep at one point of the driver
            after the other (scripts/tests/delays), all pairs at each
    debug   KASAN, lockdep and all the rest: every program of the stack, every
            allocation failing once, then pairs and calls with sleeps by chance
    kcsan   the race detector: every program. It reports what two functions of
            vfio-pci do to each other
"""
import json
import re
from collections import namedtuple

from . import builds
from .common import git
from .plan import BDF, DEVICES, LIMIT, selftests_plan

RACE, FUZZ = "vfio_pci_dmabuf_race_test", "vfio_pci_dmabuf_fuzz_test"
SEQUENCES = 4           # of FUZZ, each makes the calls that it is asked for
SLOW = 6                # what a detector takes, at most, by plan.LIMIT
PARAMETERS = "/sys/module/vfio_pci_core/parameters"
# Those whose functions KCSAN is to report: both of a race have to be in there
OURS = ("vfio_pci_dmabuf.c", "vfio_pci_mmap.c", "vfio_pci_pfn.c", "vfio_pci_core.c",
        "vfio_pci_config.c", "vfio_pci_rdwr.c")

# A clock that counts instructions: a limit of 30 seconds of the harness is then no
# matter of how fast this machine is, and a sleep takes no time at all
COUNT = ("--icount", "0,sleep=off")
# flavour, whether the kernel has the points, rounds of each pair, calls of each
# sequence, more options of scripts/vm
Run = namedtuple("Run", "flavour delays rounds calls options")
RUNS = {
    "debug": Run("debug", True, 5, 25_000, COUNT),
    "points": Run("faults", True, 1, 0, (*COUNT, "--append", "slab_debug=FZPU")),
    "kcsan": Run("kcsan", False, 10, 2_500, ()),
    "races": Run("x86_64", False, 100, 250_000, ("--smp", "3")),
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
    symbols = set(re.findall(r"^\w+ [tT] (\w+)", (kernel / "System.map").read_text(),
                             re.M))
    text = "\n".join(git("show", f"{top}:drivers/vfio/pci/{name}", cwd=tree)
                     for name in OURS)
    return sorted(symbols & set(re.findall(r"^(?:[a-z].*[ *])?(\w+)\(", text, re.M)))


def plan(name, programs, points, functions):
    """All lines of a run's plan."""
    if name == "points":
        return list(one_by_one(points))
    if name == "races":
        return list(amounts(name))
    lines = [(line, SLOW * limit, command) for line, limit, command in
             selftests_plan(programs, devices=("edu-plus",))]
    lines += amounts(name)
    if name == "kcsan":
        lines = [("kcsan-on", 60, f"kcsan {' '.join(functions)}"), *lines,
                 ("kcsan-off", 60, "kcsan off")]
    return lines


class Sum:
    """What all runs have done, from what their programs and kernels said."""

    def __init__(self):
        self.rounds = self.met = self.calls = self.refused = self.sigbus = 0
        self.operations, self.points, self.failed = set(), 0, 0
        self.slept = {}
        self.splats = self.leaks = self.stale = 0

    def add(self, where):
        """Add the logs of a VM."""
        for path in where.glob("*.ktap"):
            self.add_ktap(path.name, path.read_text(errors="replace"))
        for line in (where / "summary").read_text().splitlines():
            for problem in json.loads(line)["problems"]:
                if not problem.startswith("kernel log"):
                    continue
                if re.search("unreferenced object|suspected memory leak", problem):
                    self.leaks += 1
                else:
                    self.splats += 1

    def add_ktap(self, name, text):
        for rounds, met in re.findall(
                r"(\d+) rounds, both were at work at a time in (\d+)", text):
            self.rounds += int(rounds)
            self.met += int(met)
        for calls, refused, sigbus in re.findall(
                r"(\d+) calls, (\d+) refused, (\d+) accesses with SIGBUS", text):
            self.calls += int(calls)
            self.refused += int(refused)
            self.sigbus += int(sigbus)
        for operation, points, errors in re.findall(
                r"(\S[^:\n]*): (\d+) points, (\d+) errors", text):
            self.operations.add(operation)
            self.points += int(points)
            self.failed += int(errors)
        for point, sleeps in re.findall(r"^# ([a-z-]+): (\d+) sleeps$", text, re.M):
            self.slept[point] = int(sleeps)
        if name.startswith((RACE, FUZZ)):
            self.stale += len(re.findall(r"^not ok ", text, re.M))

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
            ("stale accesses", f"{self.stale} tests of races and random calls "
                               "failed"),
        ))

    def problems(self, points):
        """What was to be done, and was not."""
        wanted = {"calls": SEQUENCES * sum(run.calls for run in RUNS.values()),
                  "refused": 1, "sigbus": 1, "met": len(points), "points": 1,
                  "rounds": sum(run.rounds for run in RUNS.values())}
        for name, least in wanted.items():
            if getattr(self, name) < least:
                yield f"{name}: {getattr(self, name)}, not {least}"
        for point in points:
            if not self.slept.get(point):
                yield f"nobody has come to {point}"
