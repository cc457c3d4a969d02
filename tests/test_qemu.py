# SPDX-License-Identifier: Apache-2.0
"""What only a virtual machine can show: the image's own kernel, its AF_VSOCK under load, the real ioctl of /dev/nsm."""

import hashlib
import json
import os
import subprocess
import threading
from pathlib import Path

import pytest
from enclavekit_core.address import VsockAddress
from enclavekit_core.streams import Listener

from .conftest import need

pytestmark = pytest.mark.xdist_group("enclave")

# an unmodified program as the driver's users write it: NSM_IOCTL_RAW of include/uapi/linux/nsm.h with raw CBOR
IOCTL_PROGRAM = r"""
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
struct nsm_iovec { uint64_t addr, len; };
struct nsm_raw { struct nsm_iovec request, response; };
int main(void) {
    static const char request[] = "\x6b" "DescribeNSM";
    static unsigned char response[0x3000];
    struct nsm_raw raw = {{(uintptr_t)request, 12}, {(uintptr_t)response, sizeof response}};
    int fd = open("/dev/nsm", O_RDWR);
    if (fd < 0 || ioctl(fd, _IOWR(0x0A, 0, struct nsm_raw), &raw)) { perror("nsm"); return 1; }
    for (uint64_t i = 0; i < raw.response.len; i++) printf("%02x", response[i]);
    putchar('\n');
    raw.request.len = 0;
    if (ioctl(fd, _IOWR(0x0A, 0, struct nsm_raw), &raw) == 0) return 2;
    return ioctl(fd, _IO(0x0A, 9), 0) == 0 ? 3 : 0;
}
"""

GUEST_STREAMS = """
import hashlib, socket, sys
mode, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
def dial():
    sock = socket.socket(socket.AF_VSOCK)
    sock.connect((3, port))
    return sock
if mode == "out":
    sock, digest, block, left = dial(), hashlib.sha256(), bytes(range(256)) * 1024, count
    while left:
        piece = block[: min(left, len(block))]
        digest.update(piece); sock.sendall(piece); left -= len(piece)
    sock.shutdown(socket.SHUT_WR)
    assert sock.recv(1) == b"", "half-close"
    print(digest.hexdigest())
elif mode == "in":
    sock, digest, total = dial(), hashlib.sha256(), 0
    while chunk := sock.recv(1 << 20):
        digest.update(chunk); total += len(chunk)
    print(digest.hexdigest(), total)
else:
    for number in range(count):
        sock = dial(); sock.sendall(b"%d" % number); sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b"%d" % number
        sock.close()
    print("all")
"""


@pytest.fixture(scope="module")
def machine(enclave):
    if enclave.machine != "qemu":
        pytest.skip("this is about virtual machines")
    return enclave


pytestmark = [pytestmark, pytest.mark.parametrize("enclave", ["qemu"], indirect=True)]


@pytest.fixture
def parent_port(shell, monkeypatch):
    """A listener on a vsock port of the parent; `serve(handle)` runs in a thread for each connection."""
    for name in ("ENCLAVEKIT_RUNTIME_DIR",):
        monkeypatch.setenv(name, shell.environment[name])
    listener = Listener(VsockAddress(3, 7000))

    def serve(handle):
        def run():
            while True:
                try:
                    sock, peer = listener.accept()
                except OSError:
                    return
                with sock:
                    handle(sock, peer)

        threading.Thread(target=run, daemon=True).start()

    yield serve
    listener.socket.shutdown(2)
    listener.close()


def in_guest(machine, *argv, **options):
    """Run a program in the framework's root, where Python is."""
    shell = machine.shell
    return shell.output(*machine.pipeline("exec", "--system", "-i", machine.cid, "--", *argv), **options)


def guest_streams(machine, *argv):
    return in_guest(machine, "python3", "-I", "-c", GUEST_STREAMS, *argv).split()


def test_it_is_the_images_own_kernel(shell, machine, notes):
    described = shell.json("eif", "describe", notes)
    assert described["Metadata"]["kernel"]["name"].split()[1] == in_guest(machine, "cat", "/proc/version").split()[2]


def test_an_unmodified_program_gets_what_the_process_machine_gives(shell, machine, tmp_path):
    need("gcc")
    (tmp_path / "nsm.c").write_text(IOCTL_PROGRAM)
    subprocess.run(["gcc", "-static", "-O1", "-o", tmp_path / "nsm", tmp_path / "nsm.c"], check=True)
    shell.run(*machine.pipeline("cp", "--system", tmp_path / "nsm", f"{machine.cid}:/root/nsm-program"))
    in_guest(machine, "python3", "-I", "-c", "import os; os.chmod('/root/nsm-program', 0o755)")
    answer = bytes.fromhex(in_guest(machine, "/root/nsm-program").strip())
    assert answer.startswith(b"\xa1\x6bDescribeNSM") and machine.id.encode() in answer
    mode = in_guest(machine, "python3", "-I", "-c", "import os, stat; s = os.stat('/dev/nsm'); print(oct(s.st_mode))")
    assert mode.strip() == "0o20666"


@pytest.mark.parametrize("megabytes", [32, pytest.param(1024, marks=pytest.mark.long)])
def test_bytes_out_of_the_guest_by_hash(machine, parent_port, megabytes):
    digest, peers = hashlib.sha256(), []

    def take(sock, peer):
        peers.append(peer.cid)
        while chunk := sock.recv(1 << 20):
            digest.update(chunk)

    parent_port(take)
    (sent,) = guest_streams(machine, "out", 7000, megabytes << 20)
    assert (sent, peers) == (digest.hexdigest(), [machine.cid])


@pytest.mark.parametrize("megabytes", [32, pytest.param(1024, marks=pytest.mark.long)])
def test_bytes_into_the_guest_by_hash(machine, parent_port, megabytes):
    digest, block = hashlib.sha256(), os.urandom(1 << 20)

    def give(sock, _peer):
        for _ in range(megabytes):
            digest.update(block)
            sock.sendall(block)

    parent_port(give)
    received, total = guest_streams(machine, "in", 7000, 0)
    assert (received, int(total)) == (digest.hexdigest(), megabytes << 20)


def test_a_thousand_short_connections(machine, parent_port):
    def echo(sock, _peer):
        sock.sendall(sock.recv(100))

    parent_port(echo)
    assert guest_streams(machine, "short", 7000, 1000) == ["all"]


@pytest.mark.parametrize("victim", ["machine", pytest.param("device", marks=pytest.mark.long)])
def test_its_end_is_seen_and_nothing_stays(shell, machine, notes, victim):
    record = shell.json(
        *("nitro-emu", "run-enclave", "--eif-path", notes, "--cpu-count", 1, "--memory", 512, "--machine", "qemu"),
    )
    runtime = Path(shell.environment["ENCLAVEKIT_RUNTIME_DIR"])
    state = json.loads((runtime / "enclaves" / record["EnclaveID"] / "state.json").read_text())
    pids = {
        "machine": state["init"]["pid"],
        "device": json.loads((runtime / f"registry/{record['EnclaveCID']}.json").read_text())["carrier_pid"],
    }
    os.kill(pids[victim], 9)
    ended = shell.run("nitro-emu", "wait", "--enclave-id", record["EnclaveID"], expect=255)
    assert ("device" in json.loads(ended.stdout)["reason"]) == (victim == "device")
    assert not (runtime / "fabric" / str(record["EnclaveCID"])).exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
