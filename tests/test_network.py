# SPDX-License-Identifier: Apache-2.0
"""An app's network in a real enclave: the hosts that its image names, by name and by address, its own port, no more."""

import subprocess
import threading
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from .conftest import need, start_enclave

pytestmark = pytest.mark.xdist_group("enclave")

MANIFEST = """
name: net
app: {{rootfs: {rootfs}}}
entrypoint: [/bin/notes]
user: notes
services: [attestation, pipeline]
network:
  egress:
    - {{host: api.test, port: 80}}
    - {{host: 192.0.2.7, port: 8080}}
  ingress:
    - {{port: 8000, vsock_port: 18000}}
clients:
  - {{certificate: {certificate}, allow: all}}
"""
# what the kernel says to somebody who tries to leave by any other way; in the enclave's one network namespace
TRY = """
import errno, socket, sys
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
    print("connected")
except socket.gaierror:
    print("unknown name")
except OSError as exc:
    print(errno.errorcode[exc.errno])
"""


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"host end, asked for {self.headers['Host']}".encode())

    def log_message(self, *_):
        pass


@contextmanager
def web_server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def proxy(shell, *words):
    argv = ["pf-proxy", *map(str, words), "--print-address"]
    with subprocess.Popen(argv, cwd=shell.directory, env=shell.environment, stdout=subprocess.PIPE, text=True) as end:
        try:
            yield end.stdout.readline().strip().removeprefix("tcp://")
        finally:
            end.terminate()


@pytest.mark.parametrize("machine", ["process", "qemu"])
def test_an_app_reaches_what_its_image_names_and_nothing_else(shell, notes, tmp_path, machine):
    if machine == "qemu":
        need("qemu-system-x86_64")
    keys = shell.directory / "keys"
    text = MANIFEST.format(rootfs=shell.directory / "notes.rootfs", certificate=keys / "alice.crt")
    (tmp_path / "enclave.yaml").write_text(text)
    image = tmp_path / "net.eif"
    built = shell.json("rbuilds", "build", "--config", tmp_path / "enclave.yaml", "--output", image, "--json")
    ports = {rule["host"]: rule["vsock_port"] for rule in built["network"]["egress"]}
    enclave = start_enclave(shell, image, "--enclave-name", "net", machine=machine)
    with ExitStack() as stack:
        stack.callback(shell.run, "nitro-emu", "terminate-enclave", "--enclave-id", enclave.id)
        port = stack.enter_context(web_server())
        for vsock_port in ports.values():
            stack.enter_context(proxy(shell, "vsock-to-ip", "-v", f"parent:{vsock_port}", "-i", f"127.0.0.1:{port}"))
        for url in ("api.test", "192.0.2.7:8080"):
            answer = enclave.exec("wget", "-q", "-O", "-", f"http://{url}/")
            assert answer == f"host end, asked for {url}"

        def attempt(host, port):
            argv = enclave.pipeline("exec", "--system", enclave.cid, "--", "python3", "-c", TRY, host, port)
            return shell.output(*argv).strip()

        assert attempt("192.0.2.7", 8080) == "connected"
        assert attempt("127.0.0.2", 81) == "ECONNREFUSED"  # another port of a host that may be reached
        assert attempt("192.0.2.7", 443) == "ECONNREFUSED"
        assert attempt("192.0.2.8", 8080) == "ENETUNREACH"
        assert attempt("2001:db8::1", 80) == "ENETUNREACH"
        assert attempt("other.test", 80) == "unknown name"

        address = stack.enter_context(proxy(shell, "ip-to-vsock", "-i", "127.0.0.1:0", "-v", f"{enclave.cid}:18000"))
        retry = ["--retry", "60", "--retry-all-errors", "--retry-delay", "1"]
        assert shell.output("curl", "-sSf", *retry, f"http://{address}/healthz").strip() == "ok"
