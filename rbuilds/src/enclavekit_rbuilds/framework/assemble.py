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
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from enclavekit_rbuilds.base.cache import cached, key_of
from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.framework import bytecode, python_packages
from enclavekit_rbuilds.framework.base_stage import Base, find_base, sizes_by_part, wish_of
from enclavekit_rbuilds.framework.closure import (
    ALL_SERVICES,
    COMMANDS,
    EGRESS,
    EGRESS_BY,
    NETWORK,
    Closure,
    closure_of,
    member_of,
    units,
)
from enclavekit_rbuilds.framework.origin import Origin
from enclavekit_rbuilds.framework.wheel_lock import locked_wheels
from enclavekit_rbuilds.image.ramdisk import RECIPE as PACKING
from enclavekit_rbuilds.image.ramdisk import RamdiskFile, pack_directory
from enclavekit_rbuilds.kernel.sources import Kernel

__all__ = ["COMMANDS", "EGRESS", "NETWORK", "Framework", "base_for", "build_framework", "units"]

RECIPE = "2"  # part of the cache keys: raise it when the code here or in the modules it calls makes other files
MODULE_DIR = "usr/lib/modules"


@dataclass(frozen=True, slots=True)
class Framework:
    """A packed ramdisk 0 and what is in it."""

    ramdisk: RamdiskFile
    packages: dict[str, str]
    """Debian package -> version; empty for a root that was given ready-made."""
    parts: dict[str, int] = field(default_factory=dict)
    """Part, e.g. `wheel/aiohttp` -> bytes, unpacked."""
    inputs: list[Input] = field(default_factory=list)


def base_for(
    arch: str,
    services: Collection[str],
    progress: Progress,
    *,
    pins: Mapping[str, Input] | None = None,
    origin: Origin | None = None,
) -> Base:
    """Return the base for `services` from the cache, or make it; see base_stage.find_base."""
    wheels = locked_wheels()
    return find_base(wish_of(arch, closure_of(services, wheels), wheels), progress, pins=pins, origin=origin)


def build_framework(
    kernel: Kernel | None,
    arch: str,
    compression: str,
    progress: Progress,
    *,
    ready_root: str | None = None,
    services: Collection[str] = ALL_SERVICES,
    pins: Mapping[str, Input] | None = None,
    origin: Origin | None = None,
) -> Framework:
    """Return ramdisk 0 from the cache, or build it.

    Args:
        kernel: whose modules go in; None for those who only want to know what else does.
        ready_root: used as the base instead of Debian's packages.
        services: of `closure.SERVICES`; only what they need goes in.
        pins, origin: see base_stage.find_base.
    """
    closure = closure_of(services, locked_wheels())
    for language, egress in EGRESS_BY.items():
        if kernel is not None and egress in services:
            modules = [name for name in kernel.egress_modules.get(language, ()) if name not in kernel.modules]
            kernel = replace(kernel, modules=(*kernel.modules, *modules))
    inputs: list[Input] = []
    sizes: dict[str, int] = {}
    if ready_root is not None:
        digest = _tree_digest(ready_root)
    else:
        base = base_for(arch, services, progress, pins=pins, origin=origin)
        ready_root, digest = base.root, base.digest
        inputs, sizes = list(base.record.inputs), dict(base.record.parts)
    key = key_of([RECIPE, PACKING, arch, compression, digest, *_own_digests(closure), *_module_digests(kernel)])
    directory = cached("ramdisk", key, lambda work: _assemble(work, ready_root, closure, kernel, arch, compression))
    with open(os.path.join(directory, "ramdisk.json"), "rb") as source:
        ramdisk = msgspec.json.decode(source.read(), type=RamdiskFile)
    with open(os.path.join(directory, "parts.json"), "rb") as source:
        added = msgspec.json.decode(source.read(), type=dict[str, int])
    packed = msgspec.structs.replace(ramdisk, path=os.path.join(directory, "ramdisk"))
    own = python_packages.own_inputs(closure.packages)
    return Framework(
        packed,
        {one.name: one.version for one in inputs if one.kind == "debian"},
        {**sizes, **added} if sizes else added,
        [*inputs, *own, *_module_inputs(kernel)],
    )


