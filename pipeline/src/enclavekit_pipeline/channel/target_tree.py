# SPDX-License-Identifier: Apache-2.0
"""The target of a copy, but for contents: where entries go, directories and links, owners, modes, times. Blocking."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from dataclasses import dataclass

from enclavekit_core.errors import InputError, RemoteProtocolError

from enclavekit_pipeline.channel.partial_file import set_metadata, temporary_name
from enclavekit_pipeline.channel.tree_directories import OPEN_DIRECTORY, Directories
from enclavekit_pipeline.wire.tree_order import shown
from enclavekit_pipeline.wire.tree_records import NO_ID, Entry, EntryType

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class WriteOptions:
    kept_mode: int
    """Bits of modes that are kept."""
    archive: bool = False
    delta: bool = False
    resume: bool = False
    unsafe_links: bool = False
    directory_only: bool = False
    """The root has to be a directory: the target was named like one."""


class TargetTree:
    """The entry with the empty path becomes `name` in `directory`, or the directory itself if there is no name. The
    directory belongs to this object from now on.
    """

    def __init__(self, directory: int, name: bytes, options: WriteOptions) -> None:
        self._directory, self._name, self._options = directory, name, options
        self._tree: Directories | None = None
        self._made: set[bytes] = set()  # open directories that were not there before

    @property
    def is_directory(self) -> bool:
        """Whether the root has come, and is one."""
        return self._tree is not None

    def sync(self) -> None:
        """Have all files on disk, with one call for all of them. Raises OSError."""
        if self._tree is not None and _libc.syncfs(self._tree.get(b"")):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """Idempotent."""
        if self._tree is not None:
            self._tree.close()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def locate(self, path: bytes) -> tuple[int, bytes]:
        """Return (directory, name) of an entry."""
        if not path:
            if not self._name:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if self._options.directory_only:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return self._directory, self._name
        if self._tree is None:
            raise RemoteProtocolError("cannot copy: what is in a tree came before it")
        return self._tree.locate(path)

    def owner(self, entry: Entry, found: tuple[int, int] | None) -> tuple[int, int] | None:
        """Return who shall own it: its owner there with archive, else that of the file that it replaces."""
        if self._options.archive and NO_ID not in (entry.uid, entry.gid):
            return entry.uid, entry.gid
        return found

    def make(self, entry: Entry) -> None:
        """Make a directory, a symlink or a hard link. Raises OSError, InputError, RemoteProtocolError."""
        if entry.type is EntryType.DIRECTORY:
            self._make_directory(entry)
            return
        directory, name = self.locate(entry.path)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        temporary = temporary_name(name)
        if entry.type is EntryType.SYMLINK:
            os.symlink(entry.target, temporary, dir_fd=directory)
            owner = self.owner(entry, None)
            if owner is not None:
                with contextlib.suppress(PermissionError):
                    os.chown(temporary, *owner, dir_fd=directory, follow_symlinks=False)
            os.utime(temporary, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory, follow_symlinks=False)
        else:
            self._link(entry, directory, temporary)
        try:
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        finally:
            # also if it went well: renaming one name of a file to another does nothing, rename(2)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)

    def _link(self, entry: Entry, directory: int, temporary: bytes) -> None:
        keep = os.dup(directory)  # looking the other one up may close it
        try:
            source, name = self.locate(entry.target)
            if not stat.S_ISREG(os.stat(name, dir_fd=source, follow_symlinks=False).st_mode):
                raise InputError("copy", shown(entry.path), "what it is a hard link to is no file")
            os.link(name, temporary, src_dir_fd=source, dst_dir_fd=keep, follow_symlinks=False)
        finally:
            os.close(keep)

    def _make_directory(self, entry: Entry) -> None:
        if not entry.path and not self._name:
            self._tree = Directories(os.dup(self._directory))
            return
        directory, name = self.locate(entry.path) if entry.path else (self._directory, self._name)
        try:
            os.mkdir(name, 0o700, dir_fd=directory)
            self._made.add(entry.path)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, "something that is no directory is in the way") from None
        if not entry.path:
            self._tree = Directories(os.open(name, OPEN_DIRECTORY, dir_fd=directory))

    def leave(self, entry: Entry) -> None:
        """Give a directory its mode and time, the latter after all that was put into it. One that was there before
        keeps its own unless `archive` says otherwise: /tmp is not to become private because something went there.
        """
        if entry.path not in self._made and not self._options.archive:
            return
        self._made.discard(entry.path)
        assert self._tree is not None
        descriptor = self._tree.get(entry.path)
        set_metadata(descriptor, entry.mode & self._options.kept_mode, entry.mtime_ns, self.owner(entry, None))
