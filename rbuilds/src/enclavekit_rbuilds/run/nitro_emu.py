# SPDX-License-Identifier: Apache-2.0
"""Emulated enclaves of this user, through nitro-emu: nitro-cli's interface and the end of the app besides."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from typing import Any

from enclavekit_core import fabric
from enclavekit_core.exit_report import ExitReport, LastLine

from enclavekit_rbuilds.run.backend import END_PATIENCE_S
from enclavekit_rbuilds.run.failure import NitroFailure
from enclavekit_rbuilds.run.model import AppEnd, BackendName, RunningEnclave
from enclavekit_rbuilds.run.nitro_cli import COMMAND_TIMEOUT_S, NitroCli
from enclavekit_rbuilds.run.store import private_directory


class NitroEmu(NitroCli):
    """See `backend.Backend`."""

    name: BackendName = "nitro-emu"
    meaning = (
        "nitro-emu: emulated on this machine, NOT confidential: whoever controls the machine can read and change "
        "everything in it, and a development root signs its evidence"
    )

    def proxy_environment(self) -> dict[str, str]:
        fabric.ensure_runtime_dir()
        return {fabric.TRANSPORT_VARIABLE: fabric.Transport.FABRIC.value}

    def lock_path(self) -> str:
        return private_directory()

    def failure(self, stderr: str, status: int) -> NitroFailure:
        return replace(super().failure(stderr, status), names_cause=True)

    def end_of(self, enclave: RunningEnclave, patience_s: float = END_PATIENCE_S) -> AppEnd | None:
        argv = [self._program(), "wait", "--enclave-id", enclave.id]
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        if not done.stdout.strip():
            return None  # it prints how the enclave ended; nothing there is a failure of its own
        return AppEnd(status=done.returncode, words=_describe(json.loads(done.stdout)))


def _describe(end: dict[str, Any]) -> tuple[str, ...]:
    """Return the words for what `nitro-emu wait` printed, which has made it printable."""
    lines = tuple(LastLine(**line) for line in end["last_lines"])
    return ExitReport(None, None, None, end["reason"], end["cause"], end["oom"], end["uptime_s"], lines).describe()
