# SPDX-License-Identifier: Apache-2.0
"""Live logs for the parent, over vsock and unencrypted: only what the image lets it have (`logs.to_parent`).

Whoever connects to `logs.stream_port` gets JSON lines from then on; any number may. The Rust initctl's way is there as
well: on request PID 1 connects to a port of the parent and sends a unit's lines as text. A reader that is slow or dead
loses lines; connecting, too, waits for nobody.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Collection

from enclavekit_core import fabric
from enclavekit_core.address import CID_ANY, CID_HOST, CID_PARENT, VsockAddress
from enclavekit_core.errors import EnclavekitError, InputError, describe_cause
from enclavekit_core.peers import identify_peer
from enclavekit_core.streams import Listener, connect

from enclavekit_enclave_init.logs.config import ALL_LINES, INIT_LINES, NOTHING, LogConfig
from enclavekit_enclave_init.logs.hub import LogHub, Reader
from enclavekit_enclave_init.logs.line_queue import LineQueue
from enclavekit_enclave_init.logs.records import INIT_NAME, KERNEL_NAME, format_json, format_text
from enclavekit_enclave_init.runtime.reactor import READ, WRITE, Reactor

MAX_STREAMS = 16
CONNECT_TIMEOUT_S = 0.2  # of the fabric, which is local; on a kernel of its own connecting does not block
OWN = (INIT_NAME, KERNEL_NAME)


class _Stream:
    """One connection; ends by itself when the peer has gone."""

    def __init__(
        self, sock: socket.socket, reader: Reader, reactor: Reactor, on_end: Callable[[_Stream], None]
    ) -> None:
        self._sock, self._reactor, self._on_end = sock, reactor, on_end
        self.reader = reader
        self._unsent = b""
        self._connecting = True
        self._open = True
        reader.wake = self._flush  # type: ignore[method-assign]  # its owner sets it
        reactor.watch(sock.fileno(), READ | WRITE, self._on_ready)

    def _on_ready(self) -> None:
        self._connecting = False
        try:
            if not self._sock.recv(4096):  # it has nothing to say: any end is the end
                self.end()
                return
        except BlockingIOError:
            pass
        except OSError:
            self.end()
            return
        self._flush()

    def _flush(self) -> None:
        if not self._open or self._connecting:
            return
        try:
            while self._unsent or self.reader.queue:
                self._unsent = self._unsent or self.reader.queue.take()
                sent = self._sock.send(self._unsent)
                self._unsent = self._unsent[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self.end()
            return
        self._reactor.watch(self._sock.fileno(), READ | WRITE if self._unsent else READ, self._on_ready)

    def end(self) -> None:
        """Close at once. Idempotent."""
        if self._open:
            self._open = False
            self._reactor.unwatch(self._sock.fileno())
            self._sock.close()
            self._on_end(self)


class ParentStreams:
    def __init__(self, reactor: Reactor, hub: LogHub, config: LogConfig, parent_cid: int) -> None:
        self._reactor, self._hub, self._config, self._parent_cid = reactor, hub, config, parent_cid
        self._streams: dict[_Stream, str] = {}  # the unit that was asked for; empty: all
        self._listener: Listener | None = None

    def listen(self) -> None:
        """Listen, if the configuration says so. Raises TransportError."""
        if not self._config.stream_port or self._config.to_parent == NOTHING:
            return
        self._listener = Listener(VsockAddress(CID_ANY, self._config.stream_port), backlog=4)
        self._listener.socket.setblocking(False)
        self._reactor.watch(self._listener.socket.fileno(), READ, self._accept)

    def dial(self, unit: str, address: VsockAddress) -> None:
        """Connect to the parent and send it what `unit` says from now on. Raises InputError."""
        if address.cid not in (self._parent_cid, CID_PARENT, CID_HOST):
            raise InputError("stream to", str(address), "logs go to the parent and nobody else")
        if not self._may_have(unit):
            raise InputError("stream", f"the log of {unit}", f"logs.to_parent is {self._config.to_parent!r}")
        if len(self._streams) >= MAX_STREAMS:
            raise InputError("stream", f"the log of {unit}", f"there are {MAX_STREAMS} streams already")
        try:
            sock = _begin_connect(VsockAddress(self._parent_cid, address.port))
        except (OSError, EnclavekitError) as exc:
            raise InputError("stream to", str(address), describe_cause(exc)) from exc
        self._add(sock, Reader((unit,), LineQueue(format_text)), unit)

    def hang_up(self, unit: str) -> int:
        """End the connections that `dial` made for `unit`; return how many there were."""
        chosen = [stream for stream, name in self._streams.items() if name == unit]
        for stream in chosen:
            stream.end()
        return len(chosen)

    def close(self) -> None:
        for stream in list(self._streams):
            stream.end()
        if self._listener is not None:
            self._reactor.unwatch(self._listener.socket.fileno())
            self._listener.close()
            self._listener = None

    def _may_have(self, unit: str) -> bool:
        return self._config.to_parent == ALL_LINES or (self._config.to_parent == INIT_LINES and unit in OWN)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.socket.accept()
        except OSError:
            return
        try:
            # on one machine there may be other enclaves: they are nobody's parent
            known = identify_peer(sock, on_fabric=self._listener.on_fabric).cid in (self._parent_cid, CID_PARENT)
        except OSError:
            known = False
        if not known or len(self._streams) >= MAX_STREAMS:
            sock.close()
            return
        sock.setblocking(False)
        units: Collection[str] | None = None if self._config.to_parent == ALL_LINES else OWN
        self._add(sock, Reader(units, LineQueue(format_json)), "")

    def _add(self, sock: socket.socket, reader: Reader, unit: str) -> None:
        try:
            self._hub.follow(reader)
        except ValueError as exc:
            sock.close()
            if unit:
                raise InputError("stream", f"the log of {unit}", str(exc)) from exc
            return
        self._streams[_Stream(sock, reader, self._reactor, self._forget)] = unit

    def _forget(self, stream: _Stream) -> None:
        self._hub.leave(stream.reader)
        self._streams.pop(stream, None)


def _begin_connect(address: VsockAddress) -> socket.socket:
    """Return a socket that connects or has. Raises OSError, TransportError."""
    if fabric.find_route(address.cid).transport is not fabric.Transport.KERNEL:
        sock = connect(address, CONNECT_TIMEOUT_S)
        sock.setblocking(False)
        return sock
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    code = sock.connect_ex((address.cid, address.port))
    if code not in (0, errno.EINPROGRESS):
        sock.close()
        raise OSError(code, os.strerror(code))
    return sock
