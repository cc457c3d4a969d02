# SPDX-License-Identifier: Apache-2.0
"""The device client: the same CBOR over the ioctl of a character device or over the emulator's Unix socket.

Source: include/uapi/linux/nsm.h (NSM_IOCTL_RAW) and the spec's table of the two drivers.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TypeVar

from enclavekit_core.errors import DeviceError, RemoteProtocolError, describe_cause

from enclavekit_nsm import messages

DEFAULT_DEVICE = "/dev/nsm"
DEVICE_VARIABLE = "ENCLAVEKIT_NSM"
NSM_IOCTL_RAW = 0xC0200A00  # _IOWR(0x0A, 0, struct nsm_raw)
NSM_RAW = struct.Struct("=QQQQ")  # request address, length; response address, length
LENGTH = struct.Struct(">I")  # frame of the Unix socket: u32 big-endian, then the CBOR
DEFAULT_TIMEOUT_S = 120.0  # what the kernel drivers wait for the device
MAX_UNIX_PATH_BYTES = 107  # sockaddr_un.sun_path less the NUL

Ioctl = Callable[[int, int, bytearray], int]
Expected = TypeVar("Expected", bound=messages.Response)


class Channel(Protocol):
    """One request out, one response back."""

    def exchange(self, request: bytes) -> bytes: ...

    def close(self) -> None: ...


class IoctlChannel:
    """`/dev/nsm` as the kernel's driver offers it."""

    def __init__(self, descriptor: int, ioctl: Ioctl = fcntl.ioctl) -> None:
        """Take over the open `descriptor`; `ioctl` is for tests, no machine without Nitro has the device."""
        self._descriptor, self._ioctl = descriptor, ioctl

    def exchange(self, request: bytes) -> bytes:
        outgoing = ctypes.create_string_buffer(request, len(request))
        incoming = ctypes.create_string_buffer(messages.MAX_RESPONSE_BYTES)
        argument = bytearray(
            NSM_RAW.pack(ctypes.addressof(outgoing), len(request), ctypes.addressof(incoming), len(incoming))
        )
        self._ioctl(self._descriptor, NSM_IOCTL_RAW, argument)
        length = NSM_RAW.unpack(argument)[3]
        if length > len(incoming):
            raise RemoteProtocolError(f"cannot read NSM response: the device reports {length} bytes")
        return incoming.raw[:length]

    def close(self) -> None:
        os.close(self._descriptor)


