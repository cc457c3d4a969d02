# SPDX-License-Identifier: Apache-2.0
"""The process that hears how apps ended on a Nitro host: port 9002 of the parent, one for all enclaves of this user.

nitro-cli does not tell; PID 1 of our images does, in one line of JSON (enclavekit_core.exit_report) at the end. The
enclave is hostile: who is not on the list is not heard, and each connection has a deadline and a size. Kept as
rbuilds/CID.end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal

from enclavekit_core.address import CID_ANY, VsockAddress
from enclavekit_core.cli import run_command
from enclavekit_core.errors import RemoteProtocolError
from enclavekit_core.exit_report import MAX_REPORT_BYTES, ExitReport, encode_exit_report, parse_exit_report
from enclavekit_core.peers import identify_peer
from enclavekit_core.streams import Listener

MODULE = "enclavekit_rbuilds.run.exit_reports"
PORT = 9002
MAX_CONNECTIONS = 16  # an honest enclave makes one
CONNECTION_TIMEOUT_S = 10.0


def end_path(directory: str, cid: int) -> str:
    return os.path.join(directory, f"{cid}.end")


def read_report(directory: str, cid: int) -> ExitReport | None:
    """Return what an enclave reported; None if it did not."""
    try:
        with open(end_path(directory, cid), "rb") as source:
            return parse_exit_report(source.read(MAX_REPORT_BYTES + 1))
    except (FileNotFoundError, RemoteProtocolError):
        return None


class ReportServer:
    """Accepts reports of the CIDs in a file and keeps the last one of each."""

    def __init__(self, directory: str, list_path: str) -> None:
        self._directory, self._list_path = directory, list_path
        self._open = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, on_fabric: bool) -> None:
        try:
            if self._open >= MAX_CONNECTIONS:
                return
            self._open += 1
            try:
                peer = identify_peer(writer.get_extra_info("socket"), on_fabric=on_fabric)
                if peer.cid is not None and peer.cid in self._allowed():
                    line = await asyncio.wait_for(reader.readline(), CONNECTION_TIMEOUT_S)
                    self._keep(peer.cid, parse_exit_report(line))
            finally:
                self._open -= 1
        except (OSError, ValueError, TimeoutError, RemoteProtocolError):
            pass  # what an enclave did wrong on its own connection is the end of that, and nothing else
        finally:
            writer.close()

    def _allowed(self) -> set[int]:
        with open(self._list_path, encoding="ascii") as source:
            return {int(line) for line in source if line.strip()}

    def _keep(self, cid: int, report: ExitReport) -> None:
        path = end_path(self._directory, cid)
        with open(f"{path}.new", "wb") as out:
            out.write(encode_exit_report(report))
        os.replace(f"{path}.new", path)


async def serve(directory: str, list_path: str) -> None:
    """Listen until a signal. Raises TransportError."""
    listener = Listener(VsockAddress(CID_ANY, PORT))
    reports = ReportServer(directory, list_path)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reports.handle(reader, writer, on_fabric=listener.on_fabric)

    start = asyncio.start_unix_server if listener.on_fabric else asyncio.start_server
    server = await start(handle, sock=listener.socket, limit=MAX_REPORT_BYTES + 1)
    print(listener.address, flush=True)
    await stopped.wait()
    server.close()
    with contextlib.suppress(OSError):
        listener.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=MODULE)
    parser.add_argument("--directory", required=True)
    parser.add_argument("--allow-cids-from", required=True)
    args = parser.parse_args(argv)
    return run_command("rbuilds", lambda: asyncio.run(serve(args.directory, args.allow_cids_from)))


if __name__ == "__main__":
    raise SystemExit(main())
