# SPDX-License-Identifier: Apache-2.0
import ssl
import subprocess
import sys

import pytest
from enclavekit_core import errors
from enclavekit_core.cli import run_command


def raiser(exc):
    def command():
        raise exc

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (errors.ConfigError("a.yaml", "port", "it is not a number"), 2, "cannot use a.yaml: port: it is not a number"),
        (errors.InputError("read", "EIF x", "it is empty"), 2, "cannot read EIF x: it is empty"),
        (errors.TransportError("connect to", "tcp://h:1", TimeoutError()), 3, "cannot connect to tcp://h:1: timed out"),
        (errors.RemoteProtocolError("cannot read frame: cut"), 3, "cannot read frame: cut"),
        (errors.DeviceError("extend PCR3 of", "/dev/nsm", "ReadOnlyIndex"), 4, "PCR3"),
        (
            errors.CommandError("build app", ["docker"], 1, "a\nlast\n"),
            5,
            "cannot build app: docker exited with 1: last",
        ),
        (errors.VerificationError("document", "PCR0 differs"), 6, "cannot verify document: PCR0 differs"),
        (errors.LocalProtocolError("cannot send frame"), 70, "cannot send frame"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_one_line_and_their_exit_code(capsys, error, code, line):
    assert run_command("tool", raiser(error)) == code
    err = capsys.readouterr().err
    assert line in err
    assert err.count("\n") <= 1


def test_closed_pipe_ends_quietly():
    code = "from enclavekit_core.cli import run_and_exit; run_and_exit('t', lambda: print('x' * 10**6))"
    # `head` closes its end after a line; a second traceback at interpreter exit must not appear
    out = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -c "{code}" | head -c 1'], capture_output=True, text=True
    )
    assert out.stderr == ""


def test_a_tls_failure_is_named_by_tls_not_by_its_errno():
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    incoming = ssl.MemoryBIO()
    incoming.write(b"this is no TLS at all")
    with pytest.raises(ssl.SSLError) as caught:
        tls.wrap_bio(incoming, ssl.MemoryBIO()).do_handshake()
    assert errors.describe_cause(caught.value) == "TLS: wrong version number"


PRINTS = "from enclavekit_core.cli import run_and_exit; run_and_exit('t', lambda: print('x' * {count}))"


@pytest.mark.parametrize("count", [1, 10**6])
@pytest.mark.parametrize("where", [">/dev/full", ">&-"])
def test_output_that_cannot_be_written_is_an_error_of_one_line(count, where):
    code = PRINTS.format(count=count)
    done = subprocess.run(["/bin/sh", "-c", f'"{sys.executable}" -c "{code}" {where}'], capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert done.stderr.startswith("t: cannot write standard output: ")


def test_closed_streams_get_no_other_use():
    """Else the first file that is opened is standard output, and what is said to nobody goes there."""
    code = """
import os, sys
from enclavekit_core.cli import run_and_exit
def command():
    print("said", file=sys.stderr)
    assert min(os.open("/dev/null", os.O_RDWR) for _ in range(2)) > 2
    print("out")
run_and_exit("t", command)
"""
    done = subprocess.run(["/bin/sh", "-c", f"{sys.executable} -c '{code}' <&- 2>&-"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "out\n")
