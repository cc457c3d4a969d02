# SPDX-License-Identifier: Apache-2.0
"""pf-proxy beside socat: TCP in, vsock (here the fabric's Unix socket) out, one stream; the direct path for scale."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator

from enclavekit_core import fabric
from enclavekit_core.address import CID_PARENT, TcpAddress, VsockAddress, parse_address
from enclavekit_core.streams import Listener, connect
from run import Figure

TOTAL_BYTES = 2 * 2**30
CHUNK = bytes(256 * 1024)
PORT = 7000


def measure() -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-") as directory:
        os.environ[fabric.RUNTIME_DIR_VARIABLE] = os.path.join(directory, "rt")
        try:
            top = fabric.ensure_runtime_dir()
            with Listener(VsockAddress(CID_PARENT, PORT)) as sink:
                direct = transfer(sink, VsockAddress(CID_PARENT, PORT))
                yield Figure("relay: no proxy", direct, "MB/s")
                argv = ["pf-proxy", "ip-to-vsock", "-i", "127.0.0.1:0", "-v", f"parent:{PORT}", "--print-address"]
                with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as proxy:
                    assert proxy.stdout is not None
                    ours = transfer(sink, parse_address(proxy.stdout.readline().strip(), "tcp"))
                    proxy.terminate()
                theirs = measure_socat(sink, f"{top}/fabric/{CID_PARENT}/{PORT}.sock")
                ratio = ours / theirs if theirs else None
                yield Figure("relay: pf-proxy ip-to-vsock", ours, "MB/s", peer="socat", ratio=ratio)
        finally:
            del os.environ[fabric.RUNTIME_DIR_VARIABLE]


def measure_socat(sink: Listener, path: str) -> float | None:
    if not shutil.which("socat"):
        return None
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork"
    with subprocess.Popen(["socat", "-b", "65536", listen, f"UNIX-CONNECT:{path}"]) as proxy:
        try:
            return transfer(sink, TcpAddress("127.0.0.1", port))
        finally:
            proxy.terminate()


def transfer(sink: Listener, target: object) -> float:
    """Send TOTAL_BYTES to `target`, which ends at `sink`; return MB/s."""
    received = 0

    def drain() -> None:
        nonlocal received
        sock, _ = sink.accept()
        buffer = bytearray(len(CHUNK))
        with sock:
            while count := sock.recv_into(buffer):
                received += count

    deadline = time.monotonic() + 10
    while True:
        try:
            sock = connect(target)  # type: ignore[arg-type]
            break
        except Exception:
            if time.monotonic() > deadline:
                raise
    reader = threading.Thread(target=drain)
    reader.start()
    started = time.monotonic()
    with sock:
        for _ in range(TOTAL_BYTES // len(CHUNK)):
            sock.sendall(CHUNK)
        sock.shutdown(socket.SHUT_WR)
        reader.join()
    if received != TOTAL_BYTES:
        raise RuntimeError(f"{received} of {TOTAL_BYTES} bytes arrived")
    return TOTAL_BYTES / 1e6 / (time.monotonic() - started)
