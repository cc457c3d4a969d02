# SPDX-License-Identifier: Apache-2.0
"""The app's root seen from outside of it: opening what a path means in there, without ever leaving it.

The app may plant any link it likes, so names are resolved by the kernel as in a chroot (openat2 with RESOLVE_IN_ROOT);
kernels before 5.6 get a walk that follows no link at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

from enclavekit_core.errors import InputError

OPEN_HOW = struct.Struct("=QQQ")  # flags, mode, resolve: struct open_how, openat2(2)
SYS_OPENAT2 = 437  # on every architecture
RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10
MAX_ACCOUNT_FILE_BYTES = 1024 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class Root:
    """A directory that paths are resolved in."""

    def __init__(self, path: str) -> None:
        """Raises OSError if it is no directory."""
        self.path = os.path.realpath(path)
        self.descriptor = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def open(self, path: str, flags: int, mode: int = 0) -> int:
        """Return a descriptor for `path` as a process in this root would open it. Raises OSError."""
        flags |= os.O_CLOEXEC
        how = ctypes.create_string_buffer(OPEN_HOW.pack(flags, mode, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS))
        name = ctypes.c_char_p(os.fsencode(path))
        descriptor = int(_libc.syscall(SYS_OPENAT2, self.descriptor, name, how, OPEN_HOW.size))
        if descriptor >= 0:
            return descriptor
        number = ctypes.get_errno()
        if number == errno.ENOSYS:
            return self._walk(path, flags, mode)
        raise OSError(number, os.strerror(number), path)

    def _walk(self, path: str, flags: int, mode: int) -> int:
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise OSError(errno.EXDEV, f"this kernel ({platform.release()}) resolves no `..` safely", path)
        current = os.dup(self.descriptor)
        try:
            for part in parts[:-1]:
                following = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
                os.close(current)
                current = following
            last = parts[-1] if parts else "."
            return os.open(last, flags | os.O_NOFOLLOW, mode, dir_fd=current)
        finally:
            os.close(current)

    def name_of(self, descriptor: int) -> str:
        """Return where an open directory or file is, absolute in this root and free of links."""
        outside = os.readlink(f"/proc/self/fd/{descriptor}")
        if self.path == "/":
            return outside
        if outside != self.path and not outside.startswith(self.path + "/"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), outside)
        return outside[len(self.path) :] or "/"

    def find_user(self, text: str) -> tuple[int, int, str]:
        """Return (uid, gid, home) for `name`, `uid` or either with `:group`, by this root's own files.

        Raises: InputError.
        """
        user, _, group = text.partition(":")
        uid, gid, home = self._account("etc/passwd", user, text)
        if group:
            gid = int(group) if group.isdigit() else self._account("etc/group", group, text)[0]
        return uid, gid, home

    def _account(self, file: str, name: str, text: str) -> tuple[int, int, str]:
        try:
            with open(self.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as source:
                lines = source.read(MAX_ACCOUNT_FILE_BYTES).decode(errors="replace").splitlines()
        except OSError:
            lines = []
        for line in lines:
            fields = line.split(":")
            if len(fields) > 3 and (fields[0] == name or (name.isdigit() and fields[2] == name)):
                is_user = len(fields) > 5
                return int(fields[2]), int(fields[3]) if is_user else int(fields[2]), fields[5] if is_user else "/"
        if name.isascii() and name.isdigit():
            return int(name), int(name), "/"
        raise InputError("run as", repr(text), f"there is no {name!r} in the enclave's /{file}")
