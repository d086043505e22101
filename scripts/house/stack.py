# SPDX-License-Identifier: GPL-2.0
"""The patch stack as files, and as commits.

As files: <patches>/series lists the patches in order, with comments; each
patch is what git format-patch writes for its commit, less the sections of the
files that the commit adds whole. Those stand in the house at their in-tree
paths and are named behind the patch's '---' line:

    Whole-file: drivers/vfio/pci/vfio_pci_pfn.c

One that another base needs in another form names there, by its hash, the patch that
it was made from:

    Made-from: 0123456789abcdef

As commits: the whole mails, put together again, go through one git am.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

from .common import IDENTITY, ROOT, Failure, digest, git, pins

BASE_REF = "refs/stack/base"
COMPOSED_REF = "refs/stack/composed"
STATUSES = ("Not-yet", "Posted", "Queued", "Never")
FORMAT = ["format-patch", "--stdout", "--zero-commit", "--no-stat",
          "--no-signature", "--full-index", "--no-renames", "--no-binary",
          "--no-thread", "--no-cover-letter", "--no-base", "--no-attach",
          "--no-numbered", "--src-prefix=a/", "--dst-prefix=b/", "-U3"]
WHOLE = "Whole-file: "
MADE_FROM = "Made-from: "


@dataclasses.dataclass
class Stack:
    """One stack of the house: the kernel's or QEMU's."""
    name: str
    root: Path      # where whole files stand
    patches: Path   # series and patch files
    tops: tuple     # first path components that whole files may have
    older: Path | None = None   # what another base needs in another form

    @property
    def series(self):
        return self.patches / "series"

    def file(self, name):
        """The file of a patch, in the form that the base needs."""
        if self.older and (self.older / name).exists():
            return self.older / name
        return self.patches / name

    def left_out(self):
        """The patches that the base does not need."""
        file = self.older and self.older / "without"
        if not file or not file.exists():
            return set()
        lines = (line.partition("#")[0].strip()
                 for line in file.read_text().splitlines())
        return set(filter(None, lines))

    def others(self):
        """The stack in each form that it has for other bases."""
        return [dataclasses.replace(self, older=path)
                for path in sorted(self.patches.glob("[0-9]*.[0-9]*"))]

    def on(self, repository, base):
        """The stack in the form that BASE, a commit of REPOSITORY, needs."""
        version = kernel_version(repository, base)
        older = version and self.patches / version
        if not older or not older.is_dir():
            return self
        return dataclasses.replace(self, older=older)

    def tracked_whole_files(self):
        """All whole files that stand in the house, by path in the tree."""
        found = set()
        for top in self.tops:
            found |= {str(f.relative_to(self.root))
                      for f in (self.root / top).rglob("*")
                      if (f.is_file() or f.is_symlink()) and not
                      f.name.endswith((".new", "~", ".swp", ".orig", ".rej"))}
        return found


def kernel_version(repository, commit):
    """Such as 7.3, or None where that is no kernel."""
    text = git("show", f"{commit}:Makefile", cwd=repository, check=False).stdout
    found = re.search(rb"^VERSION = (\d+)\nPATCHLEVEL = (\d+)$", text, re.M)
    return found and b".".join(found.groups()).decode()


def stacks(root=ROOT):
    return {
        "linux": Stack("linux", root, root / "patches",
                       ("Documentation", "arch", "drivers", "include", "lib",
                        "mm", "samples", "tools")),
        "qemu": Stack("qemu", root / "qemu", root / "qemu" / "patches",
                      ("docs", "hw", "include", "tests")),
    }


@dataclasses.dataclass
class Entry:
    """A line of the series: a patch, its status, the comment above it."""
    name: str
    status: str
    above: list


def read_series(stack):
    """The entries of the series and the comment behind the last of them."""
    entries, above = [], []
    if not stack.series.exists():
        return entries, above
    for line in stack.series.read_text().splitlines():
        name, _, status = line.partition("#")
        if not name.strip():
            above.append(line)
            continue
        name = name.strip()
        if "/" in name or not (stack.patches / name).is_file():
            raise Failure(f"{stack.series}: there is no patch '{name}'")
        if name in (entry.name for entry in entries):
            raise Failure(f"{stack.series}: '{name}' stands there twice")
        entries.append(Entry(name, status.strip(), above))
        above = []
    return entries, above


def write_series(stack, entries, tail):
    lines = []
    for entry in entries:
        lines += entry.above
        lines.append(f"{entry.name}  # {entry.status}")
    scratch = stack.series.with_name(".series.new")
    scratch.write_text("".join(f"{line}\n" for line in lines + tail))
    scratch.rename(stack.series)


@dataclasses.dataclass
class Patch:
    """A patch file taken apart."""
    head: str       # mail header and message, up to the '---' line
    whole: list     # paths of the files that the commit adds whole
    diff: str       # the hunks
    made_from: str = ""     # for another base: the fingerprint() of the pinned one's

    def text(self):
        names = "".join(f"{WHOLE}{path}\n" for path in self.whole)
        return f"{self.head}---\n{names}\n{self.diff}"


def _decode(data, what):
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise Failure(f"{what} is not UTF-8: {error}") from error


def split_mail(text, what):
    """Take a mail of git format-patch apart: head, notes, diff sections."""
    head, found, rest = text.partition("\n---\n")
    if not found:
        raise Failure(f"{what}: no '---' line ends the message")
    notes, diff = rest, ""
    if start := re.search(r"^diff --git ", rest, re.M):
        notes, diff = rest[:start.start()], rest[start.start():]
    return head + "\n", notes, diff


def read_patch(stack, name):
    file = stack.file(name)
    text = _decode(file.read_bytes(), file)
    head, notes, diff = split_mail(text, file)
    whole, made_from = [], ""
    for line in filter(None, notes.splitlines()):
        if line.startswith(MADE_FROM) and file.parent == stack.older:
            made_from = line[len(MADE_FROM):]
            continue
        if not line.startswith(WHOLE):
            raise Failure(f"{file}: '{line}' stands behind the "
                          f"'---' line; only '{WHOLE}path' may")
        path = line[len(WHOLE):]
        parts = Path(path).parts
        if len(parts) < 2 or parts[0] not in stack.tops or ".." in parts:
            raise Failure(f"{file}: '{path}' is no place for a "
                          "whole file")
        whole.append(path)
    return Patch(head, whole, diff, made_from)


def fingerprint(patch):
    """A hash of what a patch says and does, not of where its hunks stand."""
    diff = re.sub(r"^(?:index|@@) .*\n", "", patch.diff, flags=re.M)
    return digest(patch.head, *patch.whole, diff)[:16]


def drifted(stack):
    """What has changed since the patches for another base were made, in words."""
    for file in sorted(stack.older.glob("*.patch")):
        plain = read_patch(dataclasses.replace(stack, older=None), file.name)
        other, wanted = read_patch(stack, file.name), fingerprint(plain)
        if other.made_from != wanted:
            yield (f"{file}: was made from another form of "
                   f"{stack.patches / file.name}:\n"
                   "  see by git log -p what has changed there, do the same here, then "
                   f"have\n  {MADE_FROM}{wanted}\n  behind its '---' line")
        if other.head.partition("\n\n")[0] != plain.head.partition("\n\n")[0]:
            yield f"{file}: has another author, date or subject than the pinned base's"


def sections(diff):
    """Split a diff into (path, text) for each file that it touches."""
    parts = re.split(r"^(?=diff --git )", diff, flags=re.M)
    for part in filter(None, parts):
        first = part.partition("\n")[0]
        match = re.fullmatch(r"diff --git a/(.+) b/\1", first)
        if not match:
            raise Failure(f"cannot read the path in '{first}'")
        yield match[1], part


def new_file_section(stack, path):
    """The section of a diff that adds the whole file PATH."""
    file = stack.root / path
    if file.is_symlink() or not file.is_file():
        raise Failure(f"whole file {file} is missing or no plain file")
    data = file.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    mode = "100755" if os.access(file, os.X_OK) else "100644"
    out = (f"diff --git a/{path} b/{path}\nnew file mode {mode}\n"
           f"index {'0' * 40}..{blob}\n")
    if not data:
        return out
    text = _decode(data, f"whole file {file}")
    lines = text.split("\n")
    missing_newline = lines.pop()
    if missing_newline:
        lines.append(missing_newline)
    count = f"1,{len(lines)}" if len(lines) != 1 else "1"
    out += f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +{count} @@\n"
    out += "".join(f"+{line}\n" for line in lines)
    if missing_newline:
        out += "\\ No newline at end of file\n"
    return out


def whole_mail(stack, patch):
    """The mail of the patch with its whole files put back."""
    parts = dict(sections(patch.diff))
    for path in patch.whole:
        if path in parts:
            raise Failure(f"{path} is a whole file and has a hunk as well")
        parts[path] = new_file_section(stack, path)
    diff = "".join(parts[path] for path in sorted(parts))
    return f"{patch.head}---\n\n{diff}"


def load(stack):
    """Read the stack's files: entries, patches, and its rules checked."""
    entries, _ = read_series(stack)
    names = {entry.name for entry in entries}
    if lost := {file.name for file in stack.patches.glob("*.patch")} - names:
        raise Failure(f"{stack.series} does not name the patch" +
                      "".join(f"\n  {name}" for name in sorted(lost)))
    if stack.older:
        others = {file.name for file in stack.older.glob("*.patch")}
        if lost := (others | stack.left_out()) - names:
            raise Failure(f"{stack.older} has or leaves out what {stack.series} does "
                          "not name" + "".join(f"\n  {name}" for name in sorted(lost)))
        if lost := others & stack.left_out():
            raise Failure(f"{stack.older} has and leaves out {', '.join(sorted(lost))}")
    patches = [read_patch(stack, entry.name) for entry in entries]
    owner = {}
    for entry, patch in zip(entries, patches):
        for path in patch.whole:
            if path in owner:
                raise Failure(f"whole file {path} belongs to two patches: "
                              f"{owner[path]} and {entry.name}")
            owner[path] = entry.name
    for entry, patch in zip(entries, patches):
        for path, _ in sections(patch.diff):
            if path in owner:
                raise Failure(f"{entry.name} touches the whole file {path} of "
                              f"{owner[path]}")
    if orphans := stack.tracked_whole_files() - set(owner):
        raise Failure("no patch adds the whole file (remove it, or add it by a "
                      "commit of the tree and export)" +
                      "".join(f"\n  {path}" for path in sorted(orphans)))
    used = [(entry, patch) for entry, patch in zip(entries, patches)
            if entry.name not in stack.left_out()]
    return [entry for entry, _ in used], [patch for _, patch in used]


