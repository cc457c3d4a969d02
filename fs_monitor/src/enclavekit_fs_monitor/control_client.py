# SPDX-License-Identifier: Apache-2.0
"""`fs-monitor status` and `fs-monitor hash`: ask the running service over its socket."""

from __future__ import annotations

import http.client
import json
import os
import socket
import sys
import time
import urllib.parse
from typing import Any

from enclavekit_core.address import UnixAddress, parse_address
from enclavekit_core.errors import ConfigError, EnclavekitError, InputError, RemoteProtocolError, TransportError
from enclavekit_core.streams import connect

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 300.0  # the digest of a directory of a million files takes a while
RETRY_S = 0.2  # while the service is starting


class NotClosedError(EnclavekitError):
    """There is no hash of a file now: somebody writes to it, or it cannot be read."""


class NotThereError(InputError):
    """No such file is watched now; it may come."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, sock: socket.socket) -> None:
        super().__init__("fs-monitor")
        self.sock = sock


def ask(address: str, route: str, query: dict[str, str] | None = None) -> Any:
    """Return the answer of the service at `address`.

    Raises: TransportError if it does not answer, InputError for what it does not have, EnclavekitError otherwise.
    """
    parsed = parse_address(address, "unix")
    if not isinstance(parsed, UnixAddress):
        raise ConfigError("--socket", "", "it is not a unix:// address")
    sock = connect(parsed, timeout_s=CONNECT_TIMEOUT_S)
    sock.settimeout(ANSWER_TIMEOUT_S)
    connection = _Connection(sock)
    try:
        text = urllib.parse.urlencode(query or {}, errors="surrogateescape")
        connection.request("GET", f"{route}?{text}")
        answer = connection.getresponse()
        status, body = answer.status, answer.read()
    except http.client.HTTPException as exc:
        raise RemoteProtocolError(f"cannot ask {address}: it does not speak HTTP") from exc
    except OSError as exc:
        raise TransportError("ask", address, exc) from exc
    finally:
        connection.close()
    if route == "/metrics":
        return body.decode("utf-8", "replace")
    try:
        fields = json.loads(body)
    except ValueError as exc:
        raise RemoteProtocolError(f"cannot ask {address}: its answer is not JSON") from exc
    if status == 404 and "reason" in fields:
        kind = NotThereError if fields["may_come"] else InputError
        raise kind("find a hash of", ascii((query or {}).get("path", ""))[1:-1], fields["reason"])
    if status == 409:
        raise NotClosedError(fields["error"])
    if status != 200:
        raise EnclavekitError(str(fields.get("error", f"cannot ask {address}: status {status}")))
    return fields


def show_status(address: str, *, as_json: bool, wait: bool) -> int:
    """Print what the service says about itself; with `wait`, once it is ready. Returns 0 if it is ready, else 1."""
    fields = _wait_until_ready(address) if wait else ask(address, "/status")
    if as_json:
        print(json.dumps(fields, indent=2))
    else:
        _print_status(fields)
    return 0 if fields["ready"] else 1


def show_hash(address: str, path: str, *, as_json: bool, wait: bool) -> None:
    """Print the hash of a file, or the digest of a directory; with `wait`, once it has one."""
    fields = (_wait_for_hash if wait else _ask_hash)(address, os.path.abspath(path))
    if as_json:
        print(json.dumps(fields, indent=2))
    else:
        # as sha3sum writes it: a path with a newline or a backslash is escaped, and a backslash before the line says so
        raw = os.fsencode(fields["path"])
        escaped = raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
        mark = b"\\" if escaped != raw else b""
        sys.stdout.flush()
        sys.stdout.buffer.write(mark + fields["sha3_512"].encode("ascii") + b"  " + escaped + b"\n")


def _ask_hash(address: str, path: str) -> Any:
    return ask(address, "/hash", {"path": path})


def _wait_for_hash(address: str, path: str) -> Any:
    while True:
        try:
            return _ask_hash(address, path)
        except (NotClosedError, NotThereError):
            time.sleep(RETRY_S)


def _wait_until_ready(address: str) -> Any:
    while True:
        try:
            fields = ask(address, "/status", {"wait": "ready"})
            if fields["ready"]:
                return fields
        except TransportError:
            time.sleep(RETRY_S)  # not there yet, or it starts again


def _print_status(fields: Any) -> None:
    files = ", ".join(f"{count} {state}" for state, count in fields["files"].items() if count)
    print(f"{'ready' if fields['ready'] else 'not ready'}: {files or 'no files'}")
    for root in fields["roots"]:
        how = "scanned every few seconds" if root["blind"] else f"{root['watches']} watches"
        state = how if root["present"] else "gone, waiting for it"
        too_long = f", {root['too_long']} paths TOO LONG TO HASH" if root["too_long"] else ""
        counts = f"{root['scans']} scans, {root['overflows']} overflows{too_long}"
        print(f"root {ascii(root['path'])[1:-1]}: {state}, {counts}")
    bus, queue = fields["bus"], fields["queue"]
    problem = f", {bus['error']}" if bus["error"] else ""
    print(f"bus {bus['url']}: {'connected' if bus['connected'] else 'away'}, {bus['to_write']} to write{problem}")
    print(f"queue: {queue['waiting']} to hash, the oldest change {fields['lag']['oldest_s']:.1f} s ago")
    ignore = fields["ignore"]
    error = f", NOT IN USE: {ignore['error']}" if ignore["error"] else ""
    print(f"ignore file {ascii(ignore['file'])[1:-1]}: {ignore['patterns']} patterns{error}")
    for failed in fields["failed"]:
        print(f"no hash of {ascii(failed['path'])[1:-1]}: {failed['state']}, {failed['attempts']} attempts")
