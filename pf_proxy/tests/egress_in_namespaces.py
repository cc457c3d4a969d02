# SPDX-License-Identifier: Apache-2.0
"""Two network namespaces that share nothing but a fabric directory: an outside world, and an enclave with a policy.

`outside DIRECTORY` serves web servers and a hostile resolver; `inside DIRECTORY LEARN` diverts whatever leaves, runs
unmodified clients and prints what became of each as JSON.
"""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dns.message
import dns.rrset
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PROXY = [sys.executable, "-c", "import sys; from enclavekit_pf_proxy.cli import main; sys.exit(main())"]
PUBLIC, PUBLIC_6, INTERNAL, METADATA = "93.184.216.34", "2606:2800:220:1::1", "10.1.2.3", "169.254.169.254"
ECHO_PORT, QUIC_PORT, RETRY_PORT, OLD_PORT = 7007, 443, 444, 445
ZONE = {
    "good.example": {"A": [PUBLIC], "AAAA": [PUBLIC_6], "HTTPS": ["1 . alpn=h2"]},
    "only6.example": {"AAAA": [PUBLIC_6]},
    "neighbour.example": {"A": [PUBLIC]},
    "rebind.example": {"A": [INTERNAL], "AAAA": ["::ffff:" + INTERNAL]},
    "mixed.example": {"A": [INTERNAL, PUBLIC]},
    "metadata.example": {"A": [METADATA]},
    "chained.example": {"CNAME": ["bad.example."]},
    "bad.example": {"A": [PUBLIC]},
    "translated.example": {"AAAA": ["64:ff9b::a01:203", "64:ff9b:1::a01:203", "2002:a01:203::1", "::ffff:0:a01:203"]},
    "looped.example": {"CNAME": ["looped.example."]},
    "long.example": {"CNAME": ["n1.example."]},
    **{f"n{number}.example": {"CNAME": [f"n{number + 1}.example."]} for number in range(1, 12)},
    "n12.example": {"A": [PUBLIC]},
    "zero.example": {"A": [PUBLIC], "TTL": 0},
    "lying.example": {"A": [PUBLIC], "QUESTION": "good.example."},
    "other-id.example": {"A": [PUBLIC], "ID": 1},
    "beside.example": {"A": [PUBLIC], "MORE": {"good.example.": INTERNAL, "smuggled.example.": PUBLIC}},
    "smuggled.example": {"A": [PUBLIC]},
    "wild.example": {"A": [PUBLIC]},
    "large.example": {"A": [f"93.184.{high}.{low}" for high in range(1, 3) for low in range(1, 61)]},
    "nowhere.example": {
        "A": [
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "240.0.0.1",
            "224.0.0.1",
            "100.64.0.1",
            "192.0.0.170",
            "198.18.0.1",
        ],
        "AAAA": ["::", "::1", "ff02::1", "100::1", "fe80::1", "fd00:ec2::254"],
    },
    "old.example": {"AAAA": ["fec0::1", "5f00::1", "4000::1", "3fff::1", "2001:db8::1", "2001::1", "::10.1.2.3"]},
    "optional.example": {"A": [PUBLIC], "OPTION": "203.0.113.66"},
    "a_b.c.wild.example": {"A": [PUBLIC]},
    "xn--bcher-kva.example": {"A": [PUBLIC]},
}
MAX_CHAIN = 16
OUTSIDE = """
listeners:
- {mode: vsock-to-ip, listen: 'any:8053', upstream: '127.0.0.1:53'}
- {mode: vsock-to-ip-transparent, listen: 'any:8888'}
"""
INSIDE = """
policy: policy.yaml
dns: {listen: '127.0.0.1:53', upstreams: ['parent:8053']}
listeners:
- {mode: ip-to-vsock-transparent, listen: '[::]:8888', upstream: 'parent:8888'}
"""
POLICY = """
allow:
- {name: good.example, ports: [80, 443]}
- {name: only6.example, ports: [80]}
- {name: rebind.example, ports: [80]}
- {name: mixed.example, ports: [80]}
- {name: metadata.example, ports: [80], private_address: true}
- {name: chained.example, ports: [80]}
deny:
- {name: bad.example}
"""
DIVERT = """
table inet test {
  chain output {
    type nat hook output priority -100;
    ip daddr != 127.0.0.0/8 meta l4proto tcp redirect to :8888
    ip6 daddr != ::1 meta l4proto tcp redirect to :8888
  }
}
"""
CURL = ["curl", "-sS", "-k", "--max-time", "20", "-o", "-"]
CLIENTS = {
    "https": [*CURL, "-4", "https://good.example/"],
    "http": [*CURL, "-4", "http://good.example/"],
    "ipv6": [*CURL, "http://only6.example/"],
    "python": [
        sys.executable,
        "-c",
        "import urllib.request as u; print(u.urlopen('http://good.example/').read().decode(), end='')",
    ],
    "mixed": [*CURL, "http://mixed.example/"],
    "another port": [*CURL, "-4", "http://good.example:8080/"],
    "unknown name": [*CURL, "http://unknown.example/"],
    "neighbour": [*CURL, "http://neighbour.example/"],
    "raw address": [*CURL, f"http://{PUBLIC}/"],
    "raw address with a good host": [*CURL, "-H", "Host: good.example", f"http://{INTERNAL}/"],
    "mapped address": [*CURL, f"http://[::ffff:{INTERNAL}]/"],
    "server name of a neighbour": [*CURL, "-4", "--connect-to", "::good.example:", "https://neighbour.example/"],
    "host of a neighbour": [*CURL, "-4", "-H", "Host: neighbour.example", "http://good.example/"],
    "no server name": [*CURL, "-4", "--connect-to", "::good.example:", f"https://{PUBLIC}/"],
    "rebinding": [*CURL, "http://rebind.example/"],
    "metadata": [*CURL, "http://metadata.example/"],
    "denied chain": [*CURL, "http://chained.example/"],
}


class Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while "Transfer-Encoding" in self.headers and self.rfile.readline() not in (b"0\r\n", b""):
            pass
        if "Transfer-Encoding" in self.headers:
            self.rfile.readline()
        body = f"{self.server.server_address[0]} for {self.headers['Host']}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_CONNECT = do_GET

    def log_message(self, *_):
        pass


class Web6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


def ip(*lines):
    for line in lines:
        subprocess.run(["ip", *line.split()], check=True)


def outside(directory):
    ip("link set lo up")
    for address in (f"{PUBLIC}/32", f"{INTERNAL}/32", f"{METADATA}/32", f"{PUBLIC_6}/128"):
        ip(f"addr add {address} dev lo nodad" if ":" in address else f"addr add {address} dev lo")
    servers = [ThreadingHTTPServer((host, port), Web) for host in (PUBLIC, INTERNAL, METADATA) for port in (80, 8080)]
    servers.append(Web6((PUBLIC_6, 80), Web))
    secure = ThreadingHTTPServer((PUBLIC, 443), Web)
    secure.socket = make_context(directory).wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
    other_key = ThreadingHTTPServer((PUBLIC, 8443), Web)
    context = make_context(directory)
    context.set_ecdh_curve("secp384r1")
    other_key.socket = context.wrap_socket(other_key.socket, server_side=True, do_handshake_on_connect=False)
    for server in (*servers, secure, other_key):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Thread(target=echo_datagrams, daemon=True).start()
    threading.Thread(target=serve_quic, args=(directory,), daemon=True).start()
    resolver = socket.create_server(("127.0.0.1", 53))
    threading.Thread(target=resolve, args=(resolver,), daemon=True).start()
    with proxy(directory, "outside.yaml", OUTSIDE, 2):
        print("ready", flush=True)
        sys.stdin.read()


