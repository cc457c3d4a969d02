# SPDX-License-Identifier: Apache-2.0
"""The sender's part of a copy: what it may announce when, and which answer belongs to which file. Pure.

Most files are announced with their content right behind. A file with `ask` waits for what the receiver has of it; so
that this costs no round trip each, up to MAX_ASKED are announced ahead, and contents follow in the same order. A large
one is announced last: the receiver keeps a file open for it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError

from enclavekit_pipeline.wire.copy_messages import Done
from enclavekit_pipeline.wire.digest import new_digest
from enclavekit_pipeline.wire.tree_content import MAX_CHUNKS
from enclavekit_pipeline.wire.tree_records import (
    FROM_RECEIVER,
    Count,
    Digests,
    End,
    Entry,
    EntryType,
    LeftOut,
    Plain,
    RecordDecoder,
    RecordKind,
    encode_record,
)

MAX_ASKED = 256  # things announced ahead of the content
LARGE_BYTES = 8 * 1024 * 1024  # from here on a copy is worth resuming


def is_large(entry: Entry) -> bool:
    return entry.size >= LARGE_BYTES


@dataclass
class Asked:
    """An announced file whose content is still to come."""

    entry: Entry
    digests: list[bytes] = field(default_factory=list)
    """Of the chunks that the receiver has."""
    has_bytes: int = 0
    answered: bool = False


class TreeSender:
    """Makes the records of one copy, but for contents, and reads the answers."""

    def __init__(self) -> None:
        self._decoder = RecordDecoder(FROM_RECEIVER)
        self._asked: deque[Asked] = deque()
        self._ahead = 0  # entries announced since the oldest of them
        self._digest = new_digest()
        self.size = self.entries = 0

    @property
    def asked(self) -> Asked | None:
        """The file whose content comes next, if one has been announced with a question."""
        return self._asked[0] if self._asked else None

    def may_announce(self, entry: Entry) -> bool:
        """Return whether `entry` may go out before the content of what has been announced."""
        if not self._asked:
            return True
        if entry.type is EntryType.FILE and not entry.ask:
            return False
        return self._ahead < MAX_ASKED and not is_large(self._asked[-1].entry)

    def announce(self, entry: Entry) -> bytes:
        """Raises LocalProtocolError if it is not the time."""
        if not self.may_announce(entry):
            raise LocalProtocolError("cannot announce: contents are due first")
        if entry.ask:
            self._asked.append(Asked(entry))
        self._ahead += bool(self._asked)
        self.entries += 1
        return self._counted(entry)

    def leave_out(self, record: LeftOut) -> bytes:
        return self._counted(record)

    def end_file(self, record: End | Plain) -> bytes:
        """Return END, or GONE if the file cannot be read after all."""
        if self._asked:
            self._asked.popleft()
            self._ahead = self._ahead if self._asked else 0
        if isinstance(record, End):
            self.size += record.size
        return self._counted(record)

    def _counted(self, record: Entry | End | Plain | LeftOut) -> bytes:
        encoded = encode_record(record)
        self._digest.update(encoded)
        return encoded

    def feed(self, data: bytes) -> None:
        """Take answers. Raises RemoteProtocolError."""
        for record in self._decoder.feed(data):
            asked = next((asked for asked in self._asked if not asked.answered), None)
            if asked is None:
                raise RemoteProtocolError("cannot read record: an answer that nobody asked for")
            match record:
                case Digests(digests):
                    asked.digests += digests
                    if len(asked.digests) > MAX_CHUNKS or (len(asked.digests) > 8 and not is_large(asked.entry)):
                        raise RemoteProtocolError("cannot read record: more digests than chunks")
                case Count(RecordKind.HAVE, count):
                    asked.has_bytes, asked.answered = count, True
                case Plain(RecordKind.NOTHING) if not asked.digests:
                    asked.answered = True
                case _:
                    raise RemoteProtocolError("cannot read record: that is no answer")

    @property
    def done(self) -> Done:
        return Done(digest=self._digest.hexdigest(), size=self.size, entries=self.entries)
