# SPDX-License-Identifier: Apache-2.0
"""The unit `runtime-config`: takes this deployment's values from the parent once, measures them, and hands them on.

    python3 -I -m enclavekit_enclave_init.runtime_config

A process of its own, not PID 1: it parses what an untrusted parent sends. It ends with 0 when the values are checked,
PCR16 is extended with them and locked, and both files are written, in this order: no unit that requires it ever sees
values that are not in PCR16. Anything else than a refused value is the end of it, and of the units that require it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct

import msgspec
from enclavekit_core import runtime_config as rules
from enclavekit_core.address import CID_ANY, CID_PARENT, VsockAddress
from enclavekit_core.cli import run_and_exit
from enclavekit_core.errors import ConfigError, EnclavekitError, InputError, RemoteProtocolError, describe_cause
from enclavekit_core.logs import configure, get_logger
from enclavekit_core.streams import Listener
from enclavekit_nsm.client import NsmClient

LENGTH = struct.Struct(">I")
CONNECTION_TIMEOUT_S = 30.0  # of one attempt; how long the parent takes to make one is its own affair

log = get_logger("runtime-config")


def read_schema(path: str) -> rules.Schema:
    """Return the image's schema. Raises InputError, ConfigError."""
    try:
        with open(path, "rb") as source:
            schema = msgspec.json.decode(source.read(), type=rules.Schema)
    except OSError as exc:
        raise InputError("read", path, describe_cause(exc)) from exc
    except msgspec.MsgspecError as exc:
        raise ConfigError(path, "", str(exc)) from exc
    rules.check_schema(schema, path)
    return schema


def receive_message(sock: socket.socket) -> bytes:
    """Return one length-prefixed message. Raises RemoteProtocolError, OSError."""
    size = LENGTH.unpack(_receive(sock, LENGTH.size))[0]
    if size > rules.MAX_MESSAGE_BYTES:
        raise RemoteProtocolError(f"cannot take a message of {size} bytes: the limit is {rules.MAX_MESSAGE_BYTES}")
    return _receive(sock, size)


def _receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise RemoteProtocolError(f"cannot take a message: it ends after {len(data)} of {count} bytes")
        data += chunk
    return data


def parse_choice(message: bytes, schema: rules.Schema) -> dict[str, rules.Value]:
    """Return the values that the parent chose, defaults included. Raises ConfigError. Pure."""
    source = "the runtime configuration"
    try:
        given = json.loads(message, object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(source, "", "it is not JSON" if not isinstance(exc, _Duplicate) else str(exc)) from exc
    return rules.resolve_values(schema, given, source)


class _Duplicate(ValueError):
    pass


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    names = [name for name, _ in pairs]
    if len(set(names)) != len(names):
        raise _Duplicate("a name is there twice")
    return dict(pairs)


def measure(values: dict[str, rules.Value], nsm: NsmClient) -> bytes:
    """Extend PCR16 with the values and lock it; return its value. Raises DeviceError, InputError."""
    before = nsm.describe_pcr(rules.PCR_INDEX)
    if before.lock or any(before.data):
        raise InputError("measure", "the runtime configuration", "PCR16 has been used before")
    value = nsm.extend_pcr(rules.PCR_INDEX, rules.pcr_data(values))
    nsm.lock_pcr(rules.PCR_INDEX)
    return value


def hand_on(values: dict[str, rules.Value], values_path: str, environment_path: str) -> None:
    """Write the files that other units read. Raises InputError."""
    for path, content in (
        (values_path, rules.encode_values(values)),
        (environment_path, rules.encode_environment(values)),
    ):
        try:
            os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with open(descriptor, "wb") as out:
                out.write(content)
        except OSError as exc:
            raise InputError("write", path, describe_cause(exc)) from exc


def receive_values(listener: Listener, schema: rules.Schema) -> tuple[socket.socket, dict[str, rules.Value]]:
    """Wait for the parent's choice; refused ones are answered and waited past. Returns who waits for the answer."""
    while True:
        try:
            sock, peer = listener.accept()
        except OSError:
            continue
        try:
            if peer.cid != CID_PARENT:
                raise ConfigError("the runtime configuration", "", "it comes from another enclave")
            sock.settimeout(CONNECTION_TIMEOUT_S)
            return sock, parse_choice(receive_message(sock), schema)
        except (OSError, EnclavekitError) as exc:
            log.warning("refused a runtime configuration", peer=peer.text, cause=str(exc))
            _answer(sock, {"error": str(exc)})
            sock.close()


def _answer(sock: socket.socket, answer: dict[str, str]) -> None:
    message = json.dumps(answer).encode()
    try:
        sock.sendall(LENGTH.pack(len(message)) + message)
    except OSError:
        pass  # the values are in force whether or not the parent hears of it


def run(args: argparse.Namespace) -> int:
    schema = read_schema(args.schema)
    with Listener(VsockAddress(CID_ANY, rules.PORT)) as listener:
        sock, values = receive_values(listener, schema)
    try:
        with NsmClient.open() as nsm:
            value = measure(values, nsm)
        hand_on(values, args.values, args.environment)
    except EnclavekitError as exc:
        _answer(sock, {"error": str(exc)})
        raise
    log.info("took the runtime configuration", settings=len(values), pcr16=value.hex())
    _answer(sock, {"pcr16": value.hex()})
    sock.close()
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="runtime-config", description=__doc__.partition("\n")[0])
    parser.add_argument("--schema", metavar="FILE", default=rules.SCHEMA_PATH)
    parser.add_argument("--values", metavar="FILE", default=rules.VALUES_PATH, help="JSON, written")
    parser.add_argument("--environment", metavar="FILE", default=rules.ENVIRONMENT_PATH, help="NAME=value, written")
    args = parser.parse_args()
    configure()
    return run(args)


if __name__ == "__main__":
    run_and_exit("runtime-config", main)
