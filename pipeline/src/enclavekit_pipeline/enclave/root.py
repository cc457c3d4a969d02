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
MAX_ID = 2**32 - 2  # the one above means "unchanged" to some calls
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
        user, colon, group = text.partition(":")
        uid, gid, home = self._find("etc/passwd", user, text)
        if colon:
            gid = self._find("etc/group", group, text)[0]
        return uid, gid, home

    def _find(self, file: str, name: str, text: str) -> tuple[int, int, str]:
        """Return (id, group, home) of a line; a number needs no line. The app may have written anything into it."""
        for fields in self.read_accounts(file):
            number = _parse_id(fields[2]) if len(fields) > 3 else None
            if number is None or (fields[0] != name and fields[2] != name):
                continue
            if len(fields) < 6:
                return number, number, "/"
            if (group := _parse_id(fields[3])) is not None:
                return number, group, fields[5] or "/"
        if (number := _parse_id(name)) is not None:
            return number, number, "/"
        raise InputError("run as", repr(text), f"there is no {name!r} in the enclave's /{file}")

    def read_accounts(self, file: str) -> list[list[str]]:
        """Return the fields of each line of etc/passwd or etc/group; nothing of a file that cannot be read."""
        try:
            with open(self.open(file, os.O_RDONLY | os.O_NONBLOCK), "rb") as source:
                lines = (source.read(MAX_ACCOUNT_FILE_BYTES) or b"").decode(errors="replace").splitlines()
        except OSError:
            return []
        return [line.split(":") for line in lines]


def _parse_id(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= MAX_ID else None
