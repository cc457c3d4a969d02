# SPDX-License-Identifier: Apache-2.0
"""Landlock: a fence of paths that the kernel keeps around a process and all that it starts.

The set of rules is made before the fork; in the child one system call puts it on. Source: landlock(7),
linux/landlock.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat
import struct

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_pipeline.enclave.root import Root

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


def make_ruleset(root: Root, read: list[str], write: list[str]) -> int:
    """Return a descriptor of the rules: below `read` files may be read and run, below `write` anything; nothing else.

    A path that is not there grants nothing. Raises InputError if the kernel cannot keep the fence.
    """
    known = version()
    if not known:
        raise InputError("fence in", "the command", "this kernel has no Landlock, and the client's entry demands it")
    rights = RIGHTS.get(known, ALL_RIGHTS)
    attributes = RULESET.pack(rights, 0, SCOPES if known >= SCOPES_SINCE else 0)[: SIZES.get(known, RULESET.size)]
    descriptor = int(_libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)))
    if descriptor < 0:
        raise _failed()
    try:
        os.set_inheritable(descriptor, False)
        for paths, granted in ((read, TO_READ), (write, rights)):
            for path in paths:
                _allow(descriptor, root, path, granted & rights)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _allow(ruleset: int, root: Root, path: str, rights: int) -> None:
    try:
        beneath = root.open(path, os.O_PATH)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise InputError("fence in", "the command", f"{path}: {describe_cause(exc)}") from exc
    try:
        if not stat.S_ISDIR(os.fstat(beneath).st_mode):
            rights &= OF_FILES
        rule = RULE.pack(rights, beneath)
        if _libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, rule, ctypes.c_uint32(0)):
            raise _failed()
    finally:
        with contextlib.suppress(OSError):
            os.close(beneath)


def _failed() -> InputError:
    return InputError("fence in", "the command", os.strerror(ctypes.get_errno()).lower())
