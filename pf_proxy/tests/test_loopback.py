# SPDX-License-Identifier: Apache-2.0
"""The loopback interface of an enclave: real listeners."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys

import pytest
from enclavekit_core.errors import TransportError
from enclavekit_pf_proxy.loopback import parse_listeners, wait_for_listeners

# listeners of both kinds of IP, waited for by the command, in a network namespace without a way out
SCRIPT = """
import fcntl, socket, struct
from enclavekit_pf_proxy.loopback import main
with socket.socket() as sock:
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh22x", b"lo", 1 | 64))  # IFF_UP | IFF_RUNNING
for address in ("127.0.0.1", "127.0.0.2", "::1"):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 443), family=family) as server:
        assert main(["wait", f"[{address}]:443" if ":" in address else f"{address}:443"]) == 0
        with socket.create_connection((address, 443), 5):
            pass
try:
    socket.create_connection(("192.0.2.99", 443), 5)
except OSError as exc:
    print(exc.errno)
"""


def test_the_command_waits_for_listeners_of_both_kinds_of_ip() -> None:
    unshare = ["unshare", "--user", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("no network namespaces here (unshare)")
    done = subprocess.run([*unshare, sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 101  # ENETUNREACH


def test_listeners_are_read_from_the_kernels_table() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, open("/proc/net/tcp") as table:
        assert ("127.0.0.1", server.getsockname()[1]) in parse_listeners(table.read())
    head = "  sl  local_address rem_address   st\n"
    row = "   0: B80D0120000000000000000007000000:01BB 00000000000000000000000000000000:0000 0A 0\n"
    if sys.byteorder == "little":
        assert parse_listeners(head + row) == {("2001:db8::7", 443)}
    assert parse_listeners(head + row.replace(" 0A ", " 01 ")) == frozenset()


def test_what_nobody_listens_on_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        wait_for_listeners([("127.0.0.1", port)])
    with pytest.raises(TransportError, match=str(port)):
        wait_for_listeners([("127.0.0.1", port)], timeout_s=0)
