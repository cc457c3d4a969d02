# SPDX-License-Identifier: Apache-2.0
"""SHA3-512 of a file that is opened without following a link and did not change while it was read.

Blocking: call it in a thread; hashlib lets go of the interpreter's lock.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import hashlib
import os
import stat
import struct
import time
from collections.abc import Callable

from msgspec import Struct

CHUNK_BYTES = 1024 * 1024  # reused for the whole file; large enough that Python's share of the time is nil
MAX_DEPTH = 2048  # components of a path of PATH_MAX bytes
# the kernel stamps files with a clock that advances every 1..10 ms: a second change within one tick leaves no trace
TIMESTAMP_TICK_NS = 20_000_000
_SIGNATURE = struct.Struct("<QQQqq")
SIGNATURE_BYTES = _SIGNATURE.size
INODE_BYTES = 16  # device and inode come first in a signature: what all names of one file share


class Unstable(enum.Enum):
    """Why a file that can be read has no hash now."""

    CHANGED = "it changed while it was read"
    BUSY = "it is open for writing"
    GIVEN_UP = "nobody waits for it"


class FileHash(Struct, frozen=True, gc=False):  # there are many: the collector has nothing to find in them
    digest: bytes
    """SHA3-512 of the content, 64 bytes."""
    size_bytes: int
    signature: bytes
    """`signature_of` the file: differs after a change of the content."""
    links: int = 1
    """Names of the file, of which any may be used to change it."""
    was_still: bool = True
    """False: it had changed within a tick of the clock before, so that a later change may leave the same signature."""


def signature_of(info: os.stat_result) -> bytes:
    """Return device, inode, size and times of change, packed; a file with another one has to be hashed again."""
    mask = 0xFFFFFFFFFFFFFFFF  # some file systems report 64-bit inode numbers as negative
    return _SIGNATURE.pack(info.st_dev & mask, info.st_ino & mask, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def size_and_mtime_of(signature: bytes) -> tuple[int, int]:
    """Return size in bytes and time of the last change in ns out of a signature."""
    _device, _inode, size_bytes, mtime_ns, _ctime_ns = _SIGNATURE.unpack(signature)
    return size_bytes, mtime_ns


def open_beneath(root: int, parts: list[bytes], flags: int) -> int:
    """Open a path below a directory, following no link at any component.

    Args:
        root: descriptor of a directory.
        parts: components; `.`, `..` and empty ones are the caller's error. An empty list opens the root itself.
        flags: of the last component, without O_NOFOLLOW and O_CLOEXEC, which are always set.
    Raises:
        OSError; ELOOP or ENOTDIR where a component is a link.
    """
    if len(parts) > MAX_DEPTH:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    always = os.O_NOFOLLOW | os.O_CLOEXEC
    if not parts:
        return os.open(b".", flags | always, dir_fd=root)
    handle = root
    try:
        for part in parts[:-1]:
            following = os.open(part, os.O_PATH | os.O_DIRECTORY | always, dir_fd=handle)
            if handle != root:
                os.close(handle)
            handle = following
        return os.open(parts[-1], flags | always, dir_fd=handle)
    finally:
        if handle != root:
            os.close(handle)


def open_regular(root: int, parts: list[bytes]) -> int:
    """Open a regular file for reading as `open_beneath` does; anything else is ENOENT, and a FIFO never blocks."""
    handle = open_beneath(root, parts, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return handle


def hash_open_file(
    handle: int,
    *,
    await_tick: bool,
    refuse_writers: bool = False,
    is_given_up: Callable[[], bool] = lambda: False,
) -> FileHash | Unstable:
    """Hash the regular file `handle` from its start, and report whether it stood still.

    Args:
        await_tick: first let the file system's clock pass the file's last change (20 ms at most), so that any later
            change shows in its times. Not needed by who is told of every change.
        refuse_writers: return BUSY while somebody has it open for writing, where the kernel can tell us.
        is_given_up: asked after each CHUNK_BYTES; once it is true, nobody waits for the hash and it is GIVEN_UP.
    Raises:
        OSError: from reading.
    """
    if refuse_writers and has_writer(handle):
        return Unstable.BUSY
    before = os.fstat(handle)
    wait_ns = max(before.st_mtime_ns, before.st_ctime_ns) + TIMESTAMP_TICK_NS - time.time_ns()
    if await_tick and 0 < wait_ns <= TIMESTAMP_TICK_NS:  # times in the future are not a reason to wait for them
        time.sleep(wait_ns / 1e9)
        wait_ns = 0
    sha3, total = hashlib.sha3_512(), 0
    buffer = memoryview(bytearray(min(CHUNK_BYTES, before.st_size + 1)))
    while count := os.preadv(handle, [buffer], total):
        sha3.update(buffer[:count])
        total += count
        if total > before.st_size:
            return Unstable.CHANGED  # it grows: stop here, it may do so faster than we read
        if is_given_up():
            return Unstable.GIVEN_UP
    signature = signature_of(before)
    if total != before.st_size or signature_of(os.fstat(handle)) != signature:
        return Unstable.CHANGED
    return FileHash(sha3.digest(), total, signature, before.st_nlink, was_still=wait_ns <= 0)


def has_writer(handle: int) -> bool:
    """Return whether somebody has the file open for writing; False where the kernel will not tell.

    A read lease is only granted on a file without writers (fcntl(2), F_SETLEASE), to its owner or with CAP_LEASE. It
    is given back at once, for it would hold up the next writer. A writer that comes in between makes the kernel send
    SIGIO to this process, which has to ignore it.
    """
    try:
        fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as exc:
        return exc.errno == errno.EAGAIN  # EACCES: not our file and no CAP_LEASE; EINVAL: no leases here
    fcntl.fcntl(handle, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
