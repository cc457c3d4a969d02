# SPDX-License-Identifier: Apache-2.0
"""What first bytes show, however they are cut; hellos as OpenSSL makes them."""

import ssl

import pytest
from enclavekit_pf_proxy.policy.client_hello import MAX_HELLO_BYTES, Hello, HelloReader, MalformedHello, read_hello
from enclavekit_pf_proxy.policy.first_bytes import MALFORMED, NOTHING, FirstBytes, Shown
from enclavekit_pf_proxy.policy.http_requests import MAX_HEAD_BYTES, MalformedRequest, RequestReader
from hypothesis import given
from hypothesis import strategies as st


def hello(name, **versions):
    context = ssl.create_default_context()
    context.check_hostname = name is not None
    if "maximum" in versions:
        context.maximum_version = versions["maximum"]
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def records(message, size):
    """The handshake message in records of `size` bytes."""
    pieces = [message[start : start + size] for start in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def body_of(wire):
    return wire[5:]


PLAIN, WITHOUT = hello("api.example.com"), hello(None)


def with_extension(wire, kind, value):
    """The hello with one more extension."""
    message = bytearray(body_of(wire))
    extension = kind.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value
    session = 4 + 2 + 32
    ciphers = session + 1 + message[session]
    methods = ciphers + 2 + int.from_bytes(message[ciphers : ciphers + 2], "big")
    start = methods + 1 + message[methods]
    length = int.from_bytes(message[start : start + 2], "big") + len(extension)
    message[start : start + 2] = length.to_bytes(2, "big")
    message += extension
    message[1:4] = (len(message) - 4).to_bytes(3, "big")
    return records(bytes(message), 2**14)


@pytest.mark.parametrize("maximum", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_hellos_of_openssl(maximum):
    assert read_hello(hello("api.example.com", maximum=maximum)) == Hello(b"api.example.com", False)
    assert read_hello(hello(None, maximum=maximum)) == Hello(None, False)


def test_every_truncation_waits_for_more():
    for cut in range(len(PLAIN)):
        assert read_hello(PLAIN[:cut]) is None
        assert FirstBytes().feed(PLAIN[:cut]) is None


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_fragments_hide_nothing(size):
    wire = records(body_of(PLAIN), size)
    assert read_hello(wire) == Hello(b"api.example.com", False)
    first = FirstBytes()
    shown = None
    for start in range(0, len(wire), 50):
        assert shown is None
        shown = first.feed(wire[start : start + 50])
    assert shown == Shown("api.example.com")
    assert first.data == wire


def test_a_hello_in_the_smallest_pieces_is_read_once():
    """Read anew with each byte it would be millions of steps, while all other connections wait."""
    steps = 0

    class Counted(HelloReader):
        def _read_header(self):
            nonlocal steps
            steps += 1
            return super()._read_header()

    wire, reader = records(body_of(PLAIN), 1), Counted()
    found = [reader.feed(wire[start : start + 1]) for start in range(len(wire))]
    assert found[-1] == Hello(b"api.example.com", False) and set(found[:-1]) == {None}
    assert steps <= len(wire)


def test_a_record_that_claims_more_than_the_hello_is_malformed():
    for end in (5 + 10, len(PLAIN)):
        longer = PLAIN[:3] + (len(PLAIN) - 5 + 1).to_bytes(2, "big") + PLAIN[5:]
        assert FirstBytes().feed(longer[:end]) == (MALFORMED if end == len(PLAIN) else None)


def test_encrypted_hellos_are_known():
    for kind in (0xFE0D, 0xFFCE):
        assert FirstBytes().feed(with_extension(PLAIN, kind, b"x" * 40)) == Shown("api.example.com", encrypted=True)
    assert FirstBytes().feed(with_extension(WITHOUT, 0xFE0D, b"x")) == Shown(encrypted=True)


NAME = b"evil.example"
ENTRY = b"\0" + len(NAME).to_bytes(2, "big") + NAME


@pytest.mark.parametrize(
    "wire",
    [
        with_extension(PLAIN, 0, len(ENTRY).to_bytes(2, "big") + ENTRY),  # twice
        with_extension(WITHOUT, 0, (2 * len(ENTRY)).to_bytes(2, "big") + 2 * ENTRY),  # two names
        with_extension(WITHOUT, 0, len(ENTRY).to_bytes(2, "big") + ENTRY + b"x"),
        with_extension(WITHOUT, 0, b""),
        with_extension(WITHOUT, 0, b"\0\3\0\0\0"),
        with_extension(WITHOUT, 0, b"\0\4\1\0\1a"),
        b"\x16\x03\x01\0\0",
        b"\x16\x03\x01\xff\xff",
        b"\x16\x02\x01\0\5",
        b"\x16\x03\x01\0\4\x02\0\0\0",  # a ServerHello
        b"\x16\x03\x01\0\4\x01\0\0\0",
        b"\x16\x03\x01\0\4\x01" + (MAX_HELLO_BYTES + 1).to_bytes(3, "big"),
        b"\x16\x03\x01\0\1\x01" + b"\x17\x03\x01\0\1\0",  # another kind of record in between
        records(body_of(PLAIN) + b"x", 2**14),
        records(body_of(PLAIN)[:-1] + b"", 2**14)[:3] + b"\0\6\1\0\0\2\3\3",
    ],
)
def test_contradictions_are_malformed(wire):
    with pytest.raises(MalformedHello):
        read_hello(wire)
    assert FirstBytes().feed(wire) == MALFORMED


def test_a_name_that_is_an_address_is_malformed():
    entry = b"\0\0\x071.2.3.4"
    assert FirstBytes().feed(with_extension(WITHOUT, 0, len(entry).to_bytes(2, "big") + entry)) == MALFORMED


@given(st.binary(max_size=200), st.integers(0, len(PLAIN)))
def test_noise_is_never_a_surprise(noise, cut):
    for data in (noise, PLAIN[:cut] + noise, b"\x16\x03\x01" + noise, b"GET " + noise):
        first = FirstBytes()
        shown = first.feed(data)
        assert shown is None or isinstance(shown, Shown)
        assert first.data == data
        assert first.give_up() == (MALFORMED if data else NOTHING)


REQUESTS = {
    b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n": Shown("api.example.com"),
    b"GET / HTTP/1.1\r\nhOsT:  API.example.com:8080 \r\nX: y\r\n\r\n": Shown("api.example.com"),
    b"GET http://api.example.com/x HTTP/1.1\r\nHost: api.example.com\r\n\r\n": Shown("api.example.com"),
    b"GET http://evil.example/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n": MALFORMED,
    b"GET //evil.example/ HTTP/1.1\r\nHost: api.example.com\r\n\r\n": Shown("api.example.com"),
    b"GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n": MALFORMED,
    b"GET / HTTP/1.1\r\n\r\n": MALFORMED,
    b"GET / HTTP/1.0\r\n\r\n": NOTHING,
    b"GET / HTTP/1.1\r\nHost: 1.2.3.4\r\n\r\n": NOTHING,
    b"GET / HTTP/1.1\r\nHost: a.example:80@b.example\r\n\r\n": NOTHING,
    b"GET / HTTP/1.1\r\nHost : a.example\r\n\r\n": MALFORMED,
    b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n": Shown("a.example"),
    b"CONNECT b.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n": MALFORMED,
    b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n": MALFORMED,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": NOTHING,
    b"SSH-2.0-OpenSSH\r\n": NOTHING,
    b"\0\0\0\x08\x04\xd2\x16\x2f": NOTHING,
    b"GETX / HTTP/1.1\r\n": NOTHING,
}


@pytest.mark.parametrize("data", REQUESTS, ids=lambda data: data[:40].decode("latin-1"))
def test_requests(data):
    assert FirstBytes().feed(data) == REQUESTS[data]


def test_a_request_in_pieces_waits_for_its_head():
    first = FirstBytes()
    data = b"POST /x HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 3\r\n\r\n"
    for byte in data[:-1]:
        assert first.feed(bytes([byte])) is None
    assert first.feed(data[-1:]) == Shown("api.example.com")
    assert first.data == data


def get(host, *lines, method="GET"):
    return "\r\n".join((f"{method} / HTTP/1.1", f"Host: {host}", *lines, "", "")).encode()


BODY = len(get("x.example"))
START_OF_CHUNKS = get("a.example", "Transfer-Encoding: chunked", method="POST")
CHUNKED = get("a.example", "Transfer-Encoding: chunked", method="POST") + b"5;x=y\r\nGET /\r\n0\r\nT: x\r\n\r\n"
STREAMS = {
    "one after the other": (get("a.example") + get("b.example"), ["a.example", "b.example"]),
    "a body of known length": (
        get("a.example", f"Content-Length: {len(get('x.example'))}", method="POST")
        + get("x.example")
        + get("b.example"),
        ["a.example", "b.example"],
    ),
    "chunks": (CHUNKED + get("b.example"), ["a.example", "b.example"]),
    "after an upgrade that may not have been taken up": (
        get("a.example", "Connection: Upgrade", "Upgrade: h2c") + get("b.example"),
        ["a.example", "b.example"],
    ),
    "an asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", ["a.example"]),
    "a target with a port": (b"GET http://A.example:80/x?y#z HTTP/1.1\r\nHost: a.example\r\n\r\n", ["a.example"]),
    "chunks with two trailers": (
        START_OF_CHUNKS + b"0\r\nX: y\r\nZ: \r\n\r\n" + get("b.example"),
        ["a.example", "b.example"],
    ),
    "no host": (b"GET / HTTP/1.0\r\n\r\n", [None]),
}


@pytest.mark.parametrize("case", STREAMS)
@pytest.mark.parametrize("step", [1, 7, 4096])
def test_every_request_of_a_connection_is_read(case, step):
    data, names = STREAMS[case]
    reader = RequestReader()
    found = [name for start in range(0, len(data), step) for name in reader.feed(data[start : start + step])]
    assert found == names


CONTRADICTIONS = {
    "bare LF in a head": b"GET / HTTP/1.1\r\nHost: a.example\nX: y\r\n\r\n",
    "bare CR in a head": b"GET / HTTP/1.1\r\nHost: a.example\rX: y\r\n\r\n",
    "a request of HTTP/0.9": b"GET /\n",
    "two framings": get("a.example", "Content-Length: 5", "Transfer-Encoding: chunked", method="POST"),
    "two lengths": get("a.example", "Content-Length: 5", "Content-Length: 6", method="POST"),
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n",
    "another coding": get("a.example", "Transfer-Encoding: gzip, chunked", method="POST"),
    "a length that is none": get("a.example", "Content-Length: +5", method="POST"),
    "a chunk that is none": get("a.example", "Transfer-Encoding: chunked", method="POST") + b"0x5\r\n",
    "two hosts": get("a.example", "Host: b.example"),
    "a folded host": b"GET / HTTP/1.1\r\nHost: a.example\r\n b.example\r\n\r\n",
    "an endless head": b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * MAX_HEAD_BYTES,
    "a version that is none": b"GET / HTTP/1.2\r\nHost: a.example\r\n\r\n",
    "HTTP/2 as text": b"GET / HTTP/2.0\r\nHost: a.example\r\n\r\n",
    "a backslash in a target": b"GET http://b.example\\@a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "a user in a target": b"GET http://b.example@a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "a query behind the host": b"GET http://a.example?@b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "a fragment behind the host": b"GET http://b.example#@a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "a target that is nothing": b"GET a.example/x HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "more than an asterisk": b"OPTIONS *b HTTP/1.1\r\nHost: a.example\r\n\r\n",
    "chunks that end in LF": START_OF_CHUNKS + b"2\r\nab\r\n0\r\n\n" + get("b.example"),
    "a chunk that does not end": START_OF_CHUNKS + b"2\r\nabXX0\r\n\r\n" + get("b.example"),
    "a trailer that ends in LF": START_OF_CHUNKS + b"0\r\nX: y\n\r\n" + get("b.example"),
    "a trailer before one that ends in LF": START_OF_CHUNKS + b"0\r\nX: y\nHost: b\r\n\r\n" + get("b.example"),
    "a folded trailer": START_OF_CHUNKS + b"0\r\nX: y\r\n z\r\n\r\n" + get("b.example"),
    "frames of another protocol": get("a.example", "Connection: Upgrade", "Upgrade: websocket")
    + b"\x81\x05hello\r\n\r\n",
    "a hello after CONNECT": get("a.example", method="CONNECT") + PLAIN + b"\r\n\r\n",
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
@pytest.mark.parametrize("step", [1, 4096])
def test_requests_that_can_be_read_in_two_ways_are_malformed(case, step):
    data, reader = CONTRADICTIONS[case], RequestReader()
    names = []
    with pytest.raises(MalformedRequest):
        for start in range(0, len(data), step):
            names += reader.feed(data[start : start + step])
    assert names in ([], ["a.example"], [None])


@given(st.binary(max_size=60), st.integers(0, len(CHUNKED)), st.integers(1, 20))
def test_noise_in_a_connection_is_malformed_or_read(noise, cut, step):
    data, reader = CHUNKED[:cut] + noise + CHUNKED, RequestReader()
    try:
        for start in range(0, len(data), step):
            reader.feed(data[start : start + step])
    except MalformedRequest:
        pass


def test_requests_sent_at_once_for_different_hosts_are_malformed():
    assert FirstBytes().feed(get("a.example") + get("b.example")) == MALFORMED
    assert FirstBytes().feed(get("a.example") + get("a.example")) == Shown("a.example")
