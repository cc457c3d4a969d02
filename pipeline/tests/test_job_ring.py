# SPDX-License-Identifier: Apache-2.0
"""The ring keeps the last of what was written, in order and kind by kind, whatever is written."""

import os

import pytest
from enclavekit_pipeline.enclave import job_ring
from enclavekit_pipeline.enclave.job_ring import JobRing
from enclavekit_pipeline.wire.frames import Kind
from hypothesis import given
from hypothesis import strategies as st

OUT, ERR = Kind.STDOUT, Kind.STDERR


def read_all(ring, position=0, step=65536):
    pieces = []
    while piece := ring.read(position, step):
        pieces.append(piece)
        position = piece.end
    return pieces


@given(st.lists(st.tuples(st.sampled_from([OUT, ERR]), st.binary(max_size=40))), st.integers(1, 50), st.integers(1, 20))
def test_what_is_read_is_the_end_of_what_was_written(writes, limit, step):
    ring, model = JobRing(limit), []
    for kind, data in writes:
        ring.append(kind, data)
        model += [(kind, byte) for byte in data]
    assert ring.written == len(model)
    pieces = read_all(ring, step=step)
    got = [(piece.kind, byte) for piece in pieces for byte in piece.data]
    assert got == model[len(model) - min(limit, len(model)) :]
    assert not pieces or pieces[0].start == max(0, len(model) - limit)


def test_who_follows_gets_what_is_new(tmp_path):
    ring = JobRing(8)
    ring.append(OUT, b"abc")
    assert ring.read(3, 10) is None
    ring.append(ERR, b"def")
    piece = ring.read(3, 10)
    assert (piece.kind, piece.start, piece.data) == (ERR, 3, b"def")
    ring.append(OUT, b"0123456789")
    assert read_all(ring, 6)[0].start == 8  # two are gone


def test_many_small_pieces_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(job_ring, "MAX_RECORDS", 16)
    ring = JobRing(10_000)
    for number in range(1000):
        ring.append((OUT, ERR)[number % 2], b"x")
        assert len(ring._starts) <= 33
    got = read_all(ring)
    assert got[-1].end == 1000
    assert len(got) >= 8


def test_full_disk_loses_output_and_nothing_else(monkeypatch):
    ring = JobRing(100)
    ring.append(OUT, b"before")
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        ring.append(OUT, b"lost")
    assert ring.read(0, 10) is None
    ring.append(OUT, b"after")
    assert [piece.data for piece in read_all(ring)] == [b"after"]
    assert ring.written == 15


def test_file_has_no_name_and_goes_with_the_ring(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ring = JobRing()
    ring.append(OUT, b"x")
    assert os.listdir(tmp_path) == []
    descriptor = ring._descriptor
    del ring
    with pytest.raises(OSError):
        os.fstat(descriptor)
