# SPDX-License-Identifier: Apache-2.0
"""Enclaves of both kinds reach each other by CID, with bytes both ways, and each knows who the other is."""

import json
import subprocess
from contextlib import ExitStack, contextmanager

import pytest

from .conftest import start_enclave

pytestmark = [
    pytest.mark.long,  # two virtual machines
    pytest.mark.xdist_group("enclave"),
    pytest.mark.parametrize("enclave", ["qemu"], indirect=True),
]

PORT, NOBODY = 7100, 7101
BYTES = 6 << 20
# the same program on both machines: only the library below it knows what carries its streams
PROGRAM = """
import hashlib, json, os, sys, threading
from enclavekit_core.address import CID_ANY, VsockAddress
from enclavekit_core.errors import TransportError
from enclavekit_core.streams import Listener, connect

def read_all(sock):
    data = bytearray()
    while chunk := sock.recv(1 << 18):
        data += chunk
    return bytes(data)

def answer(sock, peer):
    with sock:
        data = read_all(sock)
        sock.sendall(json.dumps({"peer": peer.cid, "size": len(data)}).encode() + b"\\n" + data)

if sys.argv[1] == "serve":
    listener = Listener(VsockAddress(CID_ANY, int(sys.argv[2])))
    print("ready", flush=True)
    while True:
        threading.Thread(target=answer, args=listener.accept(), daemon=True).start()
found = {}
for cid in map(int, sys.argv[4:]):
    sent = os.urandom(int(sys.argv[3]))
    try:
        sock = connect(VsockAddress(cid, int(sys.argv[2])), 60)
    except TransportError:
        found[cid] = None
        continue
    with sock:
        sender = threading.Thread(target=lambda: (sock.sendall(sent), sock.shutdown(1)))
        sender.start()
        line, _, data = read_all(sock).partition(b"\\n")
        sender.join()
    found[cid] = json.loads(line) | {"same": data == sent}
print(json.dumps(found))
"""


def program(enclave, *argv):
    return [
        str(word) for word in enclave.pipeline("exec", "--system", enclave.cid, "--", "python3", "-c", PROGRAM, *argv)
    ]


@contextmanager
def served(enclave):
    """The program serves in the enclave."""
    shell = enclave.shell
    argv = program(enclave, "serve", PORT)
    with subprocess.Popen(argv, cwd=shell.directory, env=shell.environment, stdout=subprocess.PIPE, text=True) as end:
        try:
            assert end.stdout.readline() == "ready\n"
            yield
        finally:
            end.terminate()


@pytest.fixture(scope="module")
def family(shell, notes, enclave):
    """Two virtual machines and one of the process machine; all serve."""
    with ExitStack() as stack:
        members = [enclave]
        for machine in ("process", "qemu"):
            members.append(start_enclave(shell, notes, machine=machine))
            stack.callback(shell.run, "nitro-emu", "terminate-enclave", "--enclave-id", members[-1].id)
        for member in members:
            stack.enter_context(served(member))
        yield members


@pytest.mark.parametrize("source", range(3), ids=["qemu", "process", "qemu-2"])
def test_each_reaches_every_other_as_itself(shell, family, source):
    member = family[source]
    others = [other.cid for other in family if other is not member]
    found = json.loads(shell.output(*program(member, "call", PORT, BYTES, *others)))
    assert found == {str(cid): {"peer": member.cid, "size": BYTES, "same": True} for cid in others}


@pytest.mark.parametrize("source", range(2), ids=["qemu", "process"])
def test_where_nobody_listens_the_connection_is_refused(shell, family, source):
    member = family[source]
    others = [other.cid for other in family if other is not member] + [999]
    found = json.loads(shell.output(*program(member, "call", NOBODY, 1, *others)))
    assert found == {str(cid): None for cid in others}
