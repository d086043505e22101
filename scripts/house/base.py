# SPDX-License-Identifier: GPL-2.0
"""Get the base of a stack: a bare git repository with one commit.

The commit's author, date and message are fixed, so its id depends on the
files alone and so do the ids of all that is composed on it.
"""

import contextlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from .common import (GIT_ENV, IDENTITY, ROOT, Failure, cached, digest, git,
                     pins)

REF = "refs/heads/base"
MARKS = {"linux": ("Kbuild", "MAINTAINERS"), "qemu": ("meson.build", "VERSION")}


def base_repo(name):
    """Return (repository, commit, description) of the base NAME.

    NAME is 'linux' or 'qemu'; the environment variable LINUX or QEMU names
    another base: a tarball, a directory, or a git tree (its HEAD).
    """
    other = os.environ.get(name.upper())
    if other:
        return _other_base(name, Path(other).absolute())
    pin = pins()
    version = pin[f"{name}_version"]
    with cached("base", f"{name}-{version.replace(':', '.')}.git") as (repo, new):
        if new:
            _import_pinned(name, pin, new)
    text = (repo / "description").read_text().strip()
    if not text.endswith(f" {version}"):
        print(f"*** the base is {text}, not the pinned {version}: "
              "results may differ", flush=True)
    return repo, git("rev-parse", REF, cwd=repo), text


def _other_base(name, path):
    variable = name.upper()
    if not path.exists():
        raise Failure(f"{variable}={path}: no such file or directory")
    if path.is_dir() and (path / ".git").exists():
        top = git("rev-parse", "--show-toplevel", cwd=path)
        if Path(top).resolve() == path.resolve():
            _must_be_tree(name, path)
            return path, git("rev-parse", "HEAD", cwd=path), f"{path} (git HEAD)"
    if path.is_dir():
        _must_be_tree(name, path)
        key = f"{name}-files-{_listing(path)[:16]}.git"
    else:
        key = f"{name}-tar-{_sha256(path)[:16]}.git"
    with cached("base", key) as (repo, new):
        if new and path.is_dir():
            # not --exclude-vcs: a .gitignore is a file of the tree
            with _tar_of(('tar -c --sort=name --exclude=.git -C "$0" .', path),
                         f"cannot read {path}") as tar:
                _import(tar, new, str(path))
        elif new:
            _import_tarball(name, path, new)
    return repo, git("rev-parse", REF, cwd=repo), str(path)


def _listing(path):
    """A hash of what find says of every file: name, size, mode, time, link."""
    done = subprocess.run(
        ["find", ".", "-name", ".git", "-prune", "-o", "-printf",
         r"%P %y %m %s %T@ %l\0"], cwd=path, capture_output=True, check=True)
    return digest(str(path.resolve()),
                  b"\0".join(sorted(done.stdout.split(b"\0"))))


def _import_tarball(name, path, scratch):
    if not tarfile.is_tarfile(path):
        raise Failure(f"{name.upper()}={path} is no tar archive")
    # Python's tarfile takes a cut archive for a short one; tar does not
    _run(["tar", "-tf", path], f"{name.upper()}={path} is damaged", quiet=True)
    with tarfile.open(path) as tar:
        first = tar.next()
    if not first:
        raise Failure(f"{name.upper()}={path} is empty")
    with tarfile.open(path, "r|*") as tar:
        _import(tar, scratch, str(path),
                inside=first.name.removeprefix("./").split("/")[0])
    marks = git("ls-tree", "--name-only", REF, cwd=scratch).splitlines()
    for mark in MARKS[name]:
        if mark not in marks:
            raise Failure(f"{name.upper()}={path} is no {name} tree: "
                          f"it has no {mark}")


def _must_be_tree(name, path):
    for mark in MARKS[name]:
        if not (path / mark).exists():
            raise Failure(f"{name.upper()}={path} is no {name} tree: "
                          f"it has no {mark}")


def _sha256(path):
    done = subprocess.run(["sha256sum", path], check=True, capture_output=True)
    return done.stdout.split()[0].decode().lstrip("\\")


def _run(argv, problem, quiet=False):
    done = subprocess.run(
        list(map(str, argv)), stdin=subprocess.DEVNULL, check=False,
        stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
        stderr=subprocess.PIPE if quiet else subprocess.STDOUT)
    text = (done.stderr if quiet else done.stdout).decode(errors="replace").strip()
    if done.returncode:
        raise Failure(f"{problem}: {text[-600:] or 'no message'}")
    return text


def _import(tar, scratch, description, inside=None):
    """Make the files of the tar stream TAR the one commit of SCRATCH.

    INSIDE, a name's first component, is left out. git fast-import writes one
    pack; a work tree of the kernel's 90,000 files is never made.
    """
    print(f"    importing {description}", flush=True)
    git("init", "-q", "--bare", scratch, cwd=scratch)
    # no clean-up in the background: the repository is about to move
    for key, value in (("core.compression", 1), ("gc.auto", 0),
                       ("maintenance.auto", "false")):
        git("config", key, value, cwd=scratch)
    with subprocess.Popen(
            ["git", "fast-import", "--quiet", "--depth=0"], cwd=scratch,
            stdin=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, **GIT_ENV}) as child:
        try:
            with child.stdin as out:
                _stream(tar, out, inside)
        except BrokenPipeError:
            pass
        problem = child.stderr.read().decode(errors="replace")
    if child.returncode:
        raise Failure(f"importing {description} failed: {problem[-600:]}")
    git("symbolic-ref", "HEAD", REF, cwd=scratch)
    (scratch / "description").write_text(description + "\n")


