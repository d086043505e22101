# SPDX-License-Identifier: GPL-2.0
"""Which pages of the kernel's documentation a stack concerns, and their warnings."""

import re
from pathlib import Path

from .common import git

DIRECTIVE = r"^ *(\.\. [a-z-]+::|:[a-z-]+:) .*"
REFERENCE = re.compile(r"\bDocumentation/[\w./-]+\.rst\b")
WARNING = re.compile(r"^(?=(?:\S+: )*(?:WARNING|ERROR|SEVERE|CRITICAL): )", re.M)
# Sphinx's words for an entry that may be there, but not among the rendered pages
ABSENT = re.compile(r"toctree contains reference to "
                    r"(?:non-?existing|excluded) document '([^']+)'")


def references(tree, files):
    """For each page among FILES the pages that it refers to."""
    return {file: REFERENCE.findall((tree / file).read_text())
            for file in files if REFERENCE.fullmatch(file)}


def pages(tree, files):
    """The pages to be rendered, below Documentation, if a stack changes FILES.

    These are the stack's own, those that take text from a file of it, those that
    its own refer to, and the indexes above all of them.
    """
    names = "|".join(re.sub(r"([.+])", r"\\\1", file) for file in files)
    found = set(git("grep", "-lE", f"{DIRECTIVE}({names})", "--", "Documentation/*.rst",
                    ":!Documentation/translations", cwd=tree,
                    check=False).stdout.decode().splitlines())
    for page, others in references(tree, files).items():
        found |= {page, *others}
    found |= {str(above / "index.rst") for page in found
              for above in Path(page).parents[:-1]}
    return sorted(page.removeprefix("Documentation/") for page in found
                  if (tree / page).exists())


def warnings(text, tree, files):
    """Sphinx's warnings that name one of FILES, and the others.

    An index may name pages that are there and not rendered. Sphinx keeps silent
    about a reference to a page that is not there.
    """
    names = "|".join(re.escape(file.removesuffix(".rst")) for file in files)
    of_files = re.compile(rf"(?<![\w-])(?:{names})(?![\w-])")
    ours = [f"{page}: WARNING: there is no {other}"
            for page, others in references(tree, files).items()
            for other in others if not (tree / other).exists()]
    theirs = []
    for warning in map(str.strip, WARNING.split(text)):
        absent = ABSENT.search(warning)
        if absent and (tree / "Documentation" / f"{absent[1]}.rst").exists():
            continue
        if warning:
            (ours if of_files.search(warning) else theirs).append(warning)
    return ours, theirs
