# SPDX-License-Identifier: Apache-2.0
"""Which of the two runs an image here: nitro-cli where the device is, nitro-emu elsewhere, never one for the other."""

from __future__ import annotations

import os
from typing import Protocol

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.run.failure import NitroFailure
from enclavekit_rbuilds.run.model import BACKENDS, AppEnd, BackendName, LaunchPlan, RunningEnclave

END_PATIENCE_S = 2.0  # a report that was sent is on disk within milliseconds
NITRO_DEVICE = "/dev/nitro_enclaves"


class Backend(Protocol):
    """What launching, listing and ending need of either."""

    @property
    def name(self) -> BackendName: ...

    @property
    def meaning(self) -> str:
        """One line: what an enclave of it is worth."""

    def launch_argv(self, plan: LaunchPlan, cid: int) -> list[str]: ...

    def proxy_environment(self) -> dict[str, str]:
        """Return what pf-proxy needs in its environment beside ours; makes the emulator's directories."""

    def lock_path(self) -> str:
        """Return the file or directory to lock while one is launched."""

    def failure(self, stderr: str, status: int) -> NitroFailure:
        """Return what a failed command meant, its error log read."""

    def running(self) -> list[RunningEnclave]:
        """Return what runs. Raises LaunchError."""

    def terminate(self, enclave: RunningEnclave) -> None:
        """End an enclave. Raises LaunchError."""

    def console(self, enclave: RunningEnclave) -> int:
        """Show the console on our own standard output until it ends. Raises LaunchError."""

    def end_of(self, enclave: RunningEnclave, patience_s: float = END_PATIENCE_S) -> AppEnd | None:
        """Return how the app of an enclave that has ended, or is about to, exited; None if it is not told.

        Args: patience_s: how long to wait for a report that is on its way.
        """


def choose_backend(named: str | None) -> Backend:
    """Return the named backend, or the one for this machine. Raises InputError."""
    from enclavekit_rbuilds.run.programs import find_program

    has_device = os.path.exists(NITRO_DEVICE)
    name = decide_backend(
        named,
        has_device=has_device,
        has_cli=find_program("nitro-cli") is not None,
        has_emulator=find_program("nitro-emu") is not None,
    )
    return open_backend(name)


def open_backend(name: BackendName) -> Backend:
    from enclavekit_rbuilds.run.nitro_cli import NitroCli
    from enclavekit_rbuilds.run.nitro_emu import NitroEmu

    return NitroCli() if name == "nitro-cli" else NitroEmu()


def usable_backends(named: str | None) -> list[Backend]:
    """Return all backends that may have enclaves here, or the named one. Raises InputError."""
    from enclavekit_rbuilds.run.programs import find_program

    if named is not None:
        return [choose_backend(named)]
    names: list[BackendName] = []
    if os.path.exists(NITRO_DEVICE) and find_program("nitro-cli") is not None:
        names.append("nitro-cli")
    if find_program("nitro-emu") is not None:
        names.append("nitro-emu")
    if not names:
        return [choose_backend(None)]
    return [open_backend(name) for name in names]


def decide_backend(named: str | None, *, has_device: bool, has_cli: bool, has_emulator: bool) -> BackendName:
    """Decide. Raises InputError. Pure."""
    if named is not None:
        name = next((name for name in BACKENDS if name == named), None)
        if name is None:
            raise InputError("use backend", named, f"it is not one of {', '.join(BACKENDS)}")
        if not (has_cli if name == "nitro-cli" else has_emulator):
            raise InputError("use backend", named, f"{named} is not installed")
        return name
    if has_device:
        if has_cli:
            return "nitro-cli"
        # an emulated enclave where a confidential one was possible would be a silent loss
        raise InputError(
            "choose a backend",
            "for this host",
            f"it has {NITRO_DEVICE} but no nitro-cli; install aws-nitro-enclaves-cli, or say --backend nitro-emu",
        )
    if has_emulator:
        return "nitro-emu"
    raise InputError(
        "choose a backend", "for this host", f"it has no {NITRO_DEVICE}, and nitro-emu is not installed; rbuilds doctor"
    )
