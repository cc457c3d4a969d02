# SPDX-License-Identifier: Apache-2.0
"""What an app might try with QUIC and other datagrams: what of it came through to a server that sends all back, and
whether a client of another maker gets its answer.
"""

import asyncio
import functools
import socket
import ssl

from aioquic.asyncio import connect
from aioquic.quic.configuration import QuicConfiguration
from egress_in_namespaces import ECHO_PORT, OLD_PORT, PUBLIC, QUIC_PORT, RETRY_PORT
from quic_samples import V2, crypto, hello, initial, with_extension

PATIENCE_S = 20
GRACE_S = 0.2  # for what is not to come at all, after all that came has been there
# how many datagrams of an attempt are waited for, if it is not to be refused
AWAITED = {
    "QUIC in two datagrams": 2,
    "QUIC in two datagrams, the second first": 3,
    "QUIC of version 2": 2,
    "QUIC again after a Retry": 2,
    "QUIC again after version negotiation": 2,
    "QUIC, another good connection": 3,
    "QUIC, an unknown version later": 2,
    "QUIC, another key later": 2,
}
GOOD, EVIL = hello("good.example"), hello("neighbour.example")
LARGE, LARGE_EVIL = hello("good.example", 2000), hello("neighbour.example", 2000)
HALF = len(LARGE) // 2
SHORT = b"\x40" + bytes(40)


def make_attempts(one, other):
    """Return attempt -> datagrams by name. `one`, `other`: ids of connections, which no other attempt has."""
    start = initial(crypto(0, GOOD), 0, one, pad=1200)
    return {
        "QUIC in two datagrams": {
            "first": initial(crypto(0, LARGE[:HALF]), 0, one),
            "second": initial(crypto(HALF, LARGE[HALF:]), 1, one),
        },
        "QUIC in two datagrams, the second first": {
            "second": initial(crypto(HALF, LARGE[HALF:]), 1, one),
            "first": initial(crypto(0, LARGE[:HALF]), 0, one),
            "then": SHORT,
        },
        "QUIC of version 2": {"hello": initial(crypto(0, GOOD), 0, one, version=V2), "then": SHORT},
        "QUIC again after a Retry": {"hello": start, "again": initial(crypto(0, GOOD), 1, other, token=b"token")},
        "QUIC again after version negotiation": {
            "hello": start,
            "again": initial(crypto(0, GOOD), 1, other, version=V2),
        },
        "QUIC, another good connection": {
            "hello": start,
            "then": SHORT,
            "hello of the other": initial(crypto(0, GOOD), 0, other),
        },
        "QUIC for another name": {"hello": initial(crypto(0, EVIL), 0, one, pad=1200), "then": SHORT},
        "QUIC of version 2 for another name": {"hello": initial(crypto(0, EVIL), 0, one, version=V2), "then": SHORT},
        "QUIC for another name in two datagrams": {
            "first": initial(crypto(0, LARGE_EVIL[:HALF]), 0, one),
            "second": initial(crypto(HALF, LARGE_EVIL[HALF:]), 1, one),
        },
        "QUIC for another name, the second datagram first": {
            "second": initial(crypto(HALF, LARGE_EVIL[HALF:]), 1, one),
            "first": initial(crypto(0, LARGE_EVIL[:HALF]), 0, one),
        },
        "QUIC for two names, coalesced": {"both": start + initial(crypto(0, EVIL), 0, other)},
        "QUIC whose pieces contradict each other": {
            "first": initial(crypto(0, GOOD[:200]), 0, one),
            "another first": initial(crypto(0, EVIL[:200]), 1, one),
            "rest": initial(crypto(200, GOOD[200:]), 2, one),
        },
        "QUIC without a name": {"hello": initial(crypto(0, hello(None)), 0, one)},
        "QUIC with an encrypted hello": {"hello": initial(crypto(0, with_extension(GOOD, 0xFE0D, b"x" * 100)), 0, one)},
        "QUIC of an unknown version": {"hello": b"\xc0\xff\0\0\x1d" + start[5:], "then": SHORT},
        "QUIC with another key": {"hello": initial(crypto(0, GOOD), 0, one, to=other), "then": SHORT},
        "half a QUIC hello": {"first": initial(crypto(0, LARGE[:HALF]), 0, one), "then": SHORT},
        "QUIC in the middle of a connection": {"then": SHORT},
        "QUIC, early data first": {"early": initial(bytes(50), 0, one, kind=1), "then": SHORT},
        "datagrams that are no QUIC": {"text": b"ping"},
        "DTLS": {"hello": b"\x16\xfe\xfd" + bytes(60)},
        "QUIC, another name later": {"hello": start, "other": initial(crypto(0, EVIL), 0, other), "then": SHORT},
        "QUIC, another name later in pieces": {
            "hello": start,
            "first": initial(crypto(0, LARGE_EVIL[:HALF]), 0, other),
            "second": initial(crypto(HALF, LARGE_EVIL[HALF:]), 1, other),
        },
        "QUIC, another name in a second hello": {"hello": start, "second": initial(crypto(len(GOOD), EVIL), 1, one)},
        "QUIC, another name by the server's id": {"hello": start, "other": initial(crypto(0, EVIL), 1, one, to=other)},
        "QUIC, an unknown version later": {"hello": start, "other": b"\xc0\xff\0\0\x1d" + start[5:], "then": SHORT},
        "QUIC, another key later": {
            "hello": start,
            "other": initial(crypto(0, EVIL), 0, b"one", to=other),
            "then": SHORT,
        },
    }


