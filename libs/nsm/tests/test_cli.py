# SPDX-License-Identifier: Apache-2.0
"""Command `nsm` against a device on a socket."""

import json
import os
import subprocess
import sys

import pytest
from enclavekit_nsm import messages
from enclavekit_nsm.cli import main


@pytest.fixture
def nsm(fake_nsm, capfdbinary):
    def run(*argv, status=0):
        assert main(["--device", fake_nsm.path, *map(str, argv)]) == status
        out, err = capfdbinary.readouterr()
        return err.decode() if status else out

    return run


def test_describe(nsm):
    described = json.loads(nsm("describe", "--json"))
    assert described["module_id"] == "i-1-enc2"
    assert described["locked_pcrs"] == list(range(16))
    assert b"module_id      i-1-enc2\n" in nsm("describe")


def test_pcrs_are_those_that_are_not_zero(nsm):
    values = json.loads(nsm("pcrs", "--json"))
    assert list(values) == [f"PCR{index}" for index in range(1, 32)]
    assert values["PCR9"] == "09" * 48
    assert json.loads(nsm("pcrs", "--all", "--json"))["PCR0"] == "00" * 48
    assert b"PCR1   " + b"01" * 48 + b"\n" in nsm("pcrs")


def test_attest_passes_its_inputs_and_writes_the_document(nsm, tmp_path):
    assert nsm("attest", "--user-data", "7575", "--nonce", "6e", "--public-key", "6b") == b"uu|n|k"
    assert nsm("attest") == b"||"
    assert json.loads(nsm("attest", "--nonce", "6e", "--json")) == {"document": b"|n|".hex()}
    target = tmp_path / "document.cbor"
    assert nsm("attest", "--nonce", "6e", "-o", target) == b""
    assert target.read_bytes() == b"|n|"
    assert nsm("attest", "--nonce", "6f", "-o", target) == b""
    assert target.read_bytes() == b"|o|"


def test_attest_leaves_nothing_half_made(nsm, tmp_path):
    (tmp_path / "directory").mkdir()
    error = nsm("attest", "-o", tmp_path / "directory", status=2)
    assert error == f"nsm: cannot write {tmp_path}/directory: is a directory\n"
    nsm("attest", "-o", tmp_path / "none" / "document", status=2)
    assert sorted(os.listdir(tmp_path)) == ["directory", "nsm"]


def test_attest_to_a_device_file_does_not_replace_it(nsm):
    nsm("attest", "-o", os.devnull)
    assert not os.path.isfile(os.devnull)


def test_random(nsm):
    assert nsm("random") == bytes(range(256)).hex().encode() + b"\n"
    assert nsm("random", "--binary") == bytes(range(256))
    assert json.loads(nsm("random", "--json")) == {"random": bytes(range(256)).hex()}


def test_errors_have_their_exit_code(nsm, fake_nsm, capfdbinary):
    assert nsm("attest", "--nonce", "xyz", status=2) == "nsm: cannot use --nonce: it is not hexadecimal\n"
    assert "InputTooLarge" in nsm("attest", "--nonce", "00" * 5000, status=4)
    fake_nsm.respond = lambda _: messages.ErrorResponse(messages.ErrorCode.INTERNAL_ERROR)
    assert nsm("random", status=4) == f"nsm: cannot get random bytes from {fake_nsm.path}: InternalError\n"
    assert main(["--device", "/nonexistent/nsm", "describe"]) == 4
    assert capfdbinary.readouterr().err == b"nsm: cannot open /nonexistent/nsm: no such file or directory\n"


def test_import_stays_light():
    """Every service of an enclave imports the client before it can prove anything."""
    code = "import sys, enclavekit_nsm.cli; print(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "cryptography", "msgspec", "structlog", "yaml", "tempfile"} & set(loaded)
