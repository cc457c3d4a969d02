# SPDX-License-Identifier: Apache-2.0
"""Whatever is killed while bytes flow, nobody waits for ever and nothing stays. Takes minutes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from .conftest import need, start_enclave

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("enclave")]

ROUNDS = 60
MACHINES = 9
PATIENCE_S = 120  # for what takes a moment; a test that waits as long has found a stall
PORT, PARENT_PORT = 7200, 7201
SEED = 20

# answers, and talks to the parent, with as many connections at a time as are asked for
IN_GUEST = """
import os, sys, threading, time
from enclavekit_core.address import CID_ANY, CID_PARENT, VsockAddress
from enclavekit_core.errors import TransportError
from enclavekit_core.streams import Listener, connect
def echo(sock, _peer):
    with sock:
        try:
            while data := sock.recv(65536):
                sock.sendall(data)
        except OSError:
            pass
def talk():
    while True:
        try:
            with connect(VsockAddress(CID_PARENT, int(sys.argv[2]))) as sock:
                while True:
                    sock.sendall(bytes(65536))
                    sock.recv(65536)
        except (OSError, TransportError):
            pass
for _ in range(2):
    threading.Thread(target=talk, daemon=True).start()
listener = Listener(VsockAddress(CID_ANY, int(sys.argv[1])))
print("ready", flush=True)
while True:
    threading.Thread(target=echo, args=listener.accept(), daemon=True).start()
"""
# on the host: keeps one connection busy; says when it flows, and when it has ended
ON_HOST = """
import sys
from enclavekit_core.address import VsockAddress
from enclavekit_core.streams import connect
sock = connect(VsockAddress(int(sys.argv[1]), int(sys.argv[2])), 60)
sock.sendall(bytes(65536)); sock.recv(1)
print("flows", flush=True)
try:
    while sock.recv(65536):
        sock.sendall(bytes(65536))
except OSError:
    pass
print("ended", flush=True)
"""
PARENT = """
import sys, threading
from enclavekit_core.address import CID_PARENT, VsockAddress
from enclavekit_core.streams import Listener
def echo(sock, _peer):
    with sock:
        try:
            while data := sock.recv(65536):
                sock.sendall(data)
        except OSError:
            pass
listener = Listener(VsockAddress(CID_PARENT, int(sys.argv[1])))
print("ready", flush=True)
while True:
    threading.Thread(target=echo, args=listener.accept(), daemon=True).start()
