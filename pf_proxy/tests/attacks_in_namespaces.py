# SPDX-License-Identifier: Apache-2.0
"""What an app might try to get past the policy, with sockets of its own, in an enclave's network namespace and against
the world of egress_in_namespaces. Prints what became of each attempt as JSON: what it was answered, or `refused`.
"""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import quic_attacks
from egress_in_namespaces import DIVERT, INTERNAL, METADATA, PUBLIC, PUBLIC_6, ip, proxy

PATIENCE_S = 20
INSIDE = """
policy: policy.yaml
dns: {listen: '127.0.0.1:53', upstreams: ['parent:8053']}
limits: {inspect_timeout_s: 2}
listeners:
- {mode: ip-to-vsock-transparent, listen: '[::]:8888', upstream: 'parent:8888'}
- {mode: ip-to-vsock-transparent, listen: '[::]:8888', upstream: 'parent:8888', protocol: udp, divert: {}}
"""
POLICY = """
allow:
- {name: good.example, ports: [80, 443, 8443]}
- {name: old.example, ports: [80]}
- {name: large.example, ports: [80]}
- {name: nowhere.example, ports: [80]}
- {name: optional.example, ports: [80]}
- {name: good.example, ports: [443-445, 7007], protocol: udp}
- {name: only6.example, ports: [80, 443]}
- {name: rebind.example, ports: [80, 443]}
- {name: mixed.example, ports: [80, 443]}
- {name: metadata.example, ports: [80], private_address: true}
- {name: translated.example, ports: [80]}
- {name: chained.example, ports: [80]}
- {name: looped.example, ports: [80]}
- {name: long.example, ports: [80]}
- {name: zero.example, ports: [80]}
- {name: lying.example, ports: [80]}
- {name: other-id.example, ports: [80]}
- {name: beside.example, ports: [80]}
- {name: "*.wild.example", ports: [80]}
- {name: xn--bcher-kva.example, ports: [80]}
- {network: 198.51.100.0/24, ports: [80]}
deny:
- {name: bad.example}
"""


def lookup(name, kind="A"):
    """Return the addresses, or the rcode."""
    reply = dns.query.udp(dns.message.make_query(name, kind), "127.0.0.1", timeout=PATIENCE_S)
    wanted = dns.rdatatype.from_text(kind)
    found = [record.to_text() for rrset in reply.answer if rrset.rdtype == wanted for record in rrset]
    return " ".join(sorted(found)) or dns.rcode.to_text(reply.rcode())


def talk(address, port, *pieces, patience_s=PATIENCE_S):
    """Send pieces, each a segment of its own, and return the answer's bytes; raises OSError where there is none."""
    with socket.create_connection((address, port), patience_s) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            sock.sendall(piece)
        sock.shutdown(socket.SHUT_WR)
        data = b""
        while piece := sock.recv(65536):
            data += piece
        return data


def http(address, *pieces, port=80):
    """Return the bodies of the answers to requests."""
    data = talk(address, port, *pieces)
    bodies = [part.split(b"\r\n\r\n", 1)[-1].split(b"HTTP/1.")[0] for part in data.split(b"Content-Length")[1:]]
    return b" | ".join(bodies).decode() or repr(data[:60])


def request(host, *lines, method="GET", target="/", version="1.1", body=b""):
    head = "\r\n".join((f"{method} {target} HTTP/{version}", *([f"Host: {host}"] if host else []), *lines, "", ""))
    return head.encode() + body


def hello(name, alpn=()):
    context = ssl._create_unverified_context()
    if alpn:
        context.set_alpn_protocols(alpn)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def records(wire, size):
    """The hello in records of `size` bytes."""
    body = wire[5:]
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def segments(data, size=1):
    return [data[start : start + size] for start in range(0, len(data), size)]


def with_extension(wire, kind, value):
    message = bytearray(wire[5:])
    session = 4 + 2 + 32
    ciphers = session + 1 + message[session]
    methods = ciphers + 2 + int.from_bytes(message[ciphers : ciphers + 2], "big")
    start = methods + 1 + message[methods]
    extension = kind.to_bytes(2, "big") + len(value).to_bytes(2, "big") + value
    message[start : start + 2] = (int.from_bytes(message[start : start + 2], "big") + len(extension)).to_bytes(2, "big")
    message += extension
    message[1:4] = (len(message) - 4).to_bytes(3, "big")
    return records(b"\0" * 5 + bytes(message), 2**14)


def tls(address, *pieces):
    """Say whether a server answered the handshake: `hello`."""
    data = talk(address, 443, *pieces)
    return "hello" if data[:1] == b"\x16" else repr(data[:20])


