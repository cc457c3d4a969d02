# SPDX-License-Identifier: Apache-2.0
"""What the tests across parts share: the real commands, one image built once, a runtime directory of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTES = ROOT / "reference_apps" / "notes"
COMMAND_TIMEOUT_S = 300  # a cold build fetches packages; everything else takes seconds


@dataclass
class Shell:
    """Runs the installed commands in a directory, as a user would."""

    directory: Path
    environment: dict[str, str]

    def run(
        self, *argv: object, expect: int | None = 0, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Return the finished command; its exit code is `expect`, or any if that is None."""
        words = [str(word) for word in argv]
        done = subprocess.run(
            words,
            cwd=self.directory,
            env=self.environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=COMMAND_TIMEOUT_S,
        )
        assert expect in (None, done.returncode), (
            f"{words} exited with {done.returncode}, expected {expect}\n"
            f"stdout: {done.stdout.decode(errors='replace')[-2000:]}\n"
            f"stderr: {done.stderr.decode(errors='replace')[-2000:]}"
        )
        return done

    def output(self, *argv: object, expect: int = 0, stdin: bytes | None = None) -> str:
        return self.run(*argv, expect=expect, stdin=stdin).stdout.decode()

    def refusal(self, *argv: object, expect: int) -> str:
        """Run what must fail; return its one line of complaint, warnings apart."""
        lines = [line for line in self.run(*argv, expect=expect).stderr.decode().splitlines() if "cannot " in line]
        assert len(lines) == 1, lines
        return lines[0]

    def json(self, *argv: object) -> dict:
        return json.loads(self.output(*argv))


def need(*programs: str) -> None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    for program in programs:
        if not shutil.which(program, path=path):
            pytest.skip(f"{program} is not installed here")


@pytest.fixture(scope="session")
def shell(tmp_path_factory):
    """A directory with the venv's commands on PATH and a runtime directory that no other test sees."""
    directory = tmp_path_factory.mktemp("user")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PIPELINE_", "ENCLAVEKIT_"))},
        "PATH": path,
        # short: a Unix socket's path has 107 bytes
        "ENCLAVEKIT_RUNTIME_DIR": str(tmp_path_factory.mktemp("rt")),
        "XDG_STATE_HOME": str(tmp_path_factory.mktemp("state")),
    }
    os.chmod(environment["ENCLAVEKIT_RUNTIME_DIR"], 0o700)
    made = Shell(directory, environment)
    yield made
    made.run("nitro-emu", "terminate-enclave", "--all")  # those of tests that failed half-way


@pytest.fixture(scope="session")
def notes(shell):
    """The demo's image, built once: `notes.eif`, keys/alice.* in its list, keys/mallory.* not."""
    need("apt-get", "dpkg-deb")
    shell.run(NOTES / "make_rootfs", "notes.rootfs")
    shell.run("pipeline", "keygen", "--name", "alice", "-o", "keys")
    shell.run("pipeline", "keygen", "--name", "mallory", "-o", "keys")
    shell.run(
        *("rbuilds", "build", "--rootfs", "notes.rootfs", "--config", NOTES / "enclave.yaml"),
        *("--authorize", "keys/alice.crt:all", "--output", "notes.eif"),
    )
    return shell.directory / "notes.eif"


@dataclass
class Enclave:
    """A running enclave and what a client needs to enter it."""

    shell: Shell
    cid: int
    id: str
    name: str
    eif: Path
    dev_root: str
    machine: str

    def pipeline(self, verb: str, *argv: object, identity: str = "keys/alice", eif: Path | None = None) -> list[object]:
        trust = ["--eif", eif or self.eif, "--identity", identity, "--insecure-dev-root", self.dev_root]
        # a virtual machine's services come up seconds after its heartbeat
        return ["pipeline", verb, "--connect-timeout", 120, *trust, *argv]

    def exec(self, *argv: object, expect: int = 0, stdin: bytes | None = None) -> str:
        flags = ["-i"] if stdin is not None else []
        return self.shell.output(*self.pipeline("exec", *flags, self.cid, "--", *argv), expect=expect, stdin=stdin)


def start_enclave(shell: Shell, eif: Path, *flags: object, machine: str = "process") -> Enclave:
    running = shell.json(
        *("nitro-emu", "run-enclave", "--eif-path", eif, "--cpu-count", 2, "--memory", 1024),
        *("--machine", machine, *flags),
    )
    root = shell.output("nitro-emu", "dev-root").strip()
    return Enclave(shell, running["EnclaveCID"], running["EnclaveID"], running["EnclaveName"], eif, root, machine)


@pytest.fixture(scope="session", params=["process", "qemu"])
def enclave(request, shell, notes):
    """The image, running on each machine, for all tests that leave it as they found it."""
    if request.param == "qemu":
        need("qemu-system-x86_64")
    running = start_enclave(shell, notes, machine=request.param)
    yield running
    shell.run("nitro-emu", "terminate-enclave", "--enclave-id", running.id)


@contextmanager
def forwarded(shell: Shell, cid: int, port: int = 8443, *flags: str) -> Iterator[str]:
    """A free local port that leads to the enclave's port; yields HOST:PORT."""
    argv = ["pf-proxy", "ip-to-vsock", "-i", "127.0.0.1:0", "-v", f"{cid}:{port}", "--print-address", *flags]
    with subprocess.Popen(argv, cwd=shell.directory, env=shell.environment, stdout=subprocess.PIPE, text=True) as proxy:
        try:
            yield proxy.stdout.readline().strip().removeprefix("tcp://")
        finally:
            proxy.terminate()
