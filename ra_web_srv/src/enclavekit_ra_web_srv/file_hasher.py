# SPDX-License-Identifier: Apache-2.0
"""Hashes of files as they are now: computed in threads, once for all who ask, and kept while the file stands still."""

from __future__ import annotations

import asyncio
import collections
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from enclavekit_core.errors import EnclavekitError
from enclavekit_core.file_hash import FileHash, hash_open_file, open_beneath, open_regular, signature_of

from enclavekit_ra_web_srv.paths import ConfinedPath

MAX_CACHED = 50_000  # some 20 MB
MAX_PENDING = 256  # files that are being hashed or wait for it; more is refused
MAX_ATTEMPTS = 3  # a file that changes each time while it is read has no hash now
MAX_BATCH = 64  # looks in one go: a millisecond
LOOK_THREADS = 2  # for open and stat only, so that a cached answer never waits behind a large file


class NoSuchFileError(EnclavekitError):
    """There is no regular file, or a link is on the way to it."""


class UnstableFileError(EnclavekitError):
    """The file keeps changing."""


class HasherBusyError(EnclavekitError):
    """Too many files wait."""


class Looks:
    """Looks at files in a thread, all asked for meanwhile in one go: the way there costs more than the look."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._waiting: list[tuple[ConfinedPath, asyncio.Future[bytes]]] = []
        self._under_way = 0

    async def look(self, path: ConfinedPath) -> bytes:
        """Return the signature of the file as it is after this call began. Raises OSError."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((path, answer))
        self._begin()
        return await answer

    def _begin(self) -> None:
        if self._waiting and self._under_way < LOOK_THREADS:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            self._under_way += 1
            task = asyncio.get_running_loop().run_in_executor(self._pool, _look_at, [path for path, _ in batch])
            task.add_done_callback(lambda done: self._end(batch, done))

    def _end(
        self,
        batch: list[tuple[ConfinedPath, asyncio.Future[bytes]]],
        done: asyncio.Future[list[bytes | OSError]],
    ) -> None:
        self._under_way -= 1
        if done.cancelled():
            for _, answer in batch:
                answer.cancel()
            return
        for (_, answer), found in zip(batch, done.result(), strict=True):
            if answer.done():
                continue
            if isinstance(found, OSError):
                answer.set_exception(found)
            else:
                answer.set_result(found)
        self._begin()


class FileHasher:
    def __init__(self) -> None:
        self._look_pool = ThreadPoolExecutor(LOOK_THREADS, thread_name_prefix="look")
        self._looks = Looks(self._look_pool)
        self._hash_pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), thread_name_prefix="hash")
        self._closing = threading.Event()
        self._cache: collections.OrderedDict[ConfinedPath, FileHash] = collections.OrderedDict()
        self._running: dict[ConfinedPath, asyncio.Task[FileHash]] = {}

    async def hash(self, path: ConfinedPath, timeout_s: float | None = None) -> FileHash | None:
        """Return the hash of the file at `path` as it is now; None if that takes longer than `timeout_s`.

        Raises: NoSuchFileError, UnstableFileError, HasherBusyError.
        """
        try:
            signature = await self._looks.look(path)
        except OSError as exc:
            self._cache.pop(path, None)
            raise _translate(path, exc) from exc
        cached = self._cache.get(path)
        if cached is not None and cached.signature == signature:
            self._cache.move_to_end(path)
            return cached
        task = self._running.get(path)
        if task is None:
            if len(self._running) >= MAX_PENDING:
                raise HasherBusyError("cannot hash file: too many files wait")
            task = self._running[path] = asyncio.ensure_future(self._compute(path))
            task.add_done_callback(lambda done: self._finish(path, done))
        try:
            return await asyncio.wait_for(asyncio.shield(task), timeout_s)
        except TimeoutError:
            return None

    async def is_directory(self, path: ConfinedPath) -> bool:
        """Return whether there is a directory, and no link on the way to it."""

        def look() -> bool:
            try:
                root = _open_root(path)
                try:
                    return stat.S_ISDIR(_stat(root, path.parts).st_mode)
                finally:
                    os.close(root)
            except OSError:
                return False

        return await asyncio.get_running_loop().run_in_executor(self._look_pool, look)

    async def list_files(self, top: ConfinedPath, max_files: int) -> list[ConfinedPath]:
        """Return the regular files at or below `top`, without following links; at most `max_files` + 1 of them."""

        def collect() -> list[ConfinedPath]:
            found = []
            for file in _walk(top):
                found.append(file)
                if len(found) > max_files:
                    break
            return found

        try:
            return await asyncio.get_running_loop().run_in_executor(self._look_pool, collect)
        except OSError as exc:
            raise _translate(top, exc) from exc

    def close(self) -> None:
        """Give up what is being hashed: the end of the process would wait for it."""
        self._closing.set()
        self._look_pool.shutdown(wait=False, cancel_futures=True)
        self._hash_pool.shutdown(wait=False, cancel_futures=True)

    async def _compute(self, path: ConfinedPath) -> FileHash:
        try:
            given_up = self._closing.is_set
            result = await asyncio.get_running_loop().run_in_executor(self._hash_pool, _hash, path, given_up)
        except OSError as exc:
            raise _translate(path, exc) from exc
        if result is None:
            raise UnstableFileError(f"cannot hash {path.text!r}: it changes while it is read")
        self._cache[path] = result
        self._cache.move_to_end(path)
        while len(self._cache) > MAX_CACHED:
            self._cache.popitem(last=False)
        return result

    def _finish(self, path: ConfinedPath, task: asyncio.Task[FileHash]) -> None:
        self._running.pop(path, None)
        if not task.cancelled():
            task.exception()  # whoever asked may have left; this is not an error that nobody saw


