# SPDX-License-Identifier: Apache-2.0
"""What the kernel says in one read(2) of an inotify descriptor. Pure.

    i32 wd, u32 mask, u32 cookie, u32 len, then len bytes of name, NUL-padded; native byte order

Source: inotify(7); include/uapi/linux/inotify.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from enclavekit_core.errors import RemoteProtocolError

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_UNMOUNT = 0x2000
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000
IN_EXCL_UNLINK = 0x4000000
IN_MASK_ADD = 0x20000000
IN_ISDIR = 0x40000000

CONTENT = IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE
SELF = IN_DELETE_SELF | IN_MOVE_SELF
APPEARS = IN_CREATE | IN_MOVED_TO
# of a directory, of a file with several names, of a directory above the root, of the last one while the root is gone
WATCH_DIRECTORY = CONTENT | SELF | IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO | IN_ONLYDIR | IN_EXCL_UNLINK
WATCH_FILE = CONTENT
WATCH_ABOVE = SELF | IN_ONLYDIR | IN_MASK_ADD
WATCH_RETURN = WATCH_ABOVE | APPEARS
HEADER = struct.Struct("=iIII")
MAX_NAME_BYTES = 256 + HEADER.size  # NAME_MAX and its NUL, padded to a multiple of the header


@dataclass(frozen=True, slots=True)
class Event:
    wd: int
    """Watch descriptor; -1 where the event is about the queue."""
    mask: int
    name: bytes
    """Name in the watched directory; empty if the event is about the directory itself."""


def decode_events(buffer: bytes) -> list[Event]:
    """Decode a whole read. Raises RemoteProtocolError if it does not consist of whole records."""
    events, offset = [], 0
    while offset < len(buffer):
        if offset + HEADER.size > len(buffer):
            raise RemoteProtocolError("cannot decode inotify event: its header is cut off")
        wd, mask, _cookie, length = HEADER.unpack_from(buffer, offset)
        offset += HEADER.size
        if length > MAX_NAME_BYTES or offset + length > len(buffer):
            raise RemoteProtocolError(f"cannot decode inotify event: a name of {length} bytes does not fit")
        events.append(Event(wd, mask, buffer[offset : offset + length].rstrip(b"\0")))
        offset += length
    return events


def drop_repeats(events: list[Event]) -> list[Event]:
    """Drop writes that are followed by another event for the same name: a copied file is thousands of them."""
    kept: list[Event] = []
    followed: set[tuple[int, bytes]] = set()
    for event in reversed(events):
        where = (event.wd, event.name)
        if event.mask == IN_MODIFY and where in followed:
            continue
        followed.add(where)
        kept.append(event)
    kept.reverse()
    return kept
