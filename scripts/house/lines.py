# SPDX-License-Identifier: GPL-2.0
"""Which lines of the stack a run of its tests has reached.

gcov counts the lines of a file, git knows which of them the stack has put
there, and a file says why some are not reached. That file has reasons that
begin at the margin, each followed by the lines it is for, indented:

    There is no such hardware in the VM.
	drivers/vfio/pci/foo.c: foo_probe: return -ENODEV;
	drivers/vfio/pci/bar.c: *
    Only a race comes here.
	? drivers/vfio/pci/foo.c: foo_lock: goto again;

A line is known by its file, its function and its text, so that it keeps its
reason when others come before it; * is for all lines of a file, or of a
function that is named before it. One behind a question mark may be reached or
not, as luck has it, and is to be there.
"""
import json
import re
import subprocess
from collections import namedtuple

from .common import Failure, git

Line = namedtuple("Line", "path number function text")
Reason = namedtuple("Reason", "text luck")
NOT_COUNTED = re.compile(r"(?:tools|Documentation)/|drivers/vfio/pci/tests/|"
                         r"drivers/iommu/iommufd/selftest\.c$")


def touched(tree, base, top):
    """The files with code of the kernel that the stack changes."""
    names = git("diff", "--name-only", "--no-renames", "--diff-filter=d", base,
                top, cwd=tree).splitlines()
    return [name for name in names
            if re.search(r"\.[ch]$", name) and not NOT_COUNTED.match(name)]


def added(tree, base, top, path):
    """The numbers of the lines that the stack has put into a file."""
    hunks = re.findall(r"^@@ -\S+ \+(\d+)(?:,(\d+))? @@",
                       git("diff", "-U0", "--no-renames", base, top, "--", path,
                           cwd=tree), re.M)
    return {number for start, count in hunks
            for number in range(int(start), int(start) + int(count or 1))}


def count(data):
    """What gcov says of all the .gcda below DATA, its .gcno files beside them.

    Returns {file: {number: [times, function]}}, the file as the compiler was
    told its name. A line that is in several objects is counted in all of them.
    """
    lines = {}
    names = sorted(data.rglob("*.gcda"))
    if not names:
        raise Failure(f"no data of gcov in {data}")
    for name in names:
        done = subprocess.run(["gcov", "--json-format", "--stdout", name.name],
                              cwd=name.parent, capture_output=True, check=False)
        # counts of another build of it are no error to gcov, but none at all
        if done.returncode or not done.stdout or b"stamp mismatch" in done.stderr:
            raise Failure(f"gcov cannot read {name}: {done.stderr.decode()}")
        for file in json.loads(done.stdout)["files"]:
            known = lines.setdefault(file["file"], {})
            for line in file["lines"]:
                # what the preprocessor has made has no function
                function = line.get("function_name", "")
                times, _ = known.get(line["line_number"], (0, ""))
                known[line["line_number"]] = (times + line["count"], function)
    return lines


def counted(lines, path):
    """The counts of a file of the tree, however the compiler has named it."""
    found = {}
    for name, counts in lines.items():
        if name == path or name.endswith(f"/{path}"):
            for number, (times, function) in counts.items():
                before = found.get(number, (0, ""))[0]
                found[number] = (before + times, function)
    return found


def unreached(tree, base, top, lines):
    """The stack's lines of code and those not reached, by file.

    Returns {path: ([Line], [Line])}. Of a file of which nothing was compiled a
    single line is not reached.
    """
    found = {}
    for path in touched(tree, base, top):
        counts = counted(lines, path)
        text = git("show", f"{top}:{path}", cwd=tree).splitlines()
        if not counts:
            # a header may have no code, a file has
            found[path] = ([], [Line(path, 0, "", "*")] if path.endswith(".c")
                           else [])
            continue
        code = [Line(path, number, counts[number][1], text[number - 1].strip())
                for number in sorted(added(tree, base, top, path) & counts.keys())]
        found[path] = (code, [line for line in code if not counts[line.number][0]])
    return found


def exits(tree, base, top, lines):
    """The returns and jumps of the stack that have no count of their own."""
    found = []
    for path in touched(tree, base, top):
        counts = counted(lines, path)
        text = git("show", f"{top}:{path}", cwd=tree).splitlines()
        found += [Line(path, number, "", text[number - 1].strip())
                  for number in sorted(added(tree, base, top, path) - counts.keys())
                  if counts and re.match(r"\s+(return|goto|break|continue)\b",
                                         text[number - 1])]
    return found


def read_reasons(path):
    """{(file, function, text): Reason}, in the order of the file."""
    reasons, reason, before = {}, "", False
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        if not line.startswith(("\t", " ")):
            reason = f"{reason} {line}" if before else line
            before = True
            continue
        before = False
        line = line.strip()
        luck = line.startswith("? ")
        name, _, rest = line.removeprefix("? ").partition(": ")
        function, _, text = rest.partition(": ")
        if rest == "*":
            function, text = "*", "*"
        if not reason or not text:
            raise Failure(f"{path}:{number}: not 'file: function: text' below a "
                          "reason")
        if (name, function, text) in reasons:
            raise Failure(f"{path}:{number}: is there twice")
        reasons[name, function, text] = Reason(reason, luck)
    return reasons


def keys(line):
    """What a line may have its reason by."""
    return ((line.path, line.function, line.text), (line.path, line.function, "*"),
            (line.path, "*", "*"))


def explain(missed, reasons, code):
    """Split missed lines by their reasons: {reason: [Line]}, [without], [unused].

    CODE is all lines: what luck has reached is among them.
    """
    why, without, used = {}, [], set()
    for line in missed:
        for key in keys(line):
            if key in reasons:
                used.add(key)
                why.setdefault(reasons[key].text, []).append(line)
                break
        else:
            without.append(line)
    used |= {key for line in code for key in keys(line)
             if key in reasons and reasons[key].luck}
    return why, without, [key for key in reasons if key not in used]
