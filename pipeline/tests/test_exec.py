# SPDX-License-Identifier: Apache-2.0
"""exec against a real listener: streams, statuses, rights. `--system` acts on this machine's root, so the commands are
the machine's own."""

import contextlib
import os
import secrets
import select
import subprocess

import pytest

from .conftest import BIN, CID

DATA = secrets.token_bytes(3_000_000)


def system(enclave, *argv, flags=(), **more):
    return enclave.run("exec", "--system", *flags, CID, "--", *argv, **more)


def test_streams_are_raw_and_apart(enclave):
    done = system(enclave, "sh", "-c", "cat; echo error >&2; exit 3", flags=["-i"], stdin=DATA)
    assert (done.returncode, done.stdout) == (3, DATA)
    assert done.stderr.endswith(b"error\n")


@pytest.mark.parametrize("status", [0, 1, 7, 126, 254])
def test_exit_status_is_exact(enclave, status):
    assert system(enclave, "sh", "-c", f"exit {status}").returncode == status


@pytest.mark.parametrize(("signal", "status"), [("KILL", 137), ("TERM", 143), ("SEGV", 139)])
def test_death_by_signal_is_128_plus_n(enclave, signal, status):
    assert system(enclave, "sh", "-c", f"kill -{signal} $$").returncode == status


def test_without_i_the_command_reads_nothing(enclave):
    assert system(enclave, "cat", stdin=b"not for you").stdout == b""


def test_words_are_words_and_no_shell(enclave):
    assert system(enclave, "printf", "%s|", "a b", "$HOME", "*").stdout == b"a b|$HOME|*|"


def test_environment_directory_and_user(enclave):
    flags = ["-e", "COLOR=red", "-w", "/tmp", "-u", "1234:55"]
    done = system(enclave, "sh", "-c", "echo $COLOR; pwd; id -u; id -g", flags=flags)
    assert done.stdout.decode().split("\n")[:4] == ["red", "/tmp", "1234", "55"]


def test_time_out_ends_the_whole_session(enclave):
    done = system(enclave, "sh", "-c", "sleep 1000 & sleep 1000", flags=["--timeout", "0.3"])
    assert done.returncode == 143
    assert b"took longer than --timeout" in done.stderr


def test_time_out_is_no_success_even_if_the_command_says_so(enclave):
    done = system(enclave, "sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.05; done", flags=["--timeout", "0.3"])
    assert done.returncode == 124


def test_grandchild_with_the_pipes_does_not_hold_the_answer(enclave):
    # `yes` has left the session and writes on for ever: what it writes into no reader's pipe ends it
    done = system(enclave, "sh", "-c", "setsid yes & setsid sleep 5 & echo out; exit 4")
    assert done.returncode == 4
    assert b"out\n" in done.stdout


class Held:
    """A FIFO that a command holds open for writing as long as it lives, and our reading end."""

    def __init__(self, path):
        self.path = path
        os.mkfifo(path)
        self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.poll = select.poll()
        self.poll.register(self.descriptor, select.POLLIN)

    def read(self):
        """Wait for words, or for the end of all who could write: b""."""
        assert self.poll.poll(20_000), "neither words nor an end"
        return os.read(self.descriptor, 65536)


@pytest.fixture
def held(tmp_path):
    held = Held(tmp_path / "held")
    yield held
    os.close(held.descriptor)


@contextlib.contextmanager
def start(enclave, *argv, flags=(), **streams):
    words = [BIN / "pipeline", "exec", *enclave.flags(), "--system", *flags, str(CID), "--", *map(str, argv)]
    with subprocess.Popen(words, env=enclave.environment, stderr=subprocess.DEVNULL, **streams) as process:
        try:
            yield process
            process.wait(20)
        finally:
            process.kill()


def test_what_a_command_leaves_in_its_session_ends_with_it(enclave, held):
    done = system(enclave, "sh", "-c", f"exec 3> {held.path}; sleep 1000 & exit 0")
    assert done.returncode == 0
    assert held.read() == b""  # the end: nobody holds it any more


def test_command_ends_with_its_caller_though_it_reads_nothing(enclave, held):
    with start(
        enclave, "sh", "-c", f"exec 3> {held.path}; echo ready >&3; exec sleep 1000", flags=["-i"], stdin=-1
    ) as caller:
        assert held.read() == b"ready\n"
        caller.stdin.write(DATA[:600_000])  # fills the command's pipe, and waits behind it
        caller.kill()
    assert held.read() == b""  # the end: the command is gone


