# SPDX-License-Identifier: GPL-2.0
"""Configurations that nothing boots: what the stack touches compiles in each."""
import itertools
import re

from . import builds
from .common import Failure, run_logged

# What a user may choose that the stack's code depends on: name -> choice -> what the
# configuration then has in another way than the VM's
SWITCHES = {
    "vfio": {
        "y": {},
        "m": {"MODULES": "y", "VFIO": "m", "VFIO_PCI": "m",
              "VFIO_PCI_KUNIT_TEST": "m"},
    },
    "kunit": {
        "y": {},
        "n": {"KUNIT": "n", "KUNIT_DEBUGFS": "n", "KUNIT_DEFAULT_ENABLED": "n",
              "KUNIT_AUTORUN_ENABLED": "n", "VFIO_PCI_KUNIT_TEST": "n"},
    },
    "p2pdma": {"y": {}, "n": {"PCI_P2PDMA": "n"}},
    "thp": {"y": {}, "n": {"TRANSPARENT_HUGEPAGE": "n",
                           "TRANSPARENT_HUGEPAGE_MADVISE": "n"}},
    "memcg": {"y": {}, "n": {"MEMCG": "n"}},
    "iommufd": {"y": {}, "n": {"IOMMUFD": "n", "VFIO_DEVICE_CDEV": "n"}},
    "tracing": {"y": {}, "n": {"FTRACE": "n", "ENABLE_DEFAULT_TRACERS": "n"}},
    "lockdep": {"n": {}, "y": {"PROVE_LOCKING": "y"}},
}
# Directories and objects with what the stack touches; kbuild also makes an object that
# the configuration does not have
TARGETS = ("drivers/vfio/", "drivers/dma-buf/", "drivers/pci/p2pdma_core.o",
           "mm/memory.o", "mm/mremap.o", "mm/mmap.o")
MORE_TARGETS = {"p2pdma": "drivers/pci/p2pdma.o", "thp": "mm/huge_memory.o"}


def pairwise(switches):
    """Rows of choices in which any two choices of two switches are together."""
    rows = [dict(zip(switches, row)) for row in itertools.product(*switches.values())]

    def pairs(row):
        return set(itertools.combinations(row.items(), 2))

    open_pairs = set().union(*map(pairs, rows))
    while open_pairs:
        best = max(rows, key=lambda row: len(pairs(row) & open_pairs))
        open_pairs -= pairs(best)
        yield best


def fragment(row):
    """A row's text for Kconfig; what it takes away goes by more than one switch."""
    wanted = {}
    for switch, choice in row.items():
        for symbol, value in SWITCHES[switch][choice].items():
            # no switch brings back what another has taken away
            if wanted.get(symbol) != "n":
                wanted[symbol] = value
    return "".join(f"# CONFIG_{symbol} is not set\n" if value == "n" else
                   f"CONFIG_{symbol}={value}\n" for symbol, value in wanted.items())


def title(row):
    """What of a row is not as in the VM."""
    return ", ".join(f"{switch}={choice}" for switch, choice in row.items()
                     if SWITCHES[switch][choice]) or "as in the VM"


def no_warnings(log, start=0):
    """A compiler's warning behind that place of the log is a Failure."""
    text = log.read_bytes()[start:].decode(errors="replace")
    if found := re.findall(r"^.*warning:.*$", text, re.M):
        raise Failure("\n".join(found[:8]))


def make(tree, commit, row, where, log, *targets):
    """Make TARGETS as a row has it, without a warning; returns the modules' names."""
    env = builds.build_env() | {"ARCH": builds.ARCHES["x86_64"][0]}
    more = builds.build_dir() / "kconfig.config"
    more.write_text(fragment(row))
    with builds.work("linux"), builds.Objects(where) as objects:
        builds.check_out(tree, commit)
        builds.configure(tree, commit, "x86_64", objects, log, more=[more])
        start = log.stat().st_size
        run_logged(["make", "-C", tree, f"O={objects}", "CC=ccache gcc",
                    builds.jobs(), *targets], log, env=env,
                   progress=builds.count_objects)
        modules = {path.name for path in objects.rglob("*.ko")}
    no_warnings(log, start)
    return modules


def compile_row(tree, commit, row, log):
    """Compile what the stack touches, at W=1, as a row has it."""
    make(tree, commit, row, "kconfig", log, "-k", "W=1", *TARGETS,
         *(target for switch, target in MORE_TARGETS.items() if row[switch] == "y"))


def link_modules(tree, commit, log):
    """Link vfio as modules: each symbol that one takes of another is exported."""
    row = {switch: next(iter(choices)) for switch, choices in SWITCHES.items()}
    made = make(tree, commit, row | {"vfio": "m"}, "linux-modules", log,
                "vmlinux", "modules")
    if not {"vfio-pci-core.ko", "vfio_pci_dmabuf_kunit.ko"} <= made:
        raise Failure(f"no modules of vfio-pci among {sorted(made)}, see {log}")