GOOD, EVIL = "good.example", "neighbour.example"


def ask(name, kind="A", **question):
    """Ask by a stream, as one does that was sent too little by a datagram; return how many records there are."""
    short = dns.query.udp(dns.message.make_query(name, kind, **question), "127.0.0.1", timeout=PATIENCE_S)
    whole = dns.query.tcp(dns.message.make_query(name, kind, **question), "127.0.0.1", timeout=PATIENCE_S)
    cut = "cut, " if short.flags & dns.flags.TC else ""
    return f"{cut}{sum(map(len, whole.answer))} records"


def with_option(name):
    """What a resolver answers that tells what options a question had."""
    option = dns.edns.GenericOption(65001, b"exfiltrated")
    query = dns.message.make_query(name, "A", use_edns=0, payload=4096, options=[option])
    reply = dns.query.udp(query, "127.0.0.1", timeout=PATIENCE_S)
    return " ".join(record.to_text() for rrset in reply.answer for record in rrset)


def server_name(name):
    """A hello with this server name, whatever it is."""
    entry = b"\0" + len(name).to_bytes(2, "big") + name
    return with_extension(hello(None), 0, len(entry).to_bytes(2, "big") + entry)


def second_hello(name):
    """Say what a server answers to a second hello, which it asks for as it wants another key."""
    context = ssl._create_unverified_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=GOOD)
    answers = []
    with socket.create_connection((PUBLIC, 8443), PATIENCE_S) as sock:
        for _ in range(2):
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            sock.sendall(outgoing.read().replace(GOOD.encode(), name.encode() if answers else GOOD.encode()))
            try:
                answers.append(sock.recv(65536))
            except ConnectionError:
                answers.append(b"")
            incoming.write(answers[-1])
    return " | ".join("hello" if data[:1] == b"\x16" else "refused" for data in answers)


