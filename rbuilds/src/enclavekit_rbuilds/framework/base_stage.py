# SPDX-License-Identifier: Apache-2.0
"""The framework's base: everything in it that comes from outside, Debian's files and the locked wheels, compiled.

A base is a directory in the cache:
root/        the files
base.json    what it was made of, and how many bytes each part takes

It is known by what was asked for: the names of the packages and the lock of the wheels; with a lock file, the very
packages. One that was imported takes the same place, so that a build finds it and fetches nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from tempfile import TemporaryDirectory

import msgspec
from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.base.cache import cache_root, cached, key_of, remove_entry
from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.framework import archive, bytecode, python_packages, runtime_root
from enclavekit_rbuilds.framework.archive import BaseRecord
from enclavekit_rbuilds.framework.closure import ALL_SERVICES, EGRESS, EGRESS_IPTABLES, QUIC, Closure, closure_of
from enclavekit_rbuilds.framework.debian import SUITE, open_source
from enclavekit_rbuilds.framework.origin import Origin, choose_origin
from enclavekit_rbuilds.framework.wheel_lock import LockedWheel, locked_wheels

RECIPE = "2"  # part of the cache keys: raise it when the code here or in the modules it calls makes other files
RECORD = "base.json"


@dataclass(frozen=True, slots=True)
class Base:
    """A base in the cache."""

    path: str
    """Of the entry."""
    record: BaseRecord

    @property
    def root(self) -> str:
        return os.path.join(self.path, "root")

    @property
    def digest(self) -> str:
        """What it is by content, as far as its inputs say it."""
        return key_of(
            [self.record.recipe, self.record.suite, self.record.arch, msgspec.json.encode(self.record.inputs)]
        )


@dataclass(frozen=True, slots=True)
class BaseWish:
    """What a base is to hold."""

    arch: str
    debian: tuple[str, ...]
    wheels: tuple[LockedWheel, ...]

    def key(self, pins: Mapping[str, Input] | None = None) -> str:
        """Return the key in the cache."""
        parts: list[str | bytes] = [RECIPE, SUITE, self.arch, *self.debian, *(wheel.line() for wheel in self.wheels)]
        if pins is not None:
            parts.append(msgspec.json.encode([pins.get(name) for name in self.debian]))
        return key_of(parts)


def wish_for(arch: str, services: Collection[str]) -> BaseWish:
    """Return what a base for `services` holds."""
    wheels = locked_wheels()
    return wish_of(arch, closure_of(services, wheels), wheels)


def wish_of(arch: str, closure: Closure, wheels: Mapping[str, LockedWheel]) -> BaseWish:
    """Return what a base for a closure holds."""
    return BaseWish(arch, runtime_root.packages_for(closure.debian), tuple(wheels[name] for name in closure.wheels))


def find_base(
    wish: BaseWish,
    progress: Progress,
    *,
    pins: Mapping[str, Input] | None = None,
    origin: Origin | None = None,
    engine: str = "",
) -> Base:
    """Return a base from the cache, or make it.

    Args:
        pins: Debian package -> the very package; None takes what the mirror offers.
        origin: where to take it from; None: whatever works here. What the cache has is used in any case, unless an
            archive is named.
        engine: container engine; empty: the first that works.
    Raises: CommandError, InputError.
    """
    if origin is not None and origin.kind == "archive":
        base = read_base(cached("base", key_of(["archive", origin.sha256]), lambda work: _unpack(work, origin)))
        check_base(base.record, wish, origin.path)
        check_pins(base.record, pins)
        return base
    if pins is not None:
        unpinned = os.path.join(cache_root(), f"base-{wish.key()}")
        if os.path.isdir(unpinned) and _fits(read_base(unpinned).record, pins):
            pins = None
    return read_base(cached("base", wish.key(pins), lambda work: make_base(work, wish, progress, pins, origin, engine)))


def make_base(
    work: str,
    wish: BaseWish,
    progress: Progress,
    pins: Mapping[str, Input] | None = None,
    origin: Origin | None = None,
    engine: str = "",
) -> None:
    """Make a base in the empty directory `work`. Raises CommandError, InputError."""
    scratch, root = os.path.join(work, "scratch"), os.path.join(work, "root")
    os.makedirs(os.path.join(scratch, "apt"))
    os.mkdir(root)
    chosen = choose_origin(origin)
    with open_source(os.path.join(scratch, "apt"), wish.arch, chosen, engine=engine) as source:
        progress.note(f"the framework's Debian packages come from {source.apt.what}")
        packages = source.fetch(wish.debian, pins)
    owners = runtime_root.write_runtime_root(packages, root, wish.arch)
    owners = {path: f"debian/{name}" for path, name in owners.items()}
    wheels, paths = python_packages.install_wheels(wish.wheels, root, wish.arch, scratch)
    owners |= {path: f"wheel/{name}" for path, name in paths.items()}
    bytecode.compile_modules(root, wish.arch, ("usr/lib/python3.11", python_packages.SITE))
    inputs = (*(package.as_input() for package in packages), *wheels)
    record = BaseRecord(RECIPE, SUITE, wish.arch, chosen.kind, inputs, sizes_by_part(root, owners))
    write_record(work, record)
    shutil.rmtree(scratch)


def import_base(path: str, sha256: str) -> tuple[Base, list[list[str]]]:
    """Take an exported base into the cache, where builds that want it look first.

    Returns: the base, and the lists of services that it serves.
    Raises: InputError; then the cache is as it was, but for one case: what was there before is removed first.
    """
    archive.check_hash(path, sha256)
    record = archive.read_manifest(path).record
    served: dict[str, list[list[str]]] = {}
    wish = None
    for services in service_lists():
        one = wish_for(record.arch, services)
        try:
            check_base(record, one, path)
        except InputError:
            continue
        wish = one
        served.setdefault(one.key(), []).append(services)
    if wish is None:
        check_base(record, wish_for(record.arch, ALL_SERVICES), path)  # says what is wrong with it
        raise InputError("use framework", path, "no choice of services has just these packages")
    origin = Origin("archive", path=path, sha256=sha256)
    kept = cached("base", key_of(["archive", sha256]), lambda work: _unpack(work, origin))
    base = read_base(kept)
    final = os.path.join(cache_root(), f"base-{wish.key()}")
    if os.path.isdir(final) and read_base(final).record != base.record and not remove_entry(final):
        raise InputError("import framework", path, "a build uses the one that it would replace; try again after it")
    made = cached("base", wish.key(), lambda work: _copy(kept, work))
    return read_base(made), served[wish.key()]


def service_lists() -> list[list[str]]:
    """Return every choice of services, the largest first; what ingress needs changes no base."""
    names = sorted({*ALL_SERVICES, EGRESS, EGRESS_IPTABLES, QUIC})
    choices = [chosen for size in range(len(names), -1, -1) for chosen in combinations(names, size)]
    return [list(chosen) for chosen in choices if QUIC not in chosen or {EGRESS, EGRESS_IPTABLES}.intersection(chosen)]


def _copy(kept: str, work: str) -> None:
    shutil.copytree(os.path.join(kept, "root"), os.path.join(work, "root"), symlinks=True, copy_function=_link)
    shutil.copyfile(os.path.join(kept, RECORD), os.path.join(work, RECORD))


def _link(source: str, target: str) -> str:
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
    else:
        os.link(source, target)  # nobody writes to what the cache holds
    return target


def candidates(wish: BaseWish, *, origin: Origin | None = None, engine: str = "") -> dict[str, Input]:
    """Return the Debian packages that the mirror offers now, by name. Raises CommandError, InputError."""
    with (
        TemporaryDirectory(prefix="enclavekit-apt-") as directory,
        open_source(directory, wish.arch, origin, engine=engine) as source,
    ):
        return source.candidates(wish.debian)


def sizes_by_part(root: str, owners: Mapping[str, str], rest: str = "system") -> dict[str, int]:
    """Return part -> bytes of its files below `root`; compiled modules belong to their source's part."""
    sizes: dict[str, int] = {}
    for where, _, names in os.walk(root):
        inside = os.path.relpath(where, root)
        for name in names:
            path = os.path.normpath(os.path.join(inside, name))
            if os.path.basename(inside) == "__pycache__":
                path = os.path.normpath(os.path.join(inside, "..", f"{name.partition('.')[0]}.py"))
            part = owners.get(path, rest)
            sizes[part] = sizes.get(part, 0) + os.lstat(os.path.join(where, name)).st_size
    return dict(sorted(sizes.items()))


