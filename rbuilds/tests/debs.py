# SPDX-License-Identifier: Apache-2.0
"""Debian packages made by hand, whole and broken."""

from __future__ import annotations

import gzip
import lzma

import zstandard

from .conftest import Member, file, tar_bytes

PACKERS = {
    ".xz": lzma.compress,
    ".gz": gzip.compress,
    ".zst": lambda raw: zstandard.ZstdCompressor().compress(raw),
    "": lambda raw: raw,
}


def ar_member(name: str, content: bytes, *, size: str | None = None) -> bytes:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{size or str(len(content)):<10}`\n"
    return header.encode() + content + b"\n" * (len(content) % 2)


def make_deb(
    members: list[Member], *, name: str = "demo", version: str = "1.0-1", suffix: str = ".xz", arch: str = "all"
) -> bytes:
    control = f"Package: {name}\nVersion: {version}\nArchitecture: {arch}\nMaintainer: a <a@b>\nDescription: x\n more\n"
    return (
        b"!<arch>\n"
        + ar_member("debian-binary", b"2.0\n")
        + ar_member(f"control.tar{suffix}", PACKERS[suffix](tar_bytes([file("./control", control.encode())])))
        + ar_member(f"data.tar{suffix}", PACKERS[suffix](tar_bytes(members)))
    )
