# SPDX-License-Identifier: Apache-2.0
"""Connects to upstreams: at once where the kernel does it by itself, in a thread where names or handshakes block.

One thread per attempt that needs one, so that none waits for another; the connection limits bound them.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol as Interface

from enclavekit_core import fabric
from enclavekit_core.address import Address, TcpAddress, UnixAddress, VsockAddress
from enclavekit_core.errors import TransportError
from enclavekit_core.streams import MAX_UNIX_PATH_BYTES, connect

from enclavekit_pf_proxy.destinations import DestinationRules
from enclavekit_pf_proxy.original_destination import mark_socket
from enclavekit_pf_proxy.sockets import spare_pacing
from enclavekit_pf_proxy.wire.request import Protocol, Status

ROUTE_LIFETIME_S = 1.0  # the registry is a few small files, but reading them costs more than connecting
KINDS = {Protocol.TCP: socket.SOCK_STREAM, Protocol.UDP: socket.SOCK_DGRAM}
IN_PROGRESS = {errno.EINPROGRESS, errno.EAGAIN}
REFUSED = {errno.ECONNREFUSED, errno.ECONNRESET}  # the latter is what AF_VSOCK says where nobody listens
UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENODEV, errno.EADDRNOTAVAIL}


class DestinationDenied(TransportError):
    """The rules of this end do not let it connect there."""

    def __init__(self, destination: TcpAddress) -> None:
        super().__init__("connect to", destination, "the destination is not allowed")


class Waiting(Interface):
    """Who waits for an attempt."""

    def dialled(self, upstream: socket.socket | None, error: TransportError | None) -> None:
        """The attempt has ended: either is there."""


@dataclass(frozen=True, slots=True)
class Begun:
    sock: socket.socket
    """Non-blocking."""
    connected: bool
    """Else: writable once it is decided, and SO_ERROR says how."""


class Dialer:
    """Makes upstream connections; the results of threads are handed on with `deliver`."""

    def __init__(self, wake: Callable[[], None], mark: int = 0) -> None:
        """`wake` is called from other threads whenever a result is ready. `mark`: SO_MARK over IP; 0 for none."""
        self._wake, self._mark = wake, mark
        self._results: deque[tuple[Waiting, socket.socket | None, TransportError | None]] = deque()
        self._routes: dict[int, tuple[float, fabric.Route]] = {}
        self._lock = threading.Lock()
        self._closed = False

    def begin(
        self, address: Address, rules: DestinationRules | None = None, protocol: Protocol = Protocol.TCP
    ) -> Begun | None:
        """Connect without waiting; None if that takes a thread.

        Args:
            rules: what an address must satisfy.
            protocol: over IP; UDP sockets are connected as well, but nothing is sent yet.
        Raises: TransportError, DestinationDenied.
        """
        try:
            match address:
                case TcpAddress():
                    return _begin_ip(address, rules, KINDS[protocol], self._mark)
                case UnixAddress(path):
                    return _begin_unix(path) if len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES else None
                case VsockAddress(cid, port):
                    route = self._route(cid)
                    if route.transport is fabric.Transport.KERNEL:
                        return _begin(socket.AF_VSOCK, (cid, port))
                    if route.transport is fabric.Transport.FABRIC:
                        return _begin_fabric(route, port)
        except OSError as exc:
            raise TransportError("connect to", address, exc) from exc
        return None

    def start(
        self,
        waiting: Waiting,
        address: Address,
        timeout_s: float,
        rules: DestinationRules | None = None,
        protocol: Protocol = Protocol.TCP,
    ) -> None:
        """Connect in a thread. Raises RuntimeError if none can be started."""
        # daemon: a stopping proxy does not wait for a connect timeout
        argv = (waiting, address, timeout_s, rules, protocol)
        threading.Thread(target=self._dial, args=argv, daemon=True, name="dial").start()

    def deliver(self) -> None:
        """Hand on what has ended since the last call."""
        while self._results:
            waiting, upstream, error = self._results.popleft()
            waiting.dialled(upstream, error)

    def close(self) -> None:
        """Let attempts under way end unheard; `wake` is not called any more."""
        with self._lock:
            self._closed = True
        while self._results:
            _, upstream, _ = self._results.popleft()
            if upstream is not None:
                upstream.close()

    def _route(self, cid: int) -> fabric.Route:
        now = time.monotonic()
        until, route = self._routes.get(cid, (0.0, None))
        if route is None or now >= until:
            route = fabric.find_route(cid)
            self._routes[cid] = (now + ROUTE_LIFETIME_S, route)
        return route

    def _dial(
        self,
        waiting: Waiting,
        address: Address,
        timeout_s: float,
        rules: DestinationRules | None,
        protocol: Protocol,
    ) -> None:
        upstream, error = None, None
        try:
            if isinstance(address, TcpAddress):
                upstream = connect_ip(address, rules, timeout_s, protocol, self._mark)
            else:
                upstream = connect(address, timeout_s)
        except TransportError as exc:
            error = exc
        except Exception as exc:  # whatever it is, the loop must hear of it or the client would wait for ever
            error = TransportError("connect to", address, exc)
        with self._lock:
            if not self._closed:
                self._results.append((waiting, upstream, error))
                self._wake()
            elif upstream is not None:
                upstream.close()


def connect_ip(
    destination: TcpAddress,
    rules: DestinationRules | None,
    timeout_s: float,
    protocol: Protocol = Protocol.TCP,
    mark: int = 0,
) -> socket.socket:
    """Resolve and connect to the first address that `rules` allow and that answers. Raises TransportError.

    What is checked is what is connected to: a name whose answer changes in between gains nothing.
    """
    deadline = time.monotonic() + timeout_s
    try:
        found = socket.getaddrinfo(destination.host, destination.port, type=KINDS[protocol])
    except (OSError, UnicodeError) as exc:
        raise TransportError("connect to", destination, exc) from exc
    error: TransportError = DestinationDenied(destination)
    for family, kind, _proto, _name, where in found:
        address = ipaddress.ip_address(str(where[0]).partition("%")[0])
        if rules is not None and not rules.allows(address, destination.port):
            continue
        left = deadline - time.monotonic()
        if left <= 0:
            raise TransportError("connect to", destination, "timed out")
        sock = socket.socket(family, kind | socket.SOCK_CLOEXEC)
        try:
            if mark:
                mark_socket(sock, mark)
            if address.is_loopback and protocol is Protocol.TCP:
                spare_pacing(sock)
            sock.settimeout(left)
            sock.connect(where)
            return sock
        except OSError as exc:
            sock.close()
            error = TransportError("connect to", TcpAddress(str(address), destination.port), exc)
            error.__cause__ = exc
    raise error


def status_of(error: TransportError) -> Status:
    """Return how the other end is told of `error`."""
    if isinstance(error, DestinationDenied):
        return Status.DENIED
    cause = error.__cause__
    if isinstance(cause, socket.gaierror):
        return Status.UNKNOWN_NAME
    if isinstance(cause, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return Status.TIMED_OUT
    if error.errno in REFUSED:
        return Status.REFUSED
    return Status.UNREACHABLE if error.errno in UNREACHABLE else Status.FAILED


def _begin_ip(address: TcpAddress, rules: DestinationRules | None, kind: int, mark: int) -> Begun | None:
    try:
        literal = ipaddress.ip_address(address.host)
    except ValueError:
        return None  # a name, or an address with a scope
    if rules is not None and not rules.allows(literal, address.port):
        raise DestinationDenied(address)
    family = socket.AF_INET if literal.version == 4 else socket.AF_INET6
    unpaced = literal.is_loopback and kind == socket.SOCK_STREAM
    return _begin(family, (address.host, address.port), kind=kind, mark=mark, unpaced=unpaced)


def _begin_unix(path: str) -> Begun | None:
    try:
        return _begin(socket.AF_UNIX, path, waits=False)
    except BlockingIOError:
        return None  # its queue is full: a thread waits for room


def _begin_fabric(route: fabric.Route, port: int) -> Begun | None:
    """Connect without following a link: whoever owns the directory might point it at another socket of ours."""
    for path in fabric.socket_candidates(route, port):
        try:
            handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if not stat.S_ISSOCK(os.fstat(handle).st_mode):
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            return _begin_unix(f"/proc/self/fd/{handle}")
        finally:
            os.close(handle)
    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


def _begin(
    family: int,
    name: object,
    *,
    waits: bool = True,
    kind: int = socket.SOCK_STREAM,
    mark: int = 0,
    unpaced: bool = False,
) -> Begun:
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if mark:
            mark_socket(sock, mark)
        if unpaced:
            spare_pacing(sock)
        code = sock.connect_ex(name)  # type: ignore[arg-type]  # typeshed knows no vsock tuples here
        if code == errno.EAGAIN and not waits:
            raise BlockingIOError(code, os.strerror(code))
        if code and code not in IN_PROGRESS:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return Begun(sock, code == 0)
