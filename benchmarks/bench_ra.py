# SPDX-License-Identifier: Apache-2.0
"""The attestation server: answers per second of its CPU over kept TLS connections, documents beside what the NSM itself
signs, hashing beside `openssl speed`. The NSM is the emulator's, in a process of its own, and takes 5 ms longer."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from run import Figure

SECONDS = 4.0
CONNECTIONS = 32
PRESSING = 1000  # connections that ask at once while /health is timed
FILES, FILE_BYTES = 200, 4096
HASHED_BYTES = 64 * 2**20
ROUNDS = 3
TICKS = os.sysconf("SC_CLK_TCK")
CORES = len(os.sched_getaffinity(0))
NSM_S = 0.005  # what a document takes beside its signature: a device is not made of the CPU that asks it
NSM_PROGRAM = """
import socket, sys, threading, time
from enclavekit_emulator.nsm_server import serve_nsm
from enclavekit_emulator.nsm_service import NsmService
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(16)
pcrs = {0: b"\\x10" * 48, 1: b"\\x11" * 48, 2: b"\\x12" * 48}
service = NsmService.for_enclave(pcrs, "i-0123456789abcdef0-enc0123456789abcdef", sys.argv[2], ())
answer = service.handle
def handle(request):
    time.sleep(float(sys.argv[3]))
    return answer(request)
