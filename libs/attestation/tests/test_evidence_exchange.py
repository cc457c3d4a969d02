# SPDX-License-Identifier: Apache-2.0
"""The exchange, byte by byte."""

import pytest
from enclavekit_attestation.evidence_exchange import MAX_HEAD_BYTES, EvidenceExchange
from enclavekit_core.errors import RemoteProtocolError
from hypothesis import given
from hypothesis import strategies as st

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/cbor\r\nContent-Length: 5\r\n\r\n"


def exchange():
    return EvidenceExchange("127.0.0.1", "/attestation", b"\xca\xfe")


def test_request_is_exact():
    expected = b"GET /attestation?nonce=cafe HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/cbor\r\n\r\n"
    assert exchange().request == expected


@pytest.mark.parametrize("host", [None, "", "a\r\nX: y", "ü", "a b", "x" * 254])
def test_other_hosts_are_not_sent(host):
    assert b"Host: enclave\r\n" in EvidenceExchange(host, "/attestation", b"n").request


@pytest.mark.parametrize("step", [1, 2, 7, 4096])
def test_any_split_gives_the_document(step):
    one, wire, got = exchange(), HEAD + b"hello", []
    for start in range(0, len(wire), step):
        got.append(one.feed(wire[start : start + step]))
    assert got[-1] == b"hello"
    assert set(got[:-1]) <= {None}


def test_end_at_any_byte_is_refused():
    wire = HEAD + b"hello"
    for length in range(len(wire)):
        one = exchange()
        if length:
            assert one.feed(wire[:length]) is None
        with pytest.raises(RemoteProtocolError, match="ended"):
            one.feed(b"")


def test_endless_headers_are_refused():
    one = exchange()
    with pytest.raises(RemoteProtocolError, match="headers"):
        for _ in range(MAX_HEAD_BYTES):
            one.feed(b"x" * 16)


@given(st.binary(min_size=1, max_size=300))
def test_anything_else_is_refused_or_incomplete(data):
    for wire in (data, data + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n"):
        try:
            assert exchange().feed(wire) is None
        except RemoteProtocolError:
            pass
