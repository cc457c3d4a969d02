# SPDX-License-Identifier: Apache-2.0
"""Debian packages without root and without touching the machine: fetched by apt, checked by its signatures.

apt gets a state directory of its own, so the machine's suite, versions and architecture do not matter, only the mirror
that it uses; packages are read by our own reader, never installed, and no maintainer script runs.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from enclavekit_core.errors import CommandError, InputError

from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.framework import deb
from enclavekit_rbuilds.framework.origin import KEYRING, Apt, LocalApt, Origin, choose_origin, open_apt

SUITE = "bookworm"
MIRROR_VARIABLE = "ENCLAVEKIT_DEBIAN_MIRROR"
SNAPSHOT_VARIABLE = "ENCLAVEKIT_DEBIAN_SNAPSHOT"
DEBIAN_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
MACHINE_TRIPLETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
# what `apt-get download --print-uris` says of one package; an epoch's colon is written %3a
URI_LINE = re.compile(
    r"'[^']*' (?P<name>[a-z0-9.+-]+)_(?P<version>[^_ ]+)_[a-z0-9]+\.deb (?P<size>\d+)"
    r"(?: SHA256:(?P<sha256>[0-9a-f]{64}))?.*"
)


def find_mirrors(named: str | None, apt: Apt | None = None) -> tuple[str, str]:
    """Return the addresses of Debian's archive and of its security archive.

    Args:
        named: what they are below, e.g. the `http://HOST` of `http://HOST/debian`; without it, what the machine's apt
            uses. Which mirror it is decides nothing: apt verifies Debian's signatures.
    Raises:
        InputError if that apt knows no Debian mirror.
    """
    if named:
        base = named.rstrip("/")
        return f"{base}/debian", f"{base}/debian-security"
    apt = apt or LocalApt()
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    known = [line.strip("/ ") for line in apt.run(argv, "read apt's sources").decode().splitlines()]
    if not known:  # an image of Debian has sources but no lists yet
        listed = apt.run(["apt-get", "update", "--print-uris"], "read apt's sources").decode()
        known = re.findall(r"^'(\S+?)/+dists/[^']*InRelease'", listed, re.MULTILINE)
    archive = next((uri for uri in known if uri.endswith("/debian")), None)
    if archive is None:
        reason = f"apt on this machine knows no Debian mirror; name one with {MIRROR_VARIABLE}=http://HOST"
        raise InputError("fetch", "Debian packages", reason)
    return archive, next((uri for uri in known if uri.endswith("/debian-security")), f"{archive}-security")


def find_snapshots(named: str | None) -> tuple[str, str] | None:
    """Return archive and security archive of a snapshot, e.g. http://HOST/archive/debian/20250520T000000Z."""
    if not named:
        return None
    base = named.rstrip("/")
    if base.count("/debian/") != 1:
        raise InputError("use", f"{SNAPSHOT_VARIABLE}={named}", "it has to be like http://HOST/archive/debian/DATE")
    return base, base.replace("/debian/", "/debian-security/")


@dataclass(frozen=True, slots=True)
class Package:
    """One fetched package."""

    name: str
    version: str
    path: str
    """The .deb file."""
    sha256: str = ""
    size: int = 0

    def as_input(self) -> Input:
        """Return its record."""
        return Input("debian", self.name, self.version, self.sha256, self.size, SUITE)


def parse_uris(text: str) -> dict[str, Input]:
    """Return the packages that `apt-get download --print-uris` lists, by name."""
    found = {}
    for line in text.splitlines():
        if match := URI_LINE.fullmatch(line.strip()):
            version = urllib.parse.unquote(match["version"])
            found[match["name"]] = Input(
                "debian", match["name"], version, match["sha256"] or "", int(match["size"]), SUITE
            )
    return found