service.handle = handle
server = serve_nsm(listener, service)
print("ready", flush=True)
threading.Event().wait()
"""


def measure() -> Iterator[Figure]:
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        data = directory / "data"
        data.mkdir()
        for number in range(FILES):
            (data / f"{number:04}").write_bytes(os.urandom(FILE_BYTES))
        nsm = directory / "nsm.sock"
        start(stack, [sys.executable, "-c", NSM_PROGRAM, str(nsm), str(directory), str(NSM_S)])
        argv = [sys.executable, "-m", "enclavekit_ra_web_srv", "--print-address", "--listen", "tcp://127.0.0.1:0"]
        process, line = start(stack, [*argv, "--no-bus", "--roots", str(data), "--nsm", str(nsm)])
        port = int(line.rpartition(":")[2])
        asyncio.run(ask_all(port, [post("/generate", {"path": str(data)})], 1, 0.0))
        warm = [get(f"/doc?path={data}/{number:04}") for number in range(FILES)]
        asyncio.run(ask_all(port, warm, 1, 0.0, retry=True))

        for name, target, path, connections in (
            ("cached proofs", "3000 or more", [get(f"/proof?path={data}/{n:04}") for n in range(FILES)], CONNECTIONS),
            ("cached documents", "", [get(f"/doc?view=bin_hex&path={data}/{n:04}") for n in range(FILES)], CONNECTIONS),
            ("health", "", [get("/health")], CONNECTIONS),
        ):
            before_s = cpu_s(process.pid)
            count, _elapsed_s = asyncio.run(ask_all(port, path, connections, SECONDS))
            yield Figure(f"{name}, per second of CPU", count / (cpu_s(process.pid) - before_s), "/s", target)

        slowest = asyncio.run(health_while_pressed(process.pid, port, data))
        name = f"health while {PRESSING} connections press, p99 of CPU"
        yield Figure(name, slowest * 1000, "ms", "below 50")

        ours, theirs = [], []
        for _ in range(ROUNDS):
            theirs.append(sign_directly(str(nsm), SECONDS / ROUNDS))
            count, elapsed_s = asyncio.run(ask_all(port, [get("/attestation?nonce=" + "00" * 32)], 8, SECONDS / ROUNDS))
            ours.append(count / elapsed_s)
        ratio = max(ours) / max(theirs)
        yield Figure("fresh documents", max(ours), "/s", "0.80 or more", "the NSM alone", ratio)

    yield from hashing()


async def health_while_pressed(pid: int, port: int, data: Path) -> float:
    """Return the 99th percentile of what /health takes while PRESSING connections ask for documents and proofs.

    In seconds that the server's process runs meanwhile: how long it waits for a core is the machine's doing. Those who
    press are a process of their own: here they would hold up the measurement, not the server.
    """
    argv = [sys.executable, __file__, "--press", str(port), str(data)]
    pressing = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    assert pressing.stdout is not None
    await pressing.stdout.readline()  # each has had its first answer: before, it is the rush of all at the same moment
    stream, taken, end_s = await connect(port), [], time.monotonic() + SECONDS
    while time.monotonic() < end_s:
        began_s = running_s(pid)
        await ask_on(*stream, get("/health"))
        taken.append(running_s(pid) - began_s)
        await asyncio.sleep(0.005)
    pressing.kill()
    await pressing.wait()
    stream[1].close()
    return sorted(taken)[int(len(taken) * 0.99)]


async def press(port: int, data: Path) -> None:
    """Ask without end over many connections; whatever the answer."""
    targets = [get("/attestation?nonce=" + "00" * 32)]
    targets += [get(f"/proof?path={data}/{number:04}") for number in range(FILES)]
    streams = [await connect(port) for _ in range(PRESSING)]

    async def ask(offset: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in itertools.count(offset):
            await ask_on(reader, writer, targets[number % len(targets)])

    await asyncio.gather(*(ask_on(*stream, targets[1]) for stream in streams))
    print("answered", flush=True)
    await asyncio.gather(*(ask(number * 7, *stream) for number, stream in enumerate(streams)))


def hashing() -> Iterator[Figure]:
    """Hash a file per core at the same time, as the server does, and compare with OpenSSL on all cores."""
    from enclavekit_ra_web_srv.file_hasher import FileHasher
    from enclavekit_ra_web_srv.paths import confine

    openssl = shutil.which("openssl")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        paths = []
        for number in range(CORES):
            path = os.path.join(directory, str(number))
            Path(path).write_bytes(os.urandom(2**20) * (HASHED_BYTES // 2**20))
            os.utime(path, (1, 1))
            paths.append(confine(os.fsencode(path), (os.fsencode(directory),)))

        async def hash_all() -> float:
            hasher = FileHasher()
            before_s = time.process_time()
            await asyncio.gather(*(hasher.hash(path) for path in paths))
            hasher.close()
            return CORES * HASHED_BYTES / (time.process_time() - before_s)

        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(asyncio.run(hash_all()))
            if openssl is not None:
                theirs.append(openssl_speed(openssl))
    ratio = max(ours) / max(theirs) if theirs else None
    name = "hashing, per second of CPU"
    yield Figure(name, max(ours) / 2**20, "MiB/s", "0.90 or more", "openssl speed" if theirs else "", ratio)


def openssl_speed(openssl: str) -> float:
    """Return the bytes that OpenSSL hashes in a second of its CPU time."""
    argv = [openssl, "speed", "-seconds", "1", "-bytes", str(2**20), "-evp", "sha3-512"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found = re.findall(r"([0-9.]+)k\s*$", done.stdout, re.MULTILINE)
    return float(found[-1]) * 1000


def sign_directly(nsm: str, seconds: float) -> float:
    """Return the documents per second that the NSM makes for one caller who asks for nothing else."""
    from enclavekit_nsm.client import NsmClient

    with NsmClient.open(nsm) as client:
        client.attestation(nonce=bytes(32))
        began_s, count = time.monotonic(), 0
        while time.monotonic() - began_s < seconds:
            client.attestation(b"x" * 400, bytes(32), b"k" * 91)
            count += 1
        return count / (time.monotonic() - began_s)


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: application/cbor\r\n\r\n".encode()


def post(target: str, fields: dict[str, str]) -> bytes:
    body = json.dumps(fields).encode()
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def ask_all(
    port: int, requests: list[bytes], connections: int, seconds: float, *, retry: bool = False
) -> tuple[int, float]:
    """Ask over kept connections for some time, or each once if that is 0; return answers and seconds."""
    streams = [await connect(port) for _ in range(connections)]
    began_s, count = time.monotonic(), 0

    async def ask(offset: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        position = offset
        while time.monotonic() - began_s < seconds if seconds else position < len(requests):
            head = await ask_on(reader, writer, requests[position % len(requests)])
            if b" 200 " not in head[:15] and retry:
                continue
            assert b" 200 " in head[:15] or b" 202 " in head[:15], head
            position, count = position + 1, count + 1

    await asyncio.gather(*(ask(number * 7, *stream) for number, stream in enumerate(streams)))
    elapsed_s = time.monotonic() - began_s
    for _reader, writer in streams:
        writer.close()
    return count, elapsed_s


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return await asyncio.open_connection("127.0.0.1", port, ssl=context)


async def ask_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """Return the head of the answer; the body is read."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(re.search(rb"content-length: (\d+)", head.lower())[1]))  # type: ignore[index]
    return head


def start(stack: contextlib.ExitStack, argv: list[str]) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    stop: Callable[[], None] = process.terminate
    stack.callback(process.wait)
    stack.callback(stop)
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, f"{argv} has not started"
    return process, line


def running_s(pid: int) -> float:
    """Return how long the first thread of a process has run, to the last time that the kernel looked."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == "__main__" and sys.argv[1:2] == ["--press"]:
    asyncio.run(press(int(sys.argv[2]), Path(sys.argv[3])))
