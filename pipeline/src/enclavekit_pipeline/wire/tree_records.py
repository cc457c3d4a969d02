# SPDX-License-Identifier: Apache-2.0
"""Records of copies: one byte stream each way describes a tree and what its receiver already has. Pure, no I/O.

Source: docs/reference/pipeline-wire.md. House rule: everything that knows the byte layout lives in this file.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import TypeVar

from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError

from enclavekit_pipeline.wire.digest import DIGEST_BYTES

HEADER = struct.Struct(">BI")  # kind u8, length u32: 5 bytes, big-endian
# type u8, flags u8, mode u16, uid u32, gid u32, mtime i64 ns, size u64, length of path u16; then path, then target
ENTRY = struct.Struct(">BBHIIqQH")
COUNT = struct.Struct(">Q")
END = struct.Struct(f">Q{DIGEST_BYTES}s")
MAX_PATH_BYTES = 4096  # PATH_MAX
MAX_NAME_BYTES = 255  # NAME_MAX
MAX_BODY_BYTES = ENTRY.size + 2 * MAX_PATH_BYTES  # of all records but DATA, whose bytes are passed on as they come
MAX_DATA_BYTES = 2**31
MAX_DIGESTS = MAX_BODY_BYTES // DIGEST_BYTES  # in one record
MAX_FILE_BYTES = 2**44  # 16 TiB, what ext4 can hold in one file
Number = TypeVar("Number", bound=enum.IntEnum)
FLAG_ASK = 1  # "what do you have of this file?"
NO_ID = 2**32 - 1  # no owner is said; (uid_t) -1 is nobody's


class RecordKind(enum.IntEnum):
    """1..7 come from the sender of the tree, 16..18 from its receiver."""

    ENTRY, DATA, HOLE, KEEP, END, GONE, LEFT_OUT = 1, 2, 3, 4, 5, 6, 7
    NOTHING, DIGESTS, HAVE = 16, 17, 18


class EntryType(enum.IntEnum):
    FILE, DIRECTORY, SYMLINK, HARDLINK = 1, 2, 3, 4


class Why(enum.IntEnum):
    """Why something was left out; the receiver has the words."""

    SPECIAL, UNREADABLE, LEADS_OUT = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing of a tree."""

    type: EntryType
    path: bytes
    """Relative to the root of the copy, whose own is empty; any bytes but NUL."""
    mode: int = 0
    uid: int = NO_ID
    gid: int = NO_ID
    mtime_ns: int = 0
    size: int = 0
    """Of a file, as it was listed: it may be another by the time it is read."""
    target: bytes = b""
    """Of a symlink what it says, of a hard link the path of the file that it is the same as."""
    ask: bool = False
    """The receiver is to say what it has of this file."""


@dataclass(frozen=True, slots=True)
class Data:
    """Content; one DATA record may arrive as several of these."""

    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Count:
    """HOLE: so many zero bytes. KEEP: so many chunks are as the receiver has them. HAVE: the size of what it has."""

    kind: RecordKind
    count: int


@dataclass(frozen=True, slots=True)
class End:
    """All of the file's content was sent."""

    size: int
    digest: bytes
    """As `tree_content` makes it."""


@dataclass(frozen=True, slots=True)
class Plain:
    """GONE (the file could not be read after all), or NOTHING."""

    kind: RecordKind


@dataclass(frozen=True, slots=True)
class LeftOut:
    path: bytes
    why: Why


@dataclass(frozen=True, slots=True)
class Digests:
    """Of the next chunks of what the receiver has."""

    digests: tuple[bytes, ...]


Record = Entry | Data | Count | End | Plain | LeftOut | Digests
FROM_SENDER = frozenset(kind for kind in RecordKind if kind < RecordKind.NOTHING)
FROM_RECEIVER = frozenset(RecordKind) - FROM_SENDER


def data_header(count: int) -> bytes:
    """Return what goes before `count` bytes of content."""
    if not 0 < count <= MAX_DATA_BYTES:
        raise LocalProtocolError(f"cannot encode record: {count} bytes of content")
    return HEADER.pack(RecordKind.DATA, count)


def encode_record(record: Record) -> bytes:
    """Return header + body. Raises LocalProtocolError if it does not fit."""
    match record:
        case Entry():
            if len(record.path) > MAX_PATH_BYTES or len(record.target) > MAX_PATH_BYTES:
                raise LocalProtocolError("cannot encode record: too long a path")
            fixed = ENTRY.pack(
                *(record.type, FLAG_ASK if record.ask else 0, record.mode, record.uid, record.gid),
                *(record.mtime_ns, record.size, len(record.path)),
            )
            return _with_header(RecordKind.ENTRY, fixed + record.path + record.target)
        case Data():
            return data_header(len(record.data)) + bytes(record.data)
        case Count():
            return _with_header(record.kind, COUNT.pack(record.count))
        case End():
            return _with_header(RecordKind.END, END.pack(record.size, record.digest))
        case Plain():
            return _with_header(record.kind, b"")
        case LeftOut():
            return _with_header(RecordKind.LEFT_OUT, bytes([record.why]) + record.path)
        case Digests():
            return _with_header(RecordKind.DIGESTS, b"".join(record.digests))


