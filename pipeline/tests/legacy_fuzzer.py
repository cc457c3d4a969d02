# SPDX-License-Identifier: Apache-2.0
"""Feeds the listener of the old protocol with requests that are nearly right, as long as told.

    python -m pipeline.tests.legacy_fuzzer --seconds 600 [--seed N]

Each connection must end, whatever comes; nothing outside of the app's root may be read or written, nothing half-made,
no descriptor and no task may stay. The root holds no shell, so no command ever runs.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from enclavekit_core.errors import EnclavekitError
from enclavekit_pipeline.enclave.legacy_listener import LegacyListener, Wire
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.enclave.workplace import Workplace
from enclavekit_pipeline.wire.legacy_slc import (
    INTEGER,
    CommandResult,
    decode_result,
    decode_text,
    encode_integer,
)

from .fuzzing import main

SECRET = b"what nobody outside may see"
PATHS = (
    b"/data/a",
    b"data/b",
    b"/data",
    b"/",
    b"",
    b"/../outside",
    b"/data/../../outside",
    b"/out",
    b"/out/x",
    b"/none",
)
NAMES = (b"a", b"sub/b", b"../c", b"/d", b"", b"a//b", b"out/e", b"x" * 300)
LENGTHS = (0, 1, 9, 4096, 8193, 2**44 + 1, 2**63, 2**64 - 1)
TIMEOUT_S = 60.0  # of one input: a connection that does not end


class FakeWriter:
    """Takes everything."""

    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, data: bytes) -> None:
        self.data += data

    async def drain(self) -> None:
        await asyncio.sleep(0)


def text(rng: random.Random, value: bytes) -> bytes:
    length = len(value) if rng.random() < 0.9 else rng.choice(LENGTHS)
    return encode_integer(length) + value


def file(rng: random.Random) -> bytes:
    body = rng.randbytes(rng.choice((0, 1, 5000)))
    length = len(body) if rng.random() < 0.85 else rng.choice(LENGTHS)
    return encode_integer(length) + body


def make_wire(rng: random.Random) -> bytes:
    request = rng.choice((0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 255, 2**63))
    path = rng.choice(PATHS) if rng.random() < 0.95 else rng.randbytes(8)
    wire = encode_integer(request) + text(rng, path)
    if request == 2:
        wire += file(rng)
    if request == 4:
        count = rng.randrange(4)
        wire += encode_integer(count if rng.random() < 0.9 else rng.choice(LENGTHS))
        for _ in range(count):
            wire += text(rng, rng.choice(NAMES)) + file(rng)
    damaged = bytearray(wire)
    if rng.random() < 0.3:
        damaged[rng.randrange(len(damaged))] = rng.randrange(256)
    if rng.random() < 0.2:
        del damaged[rng.randrange(len(damaged)) :]
    return bytes(damaged)


async def serve(rng: random.Random, wire: bytes, root: Path) -> bytes:
    """Return what the listener answers to one connection."""
    app, system = Root(str(root)), Root("/")
    writer, reader = FakeWriter(), asyncio.StreamReader()
    try:
        with ThreadPoolExecutor(1) as threads:
            listener = LegacyListener(Workplace(app, system, threads))
            serving = asyncio.create_task(listener._serve(Wire(reader, writer), "fuzz"))  # type: ignore[arg-type]
            position = 0
            while position < len(wire):
                step = rng.randint(1, max(100, len(wire) // 20))
                reader.feed_data(wire[position : position + step])
                position += step
                await asyncio.sleep(0)
            reader.feed_eof()
            await asyncio.wait_for(serving, TIMEOUT_S)
            await asyncio.gather(*listener._background)
    finally:
        os.close(app.descriptor)
        os.close(system.descriptor)
    return bytes(writer.data)


def run_one(seed: int) -> None:
    rng = random.Random(seed)
    wire = make_wire(rng)
    before = len(os.listdir("/proc/self/fd"))
    home = Path(tempfile.mkdtemp(prefix="legacy-fuzzer-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        root = home / "root"
        (root / "data/sub").mkdir(parents=True)
        (root / "data/a").write_bytes(b"content")
        os.mkfifo(root / "data/sub/fifo")
        (home / "outside").write_bytes(SECRET)
        os.symlink(home, root / "out")  # the app leads where it should not
        os.symlink("../../outside", root / "data/link")
        answer = asyncio.run(serve(rng, wire, root))
        assert SECRET not in answer
        assert sorted(os.listdir(home)) == ["outside", "root"]
        assert (home / "outside").read_bytes() == SECRET
        assert not list(root.rglob("*partial*"))
    finally:
        shutil.rmtree(home)
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor stays"
    fuzz_answers(rng, answer)


def fuzz_answers(rng: random.Random, answer: bytes) -> None:
    """Read what may be a command's result as our client does."""
    data = bytearray(answer[INTEGER.size :])
    if data and rng.random() < 0.5:
        data[rng.randrange(len(data))] = rng.randrange(256)
    try:
        assert isinstance(decode_result(bytes(data)), CommandResult)
    except EnclavekitError:
        pass
    try:
        decode_text(bytes(data), "it")
    except EnclavekitError:
        pass


if __name__ == "__main__":
    sys.exit(main(__doc__.partition("\n")[0], run_one))