def stack_id(stack, base):
    """What the composed tree depends on, as one hash."""
    entries, patches = load(stack)
    parts = [base]
    for entry, patch in zip(entries, patches):
        parts += [entry.name, whole_mail(stack, patch)]
    return digest(*parts)


# --- files to commits -------------------------------------------------------

def compose(stack, base_repository, base, tree, mails, checkout=True):
    """Make TREE a git tree with one commit per patch on BASE.

    MAILS is a directory for the mails in between. Returns the id of the last
    commit. With checkout=False nothing is written but git's own files; git am
    then works on a sparse checkout of the files that the stack touches.
    Raises Failure, with the tree as git am left it, when a patch does not
    apply.
    """
    entries, patches = load(stack)
    mails.mkdir(parents=True, exist_ok=True)
    for old in mails.glob("*.patch"):
        old.unlink()
    files = []
    for number, (entry, patch) in enumerate(zip(entries, patches), 1):
        file = mails / f"{number:04d}-{entry.name}"
        file.write_bytes(whole_mail(stack, patch).encode())
        files.append(file)

    _prepare_tree(base_repository, base, tree,
                  None if checkout else _touched(patches))
    if files:
        _apply(stack, tree, files, entries)
    top = git("rev-parse", "HEAD", cwd=tree)
    git("update-ref", COMPOSED_REF, top, cwd=tree)
    return top


