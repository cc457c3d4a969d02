# SPDX-License-Identifier: Apache-2.0
"""Blocking connections and listeners on every kind of address.

`connect` and `Listener` hide which transport carries `vsock`: AF_VSOCK, the fabric directory or a hybrid Unix socket.
They hand out plain sockets, so that splice(2), TLS and asyncio (see `aio`) work on them as on any other.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import struct
from types import TracebackType

from enclavekit_core import fabric
from enclavekit_core.address import Address, TcpAddress, UnixAddress, VsockAddress
from enclavekit_core.errors import TransportError
from enclavekit_core.peers import Peer, identify_peer

DEFAULT_CONNECT_TIMEOUT_S = 10.0
DEFAULT_BACKLOG = 128
MAX_UNIX_PATH_BYTES = 107  # sockaddr_un.sun_path less the NUL
TIMEVAL = struct.Struct("ll")
MAX_HANDSHAKE_BYTES = 64  # "OK 4294967295\n" is 14


def connect(address: Address, timeout_s: float | None = DEFAULT_CONNECT_TIMEOUT_S) -> socket.socket:
    """Return a connected, blocking stream socket.

    Args:
        timeout_s: how long connecting (and a hybrid handshake) may take; the socket itself then has no timeout.
    Raises:
        TransportError("connect to", address, cause).
    """
    try:
        sock = _connect(address, timeout_s)
    except (OSError, UnicodeError) as exc:  # the latter: a host name that no resolver can be asked for
        raise TransportError("connect to", address, exc) from exc
    sock.settimeout(None)
    return sock


def _connect(address: Address, timeout_s: float | None) -> socket.socket:
    match address:
        case TcpAddress(host, port):
            sock = socket.create_connection((host, port), timeout=timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        case UnixAddress(path):
            return _connect_family(socket.AF_UNIX, path, timeout_s)
        case VsockAddress(cid, port):
            route = fabric.find_route(cid)
            match route.transport:
                case fabric.Transport.KERNEL:
                    return _connect_family(socket.AF_VSOCK, (cid, port), timeout_s)
                case fabric.Transport.FABRIC:
                    return _connect_fabric(route, port, timeout_s)
                case fabric.Transport.HYBRID:
                    return _connect_hybrid(route.path, port, timeout_s)
                case fabric.Transport.SIBLING:
                    return _connect_sibling(route, port, timeout_s)


def _connect_family(family: int, name: object, timeout_s: float | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        if family == socket.AF_UNIX and timeout_s is not None:
            _wait_for_room(sock, name, timeout_s)
        else:
            sock.settimeout(timeout_s)
            sock.connect(name)  # type: ignore[arg-type]  # typeshed knows no vsock tuples here
        sock.settimeout(timeout_s)
    except BaseException:
        sock.close()
        raise
    return sock


def _wait_for_room(sock: socket.socket, name: object, timeout_s: float) -> None:
    """Connect a Unix socket: only a blocking one waits while its queue is full, up to SO_SNDTIMEO."""
    seconds, fraction = divmod(max(timeout_s, 1e-6), 1)  # 0 would mean for ever
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMEVAL.pack(int(seconds), int(fraction * 1e6)))
    try:
        sock.connect(name)  # type: ignore[arg-type]  # as above
    except BlockingIOError:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, TIMEVAL.pack(0, 0))


def _connect_fabric(route: fabric.Route, port: int, timeout_s: float | None) -> socket.socket:
    """Connect without following a link: whoever owns the directory might point it at another socket of ours."""
    for path in fabric.socket_candidates(route, port):
        try:
            handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            if not stat.S_ISSOCK(os.fstat(handle).st_mode):
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            return _connect_family(socket.AF_UNIX, f"/proc/self/fd/{handle}", timeout_s)
        finally:
            os.close(handle)
    # nobody listens: what AF_VSOCK says in that case
    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


def _connect_hybrid(path: str, port: int, timeout_s: float | None) -> socket.socket:
    sock = _connect_family(socket.AF_UNIX, path, timeout_s)
    try:
        sock.sendall(b"CONNECT %d\n" % port)
        reply = b""
        while not reply.endswith(b"\n"):
            byte = sock.recv(1)  # one at a time: what follows the newline belongs to the stream
            if not byte or len(reply) > MAX_HANDSHAKE_BYTES:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            reply += byte
        if not reply.startswith(b"OK "):
            raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    except BaseException:
        sock.close()
        raise
    return sock


def _connect_sibling(route: fabric.Route, port: int, timeout_s: float | None) -> socket.socket:
    """Ask the parent, whose answer is the connected socket itself: no byte of the stream passes through anybody."""
    with _connect_family(socket.AF_UNIX, route.path, timeout_s) as asked:
        asked.sendall(b"CONNECT %d %d\n" % (route.cid, port))
        space = socket.CMSG_SPACE(struct.calcsize("i"))
        _answer, ancillary, _flags, _name = asked.recvmsg(MAX_HANDSHAKE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            sock = socket.socket(fileno=struct.unpack("i", data[:4])[0])
            sock.settimeout(timeout_s)
            return sock
    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


class Listener:
    """A listening socket that knows its address, tells peers apart and takes its socket file with it on close."""

    def __init__(
        self, address: Address, *, backlog: int = DEFAULT_BACKLOG, mode: int = 0o600, reuse_port: bool = False
    ) -> None:
        """Listen on `address`.

        Args:
            reuse_port: TCP only: others of this user may listen on it too, and the kernel shares connections out.
            mode: permissions of the socket file of a `unix://` address; the fabric's are open, its directory is not.
        Raises:
            TransportError("listen on", address, cause); a live listener there is "address already in use".
        """
        self.address = address
        self.on_fabric = False
        self._path = ""
        self._inode: tuple[int, int] | None = None
        try:
            self.socket = self._open(address, mode, reuse_port)
            self.socket.listen(backlog)
        except (OSError, UnicodeError) as exc:  # as in `connect`
            raise TransportError("listen on", address, exc) from exc

    def _open(self, address: Address, mode: int, reuse_port: bool) -> socket.socket:
        match address:
            case TcpAddress(host, port):
                family, kind, proto, _, name = socket.getaddrinfo(
                    host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
                )[0]
                sock = socket.socket(family, kind, proto)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if reuse_port:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                return _bind(sock, name)
            case UnixAddress(path):
                return self._open_unix(path, mode)
            case VsockAddress(cid, port):
                directory = fabric.find_listen_directory(cid)
                if directory is None:
                    return _bind(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM), (cid, port))
                self.on_fabric = True
                # an enclave's root has another uid than the host's, hence 0666; the directory above keeps others out
                return self._open_unix(os.path.join(directory, f"{port}.sock"), 0o666)

    def _open_unix(self, path: str, mode: int) -> socket.socket:
        directory, name = os.path.split(path)
        handle = os.open(directory, os.O_DIRECTORY | os.O_CLOEXEC)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # the lock makes "stale? then replace" one step against another starting listener
            fcntl.flock(handle, fcntl.LOCK_EX)
            _remove_stale(handle, name, path)
            short = path if len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES else f"/proc/self/fd/{handle}/{name}"
            _bind(sock, short)
            os.chmod(name, mode, dir_fd=handle)
            info = os.stat(name, dir_fd=handle, follow_symlinks=False)
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(handle)
        self._path, self._inode = path, (info.st_dev, info.st_ino)
        return sock

    @property
    def bound_address(self) -> Address:
        """The address with the port that the kernel chose, when 0 was asked for."""
        if isinstance(self.address, TcpAddress):
            return TcpAddress(self.address.host, self.socket.getsockname()[1])
        return self.address

    def accept(self) -> tuple[socket.socket, Peer]:
        """Wait for a connection and return it with who made it."""
        sock, name = self.socket.accept()
        try:
            return sock, identify_peer(sock, on_fabric=self.on_fabric, name=name)
        except OSError:
            # gone again before we could look: nobody's loss but its own
            sock.close()
            raise

    def leave_file(self) -> None:
        """The socket file is another process's to remove: this one has the socket from it."""
        self._inode = None

    def close(self) -> None:
        """Stop listening and remove the socket file if it is still ours."""
        self.socket.close()
        if self._inode is not None:
            try:
                info = os.lstat(self._path)
                if (info.st_dev, info.st_ino) == self._inode:
                    os.unlink(self._path)
            except FileNotFoundError:
                pass
            self._inode = None

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _bind(sock: socket.socket, name: object) -> socket.socket:
    try:
        sock.bind(name)  # type: ignore[arg-type]  # typeshed knows no vsock tuples here
    except BaseException:
        sock.close()
        raise
    return sock


def _remove_stale(directory: int, name: str, path: str) -> None:
    """Unlink a socket file whose owner is gone; leave a live one for bind to complain about."""
    try:
        info = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(info.st_mode):
        return
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(1.0)
        probe.connect(path if len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES else f"/proc/self/fd/{directory}/{name}")
    except ConnectionRefusedError:
        os.unlink(name, dir_fd=directory)
    except OSError:
        return
    finally:
        probe.close()
