# SPDX-License-Identifier: Apache-2.0
"""`rbuilds kernel make`: a kernel from source, the same bytes wherever it is compiled with the same compiler.

Nothing of the machine gets in: fixed time (with its zone), user, host and build number, an empty environment, our
umask. The result is a cache entry: bzImage, bzImage.config and kernel.json.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from dataclasses import dataclass

import msgspec
from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.base.cache import cache_root, cached, key_of
from enclavekit_rbuilds.base.command import run
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.kernel.config import load_config
from enclavekit_rbuilds.kernel.fragment import check_survived, merge_fragments, our_fragment, render_fragment
from enclavekit_rbuilds.kernel.made import ARCH, CONFIG, ENTRY, IMAGE, RECORD, KernelRecord
from enclavekit_rbuilds.kernel.rules import is_nitro_capable
from enclavekit_rbuilds.kernel.tarball import DEBIAN, Tarball, find_tarball
from enclavekit_rbuilds.kernel.toolchain import Toolchain, open_toolchain

RECIPE = "1"  # part of the cache key: raise it when what is done here makes other bytes
BUILT = "arch/x86/boot/bzImage"
# with a zone: without one it would be read in local time, into the built-in initramfs and so the build id
TIMESTAMP = "Mon Jan  1 00:00:00 UTC 2024"
NAME = "enclavekit"
OBJECTS_PER_LINE = 250  # of progress
COMPILED = re.compile(r"\s+(CC|AS)\s")
WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@+-]*")


@dataclass(frozen=True, slots=True)
class KernelRequest:
    """What to make."""

    source: str = DEBIAN
    """`debian`, an https address, or a file."""
    sha256: str | None = None
    fragments: tuple[str, ...] = ()
    """Files with more options; they win over ours."""
    version: str | None = None
    """What the source has to be."""
    jobs: int | None = None
    """Default: one per processor."""
    engine: str | None = None
    """Container engine to compile with; None: on this machine."""
    user: str = NAME
    host: str = NAME


@dataclass(frozen=True, slots=True)
class MadeKernel:
    """A made kernel in the cache."""

    directory: str
    record: KernelRecord


def make_kernel(request: KernelRequest, progress: Progress) -> MadeKernel:
    """Return the kernel, from the cache or freshly compiled. Raises CommandError, InputError."""
    for what, word in (("user", request.user), ("host", request.host)):
        if not WORD.fullmatch(word):
            raise InputError("use", f"--{what} {word}", "it goes into the kernel's version and has to be a plain name")
    wanted = _wanted(request)
    tarball = find_tarball(request.source, request.sha256, progress)
    base = cache_root()
    try:
        os.makedirs(base, exist_ok=True)
    except OSError as exc:
        raise InputError("use cache directory", base, describe_cause(exc)) from exc
    with open_toolchain(request.engine, base) as toolchain:
        compiler, linker = toolchain.compiler(), toolchain.linker()
        facts = [RECIPE, ARCH, tarball.sha256, render_fragment(wanted), compiler, linker, request.user, request.host]
        directory = cached(
            ENTRY,
            key_of(facts),
            lambda work: _make(work, request, wanted, tarball, toolchain, progress),
        )
    with open(os.path.join(directory, RECORD), "rb") as source:
        record = msgspec.json.decode(source.read(), type=KernelRecord)
    _check_version(record.version, request.version, tarball)
    return MadeKernel(directory, record)


def copy_kernel(made: MadeKernel, target: str) -> list[str]:
    """Write a made kernel's files into the directory `target`, each whole or not at all; return their paths."""
    written = []
    try:
        os.makedirs(target, exist_ok=True)
        for name in (IMAGE, CONFIG, RECORD):
            path = os.path.join(target, name)
            shutil.copyfile(os.path.join(made.directory, name), f"{path}.new")
            os.replace(f"{path}.new", path)
            written.append(path)
    except OSError as exc:
        raise InputError("write kernel into", target, describe_cause(exc)) from exc
    return written


def _wanted(request: KernelRequest) -> dict[str, str]:
    wanted = merge_fragments([our_fragment(ARCH)])
    for path in request.fragments:
        wanted.update(load_config(path).options)
    return wanted


