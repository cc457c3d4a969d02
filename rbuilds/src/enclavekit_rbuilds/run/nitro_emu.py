# SPDX-License-Identifier: Apache-2.0
"""Emulated enclaves of this user, through nitro-emu: nitro-cli's interface and the end of the app besides."""

from __future__ import annotations

import subprocess
from dataclasses import replace

from enclavekit_core import fabric

from enclavekit_rbuilds.run.failure import NitroFailure
from enclavekit_rbuilds.run.model import BackendName, RunningEnclave
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

    def exit_status(self, enclave: RunningEnclave) -> int | None:
        argv = [self._program(), "wait", "--enclave-id", enclave.id]
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        # it prints how the enclave ended; nothing there is a failure of its own
        return done.returncode if done.stdout.strip() else None
