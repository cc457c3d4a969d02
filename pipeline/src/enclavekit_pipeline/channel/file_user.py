# SPDX-License-Identifier: Apache-2.0
"""As whom a thread reaches files, and with which privileges. Source: setfsuid(2); capset(2); capabilities(7), "effect
of user ID changes on capabilities".
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Iterator, Sequence

CAPABILITY_HEADER = struct.Struct("=Ii")  # version, thread (0: this one): struct __user_cap_header_struct
CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
CAPABILITIES = struct.Struct("=6I")  # effective, permitted, inheritable: the lower halves, then the upper ones

_libc = ctypes.CDLL(None, use_errno=True)
_NOBODY = ctypes.c_uint(-1)  # an id that cannot be: the call changes nothing, and says what is


def file_uid() -> int:
    """Return the user whose files this thread makes."""
    return int(_libc.setfsuid(_NOBODY))


@contextlib.contextmanager
def reaching_files_as(uid: int, gid: int) -> Iterator[None]:
    """Let this thread, and nothing else of the process, make and reach files as somebody else.

    The kernel takes what lets root pass over permissions from the thread meanwhile, and gives it back. Supplementary
    groups stay as they are: the process should have none. Threads that it starts meanwhile are the other one's, too.

    Raises: PermissionError if we may not.
    """
    before = file_uid(), int(_libc.setfsgid(_NOBODY))
    try:
        _become(uid, gid)
        yield
    finally:
        _become(*before)


def _become(uid: int, gid: int) -> None:
    # root may become anybody, and who has become somebody root again: its other ids are what they were
    _libc.setfsgid(ctypes.c_uint(gid))
    _libc.setfsuid(ctypes.c_uint(uid))
    if (file_uid(), int(_libc.setfsgid(_NOBODY))) != (uid, gid):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@contextlib.contextmanager
def without_capabilities(numbers: Sequence[int]) -> Iterator[None]:
    """Let this thread do without these capabilities; it can have them back, so this binds what it opens, not its code.

    What proc(5) tells of other processes, for one, is for those who may trace them. Raises OSError.
    """
    before = _capabilities()
    wanted = list(before)
    for number in numbers:
        wanted[number // 32 * 3] &= ~(1 << number % 32)  # of the effective ones
    _set_capabilities(wanted)
    try:
        yield
    finally:
        _set_capabilities(before)


def _capabilities() -> list[int]:
    data = ctypes.create_string_buffer(CAPABILITIES.size)
    _check(_libc.capget(CAPABILITY_HEADER.pack(CAPABILITY_VERSION, 0), data))
    return list(CAPABILITIES.unpack(data.raw))


def _set_capabilities(values: Sequence[int]) -> None:
    _check(_libc.capset(CAPABILITY_HEADER.pack(CAPABILITY_VERSION, 0), CAPABILITIES.pack(*values)))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
