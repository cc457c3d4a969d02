# SPDX-License-Identifier: Apache-2.0
"""Feeds both ends of copies with records that are nearly right, as long as told.

    python -m pipeline.tests.copy_fuzzer --seconds 600 [--seed N]

Whatever comes in, the outcome must be a copy or an EnclavekitError. Nothing outside of the target may change, no link
may lead out of it, and neither a half-made file nor a descriptor may stay.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from enclavekit_core.errors import EnclavekitError
from enclavekit_pipeline.channel.tree_sink import TreeSink, WriteOptions
from enclavekit_pipeline.channel.tree_source import ReadOptions, TreeSource
from enclavekit_pipeline.wire.digest import digest_of
from enclavekit_pipeline.wire.tree_content import ContentHash, chunk_bytes
from enclavekit_pipeline.wire.tree_records import (
    Count,
    Data,
    Digests,
    End,
    Entry,
    EntryType,
    LeftOut,
    Plain,
    RecordDecoder,
    RecordKind,
    Why,
    encode_record,
)

from .fuzzing import main

PLAIN = (b"a", b"b", b"c", b"a/x", b"a/y", b"b/z", b"a/x/deep")
NAMES = (*PLAIN, b"..", b"../out", b"/etc/out", b"a/../../out", b".", b"a//b")
TARGETS = (b"b", b"x", b"../b", b"../../out", b"/etc/passwd", b"..", b"a/../../../out", b"")
BODIES = (b"x", b"content", b"z" * 5000)
MAX_BATCHES = 2000


def make_file(rng: random.Random, entry: Entry) -> list[bytes]:
    """Return the records of a file's content, mostly right."""
    content, records = ContentHash(chunk_bytes(entry.size)), []
    for _ in range(rng.randrange(3)):
        match rng.randrange(6):
            case 0:
                count = rng.choice((1, 100_000, 1 << 20))
                content.zeros(count)
                records.append(encode_record(Count(RecordKind.HOLE, count)))
            case 1:
                records.append(encode_record(Count(RecordKind.KEEP, rng.choice((0, 1, 2, 2**63 - 1)))))
            case _:
                data = rng.choice(BODIES)
                content.update(data)
                records.append(encode_record(Data(data)))
    if rng.random() < 0.05:
        records.append(encode_record(Plain(RecordKind.GONE)))
    else:
        digest = content.digest() if rng.random() < 0.95 else bytes(32)
        records.append(encode_record(End(content.size, digest)))
    return records


def make_wire(rng: random.Random) -> bytes:
    """Return the records of a copy that a sender might make, now and then with something that it must not."""
    root = rng.choice((EntryType.DIRECTORY, EntryType.DIRECTORY, EntryType.FILE, EntryType.SYMLINK))
    records = [encode_record(Entry(root, b"", mode=0o755, target=b"a" if root is EntryType.SYMLINK else b""))]
    if root is EntryType.FILE:
        records += make_file(rng, Entry(root, b""))
    names = sorted(rng.sample(NAMES if rng.random() < 0.2 else PLAIN, rng.randrange(6)))
    if rng.random() < 0.2:
        rng.shuffle(names)
    for name in names:
        kind = rng.choice(list(EntryType))
        target = rng.choice(TARGETS) if kind in (EntryType.SYMLINK, EntryType.HARDLINK) else b""
        size = rng.choice((0, 7, 10 << 20, 2**63 - 1)) if kind is EntryType.FILE else 0
        entry = Entry(kind, name, mode=rng.choice((0o644, 0o7777)), size=size, target=target, ask=rng.random() < 0.2)
        try:
            records.append(encode_record(entry))
        except EnclavekitError:
            continue
        if kind is EntryType.FILE:
            records += make_file(rng, entry)
    if rng.random() < 0.1:
        records.append(encode_record(LeftOut(b"somewhere", rng.choice(list(Why)))))
    wire = bytearray(b"".join(records))
    damage(rng, wire)
    return bytes(wire)


def damage(rng: random.Random, wire: bytearray) -> None:
    if wire and rng.random() < 0.3:
        for _ in range(rng.randrange(1, 4)):
            wire[rng.randrange(len(wire))] = rng.randrange(256)
    if wire and rng.random() < 0.1:
        del wire[rng.randrange(len(wire)) :]


