# SPDX-License-Identifier: GPL-2.0
"""Build kernels, selftests and QEMU from the composed stacks.

A finished build is kept in the cache under the hash of all that went into it:
the commit's files, the configuration, the compiler. Object directories are of
this clone; one that a killed run left in doubt is thrown away (ccache makes
that cheap).
"""

import contextlib
import os
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

from . import foreign
from .base import base_repo
from .common import (ROOT, Failure, build_dir, cache_dir, cached, digest, git,
                     lock, run_logged)
from .lines import touched
from .stack import (BASE_REF, compose, drop_index_lock, prepare_repository, stack_id,
                    stacks)

ARCHES = {  # name -> (ARCH of kbuild, cross compiler, image)
    "x86_64": ("x86_64", "", "arch/x86/boot/bzImage"),
    "i386": ("i386", "", "arch/x86/boot/bzImage"),
    "arm64": ("arm64", "aarch64-linux-gnu-", "arch/arm64/boot/Image"),
}
# The compiler's prefix for programs: that of kernels does not need a libc
PROGRAMS = {"x86_64": "", "i386": "i686-linux-gnu-", "arm64": "aarch64-linux-gnu-"}
# flavour -> (architecture, fragments of configs/)
FLAVOURS = {
    "x86_64": ("x86_64", ("base", "x86_64")),
    "debug": ("x86_64", ("base", "x86_64", "debug", "fault-injection")),
    "faults": ("x86_64", ("base", "x86_64", "fault-injection")),
    "gdb": ("x86_64", ("base", "x86_64", "gdb")),
    "gcov": ("x86_64", ("base", "x86_64", "fault-injection", "gcov")),
    "iommus": ("x86_64", ("base", "x86_64", "iommus")),
    "kcsan": ("x86_64", ("base", "x86_64", "kcsan")),
    "nop2pdma": ("x86_64", ("base", "x86_64", "nop2pdma")),
    "nothp": ("x86_64", ("base", "x86_64", "nothp")),
    "bench": ("x86_64", ("base", "x86_64", "uio")),
    "i386": ("i386", ("base", "i386")),
    "arm64": ("arm64", ("base", "arm64")),
    "arm64-64k": ("arm64", ("base", "arm64", "arm64-64k")),
}
# of QEMU, by the architecture of the guest: i386 is a guest of x86_64's
QEMU_TARGETS = {"x86_64": "x86_64", "i386": "x86_64", "arm64": "aarch64"}
QEMU_CONFIGURE = [
    "--without-default-features",
    "--enable-tcg", "--enable-fdt=system", "--disable-install-blobs",
    "--disable-docs", "--python=/usr/bin/python3",
    # configs/qemu-*.mak, see there
    "--without-default-devices",
    # a third of what it takes to compile, and nobody debugs QEMU here
    "--disable-debug-info",
    # Debian's source has no firmware, its packages seabios, qemu-system-data do
    "--firmwarepath=/usr/share/seabios:/usr/share/qemu"]


def jobs():
    return f"-j{os.environ.get('JOBS') or os.cpu_count()}"


def logs_dir():
    path = build_dir() / "logs"
    path.mkdir(exist_ok=True)
    return path


def fresh_log(name):
    log = logs_dir() / f"{name}.log"
    log.unlink(missing_ok=True)
    return log


def source(name):
    """Compose the stack NAME in a tree of the checks' own.

    Returns (tree, commits): commits[0] is the base, then one per patch. The
    files are checked out only when somebody builds.
    """
    repo, base, _ = base_repo(name)
    stack = stacks()[name].on(repo, base)
    tree = build_dir() / f"src-{name}"
    stamp = tree / ".git" / "stack-id"
    with lock(build_dir() / f".src-{name}.lock"):
        wanted = stack_id(stack, base)
        if not stamp.exists() or stamp.read_text() != wanted:
            # not under the feet of somebody who builds the former stack
            with work(name):
                recompose(stack, repo, base, tree)
            stamp.write_text(wanted)
        else:
            prepare_repository(repo, tree)
    commits = [base] + git("rev-list", "--reverse", f"{BASE_REF}..stack",
                           cwd=tree).split()
    return tree, commits


