# SPDX-License-Identifier: Apache-2.0
"""Keeps a manifest that is at most some seconds older than whoever asks for it; a tree is walked by one task only.

A file counts with the hash that was computed of it; only what has another signature since is hashed again.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import time

import msgspec
from enclavekit_core.errors import EnclavekitError
from enclavekit_core.logs import get_logger
from enclavekit_core.tree_digest import Kind

from enclavekit_ra_web_srv.file_hasher import FileHasher, HasherBusyError
from enclavekit_ra_web_srv.manifest import ListedFile, Manifest, build_manifest
from enclavekit_ra_web_srv.manifest_walk import Walk, walk_roots
from enclavekit_ra_web_srv.paths import ConfinedPath

MAX_AGE_S = 2.0  # of a manifest that somebody asks for; older ones are made anew meanwhile
MAX_SHARE = 0.25  # of the time is spent on making manifests, however large the tree and however often it is asked for
MAX_KEPT = 8  # so that who reads one page by page, or has seen its root, still finds it
FILES_AT_ONCE = 8
BUSY_PAUSE_S = 0.1

Known = dict[ConfinedPath, tuple[bytes, bytes]]  # -> signature and hash
log = get_logger("ra-web-srv")


class NoManifestError(EnclavekitError):
    """There is none yet, or it cannot be made."""


class UnknownManifestError(EnclavekitError):
    """There is none with this root, or no longer."""


class ManifestKeeper:
    def __init__(self, roots: tuple[bytes, ...], hasher: FileHasher) -> None:
        self._roots, self._hasher = roots, hasher
        self._known: Known = {}
        self._kept: collections.OrderedDict[bytes, Manifest] = collections.OrderedDict()
        self._latest: Manifest | None = None
        self._walked_s = 0.0
        self._wanted = asyncio.Event()
        self._wanted.set()
        self.error: EnclavekitError | None = None
        self.made = 0

    @property
    def root(self) -> bytes | None:
        """The root of the latest manifest; asking for it has it made anew if it is old."""
        if time.monotonic() - self._walked_s > MAX_AGE_S:
            self._wanted.set()
        return None if self._latest is None else self._latest.root

    def get(self, root: bytes | None = None) -> Manifest:
        """Return the latest manifest, or a former one by its root. Raises NoManifestError, UnknownManifestError."""
        latest = self.root
        if latest is None:
            raise NoManifestError(str(self.error or "cannot give a manifest: the first one is being made"))
        found = self._kept.get(root or latest)
        if found is None:
            raise UnknownManifestError("cannot give this manifest: there was none with this root, or too long ago")
        return found

    async def run(self) -> None:
        """Make manifests, as they are asked for, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            began_s = time.monotonic()
            try:
                manifest = await self._make()
            except EnclavekitError as exc:
                log.error("there is no manifest", cause=str(exc))
                self.error, self._latest = exc, None
            else:
                self.error, self._latest = None, manifest
                self.made += 1
                self._kept.pop(manifest.root, None)
                self._kept[manifest.root] = manifest
                while len(self._kept) > MAX_KEPT:
                    self._kept.popitem(last=False)
            self._walked_s = time.monotonic()
            await asyncio.sleep((self._walked_s - began_s) * (1 / MAX_SHARE - 1))

    async def _make(self) -> Manifest:
        made_at_ms = time.time_ns() // 1_000_000
        walk = await asyncio.to_thread(walk_roots, self._roots)
        listed = await self._hash(walk)
        return await asyncio.to_thread(_build, walk, listed, made_at_ms)

    async def _hash(self, walk: Walk) -> dict[bytes, ListedFile]:
        # in a thread, as all that takes long with many files: requests are answered meanwhile
        self._known, listed, changed = await asyncio.to_thread(_sort_out, walk, self._known)
        await asyncio.gather(*(self._hash_from(changed, listed) for _ in range(FILES_AT_ONCE)))
        return listed

    async def _hash_from(self, changed: collections.deque[ConfinedPath], listed: dict[bytes, ListedFile]) -> None:
        while changed:
            path = changed.popleft()
            try:
                found = await self._hasher.hash(path)
            except HasherBusyError:
                changed.append(path)
                await asyncio.sleep(BUSY_PAUSE_S)
                continue
            except EnclavekitError:
                self._known.pop(path, None)  # it is gone, may not be read, or changes all the time
                listed[path.path] = ListedFile(path.path, 0, None)
                continue
            assert found is not None
            if found.was_still:
                self._known[path] = (found.signature, found.digest)
            listed[path.path] = ListedFile(path.path, found.size_bytes, found.digest)


def _sort_out(walk: Walk, known: Known) -> tuple[Known, dict[bytes, ListedFile], collections.deque[ConfinedPath]]:
    """Return what is known of files as they are, these files, and those that have to be hashed."""
    still: Known = {}
    listed: dict[bytes, ListedFile] = {}
    changed: collections.deque[ConfinedPath] = collections.deque()
    for path, (signature, size_bytes) in walk.files.items():
        found = known.get(path)
        if found is not None and found[0] == signature:
            still[path] = found
            listed[path.path] = ListedFile(path.path, size_bytes, found[1])
        else:
            changed.append(path)
    return still, listed, changed


def _build(walk: Walk, listed: dict[bytes, ListedFile], made_at_ms: int) -> Manifest:
    complete = []
    for directory in walk.directories:
        prefix = directory.path.rstrip(b"/") + b"/"
        entries = tuple(
            msgspec.structs.replace(entry, digest=listed[prefix + entry.name].digest or entry.digest)
            if entry.kind is Kind.FILE
            else entry
            for entry in directory.entries
        )
        complete.append(dataclasses.replace(directory, entries=entries))
    return build_manifest(complete, listed.values(), made_at_ms)
