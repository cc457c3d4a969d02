# SPDX-License-Identifier: Apache-2.0
"""`./dev demo` holds what it shows, and its facts are true."""

import hashlib
import json
import subprocess

import pytest

from .conftest import COMMAND_TIMEOUT_S, ROOT, need


@pytest.mark.xdist_group("enclave")
@pytest.mark.parametrize("machine", ["process", pytest.param("qemu", marks=pytest.mark.long)])
def test_demo_runs_the_main_job_and_writes_its_facts(shell, notes, tmp_path, machine):
    need("curl", *(["qemu-system-x86_64"] if machine == "qemu" else []))
    facts_file = tmp_path / "facts.json"
    argv = [ROOT / "reference_apps/notes/demo.py", "--machine", machine, "--json", facts_file]
    done = subprocess.run(
        argv, env=shell.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(facts_file.read_text())
    assert facts["verified"] is True
    assert facts["pcrs_live"] == facts["pcrs_file"]
    assert facts["exec_status"] == {"seen": 7, "expected": 7}
    assert facts["file_sha3_512"]["in"] == facts["file_sha3_512"]["out"]
    assert len(facts["file_sha3_512"]["in"]) == 2 * hashlib.sha3_512().digest_size
    assert facts["cid"] not in {item["EnclaveCID"] for item in shell.json("nitro-emu", "describe-enclaves")}
    assert facts["seconds"]["all"] >= max(value for name, value in facts["seconds"].items() if name != "all")
