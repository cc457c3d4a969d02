# SPDX-License-Identifier: Apache-2.0
"""Run in a network namespace of its own: diverts connections with nftables and prints what the other end is told."""

import os
import subprocess
import sys
import tempfile
import threading

from enclavekit_core import fabric
from enclavekit_core.address import CID_PARENT, TcpAddress, VsockAddress
from enclavekit_core.logs import configure
from enclavekit_core.streams import Listener, connect
from enclavekit_pf_proxy.server import Server
from enclavekit_pf_proxy.service import Endpoint, Mode, Service
from enclavekit_pf_proxy.wire.request import Status, decode_request, encode_reply

RULES = """
table inet test {
  chain output {
    type nat hook output priority -100;
    ip daddr 192.0.2.0/24 meta l4proto tcp redirect to :%d
    ip6 daddr 2001:db8::/32 meta l4proto tcp redirect to :%d
  }
}
"""
DESTINATIONS = ["192.0.2.7", "2001:db8::7"]


def main():
    configure("error")
    for line in (
        "link set lo up",
        "route add 192.0.2.0/24 dev lo",
        "-6 route add 2001:db8::/32 dev lo",
        "-6 addr add 2001:db8:1::1/128 dev lo",
    ):
        subprocess.run(["ip", *line.split()], check=True)
    with tempfile.TemporaryDirectory() as directory:
        os.environ[fabric.RUNTIME_DIR_VARIABLE] = directory + "/rt"
        fabric.ensure_runtime_dir()
        serve()


def serve():
    host_end = VsockAddress(CID_PARENT, 8888)
    told = Listener(host_end)
    told.socket.settimeout(20)
    listener = Listener(TcpAddress("::", 0))
    port = listener.bound_address.port
    subprocess.run(["nft", "-f", "-"], input=RULES % (port, port), text=True, check=True)
    service = Service(Mode.IP_TO_VSOCK_TRANSPARENT, Endpoint(listener.address), Endpoint(host_end))
    server = Server([(service, [(0, listener)])])
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for host in DESTINATIONS:
            with connect(TcpAddress(host, 443)):
                peer, _ = told.accept()
                with peer:
                    request, _ = decode_request(peer.recv(1000))
                    peer.sendall(encode_reply(Status.CONNECTED))
                    print(request.destination)
    finally:
        server.stop()
        server.stop()
        thread.join()
        told.close()


if __name__ == "__main__":
    sys.exit(main())
