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
from enclavekit_core.fabric import write_record

from enclavekit_emulator import leftovers, memory_limit
from enclavekit_emulator.enclave_process import EnclaveProcess, spawn
from enclavekit_emulator.id_map import IdMap
from enclavekit_emulator.image import describe_labels, file_identity, measure_image, open_image, open_ramdisks
from enclavekit_emulator.nitro_errors import BOOT_FAILURE, EIF_PARSING, NitroError
from enclavekit_emulator.parent_ports import EXIT_REPORT_PORT, HEARTBEAT_PORT, listen_unix
from enclavekit_emulator.processes import identify
from enclavekit_emulator.root_fs import RootPlan
from enclavekit_emulator.run_request import MIB
from enclavekit_emulator.state import (
    CONTROL_SOCKET,
    NSM_SOCKET,
    ROOT_DIRECTORY,
    EnclaveRecord,
    EnclaveStore,
    EndRecord,
)

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


class Supervisor:
    """Resources of one enclave. `start` and `supervise` use them, `clean_up` releases them, in any state."""

    def __init__(self, store: EnclaveStore, launch: Launch, front: socket.socket) -> None:
        self.store = store
        self.launch = launch
        self.record = launch.record
        self.front = front
        self.process: EnclaveProcess | None = None
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
            self._start()
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

    def _start(self) -> None:
        """Bring the enclave up to where its /init runs. Raises NitroError, Stopped."""
        id_map = self.launch.id_map
        record = self.record
        eif = open_image(record.eif_path)
        identity = file_identity(eif)
        self._make_directories()
        limit_bytes = record.memory_mib * MIB
        self.update(cgroup=memory_limit.create_memory_group(record.enclave_id, limit_bytes))
        root = RootPlan(
            mount_point=os.path.join(self.store.directory(record.enclave_id), ROOT_DIRECTORY),
            size_bytes=limit_bytes,
            cid=record.cid,
            fabric_directory=self.store.fabric_directory(record.cid),
            parent_fabric_directory=self.store.fabric_directory(3),
            nsm_socket=os.path.join(self.store.directory(record.enclave_id), NSM_SOCKET),
            single_user=id_map.is_single,
            extract=open_ramdisks(eif, single_user=id_map.is_single),
        )
        self.process = spawn(root, id_map, self.record.cgroup, limit_bytes)
        self.update(init=identify(self.process.pid))
        if not self.process.memory_is_grouped:
            self.notes.append("no cgroup can be made here: memory is limited per process, not for the whole enclave")
        # PID 1 unpacks the image meanwhile
        measurements = measure_image(eif)
        self.update(measurements=measurements, image=describe_labels(eif))
        self._serve_nsm(measurements)
        namespace, self.console = self.process.wait_until_built()
        if file_identity(eif) != identity:
            raise NitroError(EIF_PARSING, f"cannot run {record.eif_path}: it changed while it was loaded")
        write_record(
            self.store.registry_record(record.cid),
            {
                "cid": record.cid,
                "transport": "fabric",
                "pid_namespace": namespace,
                "enclave_id": record.enclave_id,
            },
        )
        self.process.start_init()

    def _make_directories(self) -> None:
        own = self.store.directory(self.record.enclave_id)
        fabric = self.store.fabric_directory(self.record.cid)
        root = (self.launch.id_map.root_uid, self.launch.id_map.root_gid)
        os.mkdir(os.path.join(own, ROOT_DIRECTORY), 0o755)
        os.mkdir(fabric, 0o755)
        os.mkdir(os.path.join(fabric, "parent"), 0o755)
        self.listeners = {
            "heartbeat": listen_unix(os.path.join(fabric, "parent"), f"{HEARTBEAT_PORT}.sock", 0o666),
            "exit": listen_unix(os.path.join(fabric, "parent"), f"{EXIT_REPORT_PORT}.sock", 0o666),
            "control": listen_unix(own, CONTROL_SOCKET, 0o600),
            # as devtmpfs makes it: for root only, until somebody inside decides otherwise
            "nsm": listen_unix(own, NSM_SOCKET, 0o600, root),
        }
        os.chown(fabric, *root)  # last: from here its owner can put there what it likes

    def _serve_nsm(self, measurements: dict[str, str]) -> None:
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
        if self.process is not None:
            self.process.kill()
            self.process = None
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