def split(rng: random.Random, wire: bytes) -> list[bytes]:
    most, pieces, position = rng.choice((1, 50, 5000, 1 << 20)), [], 0
    most = max(most, len(wire) // 2000)
    while position < len(wire):
        pieces.append(wire[position : position + rng.randint(1, most)])
        position += len(pieces[-1])
    return pieces


def fuzz_decoder(rng: random.Random, wire: bytes) -> None:
    """However the bytes are split, the same records come out, and the same error."""
    outcomes = []
    for _ in range(2):
        decoder, data, records, error = RecordDecoder(frozenset(RecordKind)), b"", [], ""
        try:
            for piece in split(rng, wire):
                for record in decoder.feed(piece):
                    if isinstance(record, Data):
                        data += record.data  # content is passed on as it comes
                    else:
                        records.append((len(data), record))
            decoder.feed_eof()
        except EnclavekitError as exc:
            error = str(exc)
        outcomes.append((records, error))
    (records, error), (again, same) = outcomes
    common = min(len(records), len(again))
    assert records[:common] == again[:common]
    assert error == same


def fuzz_sink(rng: random.Random, wire: bytes, home: Path) -> None:
    target = home / "target"
    target.mkdir()
    (target / "old").write_bytes(b"old")
    (home / "canary").write_bytes(b"canary")
    unsafe_links, resume = rng.random() < 0.2, rng.random() < 0.5
    options = WriteOptions(0o777, delta=rng.random() < 0.5, resume=resume, unsafe_links=unsafe_links)
    name = rng.choice((b"copy", b"old"))
    sink = TreeSink(os.open(target, os.O_RDONLY | os.O_DIRECTORY), name, "target", options)
    try:
        for piece in split(rng, wire):
            sink.take([piece])
        sink.finish()
    except EnclavekitError:
        pass
    finally:
        sink.close()
    assert sorted(os.listdir(home)) == ["canary", "target"]
    assert (home / "canary").read_bytes() == b"canary"
    for directory, directories, files in os.walk(os.fsencode(target)):
        for found in (*directories, *files):
            path = os.path.join(directory, found)
            assert not found.endswith(b".partial"), "a temporary file stays"
            assert resume or not found.endswith(b"-partial"), "a partial file stays"
            if os.path.islink(path) and not unsafe_links:
                above = os.path.dirname(os.path.relpath(path, os.fsencode(target)))
                led = os.path.normpath(os.path.join(b"/", above, os.readlink(path)))
                assert led == b"/" + name or led.startswith(b"/" + name + b"/"), "a link leads out"


def fuzz_source(rng: random.Random, tree: Path) -> None:
    """Answer with anything: it ends, or waits for more, or says what is wrong."""
    options = ReadOptions(delta=rng.random() < 0.7, resume=True)
    source = TreeSource(os.open(tree, os.O_RDONLY), "source", options)
    try:
        for _ in range(MAX_BATCHES):
            answers = bytearray()
            if rng.random() < 0.8:
                for _ in range(rng.randrange(3)):
                    digest = rng.choice((bytes(32), digest_of(b"content")))
                    record = rng.choice(
                        (
                            Plain(RecordKind.NOTHING),
                            Digests((digest,) * rng.randrange(1, 4)),
                            Count(RecordKind.HAVE, rng.choice((0, 7, 1 << 20, 2**63 - 1))),
                        )
                    )
                    answers += encode_record(record)
                damage(rng, answers)
            batch = source.next_batch([bytes(answers)] if answers else [])
            if batch.finished or (batch.waits and rng.random() < 0.3):
                return
        raise AssertionError("it does not end")
    except EnclavekitError:
        pass
    finally:
        source.close()


def run_one(seed: int) -> None:
    rng = random.Random(seed)
    wire = make_wire(rng)
    fuzz_decoder(rng, wire)
    before = len(os.listdir("/proc/self/fd"))
    home = Path(tempfile.mkdtemp(prefix="copy-fuzzer-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        fuzz_sink(rng, wire, home)
        tree = home / "tree"
        (tree / "d").mkdir(parents=True)
        for name in ("a", "b", "d/c"):
            (tree / name).write_bytes(rng.choice(BODIES))
        fuzz_source(rng, tree)
    finally:
        shutil.rmtree(home)
    assert len(os.listdir("/proc/self/fd")) == before, "a descriptor stays"


if __name__ == "__main__":
    sys.exit(main(__doc__.partition("\n")[0], run_one))
