# SPDX-License-Identifier: Apache-2.0
"""Where a framework's Debian packages come from: apt on this machine, apt in a Debian container, a prebuilt archive.

The container is for hosts without apt (Amazon Linux 2023 has Docker and dnf). Nothing in it is installed or kept: its
apt fetches into a directory of ours, mounted at the same path, and all else is done outside.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from enclavekit_core.errors import ConfigError, InputError

from enclavekit_rbuilds.app.container import choose_engine
from enclavekit_rbuilds.base.command import run

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
IMAGE_VARIABLE = "ENCLAVEKIT_DEBIAN_IMAGE"
DEFAULT_IMAGE = "debian:bookworm-slim"
NEEDS = "it fetches Debian packages (Debian or Ubuntu: apt, debian-archive-keyring)"
PASSED_ON = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
PROBE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the packages come from, as the builder wants it."""

    kind: Literal["apt", "container", "archive"]
    image: str = ""
    """Of the container; empty: ENCLAVEKIT_DEBIAN_IMAGE, else `DEFAULT_IMAGE`."""
    path: str = ""
    sha256: str = ""
    """Of the archive."""


class Apt(Protocol):
    """Runs apt's programs; paths mean the same here and there."""

    @property
    def what(self) -> str:
        """In words, for people."""
        ...

    def run(self, argv: Sequence[str], what: str, *, cwd: str | None = None) -> bytes:
        """Return the program's output. Raises CommandError, InputError."""
        ...


def parse_origin(text: str, source: str = "--framework-from") -> Origin:
    """Parse `apt`, `container[:IMAGE]` or `archive:FILE@SHA256`. Raises ConfigError, which names `source`."""
    kind, colon, rest = text.partition(":")
    if kind == "apt" and not colon:
        return Origin("apt")
    if kind == "container" and bool(rest) == bool(colon):
        if rest.startswith("-"):
            raise ConfigError(source, "", f"{rest} is no name of an image")
        return Origin("container", image=rest)
    if kind == "archive":
        path, _, digest = rest.rpartition("@")
        if not path or not re.fullmatch(r"[0-9a-f]{64}", digest.removeprefix("sha256:")):
            raise ConfigError(source, "", "an archive is named with its hash: archive:FILE@SHA256 (64 hex digits)")
        return Origin("archive", path=os.path.abspath(path), sha256=digest.removeprefix("sha256:"))
    raise ConfigError(source, "", f"{text} is none of apt, container, container:IMAGE, archive:FILE@SHA256")


class LocalApt:
    """apt on this machine."""

    what = "apt on this machine"

    def run(self, argv: Sequence[str], what: str, *, cwd: str | None = None) -> bytes:
        return run(argv, what, cwd=cwd, needed_for=NEEDS)


@dataclass(frozen=True, slots=True)
class ContainerApt:
    """apt in a container of `image` that sees only `directory`."""

    engine: str
    image: str
    directory: str
    container: str = ""
    """buildah's working container; docker and podman make one per program."""

    @property
    def what(self) -> str:
        return f"apt in a container of {self.image} by {self.engine}"

    def run(self, argv: Sequence[str], what: str, *, cwd: str | None = None) -> bytes:
        return run([*self._prefix(cwd or self.directory), *argv], what)

    def _prefix(self, cwd: str) -> list[str]:
        shared = ["--volume", f"{self.directory}:{self.directory}"]
        for name in PASSED_ON:
            if name in os.environ:
                shared += ["--env", f"{name}={os.environ[name]}"]
        if self.engine == "buildah":
            # chroot isolation needs neither user namespaces nor a runtime; it uses the host's network anyway
            return ["buildah", "run", "--isolation", "chroot", *shared, "--workingdir", cwd, self.container, "--"]
        # the host's network: proxies on localhost work, and a host whose bridge is off
        shared += ["--network", "host", "--security-opt", "label=disable", "--workdir", cwd]
        return [self.engine, "run", "--rm", *shared, *self._user(), self.image]

    def _user(self) -> list[str]:
        """What is fetched belongs to who builds: root inside is that already where the engine has no root itself."""
        if self.engine != "docker" or os.geteuid() == 0:
            return []
        answer = run(["docker", "info", "--format", "{{.SecurityOptions}}"], "ask docker how it runs")
        return [] if b"rootless" in answer else ["--user", f"{os.geteuid()}:{os.getegid()}"]


def choose_origin(named: Origin | None) -> Origin:
    """Return what was named, else apt if this machine can fetch Debian's packages, else a container."""
    if named is not None:
        return named
    return Origin("apt") if _has_apt() else Origin("container")


def _has_apt() -> bool:
    return shutil.which("apt-get") is not None and os.path.exists(KEYRING)


@contextlib.contextmanager
def open_apt(origin: Origin, directory: str, *, engine: str = "") -> Iterator[Apt]:
    """Give the apt of `origin`, which may write below `directory` only. Raises CommandError, InputError."""
    if origin.kind == "apt":
        if not _has_apt():
            reason = f"{KEYRING} is missing; install debian-archive-keyring, or use --framework-from container"
            if shutil.which("apt-get") is None:
                reason = "apt-get is not installed; use --framework-from container, or an archive by its hash"
            raise InputError("fetch", "Debian packages", reason)
        yield LocalApt()
        return
    image = origin.image or os.environ.get(IMAGE_VARIABLE) or DEFAULT_IMAGE
    try:
        engine = choose_engine(engine)
    except InputError as exc:
        ways = "install docker, podman or buildah, or import a framework archive (rbuilds framework import)"
        if origin.image or _has_apt():
            ways = exc.reason
        raise InputError("fetch", "Debian packages", f"there is no apt here and no container engine: {ways}") from exc
    if engine != "buildah":
        yield ContainerApt(engine, image, directory)
        return
    container = run(["buildah", "from", image], f"start a container of {image}").decode().split()[-1]
    try:
        yield ContainerApt(engine, image, directory, container)
    finally:
        subprocess.run(["buildah", "rm", container], capture_output=True, check=False, timeout=PROBE_TIMEOUT_S)
