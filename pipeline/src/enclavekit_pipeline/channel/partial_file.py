# SPDX-License-Identifier: Apache-2.0
"""A file that appears under its name only when all of it is there.

Written without a name, so that not even a killed process leaves it behind; with a temporary one beside its target where
the file system knows no nameless files. One that is worth resuming has a name that the next copy to the same target
finds it by, `.NAME.enclavekit-partial`, and a lock while somebody works on it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time

from enclavekit_pipeline.channel.file_user import file_uid
from enclavekit_pipeline.channel.holes import is_hole

NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
NAMELESS_FILE = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
KEPT_FILE = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# what file systems and kernels without O_TMPFILE say to it, open(2)
NO_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
PARTIAL_SUFFIX = b".enclavekit-partial"
MAX_KEPT_NAME = 200  # of the target's name in a partial file's, NAME_MAX is 255
UNWIND_S = 2.0  # a copy that was cut may not have noticed yet when the next one begins
LOCK_PAUSE_S = 0.02
ZERO_BLOCK = bytes(256 * 1024)


class PartialFile:
    """Blocking: callers run it in a thread."""

    def __init__(self, directory: int, name: bytes, *, resumable: bool = False) -> None:
        """Start a file, or take up the one that an earlier copy left (`found_bytes`). Raises OSError."""
        self._name = name
        self.owner = look_at_target(directory, name)
        """Of the file that will be replaced."""
        self.position = self.found_bytes = 0
        self._temporary = b""
        self._descriptor = -1
        self._directory = os.dup(directory)
        try:
            if resumable:
                self._take_up()
            if self._descriptor < 0:
                self._start()
        except BaseException:
            os.close(self._directory)
            raise
        self._end = self.found_bytes  # size of the file by now

    def _take_up(self) -> None:
        """Open the file of an earlier copy or a new one of that name; neither if somebody else works on it."""
        name = partial_name(self._name)
        descriptor = open_partial(self._directory, name, wait_s=UNWIND_S)
        if descriptor is None:
            with contextlib.suppress(FileExistsError):
                descriptor = os.open(name, NEW_FILE, 0o600, dir_fd=self._directory)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        if descriptor is not None:
            self._descriptor, self._temporary = descriptor, name
            self.found_bytes = os.fstat(descriptor).st_size

    def _start(self) -> None:
        try:
            self._descriptor = os.open(".", NAMELESS_FILE, 0o600, dir_fd=self._directory)
        except OSError as exc:
            if exc.errno not in NO_NAMELESS:
                raise
            self._temporary = temporary_name(self._name)
            self._descriptor = os.open(self._temporary, NEW_FILE, 0o600, dir_fd=self._directory)

    def write(self, data: bytes | memoryview) -> None:
        """Write at `position`, over what an earlier copy may have left there."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self._descriptor, view, self.position)
            view, self.position = view[count:], self.position + count
        self._end = max(self._end, self.position)

    def skip(self, count: int) -> None:
        """Leave a hole."""
        end = self.position + count
        while self.position < min(end, self.found_bytes):
            self.write(ZERO_BLOCK[: min(end, self.found_bytes) - self.position])
        self.position = end

    def keep(self, count: int) -> None:
        """Leave what an earlier copy wrote."""
        self.position += count

    def read_found(self, count: int, offset: int) -> bytes:
        """Return what an earlier copy wrote."""
        return os.pread(self._descriptor, count, offset)

    def found_hole(self, start: int, stop: int) -> bool:
        """Say whether an earlier copy left a hole there."""
        return is_hole(self._descriptor, start, stop)

    def finish(self, *, mode: int, mtime_ns: int, owner: tuple[int, int] | None, sync: bool) -> None:
        """Put the file in place and close it, so that who hears of it finds it without a writer.

        Args:
            owner: uid and gid, kept where we may, as with cp.
            sync: before it is named; whoever says no syncs the file system in the end. Raises OSError.
        """
        if self.position != self._end:
            os.ftruncate(self._descriptor, self.position)
        set_metadata(self._descriptor, mode, mtime_ns, owner)
        if sync:
            os.fsync(self._descriptor)
        if not self._temporary:
            # also if nothing is in the way: linkat(2) does not replace what comes to be in between
            name = temporary_name(self._name)
            os.link(f"/proc/self/fd/{self._descriptor}", name, dst_dir_fd=self._directory, follow_symlinks=True)
            self._temporary = name
        os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._temporary = b""
        if sync:
            with contextlib.suppress(OSError):
                os.fsync(self._directory)  # some file systems have nothing to sync a directory with
        remove_partial(self._directory, self._name)
        self.close()

    def close(self, *, keep_bytes: int | None = None) -> None:
        """Remove what was not finished, but for a resumable file with at least `keep_bytes`; idempotent."""
        if self._descriptor < 0:
            return
        kept = keep_bytes is not None and self._temporary == partial_name(self._name)
        if self._temporary and not (kept and max(self.position, self.found_bytes) >= (keep_bytes or 0)):
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._directory)
        os.close(self._descriptor)
        os.close(self._directory)
        self._descriptor = -1


