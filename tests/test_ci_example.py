# SPDX-License-Identifier: Apache-2.0
"""The workflow that users copy: it parses, names what exists, and its steps do on this machine what they say."""

import json
import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml

from .conftest import COMMAND_TIMEOUT_S, NOTES, ROOT, need

WORKFLOW = ROOT / "docs/examples/github-actions/enclave.yml"
# what these do, `./dev setup` has done: packages of the machine and the commands of this checkout
SET_UP = ("setup-packages", "setup-enclavekit")


@pytest.fixture(scope="module")
def steps():
    workflow = yaml.safe_load(WORKFLOW.read_text())
    (job,) = workflow["jobs"].values()
    return job["steps"]


def test_it_installs_every_member(steps):
    (install,) = [step["run"] for step in steps if step.get("id") == "setup-enclavekit"]
    members = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uv"]["workspace"]["members"]
    assert sorted(re.findall(r" \./(\S+)", install)) == sorted(members)


@pytest.mark.long  # builds kernel and framework a second time
@pytest.mark.xdist_group("enclave")
def test_it_runs_as_written(steps, shell, tmp_path, tmp_path_factory):
    """All but fetching: build, reproduce, compare, boot, verify, stop."""
    need("curl", "openssl", "apt-get", "dpkg-deb")
    project = tmp_path / "project"
    project.mkdir()
    shell.run(NOTES / "make_rootfs", project / "notes.rootfs")
    manifest = yaml.safe_load((NOTES / "enclave.yaml").read_text())
    (project / "enclave.yaml").write_text(yaml.safe_dump({**manifest, "app": {"rootfs": "notes.rootfs"}}))
    # what a developer commits after their own build
    shell.run("rbuilds", "build", "--config", project / "enclave.yaml", "--output", tmp_path / "enclave.eif")
    shutil.copy(tmp_path / "enclave.pcr.json", project / "pcr.json")

    # enclaves of its own: the workflow stops all that there are
    runtime = tmp_path_factory.mktemp("ci")
    runtime.chmod(0o700)
    environment = {
        **shell.environment,
        "ENCLAVEKIT_RUNTIME_DIR": str(runtime),
        "GITHUB_ENV": str(tmp_path / "github.env"),
    }
    failed = None
    ran = []
    for step in steps:
        if "run" not in step or step.get("id") in SET_UP or (failed and step.get("if") != "always()"):
            continue
        done = subprocess.run(
            ["sh", "-e", "-c", step["run"]],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        ran.append(step["name"])
        if done.returncode:
            failed = failed or f"{step['name']} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        if os.path.exists(environment["GITHUB_ENV"]):
            with open(environment["GITHUB_ENV"], encoding="utf-8") as lines:
                environment |= dict(line.rstrip("\n").split("=", 1) for line in lines)
    assert failed is None, failed
    assert len(ran) == len([step for step in steps if "run" in step]) - len(SET_UP)
    left = subprocess.run(["nitro-emu", "describe-enclaves"], env=environment, capture_output=True, check=True)
    assert json.loads(left.stdout) == []
