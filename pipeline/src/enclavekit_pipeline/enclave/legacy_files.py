# SPDX-License-Identifier: Apache-2.0
"""Files of the old protocol in the app's root: what a path means there, and never anything outside of it. Blocking."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator

from enclavekit_core.errors import InputError, RemoteProtocolError, describe_cause

from enclavekit_pipeline.channel.partial_file import PartialFile
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.wire.legacy_slc import MAX_FILES, check_tree_name

FILE_MODE, DIRECTORY_MODE = 0o644, 0o755  # the protocol carries none


def open_source(root: Root, path: str) -> tuple[int, int]:
    """Return (descriptor, size) of a regular file. Raises InputError."""
    try:
        descriptor = root.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO must not hang us; it is refused below
    except OSError as exc:
        raise InputError("send", "the file", describe_cause(exc)) from exc
    info = os.fstat(descriptor)
    if stat.S_ISREG(info.st_mode):
        return descriptor, info.st_size
    os.close(descriptor)
    raise InputError("send", "the file", "it is no regular file")


def open_target(root: Root, path: str) -> PartialFile:
    """Return the file to fill; directories above it are made. Raises InputError."""
    parent, _, name = path.rpartition("/")
    try:
        if name in ("", ".", ".."):
            raise InputError("store", "the file", "it would have no name")
        directory = make_directories(root, parent)
        try:
            return PartialFile(directory, os.fsencode(name))
        finally:
            os.close(directory)
    except OSError as exc:
        raise InputError("store", "the file", describe_cause(exc)) from exc


def make_directories(root: Root, path: str) -> int:
    """Return a descriptor of the directory, made with those above it if need be. Raises OSError, InputError."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InputError("make", "the directory", "its path has `..` in it")
    for count in range(1, len(parts) + 1):
        parent = root.open("/" + "/".join(parts[: count - 1]), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.mkdir(parts[count - 1], DIRECTORY_MODE, dir_fd=parent)
        except FileExistsError:
            pass  # a directory, or a link to one in this root: the next step finds out
        finally:
            os.close(parent)
    return root.open("/" + "/".join(parts), os.O_RDONLY | os.O_DIRECTORY)


def finish(file: PartialFile) -> None:
    """Put the file in place; the protocol carries neither mode nor time. Raises InputError."""
    try:
        file.finish(mode=FILE_MODE, mtime_ns=time.time_ns(), owner=file.owner, sync=True)
    except OSError as exc:
        raise InputError("store", "the file", describe_cause(exc)) from exc


def list_tree(root: Root, path: str) -> list[str]:
    """Return the names of the regular files below a directory; none if there is no directory.

    Links are not followed, and names that are no text cannot be told. Raises InputError for too many.
    """
    try:
        directory = root.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return []
    try:
        names: list[str] = []
        for name in _walk(directory):
            names.append(name)
            if len(names) > MAX_FILES:
                raise InputError("send", "the directory", f"it has more than {MAX_FILES} files")
        return names
    finally:
        os.close(directory)


def _walk(directory: int) -> Iterator[str]:
    for above, directories, files, descriptor in os.fwalk(".", dir_fd=directory, follow_symlinks=False):
        directories.sort()
        for file in sorted(files):
            if not stat.S_ISREG(os.stat(file, dir_fd=descriptor, follow_symlinks=False).st_mode):
                continue
            name = os.path.normpath(os.path.join(above, file))
            try:
                name.encode()
                check_tree_name(name)
            except (UnicodeEncodeError, RemoteProtocolError):
                continue
            yield name
