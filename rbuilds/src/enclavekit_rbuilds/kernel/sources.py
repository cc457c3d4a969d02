# SPDX-License-Identifier: Apache-2.0
"""The kernel of an image, from one of four sources, and whether it is the one that was asked for.

blobs   AWS's own, which nitro-cli's package installs: an old 4.14
made    by `rbuilds kernel make`: the one to use on Nitro
debian  Debian's cloud kernel: for the emulator only
file    the builder's
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.kernel.blobs import blobs_kernel
from enclavekit_rbuilds.kernel.debian import debian_kernel
from enclavekit_rbuilds.kernel.made import made_kernel
from enclavekit_rbuilds.kernel.model import Kernel, describe_kernel

__all__ = ["Kernel", "find_kernel", "fit_compression", "kernel_from_file"]


def find_kernel(source: str, *, path: str | None, sha256: str | None, arch: str, progress: Progress) -> Kernel:
    """Return the kernel from `source`, checked against `sha256` if given. Raises CommandError, InputError."""
    with progress.step("Debian's kernel") if source == "debian" else progress.details():
        kernel = _SOURCES[source](path, sha256, arch)
    if sha256 is not None and (found := _hash(kernel.path)) != sha256:
        raise InputError("use kernel", kernel.path, f"its SHA-256 is {found}, {sha256} was asked for")
    return kernel


def kernel_from_file(path: str) -> Kernel:
    """Return the builder's kernel. Raises InputError if the file cannot be one."""
    return describe_kernel(path, os.path.basename(path))


def fit_compression(kernel: Kernel, wanted: str) -> tuple[str, str]:
    """Return the compression for ramdisks that `kernel` reads, and a note if it is not the one that was wanted. Pure.

    Raises: InputError if it reads none but plain archives, which only their user can want.
    """
    if kernel.compressions is None or wanted in kernel.compressions:
        return wanted, ""
    if "gzip" not in kernel.compressions:
        reason = f"it reads neither {wanted} nor gzip ramdisks: build with --compression none"
        raise InputError("use kernel", kernel.path, reason)
    return "gzip", f"the ramdisks are packed with gzip: the kernel ({kernel.name} {kernel.version}) reads no {wanted}"


def _hash(path: str) -> str:
    try:
        with open(path, "rb") as image:
            return hashlib.file_digest(image, "sha256").hexdigest()
    except OSError as exc:
        raise InputError("read kernel", path, describe_cause(exc)) from exc


def _from_file(path: str | None, _sha256: str | None, _arch: str) -> Kernel:
    if path is None:
        raise InputError("use kernel source", "file", "it needs a path")
    return kernel_from_file(path)


_SOURCES: dict[str, Callable[[str | None, str | None, str], Kernel]] = {
    "blobs": lambda path, _, arch: blobs_kernel(path, arch),
    "made": made_kernel,
    "debian": lambda _path, _sha256, arch: debian_kernel(arch),
    "file": _from_file,
}
