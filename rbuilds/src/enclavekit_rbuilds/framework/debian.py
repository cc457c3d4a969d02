# SPDX-License-Identifier: Apache-2.0
"""Debian packages without root and without touching the machine: fetched by apt, checked by its signatures.

apt gets a state directory of its own, so the machine's suite, versions and architecture do not matter, only the mirror
that it uses; packages are unpacked by dpkg-deb, never installed, and no maintainer script runs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.base.command import run

SUITE = "bookworm"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR_VARIABLE = "ENCLAVEKIT_DEBIAN_MIRROR"
DEBIAN_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
MACHINE_TRIPLETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
NEEDS = "it fetches Debian packages (Debian or Ubuntu: apt, dpkg, debian-archive-keyring)"


def find_mirrors(named: str | None) -> tuple[str, str]:
    """Return the addresses of Debian's archive and of its security archive.

    Args:
        named: what they are below, e.g. the `http://HOST` of `http://HOST/debian`; without it, what this machine's apt
            uses. Which mirror it is decides nothing: apt verifies Debian's signatures.
    Raises:
        InputError if this machine's apt knows no Debian mirror.
    """
    if named:
        base = named.rstrip("/")
        return f"{base}/debian", f"{base}/debian-security"
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"]
    known = [line.strip("/ ") for line in run(argv, "read apt's sources", needed_for=NEEDS).decode().splitlines()]
    archive = next((uri for uri in known if uri.endswith("/debian")), None)
    if archive is None:
        reason = f"apt on this machine knows no Debian mirror; name one with {MIRROR_VARIABLE}=http://HOST"
        raise InputError("fetch", "Debian packages", reason)
    return archive, next((uri for uri in known if uri.endswith("/debian-security")), f"{archive}-security")


@dataclass(frozen=True, slots=True)
class Package:
    """One fetched package."""

    name: str
    version: str
    path: str
    """The .deb file."""


class PackageSource:
    """Debian's `SUITE` with its security updates, as `arch` sees it; keeps its state below `directory`."""

    def __init__(self, directory: str, arch: str) -> None:
        self.directory, self.arch = directory, arch
        self._updated = False

    def fetch(self, names: Sequence[str]) -> list[Package]:
        """Download the candidate version of each package. Raises CommandError, InputError."""
        self._update()
        target = os.path.join(self.directory, "debs")
        os.makedirs(target, exist_ok=True)
        before = set(os.listdir(target))
        run(self._apt("apt-get", "download", *names), "fetch Debian packages", cwd=target, needed_for=NEEDS)
        return sorted(
            (self._describe(os.path.join(target, name)) for name in set(os.listdir(target)) - before),
            key=lambda package: package.name,
        )

    def dependencies(self, name: str) -> list[str]:
        """Return the names that package `name` depends on."""
        self._update()
        argv = self._apt("apt-cache", "depends", "--no-recommends", "--no-suggests", name)
        lines = run(argv, f"read dependencies of {name}", needed_for=NEEDS).decode().splitlines()
        return [line.split(":", 1)[1].strip() for line in lines if line.strip().startswith("Depends:")]

    def _update(self) -> None:
        if self._updated:
            return
        if not os.path.exists(KEYRING):
            raise InputError("fetch", "Debian packages", f"{KEYRING} is missing; install debian-archive-keyring")
        for part in ("state/lists/partial", "cache/archives/partial"):
            os.makedirs(os.path.join(self.directory, part), exist_ok=True)
        with open(os.path.join(self.directory, "status"), "w"):
            pass
        archive, security = find_mirrors(os.environ.get(MIRROR_VARIABLE))
        with open(os.path.join(self.directory, "sources.list"), "w", encoding="utf-8") as out:
            for where, suite in ((archive, ""), (archive, "-updates"), (security, "-security")):
                out.write(f"deb [signed-by={KEYRING}] {where} {SUITE}{suite} main\n")
        run(self._apt("apt-get", "update", "--error-on=any"), "fetch Debian's package lists", needed_for=NEEDS)
        self._updated = True

    def _apt(self, program: str, *words: str) -> list[str]:
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
        options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
        return [program, "-q", *options, *words]

    def _describe(self, path: str) -> Package:
        form = "${Package}\t${Version}"
        words = run(["dpkg-deb", "--show", f"--showformat={form}", path], f"read package {os.path.basename(path)}")
        name, _, version = words.decode().partition("\t")
        return Package(name, version, path)
