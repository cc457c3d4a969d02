# SPDX-License-Identifier: Apache-2.0
"""exec against a real listener: streams, statuses, rights. `--system` acts on this machine's root, so the commands are
the machine's own."""

import secrets

import pytest

from .conftest import CID

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


def test_grandchild_with_the_pipes_does_not_hold_the_answer(enclave):
    done = system(enclave, "sh", "-c", "setsid sleep 5 & echo out; exit 4")
    assert (done.returncode, done.stdout) == (4, b"out\n")


def test_command_that_is_not_there_is_our_failure(enclave):
    done = system(enclave, "/no/such/command")
    assert done.returncode == 255
    assert b"cannot run '/no/such/command': no such file or directory" in done.stderr


def test_app_root_is_where_exec_acts_by_default(enclave):
    # the test's app root is empty but for directories: nothing can be run in it, which is the proof
    done = enclave.run("exec", CID, "--", "sh", "-c", "true")
    assert done.returncode == 255
    assert b"cannot run 'sh'" in done.stderr


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


def test_no_command_is_a_usage_error(enclave):
    assert enclave.run("exec", CID, "--").returncode == 255
