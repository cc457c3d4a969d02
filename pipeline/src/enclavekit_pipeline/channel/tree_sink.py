# SPDX-License-Identifier: Apache-2.0
"""Does what a `TreeReceiver` says: makes files, directories and links below one target. Blocking: callers run it in a
thread, never two calls at once.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterator, Sequence

from enclavekit_pipeline.channel.holes import is_hole
from enclavekit_pipeline.channel.partial_file import PartialFile, look_at_target, set_metadata
from enclavekit_pipeline.channel.target_tree import TargetTree, WriteOptions
from enclavekit_pipeline.channel.tree_directories import copy_error
from enclavekit_pipeline.wire.digest import new_digest
from enclavekit_pipeline.wire.tree_content import MIN_CHUNK_BYTES, chunk_bytes, zero_digest
from enclavekit_pipeline.wire.tree_receiver import (
    Action,
    Announced,
    Begun,
    Complete,
    Dropped,
    Hole,
    Kept,
    Left,
    Made,
    TreeReceiver,
)
from enclavekit_pipeline.wire.tree_records import Data, Entry, EntryType, LeftOut
from enclavekit_pipeline.wire.tree_sender import is_large

READ_BYTES = 256 * 1024
READ_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

__all__ = ["TreeSink", "WriteOptions"]


class TreeSink:
    """Of one copy: the entry with the empty path becomes `name` in `directory`, or the directory itself if there is no
    name. The directory belongs to this object from now on.
    """

    def __init__(self, directory: int, name: bytes, label: str, options: WriteOptions) -> None:
        self._label, self._options = label, options
        self._target = TargetTree(directory, name, options)
        may_ask = options.delta or options.resume
        self.receiver = TreeReceiver(unsafe_links=options.unsafe_links, may_ask=may_ask)
        self.left_out: list[LeftOut] = []
        self._entry = Entry(EntryType.FILE, b"")  # whose content comes
        self._file: PartialFile | None = None  # that is being made of it
        self._large: PartialFile | None = None  # the same, for a large file that has been announced
        self._resumes = False  # whether that has something in it to go on from
        self._base = -1  # the file that is there, which the one that comes is compared with
        self._kept: list[Kept] = []  # of that, while nothing has had to change
        self._failed = False

    @property
    def moved(self) -> int:
        return self.receiver.moved

    def take(self, parts: Sequence[bytes | memoryview]) -> bytes:
        """Do what `parts` of the records say, and return answers. Raises InputError, RemoteProtocolError."""
        with self._trying():
            return b"".join(self._do_all(self.receiver.feed(part)) for part in parts)

    def finish(self) -> None:
        """Do what is left when all has come, and have it on disk. Raises InputError, RemoteProtocolError."""
        with self._trying():
            self._do_all(self.receiver.finish())
            try:
                self._target.sync()  # the files of a tree; a file alone has been synced
            except OSError as exc:
                raise copy_error(self._label, b"", exc) from exc

    def close(self) -> None:
        """Remove what was not finished; only what a cut copy leaves for its resumption stays. Idempotent."""
        for file in (self._file, self._large):
            if file is not None:
                file.close(keep_bytes=None if self._failed else MIN_CHUNK_BYTES)
        if self._base >= 0:
            os.close(self._base)
            self._base = -1
        self._target.close()

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        self._failed = True  # unless it gets to its end: what failed here is nothing to go on from
        yield
        self._failed = False

    def _do_all(self, actions: list[Action]) -> bytes:
        answers = b""
        for action in actions:
            try:
                answers += self._do(action)
            except OSError as exc:
                entry = self._entry if isinstance(action, (Data, Hole, Kept, LeftOut)) else action.entry
                raise copy_error(self._label, entry.path, exc) from exc
        return answers

    def _do(self, action: Action) -> bytes:
        match action:
            case Data(data):
                self._writing().write(data)
            case Begun(entry):
                self._begin(entry)
            case Complete(entry, size):
                self._complete(entry, size)
            case Announced(entry):
                return self._answer(entry)
            case Made(entry):
                self._target.make(entry)
            case Left(entry):
                self._target.leave(entry)
            case Hole(count):
                self._writing().skip(count)
            case Kept():
                self._keep(action)
            case Dropped():
                self._drop()
            case LeftOut():
                self.left_out.append(action)
        return b""

    def _answer(self, entry: Entry) -> bytes:
        """Say what there is: of an earlier copy that was cut, or else of the file itself."""
        digests: list[bytes] = []
        size, chunk = 0, chunk_bytes(entry.size)
        directory, name = self._target.locate(entry.path)
        if is_large(entry) and self._options.resume:
            self._large = PartialFile(directory, name, resumable=True)
            size = _comparable(self._large.found_bytes, entry.size, chunk)
            digests = _digests(self._large.read_found, self._large.found_hole, size, chunk)
            self._resumes = bool(digests)
        if not digests and self._options.delta:
            base = self._open_base(directory, name)
            if base >= 0:
                try:
                    size = _comparable(os.fstat(base).st_size, entry.size, chunk)
                    digests = _digests(functools.partial(os.pread, base), functools.partial(is_hole, base), size, chunk)
                finally:
                    os.close(base)
        return self.receiver.answer(entry, size, digests)

    def _open_base(self, directory: int, name: bytes) -> int:
        """Return a descriptor of the regular file that is there; -1 if there is none."""
        try:
            descriptor = os.open(name, READ_FILE, dir_fd=directory)
        except OSError:
            return -1
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        return -1

    def _begin(self, entry: Entry) -> None:
        self._entry, self._kept = entry, []
        if self._large is not None and is_large(entry) and self._resumes:
            self._writing()
        elif entry.ask and self._options.delta:
            directory, name = self._target.locate(entry.path)
            look_at_target(directory, name)
            self._base = self._open_base(directory, name)
        if self._base < 0:
            self._writing()

    def _writing(self) -> PartialFile:
        """Return the file that is being made; what was kept so far is copied into it from the one that is there."""
        if self._file is None:
            if self._large is not None and is_large(self._entry):
                self._file, self._large = self._large, None
            else:
                self._file = PartialFile(*self._target.locate(self._entry.path))
            kept, self._kept = self._kept, []
            for action in kept:
                self._copy_from_base(self._file, action)
        return self._file

    def _keep(self, action: Kept) -> None:
        if self._file is None:
            self._kept.append(action)
        elif self._base >= 0:
            self._copy_from_base(self._file, action)
        else:
            self._file.keep(action.count)

    def _copy_from_base(self, file: PartialFile, action: Kept) -> None:
        end, chunk = file.position + action.count, chunk_bytes(self._entry.size)
        for expected in action.digests:
            digest, left = new_digest(), min(chunk, end - file.position)
            if is_hole(self._base, file.position, file.position + left) and expected == zero_digest(left):
                file.skip(left)
                continue
            while left and (data := os.pread(self._base, min(READ_BYTES, left), file.position)):
                digest.update(data)
                file.write(data)
                left -= len(data)
            if digest.digest() != expected:
                raise OSError(errno.EBUSY, "it was changed while it was compared")

    def _complete(self, entry: Entry, size: int) -> None:
        mode = entry.mode & self._options.kept_mode
        kept = sum(action.count for action in self._kept)
        if self._file is None and kept == size == os.fstat(self._base).st_size:
            set_metadata(self._base, mode, entry.mtime_ns, self._target.owner(entry, None))
        else:
            file = self._writing()
            owner = self._target.owner(entry, file.owner)
            file.finish(mode=mode, mtime_ns=entry.mtime_ns, owner=owner, sync=not self._target.is_directory)
            self._file = None
        self._drop()

    def _drop(self) -> None:
        """Forget the file whose content came."""
        for file in (self._file, self._large if is_large(self._entry) else None):
            if file is not None:
                file.close()
        self._file = None
        if is_large(self._entry):
            self._large = None
        if self._base >= 0:
            os.close(self._base)
            self._base = -1


def _comparable(size: int, wanted: int, chunk: int) -> int:
    """Return how much of a file of `size` bytes is worth comparing: whole chunks, but for the last of an equal file."""
    return size if size == wanted else min(size, wanted) // chunk * chunk


def _digests(
    read: Callable[[int, int], bytes], has_hole: Callable[[int, int], bool], size: int, chunk: int
) -> list[bytes]:
    """Return the digests of the chunks of what `read(count, offset)` gives, `size` bytes."""
    digests = []
    for start in range(0, size, chunk):
        digest, offset, stop = new_digest(), start, min(start + chunk, size)
        if has_hole(start, stop):
            digests.append(zero_digest(stop - start))
            continue
        while offset < stop and (data := read(min(READ_BYTES, stop - offset), offset)):
            digest.update(data)
            offset += len(data)
        digests.append(digest.digest())
    return digests
