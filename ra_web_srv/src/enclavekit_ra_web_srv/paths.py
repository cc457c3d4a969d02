# SPDX-License-Identifier: Apache-2.0
"""Which paths the server speaks about, and the one form of each. Pure.

A path is compared by its components, before anybody asks the file system about it: outside of the roots there is one
answer, whether a file exists or not.
"""

from __future__ import annotations

from collections.abc import Sequence

from enclavekit_core.bus import MAX_PATH_BYTES
from enclavekit_core.errors import ConfigError
from msgspec import Struct


class PathRefusedError(Exception):
    """The path is outside of every root, or none at all."""


class ConfinedPath(Struct, frozen=True, gc=False):  # kept of every file: the collector has nothing to find in them
    """A path below a root; equal paths are equal values."""

    path: bytes
    """Absolute, without empty, `.` and `..` components."""
    root: bytes
    parts: tuple[bytes, ...]
    """Components below `root`; empty for the root itself."""

    @property
    def text(self) -> str:
        """For JSON; bytes that are not UTF-8 become lone surrogates."""
        return as_text(self.path)


def as_text(path: bytes) -> str:
    """Return a path for JSON; bytes that are not UTF-8 become lone surrogates."""
    return path.decode("utf-8", "surrogateescape")


def normalise(path: bytes) -> bytes | None:
    """Return the one form of an absolute path, wherever it leads; None for what is none, or climbs."""
    parts = _split(path)
    return None if parts is None else b"/" + b"/".join(parts)


def parse_roots(roots: Sequence[str]) -> tuple[bytes, ...]:
    """Return the roots in their one form. Raises ConfigError."""
    if not roots:
        raise ConfigError("roots", "", "there is none")
    parsed = []
    for root in roots:
        parts = _split(root.encode("utf-8", "surrogateescape"))
        if parts is None:
            raise ConfigError(f"root {root!r}", "", "it is not an absolute path without '..'")
        parsed.append(b"/" + b"/".join(parts))
    return tuple(parsed)


def confine(path: bytes, roots: tuple[bytes, ...]) -> ConfinedPath:
    """Return `path` below the first root that holds it. Raises PathRefusedError."""
    parts = _split(path)
    if parts is None:
        raise PathRefusedError
    for root in roots:
        above = _split(root) or ()
        if parts[: len(above)] == above:
            return ConfinedPath(b"/" + b"/".join(parts), root, parts[len(above) :])
    raise PathRefusedError


def _split(path: bytes) -> tuple[bytes, ...] | None:
    """Return the components of an absolute path; None for what is none, or climbs."""
    if not path.startswith(b"/") or b"\0" in path or len(path) > MAX_PATH_BYTES:
        return None
    parts = tuple(part for part in path.split(b"/") if part not in (b"", b"."))
    return None if b".." in parts else parts