def _with_header(kind: RecordKind, body: bytes) -> bytes:
    if len(body) > MAX_BODY_BYTES:
        raise LocalProtocolError(f"cannot encode record: {len(body)} > {MAX_BODY_BYTES} bytes")
    return HEADER.pack(kind, len(body)) + body


class RecordDecoder:
    """Bytes in, records out; holds at most one incomplete record, and of DATA nothing."""

    def __init__(self, allowed: frozenset[RecordKind]) -> None:
        self._allowed = allowed
        self._buffer = bytearray()
        self._data_left = 0

    def feed(self, data: bytes | memoryview) -> list[Record]:
        """Return the records that `data` completes. Raises RemoteProtocolError, after which the stream is lost."""
        records: list[Record] = []
        view = memoryview(data)
        while len(view):
            if self._data_left:
                part = view[: self._data_left]
                self._data_left -= len(part)
                view = view[len(part) :]
                records.append(Data(part))
            else:
                view = self._take_record(view, records)
        return records

    def feed_eof(self) -> None:
        """Say that no more comes. Raises RemoteProtocolError if a record was cut."""
        if self._buffer or self._data_left:
            raise RemoteProtocolError("cannot read record: the copy ended in the middle of it")

    def _take_record(self, view: memoryview, records: list[Record]) -> memoryview:
        view = self._fill(view, HEADER.size)
        if len(self._buffer) < HEADER.size:
            return view
        number, length = HEADER.unpack_from(self._buffer)
        kind = _enum(RecordKind, number)
        if kind not in self._allowed:
            raise RemoteProtocolError(f"cannot read record: {kind.name} from the wrong side")
        if kind is RecordKind.DATA:
            if not 0 < length <= MAX_DATA_BYTES:
                raise RemoteProtocolError(f"cannot read record: {length} bytes of content in one")
            self._data_left = length
            self._buffer.clear()
            return view
        if length > MAX_BODY_BYTES:
            raise RemoteProtocolError(f"cannot read record: it announces {length} bytes, the limit is {MAX_BODY_BYTES}")
        view = self._fill(view, HEADER.size + length)
        if len(self._buffer) == HEADER.size + length:
            body = bytes(self._buffer[HEADER.size :])
            self._buffer.clear()
            records.append(_decode(kind, body))
        return view

    def _fill(self, view: memoryview, size: int) -> memoryview:
        wanted = max(size - len(self._buffer), 0)
        self._buffer += view[:wanted]
        return view[wanted:]


def _decode(kind: RecordKind, body: bytes) -> Record:
    try:
        match kind:
            case RecordKind.ENTRY:
                return _decode_entry(body)
            case RecordKind.HOLE | RecordKind.KEEP | RecordKind.HAVE:
                return _decode_count(kind, body)
            case RecordKind.END:
                return End(*END.unpack(body))
            case RecordKind.LEFT_OUT:
                return LeftOut(body[1:], _enum(Why, body[0] if body else 0))
            case RecordKind.DIGESTS:
                if not body or len(body) % DIGEST_BYTES:
                    raise RemoteProtocolError("cannot read record: digests are cut")
                return Digests(tuple(body[i : i + DIGEST_BYTES] for i in range(0, len(body), DIGEST_BYTES)))
            case _:
                if body:
                    raise RemoteProtocolError(f"cannot read record: {kind.name} has no body")
                return Plain(kind)
    except struct.error as exc:
        raise RemoteProtocolError(f"cannot read record: {kind.name} is malformed") from exc


def _decode_count(kind: RecordKind, body: bytes) -> Count:
    (count,) = COUNT.unpack(body)
    if count > MAX_FILE_BYTES or (not count and kind is not RecordKind.HAVE):
        raise RemoteProtocolError(f"cannot read record: {kind.name} of {count}")
    return Count(kind, count)


def _decode_entry(body: bytes) -> Entry:
    number, flags, mode, uid, gid, mtime_ns, size, path_length = ENTRY.unpack_from(body)
    names = body[ENTRY.size :]
    entry = Entry(
        type=_enum(EntryType, number),
        path=names[:path_length],
        mode=mode,
        uid=uid,
        gid=gid,
        mtime_ns=mtime_ns,
        size=size,
        target=names[path_length:],
        ask=bool(flags & FLAG_ASK),
    )
    has_target = entry.type in (EntryType.SYMLINK, EntryType.HARDLINK)
    if (
        len(names) < path_length
        or max(len(entry.path), len(entry.target)) > MAX_PATH_BYTES
        or flags & ~FLAG_ASK
        or mode > 0o7777
        or size > MAX_FILE_BYTES
        or ((size or entry.ask) and entry.type is not EntryType.FILE)
        or bool(entry.target) != has_target
        or b"\0" in names
    ):
        raise RemoteProtocolError("cannot read record: an entry makes no sense")
    return entry


def _enum(kind: type[Number], number: int) -> Number:
    try:
        return kind(number)
    except ValueError as exc:
        raise RemoteProtocolError(f"cannot read record: no {kind.__name__} {number}") from exc