def read_base(path: str) -> Base:
    """Return the base in a cache entry. Raises InputError."""
    try:
        with open(os.path.join(path, RECORD), "rb") as source:
            return Base(path, msgspec.json.decode(source.read(), type=BaseRecord))
    except OSError as exc:
        raise InputError("read", os.path.join(path, RECORD), describe_cause(exc)) from exc
    except msgspec.DecodeError as exc:
        raise InputError("read", os.path.join(path, RECORD), str(exc)) from exc


def write_record(work: str, record: BaseRecord) -> None:
    """Write what an entry is made of."""
    with open(os.path.join(work, RECORD), "wb") as out:
        out.write(msgspec.json.encode(record))


def check_base(record: BaseRecord, wish: BaseWish, source: str) -> None:
    """Compare a base from outside with what is wanted. Raises InputError, which names `source`."""

    def refuse(reason: str) -> InputError:
        return InputError("use framework", source, reason)

    for what, is_, should in (
        ("recipe", record.recipe, RECIPE),
        ("suite", record.suite, SUITE),
        ("architecture", record.arch, wish.arch),
    ):
        if is_ != should:
            raise refuse(f"its {what} is {is_}, {should} is wanted")
    found = {(one.kind, one.name): one for one in record.inputs}
    wanted = {*(("debian", name) for name in wish.debian), *(("wheel", wheel.name) for wheel in wish.wheels)}
    if missing := sorted(wanted - set(found)):
        raise refuse(f"it has no {missing[0][1]}, which the services need; they must be those it was exported for")
    if spare := sorted(set(found) - wanted):
        raise refuse(f"it has {spare[0][1]}, which no service here needs; they must be those it was exported for")
    for wheel in wish.wheels:
        one = found["wheel", wheel.name]
        if one.version != wheel.version or one.sha256 not in wheel.sha256s:
            raise refuse(f"its {wheel.name} {one.version} is not that of framework.lock, {wheel.version}")


def check_pins(record: BaseRecord, pins: Mapping[str, Input] | None) -> None:
    """Compare a base that is there with a lock. Raises InputError."""
    for one in record.inputs if pins is not None else ():
        if one.kind == "debian" and (pin := (pins or {}).get(one.name)) != one:
            locked = f"{pin.version} ({pin.sha256[:12]}) in rbuilds.lock" if pin else "not in rbuilds.lock"
            reason = f"{one.name} is {locked}, {one.version} ({one.sha256[:12]}) in the archive"
            raise InputError("build", "the framework", reason)


def _fits(record: BaseRecord, pins: Mapping[str, Input]) -> bool:
    return all(pins.get(one.name) == one for one in record.inputs if one.kind == "debian")


def _unpack(work: str, origin: Origin) -> None:
    write_record(work, archive.unpack_archive(origin.path, origin.sha256, os.path.join(work, "root")))


def by_name(inputs: Sequence[Input]) -> dict[str, Input]:
    """Return the Debian packages among `inputs` by name."""
    return {one.name: one for one in inputs if one.kind == "debian"}
