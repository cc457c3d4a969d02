# SPDX-License-Identifier: Apache-2.0
"""The command lines and JSON that nitro-cli and nitro-emu share. Pure.

Source: aws-nitro-enclaves-cli 1.5, src/common/commands_parser.rs and src/common/json_output.rs.
"""

from __future__ import annotations

import json
from typing import Any

from enclavekit_rbuilds.run.model import BackendName, LaunchError, LaunchPlan, RunningEnclave

CONSOLE_BANNER = (b"Connecting to the console", b"Successfully connected to the console")
MAX_JSON_BYTES = 64 * 1024  # what run-enclave prints is some 200 bytes


def launch_arguments(plan: LaunchPlan, cid: int) -> list[str]:
    """Return what follows the program for run-enclave."""
    words = ["run-enclave", "--eif-path", plan.eif, "--memory", str(plan.memory_mib), "--cpu-count", str(plan.cpus)]
    words += ["--enclave-cid", str(cid), "--enclave-name", plan.name]
    if plan.debug or plan.attach:
        words.append("--debug-mode")
    if plan.attach:
        words.append("--attach-console")
    if plan.machine:
        words += ["--machine", plan.machine]
    return words


def console_arguments(enclave_id: str) -> list[str]:
    return ["console", "--enclave-id", enclave_id]


def terminate_arguments(enclave_id: str) -> list[str]:
    return ["terminate-enclave", "--enclave-id", enclave_id]


LIST_ARGUMENTS = ["describe-enclaves"]


def parse_launch(text: bytes, backend: BackendName, debug: bool) -> RunningEnclave:
    """Parse what run-enclave prints. Raises LaunchError."""
    return _parse_enclave(_load(text, backend), backend, state="RUNNING", debug=debug)


def parse_list(text: bytes, backend: BackendName) -> list[RunningEnclave]:
    """Parse what describe-enclaves prints. Raises LaunchError."""
    found = _load(text, backend)
    if not isinstance(found, list):
        raise _unreadable(backend, "it is not an array")
    return [
        _parse_enclave(item, backend, state=str(_get(item, "State", backend)), debug=item.get("Flags") == "DEBUG_MODE")
        for item in found
    ]


def _parse_enclave(item: Any, backend: BackendName, *, state: str, debug: bool) -> RunningEnclave:
    try:
        return RunningEnclave(
            backend=backend,
            name=str(item.get("EnclaveName") or _get(item, "EnclaveID", backend)),  # older nitro-cli has no names
            id=str(_get(item, "EnclaveID", backend)),
            cid=int(_get(item, "EnclaveCID", backend)),
            pid=int(_get(item, "ProcessID", backend)),
            memory_mib=int(_get(item, "MemoryMiB", backend)),
            cpus=int(_get(item, "NumberOfCPUs", backend)),
            debug=debug,
            state=state,
        )
    except (TypeError, ValueError, AttributeError) as exc:
        raise _unreadable(backend, f"a field has another type: {exc}") from exc


def _get(item: Any, key: str, backend: BackendName) -> Any:
    if not isinstance(item, dict) or key not in item:
        raise _unreadable(backend, f"{key} is missing")
    return item[key]


def _load(text: bytes, backend: BackendName) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise _unreadable(backend, str(exc)) from exc


def _unreadable(backend: BackendName, cause: str) -> LaunchError:
    return LaunchError("read", f"the answer of {backend}", cause)


class LaunchOutput:
    """Splits run-enclave's standard output: one JSON object, then (attached) its banner and the console's bytes."""

    def __init__(self) -> None:
        self.json: bytes | None = None
        """The object, once it is whole."""
        self._pending = b""
        self._banner_left = len(CONSOLE_BANNER)

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes and return those of the console among them."""
        if self.json is not None and not self._banner_left:
            return data
        self._pending += data
        if self.json is None:
            # pretty-printed: the first line that is a bare brace ends it
            head, found, rest = self._pending.partition(b"\n}\n")
            if not found:
                if len(self._pending) > MAX_JSON_BYTES:
                    self._pending = self._pending[:MAX_JSON_BYTES]
                return b""
            self.json, self._pending = head + b"\n}", rest
        return self._after_json()

    def _after_json(self) -> bytes:
        while self._banner_left:
            line, found, rest = self._pending.partition(b"\n")
            if not found:
                return b""
            if not line.startswith(CONSOLE_BANNER):
                self._banner_left = 0
                break
            self._banner_left -= 1
            self._pending = rest
        out, self._pending = self._pending, b""
        return out

    def feed_eof(self) -> bytes:
        """Return console bytes that waited for a line's end; without one, all of it is the object."""
        if self.json is None:
            self.json = self._pending
            return b""
        self._banner_left = 0
        out, self._pending = self._pending, b""
        return out
