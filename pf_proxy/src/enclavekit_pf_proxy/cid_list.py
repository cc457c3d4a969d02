# SPDX-License-Identifier: Apache-2.0
"""The CIDs that may connect, in a file that whoever supervises the proxy replaces while it runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

from enclavekit_core.address import parse_cid
from enclavekit_core.errors import EnclavekitError, InputError, describe_cause

MAX_FILE_BYTES = 64 * 1024  # thousands of CIDs; a host runs a handful


class CidList(Collection[int]):
    """The CIDs of a file, one a line; read again when it has changed. A file that cannot be read admits nobody."""

    def __init__(self, path: str) -> None:
        """Raises: InputError, ConfigError if the file cannot be used at the start."""
        self._path = path
        try:
            self._identity = self._identify()
            self._cids = self._read()
        except OSError as exc:
            raise InputError("read CID list", path, describe_cause(exc)) from exc

    def _identify(self) -> tuple[int, ...]:
        info = os.stat(self._path)
        return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)

    def _read(self) -> frozenset[int]:
        with open(self._path, encoding="ascii", errors="replace") as source:
            text = source.read(MAX_FILE_BYTES)
        return frozenset(parse_cid(line.strip(), self._path) for line in text.splitlines() if line.strip())

    def _current(self) -> frozenset[int]:
        try:
            identity = self._identify()
            if identity != self._identity:
                self._cids, self._identity = self._read(), identity
        except (OSError, EnclavekitError):
            self._cids, self._identity = frozenset(), ()
        return self._cids

    def __contains__(self, cid: object) -> bool:
        return cid in self._current()

    def __iter__(self) -> Iterator[int]:
        return iter(self._current())

    def __len__(self) -> int:
        return len(self._current())
