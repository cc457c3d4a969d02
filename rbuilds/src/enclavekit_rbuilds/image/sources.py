# SPDX-License-Identifier: Apache-2.0
"""Read the contents of an app's files from where they lie, and notice when somebody changes them meanwhile.

What is packed has to be what was checked: an archive whose layers were hashed must be the same file when its contents
are read a second time, and a file of a directory must keep the size that stands in front of it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from enclavekit_core.errors import InputError, describe_cause
from enclavekit_eif.newc import CHUNK_BYTES, describe_name

from enclavekit_rbuilds.app.inodes import Content

CHANGED = "it changed while it was read"


class Sources:
    """Reads contents; the file that the last one lay in stays open."""

    def __init__(self, base: bytes) -> None:
        """Files below `base` hold one content each."""
        self._own = base + b"/" if base else b""
        self._path = b""
        self._fd = -1
        self._state = (0, 0, 0)
        self._shared: dict[bytes, tuple[int, int, int]] = {}

    def chunks(self, content: Content) -> Iterator[bytes]:
        """Yield the bytes. Raises InputError if there are fewer, or the file is another one by now."""
        if not content.size:
            return
        try:
            self._open(content)
            position, end = content.offset, content.offset + content.size
            while position < end:
                chunk = os.pread(self._fd, min(end - position, CHUNK_BYTES), position)
                if not chunk:
                    raise InputError("pack", describe_name(content.path), CHANGED)
                position += len(chunk)
                yield chunk
            if self._is_own(content.path) and _state(os.fstat(self._fd)) != self._state:
                raise InputError("pack", describe_name(content.path), CHANGED)
        except OSError as exc:
            raise InputError("pack", describe_name(content.path), describe_cause(exc)) from exc

    def check(self) -> None:
        """Raise InputError if an archive is not what it was when its first content was read."""
        for path, state in self._shared.items():
            try:
                now = _state(os.stat(path))
            except OSError as exc:
                raise InputError("pack", describe_name(path), describe_cause(exc)) from exc
            if now != state:
                raise InputError("pack", describe_name(path), CHANGED)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._path = -1, b""

    def _is_own(self, path: bytes) -> bool:
        return bool(self._own) and path.startswith(self._own)

    def _open(self, content: Content) -> None:
        if content.path != self._path:
            self.close()
            self._fd = os.open(content.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            self._path = content.path
            status = os.fstat(self._fd)
            self._state = _state(status)
            if not stat.S_ISREG(status.st_mode):
                raise InputError("pack", describe_name(content.path), CHANGED)
            if not self._is_own(content.path):
                self._shared.setdefault(content.path, self._state)
        if self._is_own(content.path) and self._state[1] < content.size:
            raise InputError("pack", describe_name(content.path), CHANGED)


def _state(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