PADDING, UNKNOWN = 4000, 0x7777
ATTEMPTS = {
    # the resolver lies
    "rebinding": lambda: lookup("rebind.example"),
    "rebinding by IPv6": lambda: lookup("rebind.example", "AAAA"),
    "rebinding by translation": lambda: lookup("translated.example", "AAAA"),
    "rebinding, address known": lambda: (lookup("rebind.example"), http(INTERNAL, request("rebind.example")))[1],
    "public and private in one answer": lambda: lookup("mixed.example"),
    "the private one of them": lambda: (lookup("mixed.example"), http(INTERNAL, request("mixed.example")))[1],
    "metadata": lambda: lookup("metadata.example"),
    "metadata, address known": lambda: http(METADATA, request("metadata.example")),
    "chain through a denied name": lambda: lookup("chained.example"),
    "chain without an end": lambda: lookup("looped.example"),
    "chain that is too long": lambda: lookup("long.example"),
    "answer for another question": lambda: lookup("lying.example"),
    "answer with another id": lambda: lookup("other-id.example"),
    "records beside the answer": lambda: (lookup("beside.example"), http(PUBLIC, request("smuggled.example")))[1],
    "a neighbour of poisoned records": lambda: lookup(GOOD),
    "what they were for": lambda: lookup("smuggled.example"),
    "answer after its time": lambda: lookup("zero.example"),
    # names
    "a name in capitals": lambda: lookup("GoOd.ExAmPlE"),
    "a dot inside a label": lambda: lookup("x\\.wild.example"),
    "the name of a wildcard": lambda: lookup("wild.example"),
    "below a wildcard": lambda: lookup("a_b.c.wild.example"),
    "a name that ends alike": lambda: lookup("evilgood.example"),
    "a name as prefix": lambda: lookup("good.example.attacker.example"),
    "international name": lambda: lookup("xn--bcher-kva.example"),
    "Kelvin sign": lambda: lookup("\u212aood.example".encode("idna").decode()),
    "reverse lookup": lambda: lookup("34.216.184.93.in-addr.arpa", "PTR"),
    "keys that hide names": lambda: lookup(GOOD, "HTTPS"),
    "keys that hide names, in a record for any service": lambda: lookup(GOOD, "SVCB"),
    "an answer too long for a datagram": lambda: ask("large.example"),
    "data in an option of a question": lambda: with_option("optional.example"),
    "everything about a name": lambda: lookup(GOOD, "ANY"),
    "addresses of no machine": lambda: lookup("nowhere.example"),
    "addresses of no machine by IPv6": lambda: lookup("nowhere.example", "AAAA"),
    "addresses of old kinds": lambda: lookup("old.example", "AAAA"),
    # destinations
    "mapped address": lambda: http("::ffff:" + INTERNAL, request(GOOD)),
    "NAT64 address": lambda: http("64:ff9b::a01:203", request(GOOD)),
    "6to4 address": lambda: http("2002:a01:203::1", request(GOOD)),
    "raw address": lambda: http("203.0.113.9", request(GOOD)),
    "address of this network": lambda: http("0.1.2.3", request(GOOD)),
    "site-local address": lambda: http("fec0::1", request(GOOD)),
    "broadcast address": lambda: http("255.255.255.255", request(GOOD)),
    "private address by number": lambda: http(INTERNAL, request(GOOD)),
    "the proxy itself": lambda: http("127.0.0.1", request(GOOD), port=8888),
    # TLS
    "TLS": lambda: tls(PUBLIC, hello(GOOD)),
    "TLS over IPv6": lambda: (lookup("only6.example", "AAAA"), http(PUBLIC_6, request("only6.example")))[1],
    "another server name": lambda: tls(PUBLIC, hello(EVIL)),
    "server name in capitals": lambda: tls(PUBLIC, hello("GOOD.example")),
    "no server name": lambda: tls(PUBLIC, hello(None)),
    "hello byte by byte": lambda: tls(PUBLIC, *segments(hello(GOOD))),
    "hello in small records": lambda: tls(PUBLIC, records(hello(GOOD), 3)),
    "other name byte by byte": lambda: tls(PUBLIC, *segments(hello(EVIL))),
    "other name in small records": lambda: tls(PUBLIC, records(hello(EVIL), 3)),
    "other name in records of a byte, byte by byte": lambda: tls(PUBLIC, *segments(records(hello(EVIL), 1), 2)),
    "a good hello behind another": lambda: tls(PUBLIC, hello(EVIL) + hello(GOOD)),
    "encrypted hello": lambda: tls(PUBLIC, with_extension(hello(GOOD), 0xFE0D, b"x" * 100)),
    "two server names": lambda: tls(PUBLIC, with_extension(hello(GOOD), 0, b"\0\x14\0\0\x11neighbour.example")),
    "large hello": lambda: tls(PUBLIC, with_extension(hello(GOOD), UNKNOWN, bytes(PADDING))),
    "other name in a large hello": lambda: tls(PUBLIC, with_extension(hello(EVIL), UNKNOWN, bytes(PADDING))),
    "oversized hello": lambda: tls(PUBLIC, with_extension(hello(GOOD), UNKNOWN, bytes(2**15 - 1))),
    "server name with a port": lambda: tls(PUBLIC, server_name(b"good.example:443")),
    "server name that is an address": lambda: tls(PUBLIC, server_name(PUBLIC.encode())),
    "server name with a NUL": lambda: tls(PUBLIC, server_name(b"good.example\0.neighbour.example")),
    "server name with a dot at its end": lambda: tls(PUBLIC, server_name(b"good.example.")),
    "server name of nothing": lambda: tls(PUBLIC, server_name(b"")),
    "second hello": lambda: second_hello(GOOD),
    "another name in a second hello": lambda: second_hello("evil.example"),
    "second hello that nobody asked for": lambda: tls(PUBLIC, hello(GOOD) + hello(GOOD)),
    "hello behind a PROXY header": lambda: tls(PUBLIC, b"PROXY TCP4 1.2.3.4 1.2.3.4 1 443\r\n" + hello(GOOD)),
    "half a hello": lambda: tls(PUBLIC, hello(GOOD)[:100]),
    "SSL 2 hello": lambda: tls(PUBLIC, b"\x80\x2e\x01\x03\x03" + bytes(41)),
    # HTTP
    "HTTP": lambda: http(PUBLIC, request(GOOD)),
    "HTTP byte by byte": lambda: http(PUBLIC, *segments(request(GOOD))),
    "two requests": lambda: http(PUBLIC, request(GOOD) + request(GOOD)),
    "another host": lambda: http(PUBLIC, request(EVIL)),
    "another host byte by byte": lambda: http(PUBLIC, *segments(request(EVIL))),
    "two hosts": lambda: http(PUBLIC, request(GOOD, f"Host: {EVIL}")),
    "two hosts, the other first": lambda: http(PUBLIC, request(EVIL, f"Host: {GOOD}")),
    "target of another host": lambda: http(PUBLIC, request(GOOD, target=f"http://{EVIL}/")),
    "host of another target": lambda: http(PUBLIC, request(EVIL, target=f"http://{GOOD}/")),
    "folded host": lambda: http(PUBLIC, request(GOOD, f" {EVIL}")),
    "host behind a bare LF": lambda: http(PUBLIC, request(GOOD, f"X: y\nHost: {EVIL}")),
    "no host": lambda: http(PUBLIC, request("", version="1.0")),
    "host that is an address": lambda: http(PUBLIC, request(PUBLIC)),
    "second request for another host": lambda: http(PUBLIC, request(GOOD) + request(EVIL)),
    "third request for another host, later": lambda: later(request(GOOD), request(GOOD), request(EVIL)),
    "second request behind a body": lambda: later(request(GOOD, "Content-Length: 5", body=b"12345"), request(EVIL)),
    "second request behind chunks": lambda: later(
        request(GOOD, "Transfer-Encoding: chunked", body=b"2\r\nab\r\n0\r\n\r\n"), request(EVIL)
    ),
    "second request in a body of two lengths": lambda: http(
        PUBLIC, request(GOOD, f"Content-Length: {len(request(EVIL))}", "Content-Length: 0", body=request(EVIL))
    ),
    "second request in a body of two framings": lambda: http(
        PUBLIC,
        request(GOOD, f"Content-Length: {len(request(EVIL))}", "Transfer-Encoding: chunked", body=request(EVIL)),
    ),
    "second request after an upgrade": lambda: later(
        request(GOOD, "Connection: Upgrade", "Upgrade: h2c"), request(EVIL)
    ),
    "tunnel": lambda: later(request(f"{GOOD}:443", method="CONNECT", target=f"{GOOD}:443"), request(EVIL)),
    "HTTP/2 without TLS": lambda: http(PUBLIC, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)),
    "request behind an empty line": lambda: http(PUBLIC, b"\r\n" + request(EVIL)),
    "method in small letters": lambda: http(PUBLIC, request(EVIL, method="get")),
    "method of one's own": lambda: http(PUBLIC, request(EVIL, method="GETX")),
    "user in a host": lambda: http(PUBLIC, request(f"{GOOD}:80@{EVIL}")),
    "host with a space": lambda: http(PUBLIC, request(f"{GOOD} {EVIL}")),
    "host with a space before its colon": lambda: http(PUBLIC, request(GOOD, f"Host : {EVIL}")),
    "host with a dot at its end": lambda: http(PUBLIC, request(f"{GOOD}.")),
    "second request behind a disguised framing": lambda: http(
        PUBLIC, request(GOOD, "Transfer-Encoding: xchunked", f"Content-Length: {len(request(EVIL))}") + request(EVIL)
    ),
    "half a request": lambda: http(PUBLIC, request(GOOD)[:20]),
    "something else": lambda: http(PUBLIC, b"SSH-2.0-x\r\n"),
    "nothing, for too long": lambda: silent(PUBLIC),
}
ATTEMPTS |= {name: lambda name=name: quic_attacks.ask(name) for name in quic_attacks.CLIENTS}
ATTEMPTS |= {name: lambda name=name: quic_attacks.try_datagrams()[name] for name in quic_attacks.ATTEMPTS}


