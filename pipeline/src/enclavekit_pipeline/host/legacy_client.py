# SPDX-License-Identifier: Apache-2.0
"""The client of the Rust framework's protocol: what listens there may be anybody, so nothing that it says is trusted.

Names that it chooses are plain relative ones or refused, links on our side are not followed, sizes are bounded, and a
file appears under its name only when all of it is there. Whether it is the right one, this protocol cannot tell.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from types import TracebackType

from enclavekit_core.address import VsockAddress
from enclavekit_core.errors import InputError, TransportError, describe_cause
from enclavekit_core.streams import connect

from enclavekit_pipeline.channel.partial_file import PartialFile
from enclavekit_pipeline.wire.legacy_slc import (
    INTEGER,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_RESULT_BYTES,
    MAX_TEXT_BYTES,
    CommandResult,
    Request,
    check_tree_name,
    decode_integer,
    decode_result,
    decode_text,
    encode_integer,
    encode_text,
)

RETRY_S = 0.1
CHUNK_BYTES = 1024 * 1024
STALL_TIMEOUT_S = 120.0  # of files; a command may take as long as it likes
FILE_MODE, DIRECTORY_MODE = 0o644, 0o755  # the protocol carries none
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class LegacyClient:
    """One connection, which is one request."""

    def __init__(self, address: VsockAddress, connect_timeout_s: float) -> None:
        """Connect, and try again while the enclave is still booting. Raises TransportError."""
        self._address = address
        deadline = time.monotonic() + connect_timeout_s
        while True:
            try:
                self._socket = connect(address, max(deadline - time.monotonic(), RETRY_S))
                break
            except TransportError as exc:
                nobody_yet = isinstance(exc.__cause__, ConnectionRefusedError | ConnectionResetError)
                if not nobody_yet or time.monotonic() + RETRY_S >= deadline:
                    raise
            time.sleep(RETRY_S)
        self._socket.settimeout(STALL_TIMEOUT_S)

    def __enter__(self) -> LegacyClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._socket.close()

    def run(self, command: str, *, wait: bool) -> CommandResult:
        """Run a command by the enclave's bash. Raises TransportError, RemoteProtocolError."""
        self._send(encode_integer(Request.RUN if wait else Request.RUN_NO_WAIT) + encode_text(command))
        self._socket.settimeout(None)
        size = self._read_integer(MAX_RESULT_BYTES, "the command's result")
        self._socket.settimeout(STALL_TIMEOUT_S)
        return decode_result(b"".join(self._read_parts(size)))

    def send_file(self, local: str, remote: str) -> int:
        """Send a file and return its size; that it arrived, the protocol never says."""
        with open_source(local) as (descriptor, size):
            self._send(encode_integer(Request.STORE_FILE) + encode_text(remote))
            self._send_content(descriptor, size, local)
        return size

    def receive_file(self, remote: str, local: str) -> int:
        """Return the size."""
        directory, name = os.path.split(local)
        if name in ("", ".", ".."):
            raise InputError("copy to", local, "the file would have no name")
        self._send(encode_integer(Request.FETCH_FILE) + encode_text(remote))
        try:
            return self._receive_content(os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY), name, local)
        except OSError as exc:
            raise InputError("copy to", local, describe_cause(exc)) from exc

    def send_tree(self, local: str, remote: str) -> int:
        """Send the regular files of a directory, links not followed; return how many."""
        names = list_tree(local)
        self._send(encode_integer(Request.STORE_TREE) + encode_text(remote) + encode_integer(len(names)))
        for name in names:
            with open_source(os.path.join(local, name)) as (descriptor, size):
                self._send(encode_text(name))
                self._send_content(descriptor, size, name)
        return len(names)

    def receive_tree(self, remote: str, local: str) -> int:
        """Return how many files came. Nothing is written outside of `local`, whatever the enclave calls its files."""
        self._send(encode_integer(Request.FETCH_TREE) + encode_text(remote))
        count = self._read_integer(MAX_FILES, "the number of files")
        if not count:
            raise InputError(
                "copy", remote, "it is missing, empty or no directory: the old protocol does not say which"
            )
        try:
            os.makedirs(local, DIRECTORY_MODE, exist_ok=True)
            top = os.open(local, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for _ in range(count):
                    length = self._read_integer(MAX_TEXT_BYTES, "a name")
                    name = decode_text(b"".join(self._read_parts(length)), "a name")
                    *parents, last = check_tree_name(name)
                    self._receive_content(make_directories(top, parents), last, name)
            finally:
                os.close(top)
        except OSError as exc:
            raise InputError("copy to", local, describe_cause(exc)) from exc
        return count

    def _send_content(self, descriptor: int, size: int, name: str) -> None:
        self._send(encode_integer(size))
        left = size  # what the file grows by meanwhile is not announced, hence not sent
        while left:
            data = os.read(descriptor, min(left, CHUNK_BYTES))
            if not data:
                raise InputError("send", name, "it has become shorter")
            self._send(data)
            left -= len(data)

    def _receive_content(self, directory: int, name: str, shown: str) -> int:
        """Fill a file in the open `directory`, which is closed. Raises OSError, TransportError."""
        try:
            size = self._read_integer(MAX_FILE_BYTES, "a file's size")
            file = PartialFile(directory, os.fsencode(name))
        finally:
            os.close(directory)
        try:
            for data in self._read_parts(size):
                file.write(data)
            file.finish(mode=FILE_MODE, mtime_ns=time.time_ns(), owner=file.owner, sync=True)
        finally:
            file.close()
        return size

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as exc:
            raise TransportError("send to", self._address, exc) from exc

    def _read_parts(self, count: int) -> Iterator[bytes]:
        while count:
            try:
                data = self._socket.recv(min(count, CHUNK_BYTES))
            except OSError as exc:
                raise TransportError("read from", self._address, exc) from exc
            if not data:
                raise TransportError(
                    "read from", self._address, "it has hung up, and the old protocol has no words why"
                )
            count -= len(data)
            yield data

    def _read_integer(self, limit: int, what: str) -> int:
        return decode_integer(b"".join(self._read_parts(INTEGER.size)), limit, what)


@contextlib.contextmanager
def open_source(path: str) -> Iterator[tuple[int, int]]:
    """Yield (descriptor, size) of a regular file. Raises InputError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise InputError("send", path, describe_cause(exc)) from exc
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise InputError("send", path, "it is no regular file")
        yield descriptor, info.st_size
    finally:
        os.close(descriptor)


def list_tree(path: str) -> list[str]:
    """Return the names of the regular files below `path`. Raises InputError."""
    if not os.path.isdir(path):
        raise InputError("send", path, "it is no directory")
    names = []
    for above, directories, files in os.walk(path):
        directories.sort()
        for file in sorted(files):
            if os.path.isfile(os.path.join(above, file)) and not os.path.islink(os.path.join(above, file)):
                names.append(os.path.relpath(os.path.join(above, file), path))
    if not names or len(names) > MAX_FILES:
        raise InputError("send", path, f"it has {len(names)} files, the old protocol takes 1 to {MAX_FILES}")
    return names


def make_directories(top: int, parts: list[str]) -> int:
    """Return a descriptor of the directory `parts` below `top`; made if need be, links refused. Raises OSError."""
    current = os.dup(top)
    for part in parts:
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, DIRECTORY_MODE, dir_fd=current)
            following = os.open(part, DIRECTORY, dir_fd=current)
        finally:
            os.close(current)
        current = following
    return current
