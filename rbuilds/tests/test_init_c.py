# SPDX-License-Identifier: Apache-2.0
"""The C init as a real PID 1 in namespaces, and the images that have it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from enclavekit_core.errors import ConfigError, InputError
from enclavekit_eif.cpio import iter_cpio
from enclavekit_eif.reader import read_eif
from enclavekit_rbuilds.app.accounts import Account
from enclavekit_rbuilds.app.directory import read_directory
from enclavekit_rbuilds.app.image_config import ImageConfig
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.cli import main
from enclavekit_rbuilds.init_c.build import check_init, compile_init
from enclavekit_rbuilds.init_c.image import init_files

HERE = Path(__file__).parent / "init_c"
NAMESPACES = ["--mount", "--pid", "--fork", "--kill-child", "--net", "--uts", "--ipc", "--cgroup"]
if os.geteuid() != 0:
    NAMESPACES = ["--user", "--map-root-user", *NAMESPACES]
PATIENCE_S = 60
ARCH = os.uname().machine
DEFINES = ('HEARTBEAT_UNIX="/heartbeat"', 'DEV_FILESYSTEM="tmpfs"')


def can_link_statically() -> bool:
    if shutil.which("gcc") is None:
        return False
    argv = ["gcc", "-static", "-x", "c", "-", "-o", os.devnull]
    return subprocess.run(argv, input=b"int main(void){return 0;}", capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not can_link_statically(), reason="needs gcc and a static C library")


class Machine:
    """A ramdisk's files; `run()` boots them and returns the console."""

    def __init__(self, base: Path, init: Path, report: Path) -> None:
        self.base, self.image = base, base / "image"
        (self.image / "rootfs/bin").mkdir(parents=True)
        (self.image / "rootfs/srv").mkdir()
        (self.image / "dev").mkdir()
        shutil.copy(init, self.image / "init")
        shutil.copy(report, self.image / "rootfs/bin/report")
        (self.image / "cmd").write_text("report\n")
        (self.image / "env").write_text("")

    def run(self, answer: bytes | None = b"\xb7") -> tuple[list[str], bytes]:
        """Return the console's lines and what the heartbeat sent."""
        path, sent = str(self.base / "h"), []
        listener = socket.socket(socket.AF_UNIX)
        if answer is not None:
            listener.bind(path)
            os.chmod(path, 0o666)
            listener.listen()

            def serve() -> None:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    sent.append(peer.recv(16))
                    peer.sendall(answer)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
        (self.base / "root").mkdir()
        argv = ["unshare", *NAMESPACES, sys.executable, str(HERE / "enter_machine.py")]
        arguments = [str(self.base / "root"), str(self.image), path]
        done = subprocess.run(
            [*argv, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S
        )
        listener.close()
        return (done.stdout + done.stderr).splitlines(), b"".join(sent)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    work = tmp_path_factory.mktemp("programs")
    subprocess.run(["gcc", "-static", "-O1", "-o", work / "report", HERE / "report.c"], check=True)
    return Path(compile_init(str(work), ARCH, defines=DEFINES)), work / "report"


@pytest.fixture
def machine(programs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Machine:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare(1) of util-linux")
    probe = subprocess.run(["unshare", *NAMESPACES, "true"], capture_output=True, text=True)
    if probe.returncode:
        pytest.skip(f"needs namespaces: {probe.stderr.strip()}")
    return Machine(tmp_path_factory.mktemp("m"), *programs)


def report_of(console: list[str]) -> dict:
    return json.loads(next(line for line in console if line.startswith("{")))


def test_program_starts_as_the_files_say(machine: Machine) -> None:
    (machine.image / "cmd").write_text("report\n--name\ntwo words\n\n")
    (machine.image / "env").write_text("PATH=/nowhere:/bin\nA=b c=d\nEMPTY=\n")
    (machine.image / "workdir").write_text("/srv\n")
    console, sent = machine.run()
    report = report_of(console)
    assert sent == b"\xb7"
    assert report["argv"] == ["report", "--name", "two words", ""]
    assert report["env"] == ["PATH=/nowhere:/bin", "A=b c=d", "EMPTY="]
    assert report["cwd"] == "/srv" and report["parent"] == 1 and report["leader"] == 1
    assert report["places"] == 7, "dev, proc, sys, run, tmp, shm and pts are mounted"
    assert report["blocked"] == 0, "the program starts with no signal blocked"
    assert report["reaped"] == 1


def test_exit_status_is_said(machine: Machine) -> None:
    console, _ = machine.run()
    assert "init: the program exited with 7" in console


def test_program_that_is_not_there_is_said(machine: Machine) -> None:
    (machine.image / "cmd").write_text("/bin/nothing\n")
    console, _ = machine.run()
    assert any("/bin/nothing" in line for line in console)
    assert "init: the program exited with 127" in console


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: an ordinary user's namespace has one uid only")
def test_program_runs_as_its_user(machine: Machine) -> None:
    (machine.image / "user").write_text("33 44 8 27\n")
    report = report_of(machine.run()[0])
    assert (report["uid"], report["gid"], report["groups"]) == (33, 44, 2)


@pytest.mark.parametrize("text", ["web\n", "33\n", "33 44 x\n", "-1 0\n", "4294967295 0\n", "99999999999999999999 0\n"])
def test_user_that_cannot_be_read_runs_nothing(machine: Machine, text: str) -> None:
    (machine.image / "user").write_text(text)
    console, _ = machine.run()
    assert not any(line.startswith("{") for line in console), "it must not run as root instead"


@pytest.mark.parametrize("answer", [b"\x00", b"", None], ids=["wrong", "closed", "nobody"])
def test_without_a_heartbeat_nothing_runs(machine: Machine, answer: bytes | None) -> None:
    console, _ = machine.run(answer)
    assert not any(line.startswith("{") for line in console)
    assert any("heartbeat" in line for line in console)


def test_same_bytes_wherever_it_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [tmp_path / "one", tmp_path / "another/place"]
    for place in places:
        place.mkdir(parents=True)
    first = Path(compile_init(str(places[0]), ARCH)).read_bytes()
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("CFLAGS", "-O0 -g")
    assert Path(compile_init(str(places[1]), ARCH)).read_bytes() == first
    assert str(tmp_path).encode() not in first
    assert b"HEARTBEAT_UNIX" not in first and b"/heartbeat" not in first


def test_unknown_inits_name_those_that_there_are() -> None:
    assert check_init("c") == "c" and check_init("python") == "python"
    for name in ("rs", "go", "systemd"):
        with pytest.raises(ConfigError, match=r"python.* c "):
            check_init(name)


@pytest.fixture
def build(app: Path, kernel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*words: object, expect: int = 0) -> Path:
        path = tmp_path / "app.eif"
        common = ["build", "--quiet", "--no-evidence", "--kernel", kernel, "--rootfs", app, "--output", path]
        assert main([str(word) for word in (*common, "--arch", ARCH, "--init", "c", *words)]) == expect
        return path

    return run


def members(path: Path, ramdisk: int) -> dict[str, tuple[int, bytes]]:
    eif = read_eif(str(path))
    section = eif.open_section(eif.ramdisks[ramdisk])
    return {entry.name.decode(): (entry.mode, entry.data.read()) for entry in iter_cpio(section)}


def test_image_is_laid_out_like_nitro_clis(build) -> None:
    words = ["--entrypoint", "serve --verbose", "--env", "A=b c", "--user", "web:mail", "--workdir", "/srv"]
    path = build(*words)
    first, second = members(path, 0), members(path, 1)
    assert set(first) == {"dev", "init"}
    assert first["init"][0] == 0o100755 and first["init"][1].startswith(b"\x7fELF")
    beside = {name: content for name, (_, content) in second.items() if not name.startswith("rootfs")}
    assert beside == {
        "cmd": b"/bin/serve\n--verbose\n",
        "env": b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOME=/srv\nA=b c\n",
        "workdir": b"/srv\n",
        "user": b"33 8\n",
    }
    assert {"rootfs/dev", "rootfs/proc", "rootfs/sys", "rootfs/run", "rootfs/tmp"} <= set(second)
    assert path.read_bytes() == build(*words).read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ["--services", "pipeline"],
        ["--egress", "api.example.com:443"],
        ["--init", "rs"],
        ["--env", "A=two\nlines"],
        ["--entrypoint", "nothing"],
    ],
    ids=["services", "egress", "rs", "newline", "no program"],
)
def test_what_the_init_cannot_do_is_refused(build, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = build("--entrypoint", "serve", *words, expect=2)
    assert not path.exists()
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if not line.startswith("rbuilds: note: ")]) == 1


