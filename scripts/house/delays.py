# SPDX-License-Identifier: GPL-2.0
"""The top of the stack with a call of vfio_pci_delay() at each named point."""
import re
from collections import namedtuple

from .common import ROOT, Failure, git
from .stack import commit_files

Point = namedtuple("Point", "name path function line")
WHERE = "drivers/vfio/pci/"
POINTS = ROOT / "scripts/tests/delays"
CODE = ROOT / "scripts/tests/delay.c"


def read_points(path=POINTS):
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = re.split(r"\t+", line)
        if len(words) != 4 or not re.fullmatch(r"[a-z-]{1,31}", words[0]):
            raise Failure(f"{path}:{number}: not a name, a file, a function and a "
                          "line, with tabs between them")
        name, file, *rest = words
        found.append(Point(name, f"{WHERE}vfio_pci_{file}.c", *rest))
    if len({point.name for point in found}) != len(found):
        raise Failure(f"{path}: a name is there twice")
    return found


def insert(text, point):
    """Put a point's call in front of its line; TEXT is the whole file."""
    body = re.search(rf"^(?:[a-z][^\n]*[ *\n])?{point.function}\([^;{{]*\)\n"
                     r"{\n.*?^}$", text, re.M | re.S)
    lines = list(re.finditer(rf"^(\t+){re.escape(point.line)}$", body[0], re.M)) \
        if body else []
    if len(lines) != 1:
        raise Failure(f"{point.name}: {point.function}() has its line "
                      f"{len(lines)} times: {point.line}")
    start = body.start() + lines[0].start()
    return (f'{text[:start]}{lines[0][1]}vfio_pci_delay("{point.name}");\n'
            f"{text[start:]}")


def compose(tree, top):
    """The commit that has all points, on TOP, and their names."""
    points = read_points()
    files = {}

    def read(path):
        if path not in files:
            files[path] = git("show", f"{top}:{path}", cwd=tree) + "\n"
        return files[path]

    for point in points:
        files[point.path] = insert(read(point.path), point)
    header = f"{WHERE}vfio_pci_priv.h"
    head, last, _ = read(header).rpartition("#endif")
    files[header] = f"{head}void vfio_pci_delay(const char *point);\n\n{last}\n"
    files[f"{WHERE}vfio_pci_delay.c"] = CODE.read_text()
    makefile = f"{WHERE}Makefile"
    files[makefile] = f"{read(makefile)}vfio-pci-core-y += vfio_pci_delay.o\n"

    commit = commit_files(tree, top, files, "Sleep at named points")
    return commit, [point.name for point in points]
