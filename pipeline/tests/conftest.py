# SPDX-License-Identifier: Apache-2.0
"""A listener as in an enclave: real TLS over the fabric, the emulator's NSM, the measured list."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from enclavekit_attestation.caller import Identity
from enclavekit_attestation.policy import Policy
from enclavekit_attestation.roots import read_insecure_dev_root
from enclavekit_core import fabric
from enclavekit_core.address import VsockAddress
from enclavekit_emulator.nsm_authority import dev_root_path
from enclavekit_emulator.nsm_server import serve_nsm
from enclavekit_emulator.nsm_service import NsmService
from enclavekit_pipeline.cli import main
from enclavekit_pipeline.host.client import Target
from enclavekit_pipeline.host.identity import generate
from enclavekit_pipeline.host.trust import Trust

CID = 20
MODULE = "i-0123456789abcdef-enc0123456789abcdef"
PCRS = {0: b"\x01" * 48, 1: b"\x02" * 48, 2: b"\x03" * 48}
BIN = Path(sys.executable).parent


@dataclass
class Inside:
    """The emulated enclave and what a caller needs."""

    directory: Path
    app: Path
    environment: dict[str, str]
    dev_root: str
    nsm_path: str

    def flags(self, identity="alice", pcr0=PCRS[0]):
        return [
            *("--pcr", f"0={pcr0.hex()}", "--identity", str(self.directory / identity)),
            *("--insecure-dev-root", self.dev_root, "--connect-timeout", "20"),
        ]

    def run(self, verb, *argv, stdin=b"", identity="alice", pcr0=PCRS[0], trust=True):
        flags = self.flags(identity, pcr0) if trust else []
        words = [BIN / "pipeline", verb, *flags, *map(str, argv)]
        return subprocess.run(words, env=self.environment, input=stdin, capture_output=True, timeout=300)


@contextlib.contextmanager
def emulated_nsm(path, state, pcrs=PCRS, faults=()):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    server = serve_nsm(listener, NsmService.for_enclave(pcrs, MODULE, state, faults))
    try:
        yield
    finally:
        server.close()


@contextlib.contextmanager
def listening(inside, clients, cid=CID, flags=()):
    """Run `pipeline listen` as that CID; what it does is seen by a caller only."""
    path = inside.directory / "clients.yaml"
    path.write_text(yaml.safe_dump({"clients": clients}))
    # the enclave's side of the same fabric
    view = inside.directory / "view"
    if not view.exists():
        host = inside.environment[fabric.RUNTIME_DIR_VARIABLE]
        os.makedirs(view / "registry")
        os.makedirs(f"{host}/fabric/{cid}", exist_ok=True)  # a listener of that CID may have been there before
        os.symlink(f"{host}/fabric", view / "fabric")
        fabric.write_record(str(view / "registry/self.json"), {"cid": cid})
        fabric.write_record(f"{host}/registry/{cid}.json", {"cid": cid, "transport": "fabric"})
    argv = [BIN / "pipeline", "listen", "--clients", path, "--root", inside.app, "--nsm", inside.nsm_path]
    argv += map(str, flags)
    environment = {**inside.environment, fabric.RUNTIME_DIR_VARIABLE: str(view)}
    with (
        open(inside.directory / "listen.log", "ab") as log,
        subprocess.Popen(argv, env=environment, stderr=log) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()
            process.wait(120)


def install_program(name, app):
    """Copy a program of this machine, and the libraries that it loads, to where a chroot finds them."""
    program = shutil.which(name)
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"(/\S+) \(0x", listed):
        target = app / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    shutil.copy(program, app / "bin" / name)


def grant(inside, name, **more):
    pem = (inside.directory / f"{name}.crt").read_text()
    return {"name": name, "certificate": pem, "allow": ["exec", "cp-in", "cp-out"], **more}


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pl")
    environment = {**os.environ, fabric.RUNTIME_DIR_VARIABLE: str(directory / "rt")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fabric.RUNTIME_DIR_VARIABLE, str(directory / "rt"))
        fabric.ensure_runtime_dir()
    for name in ("alice", "bob", "mallory"):
        generate(name, str(directory))
    app = directory / "app"
    for sub in ("data", "etc", "tmp", "bin"):
        (app / sub).mkdir(parents=True)
    install_program("sh", app)
    state = str(directory / "state")
    inside = Inside(directory, app, environment, dev_root_path(state), str(directory / "nsm"))
    with emulated_nsm(inside.nsm_path, state):
        yield inside


@pytest.fixture(scope="module")
def enclave(inside):
    clients = [
        grant(inside, "alice", system=True),
        grant(inside, "bob", commands=[["echo", "..."]], read=["/data"], write=["/data/in"]),
    ]
    with listening(inside, clients):
        yield inside


@pytest.fixture
def target_for(inside, monkeypatch):
    """What `Session.enter` takes, for an identity and a CID."""
    monkeypatch.setenv(fabric.RUNTIME_DIR_VARIABLE, inside.environment[fabric.RUNTIME_DIR_VARIABLE])

    def target_for(identity, cid):
        trust = Trust(Policy({0: PCRS[0]}), read_insecure_dev_root(inside.dev_root))
        return Target(VsockAddress(cid, 53000), trust, Identity.load(str(inside.directory / identity)), 20)

    return target_for


@pytest.fixture
def command_line(capsys):
    def run(*argv):
        return main([str(word) for word in argv]), capsys.readouterr()

    return run