def test_caller_s_signals_reach_the_command(enclave, held):
    script = f"trap 'echo told; exit 9' TERM; exec 3> {held.path}; echo ready >&3; while :; do sleep 0.05; done"
    with start(enclave, "sh", "-c", script, stdout=subprocess.PIPE) as caller:
        assert held.read() == b"ready\n"
        caller.terminate()
        assert caller.stdout.read() == b"told\n"
    assert caller.returncode == 9


def test_slow_reader_of_many_small_pieces_gets_them_all(enclave, held):
    # each line is a write of its own; nobody reads until all of it that fits is under way
    count = 20_000
    script = f"exec 3> {held.path}; i=0; while [ $i -lt {count} ]; do echo $i; i=$((i+1)); done & wait; echo done >&3"
    with start(enclave, "sh", "-c", script, stdout=subprocess.PIPE) as caller:
        assert held.read() == b"done\n"  # the command has ended, its output waits for us
        assert caller.stdout.read().split() == [b"%d" % i for i in range(count)]
    assert caller.returncode == 0


def test_reader_that_leaves_early_is_no_error_of_ours(enclave):
    with start(enclave, "yes", stdout=subprocess.PIPE) as caller:
        caller.stdout.read(10)
        caller.stdout.close()
    assert caller.returncode == 141


def test_command_may_follow_the_cid(enclave):
    """As with `docker exec`: from there on every word is the command's."""
    words = ["-i", "--system", str(CID), "sh", "-c", "cat; echo $0 $1", "-i", "--system"]
    assert enclave.run("exec", *words, stdin=b"in ").stdout == b"in -i --system\n"


def test_flags_may_follow_the_cid(enclave):
    words = [str(CID), "-i", "--system", "-e", "A=b", "--", "sh", "-c", "cat; echo $A -- $1", "sh", "--"]
    assert enclave.run("exec", *words, stdin=b"in ").stdout == b"in b -- --\n"


def test_command_that_is_not_there_is_our_failure(enclave):
    done = system(enclave, "/no/such/command")
    assert done.returncode == 255
    assert b"cannot run '/no/such/command': no such file or directory" in done.stderr


def test_app_root_is_where_exec_acts_by_default(enclave):
    done = enclave.run("exec", CID, "--", "sh", "-c", "echo /* > /data/seen; echo here; exit 5")
    assert (done.returncode, done.stdout) == (5, b"here\n")
    assert (enclave.app / "data/seen").read_text().split()[:2] == ["/bin", "/data"]
    (enclave.app / "data/seen").unlink()
    done = enclave.run("exec", CID, "--", "env")
    assert done.returncode == 255  # this machine has one, the app has not
    assert b"cannot run 'env'" in done.stderr


@pytest.mark.parametrize(("flag", "value"), [("-w", "/no/such"), ("-u", "nobody-here"), ("-u", "4294967295")])
def test_directory_and_user_that_are_not_there(enclave, flag, value):
    done = enclave.run("exec", flag, value, CID, "--", "sh", "-c", "true")
    assert done.returncode == 255
    assert b"pipeline: cannot run" in done.stderr


@pytest.mark.parametrize(
    ("flags", "argv"),
    [
        ([], ["ls"]),
        ([], ["echo-not"]),
        (["-e", "LD_PRELOAD=/tmp/x"], ["echo"]),
        (["-u", "0"], ["echo"]),
        (["-w", "/tmp"], ["echo"]),
        (["--system"], ["echo", "hello"]),
    ],
)
def test_what_the_list_does_not_grant_is_refused(enclave, flags, argv):
    done = enclave.run("exec", *flags, CID, "--", *argv, identity="bob")
    assert done.returncode == 255
    assert b"bob may" in done.stderr


@pytest.mark.parametrize(
    "words",
    [[CID, "--"], [CID], [CID, "-i"], [CID, "-i", "ls"], ["--port", "x", CID, "--", "ls"], ["here", "--", "ls"]],
)
def test_usage_errors_are_not_the_command_s(enclave, words):
    assert enclave.run("exec", *words).returncode == 255