def _touched(patches):
    paths = {path for patch in patches for path, _ in sections(patch.diff)}
    return sorted(paths | {path for patch in patches for path in patch.whole})


def prepare_repository(base_repository, tree):
    """Make TREE a git repository of ours, or put one right again."""
    tree.mkdir(parents=True, exist_ok=True)
    git("init", "-q", tree, cwd=tree)
    for key, value in (("user.name", IDENTITY[0]), ("user.email", IDENTITY[1]),
                       ("gc.auto", 0), ("maintenance.auto", "false"),
                       ("core.hooksPath", "/dev/null"), ("index.version", 4),
                       ("advice.detachedHead", "false")):
        git("config", key, value, cwd=tree)
    share_objects(base_repository, tree)


def _prepare_tree(base_repository, base, tree, sparse):
    prepare_repository(base_repository, tree)
    drop_index_lock(tree)
    if git("rev-parse", "-q", "--verify", f"{base}^{{commit}}", cwd=tree,
           check=False).returncode:
        git("fetch", "-q", base_repository, base, cwd=tree)
    git("update-ref", BASE_REF, base, cwd=tree)
    if sparse is not None:
        git("config", "core.sparseCheckout", "true", cwd=tree)
        file = tree / ".git/info/sparse-checkout"
        file.parent.mkdir(exist_ok=True)
        # by the attributes git knows what function a hunk is in
        file.write_text("".join(f"/{path}\n" for path in (".gitattributes", *sparse)))
    git("checkout", "-q", "--force", "-B", "stack", base, cwd=tree)


