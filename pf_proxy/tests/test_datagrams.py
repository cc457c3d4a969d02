# SPDX-License-Identifier: Apache-2.0
"""Datagrams on a stream, byte by byte: the page's table is test_wire's."""

import pytest
from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError
from enclavekit_pf_proxy.wire.datagrams import (
    MAX_DATAGRAM_BYTES,
    NOTICE,
    DatagramDecoder,
    Notice,
    encode_datagram,
    encode_notice,
)
from hypothesis import given
from hypothesis import strategies as st

from .test_wire import DATAGRAMS, NOTICES, bytes_of

SAMPLES = [b"", b"x", b"ping", bytes(1500), b"\xff" * MAX_DATAGRAM_BYTES]


def test_encoder_and_decoder_know_the_table():
    for datagrams, text in DATAGRAMS.values():
        assert b"".join(map(encode_datagram, datagrams)) == bytes_of(text)
        assert DatagramDecoder().feed(bytes_of(text)) == datagrams


@pytest.mark.parametrize("step", [1, 2, 3, 4096, 10**6])
def test_decoder_accepts_any_split(step):
    wire = b"".join(map(encode_datagram, SAMPLES))
    decoder = DatagramDecoder()
    assert [one for at in range(0, len(wire), step) for one in decoder.feed(wire[at : at + step])] == SAMPLES


def test_decoder_gives_nothing_before_a_datagram_is_whole():
    wire = encode_datagram(b"ping")
    for cut in range(len(wire)):
        decoder = DatagramDecoder()
        assert decoder.feed(wire[:cut]) == []
        assert decoder.feed(wire[cut:] + b"\0") == [b"ping"]
        assert decoder.feed(b"\0") == [b""]


def test_notices_stand_between_datagrams():
    wire = encode_notice(1) + encode_datagram(b"ping") + encode_notice(255) + encode_datagram(b"")
    assert encode_notice(1) == bytes_of(NOTICES["refused"])
    for step in (1, 2, 4, 100):
        decoder = DatagramDecoder()
        found = [one for at in range(0, len(wire), step) for one in decoder.feed(wire[at : at + step])]
        assert found == [Notice(1), b"ping", Notice(255), b""]


def test_no_datagram_is_longer_than_the_longest():
    with pytest.raises(LocalProtocolError):
        encode_datagram(bytes(MAX_DATAGRAM_BYTES + 1))
    for size in (MAX_DATAGRAM_BYTES + 1, NOTICE - 1):
        with pytest.raises(RemoteProtocolError):
            DatagramDecoder().feed(size.to_bytes(2, "big"))


@given(st.lists(st.binary(max_size=200)), st.lists(st.integers(1, 300), min_size=1))
def test_any_datagrams_survive_any_split(datagrams, steps):
    wire, decoder, got, turn = b"".join(map(encode_datagram, datagrams)), DatagramDecoder(), [], 0
    while wire:
        step = steps[turn % len(steps)]
        got += decoder.feed(wire[:step])
        wire, turn = wire[step:], turn + 1
    assert got == datagrams


@given(st.lists(st.binary(max_size=70000), max_size=4))
def test_noise_is_datagrams_or_an_error(pieces):
    decoder = DatagramDecoder()
    try:
        found = [one for piece in pieces for one in decoder.feed(piece)]
    except RemoteProtocolError:
        return
    assert sum(len(one) for one in found if isinstance(one, bytes)) <= sum(map(len, pieces))
