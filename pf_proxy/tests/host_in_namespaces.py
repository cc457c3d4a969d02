# SPDX-License-Identifier: Apache-2.0
"""A host whose proxies get what others send to it and what it sends itself, loops included; run in a network namespace.

`host DIRECTORY METHOD PID` with the client's namespace, that of process PID, at the other end of a veth pair.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

from egress_in_namespaces import PROXY, ip

HOST, CLIENT, ELSEWHERE, WEB = "192.0.2.1", "192.0.2.2", "198.51.100.7", 8443
CONFIG = """
listeners:
- mode: ip-to-vsock
  listen: 0.0.0.0:18443
  upstream: parent:7000
  divert: {method: %(method)s, origins: [prerouting, output], networks: [192.0.2.1, 127.0.0.1], ports: [443, 8443]}
- mode: ip-to-vsock
  listen: 0.0.0.0:18444
  upstream: parent:7001
  protocol: udp
  divert: {method: %(method)s, origins: [prerouting, output], networks: [192.0.2.1, 127.0.0.1], ports: [%(udp_ports)s]}
- mode: transparent-port-to-vsock
  listen: 0.0.0.0:18445
  upstream: '3'
  divert: {method: %(method)s, origins: [prerouting], ports: [9000-9010], networks: [198.51.100.0/24]}
- {mode: vsock-to-ip, listen: 'any:7000', upstream: '127.0.0.1:8443'}
- {mode: vsock-to-ip, listen: 'any:7001', upstream: '127.0.0.1:8443', protocol: udp}
- {mode: vsock-to-ip, listen: 'any:9005', upstream: 'localhost:8443'}
"""
ASK = """
import socket, sys
kind, host, port = sys.argv[1:]
with socket.socket(socket.AF_INET, getattr(socket, kind)) as sock:
    sock.settimeout(20)
    sock.connect((host, int(port)))
    sock.send(b"who")
    print(sock.recv(100).decode(), end="")
"""


def ask(kind, host, port, *prefix):
    argv = [*prefix, sys.executable, "-c", ASK, kind, host, str(port)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout or done.stderr.splitlines()[-1]


def serve(seen):
    """Answer streams and datagrams with the port that each was accepted on, counted."""
    listener = socket.create_server(("127.0.0.1", WEB))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", WEB))

    def streams():
        while True:
            sock, _ = listener.accept()
            with sock:
                seen.append("stream")
                sock.recv(100)
                sock.sendall(b"stream served")

    def answers():
        while True:
            _, sender = datagrams.recvfrom(100)
            seen.append("datagram")
            datagrams.sendto(b"datagram served", sender)

    for run in (streams, answers):
        threading.Thread(target=run, daemon=True).start()


def main():
    directory, method, other = sys.argv[1:]
    ip("link set lo up", f"link add host0 type veth peer name client0 netns {other}")
    ip(f"addr add {HOST}/24 dev host0", "link set host0 up")
    client = ("nsenter", "-t", other, "-n")
    for line in (
        f"addr add {CLIENT}/24 dev client0",
        "link set client0 up",
        f"route add 198.51.100.0/24 via {HOST}",
    ):
        subprocess.run([*client, "ip", *line.split()], check=True)
    seen = []
    serve(seen)
    path = f"{directory}/host.yaml"
    with open(path, "w") as out:
        # with TPROXY the session's socket would be where the upstream's is
        out.write(CONFIG % {"method": method, "udp_ports": "443, 8443" if method == "redirect" else "443"})
    before = subprocess.run(["ip", "rule"], capture_output=True, text=True, check=True).stdout
    process = subprocess.Popen([*PROXY, "run", path, "--print-address"], stdout=subprocess.PIPE, text=True)
    results = {}
    try:
        for _ in range(6):
            assert process.stdout.readline()
        for kind in ("SOCK_STREAM", "SOCK_DGRAM"):
            results[f"{kind} from outside"] = ask(kind, HOST, 443, *client)
            results[f"{kind} from here"] = ask(kind, "127.0.0.1", 443)
            results[f"{kind} where the upstream is"] = ask(kind, "127.0.0.1", WEB)
        results["port"] = ask("SOCK_STREAM", ELSEWHERE, 9005, *client)
        process.send_signal(signal.SIGTERM)
        results["exit"] = process.wait()
        results["left"] = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
        results["rule"] = subprocess.run(["ip", "rule"], capture_output=True, text=True, check=True).stdout == before
        results["seen"] = seen
    finally:
        process.kill()
    print(json.dumps(results))


if __name__ == "__main__":
    os.environ.setdefault("ENCLAVEKIT_LOG", "info")
    main()
