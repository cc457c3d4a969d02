# SPDX-License-Identifier: Apache-2.0
"""The control socket of an enclave's supervisor, both ends.

One request per connection, a line of JSON: {"do": "terminate" | "wait" | "console"}. The answer is a line of JSON;
after that of `console` the raw stream follows until the enclave ends. The socket lies in a directory that only the
user who started the enclave can enter.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from enclavekit_emulator.nitro_errors import NitroError
from enclavekit_emulator.state import CONTROL_SOCKET, EnclaveRecord, EnclaveStore

MAX_LINE_BYTES = 4096
CONNECT_TIMEOUT_S = 3.0  # nitro-cli waits as long for its enclave process
CHUNK_BYTES = 64 * 1024


class ControlClient:
    """One request to the supervisor of one enclave."""

    def __init__(self, store: EnclaveStore, record: EnclaveRecord, verb: str) -> None:
        """Send the request. Raises NitroError 39 if the supervisor cannot be reached."""
        self._name = record.name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.settimeout(CONNECT_TIMEOUT_S)
            handle = os.open(store.directory(record.enclave_id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._socket.connect(f"/proc/self/fd/{handle}/{CONTROL_SOCKET}")
            finally:
                os.close(handle)
            self._socket.sendall(json.dumps({"do": verb}).encode() + b"\n")
            self._socket.settimeout(None)
        except OSError as exc:
            self._socket.close()
            cause = (exc.strerror or str(exc)).lower()
            raise NitroError(39, f"cannot reach the process of enclave {record.name}: {cause}") from exc
        self._rest = b""

    def read_answer(self, timeout_s: float | None = None) -> dict[str, Any]:
        """Wait for the answer. Raises NitroError 38 if the supervisor ends without one, TimeoutError."""
        self._socket.settimeout(timeout_s)
        line = self._rest
        while b"\n" not in line:
            try:
                chunk = self._socket.recv(CHUNK_BYTES)
            except ConnectionResetError:
                chunk = b""
            if not chunk:
                raise NitroError(38, f"cannot hear from enclave {self._name}: its process has ended")
            line += chunk
        answer, _, self._rest = line.partition(b"\n")
        value = json.loads(answer)
        if not isinstance(value, dict):
            raise NitroError(38, f"cannot understand the process of enclave {self._name}")
        return value

    def read_stream(self, timeout_s: float | None) -> bytes:
        """Return the next bytes of a stream, empty at its end. Raises TimeoutError."""
        if self._rest:
            chunk, self._rest = self._rest, b""
            return chunk
        self._socket.settimeout(timeout_s)
        try:
            return self._socket.recv(CHUNK_BYTES)
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        self._socket.close()
