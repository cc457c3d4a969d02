# SPDX-License-Identifier: Apache-2.0
"""Where Debian's packages come from: what is named, what is chosen, and real containers that fetch them."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from enclavekit_core.errors import ConfigError, InputError
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.cli import main
from enclavekit_rbuilds.framework import base_stage, origin
from enclavekit_rbuilds.framework.debian import find_mirrors
from enclavekit_rbuilds.framework.origin import Origin, choose_origin, open_apt, parse_origin

DIGEST = "0f" * 32
WAIT_S = 30.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("apt", Origin("apt")),
        ("container", Origin("container")),
        ("container:debian:bookworm", Origin("container", image="debian:bookworm")),
        (f"archive:/a/b@c.tar@{DIGEST}", Origin("archive", path="/a/b@c.tar", sha256=DIGEST)),
        (f"archive:/a@sha256:{DIGEST}", Origin("archive", path="/a", sha256=DIGEST)),
    ],
)
def test_origins(text: str, expected: Origin) -> None:
    assert parse_origin(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "apt:x",
        "container:",
        "container:--privileged",
        "archive",
        "archive:/a",
        "archive:/a@00",
        f"archive:@{DIGEST}",
        "snap",
    ],
)
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_origin(text)


def test_apt_is_chosen_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "apt-get").write_text("#!/bin/sh\n")
    (tmp_path / "apt-get").chmod(0o755)
    (tmp_path / "keys").write_bytes(b"")
    monkeypatch.setattr(origin, "KEYRING", str(tmp_path / "keys"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_origin(None) == Origin("apt")
    assert choose_origin(Origin("container")) == Origin("container")
    (tmp_path / "apt-get").unlink()
    assert choose_origin(None) == Origin("container")


def test_host_without_any_way_says_all_of_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(InputError, match=r"docker, podman or buildah.*framework import"),
        open_apt(choose_origin(None), str(tmp_path)),
    ):
        pass
    with pytest.raises(InputError, match="apt-get is not installed"), open_apt(Origin("apt"), str(tmp_path)):
        pass


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Engines that write down how they were called."""
    calls = tmp_path / "calls"
    for name in ("docker", "podman", "buildah"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f'#!/bin/sh\necho "{name} $*" >> {calls}\necho name-of-container\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("https_proxy", "http://localhost:3128")
    return calls


@pytest.mark.parametrize("name", ["docker", "podman", "buildah"])
def test_container_sees_one_directory_and_is_gone_after(engine: Path, tmp_path: Path, name: str) -> None:
    with open_apt(Origin("container", image="debian:x"), str(tmp_path), engine=name) as apt:
        apt.run(["apt-get", "update"], "try", cwd=str(tmp_path / "sub"))
    lines = engine.read_text().splitlines()
    used = next(line for line in lines if line.endswith("apt-get update"))
    words = used.split()
    assert [words[i + 1] for i, word in enumerate(words) if word == "--volume"] == [f"{tmp_path}:{tmp_path}"]
    assert str(tmp_path / "sub") in words and "https_proxy=http://localhost:3128" in words
    assert "--privileged" not in words
    if name == "buildah":
        assert lines[-1] == "buildah rm name-of-container" and "name-of-container" in words
    else:
        assert "--rm" in words and "debian:x" in words


def test_image_without_lists_still_has_sources() -> None:
    class Listless:
        what = "apt in an image"

        def run(self, argv: list[str], what: str, *, cwd: str | None = None) -> bytes:
            if "indextargets" in argv:
                return b""
            return (
                b"'http://a.test/debian-security/dists/x-security/InRelease' f 0 \n"
                b"'http://a.test/debian/dists/x/InRelease' f 0 \n'http://a.test/debian/dists/x/main/Packages.xz' g 0 \n"
            )

    assert find_mirrors(None, Listless()) == ("http://a.test/debian", "http://a.test/debian-security")


@pytest.fixture(scope="session")
def debian_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tar of a minimal Debian; about 25 s and the network."""
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed: nothing to make a container image from")
    target = tmp_path_factory.mktemp("debian") / "root.tar"
    done = subprocess.run(
        ["mmdebstrap", "--variant=minbase", "bookworm", str(target)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mmdebstrap cannot make a root here: {done.stderr.strip()[-200:]}")
    return target


@pytest.fixture
def docker_image(debian_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An image in a Docker of its own, which ends with the test."""
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        pytest.skip("dockerd is not installed, or this is not root")
    socket = f"unix://{tmp_path}/docker.sock"
    argv = ["dockerd", "--data-root", f"{tmp_path}/data", "--exec-root", f"{tmp_path}/exec", "-H", socket]
    argv += ["--pidfile", f"{tmp_path}/docker.pid", "--bridge=none", "--iptables=false", "--storage-driver", "vfs"]
    monkeypatch.setenv("DOCKER_HOST", socket)
    with open(tmp_path / "dockerd.log", "wb") as log, subprocess.Popen(argv, stdout=log, stderr=log) as daemon:
        try:
            until = time.monotonic() + WAIT_S
            while subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
                if daemon.poll() is not None or time.monotonic() > until:
                    pytest.skip(f"dockerd does not run here: {(tmp_path / 'dockerd.log').read_text()[-300:]}")
            subprocess.run(["docker", "import", str(debian_root), "local:bookworm"], check=True, capture_output=True)
            yield "local:bookworm"
        finally:
            daemon.terminate()
            daemon.wait(WAIT_S)
            # it leaves the mount of its network namespace, which would keep tmp_path from being removed
            subprocess.run(["umount", f"{tmp_path}/exec/netns/default"], capture_output=True, check=False)


@pytest.fixture
def buildah_image(debian_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An image in a store of its own."""
    if shutil.which("buildah") is None or os.geteuid() != 0:
        pytest.skip("buildah is not installed, or this is not root, which vfs without id maps needs")
    settings = tmp_path / "storage.conf"
    settings.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/store"\nrunroot = "{tmp_path}/run"\n')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(settings))
    monkeypatch.setenv("BUILDAH_ISOLATION", "chroot")
    container = subprocess.run(
        ["buildah", "from", "scratch"], check=True, capture_output=True, text=True
    ).stdout.strip()
    for words in (["add", container, str(debian_root), "/"], ["commit", container, "localhost/local:bookworm"]):
        subprocess.run(["buildah", *words], check=True, capture_output=True)
    yield "localhost/local:bookworm"
    subprocess.run(["buildah", "rm", "--all"], check=False, capture_output=True)
    subprocess.run(["buildah", "rmi", "--all", "--force"], check=False, capture_output=True)


def differences(left: str, right: str) -> list[str]:
    compared = filecmp.dircmp(left, right, ignore=[])
    found = [*compared.left_only, *compared.right_only, *compared.diff_files, *compared.funny_files]
    for name in compared.common_dirs:
        found += differences(os.path.join(left, name), os.path.join(right, name))
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", ["docker", "buildah"])
def test_real_container_makes_the_same_base_as_apt(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute or so: both ways from nothing; what comes out is the same to the byte, and nothing is left running."""
    image = request.getfixturevalue(f"{name}_image")
    if choose_origin(None).kind != "apt":
        pytest.skip("there is no apt here to compare with")
    wish, bases = base_stage.wish_for("x86_64", ["pipeline"]), []
    for number, where in enumerate([Origin("apt"), Origin("container", image=image)]):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(number)))
        bases.append(base_stage.find_base(wish, Progress(quiet=True), origin=where, engine=name))
    assert differences(bases[0].root, bases[1].root) == []
    assert bases[0].record.inputs == bases[1].record.inputs and bases[1].record.origin == "container"
    if name == "buildah":
        assert subprocess.run(["buildah", "containers", "-q"], capture_output=True, check=True).stdout.count(b"\n") <= 1


@pytest.mark.long
def test_real_export_is_imported_by_a_host_without_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, app: Path, kernel: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An image built from an imported framework is that of the host that exported it; PATH there is empty."""
    monkeypatch.chdir(tmp_path)
    build = ["build", "--rootfs", str(app), "--cmd", "serve", "--kernel", str(kernel), "--name", "x"]
    build += ["--services", "pipeline", "--quiet", "--no-evidence"]
    assert main([*build, "--output", "here.eif"]) == 0
    assert main(["framework", "export", "f.tar.zst", "--services", "pipeline", "--quiet"]) == 0
    digest = capsys.readouterr().out.split()[-2]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert main(["framework", "import", "f.tar.zst", "--sha256", digest, "--quiet"]) == 0
    assert main([*build, "--output", "there.eif"]) == 0
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "third"))
    assert main([*build, "--output", "third.eif", "--framework-from", f"archive:f.tar.zst@{digest}"]) == 0
    assert len({(tmp_path / f"{name}.eif").read_bytes() for name in ("here", "there", "third")}) == 1
