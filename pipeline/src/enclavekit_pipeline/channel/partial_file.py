# SPDX-License-Identifier: Apache-2.0
"""A file that appears under its name only when all of it is there and is what the sender says it is."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat

from enclavekit_core.errors import RemoteProtocolError

from enclavekit_pipeline.wire.copy_messages import Done

NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
NAMELESS_FILE = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
# what file systems and kernels without O_TMPFILE say to it, open(2)
NO_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)


class PartialFile:
    """Written without a name, so that not even a killed process leaves it behind; with a temporary one beside its
    target where the file system knows no nameless files. Blocking: callers run it in a thread.
    """

    def __init__(self, directory: int, name: str) -> None:
        """Start a file in the open directory `directory`, which is kept open until the end. Raises OSError."""
        self._directory, self.name = directory, name
        self._hash, self.size = hashlib.sha256(), 0
        self._owner = self._look_at_target()
        self._temporary = ""
        try:
            self._descriptor = os.open(".", NAMELESS_FILE, 0o600, dir_fd=directory)
        except OSError as exc:
            if exc.errno not in NO_NAMELESS:
                raise
            self._temporary = self._temporary_name()
            self._descriptor = os.open(self._temporary, NEW_FILE, 0o600, dir_fd=directory)

    def _temporary_name(self) -> str:
        # never longer than the name it stands for may be: NAME_MAX is 255 bytes
        return f".{os.fsdecode(os.fsencode(self.name)[:200])}.{secrets.token_hex(8)}.partial"

    def _look_at_target(self) -> tuple[int, int] | None:
        """Return the owner of the file that will be replaced. Only regular files and links (the link itself) are."""
        try:
            info = os.stat(self.name, dir_fd=self._directory, follow_symlinks=False)
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(info.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.name)
        if stat.S_ISLNK(info.st_mode):
            return None
        if not stat.S_ISREG(info.st_mode):
            raise FileExistsError(errno.EEXIST, "a special file is in the way", self.name)
        return info.st_uid, info.st_gid

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        self._hash.update(data)
        self.size += len(data)

    @property
    def done(self) -> Done:
        """What has been written so far."""
        return Done(sha256=self._hash.hexdigest(), size=self.size)

    def finish(self, expected: Done, mode: int, mtime_ns: int) -> None:
        """Put the file in place and close it, so that who hears of it finds it without a writer.

        Raises: RemoteProtocolError if it is not what `expected` says; OSError.
        """
        if self.done != expected:
            raise RemoteProtocolError(f"cannot copy {self.name}: what arrived is not what was sent")
        if self._owner is not None:
            with contextlib.suppress(PermissionError):  # as with cp: kept where we may
                os.fchown(self._descriptor, *self._owner)
        os.fchmod(self._descriptor, mode)
        os.utime(self._descriptor, ns=(mtime_ns, mtime_ns))
        os.fsync(self._descriptor)
        if not self._temporary:
            name = self._temporary_name()
            os.link(f"/proc/self/fd/{self._descriptor}", name, dst_dir_fd=self._directory, follow_symlinks=True)
            self._temporary = name
        os.rename(self._temporary, self.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._temporary = ""
        with contextlib.suppress(OSError):
            os.fsync(self._directory)  # some file systems have nothing to sync a directory with
        self.close()

    def close(self) -> None:
        """Remove what was not finished; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if self._temporary:
                with contextlib.suppress(OSError):
                    os.unlink(self._temporary, dir_fd=self._directory)
            os.close(self._directory)
