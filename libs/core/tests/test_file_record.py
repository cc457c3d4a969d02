# SPDX-License-Identifier: Apache-2.0
import pytest
from enclavekit_core.errors import RemoteProtocolError
from enclavekit_core.file_record import MAX_RECORD_BYTES, FileRecord, decode_record, encode_record
from hypothesis import given
from hypothesis import strategies as st

RECORD = FileRecord(b"\xab" * 64, 1234, 1_700_000_000_000_000_000, 7)
WIRE = b'{"sha3_512":"%b","size":1234,"mtime_ns":1700000000000000000,"generation":7}' % (b"ab" * 64)


def test_record_table():
    assert encode_record(RECORD) == WIRE
    assert decode_record(WIRE) == RECORD


@given(st.binary(min_size=64, max_size=64), st.integers(0, 2**63), st.integers(-(2**63), 2**63), st.integers(0, 2**63))
def test_record_comes_back_as_it_was(digest, size, mtime, generation):
    record = FileRecord(digest, size, mtime, generation)
    assert len(encode_record(record)) <= MAX_RECORD_BYTES
    assert decode_record(encode_record(record)) == record


def test_every_truncation_is_refused():
    for length in range(len(WIRE)):
        with pytest.raises(RemoteProtocolError):
            decode_record(WIRE[:length])


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b"7",
        WIRE.replace(b"1234", b'"1234"'),
        WIRE.replace(b"1234", b"true"),
        WIRE.replace(b"abab", b"ab", 1),
        WIRE.replace(b"abab", b"xyzw", 1),
        WIRE + b" " * MAX_RECORD_BYTES,
        b"\xff" + WIRE,
    ],
)
def test_bad_records_are_refused(data):
    with pytest.raises(RemoteProtocolError, match="cannot read file record"):
        decode_record(data)


@given(st.binary(max_size=80))
def test_decode_fails_in_one_way_only(data):
    with pytest.raises(RemoteProtocolError):
        decode_record(data)
