# SPDX-License-Identifier: Apache-2.0
"""Which enclave a word means: a CID as it is; a name or id by what the emulator and nitro-cli say is running.

A name decides only where to connect. Whether it is the enclave that was meant is for the evidence to prove.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
from dataclasses import dataclass

from enclavekit_core import fabric
from enclavekit_core.address import MIN_ENCLAVE_CID, parse_cid
from enclavekit_core.errors import ConfigError, InputError, TransportError
from enclavekit_core.processes import ProcessId, boot_id, is_alive

NITRO_CLI = "nitro-cli"
NITRO_CLI_TIMEOUT_S = 10.0
MAX_STATE_BYTES = 1024 * 1024
RUNNING = "RUNNING"


@dataclass(frozen=True, slots=True)
class Running:
    """An enclave on this machine."""

    cid: int
    name: str
    enclave_id: str


def find_cid(word: str) -> int:
    """Return the CID that `word` means: digits are one, anything else is a name or an id.

    Raises: TransportError if a CID is no enclave's, InputError if nothing or more than one thing is called so.
    """
    if word.isascii() and word.isdigit():
        cid = parse_cid(word)
        if cid < MIN_ENCLAVE_CID:
            raise TransportError("enter", f"CID {word}", "it is not an enclave's")
        return cid
    return choose(word, [*emulated_enclaves(), *nitro_enclaves()])


def choose(word: str, running: list[Running]) -> int:
    """Return the CID of the one enclave with that name or id. Raises InputError. Pure."""
    matching = {found.cid: found for found in running if word in (found.name, found.enclave_id)}
    if len(matching) == 1:
        return next(iter(matching))
    if not matching:
        names = ", ".join(sorted({found.name for found in running})) or "none"
        raise InputError("enter", repr(word), f"no running enclave has this name or id (running: {names})")
    which = ", ".join(f"{found.enclave_id} (CID {cid})" for cid, found in sorted(matching.items()))
    raise InputError("enter", repr(word), f"{len(matching)} running enclaves are called so: {which}")


def emulated_enclaves() -> list[Running]:
    """Return what the emulator runs; records of enclaves that are gone, or half written, say nothing."""
    found = []
    for path in glob.glob(os.path.join(glob.escape(fabric.runtime_dir()), "enclaves", "*", "state.json")):
        try:
            with open(path, encoding="utf-8") as source:
                record = json.loads(source.read(MAX_STATE_BYTES))
            supervisor = ProcessId(**record["supervisor"])
            running = record["state"] == RUNNING and record["boot_id"] == boot_id() and is_alive(supervisor)
            if running:
                found.append(Running(int(record["cid"]), str(record["name"]), str(record["enclave_id"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def nitro_enclaves() -> list[Running]:
    """Return what nitro-cli says is running; nothing where there is no nitro-cli.

    Raises: ConfigError if it fails or says what nobody understands.
    """
    program = shutil.which(NITRO_CLI)
    if program is None:
        return []
    argv = [program, "describe-enclaves"]
    try:
        done = subprocess.run(argv, capture_output=True, timeout=NITRO_CLI_TIMEOUT_S, check=True)
        return parse_described(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as exc:
        raise ConfigError(f"{NITRO_CLI} describe-enclaves", "", "it does not say which enclaves run") from exc


def parse_described(output: bytes) -> list[Running]:
    """Return the enclaves of describe-enclaves' JSON. Raises ValueError, KeyError or TypeError. Pure."""
    return [
        Running(int(entry["EnclaveCID"]), str(entry.get("EnclaveName") or ""), str(entry["EnclaveID"]))
        for entry in json.loads(output)
        if entry.get("State", RUNNING) == RUNNING
    ]
