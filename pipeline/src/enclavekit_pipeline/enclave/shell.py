# SPDX-License-Identifier: Apache-2.0
"""Which shell an account of the app has, by the app's own files, which may say anything."""

from __future__ import annotations

import os
import stat

from enclavekit_core.errors import InputError

from enclavekit_pipeline.enclave.root import Root

FALLBACK = "/bin/sh"
NO_SHELLS = frozenset({"nologin", "false", "true", "sync", "halt", "shutdown"})  # they let nobody in, or do other work
LOGIN_FLAG = "-"  # before a shell's own name in argv[0]


def find_shell(root: Root, uid: int) -> str:
    """Return the path in `root` of the account's shell, or of sh. Raises InputError if there is neither."""
    for path in (_shell_of(root, uid), FALLBACK):
        if path.startswith("/") and os.path.basename(path) not in NO_SHELLS and is_program(root, path):
            return path
    raise InputError("run", "a shell", f"there is no {FALLBACK} in the enclave's root")


def _shell_of(root: Root, uid: int) -> str:
    for fields in root.read_accounts("etc/passwd"):
        if len(fields) >= 7 and fields[2] == str(uid):
            return fields[6].strip()
    return ""


def is_program(root: Root, path: str) -> bool:
    """Say whether something in `root` could be run."""
    try:
        descriptor = root.open(path, os.O_PATH)
    except (OSError, ValueError):
        return False
    try:
        mode = os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)
    return stat.S_ISREG(mode) and bool(mode & 0o111)
