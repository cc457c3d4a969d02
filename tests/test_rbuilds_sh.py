# SPDX-License-Identifier: Apache-2.0
"""rbuilds.sh from an app to a running enclave and back: the real build, the real emulator, commands on a pipe."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import pytest
from enclavekit_eif.measure import measure
from enclavekit_eif.reader import read_eif

from .conftest import NOTES, ROOT

SCRIPT = ROOT / "rbuilds/rbuilds.sh"
pytestmark = [
    pytest.mark.xdist_group("enclave"),
    pytest.mark.skipif(os.path.exists("/dev/nitro_enclaves"), reason="drop_enclaves_all would end real enclaves here"),
]


@pytest.fixture
def console(shell, notes, tmp_path, tmp_path_factory):
    """A shell in a directory with the example app, whose enclaves no other test sees; `notes` has filled the cache."""
    runtime = tmp_path_factory.mktemp("rt")
    os.chmod(runtime, 0o700)
    shutil.copytree(shell.directory / "notes.rootfs", tmp_path / "notes.rootfs", symlinks=True)
    shutil.copy(NOTES / "enclave.yaml", tmp_path)
    own = replace(shell, directory=tmp_path, environment={**shell.environment, "ENCLAVEKIT_RUNTIME_DIR": str(runtime)})
    yield own
    own.run(SCRIPT, "--cmd", "drop_enclaves_all", expect=None)


def test_commands_on_a_pipe_build_run_list_and_drop(console) -> None:
    script = b"make_eif\nrun_eif_image\nlist_enclaves\ndrop_enclaves_all\nlist --json\n"
    report = json.loads(console.output(SCRIPT, "--json", "--memory", 700, "--cid", 133, stdin=script))
    assert [(step["step"], step["status"]) for step in report["steps"]] == [
        ("image", "done"),
        ("records", "done"),
        ("run", "done"),
        ("list", "done"),
        ("drop", "done"),
        ("list", "done"),
    ]
    image = console.directory / "eif/notes.eif"
    records = json.loads(image.with_name("notes.eif.pcr").read_text())
    with read_eif(str(image)) as eif:
        assert records["Measurements"] == measure(eif).to_json()
    assert json.loads(image.with_name("notes.eif.desc").read_text())["Measurements"] == records["Measurements"]
    log = (console.directory / "eif/rbuilds.log").read_text()
    assert "CID 133, 700 MiB" in log and log.rstrip().splitlines()[-2] == "[]"


def test_enclave_of_one_call_is_found_by_the_next(console) -> None:
    console.run(SCRIPT, "--cmd", "make eif", "--cmd", "run_eif_image_debugmode")
    (running,) = console.json("rbuilds", "list", "--json")
    assert running["name"] == "notes" and running["debug"] is True
    console.run(SCRIPT, "--cmd", "drop_enclave")
    assert console.json("rbuilds", "list", "--json") == []


def test_build_that_fails_runs_nothing(console) -> None:
    (console.directory / "enclave.yaml").write_text("app: {rootfs: nowhere}\n")
    done = console.run(SCRIPT, "--cmd", "make_eif", "--cmd", "run_eif_image", "--json", expect=2)
    (step,) = json.loads(done.stdout)["steps"]
    assert step["status"] == "failed" and step["exit_code"] == 2
    assert not (console.directory / "eif/app.eif").exists()
    assert console.json("rbuilds", "list", "--json") == []