def _assemble(work: str, base: str, closure: Closure, kernel: Kernel | None, arch: str, compression: str) -> None:
    root = os.path.join(work, "root")
    shutil.copytree(base, root, symlinks=True)
    python_packages.copy_own_packages(root, closure.packages)
    bytecode.compile_modules(root, arch, tuple(f"{python_packages.SITE}/{name}" for name in closure.packages))
    write_framework_files(root, closure, kernel)
    normalize_modes(root)
    ramdisk = pack_directory(root, os.path.join(work, "ramdisk"), compression)
    with open(os.path.join(work, "ramdisk.json"), "wb") as out:
        out.write(msgspec.json.encode(ramdisk))
    with open(os.path.join(work, "parts.json"), "wb") as out:
        out.write(msgspec.json.encode(_own_sizes(root, closure)))
    shutil.rmtree(root)


def _own_sizes(root: str, closure: Closure) -> dict[str, int]:
    """Return the bytes of what was added to the base."""
    owners = {
        f"{python_packages.SITE}/{relative}": f"own/{member_of(relative.partition('/')[0])}"
        for relative, _ in python_packages.own_files(closure.packages)
    }
    modules = os.path.join(root, MODULE_DIR)
    if os.path.isdir(modules):
        owners |= {f"{MODULE_DIR}/{name}": "kernel/modules" for name in os.listdir(modules)}
    return {part: size for part, size in sizes_by_part(root, owners, "").items() if part}


def write_framework_files(root: str, closure: Closure, kernel: Kernel | None) -> None:
    """Add `/init`, its configuration, the units, the commands and the kernel's modules to `root`."""
    init = python_packages.own_sources(["enclavekit_enclave_init"])["enclavekit_enclave_init"]
    with open(os.path.join(init, "init_stub"), "rb") as source:
        _write(root, "init", source.read(), 0o755)
    modules = []
    for module in kernel.modules if kernel else ():
        inside = f"{MODULE_DIR}/{os.path.basename(module)}"
        with open(module, "rb") as source:
            _write(root, inside, source.read(), 0o644)
        modules.append(f"/{inside}")
    listed = ", ".join(f'"{path}"' for path in modules)
    _write(root, "etc/init.toml", f"kernel_modules = [{listed}]\n", 0o644)
    for name, text in units(closure.services).items():
        _write(root, f"service/{name}", text, 0o644)
    for name in closure.commands:
        module_name, _, function = COMMANDS[name].partition(":")
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


def _own_digests(closure: Closure) -> list[str]:
    parts = [
        *(word for name in closure.commands for word in (name, COMMANDS[name])),
        *(part for pair in units(closure.services).items() for part in pair),
    ]
    for relative, source in python_packages.own_files(closure.packages):
        parts += [relative, _hash(source)]
    return parts


def _module_digests(kernel: Kernel | None) -> list[str]:
    return [part for path in (kernel.modules if kernel else ()) for part in (os.path.basename(path), _hash(path))]


def _module_inputs(kernel: Kernel | None) -> list[Input]:
    if kernel is None:
        return []
    return [
        Input("file", os.path.basename(path), kernel.version, _hash(path), os.stat(path).st_size, "kernel module")
        for path in kernel.modules
    ]


def _hash(path: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


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


def _write(root: str, name: str, content: str | bytes, mode: int) -> None:
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        os.unlink(path)  # a link of a ready-made root, say /init -> sbin/init, is not to be followed
    with open(path, "wb") as out:
        out.write(content.encode() if isinstance(content, str) else content)
    os.chmod(path, mode)
