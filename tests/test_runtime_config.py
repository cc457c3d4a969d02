# SPDX-License-Identifier: Apache-2.0
"""The values of a deployment, from `rbuilds run --runtime-config` to the app's environment and PCR16."""

import json

import pytest
from enclavekit_core.runtime_config import expected_pcr16

pytestmark = pytest.mark.xdist_group("enclave")

MANIFEST = """
name: valued
app: {rootfs: notes.rootfs}
entrypoint: [/bin/sh, -c, 'echo "$LEVEL $WORKERS" > /data/seen; exec sleep 1000']
clients: [{certificate: keys/alice.crt, allow: all}]
runtime_config:
  LEVEL: {type: string, enum: [debug, info]}
  WORKERS: {type: integer, minimum: 1, maximum: 8, default: 2}
"""


@pytest.fixture(scope="module")
def valued(shell, notes):
    (shell.directory / "valued.yaml").write_text(MANIFEST)
    shell.run("rbuilds", "build", "--config", "valued.yaml", "--output", "valued.eif")
    return shell.directory / "valued.eif"


def run_with(shell, image, values, *flags, expect=0):
    (shell.directory / "values.json").write_text(json.dumps(values))
    words = ("rbuilds", "run", image, "--backend", "nitro-emu", "--runtime-config", "values.json", *flags)
    return shell.run(*words, expect=expect)


def test_values_reach_the_app_after_they_were_measured(shell, valued):
    running = json.loads(run_with(shell, valued, {"LEVEL": "debug"}, "--json").stdout)
    try:
        assert running["pcr16"] == expected_pcr16({"LEVEL": "debug", "WORKERS": 2}).hex()
        root = shell.output("nitro-emu", "dev-root").strip()
        pcr0 = shell.json("eif", "describe", valued)["Measurements"]["PCR0"]

        def enter(pcr16, *command):
            pins = ("--pcr", f"0={pcr0}", "--pcr", f"16={pcr16}")
            trust = ("--identity", "keys/alice", "--insecure-dev-root", root)
            return ("pipeline", "exec", *pins, *trust, running["cid"], "--", *command)

        assert shell.output(*enter(running["pcr16"], "cat", "/data/seen")) == "debug 2\n"
        assert "PCR16" in shell.refusal(*enter("11" * 48, "id"), expect=255)
    finally:
        shell.run("rbuilds", "drop", running["name"])


def test_an_enclave_that_refuses_its_values_is_ended(shell, valued):
    refused = run_with(shell, valued, {"LEVEL": "trace"}, expect=2)
    assert b"LEVEL" in refused.stderr
    assert "valued" not in {item["name"] for item in shell.json("rbuilds", "list", "--json")}