"""


def eventually(condition, what):
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.05)
    return value


class Traffic:
    """An enclave with connections both ways, and the processes at their ends."""

    def __init__(self, shell, notes, stack):
        self.shell, self.stack = shell, stack
        self.enclave = start_enclave(shell, notes, machine="qemu")
        stack.callback(shell.run, "nitro-emu", "terminate-enclave", "--enclave-id", self.enclave.id, expect=None)
        runtime = Path(shell.environment["ENCLAVEKIT_RUNTIME_DIR"])
        self.directory = runtime / "enclaves" / self.enclave.id
        self.fabric, self.registry = (runtime / f"{kind}/{self.enclave.cid}" for kind in ("fabric", "registry"))
        state = json.loads((self.directory / "state.json").read_text())
        record = json.loads(self.registry.with_suffix(".json").read_text())
        self.pids = {
            "machine": state["init"]["pid"],
            "device": record["carrier_pid"],
            "supervisor": state["supervisor"]["pid"],
        }
        self.guest = self.parent = None

    def spawn(self, *argv):
        """Start a program and wait for its first line."""
        process = subprocess.Popen(
            [str(word) for word in argv],
            cwd=self.shell.directory,
            env=self.shell.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.stack.callback(process.communicate)
        self.stack.callback(process.kill)
        assert process.stdout.readline(), process.communicate()[1]
        return process

    def start_guest(self):
        inside = ("--", "python3", "-c", IN_GUEST, PORT, PARENT_PORT)
        self.guest = self.spawn(*self.enclave.pipeline("exec", "--system", self.enclave.cid, *inside))

    def start_parent(self):
        self.parent = self.spawn(sys.executable, "-c", PARENT, PARENT_PORT)

    def start_client(self):
        return self.spawn(sys.executable, "-c", ON_HOST, self.enclave.cid, PORT)

    def kill_in_guest(self):
        """Kill the program that serves, by the port that only it has in its arguments."""
        is_it = f"tr '\\0' ' ' < $p/cmdline | grep -q ' {PORT} {PARENT_PORT} $'"
        kill = f"for p in /proc/[0-9]*; do {is_it} && kill -9 ${{p#/proc/}}; done; :"
        self.shell.run(*self.enclave.pipeline("exec", "--system", self.enclave.cid, "--", "sh", "-c", kill))
        self.guest.communicate(timeout=PATIENCE_S)

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.pids['device']}/fd"))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_ends_of_connections_killed_at_random(shell, notes):
    """Clients, the parent's server and the guest's program die in turn; the device forgets each connection."""
    need("qemu-system-x86_64")
    source = random.Random(SEED)
    with ExitStack() as stack:
        traffic = Traffic(shell, notes, stack)
        idle = traffic.descriptors()
        traffic.start_parent()
        traffic.start_guest()
        clients = [traffic.start_client() for _ in range(3)]
        for _ in range(ROUNDS):
            match source.choice(["client", "client", "client", "parent", "guest"]):
                case "client":
                    victim = clients.pop(source.randrange(len(clients)))
                    victim.send_signal(source.choice([signal.SIGKILL, signal.SIGTERM]))
                    victim.communicate(timeout=PATIENCE_S)
                    clients.append(traffic.start_client())
                case "parent":
                    traffic.parent.kill()
                    traffic.parent.communicate(timeout=PATIENCE_S)
                    traffic.start_parent()
                case _:
                    traffic.kill_in_guest()
                    for client in clients:
                        assert client.communicate(timeout=PATIENCE_S)[0].split() == ["ended"]
                    traffic.start_guest()
                    clients = [traffic.start_client() for _ in clients]
        assert traffic.enclave.exec("sh", "-c", "echo alive").strip() == "alive"
        traffic.kill_in_guest()
        for client in clients:
            assert client.communicate(timeout=PATIENCE_S)[0].split() == ["ended"]
        # what is left are the enclave's own: none of ours
        eventually(lambda: traffic.descriptors() <= idle + 2, "the end of every connection")


@pytest.mark.parametrize("number", range(MACHINES))
def test_machines_killed_at_random(shell, notes, number):
    """QEMU, its device or its supervisor dies: everybody hears of it, and no process, socket or directory stays."""
    need("qemu-system-x86_64")
    victim = ("machine", "device", "supervisor")[number % 3]
    with ExitStack() as stack:
        traffic = Traffic(shell, notes, stack)
        traffic.start_parent()
        traffic.start_guest()
        clients = [traffic.start_client() for _ in range(3)]
        os.kill(traffic.pids[victim], signal.SIGKILL)
        for client in clients:
            assert client.communicate(timeout=PATIENCE_S)[0].split() == ["ended"]
        traffic.guest.communicate(timeout=PATIENCE_S)
        if victim == "supervisor":
            shell.run("nitro-emu", "wait", "--enclave-id", traffic.enclave.id, expect=39)  # nobody can say how it ended
        else:
            shell.run("nitro-emu", "wait", "--enclave-id", traffic.enclave.id, expect=255)
        eventually(lambda: not any(map(is_running, traffic.pids.values())), "the end of every process")
        assert not traffic.directory.exists() and not traffic.fabric.exists()
        assert not traffic.registry.with_suffix(".json").exists()
        assert traffic.enclave.id not in {item["EnclaveID"] for item in shell.json("nitro-emu", "describe-enclaves")}
