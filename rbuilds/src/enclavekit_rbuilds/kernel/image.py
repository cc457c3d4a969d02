# SPDX-License-Identifier: Apache-2.0
"""Kernel images as bytes: what a bzImage says of itself, and the kernel that is packed inside it.

Source: Documentation/arch/x86/boot.rst of Linux; the payload of a compressed arm64 Image is not used on Nitro.
"""

from __future__ import annotations

import lzma
import os
import re
import zlib

import zstandard
from enclavekit_core.errors import InputError, describe_cause

MAX_KERNEL_BYTES = 256 * 1024 * 1024  # a distribution's vmlinux, uncompressed, has 60
SETUP_MAGIC = b"HdrS"
GZIP, XZ, ZSTD = b"\x1f\x8b\x08", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"
BANNER = re.compile(rb"Linux version (\S{1,64}) \(")


def read_image(path: str) -> bytes:
    """Return a kernel image's bytes. Raises InputError if it cannot be one."""
    try:
        size = os.stat(path).st_size
        if not 0 < size <= MAX_KERNEL_BYTES:
            raise InputError("use kernel", path, f"it has {size} bytes")
        with open(path, "rb") as source:
            return source.read(MAX_KERNEL_BYTES)
    except OSError as exc:
        raise InputError("read kernel", path, describe_cause(exc)) from exc


def is_bzimage(image: bytes) -> bool:
    """Whether it starts with x86's set-up code."""
    return image[0x202:0x206] == SETUP_MAGIC


def read_version(path: str) -> str:
    """Return the kernel's version, empty if it does not say. Raises InputError."""
    return version_of(read_image(path))


def version_of(image: bytes) -> str:
    """Return the version that the image states, empty if it states none. Pure."""
    if is_bzimage(image):
        offset = int.from_bytes(image[0x20E:0x210], "little") + 0x200
        words = image[offset : offset + 128].split(b"\0")[0].split()
        return words[0].decode("ascii", "replace") if words else ""
    banner = BANNER.search(image)
    return banner[1].decode("ascii", "replace") if banner else ""


def unpack_payload(image: bytes) -> bytes | None:
    """Return the kernel inside a bzImage; None if it is no bzImage, or packed in a way that we cannot read. Pure."""
    if not is_bzimage(image):
        return None
    sectors = image[0x1F1] or 4
    version = int.from_bytes(image[0x206:0x208], "little")
    if version < 0x208:  # the fields came with protocol 2.08, Linux 2.6.26
        return None
    start = (sectors + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    length = int.from_bytes(image[0x24C:0x250], "little")
    # the last four bytes are the unpacked size, not part of the compressed stream
    return _unpack(image[start : start + length])


def _unpack(payload: bytes) -> bytes | None:
    try:
        if payload.startswith(GZIP):
            return zlib.decompressobj(31).decompress(payload, MAX_KERNEL_BYTES)
        if payload.startswith(XZ):
            return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload, MAX_KERNEL_BYTES)
        if payload.startswith(ZSTD):
            packed = zstandard.ZstdDecompressor(max_window_size=1 << 27)
            with packed.stream_reader(payload, read_across_frames=False) as stream:
                return stream.read(MAX_KERNEL_BYTES)
        if payload.startswith(b"\x7fELF"):
            return payload
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError):
        pass
    return None
