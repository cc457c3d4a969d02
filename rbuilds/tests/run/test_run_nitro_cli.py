# SPDX-License-Identifier: Apache-2.0
"""rbuilds over nitro-cli, as far as a machine without Nitro can tell: a program that behaves as nitro-cli's documents
and published outputs say."""

import json
import os
import shutil
import signal
import subprocess

import pytest

BACKEND = ("--backend", "nitro-cli")


def calls(nitro_cli, command):
    lines = [json.loads(line) for line in (nitro_cli / "calls").read_text().splitlines()]
    return [line for line in lines if line[0] == command]


def plan_failures(nitro_cli, *numbers):
    (nitro_cli / "failures").write_text(json.dumps(numbers))


def test_run_list_attach_drop(host, nitro_cli, dull_image, running):
    image = dull_image(resources={"memory_mib": 512, "cpus": 4, "cid": 42})
    ran = host.run(image, *BACKEND)
    assert "NOT confidential" not in ran.err
    started = ran.json
    assert (started["cid"], started["memory_mib"], started["cpus"]) == (42, 512, 4)
    assert (started["backend"], started["confidential"]) == ("nitro-cli", True)
    [launched] = calls(nitro_cli, "run-enclave")
    assert launched[1:] == [
        *("--eif-path", str(image), "--memory", "512", "--cpu-count", "4"),
        *("--enclave-cid", "42", "--enclave-name", "app"),
    ]
    # it would be the only backend on a host with the device; here it has to be named
    assert host("list", "--json", *BACKEND).json == [{**started, "image": str(image), "network": []}]
    assert host("attach", "app", *BACKEND, status=2).refusal

    debug = host.run(image, "--debug", *BACKEND).json
    assert (debug["cid"], debug["debug"], debug["confidential"]) == (43, True, False)
    assert f"console of {debug['id']}" in host("attach", "43", *BACKEND).out
    host("drop", "42", *BACKEND)
    assert not running(started["pid"]) and running(debug["pid"])
    assert [each["id"] for each in host("drop", "--all", "--json", *BACKEND).json] == [debug["id"]]
    assert host.traces() == []


def test_attach_from_the_start(host, nitro_cli, dull_image):
    ran = host("run", dull_image(), "--attach", *BACKEND)
    assert ran.out == "booting\n"  # and the exit status is 0, because nobody tells: that is said
    [launched] = calls(nitro_cli, "run-enclave")
    assert "--debug-mode" in launched and "--attach-console" in launched
    host("drop", "--all", *BACKEND)


@pytest.mark.parametrize(
    ("ended", "status"), [('"exit_status":7,"signal":null', 7), ('"exit_status":null,"signal":9', 137)]
)
def test_attach_exits_as_the_app_reported(host, nitro_cli, dull_image, ended, status):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-Urpf", "true"], capture_output=True).returncode:
        pytest.skip("no PID namespace can be made here, by which the fabric tells enclaves apart")
    host.environment["FAKE_NITRO_REPORT"] = f'{{"version":1,"unit":"app",{ended},"reason":"x"}}'
    assert host("run", dull_image(), "--attach", *BACKEND, status=status).out == "booting\n"


def test_failure_names_the_inner_error_and_the_log(host, nitro_cli, dull_image):
    plan_failures(nitro_cli, [22, 39])
    refused = host.run(dull_image(), *BACKEND, status=5)
    assert "E22" in refused.refusal and "E39" not in refused.refusal
    assert "Failed to handle all enclave process replies" in refused.refusal  # from the error log
    assert len(calls(nitro_cli, "run-enclave")) == 1
    assert host.traces() == []


def test_what_passes_is_tried_again(host, nitro_cli, dull_image):
    plan_failures(nitro_cli, 11, 0)
    host.run(dull_image(), *BACKEND)
    assert len(calls(nitro_cli, "run-enclave")) == 2


def test_boot_failure_is_tried_again_only_if_the_heartbeat_port_was_taken(host, nitro_cli, dull_image):
    plan_failures(nitro_cli, 37)  # E36, and the log says: address already in use
    image = dull_image()
    host.run(image, *BACKEND)
    assert len(calls(nitro_cli, "run-enclave")) == 2
    plan_failures(nitro_cli, 36)
    assert "E36" in host.run(image, *BACKEND, status=5).refusal
    assert len(calls(nitro_cli, "run-enclave")) == 3


def test_launches_at_once_wait_for_each_other(host, nitro_cli, dull_image):
    image = dull_image()
    launching = [host.start("run", image, "--json", *BACKEND) for _ in range(3)]
    cids = sorted(host.finish(each).json["cid"] for each in launching)
    assert cids == [127, 128, 129]
    assert not (nitro_cli / "overlaps").exists()


def test_kernel_for_the_emulator_is_refused(host, nitro_cli, dull_image):
    image = dull_image(kernel={"name": "Debian", "version": "6.1", "nitro-capable": False})
    assert "emulator" in host.run(image, *BACKEND, status=2).refusal
    assert not (nitro_cli / "calls").exists()


def test_damaged_image_is_refused_before_it_is_launched(host, nitro_cli, dull_image):
    image = dull_image()
    damaged = bytearray(image.read_bytes())
    damaged[-1] ^= 1
    image.write_bytes(damaged)
    assert "CRC" in host.run(image, *BACKEND, status=2).refusal
    assert not (nitro_cli / "calls").exists()


def test_enclave_that_rbuilds_did_not_start_is_listed_dropped_and_keeps_its_cid(host, nitro_cli, dull_image):
    image = dull_image()
    host.run(image, *BACKEND)
    supervisor = host.record(127)["supervisor"]["pid"]
    os.kill(supervisor, signal.SIGKILL)
    for path in host.records_dir.glob("127.json"):
        path.unlink()
    assert host.run(image, *BACKEND).json["cid"] == 128
    assert {row["cid"]: row["image"] for row in host("list", "--json", *BACKEND).json} == {127: None, 128: str(image)}
    host("drop", "127", *BACKEND)


def test_several_of_one_name_need_the_id(host, nitro_cli, dull_image):
    image = dull_image()
    first = host.run(image, *BACKEND).json
    host.run(image, *BACKEND)
    assert first["id"] in host("drop", "app", *BACKEND, status=2).refusal
    host("drop", first["id"], *BACKEND)
    host("drop", "app", *BACKEND)
