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
from enclavekit_rbuilds.manifest.model import KernelChoice

__all__ = ["Kernel", "find_kernel", "fit_compression", "kernel_from_file"]


def find_kernel(choice: KernelChoice, arch: str, progress: Progress) -> Kernel:
    """Return the chosen kernel, checked against the choice's version and hash. Raises CommandError, InputError."""
    sha256, version = choice.sha256, choice.version
    with progress.step("Debian's kernel") if choice.source == "debian" else progress.details():
        kernel = _SOURCES[choice.source](choice, arch)
    if version is not None and kernel.version != version:
        raise InputError("use kernel", kernel.path, f"its version is {kernel.version}, {version} was asked for")
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


def _from_file(choice: KernelChoice, _arch: str) -> Kernel:
    if choice.path is None:
        raise InputError("use kernel source", "file", "it needs a path")
    return kernel_from_file(choice.path)


_SOURCES: dict[str, Callable[[KernelChoice, str], Kernel]] = {
    "blobs": lambda choice, arch: blobs_kernel(choice.path, arch),
    "made": lambda choice, arch: made_kernel(choice.path, choice.sha256, arch),
    "debian": lambda choice, arch: debian_kernel(arch, choice.version),
    "file": _from_file,
}