def test_kernel_that_needs_other_modules_is_refused(
    build, tmp_path: Path, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    name = "bzImage" if ARCH == "x86_64" else "Image"
    (blobs / name).write_bytes(kernel.read_bytes())
    (blobs / "cmdline").write_text("console=ttyS0\n")
    (blobs / "nsm.ko").write_bytes(b"\x7fELF module")
    path = build("--entrypoint", "serve", "--kernel-source", "blobs", "--kernel", blobs)
    assert members(path, 0)["nsm.ko"] == (0o100755, b"\x7fELF module")
    assert read_eif(str(path)).cmdline() == b"console=ttyS0"

    from enclavekit_rbuilds.init_c.image import pack_init
    from enclavekit_rbuilds.kernel.model import Kernel

    debian = Kernel("vmlinuz", "Debian", "6.1", False, ("/cache/virtio_mmio.ko",))
    with pytest.raises(InputError, match=r"virtio_mmio\.ko"):
        pack_init(debian, "/init", str(tmp_path / "ramdisk"), "none")


def test_files_too_large_for_the_init_are_refused(app: Path) -> None:
    tree = read_directory(str(app), progress=Progress(quiet=True))
    account = Account(0, 0, "/")
    config = ImageConfig(entrypoint=("serve", "x" * (1 << 20)))
    with pytest.raises(InputError, match="/cmd"):
        init_files(tree, config, account)
