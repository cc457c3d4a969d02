# SPDX-License-Identifier: Apache-2.0
"""The output of every unit: pipes in, lines out to the log hub."""

from __future__ import annotations

import os

from enclavekit_enclave_init.logs.hub import LogHub
from enclavekit_enclave_init.logs.output import LineSplitter
from enclavekit_enclave_init.runtime.reactor import READ, Reactor

READ_BYTES = 65536  # a pipe's capacity
MAX_DRAIN_READS = 16  # of a unit that has ended; what its escaped children still write is not waited for


class _Stream:
    """One output pipe of a unit; outlives the process if others hold its other end."""

    def __init__(self, name: str, kind: str, fd: int) -> None:
        self.name, self.kind, self.fd = name, kind, fd
        self.splitter = LineSplitter()


class OutputStreams:
    """All pipes, by unit."""

    def __init__(self, reactor: Reactor, hub: LogHub) -> None:
        self._reactor, self._hub = reactor, hub
        self._streams: dict[str, list[_Stream]] = {}

    def add(self, name: str, kind: str, fd: int) -> None:
        """Read `fd`, which is non-blocking and ours from now on. `kind`: STDOUT or STDERR."""
        stream = _Stream(name, kind, fd)
        self._streams.setdefault(name, []).append(stream)
        self._reactor.watch(fd, READ, lambda: self._read(stream))

    def drain(self, name: str) -> None:
        """Take what a unit has written, as far as it is there already."""
        for stream in list(self._streams.get(name, ())):
            for _ in range(MAX_DRAIN_READS):
                if not self._read(stream):
                    break

    def close(self, name: str) -> None:
        """Read no more from a unit: whoever still writes there loses its reader."""
        for stream in list(self._streams.get(name, ())):
            self._close(stream)

    def close_all(self) -> None:
        """Take what is there from everybody, then read no more."""
        for name in list(self._streams):
            self.drain(name)
            self.close(name)

    def _read(self, stream: _Stream) -> bool:
        """Take what is there, at most READ_BYTES; return whether there may be more at once."""
        try:
            data = os.read(stream.fd, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close(stream)
            return False
        self._hub.write(stream.name, stream.kind, stream.splitter.feed(data))
        return len(data) == READ_BYTES

    def _close(self, stream: _Stream) -> None:
        self._streams[stream.name].remove(stream)
        self._reactor.close_fd(stream.fd)
        self._hub.write(stream.name, stream.kind, stream.splitter.feed_eof())
