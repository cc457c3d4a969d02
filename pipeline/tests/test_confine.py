# SPDX-License-Identifier: Apache-2.0
"""What a client's entry keeps its commands from, tried from inside: user, paths, system calls, limits, privileges."""

import os
import platform
import subprocess
import sys

import pytest
from enclavekit_core import landlock
from enclavekit_core.errors import InputError
from enclavekit_pipeline.enclave.child import spawn
from enclavekit_pipeline.enclave.client_groups import ClientGroups
from enclavekit_pipeline.enclave.clients import Fence, Grant, Refused, check_request
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.enclave.starting import Starter
from enclavekit_pipeline.wire.exec_messages import ExecRequest, ShellRequest, Terminal
from enclavekit_pipeline.wire.job_messages import JobsRequest, KillRequest, LogsRequest, PsRequest

from .conftest import CID, grant, install_program, listening

needs_landlock = pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
MACHINE_ROOT = "/"


@pytest.fixture(scope="module")
def enclave(inside):
    clients = [
        grant(inside, "alice", system=True),
        grant(inside, "bob", user="1234:55", environment=["A", "B_*"]),
        # the machine's own root, with its programs, under a fence
        grant(
            inside,
            "mallory",
            system=True,
            seccomp="no-network",
            landlock={"read": [MACHINE_ROOT], "write": [str(inside.directory / "yard"), "/dev/null", "/no/such"]},
        ),
    ]
    (inside.directory / "yard").mkdir()
    install_program("cat", inside.app)
    with listening(inside, clients):
        yield inside


def sh(enclave, identity, script, *flags):
    return enclave.run("exec", *flags, CID, "--", "sh", "-c", script, identity=identity)


def status_lines(text):
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def test_privileges_of_who_may_not_act_on_the_system(enclave, inside):
    os.makedirs(inside.app / "proc", exist_ok=True)
    subprocess.run(["mount", "--bind", "/proc", inside.app / "proc"], check=True)
    try:
        done = enclave.run("exec", CID, "--", "cat", "/proc/self/status", identity="bob")
        other = enclave.run("exec", "--system", CID, "--", "cat", "/proc/self/status")
    finally:
        subprocess.run(["umount", inside.app / "proc"], check=True)
    bob, alice = status_lines(done.stdout.decode()), status_lines(other.stdout.decode())
    assert (bob["NoNewPrivs"], alice["NoNewPrivs"]) == ("1", "0")
    assert bob["Uid"].split() == ["1234"] * 4
    assert bob["Gid"].split() == ["55"] * 4
    assert not int(bob["CapBnd"], 16) & (1 << 21 | 1 << 18 | 1 << 19)  # SYS_ADMIN, SYS_CHROOT, SYS_PTRACE
    assert bob["CapEff"].strip("0") == ""


@pytest.mark.parametrize("flags", [("-u", "0"), ("-u", "1234"), ("-e", "LD_PRELOAD=/x")])
def test_entry_s_user_and_variables_are_the_most_there_is(enclave, flags):
    done = sh(enclave, "bob", "true", *flags)
    assert done.returncode == 255
    assert b"bob may" in done.stderr


def test_listed_variables_may_be_set(enclave):
    assert sh(enclave, "bob", "echo $A $B_C", "-e", "A=x", "-e", "B_C=y").stdout == b"x y\n"


@needs_landlock
def test_fence_of_paths(enclave):
    yard = enclave.directory / "yard"
    outside = enclave.directory / "outside"
    script = f"echo in > {yard}/file && cat {yard}/file && echo dropped > /dev/null && echo out > {outside}"
    done = sh(enclave, "mallory", script, "--system")
    assert done.stdout == b"in\n"
    assert done.returncode != 0
    assert b"denied" in done.stderr.lower()
    assert not outside.exists()
    assert (
        sh(
            enclave, "mallory", f"mkdir {yard}/sub && mv {yard}/file {yard}/sub/ && rm -r {yard}/sub", "--system"
        ).returncode
        == 0
    )


@needs_landlock
def test_fence_holds_what_is_not_listed(enclave, tmp_path):
    """Commands that may read nothing cannot even be started: the fence is on before them."""
    with pytest.raises(InputError):
        landlock.make_ruleset(lambda path: Root("/").open(path, os.O_PATH), ["/dev/null/x"], [], "the command")
    entry = Grant(name="a", allow=[], landlock=Fence(write=[str(tmp_path)]), system=True)
    with pytest.raises(InputError, match="permission denied"):
        spawn(ExecRequest(argv=["true"]), entry, Root("/"), Starter(), ClientGroups())


def test_kernel_without_landlock_runs_nothing(monkeypatch):
    monkeypatch.setattr(landlock, "version", lambda: 0)
    with pytest.raises(InputError, match="no Landlock"):
        landlock.make_ruleset(lambda path: -1, [], [], "the command")


