# SPDX-License-Identifier: Apache-2.0
"""Unpack cpio archives below a directory, whatever their names say.

No name leads outside: `..` is refused, a leading `/` is dropped, and every parent is a real directory that was checked
with lstat and is remembered. Nothing is written through a link: what is in the way is removed, and files are created
with O_EXCL. This holds as long as nobody else changes the directory meanwhile.

What later entries do to earlier ones is what the kernel does with an initramfs: the later one wins, directories merge.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import IO

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_eif.newc import CHUNK_BYTES, MAX_LINK_BYTES, CpioEntry, describe_name, iter_cpio

MAX_UNPACKED_BYTES = 16 << 30  # far above any enclave's memory; a decompression bomb ends here
MAX_ENTRIES = 2_000_000  # an archive of empty files costs the disk inodes, not bytes
MAX_REPORTED = 100  # a report is for people
SETID = stat.S_ISUID | stat.S_ISGID

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Skipped:
    name: str
    """Printable name of the entry."""
    reason: str


@dataclass(frozen=True, slots=True)
class Extracted:
    entries: int
    size_bytes: int
    """Sum of the files' data."""
    skipped: tuple[Skipped, ...]
    """Entries that were left out, the first MAX_REPORTED of them."""


def extract_cpio(
    stream: IO[bytes],
    target_dir: str | bytes | os.PathLike[str],
    *,
    same_owner: bool = False,
    make_devices: bool = False,
    max_bytes: int = MAX_UNPACKED_BYTES,
    max_entries: int = MAX_ENTRIES,
) -> Extracted:
    """Unpack all archives in `stream` (compressed or not) into the existing directory `target_dir`.

    Args:
        same_owner: give files the archive's uid and gid, and keep setuid and setgid bits; else all belongs to the
            caller and has no such bits.
        make_devices: make device nodes; else, and where the kernel forbids it, they are skipped and reported. Sockets
            always are.
        max_bytes: limit of the files' data together.

    Raises: InputError for a malformed or refused archive and for what the file system refuses; `target_dir` then holds
        what came before.
    """
    target = os.fsencode(target_dir)
    try:
        extraction = _Extraction(target, same_owner, make_devices, max_bytes)
    except OSError as exc:
        raise InputError("extract to", os.fsdecode(target), describe_cause(exc)) from exc
    count = 0
    for entry in iter_cpio(stream):
        count += 1
        if count > max_entries:
            raise InputError("extract", "ramdisk", f"more than {max_entries} entries")
        try:
            extraction.add(entry)
        except OSError as exc:
            raise _refusal(entry.name, describe_cause(exc)) from exc
    try:
        extraction.finish()
    except OSError as exc:
        raise InputError("extract to", os.fsdecode(target), describe_cause(exc)) from exc
    return Extracted(count, extraction.size_bytes, tuple(extraction.skipped))


def _refusal(name: bytes, reason: str) -> InputError:
    return InputError("extract", describe_name(name), reason)