def _stream(tar, out, inside):
    """Write the files of TAR as one commit in fast-import's language."""
    who = f"base <{IDENTITY[1]}> 1767225600 +0000"
    out.write(f"commit {REF}\nauthor {who}\ncommitter {who}\n"
              "data 5\nbase\n\n".encode())
    links = {}
    for member in tar:
        name = member.name.removeprefix("./")
        if inside:
            name = name.partition("/")[2]
        if not name or name.split("/")[0] == ".git":
            continue
        if member.issym():
            mode, data = "120000", member.linkname.encode()
        elif member.islnk():
            target = member.linkname.removeprefix("./")
            mode, data = links[target.partition("/")[2] if inside else target]
        elif member.isreg():
            mode = "100755" if member.mode & 0o100 else "100644"
            data = tar.extractfile(member).read()
        else:
            continue
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        quoted = quoted.replace("\n", "\\n")
        out.write(f'M {mode} inline "{quoted}"\ndata {len(data)}\n'.encode())
        out.write(data)
        out.write(b"\n")
        if len(data) < 4096 and not member.issym():
            links[name] = (mode, data)


@contextlib.contextmanager
def _tar_of(command, problem):
    """The tar stream that a shell command writes."""
    with subprocess.Popen(["bash", "-o", "pipefail", "-c", *map(str, command)],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as child:
        try:
            with tarfile.open(fileobj=child.stdout, mode="r|") as tar:
                yield tar
            child.stdout.read()
        except (tarfile.TarError, EOFError) as error:
            text = child.stderr.read().decode(errors="replace")
            raise Failure(f"{problem}: {text or error}") from error
    if child.returncode:
        raise Failure(f"{problem} (status {child.returncode})")


def _import_pinned(name, pin, scratch):
    downloads = scratch / "download"
    downloads.mkdir()
    conf = _run([ROOT / "scripts" / "apt-private", scratch / "apt",
                 pin[f"{name}_suite"]],
                f"cannot get the {name} base").splitlines()[-1]
    fetch = _fetch_deb if name == "linux" else _fetch_source
    package, wanted = pin[f"{name}_package"], pin[f"{name}_version"]
    version = wanted
    offered = _offered(package, name, conf)
    if version not in offered:
        version = offered[0]
        print(f"\n*** {package} {wanted} is no longer on the mirror:\n"
              f"*** using the newest, {version}, instead; results may differ."
              f"\n*** Update scripts/pins when they have been looked at.\n",
              flush=True)
    file = fetch(package, version, downloads, conf)
    if version == wanted and _sha256(file) != pin[f"{name}_sha256"]:
        raise Failure(f"{file.name} does not have the checksum of scripts/pins "
                      "(a broken download? then run it again)")
    source = downloads / "source"
    problem = f"cannot unpack {file.name}"
    if name == "linux":
        command = ('dpkg-deb --fsys-tarfile "$0" | tar -xO "$1" | xz -dc', file,
                   f"./usr/src/{package}.tar.xz")
    else:
        # dpkg-source checks the parts against the .dsc whose sum is pinned,
        # and applies Debian's patches
        _run(["dpkg-source", "--no-check", "-x", file, source], problem)
        command = ('tar -c --sort=name --exclude=./.pc -C "$0" .', source)
    with _tar_of(command, problem) as tar:
        _import(tar, scratch, f"{package} {version}",
                inside=package if name == "linux" else None)
    shutil.rmtree(downloads)
    shutil.rmtree(scratch / "apt")


def _apt(conf, tool, *args, cwd):
    return subprocess.run(
        [tool, "-q", *args], cwd=cwd, env={**os.environ, "APT_CONFIG": conf},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False)


def _fetch_deb(package, version, where, conf):
    return _fetch(package, version, where, conf, ["download"], "*.deb")


def _fetch_source(package, version, where, conf):
    return _fetch(package, version, where, conf,
                  ["source", "--download-only"], "*.dsc")


def _fetch(package, version, where, conf, verb, pattern):
    print(f"    downloading {package} {version}", flush=True)
    done = _apt(conf, "apt-get", *verb, f"{package}={version}", cwd=where)
    file = next(iter(where.glob(pattern)), None)
    if done.returncode or not file:
        raise Failure(f"cannot download {package} {version}:\n" +
                      done.stdout.decode(errors="replace")[-600:].strip())
    return file


def _offered(package, name, conf):
    """The versions that the mirror lists, the newest first."""
    if name == "linux":
        done = _apt(conf, "apt-cache", "madison", package, cwd="/")
        found = [line.split("|")[1].strip()
                 for line in done.stdout.decode().splitlines() if "|" in line]
    else:
        done = _apt(conf, "apt-cache", "showsrc", "--only-source", package,
                    cwd="/")
        found = [line.split()[1] for line in done.stdout.decode().splitlines()
                 if line.startswith("Version:")][::-1]
    if not found:
        raise Failure(f"the mirror has no package {package}")
    return found
