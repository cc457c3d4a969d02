# SPDX-License-Identifier: Apache-2.0
"""Ramdisk 0, the framework: the same for every app of one release, so that PCR1 identifies kernel and framework.

Two cached stages. The *base* is everything that comes from outside: Debian's files and the locked wheels, compiled. The
*ramdisk* adds our own packages, units and `/init`, packed and compressed; it is reused while none of these change.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from dataclasses import dataclass
from importlib import resources

import msgspec

from enclavekit_rbuilds.base.cache import cached, key_of
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.framework import bytecode, python_packages, runtime_root
from enclavekit_rbuilds.framework.debian import SUITE, PackageSource
from enclavekit_rbuilds.image.ramdisk import RECIPE as PACKING
from enclavekit_rbuilds.image.ramdisk import RamdiskFile, pack_directory
from enclavekit_rbuilds.kernel.sources import Kernel

RECIPE = "1"  # part of the cache keys: raise it when the code here or in the modules it calls makes other files
MODULE_DIR = "usr/lib/modules"
COMMANDS = {  # name in the enclave -> where its main is
    "attest": "enclavekit_attestation.cli:main",
    "enclave-init": "enclavekit_enclave_init.cli:main",
    "fs-monitor": "enclavekit_fs_monitor.cli:main",
    "nsm": "enclavekit_nsm.cli:main",
    "pf-proxy": "enclavekit_pf_proxy.cli:main",
    "pipeline": "enclavekit_pipeline.cli:main",
    "ra-web-srv": "enclavekit_ra_web_srv.cli:main",
}


@dataclass(frozen=True, slots=True)
class Framework:
    """A packed ramdisk 0 and what is in it."""

    ramdisk: RamdiskFile
    packages: dict[str, str]
    """Debian package -> version; empty for a root that was given ready-made."""


def build_framework(
    kernel: Kernel, arch: str, compression: str, progress: Progress, *, ready_root: str | None = None
) -> Framework:
    """Return ramdisk 0 from the cache, or build it. `ready_root` is used as the base instead of Debian's packages."""
    if ready_root is not None:
        digest = _tree_digest(ready_root)
    else:
        with progress.step("framework base: Debian's Python and the locked wheels"):
            base = _base(arch)
        ready_root, digest = os.path.join(base, "root"), os.path.basename(base)
    with progress.step("framework ramdisk"):
        key = key_of([RECIPE, PACKING, arch, compression, digest, *_own_digests(), *_module_digests(kernel)])
        directory = cached("ramdisk", key, lambda work: _assemble(work, ready_root, kernel, arch, compression))
    with open(os.path.join(directory, "ramdisk.json"), "rb") as source:
        ramdisk = msgspec.json.decode(source.read(), type=RamdiskFile)
    packed = msgspec.structs.replace(ramdisk, path=os.path.join(directory, "ramdisk"))
    return Framework(packed, _read_packages(os.path.join(os.path.dirname(ready_root), "packages.json")))


def _base(arch: str) -> str:
    key = key_of([RECIPE, SUITE, arch, *runtime_root.PACKAGES, python_packages.lock_text()])
    return cached("base", key, lambda work: _make_base(work, arch))


def _make_base(work: str, arch: str) -> None:
    scratch, root = os.path.join(work, "scratch"), os.path.join(work, "root")
    os.makedirs(os.path.join(scratch, "apt"))
    os.mkdir(root)
    packages = PackageSource(os.path.join(scratch, "apt"), arch).fetch(list(runtime_root.PACKAGES))
    runtime_root.write_runtime_root(packages, root, arch)
    python_packages.install_wheels(root, arch, scratch)
    bytecode.compile_modules(root, arch, ("usr/lib/python3.11", python_packages.SITE))
    with open(os.path.join(work, "packages.json"), "wb") as out:
        out.write(msgspec.json.encode({package.name: package.version for package in packages}, order="sorted"))
    shutil.rmtree(scratch)


