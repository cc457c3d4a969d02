# SPDX-License-Identifier: Apache-2.0
"""What QUIC's first datagrams show, however they are cut, and that nothing of a hello goes on before it was seen."""

import random

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection as Client
from enclavekit_pf_proxy.policy.client_hello import Hello, MalformedHello
from enclavekit_pf_proxy.policy.first_bytes import MALFORMED, NOTHING, Shown
from enclavekit_pf_proxy.policy.first_datagrams import FirstDatagrams
from enclavekit_pf_proxy.quic import session as sessions
from enclavekit_pf_proxy.quic.packets import V1, V2, UnreadableDatagram, begins_connection, read_number, split_datagram
from enclavekit_pf_proxy.quic.protection import derive_keys, open_packet
from enclavekit_pf_proxy.quic.session import MAX_CONNECTIONS, MAX_HELD, MEMORY_S, HelloMemory, QuicSession
from enclavekit_pf_proxy.wire.datagrams import encode_datagram
from hypothesis import given
from hypothesis import strategies as st

from .quic_samples import ID, PATH_BYTES, RFC_ID, RFC_PACKETS, crypto, hello, initial, number

GOOD, EVIL, LARGE = hello("good.example"), hello("evil.example"), hello("good.example", 2000)
BOTH = pytest.mark.parametrize("version", [V1, V2])


def first_datagrams(memory=None):
    return FirstDatagrams(QuicSession(memory or HelloMemory()), lambda: 0.0)


def show(*datagrams):
    """What they show, fed one after the other; only the last may decide."""
    first = first_datagrams()
    for datagram in datagrams[:-1]:
        assert first.feed(encode_datagram(datagram)) is None
    shown = first.feed(encode_datagram(datagrams[-1]))
    assert first.data == b"".join(map(encode_datagram, datagrams))
    return shown


def follow(*allowed):
    """A check behind a connection to good.example that allows `allowed`; and what was judged."""
    first, judged = first_datagrams(), []
    assert first.feed(encode_datagram(initial(crypto(0, GOOD)))) == Shown("good.example")

    def judge(shown):
        judged.append(shown)
        return shown.name in allowed

    return first.follow("good.example", judge), judged


@BOTH
def test_the_packets_that_the_rfcs_print(version):
    packet = RFC_PACKETS[version]
    (split,) = split_datagram(packet)
    assert split.destination_id == RFC_ID and split.data == packet
    number, payload = open_packet(split, derive_keys(version, RFC_ID), -1)
    assert number == 2 and len(payload) == 1162 and payload[:4].hex() == "060040f1" and not payload[245:].strip(b"\0")
    assert show(packet) == Shown("example.com")
    for other in (V1, V2):
        wrong = open_packet(split, derive_keys(other, ID if other == version else RFC_ID), -1)
        assert wrong is None


@BOTH
def test_a_client_of_another_maker(version):
    settings = QuicConfiguration(server_name="good.example", original_version=version, alpn_protocols=["h3"])
    client = Client(configuration=settings)
    client.connect(("192.0.2.1", 443), 0.0)
    datagrams = [data for data, _ in client.datagrams_to_send(0.0)]
    assert show(*datagrams) == Shown("good.example")


@BOTH
def test_a_hello_in_pieces_in_any_order(version):
    """As browsers send it: with post-quantum keys in two datagrams and more, cut anywhere, mixed with other frames."""
    order = random.Random(1)
    for _ in range(50):
        cuts = sorted(order.sample(range(1, len(LARGE)), 9))
        frames = [
            crypto(start, LARGE[start:end]) + order.choice([b"", b"\0" * 9, b"\1", b"\2\0\0\0\0"])
            for start, end in zip([0, *cuts], [*cuts, len(LARGE)], strict=True)
        ]
        order.shuffle(frames)
        packets = [initial(b"".join(frames[n::3]), n, version=version, pad=PATH_BYTES) for n in range(3)]
        order.shuffle(packets)
        assert show(*packets) == Shown("good.example")


def test_pieces_overlap_and_are_repeated():
    half = len(GOOD) // 2
    first, second = initial(crypto(0, GOOD[: half + 20]), 0), initial(crypto(half - 20, GOOD[half - 20 :]), 1)
    assert show(first, first, initial(b"\1", 2), second) == Shown("good.example")
    changed = bytearray(GOOD[half - 20 :])
    changed[10] ^= 1
    assert show(first, initial(crypto(half - 20, bytes(changed)), 1)) == MALFORMED


def test_each_truncation_waits_for_more_or_is_unreadable():
    for cut in range(len(GOOD)):
        assert show(initial(crypto(0, GOOD[:cut]))) is None
    whole = initial(crypto(0, GOOD))
    for cut in range(len(whole)):
        assert show(whole[:cut]) == (MALFORMED if cut >= 5 else NOTHING)


