# SPDX-License-Identifier: GPL-2.0
"""Configurations that nothing boots: what the stack touches compiles in each."""
import itertools
import re
from pathlib import Path

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
    # there is a group where there is no character device
    "access": {
        "both": {},
        "cdev": {"VFIO_GROUP": "n", "VFIO_CONTAINER": "n"},
        "group": {"IOMMUFD": "n", "VFIO_DEVICE_CDEV": "n"},
    },
    "tracing": {"y": {}, "n": {"FTRACE": "n", "ENABLE_DEFAULT_TRACERS": "n"}},
    "lockdep": {"n": {}, "y": {"PROVE_LOCKING": "y"}},
    "pat": {"y": {}, "n": {"X86_PAT": "n"}},
}
PLAIN = {switch: next(iter(choices)) for switch, choices in SWITCHES.items()}
# Made as a whole, by the configuration: what is in there depends on it
DIRECTORIES = ("drivers/vfio/", "drivers/dma-buf/", "drivers/iommu/iommufd/")
# kbuild makes an object that is asked for, also one that is not configured: the options
# without which these do not compile
NEEDS = {"arch/x86/mm/pat/memtype_interval.o": "X86_PAT",
         "drivers/iommu/iommufd/": "IOMMUFD",
         "drivers/iommu/iommufd/selftest.o": "IOMMUFD_TEST",
         "drivers/pci/p2pdma.o": "PCI_P2PDMA",
         "mm/huge_memory.o": "TRANSPARENT_HUGEPAGE"}
# Of no configuration of the VM; by_flavour() has it all the same
ELSEWHERE = ("drivers/infiniband/",)
# Compiled with allmodconfig: ARCH of kbuild -> cross compiler
ALLMOD = {"x86_64": "", "arm": "arm-linux-gnueabihf-", "powerpc": "powerpc64le-linux-gnu-",
          "riscv": "riscv64-linux-gnu-", "s390": "s390x-linux-gnu-"}


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


def options(flavour, more=""):
    """What a flavour's fragments switch on, with MORE of a fragment behind them.

    scripts/kconfig sees to it that they get that.
    """
    found = set()
    text = "\n".join([*(path.read_text() for path in builds.fragments(flavour)), more])
    for off, symbol in re.findall(r"^(# )?CONFIG_(\w+)(?:=| is not set$)", text, re.M):
        (found.discard if off else found.add)(symbol)
    return found


def having(names, flavour, more=""):
    """Those of NAMES that compile in it."""
    there = options(flavour, more) | {None}
    return [name for name in names if NEEDS.get(name) in there]


def by_flavour(names):
    """{flavour: what of NAMES is compiled in it}, each at least once."""
    found = {"x86_64": having(names, "x86_64")}
    # without huge PFN maps there are functions that nobody calls
    found["nothp"] = having(found["x86_64"], "nothp")
    rest = [name for name in names if name not in found["x86_64"]]
    found["faults"] = having(rest, "faults")
    if lost := set(rest) - set(found["faults"]):
        raise Failure(f"no flavour has what these need: {sorted(lost)}")
    return found


def places(touched):
    """What to make of what the stack touches: some directories as a whole."""
    found = set()
    for name in touched:
        directory = next((path for path in DIRECTORIES if name.startswith(path)), None)
        if directory or name.endswith(".o"):
            found.add(directory or name)
    return sorted(found)


def targets(touched, row):
    """What to make of what the stack touches, as a row has it."""
    return having([name for name in places(touched) if not name.startswith(ELSEWHERE)],
                  "x86_64", fragment(row))


def make(tree, commit, row, where, log, *wanted):
    """Make what is WANTED as a row has it, in silence; returns the modules' names."""
    env = builds.build_env() | {"ARCH": builds.ARCHES["x86_64"][0]}
    more = builds.build_dir() / "kconfig.config"
    with builds.work("linux"), builds.Objects(where) as objects:
        more.write_text(fragment(row))
        builds.check_out(tree, commit)
        builds.configure(tree, commit, "x86_64", objects, log, more=[more])
        start = log.stat().st_size
        run_logged(["make", "-C", tree, f"O={objects}", "CC=ccache gcc",
                    builds.jobs(), *wanted], log, env=env,
                   progress=builds.count_objects)
        builds.no_warnings(log, start)
        order = objects / "modules.order"
        return {Path(line).stem for line in order.read_text().split()
                } if "modules" in wanted else set()


def compile_row(tree, base, commit, row, log):
    """Compile what the stack touches, at W=1, as a row has it."""
    make(tree, commit, row, "kconfig", log, "-k", "W=1",
         *targets(builds.touched_objects(tree, commit, base), row))


def compile_allmod(tree, base, commit, arch, log):
    """Compile what the stack touches, with all that an architecture can configure."""
    env = builds.build_env() | {"ARCH": arch, "CROSS_COMPILE": ALLMOD[arch]}
    builds.compiler(ALLMOD[arch])
    with builds.work("linux"), builds.Objects(f"allmod-{arch}") as objects:
        builds.check_out(tree, commit)
        command = ["make", "-C", tree, f"O={objects}", f"CC=ccache {ALLMOD[arch]}gcc",
                   builds.jobs()]
        run_logged([*command, "allmodconfig"], log, env=env)
        there = set(re.findall(r"^CONFIG_(\w+)=", (objects / ".config").read_text(),
                               re.M)) | {None}
        if not {"VFIO_PCI", "VFIO_PCI_DMABUF" if "PCI_P2PDMA" in there else None} <= there:
            raise Failure(f"allmodconfig of {arch} has no VFIO_PCI")
        wanted = [name for name in places(builds.touched_objects(tree, commit, base))
                  if NEEDS.get(name) in there
                  and name.startswith("arch/x86/") <= (arch == "x86_64")]
        run_logged([*command, "prepare"], log, env=env, progress=builds.count_objects)
        start = log.stat().st_size
        run_logged([*command, "-k", *wanted], log, env=env,
                   progress=builds.count_objects)
        builds.no_warnings(log, start)


def link_modules(tree, commit, log):
    """Link vfio as modules: each symbol that one takes of another is exported."""
    made = make(tree, commit, PLAIN | {"vfio": "m"}, "linux-modules", log,
                "vmlinux", "modules")
    if not {"vfio-pci-core", "vfio_pci_dmabuf_kunit", "vfio_pci_pfn_kunit"} <= made:
        raise Failure(f"no modules of vfio-pci among {sorted(made)}, see {log}")
