# SPDX-License-Identifier: Apache-2.0
"""Terminals at both ends: the command has one in the enclave, the caller one here that must be left as it was."""

import contextlib
import dataclasses
import fcntl
import os
import select
import signal
import struct
import subprocess
import termios

import pytest
from enclavekit_pipeline.host.terminal import DetachKeys

from .conftest import BIN, CID, grant, listening


@pytest.fixture(scope="module")
def enclave(inside):
    (inside.app / "etc/passwd").write_text("app:x:1234:1234::/data:/bin/nothing\n")
    with listening(inside, [grant(inside, "alice", system=True, allow=["exec", "shell", "kill", "ps"])]):
        yield inside


class Window:
    """A terminal that somebody looks at, and `pipeline` on it."""

    def __init__(self, enclave, verb, *words, rows=50, columns=132):
        self.master, self.slave = os.openpty()
        self.resize(rows, columns, tell=False)
        self.before = termios.tcgetattr(self.slave)
        argv = [BIN / "pipeline", verb, *enclave.flags(), *map(str, words)]
        environment = {**enclave.environment, "TERM": "xterm-test"}
        ends = {"stdin": self.slave, "stdout": self.slave, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(argv, env=environment, start_new_session=True, **ends)
        self.seen = b""

    def resize(self, rows, columns, tell=True):
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        if tell:
            self.process.send_signal(signal.SIGWINCH)  # the kernel does this where it is the controlling terminal

    def type(self, data):
        os.write(self.master, data)

    def wait_for(self, wanted):
        """Read until `wanted` is on the screen; forget everything up to it."""
        poll = select.poll()
        poll.register(self.master, select.POLLIN)
        while wanted not in self.seen:
            assert poll.poll(20_000), self.seen
            self.seen += os.read(self.master, 65536)
        before, _, self.seen = self.seen.partition(wanted)
        return before

    def end(self):
        """Return the exit code; the terminal must be as it was."""
        status = self.process.wait(20)
        assert termios.tcgetattr(self.slave) == self.before
        return status

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def window(enclave):
    with contextlib.ExitStack() as stack:

        def make(*words, **more):
            return stack.enter_context(contextlib.closing(Window(enclave, *words, **more)))

        yield make


def system(script):
    return ("--system", CID, "--", "sh", "-c", script)


def test_command_has_a_terminal_of_our_size_and_kind(window):
    one = window("exec", "-it", *system("test -t 0 && test -t 1 && test -t 2 && stty size; echo $TERM; exit 3"))
    one.wait_for(b"50 132\r\n")
    one.wait_for(b"xterm-test\r\n")
    assert one.end() == 3


def test_terminal_without_ours_has_a_size_too(enclave):
    done = enclave.run("exec", "-t", *system("stty size; echo err >&2"))
    assert done.stdout == b"24 80\r\nerr\r\n"


def test_change_of_size_reaches_the_command(window):
    script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done"
    one = window("exec", "-it", *system(script))
    one.wait_for(b"ready")
    one.resize(33, 44)
    one.wait_for(b"33 44")
    assert one.end() == 0


def test_keys_are_the_command_s(window):
    one = window("exec", "-it", *system("trap 'echo told; exit 7' INT; echo ready; while :; do sleep 0.05; done"))
    one.wait_for(b"ready")
    one.type(b"\x03")
    one.wait_for(b"told")
    assert one.end() == 7


def test_end_of_our_input_is_the_end_of_the_terminal_s(enclave):
    done = enclave.run("exec", "-it", *system("stty -echo; echo ready; cat; echo over"), stdin=b"line\nhalf")
    assert done.returncode == 0
    assert done.stdout.replace(b"\r", b"").endswith(b"over\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminal_is_restored_when_a_signal_ends_us(window, number):
    one = window("exec", "-it", *system("trap '' TERM HUP; echo ready; exec sleep 1000"))
    one.wait_for(b"ready")
    while one.process.poll() is None:  # the first ones are the command's, which ignores them
        one.process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.process.wait(0.1)
    assert one.end() in (128 + number, -number)  # the latter if one more came while it was leaving


def test_terminal_is_restored_when_the_enclave_goes(inside, tmp_path):
    """The command ends with the listener, too."""
    place = dataclasses.replace(inside, directory=tmp_path)
    with listening(place, [grant(inside, "alice", system=True)], cid=23) as listener:
        argv = ("--system", 23, "--", "sh", "-c", "echo $$ ready; exec sleep 1000")
        with contextlib.closing(Window(inside, "exec", "-it", *argv)) as one:
            pid = int(one.wait_for(b" ready"))
            command = os.pidfd_open(pid)
            listener.kill()
            assert one.end() == 255
    poll = select.poll()
    poll.register(command, select.POLLIN)
    assert poll.poll(20_000), "the command lives on"
    os.close(command)


def test_stop_and_continue(window):
    one = window("exec", "-it", *system("echo ready; read line; echo got $line"))
    one.wait_for(b"ready")
    raw = termios.tcgetattr(one.slave)
    assert raw != one.before
    one.process.send_signal(signal.SIGTSTP)
    os.waitid(os.P_PID, one.process.pid, os.WSTOPPED | os.WNOWAIT)
    assert termios.tcgetattr(one.slave) == one.before
    one.process.send_signal(signal.SIGCONT)
    while termios.tcgetattr(one.slave) != raw:
        pass
    one.type(b"x\r")
    one.wait_for(b"got x")
    assert one.end() == 0


def test_shell_is_the_app_s_and_a_login_shell(window):
    one = window("shell", CID)
    one.type(b"echo $0 $HOME /*; exit 4\r")
    one.wait_for(b"-sh / /bin /data /etc")
    assert one.end() == 4


def test_shell_reads_a_script_where_there_is_no_terminal(enclave):
    done = enclave.run("shell", "-e", "A=b", "-w", "/data", CID, stdin=b"pwd\necho $A $SHELL\nexit 5\n")
    assert (done.returncode, done.stdout) == (5, b"/data\nb /bin/sh\n")


def test_shell_of_an_account_that_has_none(enclave):
    done = enclave.run("shell", "-u", "app", CID, stdin=b"echo $0 $HOME\n")
    assert done.stdout == b"-sh /data\n"


def test_background_jobs_end_with_their_terminal(enclave, window, tmp_path):
    """With job control each job is a process group of its own: the group of the shell is not enough."""
    path = tmp_path / "held"
    os.mkfifo(path)
    held = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    poll = select.poll()
    poll.register(held, select.POLLIN)
    script = f"set -m; sh -c 'trap \"\" HUP; exec 3> {path}; echo up >&3; exec sleep 1000' & wait"
    one = window("exec", "-it", *system(script))
    assert poll.poll(20_000)
    assert os.read(held, 10) == b"up\n"
    one.process.kill()
    assert poll.poll(20_000), "somebody still holds it"
    assert os.read(held, 10) == b""
    os.close(held)


@pytest.mark.parametrize(
    ("pieces", "passed", "left"),
    [
        ([b"abc"], b"abc", False),
        ([b"a\x10\x11b"], b"a", True),
        ([b"a\x10", b"\x11"], b"a", True),
        ([b"\x10", b"x"], b"\x10x", False),
        ([b"\x10\x10\x11"], b"\x10", True),
        ([b"\x11\x10"], b"\x11", False),
    ],
)
def test_detach_keys(pieces, passed, left):
    keys, got, leaving = DetachKeys(), b"", False
    for piece in pieces:
        data, leaving = keys.feed(piece)
        got += data
    assert (got, leaving) == (passed, left)
