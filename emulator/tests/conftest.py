# SPDX-License-Identifier: Apache-2.0
"""Real enclaves for the tests of the process machine: images of busybox, a static probe and a script as init."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NITRO_EMU = [sys.executable, "-c", "import sys; from enclavekit_emulator.cli import main; sys.exit(main())"]
COMMAND_TIMEOUT_S = 60
USER_ID = 61234  # nobody's


def eventually(condition, what):
    """Wait for something that another process does; fail after COMMAND_TIMEOUT_S."""
    deadline = time.monotonic() + COMMAND_TIMEOUT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)
    return value


@pytest.fixture(scope="session")
def probe(tmp_path_factory):
    """The compiled probe."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: the probe inside test enclaves cannot be compiled")
    program = tmp_path_factory.mktemp("probe") / "probe"
    built = subprocess.run(
        ["gcc", "-static", "-O1", "-o", program, HERE / "enclave_probe.c"], capture_output=True, text=True
    )
    if built.returncode:
        pytest.skip(f"gcc cannot link statically: {built.stderr.strip().splitlines()[-1]}")
    return program


@pytest.fixture(scope="session")
def busybox():
    path = shutil.which("busybox")
    if path is None:
        pytest.skip("busybox is missing (Debian package busybox-static)")
    with open(path, "rb") as source:
        if b"/lib64/ld-linux" in source.read(4096):
            pytest.skip("busybox is not static (Debian package busybox-static)")
    return path


@pytest.fixture
def make_eif(tmp_path, busybox, probe):
    """Return make(init lines, name=..., files={path: text}, with_init=True) -> path of an image."""
    from enclavekit_eif.cpio import pack_tree
    from enclavekit_eif.metadata import make_metadata
    from enclavekit_eif.writer import write_eif

    def make(*init_lines, name="app", files=None, with_init=True, signer=None):
        root = tmp_path / f"{name}-root"
        (root / "bin").mkdir(parents=True)
        shutil.copy2(busybox, root / "bin/busybox")
        shutil.copy2(probe, root / "bin/probe")
        (root / "bin/sh").symlink_to("busybox")
        if with_init:
            init = root / "init"
            init.write_text("\n".join(("#!/bin/sh", "export PATH=/bin", *init_lines, "")))
            init.chmod(0o755)
        app = tmp_path / f"{name}-app"
        app.mkdir()
        for path, text in (files or {"from-app": "second ramdisk"}).items():
            (app / path).parent.mkdir(parents=True, exist_ok=True)
            (app / path).write_text(text)
        ramdisks = []
        for tree in (root, app):
            archive = tmp_path / f"{tree.name}.cpio"
            with open(archive, "wb") as out:
                pack_tree(str(tree), out)
            ramdisks.append(str(archive))
        kernel = tmp_path / "kernel"
        kernel.write_bytes(b"not booted by the process machine")
        eif = tmp_path / f"{name}.eif"
        write_eif(
            str(eif),
            kernel=str(kernel),
            cmdline=b"console=ttyS0",
            ramdisks=ramdisks,
            metadata=make_metadata(name, "1"),
            signer=signer,
        )
        return str(eif)

    return make


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@dataclass
class Emulator:
    """nitro-emu as a user runs it, with a runtime directory of its own."""

    runtime_dir: Path
    environment: dict[str, str]
    prefix: list[str] = field(default_factory=list)

    def __call__(self, *arguments, status=0):
        done = subprocess.run(
            [*self.prefix, *NITRO_EMU, *map(str, arguments)],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_S,
            cwd="/",
        )
        assert done.returncode == status, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments):
        """Start a command without waiting for it."""
        return subprocess.Popen(
            [*self.prefix, *NITRO_EMU, *map(str, arguments)],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )

    def run(self, eif, *flags, status=0, memory=64):
        return self("run-enclave", "--eif-path", eif, "--memory", memory, "--cpu-count", 2, *flags, status=status)

    def state(self, enclave_id):
        return json.loads((self.runtime_dir / "enclaves" / enclave_id / "state.json").read_text())

    def states(self):
        """Of all that have one by now."""
        return [json.loads(path.read_text()) for path in (self.runtime_dir / "enclaves").glob("i-*/state.json")]

    def traces(self):
        """Everything of enclaves that exists in the runtime directory."""
        found = [*(self.runtime_dir / "enclaves").glob("i-*"), *(self.runtime_dir / "fabric").glob("*")]
        found += (self.runtime_dir / "registry").glob("*")
        return sorted(path.name for path in found if path.name not in ("3", "self.json"))


def is_running(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


@pytest.fixture(scope="session")
def state_home(tmp_path_factory):
    """One development root for all tests."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def emulator(tmp_path, state_home):
    """Run nitro-emu; at the end nothing that it started may be left."""
    emulator = make_emulator(tmp_path / "run", state_home)
    yield emulator
    finish(emulator)


def make_emulator(runtime_dir, state_home, prefix=()):
    environment = {
        **os.environ,
        "ENCLAVEKIT_RUNTIME_DIR": str(runtime_dir),
        "XDG_STATE_HOME": str(state_home),
        "HOME": str(state_home),
    }
    return Emulator(runtime_dir, environment, list(prefix))


def finish(emulator):
    if not emulator.runtime_dir.exists():
        return
    states = emulator.states()
    emulator("terminate-enclave", "--all")
    assert emulator.traces() == []
    for state in states:
        for process in (state["supervisor"], state["init"]):
            assert process is None or not is_running(process["pid"])
        assert state["cgroup"] is None or not os.path.exists(state["cgroup"])


@pytest.fixture
def wait_until():
    return eventually


@pytest.fixture
def running():
    """Say whether a process runs (a zombie does not)."""
    return is_running


@pytest.fixture
def user_emulator(state_home):
    """nitro-emu as an ordinary user, in a directory that this user can reach."""
    if os.geteuid() != 0:
        pytest.skip("these tests run as an ordinary user already")
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is missing (Debian package util-linux)")
    if os.stat(sys.executable).st_mode & 0o001 == 0:
        pytest.skip("other users cannot run this Python")
    prefix = ["setpriv", "--reuid", str(USER_ID), "--regid", str(USER_ID), "--clear-groups"]
    probed = subprocess.run([*prefix, *NITRO_EMU, "--help"], capture_output=True, cwd="/")
    if probed.returncode:
        pytest.skip("other users cannot read this checkout")
    probed = subprocess.run([*prefix, "unshare", "-U", "true"], capture_output=True)
    if probed.returncode:
        pytest.skip("this kernel lets ordinary users create no user namespaces")
    home = Path(tempfile.mkdtemp(prefix="nitro-emu-user-", dir="/tmp"))  # tmp_path is root's alone
    os.chown(home, USER_ID, USER_ID)
    emulator = make_emulator(home / "run", home / "state", prefix)
    yield emulator
    finish(emulator)
    shutil.rmtree(home)