def _assemble(work: str, base: str, kernel: Kernel, arch: str, compression: str) -> None:
    root = os.path.join(work, "root")
    shutil.copytree(base, root, symlinks=True)
    python_packages.copy_own_packages(root)
    bytecode.compile_modules(
        root, arch, tuple(f"{python_packages.SITE}/{name}" for name in python_packages.OWN_PACKAGES)
    )
    write_framework_files(root, kernel)
    normalize_modes(root)
    ramdisk = pack_directory(root, os.path.join(work, "ramdisk"), compression)
    with open(os.path.join(work, "ramdisk.json"), "wb") as out:
        out.write(msgspec.json.encode(ramdisk))
    shutil.rmtree(root)


def write_framework_files(root: str, kernel: Kernel) -> None:
    """Add `/init`, its configuration, the units, the commands and the kernel's modules to `root`."""
    stub = os.path.join(python_packages.own_sources()["enclavekit_enclave_init"], "init_stub")
    with open(stub, "rb") as source:
        _write(root, "init", source.read(), 0o755)
    modules = []
    for module in kernel.modules:
        inside = f"{MODULE_DIR}/{os.path.basename(module)}"
        with open(module, "rb") as source:
            _write(root, inside, source.read(), 0o644)
        modules.append(f"/{inside}")
    listed = ", ".join(f'"{path}"' for path in modules)
    _write(root, "etc/init.toml", f"kernel_modules = [{listed}]\n", 0o644)
    for name, text in units().items():
        _write(root, f"service/{name}", text, 0o644)
    for name, target in COMMANDS.items():
        module_name, _, function = target.partition(":")
        script = (
            f"#!/usr/bin/python3 -I\nimport sys\n\nfrom {module_name} import {function}\n\nsys.exit({function}())\n"
        )
        _write(root, f"usr/bin/{name}", script, 0o755)


def normalize_modes(root: str) -> None:
    """Give everything one of four modes, whatever the umask of those who made it: nothing in a framework is setuid."""
    for where, names, files in os.walk(root):
        for name in names:
            path = os.path.join(where, name)
            if not os.path.islink(path):
                os.chmod(path, 0o1777 if os.lstat(path).st_mode & stat.S_ISVTX else 0o755)
        for name in files:
            path = os.path.join(where, name)
            if not os.path.islink(path):
                os.chmod(path, 0o755 if os.lstat(path).st_mode & stat.S_IXUSR else 0o644)


def units() -> dict[str, str]:
    """Return the framework's unit files by name."""
    folder = resources.files("enclavekit_rbuilds").joinpath("data/units")
    return {item.name: item.read_text("utf-8") for item in folder.iterdir() if item.name.endswith(".service")}


def _own_digests() -> list[str]:
    parts = [
        *(word for pair in sorted(COMMANDS.items()) for word in pair),
        *(part for pair in sorted(units().items()) for part in pair),
    ]
    for relative, source in python_packages.own_files():
        with open(source, "rb") as stream:
            parts += [relative, hashlib.file_digest(stream, "sha256").hexdigest()]
    return parts


def _module_digests(kernel: Kernel) -> list[str]:
    parts = []
    for path in kernel.modules:
        with open(path, "rb") as stream:
            parts += [os.path.basename(path), hashlib.file_digest(stream, "sha256").hexdigest()]
    return parts


def _tree_digest(root: str) -> str:
    """Return a hash over a directory: names, modes, contents and link targets."""
    parts: list[str | bytes] = []
    for where, names, files in os.walk(root):
        names.sort()
        for name in sorted([*names, *files]):
            path = os.path.join(where, name)
            parts += [os.path.relpath(path, root), oct(os.lstat(path).st_mode)]
            if os.path.islink(path):
                parts.append(os.readlink(path))
            elif os.path.isfile(path):
                with open(path, "rb") as stream:
                    parts.append(hashlib.file_digest(stream, "sha256").digest())
    return key_of(parts)


def _read_packages(path: str) -> dict[str, str]:
    try:
        with open(path, "rb") as source:
            return msgspec.json.decode(source.read(), type=dict[str, str])
    except OSError:
        return {}  # a ready-made root has no record


def _write(root: str, name: str, content: str | bytes, mode: int) -> None:
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)  # a link of a ready-made root, say /init -> sbin/init, is not to be followed
    with open(path, "wb") as out:
        out.write(content.encode() if isinstance(content, str) else content)
    os.chmod(path, mode)
