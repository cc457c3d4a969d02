# SPDX-License-Identifier: Apache-2.0
"""`pf-proxy status` and `pf-proxy metrics`: ask running proxies over their sockets."""

from __future__ import annotations

import http.client
import os
import socket
import sys
import time

import msgspec
from enclavekit_core.address import UnixAddress, parse_address
from enclavekit_core.errors import ConfigError, RemoteProtocolError, TransportError
from enclavekit_core.streams import connect

from enclavekit_pf_proxy.status.model import Status
from enclavekit_pf_proxy.status.places import find_sockets
from enclavekit_pf_proxy.status.text import format_status

TIMEOUT_S = 10.0
CLEAR = "\x1b[H\x1b[2J"  # cursor home, clear screen: ECMA-48


class _Connection(http.client.HTTPConnection):
    def __init__(self, sock: socket.socket) -> None:
        super().__init__("pf-proxy")
        self.sock = sock


def get(address: UnixAddress, route: str) -> bytes:
    """Return the page of the proxy at `address`. Raises TransportError, RemoteProtocolError."""
    sock = connect(address, timeout_s=TIMEOUT_S)
    connection = _Connection(sock)
    try:
        connection.request("GET", route)
        answer = connection.getresponse()
        body = answer.read()
    except http.client.HTTPException as exc:
        raise RemoteProtocolError(f"cannot ask {address}: it does not speak HTTP") from exc
    except OSError as exc:
        raise TransportError("ask", address, exc) from exc
    finally:
        connection.close()
    if answer.status != 200:
        raise RemoteProtocolError(f"cannot ask {address}: status {answer.status}")
    return body


def get_status(address: UnixAddress, *, with_connections: bool) -> Status:
    body = get(address, "/status?connections" if with_connections else "/status")
    try:
        return msgspec.json.decode(body, type=Status)
    except msgspec.DecodeError as exc:
        raise RemoteProtocolError(f"cannot ask {address}: {exc}") from exc


def collect(given: str, *, with_connections: bool) -> list[Status]:
    """Return the status of the proxy at `given`, or of all of this user's. Raises TransportError if there is none."""
    if given:
        return [get_status(parse_socket(given), with_connections=with_connections)]
    found = []
    for address in find_sockets():
        try:
            found.append(get_status(address, with_connections=with_connections))
        except TransportError as exc:
            if isinstance(exc.__cause__, ConnectionRefusedError):
                remove_stale(address)
            elif not isinstance(exc.__cause__, FileNotFoundError):
                raise
    if not found:
        raise TransportError("ask", "pf-proxy", "no `pf-proxy run` of this user is running")
    return found


def show_status(given: str, *, as_json: bool, with_connections: bool, interval_s: float) -> None:
    """Print it; with an interval, again and again until interrupted."""
    before: dict[int, Status] = {}
    asked_at = time.monotonic()
    while True:
        found = collect(given, with_connections=with_connections)
        now = time.monotonic()
        if as_json:
            print(msgspec.json.encode({"proxies": found}).decode(), flush=True)
        else:
            lines = [line for one in found for line in format_status(one, before.get(one.pid), now - asked_at)]
            clear = CLEAR if interval_s and sys.stdout.isatty() else ""
            print(clear + "\n".join(lines), flush=True)
        if not interval_s:
            return
        before, asked_at = {one.pid: one for one in found}, now
        time.sleep(interval_s)


def show_metrics(given: str) -> None:
    """Print the metrics of one proxy. Raises ConfigError if it is not clear which."""
    if given:
        address = parse_socket(given)
    else:
        running = [one.pid for one in collect("", with_connections=False)]
        if len(running) > 1:
            raise ConfigError("--socket", "", f"there are {len(running)} running, say which")
        address = next(one for one in find_sockets() if one.path.endswith(f"/{running[0]}.sock"))
    print(get(address, "/metrics").decode("utf-8", "replace"), end="")


def parse_socket(text: str) -> UnixAddress:
    address = UnixAddress(os.path.abspath(text)) if "://" not in text else parse_address(text, "unix")
    if not isinstance(address, UnixAddress):
        raise ConfigError("--socket", "", "it is not a unix:// address")
    return address


def remove_stale(address: UnixAddress) -> None:
    """Whoever had it was killed."""
    try:
        os.unlink(address.path)
    except FileNotFoundError:
        pass
