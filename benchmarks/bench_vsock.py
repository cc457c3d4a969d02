# SPDX-License-Identifier: Apache-2.0
"""A virtual machine's vsock: time to the heartbeat, throughput each way by write size, connections and round trips.

No peer runs beside it: the other device in user space, `vhost-device-vsock`, is not in Debian.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench_enclave import APP, run
from enclavekit_core.address import VsockAddress
from enclavekit_core.streams import Listener
from run import Figure

SIZES = (64, 1024, 4096, 16384, 65536, 262144, 1 << 20, 4 << 20)
MAX_BYTES, MAX_WRITES = 64 << 20, 20_000
SINK, SOURCE, ECHO = 7000, 7001, 7002
CONNECTIONS, ROUND_TRIPS = 200, 1000

GUEST = """
import json, socket, sys, time
def dial(port):
    sock = socket.socket(socket.AF_VSOCK); sock.connect((3, port)); return sock
sizes, limit, writes = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
found = {}
for size in sizes:
    total = min(limit, size * writes) // size * size
    sock, block, began, done = dial(7000), bytes(size), time.monotonic(), 0
    while done < total: sock.sendall(block); done += size
    sock.shutdown(socket.SHUT_WR); sock.recv(1); sock.close()
    found[f"out {size}"] = total / 1e6 / (time.monotonic() - began)
    sock, buffer, began, done = dial(7001), bytearray(1 << 20), time.monotonic(), 0
    sock.sendall(b"%d %d\\n" % (size, total))
    while count := sock.recv_into(buffer): done += count
    assert done == total
    found[f"in {size}"] = total / 1e6 / (time.monotonic() - began)
began = time.monotonic()
for _ in range(int(sys.argv[4])):
    sock = dial(7002); sock.sendall(b"a"); sock.recv(1); sock.close()
found["connections"] = int(sys.argv[4]) / (time.monotonic() - began)
sock, began = dial(7002), time.monotonic()
for _ in range(int(sys.argv[5])): sock.sendall(b"a"); sock.recv(1)
found["round trip"] = (time.monotonic() - began) / int(sys.argv[5]) * 1000
print(json.dumps(found))
"""


def measure() -> Iterator[Figure]:
    if shutil.which("qemu-system-x86_64") is None:
        return
    with tempfile.TemporaryDirectory(prefix="enclavekit-bench-") as name:
        directory = Path(name)
        os.environ["ENCLAVEKIT_RUNTIME_DIR"] = str(directory / "rt")
        run(directory, APP / "make_rootfs", "rootfs")
        run(directory, "pipeline", "keygen", "--name", "bench", "-o", "keys")
        run(
            *(directory, "rbuilds", "build", "--rootfs", "rootfs", "--config", APP / "enclave.yaml"),
            *("--authorize", "keys/bench.crt:all", "--output", "bench.eif"),
        )
        began = time.monotonic()
        words = ("--eif-path", "bench.eif", "--memory", 1024, "--cpu-count", 2, "--machine", "qemu")
        enclave = json.loads(run(directory, "nitro-emu", "run-enclave", *words))
        yield Figure("qemu: run-enclave until heartbeat", time.monotonic() - began, "s", target="under 8 s with TCG")
        try:
            yield from measure_streams(directory, enclave["EnclaveCID"])
        finally:
            run(directory, "nitro-emu", "terminate-enclave", "--enclave-id", enclave["EnclaveID"])


def measure_streams(directory: Path, cid: int) -> Iterator[Figure]:
    listeners = [serve(SINK, take), serve(SOURCE, give), serve(ECHO, echo)]
    root = run(directory, "nitro-emu", "dev-root").strip()
    trust = ("--eif", "bench.eif", "--identity", "keys/bench", "--insecure-dev-root", root, "--connect-timeout", 120)
    arguments = (json.dumps(SIZES), MAX_BYTES, MAX_WRITES, CONNECTIONS, ROUND_TRIPS)
    inside = ("pipeline", "exec", "--system", *trust, cid, "--", "python3", "-I", "-c", GUEST, *arguments)
    found = json.loads(run(directory, *inside))
    for listener in listeners:
        listener.socket.shutdown(2)
        listener.close()
    for size in SIZES:
        yield Figure(f"qemu vsock: out of the guest, writes of {size} B", found[f"out {size}"], "MB/s")
        yield Figure(f"qemu vsock: into the guest, writes of {size} B", found[f"in {size}"], "MB/s")
    yield Figure("qemu vsock: connections", found["connections"], "/s")
    yield Figure("qemu vsock: round trip", found["round trip"], "ms")


def serve(port, handle):
    listener = Listener(VsockAddress(3, port))

    def loop():
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(sock,), daemon=True).start()

    threading.Thread(target=loop, daemon=True).start()
    return listener


def take(sock):
    buffer = bytearray(1 << 20)
    with sock:
        while sock.recv_into(buffer):
            pass


def give(sock):
    line = b""
    with sock:
        while not line.endswith(b"\n"):
            line += sock.recv(1)
        size, total = map(int, line.split())
        block = bytes(size)
        for _ in range(total // size):
            sock.sendall(block)


def echo(sock):
    with sock:
        while data := sock.recv(100):
            sock.sendall(data)
