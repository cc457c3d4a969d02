# SPDX-License-Identifier: Apache-2.0
"""Kernels that `rbuilds kernel make` made: what it writes beside each, and how a build finds one again."""

from __future__ import annotations

import hashlib
import os

import msgspec
from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.base.cache_store import list_entries
from enclavekit_rbuilds.kernel.config import load_config
from enclavekit_rbuilds.kernel.model import Kernel, describe_kernel

ENTRY = "kernel-made"
IMAGE, CONFIG, RECORD = "bzImage", "bzImage.config", "kernel.json"
ARCH = "x86_64"
HOW = "rbuilds kernel make"


class KernelRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`kernel.json`: what the kernel was made of."""

    version: str
    arch: str
    sha256: str
    """Of bzImage."""
    source: str
    """The tarball's name, or Debian's package and its version."""
    source_sha256: str
    """Of the tarball, or of Debian's package."""
    config_sha256: str
    """Of bzImage.config."""
    fragment_sha256: str
    """Of what was asked for: ours and the user's together."""
    compiler: str
    linker: str
    user: str
    host: str
    nitro_capable: bool


def made_kernel(path: str | None, sha256: str | None, arch: str) -> Kernel:
    """Return the made kernel at `path`, else the one in the cache. Raises InputError."""
    if arch != ARCH:
        raise InputError("use a made kernel for", arch, f"{HOW} makes {ARCH} only; use AWS's blobs, or a file")
    if path is not None:
        return read_made(path if os.path.isdir(path) else os.path.dirname(path) or ".")
    found = [(entry.path, read_record(entry.path)) for entry in list_entries() if entry.name == ENTRY]
    if sha256 is not None:
        found = [(where, record) for where, record in found if record.sha256 == sha256]
    if not found:
        wanted = f" with SHA-256 {sha256}" if sha256 else ""
        raise InputError("find", f"a made kernel{wanted}", f"there is none in the cache: make it with `{HOW}`")
    if len({record.sha256 for _, record in found}) > 1:
        listed = ", ".join(f"{record.version} ({record.sha256})" for _, record in found)
        raise InputError("choose", "a made kernel", f"the cache has several: {listed}; give --kernel-sha256")
    return read_made(found[0][0])


def read_made(directory: str) -> Kernel:
    """Return the kernel in a directory that `rbuilds kernel make` filled, checked to be whole. Raises InputError."""
    record = read_record(directory)
    for name, expected in ((IMAGE, record.sha256), (CONFIG, record.config_sha256)):
        path = os.path.join(directory, name)
        try:
            with open(path, "rb") as source:
                found = hashlib.file_digest(source, "sha256").hexdigest()
        except OSError as exc:
            raise InputError("read made kernel", path, describe_cause(exc)) from exc
        if found != expected:
            raise InputError("use made kernel", path, f"its SHA-256 is {found}, {RECORD} says {expected}")
    return describe_kernel(
        os.path.join(directory, IMAGE),
        f"made from {record.source}",
        version=record.version,
        config=load_config(os.path.join(directory, CONFIG)),
    )


def read_record(directory: str) -> KernelRecord:
    """Return what `rbuilds kernel make` wrote about the kernel in `directory`. Raises InputError."""
    path = os.path.join(directory, RECORD)
    try:
        with open(path, "rb") as source:
            return msgspec.json.decode(source.read(), type=KernelRecord)
    except (OSError, msgspec.MsgspecError) as exc:
        reason = f"{describe_cause(exc)}; `{HOW} --output DIR` writes such a directory"
        raise InputError("read made kernel", path, reason) from exc
