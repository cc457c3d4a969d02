# SPDX-License-Identifier: Apache-2.0
"""Tell a kernel's format and architecture by its first bytes: pure.

Source: Linux Documentation/arch/x86/boot.rst (0x1fe, 0x202), Documentation/arch/arm64/booting.rst (0x38).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KernelFormat:
    name: str
    arch: str = ""
    bootable: bool = True
    """Whether an enclave starts a kernel of this format."""
    cure: str = ""


BZIMAGE = KernelFormat("a bzImage", "x86_64")
IMAGE = KernelFormat("an Image", "aarch64")
OTHERS = (  # start, format
    (b"\x7fELF", KernelFormat("an ELF file (vmlinux)", bootable=False, cure="take arch/x86/boot/bzImage, or Image")),
    (
        b"\x1f\x8b",
        KernelFormat("compressed with gzip", bootable=False, cure="unpack it: aarch64 needs an uncompressed Image"),
    ),
    (b"\x28\xb5\x2f\xfd", KernelFormat("compressed with zstd", bootable=False, cure="unpack it")),
)


def kernel_format(start: bytes) -> KernelFormat | None:
    """Return the format of a kernel that begins with `start` (0x210 bytes or more); None if it is none that we know."""
    if start[0x1FE:0x200] == b"\x55\xaa" and start[0x202:0x206] == b"HdrS":
        return BZIMAGE
    if start[0x38:0x3C] == b"ARM\x64":
        return IMAGE
    return next((found for magic, found in OTHERS if start.startswith(magic)), None)