class SocketChannel:
    """The emulator's NSM. Connects again after a failure: what is left in the old stream answers an older request."""

    def __init__(self, path: str, timeout_s: float) -> None:
        """Connect. Raises OSError.

        Args:
            timeout_s: for one request and its response together.
        """
        self._path, self._timeout_s = path, timeout_s
        self._socket: socket.socket | None = _connect(path, timeout_s)

    def exchange(self, request: bytes) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        if self._socket is None:
            self._socket = _connect(self._path, self._timeout_s)
        try:
            self._socket.settimeout(self._timeout_s)
            self._socket.sendall(LENGTH.pack(len(request)) + request)
            (length,) = LENGTH.unpack(_receive(self._socket, LENGTH.size, deadline))
            if length > messages.MAX_RESPONSE_BYTES:
                raise RemoteProtocolError(f"cannot read NSM response: it announces {length} bytes")
            return _receive(self._socket, length, deadline)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class NsmClient:
    """Typed calls on one open device. Threads may share it: calls go one after the other, as in the driver.

    Raises, in each call: DeviceError with the NSM's own error name, or with the system's cause; LocalProtocolError for
    an index that is no u16.
    """

    def __init__(self, channel: Channel, device: str = DEFAULT_DEVICE) -> None:
        self._channel, self._device = channel, device
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, path: str | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> NsmClient:
        """Open `path`, else $ENCLAVEKIT_NSM, else /dev/nsm. Raises DeviceError.

        Args:
            timeout_s: per call, on a socket; the driver of a character device has its own 120 s.
        """
        device = path or os.environ.get(DEVICE_VARIABLE) or DEFAULT_DEVICE
        try:
            return cls(_open_channel(device, timeout_s), device)
        except OSError as exc:
            raise DeviceError("open", device, describe_cause(exc)) from exc

    def describe_nsm(self) -> messages.DescribeNsmResponse:
        return self._call(messages.DescribeNsmRequest(), messages.DescribeNsmResponse, "describe")

    def describe_pcr(self, index: int) -> messages.DescribePcrResponse:
        return self._call(messages.DescribePcrRequest(index), messages.DescribePcrResponse, f"read PCR{index} of")

    def extend_pcr(self, index: int, data: bytes) -> bytes:
        """Extend a register by raw `data` and return its new value, 48 bytes."""
        return self._call(
            messages.ExtendPcrRequest(index, data), messages.ExtendPcrResponse, f"extend PCR{index} of"
        ).data

    def lock_pcr(self, index: int) -> None:
        self._call(messages.LockPcrRequest(index), messages.LockPcrResponse, f"lock PCR{index} of")

    def lock_pcrs(self, range: int) -> None:
        """Lock registers 0..range-1."""
        self._call(messages.LockPcrsRequest(range), messages.LockPcrsResponse, f"lock PCR0..{range - 1} of")

    def attestation(
        self, user_data: bytes | None = None, nonce: bytes | None = None, public_key: bytes | None = None
    ) -> bytes:
        """Return a fresh attestation document: COSE_Sign1 bytes, at most 12 KiB; inputs of at most 1024 bytes each."""
        request = messages.AttestationRequest(user_data, nonce, public_key)
        return self._call(request, messages.AttestationResponse, "get a document from").document

    def get_random(self) -> bytes:
        """Return up to 256 random bytes."""
        return self._call(messages.GetRandomRequest(), messages.GetRandomResponse, "get random bytes from").random

    def _call(self, request: messages.Request, expected: type[Expected], op: str) -> Expected:
        try:
            response = messages.decode_response(self._exchange(messages.encode_request(request)))
        except messages.RequestTooLargeError as exc:
            # the device would say the same, had we sent it
            raise DeviceError(op, self._device, messages.ErrorCode.INPUT_TOO_LARGE.value) from exc
        except RemoteProtocolError as exc:
            raise DeviceError(op, self._device, f"{messages.ErrorCode.INVALID_RESPONSE.value}: {exc}") from exc
        except OSError as exc:
            if exc.errno == errno.EMSGSIZE:
                raise DeviceError(op, self._device, messages.ErrorCode.INPUT_TOO_LARGE.value) from exc
            raise DeviceError(op, self._device, describe_cause(exc)) from exc
        if isinstance(response, messages.ErrorResponse):
            raise DeviceError(op, self._device, response.code.value)
        if not isinstance(response, expected):
            raise DeviceError(op, self._device, messages.ErrorCode.INVALID_RESPONSE.value)
        return response

    def _exchange(self, request: bytes) -> bytes:
        with self._lock:
            if self._closed:
                # its descriptor's number may be somebody else's by now
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            return self._channel.exchange(request)

    def close(self) -> None:
        """Close the device, after the call that another thread may be in. Again is harmless."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._channel.close()

    def __enter__(self) -> NsmClient:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _open_channel(path: str, timeout_s: float) -> Channel:
    mode = os.stat(path).st_mode
    if stat.S_ISCHR(mode):
        return IoctlChannel(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
    return SocketChannel(path, timeout_s)


def _connect(path: str, timeout_s: float) -> socket.socket:
    if len(os.fsencode(path)) > MAX_UNIX_PATH_BYTES:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            return _connect(f"/proc/self/fd/{handle}", timeout_s)
        finally:
            os.close(handle)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(path)
    except BaseException:
        sock.close()
        raise
    return sock


def _receive(sock: socket.socket, count: int, deadline: float) -> bytes:
    """Return exactly `count` bytes. Raises TimeoutError at the deadline, ConnectionResetError if the stream ends."""
    data = bytearray()
    while len(data) < count:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        sock.settimeout(left_s)
        chunk = sock.recv(count - len(data))
        if not chunk:
            raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        data += chunk
    return bytes(data)
