# SPDX-License-Identifier: Apache-2.0
"""The step `app-source`: find out by content what the app is, before anything is unpacked.

archive      SHA-256 of the file
Dockerfile   digest of the image that the engine has built; the engine's own cache decides what that costs
directory    fingerprint of every entry's status, which is fast, and holds on this machine only
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass
from typing import Literal

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.app.container import BuiltImage, built_image, choose_engine
from enclavekit_rbuilds.base.cache import NotCachedError, is_only_looking
from enclavekit_rbuilds.plan.steps import Product, Step

# of the clock that file systems take their times from; a change within one tick of another has the same time
CLOCK_TICK_NS = 20_000_000


@dataclass(frozen=True, slots=True)
class Source:
    """An app, found but not read."""

    kind: Literal["archive", "dockerfile", "rootfs"]
    name: str
    """As people call it: the path they gave."""
    path: str
    """Of the archive or the directory; empty for an image that is still in its engine."""
    digest: str
    """`sha256:...`; of a directory, its fingerprint."""
    image: BuiltImage | None = None


def source_step(
    scope: contextlib.ExitStack,
    *,
    dockerfile: str | None,
    context: str | None,
    engine: str,
    archive: str | None,
    rootfs: str | None,
    fresh: bool = False,
    build_args: tuple[str, ...] = (),
    target: str = "",
    arch: str = "",
) -> Step:
    """Return the step; exactly one of the three sources is set. An engine keeps its image as long as `scope`."""

    def find() -> Source:
        if rootfs is not None:
            return Source("rootfs", rootfs, rootfs, f"stat:{fingerprint(rootfs)}")
        if archive is not None:
            digest = f"stat:{fingerprint(archive)}" if os.path.isdir(archive) else f"sha256:{hash_file(archive)}"
            return Source("archive", archive, archive, digest)
        assert dockerfile is not None, "the command line asks for exactly one source"
        chosen = choose_engine(engine)
        if not os.path.isfile(dockerfile):
            raise InputError("read", dockerfile, "there is no such file")
        if is_only_looking():
            raise NotCachedError("app-source", "")  # only building it tells
        where = context or os.path.dirname(os.path.abspath(dockerfile))
        built = built_image(dockerfile, where, chosen, build_args=build_args, target=target, arch=arch, fresh=fresh)
        image = scope.enter_context(built)
        return Source("dockerfile", dockerfile, "", image.digest, image)

    def make(_: object) -> Product:
        found = find()
        return Product(found, found.digest, "checked")

    given = rootfs or archive or dockerfile or ""
    kind = "directory" if rootfs else "archive" if archive else "Dockerfile"
    return Step("app-source", f"{kind} {given}", (), (given, context or "", engine, *build_args, target, arch), make)


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file in hexadecimal. Raises InputError."""
    try:
        with open(path, "rb") as source:
            return hashlib.file_digest(source, "sha256").hexdigest()
    except OSError as exc:
        raise InputError("read", path, describe_cause(exc)) from exc


def fingerprint(root: str) -> str:
    """Return a hash over the status of everything below `root`: what it is, whose, how large, and when it changed.

    The time of change is the kernel's: no program sets it back, as it may the time of modification. Two changes within
    one tick of the clock have one time, so a directory that has only just changed is looked at once that tick is over.
    Raises: InputError.
    """
    digest, newest = _scan(root)
    age = time.time_ns() - newest
    if 0 <= age < CLOCK_TICK_NS:
        time.sleep((CLOCK_TICK_NS - age) / 1e9)
        digest, _ = _scan(root)
    return digest


def _scan(root: str) -> tuple[str, int]:
    digest, newest = hashlib.sha256(), 0
    top = os.fsencode(root)
    pending, here = [top], top
    try:
        if not os.path.isdir(top):
            raise InputError("read", root, "it is not a directory" if os.path.exists(top) else "there is none")
        while pending:
            here = pending.pop()
            for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
                info = entry.stat(follow_symlinks=False)
                newest = max(newest, info.st_ctime_ns)
                numbers = (info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
                name = entry.path[len(top) :]
                digest.update(b"%d %r %d %d " % (len(name), numbers, info.st_dev, info.st_ino) + name)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    except OSError as exc:
        raise InputError("read", os.fsdecode(exc.filename or here), describe_cause(exc)) from exc
    return digest.hexdigest(), newest
