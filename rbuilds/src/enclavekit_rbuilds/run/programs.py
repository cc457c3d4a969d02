# SPDX-License-Identifier: Apache-2.0
"""Find the programs that running an image needs: those of this installation first, then those on PATH."""

from __future__ import annotations

import os
import shutil
import sys

from enclavekit_core.errors import InputError

OURS = frozenset({"nitro-emu", "pf-proxy"})  # beside our own interpreter: the same release as this one
SYSTEM_PATH = "/usr/sbin:/sbin"  # where nft is, and an ordinary user's PATH does not look


def find_program(name: str) -> str | None:
    """Return the absolute path of a program, None if it is not installed."""
    if name in OURS:
        beside = os.path.join(os.path.dirname(sys.executable), name)
        if os.access(beside, os.X_OK):
            return beside
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}")


def need_program(name: str, needed_for: str) -> str:
    """Return the path. Raises InputError, which says what it is needed for."""
    found = find_program(name)
    if found is None:
        raise InputError("find program", name, f"it is not installed; {needed_for}")
    return found