def recompose(stack, repo, base, tree):
    """Compose in a tree that may be there already, with another stack."""
    if (tree / ".git").exists():
        (tree / ".git" / "stack-id").unlink(missing_ok=True)
        drop_index_lock(tree)
        git("am", "--abort", cwd=tree, check=False)
        # it knows nothing of one that was killed as it began
        shutil.rmtree(tree / ".git/rebase-apply", ignore_errors=True)
    # git am needs no more than the files that the stack touches
    try:
        compose(stack, repo, base, tree,
                build_dir() / f"src-{stack.name}-mails", checkout=False)
    except Failure as error:
        git("am", "--abort", cwd=tree, check=False)
        target = "tree" if stack.name == "linux" else f"{stack.name}-tree"
        raise Failure(str(error).partition("\ngit am waits")[0] +
                      f"\nTo mend it: make {target}") from None


def check_out(tree, commit):
    """Have all of COMMIT's files in TREE; unchanged ones keep their times.

    The caller has the lock of work().
    """
    drop_index_lock(tree)
    sparse = git("config", "core.sparseCheckout", cwd=tree, check=False)
    if sparse.stdout.strip() == b"true":
        git("sparse-checkout", "disable", cwd=tree)
    git("checkout", "-q", "--force", "--detach", commit, cwd=tree)


def tree_hash(tree, commit):
    return git("rev-parse", f"{commit}^{{tree}}", cwd=tree)


def kernel_hash(tree, commit):
    """The hash of what a kernel is built from: selftests are not."""
    entries = [line for where, drop in
               (("", ("Documentation", "MAINTAINERS", "tools")),
                ("tools", ("testing",)))
               for line in git("ls-tree", f"{commit}:{where}",
                               cwd=tree).splitlines()
               if line.partition("\t")[2] not in drop]
    return digest(*entries)


@lru_cache
def version(tool):
    """The first line that a tool has to say about itself."""
    done = subprocess.run([tool, "--version"], capture_output=True, check=True)
    return done.stdout.decode().splitlines()[0]


@lru_cache
def compiler(cross=""):
    if not shutil.which(f"{cross}gcc"):
        raise Failure(f"{cross}gcc is missing (package gcc-{cross[:-1]})"
                      if cross else "gcc is missing")
    return version(f"{cross}gcc")


def build_env():
    """ccache that is shared by all clones, and reproducible kernels."""
    return {
        # another name than it had with CCACHE_DEPEND, see below
        "CCACHE_DIR": str(cache_dir() / "ccache-cpp"),
        "CCACHE_BASEDIR": str(build_dir()),
        "CCACHE_NOHASHDIR": "1",
        # it names the clone, and makes the same of what it is for in each
        "CCACHE_IGNOREOPTIONS": "-fmacro-prefix-map=*",
        "CCACHE_MAXSIZE": "6G",
        # no CCACHE_DEPEND: by that it does not see the .incbin of piggy.S, and a
        # kernel gets the payload of another one if both are of the same size
        "KBUILD_BUILD_TIMESTAMP": "Thu Jan  1 00:00:00 UTC 2026",
        "KBUILD_BUILD_USER": "vfio-dmabuf",
        "KBUILD_BUILD_HOST": "localhost",
        "LC_ALL": "C.UTF-8",
    }


def work(name):
    """The lock on src-NAME as checked out and on all that is built from it."""
    return lock(build_dir() / f".work-{name}.lock")


class Objects:
    """An object directory that knows when it cannot be trusted."""

    def __init__(self, name):
        self.path = build_dir() / f"obj-{name}"
        self.mark = build_dir() / f".obj-{name}.unfinished"

    def __enter__(self):
        if self.mark.exists():
            shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        self.mark.touch()
        return self.path

    def __exit__(self, kind, *_):
        # a compiler's error leaves a sound directory, a kill may not; and a warning
        # that is to fail must be there the next time, too
        if kind is None or issubclass(kind, Failure) and not issubclass(kind, Warned):
            self.mark.unlink(missing_ok=True)


class Warned(Failure):
    """It was made, but not in silence."""


def no_warnings(log, start=0):
    """A warning of a compiler, linker or modpost behind that place of the log fails.

    Call it in the Objects that were made.
    """
    text = log.read_bytes()[start:].decode(errors="replace")
    if found := re.findall(r"^(?!make).*(?i:warning:).*$", text, re.M):
        raise Warned("\n".join(found[:8]))


