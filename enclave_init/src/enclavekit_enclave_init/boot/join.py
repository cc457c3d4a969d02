# SPDX-License-Identifier: Apache-2.0
"""Joins the parts of files that the image's archive could not hold, and gives files their capabilities.

An enclave's files are in its memory, so a part is moved from its end: a chunk is written where it belongs, then cut
off. At no time is more than one chunk there twice, on tmpfs, ramfs and disks alike (ramfs cannot punch holes).
"""

from __future__ import annotations

import os
import stat

from enclavekit_core.errors import InputError, VerificationError, describe_cause
from enclavekit_core.split_files import LIST_PATH, MAX_LIST_BYTES, FileList, SplitFile, decode_file_list

CHUNK_BYTES = 1 << 20
CAPABILITY = "security.capability"


def read_file_list(path: str = LIST_PATH) -> FileList:
    """Return the image's list; an image without one has nothing to join. Raises InputError, ConfigError."""
    try:
        with open(path, "rb") as source:
            raw = source.read(MAX_LIST_BYTES + 1)
    except FileNotFoundError:
        return FileList()
    except OSError as exc:
        raise InputError("read", path, describe_cause(exc)) from exc
    if len(raw) > MAX_LIST_BYTES:
        raise InputError("read", path, f"it is longer than {MAX_LIST_BYTES} bytes")
    return decode_file_list(raw, path)


def join_file(file: SplitFile, root: str = "") -> None:
    """Put the parts together, check the content, and give the file its names; the parts are gone then.

    Args: root: stands before every path; tests use it.
    Raises: OSError; VerificationError if the content is not what the image was built with.
    """
    parts = [root + _encoded(part) for part in file.parts]
    sizes = [_size_of(part) for part in parts]
    if sum(sizes) != file.size:
        raise VerificationError(f"the size of {file.names[0]}", str(file.size), str(sum(sizes)))
    fd = os.open(parts[0], os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        position = sizes[0]
        for part, size in zip(parts[1:], sizes[1:], strict=True):
            _move(part, size, fd, position)
            os.unlink(part)
            position += size
        found = _sha256_of(fd)
        if found != file.sha256:
            raise VerificationError(f"the content of {file.names[0]}", file.sha256, found)
        os.fchown(fd, file.uid, file.gid)
        os.fchmod(fd, file.mode)  # after chown, which clears setuid
        os.utime(fd, (file.mtime, file.mtime))
    finally:
        os.close(fd)
    for name in file.names:
        _link(parts[0], root + _encoded(name))
    os.unlink(parts[0])


def set_capability(path: str, value: bytes) -> None:
    """Set the file's `security.capability`. Raises OSError."""
    os.setxattr(_encoded(path), CAPABILITY, value, follow_symlinks=False)


def _encoded(path: str) -> str:
    """Return the path as this process names it: what was not UTF-8 in the image is so here too."""
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))


def _size_of(part: str) -> int:
    status = os.lstat(part)
    if not stat.S_ISREG(status.st_mode):
        raise InputError("read", part, "it is not a regular file")
    return status.st_size


def _move(part: str, size: int, target: int, position: int) -> None:
    """Move `part` to `position` of `target`, chunk by chunk from its end."""
    source = os.open(part, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        while size:
            start = max(0, size - CHUNK_BYTES)
            chunk = os.pread(source, size - start, start)
            _write_all(target, chunk, position + start)
            os.ftruncate(source, start)
            size = start
    finally:
        os.close(source)


def _write_all(fd: int, data: bytes, position: int) -> None:
    while data:  # a full file system writes less before it fails
        count = os.pwrite(fd, data, position)
        data, position = data[count:], position + count


def _sha256_of(fd: int) -> str:
    import hashlib  # OpenSSL is half of what PID 1 weighs, and most images have nothing to join

    digest, position = hashlib.sha256(), 0
    while chunk := os.pread(fd, CHUNK_BYTES, position):
        digest.update(chunk)
        position += len(chunk)
    return digest.hexdigest()


def _link(source: str, name: str) -> None:
    """Make `name`; its directory keeps its times, as if the file had been in the archive."""
    parent = os.path.dirname(name)
    before = os.stat(parent)
    os.link(source, name, follow_symlinks=False)
    os.utime(parent, ns=(before.st_atime_ns, before.st_mtime_ns))
