# SPDX-License-Identifier: Apache-2.0
"""As whom a thread reaches files. Source: setfsuid(2); capabilities(7), "effect of user ID changes on capabilities"."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator

_libc = ctypes.CDLL(None)
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