class PackageSource:
    """Debian's `SUITE` with its security updates, as `arch` sees it; keeps its state below `directory`."""

    def __init__(self, directory: str, arch: str, apt: Apt | None = None) -> None:
        self.directory, self.arch, self.apt = directory, arch, apt or LocalApt()
        self._updated = False

    def candidates(self, names: Sequence[str]) -> dict[str, Input]:
        """Return what the mirror offers now of each package; downloads lists only. Raises CommandError, InputError."""
        self._update()
        found = parse_uris(
            self._run(["apt-get", "download", "--print-uris", *names], "look up Debian packages").decode()
        )
        if missing := [name for name in names if name.partition("=")[0] not in found]:
            raise InputError("fetch", missing[0], "the mirror does not have it")
        return found

    def fetch(self, names: Sequence[str], pins: Mapping[str, Input] | None = None) -> list[Package]:
        """Download the candidate version of each package, or the one that is pinned. Raises CommandError, InputError.

        Args:
            names: NAME, or NAME=VERSION where nothing is pinned.
            pins: name -> the very package that is wanted.
        """
        offered = self.candidates(names)
        wanted = [
            self._pinned(name, offered[name], pins) if pins else offered[name.partition("=")[0]] for name in names
        ]
        target = os.path.join(self.directory, "debs")
        os.makedirs(target, exist_ok=True)
        before = set(os.listdir(target))
        words = [f"{one.name}={one.version}" for one in wanted]
        self._run(["apt-get", "download", *words], "fetch Debian packages", cwd=target)
        fetched = [_describe(os.path.join(target, name)) for name in sorted(set(os.listdir(target)) - before)]
        by_name = {package.name: package for package in fetched}
        for one in wanted:
            _check(by_name.get(one.name), one)
        return sorted(fetched, key=lambda package: package.name)

    def dependencies(self, name: str) -> list[str]:
        """Return the names that package `name` depends on."""
        self._update()
        argv = ["apt-cache", "depends", "--no-recommends", "--no-suggests", name]
        lines = self._run(argv, f"read dependencies of {name}").decode().splitlines()
        return [line.split(":", 1)[1].strip() for line in lines if line.strip().startswith("Depends:")]

    def _pinned(self, name: str, offered: Input, pins: Mapping[str, Input]) -> Input:
        pin = pins.get(name)
        if pin is None:
            raise InputError("build", "the framework", f"{name} is not in rbuilds.lock: run rbuilds lock again")
        found = offered
        if offered.version != pin.version:
            try:  # an older version that the mirror still has
                found = self.candidates([f"{name}={pin.version}"])[name]
            except (CommandError, InputError) as exc:
                cure = f"run rbuilds lock again, or name an archive that has it: {SNAPSHOT_VARIABLE}"
                reason = f"{name} is {pin.version} in rbuilds.lock, {offered.version} at the mirror; {cure}"
                raise InputError("build", "the framework", reason) from exc
        if found.sha256 and found.sha256 != pin.sha256:
            reason = f"{name} {pin.version} has SHA-256 {pin.sha256} in rbuilds.lock, {found.sha256} at the mirror"
            raise InputError("build", "the framework", reason)
        return pin

    def _update(self) -> None:
        if self._updated:
            return
        for part in ("state/lists/partial", "cache/archives/partial"):
            os.makedirs(os.path.join(self.directory, part), exist_ok=True)
        with open(os.path.join(self.directory, "status"), "w"):
            pass
        archive, security = find_mirrors(os.environ.get(MIRROR_VARIABLE), self.apt)
        lines = [
            f"deb [signed-by={KEYRING}] {where} {SUITE}{suite} main\n"
            for where, suite in ((archive, ""), (archive, "-updates"), (security, "-security"))
        ]
        if snapshots := find_snapshots(os.environ.get(SNAPSHOT_VARIABLE)):
            # an old list is what is asked for; its signature still has to be Debian's, every pin its own hash
            options = f"signed-by={KEYRING} check-valid-until=no"
            places = ((snapshots[0], ""), (snapshots[0], "-updates"), (snapshots[1], "-security"))
            lines += [f"deb [{options}] {where} {SUITE}{suite} main\n" for where, suite in places]
        with open(os.path.join(self.directory, "sources.list"), "w", encoding="utf-8") as out:
            out.writelines(lines)
        self._run(["apt-get", "update", "--error-on=any"], "fetch Debian's package lists")
        self._updated = True

    def _run(self, argv: Sequence[str], what: str, *, cwd: str | None = None) -> bytes:
        return self.apt.run([argv[0], *self._options(), *argv[1:]], what, cwd=cwd)

    def _options(self) -> list[str]:
        here, arch = self.directory, DEBIAN_ARCHES[self.arch]
        settings = {
            "Dir::State": f"{here}/state",
            "Dir::State::status": f"{here}/status",
            "Dir::Cache": f"{here}/cache",
            "Dir::Etc::sourcelist": f"{here}/sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": arch,
            "APT::Architectures": arch,
            "APT::Default-Release": "",
            "APT::Sandbox::User": "root",  # apt would drop to a user who cannot write below our directory
            "Acquire::Languages": "none",
        }
        return ["-q", *(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))]


@contextmanager
def open_source(
    directory: str, arch: str, origin: Origin | None = None, *, engine: str = ""
) -> Iterator[PackageSource]:
    """Give Debian's packages from wherever they can be had here; state and packages lie below `directory`.

    Args: origin, engine: see origin.open_apt.
    """
    with open_apt(choose_origin(origin), directory, engine=engine) as apt:
        yield PackageSource(directory, arch, apt)


def _describe(path: str) -> Package:
    name, version, _ = deb.identify(path)
    with open(path, "rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    return Package(name, version, path, digest, os.stat(path).st_size)


def _check(package: Package | None, wanted: Input) -> None:
    """Compare a fetched file with what was wanted: in a container, not even its apt has to be trusted for this."""
    if package is None:
        raise InputError("fetch", wanted.name, "apt did not leave it where it was told to")
    for what, is_, should in (
        ("version", package.version, wanted.version),
        ("SHA-256", package.sha256, wanted.sha256 or package.sha256),
    ):
        if is_ != should:
            raise InputError("fetch", wanted.name, f"its {what} is {is_}, {should} was wanted")