def touched_objects(tree, commit, since=None):
    """The objects that the C files and headers of a commit, or of several, go into.

    A header, Makefile or Kconfig stands for its directory, which ends in a slash.
    """
    names = git("diff-tree", "-r", "--no-commit-id", "--name-only",
                "--diff-filter=d", *([since] if since else []), commit,
                cwd=tree).splitlines()
    found = set()
    for name in names:
        if name.startswith(("tools/", "samples/", "Documentation/")):
            continue
        if name.endswith(".c"):
            found.add(name[:-2] + ".o")
        elif name.endswith((".h", "Makefile", "Kconfig")) and "/" in name and \
                not name.startswith(("include/", "arch/x86/include")):
            found.add(name.rsplit("/", 1)[0] + "/")
    return sorted(found)


def count_objects(log):
    """How far a build is, from its log."""
    text = log.read_text(errors="replace")
    if steps := re.findall(r"^\[(\d+/\d+)\]", text, re.M):
        return f"{steps[-1]} steps"
    return f"{len(re.findall(r'^  (?:CC|AS|LD|AR|HOSTCC) ', text, re.M))} objects"


def fragments(flavour):
    """The files that a flavour is configured by, in their order."""
    return [ROOT / "configs" / f"{name}.config" for name in FLAVOURS[flavour][1]]


def asked(fragment):
    """What scripts/kconfig reads of a fragment: comments on it build nothing anew."""
    return "\n".join(re.findall(r"^(?:# )?CONFIG_.*", fragment.read_text(), re.M))


def configure(tree, commit, flavour, objects, log, clang=False, more=()):
    """Have the .config of a flavour in OBJECTS; TREE has COMMIT checked out.

    MORE are further fragments, with their paths.

    Kconfig takes longer than to compile what a commit changes, so configurations
    are kept under the hash of what they are made from. An unchanged one keeps
    its time stamp, and nothing is built again.
    """
    arch, _ = FLAVOURS[flavour]
    kbuild_arch, cross, _ = ARCHES[arch]
    configs = [*fragments(flavour), *more]
    depends = git("ls-tree", "-r", commit, cwd=tree).splitlines()
    depends = [line for line in depends if re.search(
        r"\t(scripts/|Makefile|arch/\w+/Makefile|.*Kconfig|.*\.config$)", line)]
    cc = "clang-19" if clang else f"{cross}gcc"
    key = digest(*depends, arch, version(cc), ROOT / "scripts/kconfig",
                 *map(asked, configs))[:24]
    with cached("configs", key) as (place, new):
        if new is not None:
            run_logged([ROOT / "scripts" / "kconfig", tree, new, *configs], log,
                       env=build_env() | {
                           "ARCH": kbuild_arch, "CROSS_COMPILE": cross,
                           "CC": cc if clang else f"ccache {cc}"})
            shutil.rmtree(new / ".kconfig")
    text = (place / ".config").read_bytes()
    target = objects / ".config"
    if not target.exists() or target.read_bytes() != text:
        target.write_bytes(text)


def kernel_key(tree, commit, flavour):
    arch, _ = FLAVOURS[flavour]
    cross = ARCHES[arch][1]
    return digest("with version", kernel_hash(tree, commit), arch, compiler(cross),
                  *map(asked, fragments(flavour)),
                  *instrument(tree, commit, flavour),
                  ROOT / "scripts" / "kconfig")[:24]


def instrument(tree, commit, flavour):
    """Variables of kbuild: what gcov counts and KCSAN watches."""
    if flavour == "kcsan":
        # Not the whole kernel, which it makes too slow to look often. That a lock
        # orders what is done under it has to be known.
        return [f"{name}=$(if $(filter {where},$(obj)),{there},{elsewhere})"
                for name, where, there, elsewhere in (
                    ("KCSAN_SANITIZE", "drivers/vfio/pci", "", "n"),
                    ("KCSAN_INSTRUMENT_BARRIERS", "kernel/locking kernel/sched",
                     "y", ""))]
    if flavour != "gcov":
        return []
    # kbuild knows them by their stems alone, as main or memory, which the code
    # that runs before the kernel has as well
    where = {}
    for path in touched(tree, git("rev-parse", BASE_REF, cwd=tree), commit):
        if path.endswith(".c"):
            where.setdefault(Path(path).stem, []).append(str(Path(path).parent))
    return [f"GCOV_PROFILE_{stem}.o=$(if $(filter {' '.join(parents)},$(obj)),y)"
            for stem, parents in where.items()]


