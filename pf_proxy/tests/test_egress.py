# SPDX-License-Identifier: Apache-2.0
"""The whole way: unmodified clients in an enclave's network namespace, a policy inside, a hostile resolver outside."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import outside

SCRIPT = Path(__file__).with_name("egress_in_namespaces.py")
PUBLIC = "93.184.216.34"
TIMEOUT_S = 200
EXPECTED = {
    "https": f"{PUBLIC} for good.example",
    "http": f"{PUBLIC} for good.example",
    "ipv6": "2606:2800:220:1::1 for only6.example",
    "python": "2606:2800:220:1::1 for good.example",
    "mixed": f"{PUBLIC} for mixed.example",
}


def inside(directory, *words):
    argv = ["unshare", "-n", "-m", sys.executable, str(SCRIPT), "inside", str(directory), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]


@pytest.fixture
def namespaces(tmp_path):
    if os.geteuid() or not all(map(shutil.which, ("unshare", "ip", "nft", "curl", "mount"))):
        pytest.skip("needs root, unshare, ip, nft, curl and mount")
    with outside(SCRIPT, tmp_path):
        yield tmp_path


@pytest.mark.root
def test_clients_reach_what_the_policy_names_and_nothing_else(namespaces):
    results, log = inside(namespaces, "enforce")
    assert {name: results.pop(name) for name in EXPECTED} == EXPECTED
    assert all(result.startswith("exit ") for result in results.values()), results
    reasons = {line["reason"] for line in log if line["event"] == "egress denied"}
    assert reasons == {
        "no DNS answer led to this address",
        "no rule for its name has this port",
        "its first bytes show another name",
        "its first bytes show no name",
    }
    assert {line["name"] for line in log if line["event"] == "dns answer not believed"} == {
        "rebind.example",
        "mixed.example",
        "metadata.example",
        "chained.example",
    }


@pytest.mark.root
def test_learning_writes_the_policy_that_the_run_needed(namespaces):
    results, _ = inside(namespaces, "learn")
    assert results["rebinding"] == "10.1.2.3 for rebind.example"
    assert results["learned"].splitlines()[1:] == [
        "allow:",
        '- {name: "good.example", ports: [80, 443]}',
        '- {name: "rebind.example", ports: [80], private_address: true}',
    ]
