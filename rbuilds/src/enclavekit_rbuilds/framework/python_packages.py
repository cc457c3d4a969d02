# SPDX-License-Identifier: Apache-2.0
"""The Python packages of a framework: third-party wheels pinned by hash, and our own, copied from this installation.

They live in one directory, `/usr/lib/enclavekit`, that a `.pth` file puts on the path.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Any

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.base.command import run
from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.framework.closure import member_of, name_of
from enclavekit_rbuilds.framework.elf import strip_shared_object
from enclavekit_rbuilds.framework.wheel_lock import PLATFORM_TAGS, LockedWheel

SITE = "usr/lib/enclavekit"
PTH = "usr/lib/python3/dist-packages/enclavekit.pth"
# programs, sources of compiled modules, type stubs, tests, and records of an installation that nobody will change
DROPPED = re.compile(
    r"(.*/)?(bin|tests?|testing|__pycache__)(/.*)?$"
    r"|.*\.(c|h|cc|cpp|pxd|pyx|pxi|pyi|hash|a)$"
    r"|(.*/)?py\.typed$"
    r"|[^/]+\.dist-info/(?!METADATA$).*"
)


def install_wheels(
    wheels: Sequence[LockedWheel], root: str, arch: str, scratch: str
) -> tuple[list[Input], dict[str, str]]:
    """Install locked wheels for `arch` and Debian's Python 3.11 below `root`; `scratch` is an empty directory.

    Returns: their records, and path below `root` -> the wheel that it is from.
    """
    target, report = os.path.join(scratch, "wheels"), os.path.join(scratch, "report.json")
    lock = os.path.join(scratch, "framework.lock")
    with open(lock, "w", encoding="utf-8") as out:
        out.writelines(f"{wheel.line()}\n" for wheel in wheels)
    tags = [word for tag in PLATFORM_TAGS for word in ("--platform", f"{tag}_{arch}")]
    argv = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-compile", "--target", target),
        *("--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--abi", "abi3", "--abi", "none"),
        *tags,
        *("--report", report, "--requirement", lock),
    ]
    run(argv, "install the framework's Python packages", needed_for="it installs wheels")
    owners = {f"{SITE}/{path}": name for path, name in _owners(target).items()}
    copy_tree(target, os.path.join(root, SITE))
    pth = os.path.join(root, PTH)
    os.makedirs(os.path.dirname(pth), exist_ok=True)
    with open(pth, "w", encoding="ascii") as out:
        out.write(f"/{SITE}\n")
    with open(report, "rb") as source:
        return _installed(json.load(source)), owners


def _installed(report: dict[str, Any]) -> list[Input]:
    """Return what pip says that it has installed."""
    found = []
    for item in report["install"]:
        about = item["metadata"]
        digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
        found.append(Input("wheel", name_of(about["name"]), about["version"], digest))
    return sorted(found, key=lambda one: one.name)


def _owners(target: str) -> dict[str, str]:
    """Return path below `target` -> distribution, by the records of an installation."""
    owners = {}
    for distribution in metadata.distributions(path=[target]):
        for path in distribution.files or ():
            owners[str(path)] = name_of(distribution.metadata["Name"])
    return owners


def own_inputs(packages: Iterable[str]) -> list[Input]:
    """Return the records of our own packages: version, and a hash over the files that go in."""
    found = []
    for name in sorted(packages):
        digest, size = hashlib.sha256(), 0
        for relative, source in own_files([name]):
            with open(source, "rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{content}  {relative}\n".encode())
            size += os.stat(source).st_size
        distribution = member_of(name)
        version = metadata.version(distribution)
        found.append(Input("own", distribution, version, digest.hexdigest(), size))
    return found


def own_sources(packages: Iterable[str]) -> dict[str, str]:
    """Return where each of our `packages` lies in this installation. Raises InputError if one is not installed."""
    found = {}
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise InputError("pack", name, "it is not installed beside rbuilds")
        found[name] = spec.submodule_search_locations[0]
    return found


def own_files(packages: Iterable[str]) -> list[tuple[str, str]]:
    """Return (path below SITE, path on disk) of every file of our `packages`, sorted."""
    return sorted(
        (f"{name}/{relative}", os.path.join(source, relative))
        for name, source in own_sources(packages).items()
        for relative in _files(source)
    )


def copy_own_packages(root: str, packages: Iterable[str]) -> None:
    """Copy our `packages` below `root`."""
    for relative, source in own_files(packages):
        _copy(source, os.path.join(root, SITE, relative))


def copy_tree(source: str, target: str) -> None:
    """Copy what the framework needs of `source` to `target`."""
    for relative in _files(source):
        _copy(os.path.join(source, relative), os.path.join(target, relative))


def _files(source: str) -> list[str]:
    found = []
    for where, _, names in os.walk(source):
        for name in names:
            relative = os.path.relpath(os.path.join(where, name), source)
            if not DROPPED.match(relative):
                found.append(relative)
    return sorted(found)


def _copy(source: str, target: str) -> None:
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if source.endswith(".so"):
        with open(source, "rb") as shared_object, open(target, "wb") as out:
            out.write(strip_shared_object(shared_object.read()))
    else:
        shutil.copyfile(source, target)
    os.chmod(target, 0o644)
