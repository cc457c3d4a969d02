# SPDX-License-Identifier: Apache-2.0
"""Real engines build real Dockerfiles: Docker by a daemon of the test's own, podman and buildah with a store of its.

Base images come from a local root file system, so no registry is needed.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from enclavekit_core.errors import CommandError, InputError
from enclavekit_rbuilds.app.accounts import resolve_user
from enclavekit_rbuilds.app.archive import read_archive
from enclavekit_rbuilds.app.container import DockerfileBuild, build_command, built_image, choose_engine
from enclavekit_rbuilds.app.image_config import ImageConfig
from enclavekit_rbuilds.app.tree import AppTree
from enclavekit_rbuilds.app.unit import make_unit, prepare_tree
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.image.ramdisk import AppFile, pack_app

# one worker only: each of them starts a daemon or fills a store
pytestmark = pytest.mark.xdist_group("engines")

BASE = "localhost/base:latest"
BUSYBOX = "/bin/busybox"
SYSTEM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
START_ATTEMPTS = 200  # of asking a daemon that starts; each takes some 50 ms
DOCKERFILE = """
ARG BASE=none
FROM $BASE AS built
ARG WORD=unset
RUN echo "built $WORD" > /made && mkdir /opt && ln /made /opt/hard && ln -s ../made /opt/soft && rm /bin/touch
COPY --chown=33:44 data /srv/data
FROM built AS extra
RUN echo no > /extra
FROM built
ARG WORD
ENV GREETING="hello $WORD" B=2
USER web
WORKDIR /srv
STOPSIGNAL SIGINT
EXPOSE 80
CMD cat "/made"
"""
# WORKDIR names a directory that is there: of one that it has to make, the engines differ in the owner


def base_tar(path: Path) -> Path:
    """Write a root file system of one static binary as a tar file: the same bytes each time."""
    with tarfile.open(path, "w") as archive:

        def add(name: str, kind: bytes, content: bytes = b"", target: str = "", mode: int = 0o755) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.mode, info.size = kind, target, mode, len(content)
            archive.addfile(info, io.BytesIO(content))

        for name in ("bin", "etc", "srv"):
            add(name, tarfile.DIRTYPE)
        add("bin/busybox", tarfile.REGTYPE, Path(BUSYBOX).read_bytes())
        for name in ("sh", "cat", "ln", "mkdir", "rm", "touch"):
            add(f"bin/{name}", tarfile.SYMTYPE, target="busybox")
        passwd = b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:44:web:/srv:/bin/sh\n"
        add("etc/passwd", tarfile.REGTYPE, passwd, mode=0o644)
        add("etc/group", tarfile.REGTYPE, b"root:x:0:root\nweb:x:44:\nmail:x:8:web\n", mode=0o644)
    return path


@pytest.fixture(scope="module")
def workshop() -> Iterator[Path]:
    """A short directory for the engines' stores and sockets: a Unix socket's path has 107 bytes."""
    if os.geteuid() != 0:
        pytest.skip("engines without root need user namespaces and more set-up than a test can make")
    if not os.path.exists(BUSYBOX):
        pytest.skip("busybox-static is not installed")
    path = Path(tempfile.mkdtemp(prefix="engines-"))
    base_tar(path / "base.tar")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def docker(workshop: Path) -> Iterator[dict[str, str]]:
    """A Docker daemon that nobody else uses and that leaves the machine's network alone; yields the environment."""
    daemon = shutil.which("dockerd", path=SYSTEM_PATH)
    if daemon is None or shutil.which("docker") is None:
        pytest.skip("docker.io is not installed")
    place = workshop / "docker"
    place.mkdir()
    socket = f"unix://{place}/s"
    argv = [daemon, "--data-root", place / "data", "--exec-root", place / "exec", "--pidfile", place / "pid"]
    argv += ["-H", socket, "--bridge=none", "--iptables=false", "--ip-forward=false"]
    environment = {"DOCKER_HOST": socket, "DOCKER_CONFIG": str(place / "config")}
    with (place / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": SYSTEM_PATH})
    try:
        for _ in range(START_ATTEMPTS):
            probe = subprocess.run(["docker", "version"], env={**os.environ, **environment}, capture_output=True)
            if probe.returncode == 0:
                break
            if process.poll() is not None:
                pytest.skip(f"dockerd does not run here: {(place / 'log').read_text().splitlines()[-1]}")
        else:
            pytest.skip("dockerd does not answer here")
        run = {"env": {**os.environ, **environment}, "check": True, "capture_output": True}
        subprocess.run(["docker", "import", workshop / "base.tar", BASE], **run)
        yield environment
    finally:
        process.terminate()
        process.wait()
        # a daemon that was killed leaves its network namespace mounted, and its directory cannot be removed
        subprocess.run(["umount", place / "exec/netns/default"], capture_output=True)


@pytest.fixture(scope="module")
def containers(workshop: Path) -> dict[str, str]:
    """A store for podman and buildah that holds the base image; the environment that names it."""
    if shutil.which("buildah") is None:
        pytest.skip("buildah is not installed")
    place = workshop / "containers"
    place.mkdir()
    (place / "storage.conf").write_text(
        f'[storage]\ndriver = "vfs"\nrunroot = "{place}/run"\ngraphroot = "{place}/graph"\n'
    )
    # a runtime may not run in a container; both engines take this word for it
    environment = {"CONTAINERS_STORAGE_CONF": str(place / "storage.conf"), "BUILDAH_ISOLATION": "chroot"}
    run = {"env": {**os.environ, **environment}, "check": True, "capture_output": True, "text": True}
    name = subprocess.run(["buildah", "from", "scratch"], **run).stdout.strip()
    subprocess.run(["buildah", "add", name, workshop / "base.tar", "/"], **run)
    subprocess.run(["buildah", "commit", "--timestamp", "0", name, BASE], **run)
    subprocess.run(["buildah", "rm", name], **run)
    return environment


@pytest.fixture
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine that a test is run with, ready to be used."""
    name: str = request.param
    environment = request.getfixturevalue("docker" if name == "docker" else "containers")
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    try:
        return choose_engine(name)
    except InputError as exc:
        pytest.skip(str(exc))


every_engine = pytest.mark.parametrize("engine", ["docker", "podman", "buildah"], indirect=True)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    path = tmp_path / "context"
    (path / "data").mkdir(parents=True)
    (path / "data/one").write_text("1\n")
    (path / "Dockerfile").write_text(DOCKERFILE)
    return path


def read_built(context: Path, engine: str, tmp_path: Path, **options: object) -> tuple[AppTree, ImageConfig]:
    scratch = Path(tempfile.mkdtemp(dir=tmp_path))
    arguments = {"build_args": (f"BASE={BASE}", "WORD=of words"), **options}
    with built_image(str(context / "Dockerfile"), str(context), engine, **arguments) as image:  # type: ignore[arg-type]
        assert len(image.digest) == 71
        image.save(str(scratch / "image.tar"))
    return read_archive(str(scratch / "image.tar"), str(scratch), "x86_64", Progress(io.StringIO()))


def pack(tree: AppTree, config: ImageConfig, tmp_path: Path) -> str:
    account = resolve_user(tree, config.user)
    prepare_tree(tree, config, account)
    path = tmp_path / "app.ramdisk"
    unit = make_unit(tree, config, account).encode()
    pack_app(tree, [AppFile(b"service/app.service", unit)], str(path), "none")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe(tree: AppTree) -> Iterator[tuple[object, ...]]:
    for node in (tree.root, *tree.walk()):
        inode = node.inode
        size = node.content.size if node.content is not None else 0
        yield node.path, oct(inode.mode), inode.uid, inode.gid, size


def text_of(tree: AppTree, path: str) -> str:
    node = tree.resolve(tuple(part.encode() for part in path.split("/")))
    assert node is not None and node.content is not None
    with open(node.content.path, "rb") as source:
        source.seek(node.content.offset)
        return source.read(node.content.size).decode()


BUILT: dict[str, list[str]] = {}
"""What each engine has made, for the next to be compared with."""


@every_engine
def test_a_dockerfile_becomes_the_same_app_by_every_engine(engine: str, context: Path, tmp_path: Path) -> None:
    tree, config = read_built(context, engine, tmp_path)
    assert text_of(tree, "made") == text_of(tree, "opt/soft") == "built of words\n"
    hard, made = tree.find((b"opt", b"hard")), tree.find((b"made",))
    assert hard is not None and made is not None and hard.number == made.number
    assert tree.find((b"bin", b"touch")) is None and tree.find((b"extra",)) is None
    data = tree.find((b"srv", b"data", b"one"))
    assert data is not None and (data.inode.uid, data.inode.gid) == (33, 44)
    assert config.argv == ("/bin/sh", "-c", 'cat "/made"')  # the shell form is the engine's work
    assert (config.environment["GREETING"], config.environment["B"]) == ("hello of words", "2")
    assert (config.user, config.working_directory, config.stop_signal) == ("web", "/srv", "SIGINT")
    assert len(config.notes) == 1 and "80/tcp" in config.notes[0]
    assert resolve_user(tree, config.user).groups == (8,)
    packed = pack(tree, config, tmp_path)
    BUILT[engine] = [str(config), *map(str, describe(tree)), packed]
    first = next(iter(BUILT))
    assert BUILT[engine] == BUILT[first], f"{engine} and {first} differ"


@every_engine
def test_a_target_is_passed_on(engine: str, context: Path, tmp_path: Path) -> None:
    tree, config = read_built(context, engine, tmp_path, target="extra")
    assert text_of(tree, "extra") == "no\n"
    assert config.user == ""


@every_engine
def test_a_failing_step_shows_what_it_said_and_leaves_no_image(engine: str, context: Path, tmp_path: Path) -> None:
    (context / "Dockerfile").write_text("ARG BASE\nFROM $BASE\nRUN echo said this >&2; exit 3\n")
    before = images_of(engine)
    with pytest.raises(CommandError) as caught:
        read_built(context, engine, tmp_path)
    assert "exit" in str(caught.value)
    assert images_of(engine) == before


def images_of(engine: str) -> set[tuple[str, ...]]:
    """Return name, tag and id of what our builds have left in the engine, and of what has no name any more."""
    listed = subprocess.run([engine, "images"], capture_output=True, text=True, check=True).stdout
    return {tuple(line.split()[:3]) for line in listed.splitlines() if "enclavekit-build" in line or "<none>" in line}


@every_engine
def test_one_image_of_a_dockerfile_stays_for_the_next_build(engine: str, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY app/ /\n")
    before, digests = images_of(engine), []
    for content in ("one", "one", "two"):
        (tmp_path / "app/file").write_text(content)
        with built_image(str(tmp_path / "Dockerfile"), str(tmp_path), engine) as image:
            digests.append(image.digest)
        assert len(images_of(engine) - before) == 1
    assert digests[2] != digests[1]
    with built_image(str(tmp_path / "Dockerfile"), str(tmp_path), engine, fresh=True):
        assert len(images_of(engine) - before) == 2
    assert len(images_of(engine) - before) == 1


@pytest.mark.parametrize("engine", ["docker", "podman", "buildah"])
def test_build_command_passes_arguments_on(engine: str) -> None:
    other = "aarch64" if os.uname().machine != "aarch64" else "x86_64"
    argv = build_command(DockerfileBuild("D", "C", ("A=b c", "D"), "stage", other), engine, "tag")
    assert argv[:2] == [engine, "build"] and argv[-1] == "C"
    words = " ".join(argv)
    assert "--build-arg A=b c --build-arg D --target stage -f D -t tag" in words
    assert "--platform linux/a" in words
    assert "--platform" not in build_command(DockerfileBuild("D", "C", arch=os.uname().machine), engine, "tag")


def test_what_is_not_there_is_said_before_an_engine_runs(context: Path) -> None:
    for dockerfile, where in ((context / "none", context), (context / "Dockerfile", context / "none")):
        with pytest.raises(InputError, match="none"), built_image(str(dockerfile), str(where), "no-engine"):
            pass


def test_no_engine_is_one_line_that_names_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError) as caught:
        choose_engine()
    assert all(name in str(caught.value) for name in ("docker", "podman", "buildah"))