def look_at_target(directory: int, name: bytes) -> tuple[int, int] | None:
    """Return the owner of the file that will be replaced. Only regular files and links (the link itself) are."""
    try:
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(info.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if stat.S_ISLNK(info.st_mode):
        return None
    if not stat.S_ISREG(info.st_mode):
        raise FileExistsError(errno.EEXIST, "a special file is in the way", name)
    return info.st_uid, info.st_gid


def set_metadata(target: int, mode: int, mtime_ns: int, owner: tuple[int, int] | None) -> None:
    """Give an open file or directory its owner, mode and time, in this order: a new owner takes set-id bits away."""
    if owner is not None:
        with contextlib.suppress(PermissionError):
            os.fchown(target, *owner)
    os.fchmod(target, mode)
    os.utime(target, ns=(mtime_ns, mtime_ns))


def temporary_name(name: bytes) -> bytes:
    return b".%b.%b.partial" % (name[:MAX_KEPT_NAME], secrets.token_hex(8).encode())


def partial_name(name: bytes) -> bytes:
    """Return where a copy to `name` that was cut is found again."""
    if len(name) > MAX_KEPT_NAME:
        name = name[:MAX_KEPT_NAME] + hashlib.sha256(name).hexdigest()[:16].encode()
    return b"." + name + PARTIAL_SUFFIX


def open_partial(directory: int, name: bytes, wait_s: float = 0.0) -> int | None:
    """Return the file of an earlier copy, locked; None if there is none, or somebody works on it for longer.

    What is not as we leave such files (somebody may have planted it) is removed.
    """
    try:
        descriptor = os.open(name, KEPT_FILE, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError:  # a link, a directory, a socket
        _unlink(directory, name)
        return None
    try:
        _lock(descriptor, wait_s)
        info, now = os.fstat(descriptor), os.stat(name, dir_fd=directory, follow_symlinks=False)
        if (info.st_dev, info.st_ino) != (now.st_dev, now.st_ino):
            raise FileNotFoundError  # it has just been put in place
        if stat.S_ISREG(info.st_mode) and info.st_nlink == 1 and info.st_uid == file_uid():
            return descriptor
        _unlink(directory, name)
    except OSError:
        pass
    os.close(descriptor)
    return None


def remove_partial(directory: int, name: bytes) -> None:
    """Remove what an earlier copy to `name` left, unless somebody works on it."""
    descriptor = open_partial(directory, partial_name(name))
    if descriptor is not None:
        _unlink(directory, partial_name(name))
        os.close(descriptor)


def _lock(descriptor: int, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(LOCK_PAUSE_S)


def _unlink(directory: int, name: bytes) -> None:
    with contextlib.suppress(OSError):
        os.unlink(name, dir_fd=directory)
