# SPDX-License-Identifier: Apache-2.0
"""The side of CUSE that answers: messages of a character device in user space that has an ioctl. Pure.

An ioctl of which the kernel knows nothing is answered in rounds: the server says which of the caller's memory it wants
to read and write, and is asked again with the content. For NSM_IOCTL_RAW there are two such rounds: the 32 bytes of
struct nsm_raw, then the two buffers that they point to.

Source: include/uapi/linux/fuse.h (7.x), fs/fuse/cuse.c, Documentation/filesystems/fuse.rst.
"""

from __future__ import annotations

import enum
import errno
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from enclavekit_nsm.client import NSM_IOCTL_RAW, NSM_RAW
from enclavekit_nsm.messages import MAX_REQUEST_BYTES, MAX_RESPONSE_BYTES

IN_HEADER = struct.Struct("=IIQQIIII")  # length, opcode, unique, node, uid, gid, pid, padding
OUT_HEADER = struct.Struct("=IiQ")  # length, -errno, unique
INIT_IN = struct.Struct("=IIII")  # major, minor, unused, flags
INIT_OUT = struct.Struct("=IIIIIIII40x")  # major, minor, unused, flags, max_read, max_write, dev_major, dev_minor
OPEN_OUT = struct.Struct("=QII")  # handle, flags, padding
IOCTL_IN = struct.Struct("=QIIQII")  # handle, flags, command, argument, bytes in, bytes out
IOCTL_OUT = struct.Struct("=iIII")  # result, flags, vectors in, vectors out
IOVEC = struct.Struct("=QQ")  # address, length in the caller

CUSE_UNRESTRICTED_IOCTL = 1
IOCTL_RETRY = 4
KERNEL_MAJOR, KERNEL_MINOR = 7, 31  # 4.14 has 7.26; what is used here has not changed since 7.8
MAX_TRANSFER_BYTES = 128 * 1024
READ_BYTES = MAX_TRANSFER_BYTES + 4096  # one request, whatever it carries


class Opcode(enum.IntEnum):
    """Requests that reach a character device."""

    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    FLUSH = 25
    INTERRUPT = 36
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    CUSE_INIT = 4096


@dataclass(frozen=True, slots=True)
class Request:
    """One request of the kernel's."""

    opcode: int
    unique: int
    body: bytes


def parse_request(raw: bytes) -> Request:
    """Return the request in `raw`. Raises ValueError if it is cut short, which no kernel does."""
    if len(raw) < IN_HEADER.size:
        raise ValueError(f"a CUSE request of {len(raw)} bytes")
    length, opcode, unique, *_ = IN_HEADER.unpack_from(raw)
    if length != len(raw):
        raise ValueError(f"a CUSE request of {len(raw)} bytes that says {length}")
    return Request(opcode, unique, raw[IN_HEADER.size :])


def answer(request: Request, device: str, exchange: Callable[[bytes], bytes]) -> bytes | None:
    """Return the reply to `request`, None if it gets none.

    Args:
        device: the name below /dev.
        exchange: carries one NSM request and returns the response; an OSError of it reaches the caller's ioctl.
    """
    match request.opcode:
        case Opcode.CUSE_INIT:
            return _reply(request, _init(request.body, device))
        case Opcode.OPEN:
            return _reply(request, OPEN_OUT.pack(0, 0, 0))
        case Opcode.RELEASE | Opcode.FLUSH:
            return _reply(request)
        case Opcode.IOCTL:
            return _answer_ioctl(request, exchange)
        case Opcode.INTERRUPT | Opcode.DESTROY:
            return None  # the request that is interrupted is answered all the same, in milliseconds
        case _:
            return _error(request, errno.EINVAL)  # as the driver: there is nothing to read or write


def _init(body: bytes, device: str) -> bytes:
    INIT_IN.unpack_from(body)
    # without this flag the kernel would only take commands whose size is that of the argument
    out = INIT_OUT.pack(
        KERNEL_MAJOR, KERNEL_MINOR, 0, CUSE_UNRESTRICTED_IOCTL, MAX_TRANSFER_BYTES, MAX_TRANSFER_BYTES, 0, 0
    )
    return out + f"DEVNAME={device}".encode() + b"\0"


def _answer_ioctl(request: Request, exchange: Callable[[bytes], bytes]) -> bytes:
    _handle, _flags, command, argument, size, _ = IOCTL_IN.unpack_from(request.body)
    data = request.body[IOCTL_IN.size :]
    if command != NSM_IOCTL_RAW:
        return _error(request, errno.ENOTTY)
    whole = (argument, NSM_RAW.size)
    if size < NSM_RAW.size or len(data) < size:
        return _retry(request, [whole], [whole])
    request_address, request_size, response_address, response_size = NSM_RAW.unpack_from(data)
    if not 0 < request_size <= MAX_REQUEST_BYTES:
        return _error(request, errno.EMSGSIZE)  # as the driver
    room = min(response_size, MAX_RESPONSE_BYTES)
    if size == NSM_RAW.size:
        return _retry(request, [whole, (request_address, request_size)], [whole, (response_address, room)])
    message = data[NSM_RAW.size : NSM_RAW.size + request_size]
    if len(message) < request_size:
        return _error(request, errno.EFAULT)
    try:
        response = exchange(message)
    except OSError as exc:
        return _error(request, exc.errno or errno.EIO)
    if len(response) > room:
        return _error(request, errno.ENOSPC)
    filled = NSM_RAW.pack(request_address, request_size, response_address, len(response))
    return _reply(request, IOCTL_OUT.pack(0, 0, 0, 0) + filled + response)


def _retry(request: Request, read: Sequence[tuple[int, int]], written: Sequence[tuple[int, int]]) -> bytes:
    vectors = b"".join(IOVEC.pack(*vector) for vector in (*read, *written))
    return _reply(request, IOCTL_OUT.pack(0, IOCTL_RETRY, len(read), len(written)) + vectors)


def _reply(request: Request, body: bytes = b"") -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, request.unique) + body


def _error(request: Request, number: int) -> bytes:
    return OUT_HEADER.pack(OUT_HEADER.size, -number, request.unique)
