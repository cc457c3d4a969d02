# SPDX-License-Identifier: Apache-2.0
"""Who this emulator is: its state directory and the instance id that it pretends to run on.

The id has 16 hex digits where a real instance has 17, so that the two cannot be mistaken for each other. It stays the
same from run to run, because relying parties may pin it as PCR4.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets

from enclavekit_core.errors import InputError

INSTANCE_ID = re.compile(r"i-[0-9a-f]{16}")
INSTANCE_FILE = "instance-id"


def emulator_state_dir() -> str:
    """Return the directory of what outlives a reboot: $XDG_STATE_HOME/enclavekit or ~/.local/state/enclavekit."""
    base = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(base, "enclavekit")


def instance_id() -> str:
    """Return this emulator's instance id, made at the first call. Raises InputError."""
    directory = emulator_state_dir()
    path = os.path.join(directory, INSTANCE_FILE)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            # written aside and linked: two first runs at once agree on one id
            temporary = f"{path}.{os.getpid()}"
            with open(temporary, "x", encoding="ascii") as out:
                out.write(f"i-{secrets.token_hex(8)}\n")
            try:
                os.link(temporary, path)
            finally:
                os.unlink(temporary)
        with open(path, encoding="ascii") as source:
            text = source.read(64).strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise InputError("use", f"state directory {directory}", getattr(exc, "strerror", None) or str(exc)) from exc
    if not INSTANCE_ID.fullmatch(text):
        raise InputError("use", path, "it holds no instance id")
    return text


def new_enclave_id() -> str:
    """Return an id that no other enclave has."""
    return f"{instance_id()}-enc{secrets.token_hex(8)}"
