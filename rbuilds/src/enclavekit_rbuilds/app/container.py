# SPDX-License-Identifier: Apache-2.0
"""Build a Dockerfile with whichever engine is there, and get the image out as an archive.

The last image of each Dockerfile stays in the engine, under a tag of ours, so that the next build is quick: some
engines keep what a step made only as long as an image has it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.app.archive import OCI_ARCHITECTURES
from enclavekit_rbuilds.base.command import run

ENGINES = ("docker", "podman", "buildah")
PROBE_TIMEOUT_S = 20.0
TAG_PREFIX = "localhost/enclavekit-build"
DIGEST = re.compile(r"[0-9a-f]{64}")
EPOCH = "0"  # engines that know SOURCE_DATE_EPOCH stamp layers with it; our packing ignores times anyway


@dataclass(frozen=True, slots=True)
class DockerfileBuild:
    """A Dockerfile and what it is built with."""

    dockerfile: str
    context: str
    build_args: tuple[str, ...] = ()
    """NAME=value, or NAME for the value that the environment has."""
    target: str = ""
    """The stage to build; empty is the last."""
    arch: str = ""
    """x86_64 or aarch64; an engine is told only if it is not this machine's: not every engine can be told."""
    fresh: bool = False
    """Run every step again, whatever the engine keeps of it."""
    host_network: bool = False
    """Steps that fetch packages see this host's network: its proxies on localhost, and a host without a bridge."""


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image in an engine's store."""

    engine: str
    digest: str
    """`sha256:...` of its configuration, which names its layers: the same image has the same."""
    dockerfile: str

    def save(self, archive: str) -> None:
        """Write the image to `archive` in docker-save form. Raises CommandError."""
        if self.engine == "buildah":
            argv = ["buildah", "push", self.digest.removeprefix("sha256:"), f"docker-archive:{archive}"]
        else:
            argv = [self.engine, "save", "-o", archive, self.digest]
        run(argv, f"save the image of {self.dockerfile}")


def choose_engine(asked: str = "") -> str:
    """Return the engine to use: `asked`, else the first that is installed and answers. Raises InputError."""
    complaints = []
    for engine in (asked,) if asked else ENGINES:
        if shutil.which(engine) is None:
            complaints.append(f"{engine} is not installed")
            continue
        try:
            answer = subprocess.run([engine, "info"], capture_output=True, timeout=PROBE_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            complaints.append(f"{engine} does not answer")
            continue
        if answer.returncode == 0:
            return engine
        complaints.append(f"{engine} is installed but does not work")
    raise InputError("find", "a container engine", "; ".join(complaints))


@contextlib.contextmanager
def built_image(
    dockerfile: str,
    context: str,
    engine: str,
    *,
    build_args: Sequence[str] = (),
    target: str = "",
    arch: str = "",
    fresh: bool = False,
) -> Iterator[BuiltImage]:
    """Build `dockerfile` in `context`; the image is there until the end. Raises CommandError, InputError.

    Args: build_args, target, arch, fresh: as in `DockerfileBuild`.
    """
    if not os.path.isfile(dockerfile):
        raise InputError("read", dockerfile, "there is no such file")
    if not os.path.isdir(context):
        raise InputError("read", context, "it is not a directory")
    build = DockerfileBuild(dockerfile, context, tuple(build_args), target, arch, fresh)
    tag = f"{TAG_PREFIX}:{secrets.token_hex(8) if fresh else _name_of(build)}"
    env = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH}
    if engine == "docker" and "DOCKER_BUILDKIT" not in env and _has_buildkit():
        env["DOCKER_BUILDKIT"] = "1"  # the builder that takes the time from SOURCE_DATE_EPOCH
    before = _digest_of(engine, tag)
    run(build_command(build, engine, tag), f"build {dockerfile}", env=env)
    digest = _digest_of(engine, tag)
    try:
        if digest is None:
            raise InputError("identify", f"the image of {dockerfile}", f"{engine} has built it and does not know it")
        yield BuiltImage(engine, digest, dockerfile)
    finally:
        # the last image of a Dockerfile stays: with it, engines of the older kind would lose every step that they keep
        gone = tag if fresh else before if before != digest else None
        if gone is not None:
            subprocess.run([engine, "rmi", gone], capture_output=True, check=False, timeout=PROBE_TIMEOUT_S)


def _name_of(build: DockerfileBuild) -> str:
    """Return the tag by which the engine keeps the last image of this build."""
    facts = [os.path.abspath(build.dockerfile), os.path.abspath(build.context), build.target, build.arch]
    return hashlib.sha256(json.dumps([*facts, *build.build_args]).encode()).hexdigest()[:24]


def _digest_of(engine: str, tag: str) -> str | None:
    """Return `sha256:...` of an image in the engine's store; None if there is none."""
    if engine == "buildah":
        identify = ["buildah", "inspect", "--type", "image", "--format", "{{.FromImageID}}", tag]
    else:
        identify = [engine, "image", "inspect", "--format", "{{.Id}}", tag]
    done = subprocess.run(identify, capture_output=True, check=False, timeout=PROBE_TIMEOUT_S)
    digest = done.stdout.decode("ascii", "replace").strip().removeprefix("sha256:")
    return f"sha256:{digest}" if done.returncode == 0 and DIGEST.fullmatch(digest) else None


def build_command(build: DockerfileBuild, engine: str, tag: str) -> list[str]:
    """Return the engine's command line."""
    argv = [engine, "build"]
    if engine == "buildah":
        # chroot isolation needs neither user namespaces nor a runtime, so that it works inside a container as well
        argv += ["--isolation", "chroot"]
    if engine != "docker":
        argv += ["--timestamp", EPOCH]  # without it each build would be an image of its own
    if build.arch and build.arch != platform.machine():
        argv += ["--platform", f"linux/{OCI_ARCHITECTURES[build.arch]}"]
    for item in build.build_args:
        argv += ["--build-arg", item]
    if build.fresh:
        argv += ["--no-cache"]
    if build.host_network and engine != "buildah":  # whose chroot isolation has no other
        argv += ["--network", "host"]
    if build.target:
        argv += ["--target", build.target]
    return [*argv, "-f", build.dockerfile, "-t", tag, build.context]


def _has_buildkit() -> bool:
    """Say whether docker's client has buildx: without it, newer clients refuse to be told to use BuildKit."""
    probe = ["docker", "buildx", "version"]
    try:
        return subprocess.run(probe, capture_output=True, timeout=PROBE_TIMEOUT_S, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False