def clean_name(name: bytes) -> bytes:
    """Return `name` relative, without `.` and empty components; empty for the root. Raises InputError for `..`."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise _refusal(name, "a name with `..`")
    return b"/".join(parts)


class _Extraction:
    def __init__(self, target: bytes, same_owner: bool, make_devices: bool, max_bytes: int) -> None:
        status = os.stat(target)
        self._root = target if target.endswith(b"/") else target + b"/"
        self._same_owner = same_owner
        self._make_devices = make_devices
        self._max_bytes = max_bytes
        self._mode_mask = 0o7777 if same_owner else 0o7777 & ~SETID
        # new files already have these ids, unless a directory with the setgid bit gives them its group
        inherits = bool(status.st_mode & stat.S_ISGID)
        self._own_ids = None if inherits else (os.geteuid(), os.getegid())
        self._directories = {b""}  # relative names known to be real directories
        # attributes of directories are set at the end: a read-only one must still be filled, and filling sets its mtime
        self._attributes: dict[bytes, CpioEntry] = {}
        self._links: dict[tuple[int, int, tuple[int, int]], bytes] = {}
        self.size_bytes = 0
        self.skipped: list[Skipped] = []

    def add(self, entry: CpioEntry) -> None:
        name = entry.name
        # the cheap test finds every name that needs cleaning, and few that do not
        if name[0] in b"./" or name[-1] == 0x2F or b"//" in name or b"/." in name:
            name = clean_name(name)
        parent = name.rpartition(b"/")[0]
        if parent not in self._directories:
            self._make_parents(parent, entry)
        kind = entry.mode & 0o170000
        if kind == stat.S_IFDIR:
            self._add_directory(name, entry)
        elif not name:
            raise _refusal(entry.name, "the root of an archive must be a directory")
        elif kind == stat.S_IFREG:
            self._add_file(name, entry)
        elif kind == stat.S_IFLNK:
            self._add_symlink(name, entry)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO):
            self._add_node(name, entry)
        elif kind == stat.S_IFSOCK:
            self._skip(entry, "a socket")
        else:
            raise _refusal(entry.name, f"unknown file type in mode {entry.mode:o}")

    def finish(self) -> None:
        """Set owner, mode and times of directories, the deepest first."""
        for name in sorted(self._attributes, reverse=True):
            entry, path = self._attributes[name], self._root + name
            if self._same_owner:
                os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
            os.chmod(path, entry.mode & self._mode_mask)  # a directory that we checked: no link to follow
            os.utime(path, (entry.mtime, entry.mtime), follow_symlinks=False)

    def _make_parents(self, parent: bytes, entry: CpioEntry) -> None:
        """Make sure that each component of `parent` is a real directory."""
        done = b""
        for part in parent.split(b"/"):
            done = done + b"/" + part if done else part
            if done in self._directories:
                continue
            path = self._root + done
            try:
                os.mkdir(path, 0o755)
            except FileExistsError:
                if not self._is_directory(path):
                    what = describe_name(done)
                    raise _refusal(entry.name, f"its parent {what} is a link or a file") from None
            self._directories.add(done)

    def _is_directory(self, path: bytes) -> bool:
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISGID:
            self._own_ids = None
        return stat.S_ISDIR(status.st_mode)

    def _add_directory(self, name: bytes, entry: CpioEntry) -> None:
        if name not in self._directories:
            path = self._root + name
            try:
                os.mkdir(path, 0o700)
            except FileExistsError:
                if not self._is_directory(path):
                    os.unlink(path)
                    os.mkdir(path, 0o700)
            self._directories.add(name)
        self._attributes[name] = entry

    def _clear(self, name: bytes) -> None:
        """Remove what is in the way of a new entry. A directory must be empty."""
        path = self._root + name
        if stat.S_ISDIR(os.lstat(path).st_mode):
            os.rmdir(path)
            self._directories.discard(name)
            self._attributes.pop(name, None)
        else:
            os.unlink(path)

    def _add_file(self, name: bytes, entry: CpioEntry) -> None:
        size = entry.size
        self.size_bytes += size
        if self.size_bytes > self._max_bytes:
            raise _refusal(entry.name, f"the archive unpacks to more than {self._max_bytes} bytes")
        path = self._root + name
        key = (entry.archive, entry.ino, entry.dev)
        if entry.nlink > 1 and (first := self._links.get(key)) is not None and self._link(first, name):
            if not size:
                return
            # the data may come with any of the names; the file is one that we made, and no link
            fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        else:
            try:
                fd = os.open(path, _CREATE, 0o600)
            except FileExistsError:
                self._clear(name)
                fd = os.open(path, _CREATE, 0o600)
            if entry.nlink > 1:
                self._links[key] = name
        try:
            if size <= CHUNK_BYTES:
                if size:
                    _write_all(fd, entry.data.read())
            else:
                while chunk := entry.data.read(CHUNK_BYTES):
                    _write_all(fd, chunk)
            if self._same_owner and (entry.uid, entry.gid) != self._own_ids:
                os.chown(fd, entry.uid, entry.gid)
            os.chmod(fd, entry.mode & self._mode_mask)  # after chown, which clears setuid
            os.utime(fd, (entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _link(self, first: bytes, name: bytes) -> bool:
        """Make `name` another name of the file `first`; False if that one is gone meanwhile."""
        source = self._root + first
        try:
            if not stat.S_ISREG(os.lstat(source).st_mode):
                return False
            if first == name:
                return True
            try:
                os.link(source, self._root + name, follow_symlinks=False)
            except FileExistsError:
                self._clear(name)
                os.link(source, self._root + name, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _add_symlink(self, name: bytes, entry: CpioEntry) -> None:
        if not 0 < entry.size <= MAX_LINK_BYTES:
            raise _refusal(entry.name, f"a link target of {entry.size} bytes")
        target = entry.data.read()
        if b"\0" in target:
            raise _refusal(entry.name, "a link target with a NUL byte")
        path = self._root + name
        try:
            os.symlink(target, path)
        except FileExistsError:
            self._clear(name)
            os.symlink(target, path)
        if self._same_owner and (entry.uid, entry.gid) != self._own_ids:
            os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        os.utime(path, (entry.mtime, entry.mtime), follow_symlinks=False)

    def _add_node(self, name: bytes, entry: CpioEntry) -> None:
        device = not stat.S_ISFIFO(entry.mode)
        if device and not self._make_devices:
            self._skip(entry, "a device node")
            return
        path = self._root + name
        if os.path.lexists(path):
            self._clear(name)
        try:
            os.mknod(path, stat.S_IFMT(entry.mode) | 0o600, entry.device if device else 0)
        except PermissionError:
            self._skip(entry, "a device node, which this user may not make")
            return
        if self._same_owner:
            os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        os.chmod(path, entry.mode & self._mode_mask)  # just made, and no link
        os.utime(path, (entry.mtime, entry.mtime), follow_symlinks=False)

    def _skip(self, entry: CpioEntry, reason: str) -> None:
        if len(self.skipped) < MAX_REPORTED:
            self.skipped.append(Skipped(describe_name(entry.name), reason))


def _write_all(fd: int, data: bytes) -> None:
    count = os.write(fd, data)
    while count < len(data):  # a full disk writes less before it fails
        data = data[count:]
        count = os.write(fd, data)