def share_objects(base_repository, tree):
    """Let TREE use the base's objects: a copy would cost half a gigabyte.

    Done at each use, the cache may have moved.
    """
    for name in ("objects", "shallow"):
        path = Path(git("rev-parse", "--git-path", name, cwd=base_repository))
        path = (base_repository / path).resolve()
        if name == "objects":
            (tree / ".git/objects/info/alternates").write_text(f"{path}\n")
        elif path.exists():
            shutil.copy(path, tree / ".git/shallow")


def drop_index_lock(tree):
    """Remove what a git that was killed has left; the lock on the tree is ours."""
    (tree / ".git/index.lock").unlink(missing_ok=True)


def _apply(stack, tree, files, entries):
    env = {"GIT_COMMITTER_NAME": IDENTITY[0],
           "GIT_COMMITTER_EMAIL": IDENTITY[1]}
    done = git("am", "-q", "--keep-non-patch", "--keep-cr", "--no-scissors",
               "--no-3way", "--no-gpg-sign", "--committer-date-is-author-date",
               "--whitespace=nowarn", *files, cwd=tree, check=False, env=env)
    if not done.returncode:
        return
    text = (done.stdout + done.stderr).decode(errors="replace")
    count = git("rev-list", "--count", f"{BASE_REF}..HEAD", cwd=tree)
    name = entries[int(count)].name
    raise Failure(_conflict(tree, name, text, _foreign(stack, tree)))


def _foreign(stack, tree):
    """That the base is of a version which nobody has made a form for, if it is."""
    version = kernel_version(tree, BASE_REF)
    known = [pins()[f"{stack.name}_version"].partition("-")[0],
             *(other.older.name for other in stack.others())]
    if not version or any(f"{name}.".startswith(f"{version}.") for name in known):
        return ""
    return (f"The base is Linux {version}; there are patches for {', '.join(known)}, "
            "see patches/other-bases.md\n")


def _conflict(tree, name, text, foreign):
    """Say which hunk of which file did not apply, and how to mend it."""
    where = []
    for file, line in re.findall(r"^error: patch failed: (.+):(\d+)$", text,
                                 re.M):
        where.append(f"  {file}, the hunk at line {line}")
    for problem in re.findall(r"^error: (?!patch failed)(.+)$", text, re.M):
        if not problem.endswith("patch does not apply"):
            where.append(f"  {problem}")
    places = "\n".join(where) or text.strip()
    return (f"the patch {name} does not apply:\n{places}\n{foreign}"
            f"git am waits in {tree}. Mend it there and go on:\n"
            "  git apply --reject .git/rebase-apply/patch   # see the *.rej\n"
            "  git add -A; git am --continue\n"
            "then bring the result back with: make export")


