# SPDX-License-Identifier: Apache-2.0
"""Messages of copies: what is to be copied where, and that all of it is there. Pure.

What is copied, files and trees alike, travels as records (`tree_records`); these messages surround them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from enclavekit_core.errors import RemoteProtocolError

from enclavekit_pipeline.wire.messages import MAX_PATH_CHARS, Message, Size, malformed

MAX_PATTERNS = 256
MAX_PATTERN_CHARS = 1024
Encoding = Literal["utf-8", "hex"]


class CopyInRequest(Message, frozen=True, tag="cp-in", tag_field="verb"):
    path: str
    """Target; a directory takes the copy under `name`."""
    name: str = ""
    """The source's base name. Empty: `path` itself is the target, also if it is a directory."""
    encoding: Encoding = "utf-8"
    """Of `path` and `name`: hex if either is no UTF-8."""
    archive: bool = False
    """Owners are kept, too, and what directories already were becomes what the source's are."""
    delta: bool = False
    """What is there and equal stays."""
    resume: bool = False
    """Large files are taken up where a copy that was cut has ended, and leave that state behind when cut."""
    parents: bool = False
    """Make the directories that lead to `path`."""
    unsafe_links: bool = False
    """Links may lead out of the tree that is copied."""
    system: bool = False

    def check(self) -> None:
        """Raises RemoteProtocolError."""
        check_copied_path(self.target)
        name = self.base_name
        if b"/" in name or b"\0" in name or name in (b".", b".."):
            raise malformed("the name is not a file name")

    @property
    def target(self) -> bytes:
        return decode_name(self.path, self.encoding)

    @property
    def base_name(self) -> bytes:
        return decode_name(self.name, self.encoding)


class CopyOutRequest(Message, frozen=True, tag="cp-out", tag_field="verb"):
    path: str
    encoding: Encoding = "utf-8"
    archive: bool = False
    delta: bool = False
    """The receiver is asked what it has of each file."""
    resume: bool = False
    """It is asked for large files only."""
    unsafe_links: bool = False
    include: list[str] = []
    exclude: list[str] = []
    measure: bool = False
    """Say in OPENED how many bytes it will be: somebody watches."""
    system: bool = False

    def check(self) -> None:
        """Raises RemoteProtocolError."""
        check_copied_path(self.source)
        patterns = [*self.include, *self.exclude]
        if len(patterns) > MAX_PATTERNS or any(not 0 < len(pattern) <= MAX_PATTERN_CHARS for pattern in patterns):
            raise malformed("too many patterns, or one that is empty or too long")

    @property
    def source(self) -> bytes:
        return decode_name(self.path, self.encoding)


class Done(Message, frozen=True):
    """All of a copy is there; the other side compares."""

    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    """Over the records that describe entries and end files, which hold the digests of the contents."""
    size: Size
    """Bytes of all contents, whether they had to travel or not."""
    entries: Size = 0


def encode_name(*names: bytes) -> tuple[Encoding, list[str]]:
    """Return how names are put in words, and the words."""
    try:
        return "utf-8", [name.decode() for name in names]
    except UnicodeDecodeError:
        return "hex", [name.hex() for name in names]


def decode_name(text: str, encoding: Encoding) -> bytes:
    """Raises RemoteProtocolError."""
    try:
        return text.encode() if encoding == "utf-8" else bytes.fromhex(text)
    except ValueError as exc:
        raise RemoteProtocolError("cannot read frame: a name is malformed") from exc


def check_copied_path(path: bytes) -> None:
    """Raises RemoteProtocolError."""
    if not 0 < len(path) <= MAX_PATH_CHARS:
        raise malformed("no path, or too long a path")
    if b"\0" in path:
        raise malformed("NUL in a word")
