# SPDX-License-Identifier: Apache-2.0
"""Give an enclave the values of this deployment, once, after its start; it checks, measures and locks them itself."""

from __future__ import annotations

import json
import socket
import struct
import time

import yaml
from enclavekit_core.address import VsockAddress
from enclavekit_core.errors import ConfigError, InputError, TransportError, describe_cause
from enclavekit_core.runtime_config import MAX_MESSAGE_BYTES, PORT
from enclavekit_core.streams import connect

LENGTH = struct.Struct(">I")
WAIT_S = 60.0  # from the heartbeat until the unit listens: under a second, some seconds in a translated machine
ANSWER_TIMEOUT_S = 60.0
RETRY_S = 0.1


def read_values(path: str) -> dict[str, object]:
    """Return the map in a YAML or JSON file. Raises InputError, ConfigError."""
    try:
        with open(path, "rb") as source:
            text = source.read(MAX_MESSAGE_BYTES + 1)
    except OSError as exc:
        raise InputError("read", path, describe_cause(exc)) from exc
    try:
        values = yaml.safe_load(text) if len(text) <= MAX_MESSAGE_BYTES else None
    except (yaml.YAMLError, RecursionError) as exc:
        raise ConfigError(path, "", "not YAML") from exc
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(path, "", "it is not a map of names to values")
    return values


def give_values(cid: int, values: dict[str, object], wait_s: float = WAIT_S) -> str:
    """Send the values to enclave `cid` and return its PCR16 (hex). Raises InputError with the enclave's reason."""
    message = json.dumps(values).encode()
    with _connect(VsockAddress(cid, PORT), wait_s) as sock:
        sock.settimeout(ANSWER_TIMEOUT_S)
        try:
            sock.sendall(LENGTH.pack(len(message)) + message)
            size = LENGTH.unpack(_receive(sock, LENGTH.size))[0]
            answer = json.loads(_receive(sock, min(size, MAX_MESSAGE_BYTES)))
        except (OSError, ValueError, EOFError) as exc:
            cause = describe_cause(exc) if isinstance(exc, OSError) else "it did not answer as it should"
            raise InputError("configure", f"enclave {cid}", cause) from exc
    if not isinstance(answer, dict) or not isinstance(answer.get("pcr16"), str):
        reason = str(answer.get("error") if isinstance(answer, dict) else answer)[:1000]
        raise InputError("configure", f"enclave {cid}", f"it refuses the values: {reason}")
    return str(answer["pcr16"])


def _connect(address: VsockAddress, wait_s: float) -> socket.socket:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return connect(address)
        except TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(RETRY_S)


def _receive(sock: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:  # not MSG_WAITALL, which does not wait on a socket with a timeout
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    return bytes(data)