def _open_root(path: ConfinedPath) -> int:
    # the roots are configuration: a link there is the administrator's choice
    return os.open(path.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _open(path: ConfinedPath) -> int:
    root = _open_root(path)
    try:
        return open_regular(root, list(path.parts))
    finally:
        os.close(root)


def _look(path: ConfinedPath) -> bytes:
    handle = _open(path)
    try:
        return signature_of(os.fstat(handle))
    finally:
        os.close(handle)


def _look_at(paths: list[ConfinedPath]) -> list[bytes | OSError]:
    found: list[bytes | OSError] = []
    for path in paths:
        try:
            found.append(_look(path))
        except OSError as exc:
            found.append(exc)
    return found


def _hash(path: ConfinedPath, is_given_up: Callable[[], bool]) -> FileHash | None:
    for _ in range(MAX_ATTEMPTS):
        handle = _open(path)
        try:
            result = hash_open_file(handle, await_tick=True, is_given_up=is_given_up)
        finally:
            os.close(handle)
        if isinstance(result, FileHash):
            return result
    return None


def _walk(top: ConfinedPath) -> Iterator[ConfinedPath]:
    """Yield files below `top`; directories that vanish or cannot be read are passed over, `top` itself is not."""
    root = _open_root(top)
    try:
        info = _stat(root, top.parts)
        if stat.S_ISREG(info.st_mode):
            yield top
            return
        if not stat.S_ISDIR(info.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        waiting = [top.parts]
        while waiting:
            parts = waiting.pop()
            try:
                handle = open_beneath(root, list(parts), os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                continue
            try:
                with os.scandir(handle) as entries:
                    for entry in entries:
                        below = (*parts, os.fsencode(entry.name))
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(below)
                        elif entry.is_file(follow_symlinks=False):
                            yield ConfinedPath(top.root.rstrip(b"/") + b"/" + b"/".join(below), top.root, below)
            finally:
                os.close(handle)
    finally:
        os.close(root)


def _stat(root: int, parts: tuple[bytes, ...]) -> os.stat_result:
    handle = open_beneath(root, list(parts), os.O_PATH)
    try:
        return os.fstat(handle)
    finally:
        os.close(handle)


def _translate(path: ConfinedPath, exc: OSError) -> EnclavekitError:
    # a link, a directory in place of a file, a file that may not be read: none of them has a hash, and which of them
    # it is concerns nobody outside
    return NoSuchFileError(f"cannot hash {path.text!r}: {os.strerror(exc.errno or errno.EIO).lower()}")
