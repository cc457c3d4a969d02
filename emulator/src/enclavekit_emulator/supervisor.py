# SPDX-License-Identifier: Apache-2.0
"""The one process that owns an emulated enclave: starts it, serves its ports, and removes every trace at its end.

It is single-threaded until PID 1 exists (it forks), and its main thread lives as long as it does (PID 1 is killed with
that thread). Whoever started it hears on a socket: one line of JSON when it has taken over the enclave's record, one
with the outcome of the boot.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
from dataclasses import dataclass
from typing import Any

from enclavekit_core.errors import EnclavekitError
from enclavekit_core.processes import identify

from enclavekit_emulator import leftovers
from enclavekit_emulator.boot import boot_process, boot_qemu
from enclavekit_emulator.enclave_process import EnclaveProcess
from enclavekit_emulator.id_map import IdMap
from enclavekit_emulator.nitro_errors import BOOT_FAILURE, NitroError
from enclavekit_emulator.qemu_command import Announcement
from enclavekit_emulator.qemu_machine import QemuMachine
from enclavekit_emulator.state import EnclaveRecord, EnclaveStore, EndRecord

BOOTS = {"process": boot_process, "qemu": boot_qemu, "qemu-nitro": boot_qemu}
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)  # nitro-cli's enclave process, too


class Stopped(Exception):
    """A signal asked the supervisor to end."""


@dataclass(frozen=True, slots=True)
class Launch:
    """All that a supervisor is told."""

    record: EnclaveRecord
    id_map: IdMap
    boot_timeout_s: float
    attach_console: bool = False
    """Whoever started it is about to read the console: an enclave that ends at once waits for that."""
    faults: tuple[str, ...] = ()
    """Names of NSM misbehaviours, for tests of relying parties."""
    announcement: Announcement | None = None
    """How a virtual machine announces its devices; None: as the image's kernel needs it."""


class Supervisor:
    """Resources of one enclave. `start` and `supervise` use them, `clean_up` releases them, in any state."""

    def __init__(self, store: EnclaveStore, launch: Launch, front: socket.socket) -> None:
        self.store = store
        self.launch = launch
        self.record = launch.record
        self.front = front
        self.machine: EnclaveProcess | QemuMachine | None = None
        self.console = -1
        self.listeners: dict[str, socket.socket] = {}
        self.notes = [launch.id_map.note] if launch.id_map.note else []
        self.end: EndRecord | None = None
        self._nsm: Any = None

    def run(self) -> None:
        """Start the enclave and stay until it ends. Failures of the boot are told to the front."""
        from enclavekit_emulator.supervision import supervise

        for number in STOP_SIGNALS:
            signal.signal(number, _raise_stopped)
        try:
            self.update(supervisor=identify(os.getpid()))
            self.tell({"claimed": True})
            BOOTS[self.record.machine](self)
            asyncio.run(supervise(self))
        except NitroError as exc:
            self.clean_up()
            self.tell({"error": {"number": exc.number, "message": exc.message, "details": exc.details}})
        except EnclavekitError as exc:
            # the development root, for example
            self.clean_up()
            self.tell(_boot_error(f"cannot start enclave {self.record.name}: {exc}"))
        except Stopped:
            self.clean_up()
            self.tell(_boot_error("cannot start the enclave: it was told to stop"))
        except Exception as exc:
            # the outermost: a bug of ours ends in one line for the user and no enclave left
            self.clean_up()
            self.tell(_boot_error(f"cannot start the enclave: {type(exc).__name__}: {exc}"))
            raise
        finally:
            self.clean_up()

    def update(self, **changes: Any) -> None:
        """Change the record, on disk too."""
        self.record = dataclasses.replace(self.record, **changes)
        self.store.write(self.record)

    def tell(self, message: dict[str, Any]) -> None:
        """Send one line to whoever ran run-enclave; it may have left."""
        with contextlib.suppress(OSError):
            self.front.sendall(json.dumps(message).encode() + b"\n")

    def serve_nsm(self, measurements: dict[str, str]) -> None:
        """Let the NSM answer on the listener made for it, with the PCRs of this very image."""
        from enclavekit_emulator.boot_pcrs import boot_pcrs
        from enclavekit_emulator.identity import emulator_state_dir
        from enclavekit_emulator.nsm_server import serve_nsm
        from enclavekit_emulator.nsm_service import NsmService

        service = NsmService.for_enclave(
            boot_pcrs(measurements, self.record.enclave_id, debug_mode=self.record.debug_mode),
            self.record.enclave_id,
            emulator_state_dir(),
            faults=self.launch.faults,
        )
        self._nsm = serve_nsm(self.listeners.pop("nsm"), service)

    def clean_up(self) -> None:
        """End every process of the enclave and remove all that exists of it outside its namespaces; idempotent."""
        for number in STOP_SIGNALS:
            with contextlib.suppress(ValueError):
                signal.signal(number, signal.SIG_IGN)
        if self.machine is not None:
            self.machine.kill()
            self.machine = None
        if self.console >= 0:
            os.close(self.console)
            self.console = -1
        if self._nsm is not None:
            self._nsm.close()
            self._nsm = None
        for listener in self.listeners.values():
            listener.close()
        self.listeners = {}
        if os.path.isdir(self.store.directory(self.record.enclave_id)):
            if self.end is not None:
                self.store.write_end(self.end)
            leftovers.remove_traces(self.store, self.record)


def _raise_stopped(number: int, _frame: object) -> None:
    raise Stopped(signal.Signals(number).name)


def _boot_error(message: str) -> dict[str, Any]:
    return {"error": {"number": BOOT_FAILURE, "message": message, "details": []}}
