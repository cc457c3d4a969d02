# SPDX-License-Identifier: Apache-2.0
"""A file that appears under its name only when all of it is there and is what the sender says it is."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat

from enclavekit_core.errors import RemoteProtocolError

from enclavekit_pipeline.requests import Done

NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class PartialFile:
    """Written under a temporary name beside its target. Blocking: callers run it in a thread."""

    def __init__(self, directory: int, name: str) -> None:
        """Start a file in the open directory `directory`, which is kept open until the end. Raises OSError."""
        self._directory, self.name = directory, name
        # never longer than the name it stands for may be: NAME_MAX is 255 bytes
        self._temporary = f".{os.fsdecode(os.fsencode(name)[:200])}.{secrets.token_hex(8)}.partial"
        self._hash, self.size = hashlib.sha256(), 0
        self._refuse_special()
        self._descriptor = os.open(self._temporary, NEW_FILE, 0o600, dir_fd=directory)

    def _refuse_special(self) -> None:
        """Replace regular files and links (the link itself), nothing else."""
        try:
            mode = os.stat(self.name, dir_fd=self._directory, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(21, os.strerror(21), self.name)
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise FileExistsError(17, "a special file is in the way", self.name)

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
        """Put the file in place. Raises RemoteProtocolError if it is not what `expected` says; OSError."""
        if self.done != expected:
            raise RemoteProtocolError(f"cannot copy {self.name}: what arrived is not what was sent")
        os.fchmod(self._descriptor, mode)
        os.utime(self._descriptor, ns=(mtime_ns, mtime_ns))
        os.fsync(self._descriptor)
        os.rename(self._temporary, self.name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        self._temporary = ""
        with contextlib.suppress(OSError):
            os.fsync(self._directory)  # some file systems have nothing to sync a directory with

    def close(self) -> None:
        """Remove what was not finished; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if self._temporary:
                with contextlib.suppress(OSError):
                    os.unlink(self._temporary, dir_fd=self._directory)
            os.close(self._directory)