@contextlib.contextmanager
def kernel_objects(tree, commit, flavour, log):
    """Build COMMIT's kernel; the object directory is it while this is held."""
    kbuild_arch, cross, image = ARCHES[FLAVOURS[flavour][0]]
    # the kernel says by that which commit it is of: "Linux version ... #..."
    env = build_env() | {"ARCH": kbuild_arch, "CROSS_COMPILE": cross,
                         "KBUILD_BUILD_VERSION": commit[:12]}
    with work("linux"), Objects(f"linux-{flavour}") as objects:
        check_out(tree, commit)
        configure(tree, commit, flavour, objects, log)
        run_logged(["make", "-C", tree, f"O={objects}", jobs(),
                    f"CC=ccache {cross}gcc",
                    *instrument(tree, commit, flavour), Path(image).name], log,
                   env=env, progress=count_objects)
        yield objects, objects / image


def kernel(tree, commit, flavour, log):
    """Build COMMIT's kernel; returns the directory with image, .config and log."""
    key = kernel_key(tree, commit, flavour)
    with cached("kernels", key) as (place, new):
        if new is None:
            return place
        # others may have written to it, and what they say is not of this kernel
        start = log.stat().st_size if log.exists() else 0
        with kernel_objects(tree, commit, flavour, log) as (objects, image):
            shutil.copy2(image, new / "kernel")
            shutil.copy2(objects / ".config", new / "config")
            shutil.copy2(objects / "System.map", new / "System.map")
            (new / "log").write_bytes(log.read_bytes()[start:])
            for name in objects.rglob("*.gcno"):
                where = new / "gcno" / name.relative_to(objects)
                where.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(name, where)
    return place


def selftests(tree, commit, log, arch="x86_64"):
    """Build the VFIO selftests of COMMIT, static; returns their directory.

    And those of iommufd, where there is the libcap that they need: on this machine's own
    architecture.
    """
    cross = PROGRAMS[arch]
    targets = "vfio" if cross else "vfio iommu"
    sources = "arch/arm64" if arch == "arm64" else "arch/x86"
    # libvfio has 64 bits in mind: it prints a u64 by %lx, among others
    flags = ["-D_FILE_OFFSET_BITS=64", "-w"] if arch == "i386" else []
    key = digest(*(git("rev-parse", f"{commit}:{path}", cwd=tree) for path in
                   ("Makefile", sources, "include", "scripts", "tools")),
                 compiler(cross), targets, *flags)[:24]
    with cached("selftests", key) as (place, new):
        if new is None:
            return place
        env = build_env() | {"ARCH": arch}
        flags += ["-static", *(foreign.flags(arch, log) if cross else ())]
        with work("linux"), Objects(f"selftests-{arch}") as objects:
            check_out(tree, commit)
            # its dependencies name headers that another commit may not have
            shutil.rmtree(objects / "kselftest", ignore_errors=True)
            run_logged(["make", "-C", tree, f"O={objects}", jobs(),
                        "headers_install"], log, env=env)
            run_logged(
                ["make", "-C", tree / "tools/testing/selftests", jobs(),
                 f"TARGETS={targets}", f"O={objects}", f"CC=ccache {cross}gcc",
                 # by its name of i386 the Makefile builds nothing
                 f"ARCH={'x86' if arch == 'i386' else arch}",
                 f"EXTRA_CFLAGS={' '.join(flags)}", "USERLDFLAGS=-static",
                 f"KHDR_INCLUDES=-isystem {objects}/usr/include",
                 f"INSTALL_PATH={new}", "FORCE_TARGETS=1", "install"],
                log, env=env)
    return place


# Selftests that the VM has no device for
NOT_HERE = {
    "vfio_pci_sriov_uapi_test": "needs a device with SR-IOV",
}


def programs(tree, commit):
    """The VFIO selftests that a commit's Makefile names."""
    makefile = git("show", f"{commit}:tools/testing/selftests/vfio/Makefile",
                   cwd=tree)
    return re.findall(r"^TEST_GEN_PROGS \+= (\w+)", makefile, re.M)


