# SPDX-License-Identifier: Apache-2.0
"""Content-addressed cache of build results: each is made once, under a lock, and appears whole or not at all.

<root>/NAME-KEY/        an entry; its modification time is when it was last used
<root>/NAME-KEY.lock    held exclusively by who makes or removes the entry, shared by who reads it
<root>/.tmp-NAME-KEY-*  being made, or left by somebody who was killed
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from enclavekit_core.errors import InputError, describe_cause

KEY_HEX_DIGITS = 24  # 96 bits: nobody can search for a second input with the same key in a cache of one's own
READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
ENTRY = re.compile(rf"(?P<name>[a-z0-9][a-z0-9-]*)-(?P<key>[0-9a-f]{{{KEY_HEX_DIGITS}}})")


@dataclass(frozen=True, slots=True)
class CacheUse:
    """One call of `cached`: what was asked for and whether it had to be made."""

    name: str
    key: str
    path: str
    made: bool


class NotCachedError(Exception):
    """Raised by `cached` inside `only_look`: the entry would have to be made."""

    def __init__(self, name: str, key: str) -> None:
        self.name, self.key = name, key
        super().__init__(f"{name}-{key} is not in the cache")


_uses: ContextVar[list[CacheUse] | None] = ContextVar("cache_uses", default=None)
_looking: ContextVar[bool] = ContextVar("cache_only_look", default=False)


@contextmanager
def record_uses() -> Iterator[list[CacheUse]]:
    """Collect what is taken from the cache meanwhile, in its order."""
    uses: list[CacheUse] = []
    token = _uses.set(uses)
    try:
        yield uses
    finally:
        _uses.reset(token)


@contextmanager
def only_look() -> Iterator[None]:
    """Make nothing meanwhile: `cached` raises NotCachedError for what is not there."""
    token = _looking.set(True)
    try:
        yield
    finally:
        _looking.reset(token)


def is_only_looking() -> bool:
    """Whether nothing may be made or fetched now: for steps that do more than call `cached`."""
    return _looking.get()


def cache_root() -> str:
    """Return `$XDG_CACHE_HOME/enclavekit` or `~/.cache/enclavekit`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "enclavekit")


def key_of(parts: Iterable[str | bytes]) -> str:
    """Return the key of an input: the hash over its parts, each with its length so that they cannot run together."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()[:KEY_HEX_DIGITS]


def cached(name: str, key: str, make: Callable[[str], None], *, root: str | None = None) -> str:
    """Return the directory `<root>/<name>-<key>`, made by `make(directory)` if it is not there.

    `make` fills an empty directory, which is then renamed into place: whoever is killed half-way leaves only a
    `.tmp-*` directory, removed by the next build that holds the lock. Two builds at once wait for each other.
    """
    base = root or cache_root()
    final = os.path.join(base, f"{name}-{key}")
    if os.path.isdir(final):
        _touch(final)
        return _used(name, key, final, made=False)
    if _looking.get():
        raise NotCachedError(name, key)
    try:
        os.makedirs(base, mode=0o755, exist_ok=True)
        with _locked(f"{final}.lock"):
            if os.path.isdir(final):  # made while we waited
                return _used(name, key, final, made=False)
            _remove_leftovers(base, f".tmp-{name}-{key}-")
            work = tempfile.mkdtemp(prefix=f".tmp-{name}-{key}-", dir=base)
            try:
                make(work)
                os.chmod(work, 0o755)  # noqa: S103 - holds public packages; mkdtemp made it 0700
                os.rename(work, final)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
    except OSError as exc:
        raise InputError("use cache directory", base, describe_cause(exc)) from exc
    return _used(name, key, final, made=True)


@contextmanager
def hold(path: str) -> Iterator[bool]:
    """Keep the entry at `path` from being removed meanwhile; gives False if it has gone already.

    A cache that may only be read is somebody else's to evict from; nothing can be held there.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(_locked(f"{path}.lock", fcntl.LOCK_SH))
        except OSError as exc:
            if exc.errno not in READ_ONLY:
                raise InputError("use cache entry", path, describe_cause(exc)) from exc
        yield os.path.isdir(path)


def remove_entry(path: str) -> bool:
    """Remove the cache entry at `path`; False if somebody makes or reads it just now."""
    base, entry = os.path.split(path)
    try:
        with _locked(f"{path}.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
            doomed = tempfile.mkdtemp(prefix=f".tmp-{entry}-", dir=base)  # renamed first: nobody sees half of it
            if os.path.isdir(path):
                os.rename(path, os.path.join(doomed, "entry"))
            shutil.rmtree(doomed)
            os.unlink(f"{path}.lock")
    except BlockingIOError:
        return False
    except OSError as exc:
        raise InputError("remove cache entry", path, describe_cause(exc)) from exc
    return True


def sweep(root: str | None = None) -> None:
    """Remove what killed builds left half-made. What a living one is making is locked, and stays."""
    base = root or cache_root()
    if not os.path.isdir(base):
        return
    for item in os.listdir(base):
        entry = ENTRY.match(item.removeprefix(".tmp-"))
        if not item.startswith(".tmp-") or entry is None:
            continue
        try:
            with _locked(os.path.join(base, f"{entry[0]}.lock"), fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(os.path.join(base, item), ignore_errors=True)
        except OSError:
            pass  # being made just now, or not ours to remove: neither stops a build


def _used(name: str, key: str, path: str, *, made: bool) -> str:
    uses = _uses.get()
    if uses is not None:
        uses.append(CacheUse(name, key, path, made))
    return path


def _touch(path: str) -> None:
    try:
        os.utime(path)
    except OSError:
        pass  # a cache that is shared read-only keeps no times


def _remove_leftovers(base: str, prefix: str) -> None:
    for stale in os.listdir(base):
        if stale.startswith(prefix):
            shutil.rmtree(os.path.join(base, stale), ignore_errors=True)


@contextmanager
def _locked(path: str, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold the lock file at `path`, made if need be. Raises BlockingIOError with LOCK_NB."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, how)
            if _is_at(descriptor, path):  # else whoever held it before has removed it: a lock on nothing
                yield
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
