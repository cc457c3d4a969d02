# SPDX-License-Identifier: Apache-2.0
"""Landlock: a fence of paths that the kernel keeps around a process and all that it starts.

The set of rules is made first; then one system call puts it on whoever makes that call. Source: landlock(7),
linux/landlock.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct
from collections.abc import Callable, Iterable

from enclavekit_core.errors import InputError, describe_cause

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # on every architecture
ASK_VERSION, RULE_PATH_BENEATH = 1, 1
RULESET = struct.Struct("=QQQ")  # file rights, network rights, scopes that are fenced: struct landlock_ruleset_attr
RULE = struct.Struct("=Qi")  # rights, descriptor: struct landlock_path_beneath_attr
SIZES = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}  # of RULESET, by version; whole from 6 on
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, TRUNCATE, IOCTL_DEV = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14, 1 << 15
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}  # by version; 16 bits from 5 on
ALL_RIGHTS = (1 << 16) - 1
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV  # the others make sense for directories only
TO_READ = EXECUTE | READ_FILE | READ_DIR
SCOPES, SCOPES_SINCE = 3, 6  # no signals and no abstract Unix sockets to who is outside of the fence

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Return the kernel's, 0 if it has none."""
    return max(0, int(_libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(ASK_VERSION))))


def make_ruleset(open_path: Callable[[str], int], read: Iterable[str], write: Iterable[str], whom: str) -> int:
    """Return a descriptor of the rules: below `read` files may be read and run, below `write` anything; nothing else.

    A path that is not there grants nothing.

    Args:
        open_path: opens a path with O_PATH, in whatever root it is meant; may raise OSError.
        whom: who is fenced in, for messages.
    Raises: InputError if the kernel cannot keep the fence.
    """
    known = version()
    if not known:
        raise InputError("fence in", whom, "this kernel has no Landlock")
    rights = RIGHTS.get(known, ALL_RIGHTS)
    attributes = RULESET.pack(rights, 0, SCOPES if known >= SCOPES_SINCE else 0)[: SIZES.get(known, RULESET.size)]
    descriptor = int(_libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)))
    if descriptor < 0:
        raise _failed(whom)
    try:
        os.set_inheritable(descriptor, False)
        for paths, granted in ((read, TO_READ), (write, rights)):
            for path in paths:
                _allow(descriptor, open_path, path, granted & rights, whom)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def restrict_self(ruleset: int) -> None:
    """Put the fence on this thread, for good. Needs no_new_privs, or CAP_SYS_ADMIN. Raises OSError."""
    if _libc.syscall(RESTRICT_SELF, ruleset, ctypes.c_uint32(0)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _allow(ruleset: int, open_path: Callable[[str], int], path: str, rights: int, whom: str) -> None:
    try:
        beneath = open_path(path)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise InputError("fence in", whom, f"{path}: {describe_cause(exc)}") from exc
    try:
        if not stat.S_ISDIR(os.fstat(beneath).st_mode):
            rights &= OF_FILES
        rule = RULE.pack(rights, beneath)
        if _libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, ctypes.c_uint32(0)):
            raise _failed(whom)
    finally:
        with contextlib.suppress(OSError):
            os.close(beneath)


def _failed(whom: str) -> InputError:
    return InputError("fence in", whom, os.strerror(ctypes.get_errno()).lower())
