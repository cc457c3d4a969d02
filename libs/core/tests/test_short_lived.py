# SPDX-License-Identifier: Apache-2.0
import os
import signal
import sys
import threading

import pytest
from enclavekit_core.errors import ConfigError, EnclavekitError, InputError, VerificationError
from enclavekit_core.short_lived import call_short_lived

MODULE = "this"  # of Python's library, and nobody imports it


def test_value_comes_and_what_was_loaded_for_it_does_not(capfd):
    def load():
        __import__(MODULE)
        return os.getpid(), MODULE in sys.modules, bytes(1_000_000)

    pid, loaded, much = call_short_lived(load)
    assert pid != os.getpid() and loaded and len(much) == 1_000_000
    assert MODULE not in sys.modules
    with pytest.raises(ChildProcessError):  # it has been waited for
        os.waitpid(pid, os.WNOHANG)


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("clients.yaml", "alice", "two clients have this name"),
        InputError("read", "clients.yaml", "no such file"),
        VerificationError("TLS binding", "it is none", expected=b"1", actual=b"2"),
    ],
)
def test_errors_of_ours_come_with_their_fields(error):
    def fail():
        raise error

    with pytest.raises(EnclavekitError) as caught:
        call_short_lived(fail)
    assert (type(caught.value), str(caught.value), vars(caught.value)) == (type(error), str(error), vars(error))


def test_other_ends_are_errors_that_name_the_status(capfd):
    def bug():
        raise LookupError("of all things")

    for function, status in (
        (bug, 1),
        (lambda: sys.exit(3), 1),
        (lambda: os._exit(4), 4),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), -9),
        (threading.Lock, 1),  # no value that could come through a pipe
    ):
        with pytest.raises(RuntimeError, match=f"{status}$"):
            call_short_lived(function)
    assert "LookupError: of all things" in capfd.readouterr().err


def test_nothing_stays_open():
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        call_short_lived(os.getpid)
    assert os.listdir("/proc/self/fd") == before
