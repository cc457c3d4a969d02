# SPDX-License-Identifier: Apache-2.0
"""The headers, byte by byte: tables shared with docs/reference/pf-proxy-wire.md, splits, truncation, noise."""

import re
from pathlib import Path

import pytest
from enclavekit_core.address import TcpAddress
from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError
from enclavekit_core.proxy_protocol import (
    MAX_V1_BYTES,
    SIGNATURE,
    Proxied,
    decode_proxied,
    encode_v1,
    encode_v2,
)
from enclavekit_pf_proxy.wire.destination import decode_destination, encode_destination
from enclavekit_pf_proxy.wire.opening import MAX_OPENING_BYTES, Opening, OpeningDecoder
from enclavekit_pf_proxy.wire.request import (
    Protocol,
    Request,
    Status,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    is_name,
)
from hypothesis import given
from hypothesis import strategies as st

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/pf-proxy-wire.md"
V4, V6 = TcpAddress("1.2.3.4", 443), TcpAddress("2001:db8::1", 8443)
DESTINATIONS = {
    "v1 1.2.3.4:443": (V4, "04 04030201 bb01"),
    "v1 [2001:db8::1]:8443": (V6, "06 010000000000000000000000b80d0120 fb20"),
}
REQUESTS = {
    "v2 1.2.3.4:443": (Request(0x0102030405060708, V4), "e5 01 0010 0102030405060708 01 06 01bb 01020304"),
    "v2 api.example:443 for 10.0.0.9:50000": (
        Request(1, TcpAddress("api.example", 443), TcpAddress("10.0.0.9", 50000)),
        "e5 01 001f 0000000000000001 02 0d 01bb 6170692e6578616d706c65 03 06 c350 0a000009",
    ),
    "v2 1.2.3.4:443 over UDP": (
        Request(1, V4, protocol=Protocol.UDP),
        "e5 01 0013 0000000000000001 01 06 01bb 01020304 04 01 11",
    ),
    "v2 [2001:db8::1]:8443": (
        Request(2**64 - 1, V6),
        "e5 01 001c ffffffffffffffff 01 12 20fb 20010db8000000000000000000000001",
    ),
}
DATAGRAMS = {"two datagrams": ([b"ping", b""], "0004 70696e67 0000")}
NOTICES = {"refused": "ffff 01"}
REPLIES = {"connected": (Status.CONNECTED, "e5 01 00 00 00000000"), "denied": (Status.DENIED, "e5 01 04 00 00000000")}
PAIR4 = Proxied(TcpAddress("10.0.0.9", 50000), V4)
PAIR6 = Proxied(TcpAddress("2001:db8::9", 50000), V6)
PROXIED = [
    (encode_v1(PAIR4), PAIR4),
    (encode_v2(PAIR4), PAIR4),
    (encode_v1(PAIR6), PAIR6),
    (encode_v2(PAIR6), PAIR6),
    (encode_v1(Proxied()), Proxied()),
    (encode_v2(Proxied()), Proxied()),
    (b"PROXY UNKNOWN ffff:: ::1 65535 65535\r\n", Proxied()),
    (SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216), Proxied()),  # a Unix pair
    (SIGNATURE + b"\x21\x11\x00\x11" + bytes([10, 0, 0, 9, 1, 2, 3, 4, 0xC3, 0x50, 1, 0xBB]) + b"\4\0\2ab", PAIR4),
]


def bytes_of(text):
    return bytes.fromhex(text.replace(" ", ""))


def decoders():
    for destination, text in DESTINATIONS.values():
        yield decode_destination, bytes_of(text), destination
    for request, text in REQUESTS.values():
        yield decode_request, bytes_of(text), request
    for data, proxied in PROXIED:
        yield decode_proxied, data, proxied


@pytest.mark.parametrize(("decode", "data", "value"), list(decoders()))
def test_decoders_know_the_table_every_truncation_and_what_follows(decode, data, value):
    for cut in range(len(data)):
        assert decode(data[:cut]) is None
    assert decode(data) == (value, len(data))
    assert decode(data + b"stream") == (value, len(data))


def test_encoders_know_the_table():
    for destination, text in DESTINATIONS.values():
        assert encode_destination(destination) == bytes_of(text)
    for request, text in REQUESTS.values():
        assert encode_request(request) == bytes_of(text)
    for status, text in REPLIES.values():
        assert encode_reply(status) == bytes_of(text)
        assert [decode_reply(bytes_of(text)[:cut]) for cut in range(9)] == [None] * 8 + [status]


def test_the_page_shows_these_bytes():
    shown = {re.sub(r"\s+", " ", line).strip() for line in PAGE.read_text().splitlines()}
    for name, (_, text) in {**DESTINATIONS, **REQUESTS, **REPLIES, **DATAGRAMS}.items():
        assert any(line.startswith(text) for line in shown), name
    for name, text in NOTICES.items():
        assert any(line.startswith(text) for line in shown), name