def test_packets_of_one_datagram():
    half = len(GOOD) // 2
    pieces = [initial(crypto(0, GOOD[:half]), 0), initial(crypto(half, GOOD[half:]), 1)]
    assert show(b"".join(pieces)) == Shown("good.example")
    early = initial(b"x" * 50, 7, kind=1)
    assert show(early + pieces[1], pieces[0] + b"\x40" + bytes(30)) == Shown("good.example")
    assert show(early, initial(crypto(0, GOOD))) == Shown("good.example")
    assert show(b"".join(initial(b"\1", n) for n in range(9))) == MALFORMED
    assert show(pieces[0] + initial(crypto(half, GOOD[half:]), 1, b"another one")) == MALFORMED


NO_QUIC = {
    "nothing": b"",
    "text": b"ping",
    "a short header": b"\x40" + bytes(40),
    "DNS": b"\0\1\1\0\0\1\0\0\0\0\0\0\4good\7example\0\0\1\0\1",
    "version negotiation": b"\xc0" + bytes(4) + b"\x08connect1\0\0\0\0\1",
    "an unknown version": b"\xc0\xff\0\0\x1d" + initial(crypto(0, GOOD))[5:],
    "a Handshake packet": initial(crypto(0, GOOD), kind=2),
    "a Retry packet": initial(crypto(0, GOOD), kind=3),
    "DTLS": b"\x16\xfe\xfd" + bytes(40),
}


@pytest.mark.parametrize("name", NO_QUIC)
def test_what_is_no_beginning_shows_nothing(name):
    assert not begins_connection(NO_QUIC[name])
    assert show(NO_QUIC[name]) == NOTHING


