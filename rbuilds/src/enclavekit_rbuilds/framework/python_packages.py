# SPDX-License-Identifier: Apache-2.0
"""The Python packages of a framework: third-party wheels pinned by hash, and our own, copied from this installation.

They live in one directory, `/usr/lib/enclavekit`, that a `.pth` file puts on the path.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from importlib import resources

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.base.command import run
from enclavekit_rbuilds.framework.elf import strip_shared_object

SITE = "usr/lib/enclavekit"
PTH = "usr/lib/python3/dist-packages/enclavekit.pth"
OWN_PACKAGES = (
    "enclavekit_attestation",
    "enclavekit_core",
    "enclavekit_enclave_init",
    "enclavekit_fs_monitor",
    "enclavekit_nsm",
    "enclavekit_pf_proxy",
    "enclavekit_pipeline",
    "enclavekit_ra_web_srv",
)
PLATFORM_TAGS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28")  # bookworm has glibc 2.36
# programs, sources of compiled modules, type stubs, tests, and records of an installation that nobody will change
DROPPED = re.compile(
    r"(.*/)?(bin|tests?|testing|__pycache__)(/.*)?$"
    r"|.*\.(c|h|cc|cpp|pxd|pyx|pxi|pyi|hash|a)$"
    r"|(.*/)?py\.typed$"
    r"|[^/]+\.dist-info/(?!METADATA$).*"
)


def lock_text() -> str:
    """Return the lock file of the third-party packages, in pip's requirements format with hashes."""
    return resources.files("enclavekit_rbuilds").joinpath("data/framework.lock").read_text("utf-8")


def install_wheels(root: str, arch: str, scratch: str) -> None:
    """Install the locked wheels for `arch` and Debian's Python 3.11 below `root`; `scratch` is an empty directory."""
    lock = os.path.join(scratch, "framework.lock")
    with open(lock, "w", encoding="utf-8") as out:
        out.write(lock_text())
    target = os.path.join(scratch, "wheels")
    tags = [word for tag in PLATFORM_TAGS for word in ("--platform", f"{tag}_{arch}")]
    argv = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"),
        *("--no-deps", "--require-hashes", "--only-binary", ":all:", "--no-compile", "--target", target),
        *("--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--abi", "abi3", "--abi", "none"),
        *tags,
        *("--requirement", lock),
    ]
    run(argv, "install the framework's Python packages", needed_for="it installs wheels")
    copy_tree(target, os.path.join(root, SITE))
    pth = os.path.join(root, PTH)
    os.makedirs(os.path.dirname(pth), exist_ok=True)
    with open(pth, "w", encoding="ascii") as out:
        out.write(f"/{SITE}\n")


def own_sources() -> dict[str, str]:
    """Return where each of our packages lies in this installation. Raises InputError if one is not installed."""
    found = {}
    for name in OWN_PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.submodule_search_locations:
            raise InputError("pack", name, "it is not installed beside rbuilds")
        found[name] = spec.submodule_search_locations[0]
    return found


def own_files() -> list[tuple[str, str]]:
    """Return (path below SITE, path on disk) of every file of our packages, sorted."""
    return sorted(
        (f"{name}/{relative}", os.path.join(source, relative))
        for name, source in own_sources().items()
        for relative in _files(source)
    )


def copy_own_packages(root: str) -> None:
    """Copy our packages below `root`."""
    for relative, source in own_files():
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
