# SPDX-License-Identifier: Apache-2.0
"""A virtual machine's vsock: time to the heartbeat, throughput each way by write size, connections and round trips.

Time to the heartbeat is a whole enclave's; the rest is measured in a machine that runs nothing else. Where it is
installed, the other device in user space, `vhost-device-vsock`, runs beside ours; it is not in Debian.
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

import vsock_guest
from bench_enclave import APP, run
from enclavekit_core.fabric import ensure_runtime_dir
from enclavekit_core.streams import Listener
from run import Figure

SIZES = (64, 1024, 4096, 16384, 65536, 262144, 1 << 20, 4 << 20)
MAX_BYTES, MAX_WRITES = 64 << 20, 20_000
HELPER_BEST_MB_S = 110  # of vhost-device-vsock, measured once on two cores under TCG
CONNECTIONS, ROUND_TRIPS = 200, 1000

GUEST = """
import json, socket, sys, time
def dial(port):
    sock = socket.socket(socket.AF_VSOCK); sock.connect((2, port)); return sock
def main():
    sizes, limit, writes, connections, trips = sys.argv[1:]
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
        sock.close()
        assert done == total
        found[f"in {size}"] = total / 1e6 / (time.monotonic() - began)
    began = time.monotonic()
    for _ in range(connections):
        sock = dial(7002); sock.sendall(b"a"); sock.recv(1); sock.close()
    found["connections"] = connections / (time.monotonic() - began)
    sock, began = dial(7002), time.monotonic()
    for _ in range(trips): sock.sendall(b"a"); sock.recv(1)
    found["round trip"] = (time.monotonic() - began) / trips * 1000
    return found
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
        run(directory, "nitro-emu", "terminate-enclave", "--enclave-id", enclave["EnclaveID"])
        yield from compare(directory)


def compare(directory: Path) -> Iterator[Figure]:
    """Measure each device that is installed, one after the other, in the same machine."""
    ensure_runtime_dir()
    results = []
    for make in vsock_guest.devices():
        work = directory / make.__name__
        work.mkdir()
        with make(work) as device:
            listeners = [serve(device.parent_port(port), handle) for port, handle in PORTS.items()]
            arguments = [SIZES, MAX_BYTES, MAX_WRITES, CONNECTIONS, ROUND_TRIPS]
            results.append((device.name, vsock_guest.run_guest(directory / "bench.eif", device, GUEST, arguments)))
            for listener in listeners:
                listener.socket.shutdown(2)
                listener.close()
    (_, ours), others = results[0], results[1:]
    ways = {"out": "out of the guest", "in": "into the guest"}
    for key, value in ours.items():
        way, _, size = key.partition(" ")
        name = f"qemu vsock: {ways[way]}, writes of {size} B" if way in ways else f"qemu vsock: {key}"
        unit = {"connections": "/s", "round trip": "ms"}.get(key, "MB/s")
        figure = Figure(name, value, unit)
        for peer, theirs in others:
            ratio = theirs[key] / value if unit == "ms" else value / theirs[key]
            figure = Figure(name, value, unit, peer=peer, ratio=ratio)
        yield figure
    for way, words in ways.items():
        best = max(value for key, value in ours.items() if key.startswith(f"{way} "))
        yield Figure(f"qemu vsock: {words}, best", best, "MB/s", target=f"at least {HELPER_BEST_MB_S}")


def serve(address, handle):
    listener = Listener(address)

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


PORTS = {7000: take, 7001: give, 7002: echo}