# the result has the names of those that came back
ATTEMPTS = {
    name: make_attempts(b"one of %d" % number, b"another one of %d" % number)[name]
    for number, name in enumerate(make_attempts(b"", b""))
}
LAST = initial(crypto(0, GOOD), 0, b"one of the last")
CLIENTS = {
    "QUIC client": (QUIC_PORT, 1, 0),
    "QUIC client of version 2": (QUIC_PORT, 0x6B3343CF, 0),
    "QUIC client with a hello of three datagrams": (QUIC_PORT, 1, 200),
    "QUIC client that is sent a Retry": (RETRY_PORT, 1, 0),
    "QUIC client that negotiates its version": (OLD_PORT, 0x6B3343CF, 0),
}


@functools.cache
def try_datagrams():
    """Return what came back of every attempt."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
        socks = {name: socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for name in ATTEMPTS}
        for name, sock in socks.items():
            sock.bind(("127.0.0.1", 0))
            sock.connect((PUBLIC, ECHO_PORT))
            for datagram in ATTEMPTS[name].values():
                sock.send(datagram)
        last.settimeout(PATIENCE_S)
        last.connect((PUBLIC, ECHO_PORT))
        last.send(LAST)
        assert last.recv(65535) == LAST  # which came after all others
        return {name: collect(socks[name], ATTEMPTS[name], AWAITED.get(name, 0)) for name in ATTEMPTS}


def collect(sock, sent, awaited):
    names = {datagram: name for name, datagram in sent.items()}
    found = []
    with sock:
        while True:
            sock.settimeout(PATIENCE_S if len(found) < awaited else GRACE_S)
            try:
                found.append(names[sock.recv(65535)])
            except OSError:
                return ", ".join(found) or "refused"


def ask(name):
    """Return a client's answer."""
    port, version, protocols = CLIENTS[name]
    configuration = QuicConfiguration(
        is_client=True,
        server_name="good.example",
        verify_mode=ssl.CERT_NONE,
        original_version=version,
        alpn_protocols=["h3", *(f"protocol {number}" for number in range(protocols))],
        idle_timeout=PATIENCE_S,
    )

    async def run():
        async with connect(PUBLIC, port, configuration=configuration) as client:
            reader, writer = await client.create_stream()
            writer.write(b"question")
            writer.write_eof()
            return (await reader.read()).decode()

    return asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