def kunit_suites(tree, commit):
    """The KUnit suites of vfio-pci: each is in the file of its name."""
    names = git("ls-tree", "--name-only", f"{commit}:drivers/vfio/pci",
                "tests/", cwd=tree).split()
    return re.findall(r"^tests/(\w+)_kunit\.c$", "\n".join(names), re.M)


def initramfs(programs, arch="x86_64"):
    """The VM's first file system with the programs of that directory."""
    # a name of its own, for a check that runs for an hour reads it many times
    rest = digest(ROOT / "scripts/initramfs", *sorted((ROOT / "scripts/guest").iterdir()))
    out = build_dir() / f"initramfs-{programs.name}-{rest[:12]}.cpio"
    with lock(build_dir() / ".initramfs.lock"):
        log, env = fresh_log("initramfs"), {}
        if cross := PROGRAMS[arch]:
            env = {"BUSYBOX": str(foreign.busybox(arch, log)), "STRIP": f"{cross}strip"}
        run_logged([ROOT / "scripts" / "initramfs", out, programs / "vfio",
                    *programs.glob("iommu")], log, env=env)
    return out


def qemu_devices(target):
    return ROOT / f"configs/qemu-{target}.mak"


def qemu_options(target):
    return [f"--target-list={target}-softmmu", f"--with-devices-{target}=vfio-dmabuf",
            *QEMU_CONFIGURE]


def qemu_key(tree, commit, arch="x86_64"):
    target = QEMU_TARGETS[arch]
    return digest(tree_hash(tree, commit), compiler(), *qemu_options(target),
                  qemu_devices(target))[:24]


def qemu(log, arch="x86_64"):
    """Build QEMU with edu-plus; returns its binary."""
    tree, commits = source("qemu")
    name = f"qemu-system-{QEMU_TARGETS[arch]}"
    with cached("qemu", qemu_key(tree, commits[-1], arch)) as (place, new):
        if new is not None:
            objects = qemu_objects(tree, commits[-1], log, arch)
            shutil.copy2(objects / name, new)
    return place / name


def qemu_objects(tree, commit, log, arch="x86_64", more=()):
    """Have QEMU, and what MORE names, built in the object directory."""
    target = QEMU_TARGETS[arch]
    with work("qemu"), Objects(f"qemu-{target}") as objects:
        check_out(tree, commit)
        shutil.copy2(qemu_devices(target),
                     tree / f"configs/devices/{target}-softmmu/vfio-dmabuf.mak")
        options = qemu_options(target)
        wanted = digest(*options, qemu_devices(target))
        stamp = objects / "configured"
        if not stamp.exists() or stamp.read_text() != wanted:
            run_logged([tree / "configure", "--cc=ccache gcc", *options], log,
                       cwd=objects, env=build_env())
            stamp.write_text(wanted)
        run_logged(["ninja", jobs(), f"qemu-system-{target}", *more], log,
                   cwd=objects, env=build_env(), progress=count_objects)
        # run from here, QEMU looks for its firmware below qemu-bundle
        for name in ("seabios", "qemu"):
            link = objects / "qemu-bundle/usr/share" / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(f"/usr/share/{name}")
    return objects


# Two functions of one device: a bus reset is for both
PAIR = ("--device", "edu-plus,bus=rp3,addr=0.0,multifunction=on",
        "--device", "edu-plus,bus=rp3,addr=0.1")
# One more edu-plus, the last one, whose BAR is large enough to be mapped by
# pages of 1 GiB
LARGE = ("--device", "edu-plus,bus=rp4,ram-size=4G")
# One with a BAR that is smaller than a page, and one of I/O ports
SMALL = ("--device", "rtl8139,bus=rp6,romfile=")
MORE = (*PAIR, *LARGE, *SMALL)
# One that has no driver in libvfio, and no interrupt
BOCHS = ("--device", "bochs-display,bus=rp5")


def program_name(command):
    """What a plan calls a command of the guest's shell: by its program, if that is seen.

    That is the first word that sets no variable.
    """
    found = re.search(r"(?<!\S)(?:[^\s=]*/)?(\w[\w.+-]*)(?!\S)", command)
    return found[1] if found else "command"


def vm_command(qemu_binary, kernel_place, initrd, arch="x86_64"):
    """The command that boots the VM; the caller adds --log, and a plan."""
    return [ROOT / "scripts" / "vm", "--arch", arch, "--qemu", qemu_binary,
            "--kernel", kernel_place / "kernel", "--initrd", initrd]
