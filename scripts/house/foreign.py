# SPDX-License-Identifier: GPL-2.0
"""Debian's packages of another architecture, unpacked and not installed.

The guest's busybox, and the one library of the selftests that does not come with
the cross compiler.
"""
import platform

from .common import ROOT, cached, run_logged

PACKAGES = ("busybox-static", "uuid-dev")


def root(arch, log):
    """Have the packages of ARCH in the cache; returns where they are unpacked."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    with cached("foreign", f"{suite}-{arch}-{'-'.join(PACKAGES)}") as (place, new):
        if new is not None:
            state, debs = new / "apt", new / "debs"
            debs.mkdir()
            run_logged([ROOT / "scripts/apt-private", "-a", arch, state, suite], log)
            run_logged(["apt-get", "-q", "download", *PACKAGES], log, cwd=debs,
                       env={"APT_CONFIG": str(state / "apt.conf")})
            for deb in debs.iterdir():
                run_logged(["dpkg-deb", "-x", deb, new], log)
    return place


def busybox(arch, log):
    return root(arch, log) / "bin/busybox"


def flags(arch, log):
    """The compiler's flags to find the libraries."""
    where = root(arch, log) / "usr"
    libraries = next(where.glob("lib/*-linux-gnu*"))
    return [f"-I{where}/include", f"-L{libraries}"]
