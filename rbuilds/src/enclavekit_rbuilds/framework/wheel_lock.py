# SPDX-License-Identifier: Apache-2.0
"""Renew the lock of the framework's Python packages: `python -m enclavekit_rbuilds.framework.wheel_lock > FILE`.

pip resolves for Debian's Python 3.11 on both architectures; nothing is downloaded but metadata. A new lock changes PCR1
of every image, so this is run by people, never by a build.
"""

from __future__ import annotations

import json
import sys

from enclavekit_core.cli import run_and_exit
from enclavekit_core.errors import InputError

from enclavekit_rbuilds.base.command import run
from enclavekit_rbuilds.framework.python_packages import PLATFORM_TAGS

ARCHES = ("x86_64", "aarch64")
# what the services in an enclave import
DIRECT = ("aiohttp", "cbor2", "cryptography", "msgspec", "nats-py", "PyYAML", "structlog", "uvloop", "watchdog")
UNUSED = {"pycparser"}  # cffi asks for it, but only to compile, which nothing in an enclave does
HEADER = """\
# Python packages of the framework, with the hashes of their wheels for x86_64 and aarch64.
# Renewed by `python -m enclavekit_rbuilds.framework.wheel_lock`; a change here changes PCR1 of every image.
"""


def resolve(arch: str) -> dict[tuple[str, str], str]:
    """Return (name, version) -> sha256 of the wheel for `arch`. Raises CommandError."""
    tags = [word for tag in PLATFORM_TAGS for word in ("--platform", f"{tag}_{arch}")]
    argv = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--dry-run"),
        *("--ignore-installed", "--report", "-", "--target", "unused", "--only-binary", ":all:"),
        *("--implementation", "cp", "--python-version", "3.11", "--abi", "cp311", "--abi", "abi3", "--abi", "none"),
        *tags,
        *DIRECT,
    ]
    report = json.loads(run(argv, f"resolve the framework's packages for {arch}"))
    found = {}
    for item in report["install"]:
        name = item["metadata"]["name"].lower().replace("_", "-")
        if name not in UNUSED:
            found[name, item["metadata"]["version"]] = item["download_info"]["archive_info"]["hashes"]["sha256"]
    return found


def render(by_arch: list[dict[tuple[str, str], str]]) -> str:
    """Return the lock file. Raises InputError if the architectures need different versions."""
    if len({frozenset(found) for found in by_arch}) != 1:
        raise InputError("lock", "the framework's packages", "the architectures have wheels of different versions")
    lines = [HEADER]
    for key in sorted(by_arch[0]):
        hashes = dict.fromkeys(found[key] for found in by_arch)
        words = [f"{key[0]}=={key[1]}", *(f"--hash=sha256:{digest}" for digest in hashes)]
        lines.append(" \\\n    ".join(words))
    return "\n".join(lines) + "\n"


def _print_lock() -> int:
    sys.stdout.write(render([resolve(arch) for arch in ARCHES]))
    return 0


if __name__ == "__main__":
    run_and_exit("wheel_lock", _print_lock)
