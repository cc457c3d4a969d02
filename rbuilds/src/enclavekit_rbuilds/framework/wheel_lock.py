# SPDX-License-Identifier: Apache-2.0
"""Renew the lock of the framework's Python packages: `python -m enclavekit_rbuilds.framework.wheel_lock > FILE`.

pip resolves for Debian's Python 3.11 on both architectures; nothing is downloaded but metadata. A new lock changes PCR1
of every image, so this is run by people, never by a build.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources

from enclavekit_core.cli import run_and_exit
from enclavekit_core.errors import InputError

from enclavekit_rbuilds.base.command import run

PLATFORM_TAGS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28")  # bookworm has glibc 2.36
ARCHES = ("x86_64", "aarch64")
# what the services in an enclave import
DIRECT = (
    "aiohttp",
    "blake3",
    "cbor2",
    "cryptography",
    "dnspython",
    "h11",
    "msgspec",
    "nats-py",
    "pathspec",
    "PyNaCl",
    "PyYAML",
    "structlog",
    "uvloop",
    "watchdog",
)
UNUSED = {"pycparser"}  # cffi asks for it, but only to compile, which nothing in an enclave does
HEADER = """\
# Python packages of the framework, with the hashes of their wheels for x86_64 and aarch64.
# Renewed by `python -m enclavekit_rbuilds.framework.wheel_lock`; a change here changes PCR1 of every image.
# `needs` lines: of the packages here, those that the next one imports; what a service needs follows from them.
"""
ENTRY = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9.-]*)==(?P<version>[A-Za-z0-9.+!]+)(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)"
)


@dataclass(frozen=True, slots=True)
class LockedWheel:
    """One package of the lock."""

    name: str
    version: str
    sha256s: tuple[str, ...]
    """Of its wheels, one per architecture or one for all."""
    needs: tuple[str, ...] = ()

    def line(self) -> str:
        """Return it as pip wants it in a requirements file."""
        return " ".join([f"{self.name}=={self.version}", *(f"--hash=sha256:{digest}" for digest in self.sha256s)])


def lock_text() -> str:
    """Return the lock file of the third-party packages, in pip's requirements format with hashes."""
    return resources.files("enclavekit_rbuilds").joinpath("data/framework.lock").read_text("utf-8")


def parse_lock(text: str) -> dict[str, LockedWheel]:
    """Return the packages of a lock by name. Raises InputError."""
    found: dict[str, LockedWheel] = {}
    needs: tuple[str, ...] = ()
    for line in text.replace(" \\\n   ", "").splitlines():
        if line.startswith("# needs "):
            needs = tuple(line.split()[2:])
        elif line and not line.startswith("#"):
            entry = ENTRY.fullmatch(line)
            if entry is None:
                raise InputError("read", "framework.lock", f"this is no package with hashes: {line[:60]}")
            digests = tuple(re.findall(r"sha256:([0-9a-f]{64})", entry["hashes"]))
            found[entry["name"]] = LockedWheel(entry["name"], entry["version"], digests, needs)
            needs = ()
    for wheel in found.values():
        if missing := set(wheel.needs) - set(found):
            raise InputError("read", "framework.lock", f"{wheel.name} needs {min(missing)}, which is not there")
    return found


def locked_wheels() -> dict[str, LockedWheel]:
    """Return the packages of our lock by name."""
    return parse_lock(lock_text())


def needs_of(requirements: Iterable[str], known: Iterable[str]) -> tuple[str, ...]:
    """Return which of `known` the lines of a package's Requires-Dist name, optional extras apart."""
    names = {
        re.split(r"[^A-Za-z0-9._-]", line.strip(), maxsplit=1)[0] for line in requirements if "extra ==" not in line
    }
    return tuple(sorted({re.sub(r"[-_.]+", "-", name).lower() for name in names} & set(known)))


def resolve(arch: str) -> dict[str, LockedWheel]:
    """Return the wheels for `arch` by name. Raises CommandError."""
    tags = [word for tag in PLATFORM_TAGS for word in ("--platform", f"{tag}_{arch}")]
    argv = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"),
        *("--ignore-installed", "--report", "-", "--target", "unused", "--only-binary", ":all:"),
        *("--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--abi", "abi3", "--abi", "none"),
        *tags,
        *DIRECT,
    ]
    report = json.loads(run(argv, f"resolve the framework's packages for {arch}"))
    items = {item["metadata"]["name"].lower().replace("_", "-"): item for item in report["install"]}
    known = set(items) - UNUSED
    return {
        name: LockedWheel(
            name,
            items[name]["metadata"]["version"],
            (items[name]["download_info"]["archive_info"]["hashes"]["sha256"],),
            needs_of(items[name]["metadata"].get("requires_dist", ()), known - {name}),
        )
        for name in sorted(known)
    }


def render(by_arch: list[dict[str, LockedWheel]]) -> str:
    """Return the lock file. Raises InputError if the architectures need different versions."""
    if len({frozenset((wheel.name, wheel.version, wheel.needs) for wheel in found.values()) for found in by_arch}) != 1:
        raise InputError("lock", "the framework's packages", "the architectures have wheels of different versions")
    lines = [HEADER]
    for name, wheel in sorted(by_arch[0].items()):
        hashes = dict.fromkeys(digest for found in by_arch for digest in found[name].sha256s)
        if wheel.needs:
            lines.append(f"# needs {' '.join(wheel.needs)}")
        words = [f"{name}=={wheel.version}", *(f"--hash=sha256:{digest}" for digest in hashes)]
        lines.append(" \\\n    ".join(words))
    return "\n".join(lines) + "\n"


def _print_lock() -> int:
    sys.stdout.write(render([resolve(arch) for arch in ARCHES]))
    return 0


if __name__ == "__main__":
    run_and_exit("wheel_lock", _print_lock)