def _check_version(found: str, wanted: str | None, tarball: Tarball) -> None:
    if wanted is not None and found != wanted:
        reason = f"it is {found}, {wanted} was asked for; --source and --sha256 name another one"
        raise InputError("use kernel source", tarball.name, reason)


def _make(
    work: str,
    request: KernelRequest,
    wanted: dict[str, str],
    tarball: Tarball,
    toolchain: Toolchain,
    progress: Progress,
) -> None:
    tree = os.path.join(work, "tree")
    os.mkdir(tree)
    with progress.step(f"unpacked {tarball.name}"):
        argv = ["tar", "-x", "--no-same-owner", "--strip-components=1", "-C", tree, "-f", os.path.abspath(tarball.path)]
        run(argv, f"unpack {tarball.name}")
    env = _environment(request)
    make = ["make", "-C", tree, f"ARCH={ARCH}"]
    if not os.path.isfile(os.path.join(tree, "Kconfig")):
        raise InputError("use kernel source", tarball.name, "it is no source of Linux: there is no Kconfig in it")
    version = toolchain.run([*make, "-s", "kernelversion"], "ask the source for its version", env).strip()
    _check_version(version, request.version, tarball)
    with progress.step(f"configuration of {len(wanted)} options"):
        _configure(tree, make, wanted, toolchain, env)
    progress.note(f"Linux {version} is compiled {toolchain.what}; about six minutes on two idle cores")
    _compile(make, request, toolchain, env, progress)
    for built, name in ((BUILT, IMAGE), (".config", CONFIG)):
        os.rename(os.path.join(tree, built), os.path.join(work, name))
        os.chmod(os.path.join(work, name), 0o644)
    record = KernelRecord(
        version=version,
        arch=ARCH,
        sha256=_hash(os.path.join(work, IMAGE)),
        source=tarball.name,
        source_sha256=tarball.sha256,
        config_sha256=_hash(os.path.join(work, CONFIG)),
        fragment_sha256=hashlib.sha256(render_fragment(wanted).encode()).hexdigest(),
        compiler=toolchain.compiler(),
        linker=toolchain.linker(),
        user=request.user,
        host=request.host,
        nitro_capable=is_nitro_capable(load_config(os.path.join(work, CONFIG))),
    )
    with open(os.path.join(work, RECORD), "wb") as out:
        out.write(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
    shutil.rmtree(tree)


def _environment(request: KernelRequest) -> dict[str, str]:
    return {
        "TZ": "UTC",
        "KBUILD_BUILD_TIMESTAMP": TIMESTAMP,
        "KBUILD_BUILD_USER": request.user,
        "KBUILD_BUILD_HOST": request.host,
        "KBUILD_BUILD_VERSION": "1",
    }


def _configure(tree: str, make: list[str], wanted: dict[str, str], toolchain: Toolchain, env: dict[str, str]) -> None:
    """Write `.config`: as little as possible, then what is wanted; check that all of it is there."""
    path = os.path.join(tree, ".config")
    toolchain.run([*make, "-s", "tinyconfig"], "configure the kernel", env)
    with open(path, "a", encoding="utf-8") as out:
        out.write(render_fragment(wanted))
    toolchain.run([*make, "-s", "olddefconfig"], "configure the kernel", env)
    check_survived(wanted, load_config(path))


def _compile(
    make: list[str], request: KernelRequest, toolchain: Toolchain, env: dict[str, str], progress: Progress
) -> None:
    started, count = time.monotonic(), 0

    def on_line(line: str) -> None:
        nonlocal count
        if COMPILED.match(line):
            count += 1
            if count % OBJECTS_PER_LINE == 0:
                progress.done(f"{count} files compiled", time.monotonic() - started)

    jobs = request.jobs or len(os.sched_getaffinity(0))
    toolchain.run([*make, f"-j{jobs}", "bzImage"], "compile the kernel", env, on_line=on_line)
    progress.done(f"compiled the kernel: {count} files", time.monotonic() - started)


def _hash(path: str) -> str:
    with open(path, "rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