# --- commits to files -------------------------------------------------------

def _slug(subject):
    name = re.sub(r"[^a-z0-9.]+", "-", subject.lower()).strip("-.")
    if not name or re.match(r"(fixup|squash|amend)!", subject):
        raise Failure(f"a commit with the subject '{subject}' is no patch")
    return f"{name[:100].strip('-.')}.patch"


def export(stack, tree, grows=()):
    """Write TREE's commits above the base to the stack's files.

    GROWS names added files that more than one commit may touch; they stay
    hunks. Returns a list of what changed. Nothing is written on a Failure.
    """
    if stack.older:
        raise Failure(f"{tree} stands on a base that {stack.older} is for: what it has "
                      "there is not what the pinned base has")
    commits = _commits(stack, tree)
    entries, tail = read_series(stack)
    if entries and not commits:
        raise Failure(f"{tree} has no commit above the base")
    adds, touches = _files_of(commits, tree)
    keep = set(grows) | _growing_now(stack, entries)
    whole = _whole_files(stack, adds, touches, keep, commits, tree)

    old = {entry.name: entry for entry in entries}
    names = {_slug(subject) for _, subject in commits}
    dates = {_date(read_patch(stack, e.name).head): e for e in entries
             if e.name not in names}
    result, written, heirs = [], {}, {}
    for commit, subject in commits:
        name = _slug(subject)
        if name in written:
            raise Failure(f"two commits have the subject '{subject}'")
        mine = sorted(p for p, owner in whole.items() if owner == commit)
        patch = _as_patch(tree, commit, mine)
        written[name] = patch.text()
        # a commit with a new subject is known by its author's date
        entry = old.get(name) or dates.pop(_date(patch.head), None)
        status = entry.status if entry else "Unsorted: say where it stands"
        result.append(Entry(name, status, []))
        if entry:
            heirs[entry.name] = result[-1]
    comment = []
    for entry in entries:   # the comment above a dropped patch moves on
        comment += entry.above
        if entry.name in heirs:
            heirs[entry.name].above, comment = comment, []
    tail = comment + tail

    files = {stack.patches / name: text.encode()
             for name, text in written.items()}
    modes = {}
    for path, commit in whole.items():
        files[stack.root / path] = git("show", f"{commit}:{path}", cwd=tree,
                                       binary=True)
        modes[stack.root / path] = adds[path][1]
    gone = {stack.patches / name for name in old} - set(files)
    gone |= {stack.root / path for entry in entries for path in
             read_patch(stack, entry.name).whole} - set(files)
    gone = {path for path in gone if path.exists()}
    return _write(stack, files, modes, gone, result, tail)


def _commits(stack, tree):
    if not (tree / ".git").exists():
        raise Failure(f"there is no tree in {tree}: run make tree first")
    if (tree / ".git/rebase-apply").exists() or \
            (tree / ".git/rebase-merge").exists():
        raise Failure(f"a git am or rebase is not finished in {tree}")
    if dirty := git("status", "--porcelain", "-uno", cwd=tree):
        raise Failure(f"{tree} has changes that are in no commit:\n{dirty}")
    if git("merge-base", "--is-ancestor", BASE_REF, "HEAD", cwd=tree,
           check=False).returncode:
        raise Failure(f"HEAD of {tree} does not stand on the base")
    _refuse_strays(tree)
    if merges := git("log", "--merges", "--format=%h %s",
                     f"{BASE_REF}..HEAD", cwd=tree):
        raise Failure(f"{tree} has a merge, a stack is linear:\n{merges}")
    lines = git("log", "--reverse", "--format=%H %s", f"{BASE_REF}..HEAD",
                cwd=tree)
    return [tuple(line.split(" ", 1)) for line in lines.splitlines()]


# What a build in the tree itself leaves there
GENERATED = (r"(^|/)(generated/|config/|\.)|\.(mod|lex|tab|asn1)\.[ch]$"
             r"|/(piggy\.S|[vz]offset\.h|capflags\.c|cpustr\.h|inat-tables\.c)$")


