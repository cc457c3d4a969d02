# SPDX-License-Identifier: Apache-2.0
"""Second hellos, as OpenSSL's clients send them when a server asks, and all that is none."""

import ssl
from contextlib import suppress

import pytest
from enclavekit_pf_proxy.passage import Passage
from enclavekit_pf_proxy.policy.client_hello import MAX_HELLO_BYTES, Hello, MalformedHello, read_hello
from enclavekit_pf_proxy.policy.first_bytes import MALFORMED, FirstBytes, Shown
from enclavekit_pf_proxy.policy.later_hellos import LaterHellos
from hypothesis import given
from hypothesis import strategies as st

from .egress_in_namespaces import make_context
from .quic_samples import hello

NAME = "good.example"
FIRST = Hello(NAME.encode(), False)
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


class Conversation:
    """A client and a server of OpenSSL, and what the client sent."""

    def __init__(self, directory, maximum=TLS_1_3, curve=None):
        self.server_context = make_context(directory)
        if curve is not None:
            self.server_context.set_ecdh_curve(curve)
        self.client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.client_context.check_hostname, self.client_context.verify_mode = False, ssl.CERT_NONE
        self.client_context.maximum_version = maximum
        self.session = None

    def run(self):
        """Shake hands, say something; return what the client sent, in flights."""
        to_server, to_client = (ssl.MemoryBIO(), ssl.MemoryBIO()), (ssl.MemoryBIO(), ssl.MemoryBIO())
        server = self.server_context.wrap_bio(*to_server, server_side=True)
        client = self.client_context.wrap_bio(*to_client, server_hostname=NAME, session=self.session)
        flights = []
        for _ in range(4):
            for end in (client, server):
                with suppress(ssl.SSLWantReadError):
                    end.do_handshake()
                    if end is client:
                        end.write(b"hello")
                    end.read()
            flights.append(to_client[1].read())
            to_server[0].write(flights[-1])
            with suppress(ssl.SSLWantReadError):
                server.do_handshake()
                server.write(b"answer")
                server.read()
            to_client[0].write(to_server[1].read())
        self.session = client.session
        return [flight for flight in flights if flight]


def read(first, data, step=4096):
    """Return the hellos and whether there can be others."""
    later = LaterHellos(first)
    found = [one for start in range(0, len(data), step) for one in later.feed(data[start : start + step])]
    return found, later.is_over


@pytest.mark.parametrize("maximum", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize("step", [1, 4096])
def test_handshakes_with_one_hello_are_over_with_what_follows(tmp_path, maximum, step):
    conversation = Conversation(tmp_path, maximum)
    for _ in range(2):  # the second one goes on with the first one's session
        flights = conversation.run()
        assert read_hello(flights[0]).server_name == NAME.encode()
        assert read(FIRST, b"".join(flights[1:]), step) == ([], True)


@pytest.mark.parametrize("step", [1, 3, 4096])
def test_a_server_that_asks_for_another_key_gets_a_second_hello(tmp_path, step):
    flights = Conversation(tmp_path, curve="secp384r1").run()
    assert len(flights) > 2  # the hello, another one, the rest
    assert read(FIRST, flights[1], step) == ([FIRST], False)
    assert read(FIRST, b"".join(flights[1:]), step) == ([FIRST], True)


def record(kind, data, version=b"\3\3"):
    return bytes([kind]) + version + len(data).to_bytes(2, "big") + data


GOOD, EVIL = hello(NAME), hello("evil.example")
EVIL_HELLO = Hello(b"evil.example", False)
CHANGE = record(20, b"\1")
CASES = {
    "another name": (record(22, EVIL), [EVIL_HELLO], False),
    "behind a ChangeCipherSpec": (CHANGE + record(22, EVIL), [EVIL_HELLO], False),
    "behind an alert": (record(21, b"\1\0") + record(22, EVIL), [EVIL_HELLO], False),
    "in small records": (b"".join(record(22, EVIL[n : n + 1]) for n in range(len(EVIL))), [EVIL_HELLO], False),
    "two of them": (2 * record(22, EVIL), 2 * [EVIL_HELLO], False),
    "encrypted data": (record(23, EVIL), [], True),
    "a key of TLS 1.2": (record(22, b"\x10\0\0\1x"), [], True),
    "by chance like a hello": (CHANGE + record(22, b"\1\xff\xff\xff\3" + bytes(35)), [], True),
    "by chance less like it": (CHANGE + record(22, b"\1\0\0\xff\7" + bytes(35)), [], True),
    "an empty record": (record(22, b"") + record(22, EVIL), [EVIL_HELLO], False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("step", [1, 4096])
def test_records(case, step):
    data, hellos, is_over = CASES[case]
    assert read(FIRST, data, step) == (hellos, is_over)


def test_early_data_may_come_before_a_second_hello():
    early = Hello(NAME.encode(), False, early_data=True)
    assert read(early, CHANGE + 3 * record(23, bytes(1000)) + record(22, EVIL), 100) == ([EVIL_HELLO], False)


@pytest.mark.parametrize(
    "data",
    [
        record(24, b"x"),
        b"GET / HTTP/1.1\r\n",
        record(22, EVIL + b"x"),
        record(22, b"\1" + (MAX_HELLO_BYTES + 1).to_bytes(3, "big") + b"\3\3"),
        record(22, EVIL[:50]) + record(22, EVIL[50:] + b"x"),
        record(22, EVIL[:38] + b"\xff" + EVIL[39:]),
    ],
)
def test_what_is_neither_is_malformed(data):
    for step in (1, 4096):
        with pytest.raises(MalformedHello):
            read(FIRST, data, step)


def follow(*allowed):
    first, judged = FirstBytes(), []
    assert first.feed(record(22, GOOD)) == Shown(NAME)
    return first.follow(NAME, lambda shown: judged.append(shown) or shown.name in allowed), judged


def test_a_second_name_is_judged():
    for allowed, passage in (((), Passage.REFUSED), (("evil.example",), Passage.ALLOWED)):
        check, judged = follow(*allowed)
        assert check(CHANGE + record(22, EVIL)[:100]) is Passage.ALLOWED and judged == []
        assert check(record(22, EVIL)[100:]) is passage
        assert judged == [Shown("evil.example")]
    check, judged = follow(NAME)
    assert check(record(24, b"x")) is Passage.REFUSED and judged == [MALFORMED]
    check, judged = follow(NAME)
    assert check(CHANGE) is Passage.ALLOWED and check(record(23, b"x")) is Passage.UNWATCHED and judged == []


def test_a_second_hello_before_anybody_asked_is_malformed():
    assert FirstBytes().feed(record(22, GOOD) + record(22, GOOD)) == MALFORMED
    first = FirstBytes()
    assert first.feed(record(22, GOOD) + record(22, EVIL)[:50]) == Shown(NAME)
    assert first.follow(NAME, lambda shown: False)(record(22, EVIL)[50:]) is Passage.REFUSED
    first = FirstBytes()
    assert first.feed(record(22, GOOD) + record(23, b"x")) == Shown(NAME)
    assert first.follow(NAME, lambda shown: False) is None  # there is nothing to ask


@given(st.binary(max_size=100), st.integers(0, len(EVIL)), st.integers(1, 20), st.booleans())
def test_noise_is_malformed_or_read(noise, cut, step, early):
    data = CHANGE + record(22, EVIL)[:cut] + noise + record(22, EVIL)
    try:
        read(Hello(None, False, early), data, step)
    except MalformedHello:
        pass
