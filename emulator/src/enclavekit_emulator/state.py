# SPDX-License-Identifier: Apache-2.0
"""What is known about each emulated enclave, on disk, so that every command is a process of its own.

Layout below the runtime directory:

    enclaves/.lock             flock(2): held while one is started or leftovers are removed
    enclaves/ID/state.json     EnclaveRecord; written whole or not at all, by the enclave's supervisor
    enclaves/ID/control.sock   terminate, wait, console (see `control`)
    enclaves/ID/nsm.sock       the enclave's /dev/nsm
    enclaves/ID/root           empty directory; the root is mounted on it in the enclave's own mount namespace
    enclaves/ID/console.log    debug mode only
    ended/ID.json              EndRecord of the last MAX_ENDED_RECORDS enclaves that were up, for `wait`
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from enclavekit_core.processes import ProcessId, boot_id, is_alive

STATE_FILE = "state.json"
CONTROL_SOCKET = "control.sock"
NSM_SOCKET = "nsm.sock"
ROOT_DIRECTORY = "root"
CONSOLE_FILE = "console.log"
MAX_ENDED_RECORDS = 32  # enough for whoever asks a moment late; they are a few hundred bytes each
FIRST_CHOSEN_CID = 16  # where the hypervisor starts, too


@dataclass(frozen=True, slots=True)
class EnclaveRecord:
    enclave_id: str
    name: str
    cid: int
    slot: int
    """Which block of host ids it has, see `id_map`; unique among running enclaves."""
    memory_mib: int
    cpu_ids: tuple[int, ...]
    debug_mode: bool
    eif_path: str
    boot_id: str
    """Of the machine: a record of another boot describes nothing that still exists."""
    supervisor: ProcessId
    machine: str = "process"
    """process, qemu or qemu-nitro."""
    state: str = "EMPTY"
    """EMPTY (starting), RUNNING, TERMINATING: nitro-cli's words."""
    init: ProcessId | None = None
    """PID 1 of the enclave as the host sees it."""
    cgroup: str | None = None
    measurements: dict[str, str] | None = None
    image: dict[str, Any] = dataclasses.field(default_factory=dict)
    """ImageName, ImageVersion and Metadata, as far as the image has them."""

    def is_alive(self) -> bool:
        """Say whether its supervisor still runs."""
        return self.boot_id == boot_id() and is_alive(self.supervisor)


@dataclass(frozen=True, slots=True)
class EndRecord:
    """How an enclave ended."""

    enclave_id: str
    name: str
    cid: int
    reason: str
    exit_status: int | None = None
    """What the app exited with, 0..255; None if it was not reported or a signal ended it."""
    signal: int | None = None
    unit: str | None = None
    cause: str = ""
    """Of enclavekit_core.exit_report.CAUSES, as PID 1 said; empty if it did not."""
    oom: bool = False
    uptime_s: float | None = None
    last_lines: list[dict[str, str]] = dataclasses.field(default_factory=list)
    """Objects with unit, stream and text, as PID 1 reported them: the last ones of its log."""

    def command_status(self) -> int:
        """Return the exit status for a command that waited: the app's, 128+n for a signal, 255 if nobody knows."""
        if self.exit_status is not None:
            return self.exit_status
        return 128 + self.signal if self.signal is not None else 255

    def to_json(self) -> dict[str, Any]:
        """Return what `wait` prints, in the words of the exit report."""
        return {
            "enclave_id": self.enclave_id,
            "name": self.name,
            "cid": self.cid,
            "unit": self.unit,
            "exit_status": self.exit_status,
            "signal": self.signal,
            "reason": self.reason,
            "cause": self.cause,
            "oom": self.oom,
            "uptime_s": self.uptime_s,
            "last_lines": self.last_lines,
        }


class EnclaveStore:
    """The records of one runtime directory."""

    def __init__(self, runtime_dir: str) -> None:
        """`runtime_dir` exists and is private to this user: see `fabric.ensure_runtime_dir`."""
        self.runtime_dir = runtime_dir
        self.top = os.path.join(runtime_dir, "enclaves")
        self.ended = os.path.join(runtime_dir, "ended")
        os.makedirs(self.top, mode=0o700, exist_ok=True)
        os.makedirs(self.ended, mode=0o700, exist_ok=True)

    def directory(self, enclave_id: str) -> str:
        return os.path.join(self.top, enclave_id)

    def fabric_directory(self, cid: int) -> str:
        return os.path.join(self.runtime_dir, "fabric", str(cid))

    def registry_record(self, cid: int) -> str:
        return os.path.join(self.runtime_dir, "registry", f"{cid}.json")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of the runtime directory; a fork inside does not keep it beyond this block."""
        handle = os.open(os.path.join(self.top, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)

    def enclave_ids(self) -> list[str]:
        """Return the ids of all directories, those without a record included, oldest first."""
        found = []
        for entry in os.scandir(self.top):
            with contextlib.suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    found.append((entry.stat(follow_symlinks=False).st_ctime_ns, entry.name))
        return [name for _, name in sorted(found)]

    def read(self, enclave_id: str) -> EnclaveRecord | None:
        """Return a record; None if there is none, or none that can be read."""
        try:
            with open(os.path.join(self.directory(enclave_id), STATE_FILE), encoding="utf-8") as source:
                raw = json.load(source)
            raw["cpu_ids"] = tuple(raw["cpu_ids"])
            raw["supervisor"] = ProcessId(**raw["supervisor"])
            raw["init"] = ProcessId(**raw["init"]) if raw["init"] else None
            return EnclaveRecord(**raw)
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def write(self, record: EnclaveRecord) -> None:
        _write_json(os.path.join(self.directory(record.enclave_id), STATE_FILE), dataclasses.asdict(record))

    def running(self) -> list[EnclaveRecord]:
        """Return the records of all enclaves whose supervisor runs, oldest first."""
        records = (self.read(enclave_id) for enclave_id in self.enclave_ids())
        return [record for record in records if record is not None and record.is_alive()]

    def is_cid_taken(self, cid: int) -> bool:
        return os.path.lexists(self.fabric_directory(cid)) or os.path.lexists(self.registry_record(cid))

    def choose_cid(self) -> int:
        """Return the lowest free CID; call it under the lock."""
        cid = FIRST_CHOSEN_CID
        while self.is_cid_taken(cid):
            cid += 1
        return cid

    def write_end(self, record: EndRecord) -> None:
        """Keep how an enclave ended, and forget the oldest beyond MAX_ENDED_RECORDS."""
        _write_json(os.path.join(self.ended, f"{record.enclave_id}.json"), dataclasses.asdict(record))
        for name in self._ended_names()[:-MAX_ENDED_RECORDS]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.ended, name))

    def find_end(self, *, enclave_id: str = "", name: str = "") -> EndRecord | None:
        """Return how the enclave with that id, or the last one with that name, ended."""
        for file_name in reversed(self._ended_names()):
            try:
                with open(os.path.join(self.ended, file_name), encoding="utf-8") as source:
                    record = EndRecord(**json.load(source))
            except (FileNotFoundError, ValueError, TypeError):
                continue
            if (enclave_id and record.enclave_id == enclave_id) or (name and record.name == name):
                return record
        return None

    def _ended_names(self) -> list[str]:
        found = []
        for entry in os.scandir(self.ended):
            with contextlib.suppress(FileNotFoundError):
                if entry.name.endswith(".json"):
                    found.append((entry.stat().st_mtime_ns, entry.name))
        return [name for _, name in sorted(found)]


def _write_json(path: str, value: dict[str, Any]) -> None:
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as out:
        json.dump(value, out)
    os.replace(temporary, path)
