# SPDX-License-Identifier: Apache-2.0
"""Real enclaves in nitro-emu, a nitro-cli that behaves as the real one, and rbuilds as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RBUILDS = [sys.executable, "-c", "import sys; from enclavekit_rbuilds.cli import main; sys.exit(main())"]
PATIENCE_S = 120.0  # far more than anything here takes; only a hang ever waits so long
ORDERLY = "trap 'enclave_network off' TERM"
HEARTBEAT = "enclave_network heartbeat"
STAY = "while :; do busybox sleep 60 & wait $!; done"


def eventually(condition, what):
    """Wait for something that another process does."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.02)
    return value


def is_running(pid):
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


@dataclass
class Result:
    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def refusal(self):
        """The one line of complaint."""
        [line] = [line for line in self.err.splitlines() if line.startswith("rbuilds: cannot ")]
        return line


@dataclass
class Host:
    """One user's rbuilds, with a runtime directory of its own."""

    runtime_dir: Path
    environment: dict[str, str]

    @property
    def records_dir(self):
        return self.runtime_dir / "rbuilds"

    def start(self, *words, **options):
        return subprocess.Popen(
            [*RBUILDS, *map(str, words)],
            env=self.environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def finish(self, process, status=0):
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == status, f"exit {process.returncode}\n{out}\n{err}\n{self.log()}"
        return Result(process.returncode, out, err)

    def __call__(self, *words, status=0):
        return self.finish(self.start(*words), status)

    def run(self, image, *flags, status=0):
        return self("run", image, "--json", *flags, status=status)

    def log(self):
        path = self.records_dir / "supervisor.log"
        return path.read_text() if path.exists() else ""

    def record(self, cid):
        return json.loads((self.records_dir / f"{cid}.json").read_text())

    def proxies(self):
        return {path.name: json.loads(path.read_text()) for path in sorted(self.records_dir.glob("proxy-*.json"))}

    def traces(self):
        """What is left on disk beside locks and the empty log."""
        if not self.records_dir.exists():
            return []
        names = [path.name for path in self.records_dir.iterdir() if path.suffix != ".lock"]
        return sorted(name for name in names if name not in (".lock", "supervisor.log", "ended"))


@pytest.fixture(name="eventually")
def eventually_fixture():
    return eventually


@pytest.fixture
def running():
    return is_running


@pytest.fixture(scope="session")
def state_home(tmp_path_factory):
    """One development root for all tests."""
    return tmp_path_factory.mktemp("state")


@pytest.fixture
def host(tmp_path_factory, state_home):
    """At the end nothing that was started may be left, neither files nor processes."""
    # short: a Unix socket's path has 107 bytes
    runtime_dir = tmp_path_factory.mktemp("rt")
    runtime_dir.chmod(0o700)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ENCLAVEKIT_", "NITRO_CLI_"))}
    environment = {
        **kept,
        "ENCLAVEKIT_RUNTIME_DIR": str(runtime_dir),
        "XDG_STATE_HOME": str(state_home),
        "HOME": str(state_home),
    }
    host = Host(runtime_dir, environment)
    yield host
    pids = [each["process"]["pid"] for each in host.proxies().values()] if host.records_dir.exists() else []
    host("drop", "--all")
    assert host.traces() == [] and host.log() == ""
    assert not any(is_running(pid) for pid in pids)


@pytest.fixture(scope="session")
def network_program(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("gcc is missing: the program inside test enclaves cannot be compiled")
    program = tmp_path_factory.mktemp("enclave") / "enclave_network"
    source = HERE / "enclave_network.c"
    built = subprocess.run(["gcc", "-static", "-O1", "-o", program, source], capture_output=True, text=True)
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


# what tells a bzImage; the process machine boots none, and nitro-cli is told apart from it by what it refuses
BZIMAGE = bytes(0x1FE) + b"\x55\xaa\0\0HdrS" + bytes(512)


def sized(size_mib):
    """Return the Size of an image in which next to nothing is packed."""
    from enclavekit_eif.size import Size

    return Size(size_mib << 20, kernel_bytes=1, ramdisk_bytes=1, unpacked_bytes=0, unpacked_memory_bytes=0, entries=0)


def write_image(path, root, custom, name="app", *, kernel=BZIMAGE, signer=None):
    from enclavekit_eif.cpio import pack_tree
    from enclavekit_eif.metadata import make_metadata
    from enclavekit_eif.writer import write_eif

    archive, kernel_path = path.with_suffix(".cpio"), path.with_suffix(".kernel")
    with open(archive, "wb") as out:
        pack_tree(str(root), out)
    kernel_path.write_bytes(kernel)
    write_eif(
        str(path),
        kernel=str(kernel_path),
        cmdline=b"console=ttyS0",
        ramdisks=[str(archive)],
        metadata=make_metadata(name, "1", custom=custom),
        signer=signer,
    )
    return path


@pytest.fixture
def make_image(tmp_path, busybox, network_program):
    """Return make(init lines, name=..., **custom metadata) -> path of an image that boots in nitro-emu."""

    def make(*lines, name="app", **custom):
        root = tmp_path / f"{name}-root"
        (root / "bin").mkdir(parents=True)
        shutil.copy2(busybox, root / "bin/busybox")
        shutil.copy2(network_program, root / "bin/enclave_network")
        (root / "bin/sh").symlink_to("busybox")
        init = root / "init"
        init.write_text("\n".join(("#!/bin/sh", "export PATH=/bin", *(lines or (ORDERLY, HEARTBEAT, STAY)), "")))
        init.chmod(0o755)
        return write_image(tmp_path / f"{name}.eif", root, {"resources": {"memory_mib": 64, "cpus": 2}, **custom}, name)

    return make


@pytest.fixture
def dull_image(tmp_path):
    """Return make(name=..., **custom metadata) -> path of an image that nobody boots: for the fake nitro-cli."""

    def make(name="app", boots=BZIMAGE, signer=None, **custom):
        root = tmp_path / f"{name}-root"
        root.mkdir()
        (root / "init").write_text("#!/bin/true\n")
        (root / "init").chmod(0o755)
        return write_image(tmp_path / f"{name}.eif", root, custom, name, kernel=boots, signer=signer)

    return make


@contextmanager
def answering(text):
    """A TCP server that says `text` to whoever connects, and ends; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        stop = threading.Event()

        def serve():
            while not stop.is_set():
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    client.sendall(text)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            stop.set()
            server.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_S)


@pytest.fixture(name="answering")
def answering_fixture():
    return answering


def ask(port, address="127.0.0.1"):
    """Return what a TCP port says until its end."""
    try:
        with socket.create_connection((address, port), timeout=PATIENCE_S) as client:
            return b"".join(iter(lambda: client.recv(4096), b""))
    except OSError:
        return b""


@pytest.fixture(name="ask")
def ask_fixture():
    return ask


@pytest.fixture
def free_port():
    """Return a function that returns a TCP port on which nobody listens, another one each time."""
    held = []

    def find():
        probe = socket.create_server(("127.0.0.1", 0))
        held.append(probe)
        return probe.getsockname()[1]

    def release():
        for probe in held:
            probe.close()
        held.clear()

    find.release = release
    yield find
    release()


@pytest.fixture
def nitro_cli(host, tmp_path):
    """A nitro-cli for `host`, which then has no emulator; returns the directory in which it keeps its state."""
    programs, state = tmp_path / "programs", tmp_path / "nitro"
    programs.mkdir()
    for name in ("sockets", "logs"):
        (state / name).mkdir(parents=True)
    program = programs / "nitro-cli"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "fake_nitro_cli.py"} "$@"\n')
    program.chmod(0o755)
    host.environment["PATH"] = f"{programs}:{host.environment.get('PATH', os.defpath)}"
    host.environment["FAKE_NITRO_DIR"] = str(state)
    host.environment["NITRO_CLI_SOCKETS_PATH"] = str(state / "sockets")
    # vsock of the test's own, where this machine's would be one for all tests
    host.environment["ENCLAVEKIT_TRANSPORT"] = "fabric"
    for name in ("registry", "fabric/3"):
        (host.runtime_dir / name).mkdir(parents=True)
    yield state
    host("drop", "--all", "--backend", "nitro-cli")
