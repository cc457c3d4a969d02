# SPDX-License-Identifier: Apache-2.0
"""When all listen that an enclave's app is to find on the loopback interface.

    python3 -m enclavekit_pf_proxy.loopback wait ADDRESS:PORT...

Source: proc(5), /proc/net/tcp.
"""

from __future__ import annotations

import argparse
import ipaddress
import struct
import sys
import time
from collections.abc import Iterable

from enclavekit_core.address import TcpAddress, parse_address
from enclavekit_core.cli import run_command
from enclavekit_core.errors import TransportError

LISTEN = "0A"  # state in /proc/net/tcp
TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
WAIT_S = 10.0  # a proxy listens within half a second of its start; who is later than this has failed
POLL_S = 0.02  # the tables are two small reads, and the app waits


def parse_listeners(table: str) -> frozenset[tuple[str, int]]:
    """Return the (address, port) pairs that a /proc/net/tcp or tcp6 table shows as listening."""
    found = set()
    for line in table.splitlines()[1:]:
        words = line.split()
        if len(words) < 4 or words[3] != LISTEN:
            continue
        digits, _, port = words[1].partition(":")
        # 32-bit words of the address as this machine's integers print them
        raw = b"".join(struct.pack("=I", int(digits[i : i + 8], 16)) for i in range(0, len(digits), 8))
        found.add((str(ipaddress.ip_address(raw)), int(port, 16)))
    return frozenset(found)


def wait_for_listeners(wanted: Iterable[tuple[str, int]], timeout_s: float = WAIT_S) -> None:
    """Return once somebody listens on each (address, port). Nobody is connected to, so nothing leaves the enclave.

    Raises: TransportError that names one that does not.
    """
    missing = set(wanted)
    deadline = time.monotonic() + timeout_s
    while True:
        for path in TABLES:
            try:
                with open(path, encoding="ascii") as table:
                    missing -= parse_listeners(table.read())
            except FileNotFoundError:
                pass  # a kernel without IPv6
        if not missing:
            return
        if time.monotonic() > deadline:
            address, port = min(missing)
            raise TransportError("wait for", TcpAddress(address, port), f"nobody listens after {timeout_s:.0f} s")
        time.sleep(POLL_S)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="loopback", description="Look at the loopback interface.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("wait", help="wait until all listen").add_argument("addresses", nargs="+", metavar="HOST:PORT")
    return parser


def run(args: argparse.Namespace) -> int:
    wanted = []
    for text in args.addresses:
        parsed = parse_address(text, "tcp")
        assert isinstance(parsed, TcpAddress)  # the only kind without a scheme, given this default
        wanted.append((str(ipaddress.ip_address(parsed.host)), parsed.port))
    wait_for_listeners(wanted)
    return 0


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("loopback", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
