# SPDX-License-Identifier: Apache-2.0
"""Which enclave a word means."""

import dataclasses
import json
import os

import pytest
from enclavekit_core import fabric
from enclavekit_core.enclaves import Running, choose, find_cid
from enclavekit_core.errors import ConfigError, InputError, TransportError
from enclavekit_core.processes import boot_id, identify
from enclavekit_pipeline.commands.target import split_place

from .conftest import CID

NITRO = [
    {"EnclaveName": "notes", "EnclaveID": "i-1-enc1", "EnclaveCID": 30, "State": "RUNNING"},
    {"EnclaveName": "gone", "EnclaveID": "i-1-enc2", "EnclaveCID": 31, "State": "TERMINATING"},
]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A runtime directory of ours and a PATH with no nitro-cli; returns how to record an enclave in it."""
    monkeypatch.setenv(fabric.RUNTIME_DIR_VARIABLE, str(tmp_path / "rt"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def record(enclave_id, name, cid, more=()):
        directory = tmp_path / "rt/enclaves" / enclave_id
        directory.mkdir(parents=True)
        state = {"enclave_id": enclave_id, "name": name, "cid": cid, "state": "RUNNING", "boot_id": boot_id()}
        state |= {"supervisor": dataclasses.asdict(identify(os.getpid()))} | dict(more)
        (directory / "state.json").write_text(json.dumps(state))

    return record


def nitro_cli(tmp_path, body):
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/nitro-cli"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)


def test_digits_are_a_cid(machine):
    assert find_cid("16") == 16
    for word in ("3", "0"):
        with pytest.raises(TransportError):
            find_cid(word)


def test_emulated_enclave_by_name_and_id(machine):
    machine("i-a", "notes", 20)
    machine("i-b", "other", 21)
    assert [find_cid(word) for word in ("notes", "i-a", "i-b")] == [20, 20, 21]


@pytest.mark.parametrize(
    "more", [{"state": "TERMINATING"}, {"boot_id": "x"}, {"supervisor": {"pid": 1, "start_ticks": 5}}, {"cid": None}]
)
def test_records_of_what_does_not_run_say_nothing(machine, more):
    machine("i-a", "notes", 20, more)
    with pytest.raises(InputError, match="running: none"):
        find_cid("notes")


def test_two_of_one_name_are_refused_by_id(machine):
    machine("i-a", "notes", 20)
    machine("i-b", "notes", 21)
    with pytest.raises(InputError, match=r"i-a \(CID 20\), i-b \(CID 21\)"):
        find_cid("notes")
    assert find_cid("i-b") == 21


def test_nitro_cli_is_asked_too(machine, tmp_path):
    nitro_cli(tmp_path, f"[ \"$1\" = describe-enclaves ] && echo '{json.dumps(NITRO)}'")
    machine("i-a", "other", 20)
    assert [find_cid(word) for word in ("notes", "i-1-enc1", "other")] == [30, 30, 20]
    with pytest.raises(InputError):
        find_cid("gone")


@pytest.mark.parametrize("body", ["exit 1", "echo nonsense", "echo '[{}]'", "echo '{}' >&2; kill -9 $$"])
def test_nitro_cli_that_fails_is_no_answer(machine, tmp_path, body):
    nitro_cli(tmp_path, body)
    with pytest.raises(ConfigError, match="nitro-cli"):
        find_cid("notes")


def test_one_enclave_in_two_lists_is_one():
    both = [Running(16, "notes", "i-a"), Running(16, "notes", "i-a")]
    assert choose("notes", both) == 16


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("16:/x", ("16", "/x")),
        ("notes:/x:y", ("notes", "/x:y")),
        ("./notes:/x", None),
        ("a/b:/x", None),
        ("file:name", None),
        ("plain", None),
        (":/x", None),
    ],
)
def test_places(text, place):
    assert split_place(text) == place


def test_place_without_a_root_is_refused():
    with pytest.raises(ConfigError):
        split_place("16:x")


def test_command_line_by_name(enclave):
    """The registry of the listener's machine, with a name for it."""
    directory = enclave.directory / "rt/enclaves/i-x"
    directory.mkdir(parents=True)
    state = {"enclave_id": "i-x", "name": "named", "cid": CID, "state": "RUNNING", "boot_id": boot_id()}
    (directory / "state.json").write_text(
        json.dumps({**state, "supervisor": dataclasses.asdict(identify(os.getpid()))})
    )
    assert enclave.run("exec", "--system", "named", "--", "sh", "-c", "exit 6").returncode == 6
    assert enclave.run("cp", "-", "named:/data/by-name", stdin=b"here").returncode == 0
    assert (enclave.app / "data/by-name").read_bytes() == b"here"
    told = json.loads(enclave.run("info", "--json", "i-x").stdout)
    assert told["client"] == "alice"
    assert told["attested"]["pcrs"]["0"] == "01" * 48
    assert b"\nlimits.commands: " in enclave.run("info", "named").stdout
    assert enclave.run("ping", "-c", "2", "named").stdout.count(b"answer in") == 2