PROBE = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, *words):
    result = libc[name](*words)
    print(name, os.strerror(ctypes.get_errno()) if result < 0 else "done")
attempt("mount", b"none", b"/mnt", b"tmpfs", 0, None)
attempt("unshare", 0x10000000)
attempt("ptrace", 16, 1, None, None)
try:
    socket.socket()
    print("socket done")
except OSError as exc:
    print("socket", exc.strerror)
socket.socket(socket.AF_UNIX)
import subprocess, threading
thread = threading.Thread(target=lambda: subprocess.run(["echo", "child"]))
sys.stdout.flush()
thread.start()
thread.join()
"""


@needs_landlock
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="no profile for this architecture")
def test_system_calls_are_filtered_and_ordinary_ones_work(enclave):
    done = enclave.run(
        "exec", "--system", "-i", CID, "--", sys.executable, "-", stdin=PROBE.encode(), identity="mallory"
    )
    refused = os.strerror(1)
    assert done.stdout.decode().splitlines() == [
        f"mount {refused}",
        f"unshare {refused}",
        f"ptrace {refused}",
        f"socket {os.strerror(97)}",
        "child",
    ], done.stderr


def test_limits_hold_and_are_told_by_name(enclave):
    done = sh(
        enclave, "alice", "ulimit -n; ulimit -c; ulimit -s", "--system", "--limit", "nofile=64", "--limit", "core=0"
    )
    assert done.stdout.split()[:2] == [b"64", b"0"]
    done = sh(enclave, "alice", "while :; do :; done", "--system", "--limit", "cpu=1")
    assert done.returncode in (137, 152)  # XCPU and KILL come together: soft and hard are the same
    done = sh(enclave, "alice", "head -c 2M /dev/zero > /dev/null | sort -S 1G", "--system", "--limit", "fsize=1K")
    assert done.returncode == 0
    assert b"NAME=N" in sh(enclave, "alice", "true", "--limit", "colour=1").stderr


def test_memory_limit(enclave):
    words = ("--system", "--limit", "memory=256M", CID, "--", sys.executable, "-c", "bytearray(2**30)")
    assert b"MemoryError" in enclave.run("exec", *words).stderr


def test_step_that_fails_is_named_and_nothing_runs(enclave):
    done = sh(enclave, "alice", "echo ran", "-w", "/no/such")
    assert done.stdout == b""
    assert b"it could not enter /no/such: no such file or directory" in done.stderr


def test_working_directory_is_entered_as_the_user(enclave):
    open_one = enclave.app / "data/closed/open"
    open_one.mkdir(parents=True, exist_ok=True)
    os.chmod(open_one.parent, 0o700)
    assert sh(enclave, "bob", "echo ran", "-w", "/data").stdout == b"ran\n"
    done = sh(enclave, "bob", "echo ran", "-w", "/data/closed/open")
    assert (done.returncode, done.stdout) == (255, b"")
    assert b"could not enter /data/closed/open: permission denied" in done.stderr


@pytest.mark.parametrize(
    ("allow", "request_", "allowed"),
    [
        (["exec"], JobsRequest(), True),
        (["exec"], LogsRequest(job="j1"), True),
        (["shell"], LogsRequest(job="j1"), False),
        (["exec"], KillRequest(job="j1", signal=9), True),
        (["exec"], KillRequest(pid=1, signal=9), False),
        (["kill"], KillRequest(pid=1, signal=9), True),
        (["kill"], KillRequest(job="j1", signal=9), False),
        (["exec"], PsRequest(), False),
        (["ps"], PsRequest(), True),
        (["ps"], PsRequest(system=True), False),
        (["exec"], ShellRequest(), False),
        (["shell"], ShellRequest(), True),
    ],
)
def test_verbs(allow, request_, allowed):
    if allowed:
        check_request(Grant(name="a", allow=allow), request_)
    else:
        with pytest.raises(Refused):
            check_request(Grant(name="a", allow=allow), request_)


def test_client_with_commands_gets_no_shell_and_no_terminal():
    entry = Grant(name="a", allow=["exec", "shell"], commands=[["git", "..."]])
    check_request(entry, ExecRequest(argv=["git", "log"], detach=True))
    for request in (ShellRequest(), ExecRequest(argv=["git", "log"], terminal=Terminal(rows=1, columns=1))):
        with pytest.raises(Refused):
            check_request(entry, request)
    with pytest.raises(Refused):
        check_request(entry, ExecRequest(argv=["git"], environment={"PAGER": "sh"}))
    check_request(
        Grant(name="a", allow=["exec"], commands=[["git"]], environment=["LANG"]),
        ExecRequest(argv=["git"], environment={"LANG": "C"}),
    )