def later(*requests):
    """Send each request when the one before was answered; return the answers."""
    bodies = []
    with socket.create_connection((PUBLIC, 80), PATIENCE_S) as sock:
        for one in requests:
            data = b""
            with contextlib.suppress(ConnectionError):
                sock.sendall(one)
                while not data.partition(b"\r\n\r\n")[2] and (piece := sock.recv(65536)):
                    data += piece
            bodies.append(data.partition(b"\r\n\r\n")[2].decode() or "refused")
    return " | ".join(bodies)


def silent(address):
    with socket.create_connection((address, 80), PATIENCE_S) as sock:
        return repr(sock.recv(1))


def attempt(action):
    try:
        return action()
    except (OSError, ssl.SSLError) as exc:
        return "refused" if not isinstance(exc, TimeoutError) else "timed out"


def main(directory):
    ip(
        "link set lo up",
        "route add default dev lo src 127.0.0.1",
        "-6 addr add fd00::1/128 dev lo nodad",
        "-6 route add default dev lo src fd00::1",
    )
    subprocess.run(["nft", "-f", "-"], input=DIVERT, text=True, check=True)
    with open(f"{directory}/policy.yaml", "w") as out:
        out.write(POLICY)
    signal.alarm(300)
    with proxy(directory, "inside.yaml", INSIDE, 2):
        lookup(GOOD)  # so that its address is no raw one
        results = {name: attempt(action) for name, action in ATTEMPTS.items()}
    print(json.dumps(results))


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    main(sys.argv[1])
