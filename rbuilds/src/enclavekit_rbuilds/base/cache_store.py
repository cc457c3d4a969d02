# SPDX-License-Identifier: Apache-2.0
"""What the cache holds as a whole: list it, keep it below its cap, empty it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.base.cache import ENTRY, cache_root, remove_entry

MAX_EVICTABLE_BYTES = 16 * 1024**3  # three images of 5 GB; a build is a minute or so, a full disk is a day
# remade in seconds to a minute from what is here; kernels and bases cost minutes or the network, and are few
EVICTABLE = ("app", "image", "ramdisk")
MAX_RECORDS = 256  # of images written; each is under 1 KiB, and one that is gone costs an image written once more
RECORD = re.compile(r"image-[0-9a-f]+\.json")


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the cache."""

    name: str
    key: str
    size: int
    """Bytes on disk, about: those of its files."""
    used_ns: int
    """When it was last used, in ns since 1970."""
    path: str


def list_entries(root: str | None = None) -> list[Entry]:
    """Return all entries, the latest used first."""
    base = root or cache_root()
    try:
        names = os.listdir(base)
    except FileNotFoundError:
        return []
    except OSError as exc:
        raise InputError("read cache directory", base, describe_cause(exc)) from exc
    entries = []
    for item in names:
        match, path = ENTRY.fullmatch(item), os.path.join(base, item)
        if match is None:
            continue
        try:
            used_ns, size = os.stat(path).st_mtime_ns, _size_of(path)
        except OSError:
            continue  # removed meanwhile
        entries.append(Entry(match["name"], match["key"], size, used_ns, path))
    return sorted(entries, key=lambda entry: (-entry.used_ns, entry.path))


def evict(root: str | None = None, *, max_bytes: int = MAX_EVICTABLE_BYTES) -> list[Entry]:
    """Remove what was not used for the longest time until the evictable entries fit; return what went.

    What a build holds stays, even above the cap: it goes at the next build's end.
    """
    entries = [entry for entry in list_entries(root) if entry.name in EVICTABLE]
    total, gone = sum(entry.size for entry in entries), []
    for entry in reversed(entries):
        if total <= max_bytes:
            break
        if remove_entry(entry.path):
            total -= entry.size
            gone.append(entry)
    _remove(_records(root)[MAX_RECORDS:])
    return gone


def clear(root: str | None = None, *, names: frozenset[str] = frozenset()) -> tuple[list[Entry], list[Entry]]:
    """Remove every entry, or those of `names`; return those that went and those that a build holds."""
    gone: list[Entry] = []
    busy: list[Entry] = []
    for entry in list_entries(root):
        if not names or entry.name in names:
            (gone if remove_entry(entry.path) else busy).append(entry)
    if not names:
        _remove(_records(root))
    return gone, busy


def _records(root: str | None) -> list[str]:
    """Return the records of images, the newest first."""
    base = root or cache_root()
    found = [os.path.join(base, item) for item in (os.listdir(base) if os.path.isdir(base) else ())]
    return sorted((path for path in found if RECORD.fullmatch(os.path.basename(path))), key=_age_key, reverse=True)


def _remove(paths: list[str]) -> None:
    for path in paths:
        try:
            os.unlink(path)
        except OSError:
            pass  # another build was faster, or the cache is not ours


def _age_key(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0  # removed meanwhile


def _size_of(path: str) -> int:
    total = 0
    for where, _, files in os.walk(path):
        total += sum(os.lstat(os.path.join(where, name)).st_size for name in files)
    return total