def _refuse_strays(tree, **options):
    # some bases ignore every new file, and git add then skips it silently
    strays = [path for path in
              git("ls-files", "--others", cwd=tree, **options).splitlines()
              if re.search(r"\.(c|h|S|rst|py|sh)$", path)
              and not re.search(GENERATED, path)]
    if strays:
        raise Failure(f"{tree} has source files that are in no commit "
                      "(git add -f them, or remove them):\n  " +
                      "\n  ".join(strays[:10]))


@contextlib.contextmanager
def own_index(tree, start):
    """Yield the environment that gives git() an index of its own.

    START is the commit that it begins with, or an index to copy.
    """
    with tempfile.TemporaryDirectory() as scratch:
        index = Path(scratch) / "index"
        env = {"GIT_INDEX_FILE": str(index)}
        for who in ("AUTHOR", "COMMITTER"):
            env |= {f"GIT_{who}_NAME": IDENTITY[0], f"GIT_{who}_EMAIL": IDENTITY[1],
                    f"GIT_{who}_DATE": "@0 +0000"}
        if isinstance(start, Path):
            shutil.copy2(start, index)
        else:
            git("read-tree", start, cwd=tree, env=env)
        yield env


def commit_index(tree, env, parent, message):
    """Commit such an index, in no branch; the same files give the same commit."""
    return git("commit-tree", "-p", parent, "-m", message,
               git("write-tree", cwd=tree, env=env), cwd=tree, env=env)


def commit_files(tree, parent, files, message):
    """A commit on PARENT, in no branch, with the texts of FILES by their paths."""
    with own_index(tree, parent) as env:
        for path, text in files.items():
            blob = git("hash-object", "-w", "--stdin", cwd=tree, input=text.encode())
            git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}",
                cwd=tree, env=env)
        return commit_index(tree, env, parent, message)


def working_commit(tree):
    """A commit of the tree as it stands, with new files, in no branch."""
    if not (tree / ".git").exists():
        raise Failure(f"{tree} is no git tree (make tree makes build/linux)")
    # a copy, not to read all files again
    with own_index(tree, tree / git("rev-parse", "--git-path", "index",
                                    cwd=tree)) as env:
        git("add", "--all", cwd=tree, env=env)
        _refuse_strays(tree, env=env)
        return commit_index(tree, env, "HEAD", "as it stands")


def _files_of(commits, tree):
    """Paths that the stack adds -> (commit, mode); all paths -> commits."""
    adds, touches = {}, {}
    for commit, _ in commits:
        raw = git("diff-tree", "-r", "-z", "--no-commit-id", "--no-renames",
                  commit, cwd=tree)
        fields = raw.strip("\0").split("\0") if raw else []
        for meta, path in zip(fields[::2], fields[1::2]):
            _, mode, _, _, status = meta.split()
            touches.setdefault(path, []).append(commit)
            if status == "A":
                adds.setdefault(path, (commit, mode))
    return adds, touches


def _growing_now(stack, entries):
    """New files that the stack keeps as hunks already."""
    found = set()
    for entry in entries:
        for path, text in sections(read_patch(stack, entry.name).diff):
            if re.search(r"^new file mode ", text.partition("\n@@")[0], re.M):
                found.add(path)
    return found


def _whole_files(stack, adds, touches, keep, commits, tree):
    subject = dict(commits)
    whole = {}
    for path, (commit, mode) in adds.items():
        others = [c for c in touches[path] if c != commit]
        if others:
            if path in keep:
                continue
            raise Failure(
                f"{path} belongs to two commits:\n"
                f"  {commit[:12]} {subject[commit]}\n"
                f"  {others[0][:12]} {subject[others[0]]}\n"
                "A whole file is added by one commit and touched by no other: "
                "squash the change into the first one, or, if the file has to "
                f"grow, keep it as hunks: make export GROWS={path}")
        if git("cat-file", "-e", f"{BASE_REF}:{path}", cwd=tree,
               check=False).returncode == 0:
            raise Failure(f"{path} is a file of the base that {commit[:12]} "
                          "adds anew; it cannot be a whole file")
        if mode not in ("100644", "100755"):
            raise Failure(f"{path} of {commit[:12]} is no plain file")
        if path.split("/")[0] not in stack.tops or "/" not in path:
            if path in keep:
                continue
            raise Failure(
                f"{path} of {commit[:12]} cannot stand whole at that place of "
                f"the house; keep it as hunks: make export GROWS={path}")
        whole[path] = commit
    return whole


