# SPDX-License-Identifier: Apache-2.0
"""What costs its owner nothing costs its reader little: terabytes of holes, and holes that lie badly."""

import os

import pytest
from enclavekit_core.errors import RemoteProtocolError
from enclavekit_pipeline.channel.holes import is_hole
from enclavekit_pipeline.wire import tree_receiver
from enclavekit_pipeline.wire.tree_content import MIN_CHUNK_BYTES
from enclavekit_pipeline.wire.tree_receiver import TreeReceiver
from enclavekit_pipeline.wire.tree_records import Count, Data, Entry, EntryType, RecordKind, encode_record

from .test_tree_machines import carry, open_pair

TEBIBYTE = 2**40


def test_holes_are_found(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        file.truncate(4 << 20)
        file.seek(2 << 20)
        file.write(b"x")
    with open(tmp_path / "file", "rb") as file:
        found = [is_hole(file.fileno(), start << 20, (start + 1) << 20) for start in range(4)]
        assert found == [True, True, False, True]
    with open("/proc/self/status", "rb") as file:
        assert not is_hole(file.fileno(), 0, 1)  # its size is 0, which says nothing


@pytest.mark.parametrize("name", ["copy", ".copy.enclavekit-partial"])
def test_terabytes_of_nothing_are_compared_at_once(tmp_path, monkeypatch, name):
    """Of a file that is there, and of what a cut copy has left; whoever made either paid nothing for it."""
    (tmp_path / "target").mkdir()
    for path in (tmp_path / "source", tmp_path / "target" / name):
        with open(path, "wb") as file:
            file.truncate(2 * TEBIBYTE)
            file.seek(TEBIBYTE)
            file.write(b"same")
    read = 0

    def counted(descriptor, count, offset, pread=os.pread):
        nonlocal read
        data = pread(descriptor, count, offset)
        read += len(data)
        return data

    monkeypatch.setattr(os, "pread", counted)
    reading, writing = open_pair(tmp_path / "source", tmp_path / "target", delta=True, resume=True)
    carry(reading, writing)
    reading.close()
    writing.close()
    assert read < 2**30
    info = os.stat(tmp_path / "target/copy")
    assert (info.st_size, info.st_blocks * 512 < 2**20) == (2 * TEBIBYTE, True)


def test_what_is_kept_of_a_sparse_file_stays_sparse(tmp_path):
    (tmp_path / "target").mkdir()
    for path, end in ((tmp_path / "source", b"new"), (tmp_path / "target/copy", b"old")):
        with open(path, "wb") as file:
            file.truncate(64 << 20)
            file.seek(0, os.SEEK_END)
            file.write(end)
    reading, writing = open_pair(tmp_path / "source", tmp_path / "target", delta=True)
    carry(reading, writing)
    reading.close()
    writing.close()
    with open(tmp_path / "target/copy", "rb") as file:
        assert is_hole(file.fileno(), 0, 60 << 20)
        file.seek(64 << 20)
        assert file.read() == b"new"


def holes(content, rounds):
    """A file with so much content, then a hole up to the end of the chunk, again and again."""
    entry = Entry(EntryType.FILE, b"", size=rounds * MIN_CHUNK_BYTES)
    pair = encode_record(Data(content)) + encode_record(Count(RecordKind.HOLE, MIN_CHUNK_BYTES - len(content)))
    return encode_record(entry) + pair * rounds


def test_holes_are_hashed_for_what_they_are_worth(monkeypatch):
    monkeypatch.setattr(tree_receiver, "FREE_ZEROS", 8 * MIN_CHUNK_BYTES)
    for content in (b"x" * 4096, b"x" * 256):
        TreeReceiver(unsafe_links=False, may_ask=False).feed(holes(content, 50))
    with pytest.raises(RemoteProtocolError, match="holes"):
        TreeReceiver(unsafe_links=False, may_ask=False).feed(holes(b"x", 50))


def test_sizes_that_lie_are_no_way_around_it(monkeypatch):
    """The size says how large chunks are, each size has zeros of its own to hash."""
    monkeypatch.setattr(tree_receiver, "FREE_ZEROS", 8 * MIN_CHUNK_BYTES)
    entry = Entry(EntryType.FILE, b"", size=2**44)
    receiver = TreeReceiver(unsafe_links=False, may_ask=False)
    with pytest.raises(RemoteProtocolError, match="holes"):
        receiver.feed(encode_record(entry) + encode_record(Count(RecordKind.HOLE, 2**28)))
