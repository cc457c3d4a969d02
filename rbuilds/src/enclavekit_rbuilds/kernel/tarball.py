# SPDX-License-Identifier: Apache-2.0
"""A kernel's source: Debian's package, a tarball on disk, or one from the web, by its hash."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.base.cache import cached, key_of
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.framework import deb
from enclavekit_rbuilds.framework.debian import open_source
from enclavekit_rbuilds.framework.origin import Origin

DEBIAN = "debian"
DEBIAN_PACKAGE = "linux-source-6.12"  # of the security suite; the 6.1 of bookworm itself has no NSM driver (Linux 6.8)
MAX_TARBALL_BYTES = 1024**3  # Linux 6.12 has 150 MB
CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0  # of silence
SHA256 = re.compile(r"[0-9a-f]{64}")
SUFFIXES = (".tar.xz", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar")


@dataclass(frozen=True, slots=True)
class Tarball:
    """A source on disk."""

    path: str
    name: str
    """For people and records: the file's name, or package and version."""
    sha256: str
    """Of the file, or of the Debian package that it came in."""


def find_tarball(
    source: str, sha256: str | None, progress: Progress, *, origin: Origin | None = None, engine: str = ""
) -> Tarball:
    """Return the source: `debian`, an https address (with its hash), or a file. Raises CommandError, InputError.

    Args:
        origin, engine: where Debian's packages come from; see framework.origin.
    """
    if sha256 is not None and not SHA256.fullmatch(sha256):
        raise InputError("use", "--sha256", "it is not 64 hexadecimal digits")
    if source == DEBIAN:
        with progress.step(f"Debian's {DEBIAN_PACKAGE}"):
            return _from_debian(sha256, origin, engine)
    if "://" in source:
        if not source.startswith("https://"):
            raise InputError("fetch", source, "only https addresses are taken")
        if sha256 is None:
            raise InputError("fetch", source, "an address needs the hash of what is there: --sha256 HEX")
        with progress.step(f"source {source}"):
            return _from_web(source, sha256)
    return _from_file(source, sha256)


def _from_file(path: str, sha256: str | None) -> Tarball:
    try:
        with open(path, "rb") as source:
            found = hashlib.file_digest(source, "sha256").hexdigest()
    except OSError as exc:
        raise InputError("read kernel source", path, describe_cause(exc)) from exc
    if sha256 not in (None, found):
        raise InputError("use kernel source", path, f"its SHA-256 is {found}, {sha256} was asked for")
    return Tarball(path, os.path.basename(path), found)


def _from_web(url: str, sha256: str) -> Tarball:
    name = os.path.basename(url.partition("?")[0].rstrip("/"))
    suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), ".tar")
    directory = cached(
        "kernel-source",
        key_of(["web", sha256]),
        lambda work: download(url, sha256, os.path.join(work, f"source{suffix}")),
    )
    return Tarball(os.path.join(directory, os.listdir(directory)[0]), name, sha256)


def download(url: str, sha256: str, target: str) -> None:
    """Write what is at `url` to `target`. Raises InputError; what does not have the hash does not stay."""
    digest, size = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, open(target, "wb") as out:  # noqa: S310 - https
            while chunk := answer.read(CHUNK_BYTES):
                size += len(chunk)
                if size > MAX_TARBALL_BYTES:
                    raise InputError("fetch", url, f"it has more than {MAX_TARBALL_BYTES} bytes")
                digest.update(chunk)
                out.write(chunk)
    except urllib.error.HTTPError as exc:
        raise InputError("fetch", url, f"the server answered {exc.code}") from exc
    except urllib.error.URLError as exc:
        cause = exc.reason if isinstance(exc.reason, BaseException) else str(exc.reason)
        raise InputError("fetch", url, describe_cause(cause)) from exc
    except (OSError, ValueError) as exc:
        raise InputError("fetch", url, describe_cause(exc)) from exc
    if digest.hexdigest() != sha256:
        os.unlink(target)
        raise InputError("fetch", url, f"its SHA-256 is {digest.hexdigest()}, {sha256} was asked for")


def _from_debian(sha256: str | None, origin: Origin | None, engine: str) -> Tarball:
    """Return the source in Debian's package: the one with this hash, else the one that the mirror offers now."""
    if sha256 is None:
        with (
            tempfile.TemporaryDirectory(prefix="enclavekit-apt-") as directory,
            open_source(directory, "x86_64", origin, engine=engine) as packages,
        ):
            sha256 = packages.candidates([DEBIAN_PACKAGE])[DEBIAN_PACKAGE].sha256
    key = key_of([DEBIAN, DEBIAN_PACKAGE, sha256])
    directory = cached("kernel-source", key, lambda work: _fetch(work, sha256, origin, engine))
    tarball, version = sorted(os.listdir(directory), key=lambda name: not name.endswith(".tar.xz"))
    return Tarball(os.path.join(directory, tarball), f"{DEBIAN_PACKAGE} {version}", sha256)


def _fetch(work: str, sha256: str, origin: Origin | None, engine: str) -> None:
    """Write the tarball, and an empty file whose name is the package's version, into `work`."""
    apt = os.path.join(work, "apt")
    os.mkdir(apt)
    with open_source(apt, "x86_64", origin, engine=engine) as packages:
        (package,) = packages.fetch([DEBIAN_PACKAGE])
    if package.sha256 != sha256:
        reason = f"the mirror's is {package.version} with SHA-256 {package.sha256}, {sha256} was asked for"
        raise InputError("fetch", DEBIAN_PACKAGE, reason)
    wanted = f"./usr/src/{DEBIAN_PACKAGE}.tar.xz"
    with deb.open_data(package.path) as archive:
        content = next((archive.extractfile(member) for member in archive if member.name == wanted), None)
        if content is None:
            raise InputError("unpack", package.path, f"there is no {wanted} in it")
        with open(os.path.join(work, "linux.tar.xz"), "wb") as out:
            shutil.copyfileobj(content, out)
    with open(os.path.join(work, package.version), "xb"):
        pass
    shutil.rmtree(apt)