UNREADABLE = {
    "another key": initial(crypto(0, GOOD), to=b"somebody else"),
    "a long id": b"\xc0\0\0\0\1\x15" + bytes(100),
    "a length beyond the end": initial(crypto(0, GOOD))[:-1],
    "too long": initial(crypto(0, GOOD), pad=4200),
    "a frame that is none of an Initial packet": initial(b"\x1e" + crypto(0, GOOD)),
    "a frame number in two bytes": initial(b"\x40\1" + crypto(0, GOOD)),
    "a frame that is cut off": initial(crypto(0, GOOD)[:-1]),
    "an acknowledgement without an end": initial(b"\2\0\0\x7f\xff"),
    "too many frames": initial(b"\1" * 1100),
    "far off": initial(crypto(70000, GOOD)),
    "the farthest off": initial(crypto(2**61, GOOD)),
    "no hello": initial(crypto(0, b"\2" + GOOD[1:])),
    "an endless hello": initial(crypto(0, b"\1\xff\xff\xff")),
    "two hellos that differ": initial(crypto(0, GOOD + EVIL), pad=PATH_BYTES),
    "a hello that contradicts itself": initial(crypto(0, GOOD[:38] + b"\xff" + GOOD[39:])),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_is_malformed(name):
    assert show(UNREADABLE[name]) == MALFORMED


def test_what_stands_behind_the_end_of_a_connection_is_not_read():
    assert show(initial(b"\x1c\0\0\0" + crypto(0, GOOD))) is None
    assert first_datagrams().give_up() == NOTHING


def test_packet_numbers_are_what_every_server_takes_them_for():
    """Only the low bytes are sent: after packet 300, the number 5 in one byte is 261 for a server that has got it."""
    half = len(GOOD) // 2
    start = initial(crypto(0, GOOD[:half]), 300, number_bytes=2)
    assert show(start, initial(crypto(half, GOOD[half:]), 301, number_bytes=2)) == Shown("good.example")
    assert show(start, initial(crypto(half, GOOD[half:]), 5)) == MALFORMED
    assert show(initial(crypto(0, GOOD[:half]), 126), initial(crypto(half, GOOD[half:]), 127)) == Shown("good.example")


def test_a_client_holds_back_no_end_of_datagrams():
    first = first_datagrams()
    for count in range(MAX_HELD):
        assert first.feed(encode_datagram(initial(crypto(0, GOOD[:9]), count))) is None
    assert first.feed(encode_datagram(initial(crypto(0, GOOD[:9]), 99))) == MALFORMED
    assert first_datagrams().feed(b"") is None


def test_datagrams_behind_the_first_connection():
    check, judged = follow("good.example")
    passing = [
        b"",
        b"\x40" + bytes(40),  # short header
        initial(b"\2\0\0\0\0", 1, to=b"chosen by the server"),  # an acknowledgement, by the server's id
        initial(crypto(0, GOOD), 2),  # repeated
        initial(b"x" * 60, 3, kind=2),  # Handshake
        initial(b"x" * 60, 3, kind=1),
        initial(crypto(0, GOOD), 0, b"chosen in a Retry", token=b"token"),
        initial(crypto(0, GOOD), 0, b"after negotiation", version=V2),
        initial(crypto(0, LARGE), 0, version=V2),  # some clients begin again with the same id, and another hello
        initial(b"\1", 0, b"nothing to hide"),
        initial(b"\2\0\0\0\0", 4, version=V2, to=b"another"),  # RFC 9369 section 4.1: the first id, the new version
    ]
    for datagram in passing:
        assert check(datagram) == (datagram,)
    assert judged == [Shown("good.example")] * 3
    for datagram in (
        b"\xc0\xff\0\0\x1d" + bytes(50),
        initial(b"\1", 0, b"one", to=b"two"),
        b"\xc0\0\0\0\1",
        RFC_ID + b"\xff",
    ):
        assert check(datagram) == (() if datagram[0] & 0x80 else (datagram,))
    assert len(judged) == 3


def test_another_connection_of_one_session_shows_its_name():
    half = len(EVIL) // 2
    check, judged = follow("good.example")
    assert check(initial(crypto(0, EVIL[:half]), 0, b"another connection")) == ()
    assert judged == []
    assert check(initial(crypto(half, EVIL[half:]), 1, b"another connection")) is None
    assert judged == [Shown("evil.example")]
    check, judged = follow("good.example", "evil.example")
    pieces = [initial(crypto(at, EVIL[at : at + half + 1]), at, b"another connection") for at in (half, 0)]
    assert check(pieces[0]) == () and check(b"\x40" + bytes(40)) == (b"\x40" + bytes(40),)
    assert check(pieces[1]) == tuple(pieces)


def test_a_second_hello_shows_its_name():
    """A server asks for it with HelloRetryRequest."""
    check, judged = follow("good.example")
    assert check(initial(crypto(len(GOOD), GOOD[:50]), 1)) == ()
    assert check(initial(crypto(len(GOOD) + 50, GOOD[50:]), 2)) is not None
    assert judged == [Shown("good.example")]
    assert check(initial(crypto(2 * len(GOOD), EVIL), 3)) is None


def test_a_hello_that_was_passed_on_does_not_change():
    check, judged = follow("good.example", "evil.example")
    assert check(initial(crypto(0, EVIL), 1)) is None
    assert judged == [MALFORMED]


def test_one_id_has_one_hello_whatever_the_session():
    """Of two hellos that are both allowed, a server might get the first half of one and the second of the other."""
    memory, now = HelloMemory(), 0.0

    def shown(message, name=ID):
        return QuicSession(memory).read(initial(crypto(0, message), 0, name), now).hellos

    assert shown(GOOD) == shown(GOOD) == [Hello(b"good.example", False)]
    with pytest.raises(MalformedHello):
        shown(EVIL)
    assert shown(EVIL, b"another one")
    now = MEMORY_S
    assert shown(EVIL)


def test_a_full_memory_admits_no_more(monkeypatch):
    monkeypatch.setattr(sessions, "MAX_REMEMBERED", 2)
    memory = HelloMemory()
    assert [memory.admit((V1, bytes([n])), 0, b"x", 0.0) for n in (1, 2, 3, 1)] == [True, True, False, True]
    assert memory.admit((V1, b"\3"), 0, b"x", MEMORY_S)


def test_a_session_remembers_so_many_connections():
    check, judged = follow("good.example")
    for count in range(3 * MAX_CONNECTIONS):
        name = b"connection %3d" % count
        assert check(initial(crypto(0, GOOD[:9]), 0, name)) == ()
        if count % 2:
            datagrams = check(initial(crypto(0, GOOD), 1, name))
            assert len(datagrams) == 2
    assert len(judged) == 3 * MAX_CONNECTIONS // 2


def test_a_datagram_that_two_keys_open_is_malformed(monkeypatch):
    check, _ = follow("good.example")
    other = b"another connection"
    assert check(initial(crypto(0, GOOD), 0, other)) is not None
    monkeypatch.setattr(sessions, "derive_keys", lambda version, first_id: derive_keys(version, other))
    assert check(initial(b"\1", 5, other)) is None


@given(st.binary(max_size=300), st.integers(0, 1200), st.sampled_from(list(RFC_PACKETS.values())))
def test_noise_is_never_a_surprise(noise, cut, packet):
    sealed = initial(noise, 0)
    for datagram in (noise, packet[:cut] + noise, packet + noise, sealed, b"\xc0\0\0\0\1" + noise):
        shown = show(datagram)
        assert shown is None or isinstance(shown, Shown)
        check, _ = follow("good.example")
        assert check(datagram) in ((), (datagram,), None)


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_no_change_of_a_byte_shows_another_name_than_the_server_reads(place, change):
    changed = bytearray(GOOD)
    changed[place] ^= change
    try:
        connection = QuicSession(HelloMemory()).read(initial(crypto(0, bytes(changed))), 0.0)
    except MalformedHello:
        return
    for found in connection.hellos:
        assert found.server_name is None or found.server_name in bytes(changed)


def test_numbers_of_variable_length():
    for value in (0, 63, 64, 16383, 16384, 2**30 - 1, 2**30, 2**62 - 1):
        encoded = number(value)
        assert read_number(encoded, 0) == (value, len(encoded))
        for cut in range(len(encoded)):
            with pytest.raises(UnreadableDatagram):
                read_number(encoded[:cut], 0)
