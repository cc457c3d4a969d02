# SPDX-License-Identifier: Apache-2.0
"""Whether a path is, or is not, in the tree whose root a document attests. Pure.

A proof is the entries of each directory on the way from `/` to the path. Each directory's digest stands in the one
above it, that of `/` is the root: so nothing in them can be changed, left out or added. A name that is missing in its
directory, or a way that ends at what is no directory, proves absence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enclavekit_core.errors import LocalProtocolError, VerificationError
from enclavekit_core.tree_digest import Kind, TreeEntry, digest_of_directory

WHAT = "manifest proof"
KINDS = {"file": Kind.FILE, "directory": Kind.DIRECTORY, "link": Kind.LINK, "other": Kind.OTHER}
MAX_NAME_BYTES = 255  # NAME_MAX of Linux
MAX_DEPTH = 2048  # components of a path of 4096 bytes


def check_proof(root: bytes, path: str, directories: Sequence[Mapping[str, Any]]) -> TreeEntry | None:
    """Return the entry at `path`, or None if the proof shows that there is none.

    Args:
        root: digest of `/`, out of a *verified* document: 64 bytes.
        path: absolute; bytes that are no UTF-8 as lone surrogates.
        directories: from `/` down, each with `path` and `entries` (`name`, `kind`, `mode`, `digest` in hex).
    Raises:
        VerificationError if the proof is not about this path below this root.
    """
    names = [name for name in path.encode("utf-8", "surrogateescape").split(b"/") if name]
    if not names or len(names) > MAX_DEPTH or {b".", b".."} & set(names):
        raise VerificationError(WHAT, f"{path!r:.200} is not an absolute path below /")
    expected = root
    for position, name in enumerate(names):
        if position >= len(directories):
            raise VerificationError(WHAT, "it ends before the path does")
        entries = _read(directories[position])
        if _digest(entries) != expected:
            raise VerificationError(WHAT, f"directory {position} is not the one that is attested")
        found = next((entry for entry in entries if entry.name == name), None)
        last = position == len(names) - 1
        if found is None or (not last and found.kind is not Kind.DIRECTORY):
            return None
        if last:
            return found
        expected = found.digest
    raise AssertionError("unreachable: the last name returns")


def _digest(entries: list[TreeEntry]) -> bytes:
    try:
        return digest_of_directory(entries)
    except LocalProtocolError as exc:
        raise VerificationError(WHAT, "it has a directory that cannot be") from exc


def _read(directory: Mapping[str, Any]) -> list[TreeEntry]:
    try:
        return [
            TreeEntry(
                _name(entry["name"]),
                KINDS[entry["kind"]],
                _mode(entry["mode"]),
                bytes.fromhex(entry["digest"]),
            )
            for entry in directory["entries"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise VerificationError(WHAT, "it is malformed") from exc


def _name(value: str) -> bytes:
    name = value.encode("utf-8", "surrogateescape")
    if len(name) > MAX_NAME_BYTES:
        raise ValueError("no name")
    return name


def _mode(value: object) -> int:
    if type(value) is not int or not 0 <= value <= 0o7777:
        raise ValueError("no mode")
    return value
