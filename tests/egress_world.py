# SPDX-License-Identifier: Apache-2.0
"""The world around a host, in a network namespace of its own: `egress_world.py DIRECTORY` sets it up, says `ready` and
stays until its standard input ends. Web servers on public, private and metadata addresses, a Redis server, and a
resolver that answers as its zone says and tells what it was asked.
"""

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import dns.flags
import dns.message
import dns.rrset
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PUBLIC, OTHER, PUBLIC_6 = "93.184.216.34", "93.184.216.35", "2606:2800:220:1::1"
INTERNAL, METADATA = "10.1.2.3", "169.254.169.254"
ZONE = {
    "good.test": {"A": [PUBLIC], "AAAA": [PUBLIC_6]},
    "a.wild.test": {"A": [PUBLIC]},
    "bad.wild.test": {"A": [PUBLIC]},
    "wild.test": {"A": [PUBLIC]},
    "neighbour.test": {"A": [PUBLIC]},
    "redis.test": {"A": [PUBLIC]},
    "private.test": {"A": [INTERNAL]},
    "rebind.test": {"A": [INTERNAL], "AAAA": ["::ffff:" + INTERNAL, "64:ff9b::a01:203", "2002:a01:203::1"]},
    "mixed.test": {"A": [INTERNAL, METADATA, PUBLIC]},
    "metadata.test": {"A": [METADATA]},
    "chained.test": {"CNAME": ["bad.wild.test."]},
    "alias.test": {"CNAME": ["deep.neighbour.test."]},
    "deep.neighbour.test": {"A": [PUBLIC]},
    "zero.test": {"A": [PUBLIC], "TTL": 0},
    "port.test": {"A": [OTHER]},
    "dns.test": {"A": [PUBLIC]},
    "dns6.test": {"AAAA": [PUBLIC_6]},
}


class Web(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = f"{self.server.server_address[0]} for {self.headers['Host']}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Web6(ThreadingHTTPServer):
    address_family = socket.AF_INET6


def serve(kind, address, context=None):
    server = kind(address, Web)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def make_certificate(directory):
    """One for all names, signed by itself: its own CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "world")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName(text) for text in (*ZONE, "*.test")])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(1))
        .not_valid_after(now + timedelta(1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    with open(f"{directory}/ca.pem", "wb") as out:
        out.write(certificate.public_bytes(pem))
    with open(f"{directory}/server.pem", "wb") as out:
        out.write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        out.write(certificate.public_bytes(pem))


def answer(wire, asked):
    query = dns.message.from_wire(wire)
    reply, question = dns.message.make_response(query), query.question[0]
    reply.flags |= dns.flags.RA
    name = question.name.to_text(omit_final_dot=True).lower()
    asked.write(json.dumps([name, dns.rdatatype.to_text(question.rdtype)]) + "\n")
    asked.flush()
    if name not in ZONE:
        reply.set_rcode(dns.rcode.NXDOMAIN)
    ttl = ZONE.get(name, {}).get("TTL", 60)
    while records := ZONE.get(name, {}).get("CNAME"):
        reply.answer.append(dns.rrset.from_text(f"{name}.", ttl, "IN", "CNAME", *records))
        name = records[0].rstrip(".")
    if records := ZONE.get(name, {}).get(dns.rdatatype.to_text(question.rdtype)):
        kind = dns.rdatatype.to_text(question.rdtype)
        reply.answer.append(dns.rrset.from_text(f"{name}.", ttl, "IN", kind, *records))
    return reply.to_wire()


def resolve(listener, asked):
    while True:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(OSError):
            length = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
            reply = answer(sock.recv(length, socket.MSG_WAITALL), asked)
            sock.sendall(len(reply).to_bytes(2, "big") + reply)


def resolve_datagrams(sock, asked):
    while True:
        wire, client = sock.recvfrom(4096)
        sock.sendto(answer(wire, asked), client)


def main(directory):
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in (PUBLIC, OTHER, INTERNAL, METADATA):
        subprocess.run(["ip", "addr", "add", f"{address}/32", "dev", "lo"], check=True)
    subprocess.run(["ip", "addr", "add", f"{PUBLIC_6}/128", "dev", "lo", "nodad"], check=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{directory}/server.pem")
    for address in (PUBLIC, OTHER, INTERNAL, METADATA, "127.0.0.1"):
        for port in (80, 8080):
            serve(ThreadingHTTPServer, (address, port))
    serve(Web6, (PUBLIC_6, 80))
    serve(ThreadingHTTPServer, (PUBLIC, 443), context)
    listener = socket.create_server(("127.0.0.1", 53))
    with open(f"{directory}/asked", "a") as asked:
        threading.Thread(target=resolve, args=(listener, asked), daemon=True).start()
        for place in ((PUBLIC, 5300), (PUBLIC, 5301), (OTHER, 5300), (PUBLIC_6, 5300)):
            family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.bind(place)
            threading.Thread(target=resolve_datagrams, args=(sock, asked), daemon=True).start()
            listener = socket.create_server(place, family=family)
            threading.Thread(target=resolve, args=(listener, asked), daemon=True).start()
        redis = ["redis-server", "--bind", PUBLIC, "--port", "6379", "--protected-mode", "no", "--save", ""]
        null = subprocess.DEVNULL
        with subprocess.Popen([*redis, "--dir", directory], stdin=null, stdout=null) as server:
            try:
                while True:
                    with contextlib.suppress(OSError):
                        socket.create_connection((PUBLIC, 6379)).close()
                        break
                    assert server.poll() is None, "redis-server has ended"
                print("ready", flush=True)
                sys.stdin.read()
            finally:
                server.terminate()
    os._exit(0)  # threads of servers that nobody ends


if __name__ == "__main__":
    main(sys.argv[1])
