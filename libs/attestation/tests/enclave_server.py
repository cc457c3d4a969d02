# SPDX-License-Identifier: Apache-2.0
"""A TLS server with evidence, as an enclave has it, and with every way of misbehaving. Real sockets, real TLS."""

import http.server
import socket
import socketserver
import tempfile
import threading
import time
import urllib.parse

from enclavekit_attestation import TlsIdentity, encode_binding
from enclavekit_attestation.ra_tls import make_certificate
from enclavekit_core.tls import server_context

SERVICE = "ra-web-srv"
PCRS = {index: bytes([index + 1]) * 48 for index in range(16)}


class ConnectProxy:
    """An HTTP proxy that knows CONNECT only; `targets` are where it was sent."""

    def __init__(self):
        self.targets = []
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                target = self.rfile.readline().split()[1].decode()
                while self.rfile.readline().strip():
                    pass
                outer.targets.append(target)
                host, _, port = target.rpartition(":")
                with socket.create_connection((host, int(port)), timeout=30) as upstream:
                    self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    back = threading.Thread(target=copy, args=(upstream, self.connection))
                    back.start()
                    copy(self.connection, upstream)
                    back.join()

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def copy(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # one of the two has left


class EnclaveServer:
    """`misbehave` maps the honest answer (status, headers, body) to the one that is sent; `requests` are the paths."""

    def __init__(self, make, chain, pcrs, *, identity=None, bound_to=None, service=SERVICE):
        self.make, self.chain, self.pcrs = make, chain, pcrs
        self.identity = identity or TlsIdentity.generate("enclave")
        self.bound_to = bound_to or self.identity
        self.service = service
        self.fields = {}
        self.misbehave = lambda status, headers, body: (status, headers, body)
        self.requests = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.requests.append(self.path)
                url = urllib.parse.urlsplit(self.path)
                answer = 200, {"Content-Type": "text/plain"}, b"hello from the enclave"
                if url.path == "/attestation":
                    nonce = bytes.fromhex(urllib.parse.parse_qs(url.query)["nonce"][0])
                    answer = outer.misbehave(200, {"Content-Type": "application/cbor"}, outer.document(nonce))
                elif url.path == "/redirect":
                    answer = 302, {"Location": outer.url.replace("https", "http") + "/plain"}, b""
                status, headers, body = answer
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    if value is not None:
                        self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                if headers.get("Connection") == "close" or headers.get("Content-Length", "") is None:
                    self.close_connection = True

            def log_message(self, *args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request, client_address):
                try:
                    with outer.context.wrap_socket(request, server_side=True) as tls:
                        super().finish_request(tls, client_address)
                except OSError:
                    pass  # the client has refused us, as tests want

            def handle_error(self, request, client_address):
                pass

        self.context = server_context(self.identity.certificate_pem, self.identity.key_pem)
        self.server = Server(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def show(self, document):
        """Put a document into the certificate that clients see from now on, beside the honest key."""
        certificate = make_certificate(self.identity, "enclave", document)
        with tempfile.NamedTemporaryFile() as pem:
            pem.write(certificate + self.identity.key_pem)
            pem.flush()
            self.context.load_cert_chain(pem.name)
        return certificate

    @property
    def port(self):
        return self.server.server_address[1]

    @property
    def url(self):
        return f"https://127.0.0.1:{self.port}"

    def document(self, nonce):
        fields = {
            "timestamp": time.time_ns() // 1_000_000,
            "pcrs": self.pcrs,
            "nonce": nonce,
            "user_data": encode_binding(self.service, self.bound_to.spki_sha256),
            "public_key": self.bound_to.spki_der,
            **self.fields,
        }
        return self.make.document(self.chain, fields)

    @property
    def served(self):
        """Paths that the application asked for."""
        return [path for path in self.requests if not path.startswith("/attestation")]

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