@pytest.mark.parametrize(
    ("decode", "text"),
    [
        (decode_destination, "05"),
        (decode_destination, "00"),
        (decode_destination, "04 04030201 0000"),
        (decode_request, "04"),
        (decode_request, "e5 02"),
        (decode_request, "e5 01 0007"),
        (decode_request, "e5 01 0401"),
        (decode_request, "e5 01 0008 0000000000000001"),
        (decode_request, "e5 01 0010 0102030405060708 01 06 0000 01020304"),
        (decode_request, "e5 01 000f 0102030405060708 01 05 01bb 010203"),
        (decode_request, "e5 01 0010 0102030405060708 01 07 01bb 01020304"),
        (decode_request, "e5 01 0010 0102030405060708 04 06 01bb 01020304"),
        (decode_request, "e5 01 0018 0102030405060708 01 06 01bb 01020304 01 06 01bb 01020304"),
        (decode_request, "e5 01 000f 0102030405060708 02 05 01bb 612e31"),
        (decode_request, "e5 01 000f 0102030405060708 02 05 01bb 410062"),
        (decode_reply, "e4"),
        (decode_reply, "e5 02"),
        (decode_proxied, "00"),
        (decode_proxied, b"PROXX".hex()),
        (decode_proxied, (b"PROXY " + b"x" * MAX_V1_BYTES).hex()),
        (decode_proxied, b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n".hex()),
        (decode_proxied, b"PROXY TCP4 1.2.3.4 ::1 1 2\r\n".hex()),
        (decode_proxied, b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n".hex()),
        (decode_proxied, b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n".hex()),
        (decode_proxied, b"PROXY TCP9 1.2.3.4 5.6.7.8 1 2\r\n".hex()),
        (decode_proxied, (SIGNATURE + b"\x11\x11\0\0").hex()),
        (decode_proxied, (SIGNATURE + b"\x21\x11\0\x04abcd").hex()),
        (decode_proxied, (SIGNATURE + b"\x21\x11\xff\xff").hex()),
    ],
)
def test_what_is_malformed_is_refused(decode, text):
    with pytest.raises(RemoteProtocolError, match="cannot read"):
        decode(bytes_of(text))


def test_optional_fields_may_be_unknown():
    data = bytes_of("e5 01 0014 0102030405060708 ff 02 abcd 01 06 01bb 01020304")
    assert decode_request(data) == (Request(0x0102030405060708, V4), len(data))


def test_a_status_of_a_later_version_is_a_failure():
    assert decode_reply(bytes_of("e5 01 63 00 00000000")) is Status.FAILED


def test_a_name_fits_the_versioned_header_only():
    with pytest.raises(LocalProtocolError):
        encode_destination(TcpAddress("api.example", 1))
    with pytest.raises(LocalProtocolError):
        encode_request(Request(1, TcpAddress("no name", 1)))


def test_addresses_of_two_families_are_told_as_ipv6():
    mixed = Proxied(TcpAddress("10.0.0.9", 1), TcpAddress("2001:db8::1", 2))
    for encode in (encode_v1, encode_v2):
        found, _ = decode_proxied(encode(mixed))
        assert found == Proxied(TcpAddress("::ffff:a00:9", 1), TcpAddress("2001:db8::1", 2))


hosts = st.ip_addresses().map(str)
ends = st.builds(TcpAddress, hosts, st.integers(1, 65535))
names = st.from_regex(r"[a-z][a-z0-9]{0,20}(\.[a-z][a-z0-9]{0,20}){0,3}", fullmatch=True)
requests = st.builds(
    Request, st.integers(0, 2**64 - 1), ends | st.builds(TcpAddress, names, st.integers(1, 65535)), st.none() | ends
)


@given(requests)
def test_any_request_survives(request):
    data = encode_request(request)
    assert decode_request(data) == (request, len(data))


@given(ends)
def test_any_destination_survives(destination):
    data = encode_destination(destination)
    assert len(data) in (7, 19)
    assert decode_destination(data) == (destination, len(data))


@given(st.sampled_from([b"", b"\xe5\1", b"\4", b"PROXY ", SIGNATURE]), st.binary(max_size=300))
def test_noise_is_refused_or_decoded_never_a_surprise(start, noise):
    for decode in (decode_destination, decode_request, decode_reply, decode_proxied):
        try:
            decode(start + noise)
        except RemoteProtocolError:
            pass


@given(requests, st.binary(max_size=40), st.integers(1, 50), st.booleans())
def test_openings_come_in_any_pieces(request, rest, step, with_proxied):
    data = (encode_v2(PAIR4) if with_proxied else b"") + encode_request(request)
    decoder = OpeningDecoder(expects_proxied=with_proxied, expects_destination=True)
    for start in range(0, len(data), step):
        found = decoder.feed(data[start : start + step])
        assert (found is not None) == (start + step >= len(data))
    assert found == Opening(
        PAIR4 if with_proxied else None, request.destination, request.source, request.connection_id, True
    )
    whole = OpeningDecoder(expects_proxied=with_proxied, expects_destination=True).feed(data + rest)
    assert whole is not None and whole.rest == rest


def test_an_opening_without_destination_keeps_the_stream():
    decoder = OpeningDecoder(expects_proxied=True, expects_destination=False)
    assert decoder.feed(encode_v1(PAIR4) + b"GET /") == Opening(proxied=PAIR4, rest=b"GET /")


def test_an_opening_has_an_end_and_a_limit():
    decoder = OpeningDecoder(expects_proxied=False, expects_destination=True)
    with pytest.raises(RemoteProtocolError, match="ended"):
        decoder.feed_eof()
    with pytest.raises(RemoteProtocolError):
        decoder.feed(bytes([4]) * (MAX_OPENING_BYTES + 1))


def test_names_are_names():
    assert is_name(b"a.b-c.d1")
    for text in (b"", b"a..b", b"-a.b", b"a.b-", b"1.2.3.4", b"A.b", b"a b", b"a." + b"x" * 64, b"a." * 127 + b"a"):
        assert is_name(text) == (text == b"a." * 127 + b"a" and len(text) <= 253), text
