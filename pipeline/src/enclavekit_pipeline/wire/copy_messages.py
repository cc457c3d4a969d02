# SPDX-License-Identifier: Apache-2.0
"""Messages of copies: what is to be copied where, and that all of it is there. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from enclavekit_pipeline.wire.messages import MAX_PATH_CHARS, Message, Mode, Nanoseconds, Size, malformed


class CopyInRequest(Message, frozen=True, tag="cp-in", tag_field="verb"):
    path: str
    """Target; a directory takes the file under `name`."""
    name: str
    """The source's base name."""
    mode: Mode
    mtime_ns: Nanoseconds
    system: bool = False

    def check(self) -> None:
        """Raises RemoteProtocolError."""
        check_copied_path(self.path)
        if "/" in self.name or "\0" in self.name or self.name in ("", ".", ".."):
            raise malformed("the name is not a file name")


class CopyOutRequest(Message, frozen=True, tag="cp-out", tag_field="verb"):
    path: str
    system: bool = False

    def check(self) -> None:
        """Raises RemoteProtocolError."""
        check_copied_path(self.path)


class Done(Message, frozen=True):
    """All of a file is there; the other side compares."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    size: Size


def check_copied_path(path: str) -> None:
    """Raises RemoteProtocolError."""
    if not 0 < len(path) <= MAX_PATH_CHARS:
        raise malformed("no path, or too long a path")
    if "\0" in path:
        raise malformed("NUL in a word")
