# SPDX-License-Identifier: Apache-2.0
"""Which machine is chosen, and what QEMU is started with: with a stand-in for it, whose guest sends its heartbeat."""

import hashlib
import itertools
import json
import os
import platform
import sys
from pathlib import Path

import pytest
from enclavekit_emulator import kvm_trial
from enclavekit_emulator.launch import choose_machine

HERE = Path(__file__).parent
STOCK = "Supported machines are:\nmicrovm              microvm (i386)\nnone                 empty machine\n"
WITH_NITRO = STOCK + "nitro-enclave        AWS Nitro Enclave\n"

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the stand-in is one for x86_64 images")


def put_program(directory, name, text):
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def fake_qemu(tmp_path, emulator, monkeypatch):
    """nitro-emu finds the stand-in; returns its directory, in which `machines` says what it can emulate."""
    home = tmp_path / "fake-qemu"
    script = f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "fake_qemu.py"}" "$@"\n'
    put_program(home, "qemu-system-x86_64", script)
    (home / "machines").write_text(WITH_NITRO)
    emulator.environment.update(PATH=f"{home}:{os.environ['PATH']}", FAKE_QEMU=str(home))
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")
    return home


def started(home):
    facts = json.loads((home / "started.json").read_text())
    return facts, dict(itertools.pairwise(facts["argv"]))


def test_nitros_machine_gets_the_very_image(emulator, fake_qemu, make_eif, running):
    eif = make_eif()
    ran = emulator.run(eif, "--machine", "qemu-nitro", "--enclave-cid", 77)
    facts, options = started(fake_qemu)
    assert options["-M"] == f"nitro-enclave,vsock=vsock,id={ran.json['EnclaveID']}"
    assert facts["kernel"] == hashlib.sha256(Path(eif).read_bytes()).hexdigest()
    assert options["-m"] == "64M" and options["-smp"] == "2"
    assert "console=" not in options["-append"], "the image's own command line is in the image"
    [described] = emulator("describe-enclaves").json
    assert described["Measurements"] == emulator("describe-eif", "--eif-path", eif).json["Measurements"]
    assert described["EnclaveCID"] == 77
    emulator("terminate-enclave", "--enclave-id", ran.json["EnclaveID"])
    assert not running(facts["pid"]) and emulator.traces() == []


def test_a_stock_machine_gets_kernel_and_ramdisks(emulator, fake_qemu, make_eif):
    from enclavekit_eif.reader import read_eif

    eif = make_eif()
    emulator.run(eif, "--machine", "qemu", "--debug-mode")
    facts, options = started(fake_qemu)
    with read_eif(eif) as image, image.open_section(image.kernel) as kernel:
        assert facts["kernel"] == hashlib.sha256(kernel.read()).hexdigest()
    assert options["-M"].startswith("microvm,acpi=off") and "console=ttyS0" in options["-append"].split()
    shown = emulator("console", "--enclave-name", "app", "--disconnect-timeout", "0.1").out
    assert shown.splitlines()[-1] == "the guest is up"


@pytest.mark.parametrize(("flag", "acpi"), [("cmdline", "off"), ("acpi", "on")])
def test_an_option_says_how_devices_are_announced(emulator, fake_qemu, make_eif, flag, acpi):
    emulator.run(make_eif(), "--machine", "qemu", "--announce-devices", flag)
    assert f"acpi={acpi}" in started(fake_qemu)[1]["-M"].split(",")


def test_a_qemu_without_nitros_machine_is_refused_and_leaves_nothing(emulator, fake_qemu, make_eif):
    (fake_qemu / "machines").write_text(STOCK)
    refused = emulator.run(make_eif(), "--machine", "qemu-nitro", status=36)
    assert "nitro-enclave" in refused.err and emulator.traces() == []


def test_a_guest_that_ends_before_its_heartbeat_shows_its_last_words(emulator, fake_qemu, make_eif):
    put_program(fake_qemu, "qemu-system-x86_64", "#!/bin/sh\necho its last words; exit 3\n")
    refused = emulator.run(make_eif(), "--machine", "qemu", status=36)
    assert "console: its last words" in refused.err and "status 3" in refused.err
    assert emulator.traces() == []


def test_auto_is_qemu_where_there_is_one(fake_qemu, make_eif, monkeypatch):
    eif = make_eif()
    assert choose_machine("auto", eif) == "qemu"
    monkeypatch.setenv("PATH", str(fake_qemu.parent / "empty"))
    assert choose_machine("auto", eif) == "process"
    for named in ("process", "qemu", "qemu-nitro"):
        assert choose_machine(named, eif) == named


@pytest.mark.parametrize(
    ("script", "chosen"),
    [
        ("echo Probing EDD; echo '[0.0] Linux version 6.1'; exec sleep 1000", "kvm"),
        ("echo Probing EDD; exec sleep 1000", "tcg"),  # interpreted start-up code, and then nothing
        ("echo cannot set an MSR >&2; exit 1", "tcg"),
    ],
    ids=["runs", "hangs", "fails"],
)
def test_kvm_is_used_when_the_kernel_says_that_it_lives(tmp_path, monkeypatch, script, chosen):
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(kvm_trial, "KVM_DEVICE", str(device))
    monkeypatch.setattr(kvm_trial, "TRIAL_S", 60.0 if chosen == "kvm" else 0.2)
    binary = put_program(tmp_path / "bin", "qemu", f"#!/bin/sh\n{script}\n")
    with open(device) as kernel:
        accelerator, note = kvm_trial.choose_accelerator(str(binary), "x86_64", str(device), kernel.fileno())
    assert (accelerator, bool(note)) == (chosen, chosen == "tcg")


def test_without_the_device_nothing_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(kvm_trial, "KVM_DEVICE", str(tmp_path / "none"))
    assert kvm_trial.choose_accelerator("/no/such/qemu", "x86_64", "/none", 0)[0] == "tcg"