def echo_datagrams():
    """Whatever comes back came through."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((PUBLIC, ECHO_PORT))
        while True:
            data, sender = sock.recvfrom(65535)
            sock.sendto(data, sender)


def serve_quic(directory):
    """Answer each stream; on a port of its own only clients that came back with the token of a Retry."""
    from aioquic.asyncio import serve
    from aioquic.asyncio.protocol import QuicConnectionProtocol
    from aioquic.quic.configuration import QuicConfiguration
    from aioquic.quic.events import StreamDataReceived
    from aioquic.quic.packet import QuicProtocolVersion

    class Answer(QuicConnectionProtocol):
        def quic_event_received(self, event):
            if isinstance(event, StreamDataReceived) and event.end_stream:
                self._quic.send_stream_data(event.stream_id, b"answer to " + event.data, end_stream=True)

    async def run():
        for port, retry, versions in (
            (QUIC_PORT, False, [1, 0x6B3343CF]),
            (RETRY_PORT, True, [1, 0x6B3343CF]),
            (OLD_PORT, False, [1]),
        ):
            supported = [QuicProtocolVersion(version) for version in versions]
            configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3"], supported_versions=supported)
            configuration.load_cert_chain(f"{directory}/server.pem", f"{directory}/server.pem")
            await serve(PUBLIC, port, configuration=configuration, create_protocol=Answer, retry=retry)
        await asyncio.Event().wait()

    asyncio.run(run())


def make_context(directory):
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(1))
        .not_valid_after(now + timedelta(1))
        .sign(key, hashes.SHA256())
    )
    path = f"{directory}/server.pem"
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    with open(path, "wb") as out:
        out.write(key.private_bytes(pem, form, serialization.NoEncryption()) + certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


def resolve(listener):
    while True:
        sock, _ = listener.accept()
        with sock:
            query = dns.message.from_wire(sock.recv(int.from_bytes(sock.recv(2), "big"), socket.MSG_WAITALL))
            reply, asked = dns.message.make_response(query), query.question[0]
            name = asked.name.to_text(omit_final_dot=True)
            here = ZONE.get(name, {})
            ttl = here.get("TTL", 60)
            for other, address in here.get("MORE", {}).items():
                reply.answer.append(dns.rrset.from_text(other, 60, "IN", "A", address))
            for _ in range(MAX_CHAIN):
                if not (records := ZONE.get(name, {}).get("CNAME")):
                    break
                reply.answer.append(dns.rrset.from_text(f"{name}.", 60, "IN", "CNAME", *records))
                name = records[0].rstrip(".")
            if query.options and "OPTION" in here:
                reply.answer.append(dns.rrset.from_text(f"{name}.", ttl, "IN", "A", here["OPTION"]))
            elif records := ZONE.get(name, {}).get(dns.rdatatype.to_text(asked.rdtype)):
                reply.answer.append(
                    dns.rrset.from_text(f"{name}.", ttl, "IN", dns.rdatatype.to_text(asked.rdtype), *records)
                )
            reply.id ^= here.get("ID", 0)
            if "QUESTION" in here:
                reply.question = [dns.rrset.from_text(here["QUESTION"], 0, "IN", "A")]
            wire = reply.to_wire()
            sock.sendall(len(wire).to_bytes(2, "big") + wire)


class proxy:
    """`pf-proxy run` with a configuration, ready."""

    def __init__(self, directory, name, text, addresses, *options):
        path = f"{directory}/{name}"
        with open(path, "w") as out:
            out.write(text)
        self.argv, self.addresses = [*PROXY, "run", path, "--print-address", *options], addresses

    def __enter__(self):
        self.process = subprocess.Popen(self.argv, stdout=subprocess.PIPE, text=True)
        for _ in range(self.addresses):
            assert self.process.stdout.readline()
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()


def inside(directory, learn):
    ip(
        "link set lo up",
        "route add default dev lo src 127.0.0.1",
        "-6 addr add fd00::1/128 dev lo nodad",
        "-6 route add default dev lo src fd00::1",
    )
    with open(f"{directory}/resolv.conf", "w") as out:
        out.write("nameserver 127.0.0.1\n")
    subprocess.run(["mount", "--bind", f"{directory}/resolv.conf", "/etc/resolv.conf"], check=True)
    subprocess.run(["nft", "-f", "-"], input=DIVERT, text=True, check=True)
    with open(f"{directory}/policy.yaml", "w") as out:
        out.write(POLICY)
    options = ["--insecure-learn", f"{directory}/learned.yaml"] if learn else []
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    results = {}
    with proxy(directory, "inside.yaml", INSIDE, 1, *options):
        for name, argv in CLIENTS.items():
            if learn and name not in ("https", "http", "rebinding"):
                continue
            done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
            results[name] = done.stdout if done.returncode == 0 else f"exit {done.returncode}"
    if learn:
        with open(f"{directory}/learned.yaml") as learned:
            results["learned"] = learned.read()
    print(json.dumps(results))


if __name__ == "__main__":
    if sys.argv[1] == "outside":
        outside(sys.argv[2])
    else:
        inside(sys.argv[2], sys.argv[3] == "learn")
