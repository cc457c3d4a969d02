# SPDX-License-Identifier: Apache-2.0
"""Which entries of a tree a copy takes: --include and --exclude. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence


class Selection:
    """Without `include` all is in; with it only what matches one of it. What matches `exclude` is out. Either way a
    directory stands for all that is in it.

    A pattern without `/` is compared with names, one with `/` with whole paths from the root of the copy. `*` and `?`
    stand for any characters, `/` too.
    """

    def __init__(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> None:
        self._include = [_Pattern(text) for text in include]
        self._exclude = [_Pattern(text) for text in exclude]

    @property
    def picks(self) -> bool:
        """Whether directories are made only for what is in them."""
        return bool(self._include)

    def excludes(self, path: bytes) -> bool:
        return any(pattern.matches(path) for pattern in self._exclude)

    def includes(self, path: bytes) -> bool:
        if not self._include:
            return True
        while path:
            if any(pattern.matches(path) for pattern in self._include):
                return True
            path = path.rpartition(b"/")[0]
        return False


class _Pattern:
    def __init__(self, text: str) -> None:
        self._whole = "/" in text.rstrip("/")
        wanted = text.strip("/") if self._whole else text.rstrip("/")
        self._pattern = re.compile(fnmatch.translate(wanted))

    def matches(self, path: bytes) -> bool:
        subject = path if self._whole else path.rpartition(b"/")[2]
        return self._pattern.match(subject.decode("utf-8", "surrogateescape")) is not None
