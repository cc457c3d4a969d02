# SPDX-License-Identifier: Apache-2.0
"""What an image says about files that its archive cannot hold as they are. Pure; both ends use it.

A file larger than newc's size field (4 GiB less one) lies in the image in parts, and file capabilities have no place
in newc at all. The image's builder writes this list; PID 1 joins the parts and sets the capabilities before any unit
starts. The list is in the measured ramdisk, so what it grants is measured.

    {"version": 1,
     "split": [{"names": ["/rootfs/model.bin"], "size": 5368709120, "sha256": "...", "mode": 420, "uid": 0, "gid": 0,
                "mtime": 0, "parts": ["/.split/0/0000", "/.split/0/0001"]}],
     "capabilities": [{"name": "/rootfs/usr/bin/ping", "value": "0100000200200000..."}]}

Names are absolute, as PID 1 sees them; bytes that are not UTF-8 are lone surrogates, as everywhere in Python.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from enclavekit_core.errors import ConfigError

VERSION = 1
LIST_PATH = "/etc/enclavekit/app-files.json"
PARTS_DIR = "/.split"
MAX_LIST_BYTES = 16 * 1024 * 1024  # some hundred bytes for each file that it names
MAX_ID = 0xFFFFFFFE
_SHA256 = re.compile(r"[0-9a-f]{64}")
_HEX = re.compile(r"([0-9a-f]{2}){1,64}")


@dataclass(frozen=True, slots=True)
class SplitFile:
    """A file in parts."""

    names: tuple[str, ...]
    """Where it belongs; all but the first are hard links."""
    size: int
    sha256: str
    """Of the whole content."""
    mode: int
    """Permission bits."""
    uid: int
    gid: int
    mtime: int
    """Seconds since 1970."""
    parts: tuple[str, ...]
    """Files that hold the content, in order; in no other use, and gone afterwards."""


@dataclass(frozen=True, slots=True)
class FileCapability:
    """The `security.capability` attribute of a file."""

    name: str
    value: str
    """Hexadecimal, struct vfs_cap_data as on disk."""


@dataclass(frozen=True, slots=True)
class FileList:
    split: tuple[SplitFile, ...] = ()
    capabilities: tuple[FileCapability, ...] = ()


def encode_file_list(files: FileList) -> bytes:
    """Return the list as JSON; equal lists give equal bytes."""
    document = {
        "version": VERSION,
        "split": [asdict(item) for item in files.split],
        "capabilities": [asdict(item) for item in files.capabilities],
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode() + b"\n"


def decode_file_list(raw: bytes, source: str = LIST_PATH) -> FileList:
    """Return the list in `raw`. Raises ConfigError for anything unknown: the boot must not go on."""

    def refuse(key: str, reason: str) -> ConfigError:
        return ConfigError(source, key, reason)

    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise refuse("", "it is not JSON") from exc
    if not isinstance(document, dict) or set(document) != {"version", "split", "capabilities"}:
        raise refuse("", "it must have version, split and capabilities, and nothing else")
    if document["version"] != VERSION:
        raise refuse("version", f"it must be {VERSION}")
    try:
        split = tuple(_split_file(item) for item in _list(document["split"]))
        capabilities = tuple(_capability(item) for item in _list(document["capabilities"]))
    except (ValueError, TypeError, KeyError) as exc:
        raise refuse("", f"an entry is malformed: {exc}") from exc
    return FileList(split, capabilities)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("not a list")
    return value


def _split_file(item: Any) -> SplitFile:
    made = SplitFile(**{**item, "names": _names(item["names"]), "parts": _names(item["parts"])})
    for value, limit in ((made.size, 1 << 60), (made.mode, 0o7777), (made.uid, MAX_ID), (made.gid, MAX_ID)):
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
            raise ValueError(f"{value!r} is not a number up to {limit}")
    if not isinstance(made.mtime, int) or isinstance(made.mtime, bool):
        raise ValueError("mtime is not a number")
    if not isinstance(made.sha256, str) or not _SHA256.fullmatch(made.sha256):
        raise ValueError("sha256 is not a hash")
    return made


def _capability(item: Any) -> FileCapability:
    made = FileCapability(**item)
    _names([made.name])
    if not isinstance(made.value, str) or not _HEX.fullmatch(made.value):
        raise ValueError("a capability is not hexadecimal")
    return made


def _names(value: Sequence[Any]) -> tuple[str, ...]:
    names = tuple(_list(value))
    if not names:
        raise ValueError("no name")
    for name in names:
        if not isinstance(name, str) or not name.startswith("/") or "\0" in name:
            raise ValueError(f"{name!r} is not an absolute path")
        if any(part in ("", ".", "..") for part in name[1:].split("/")):
            raise ValueError(f"{name!r} is not a plain path")
    return names