def _as_patch(tree, commit, whole):
    mail = git(*FORMAT, "-1", commit, cwd=tree, binary=True)
    text = _decode(mail, f"commit {commit[:12]}")
    # the first line has the commit's id (zeroed) and a fixed date
    start = re.search(r"^diff --git ", text, re.M)
    if not start:
        raise Failure(f"commit {commit[:12]} changes nothing")
    _must_survive_mail(tree, commit, mail)
    head = text[text.index("\n") + 1:start.start()].rstrip("\n") + "\n"
    diff = text[start.start():]
    if re.search(r"^Binary files ", diff, re.M):
        raise Failure(f"commit {commit[:12]} has a binary file")
    wanted = set(whole)
    rest = [text for path, text in sections(diff) if path not in wanted]
    return Patch(head, whole, "".join(rest).rstrip("\n") + "\n"
                 if rest else "")


def _must_survive_mail(tree, commit, mail):
    """Refuse a message that git am would not read back as it is."""
    with tempfile.TemporaryDirectory() as scratch:
        message = Path(scratch) / "message"
        info = git("mailinfo", "-b", "--no-scissors", message,
                   Path(scratch) / "patch", cwd=tree, input=mail)
        fields = dict(line.split(": ", 1) for line in info.splitlines()
                      if ": " in line)
        body = message.read_text().strip("\n")
    wanted = git("log", "-1", "--format=%an%n%ae%n%s%n%b", commit, cwd=tree)
    got = "\n".join([fields.get("Author", ""), fields.get("Email", ""),
                     fields.get("Subject", ""), body])
    if got.strip("\n") != wanted.strip("\n"):
        raise Failure(f"the message of commit {commit[:12]} does not survive "
                      "git am; it would become\n" + got)


def _date(head):
    found = re.search(r"^Date: (.*)$", head, re.M)
    return found[1] if found else None


def _write(stack, files, modes, gone, result, tail):
    changes = []
    before = stack.series.read_text() if stack.series.exists() else ""
    for path, data in files.items():
        mode = 0o755 if modes.get(path) == "100755" else 0o644
        if path.exists() and path.read_bytes() == data and \
                (path not in modes or path.stat().st_mode & 0o100 ==
                 mode & 0o100):
            continue
        changes.append(("M " if path.exists() else "A ") +
                       str(path.relative_to(stack.root)))
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.new")
        scratch.write_bytes(data)
        scratch.chmod(mode)
        scratch.rename(path)
    write_series(stack, result, tail)
    for path in sorted(gone):
        changes.append(f"D {path.relative_to(stack.root)}")
        path.unlink()
        with_no_files = path.parent
        while with_no_files != stack.root and not any(with_no_files.iterdir()):
            with_no_files.rmdir()
            with_no_files = with_no_files.parent
    if stack.series.read_text() != before:
        changes.append(f"M {stack.series.relative_to(stack.root)}")
    return changes


# --- what a maintainer gets -------------------------------------------------

def format_series(stack, tree, out, cover, version=None):
    """Write a mailable series with cover letter and base into OUT."""
    git("config", "branch.stack.description", cover, cwd=tree)
    args = ["--cover-letter", "--cover-from-description=subject",
            f"--base={git('rev-parse', BASE_REF, cwd=tree)}"]
    if version:
        args.append(f"--reroll-count={version}")
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.patch"):
        old.unlink()
    git("format-patch", "-q", "--no-signature", "--no-renames",
        "-o", out, *args, BASE_REF + "..stack", cwd=tree)
    return sorted(out.glob("*.patch"))
