# SPDX-License-Identifier: Apache-2.0
"""/dev/nsm in a virtual machine that has no NSM: a character device that hands each ioctl to the emulator over vsock.

    python3 -I -m enclavekit_nsm.relay --port N

Started by enclave_init, only when the emulator's boot parameter names a port and there is no NSM. Whoever trusts the
development root trusts the emulator anyway: this adds nothing that a real enclave would have. Prints `ready` when the
device is there, then closes its standard output and serves.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import socket
import sys

from enclavekit_core.address import CID_PARENT, VsockAddress
from enclavekit_core.cli import run_and_exit
from enclavekit_core.errors import EnclavekitError, InputError, describe_cause
from enclavekit_core.streams import connect

from enclavekit_nsm import cuse
from enclavekit_nsm.client import DEFAULT_DEVICE, LENGTH
from enclavekit_nsm.messages import MAX_RESPONSE_BYTES

CUSE_DEVICE = "/dev/cuse"
CUSE_NUMBER = os.makedev(10, 203)  # Documentation/admin-guide/devices.txt
DEVICE_MODE = 0o666  # as the driver has it: whoever is in the enclave may ask
TIMEOUT_S = 120.0  # what the drivers wait for the device


class Upstream:
    """One connection to the emulator's NSM, made again when it has gone."""

    def __init__(self, port: int) -> None:
        self._address = VsockAddress(CID_PARENT, port)
        self._socket: socket.socket | None = None

    def exchange(self, request: bytes) -> bytes:
        """Return the response. Raises OSError: EIO whatever went wrong on the way."""
        for attempt in range(2):
            try:
                return self._exchange(request)
            except (OSError, EnclavekitError):
                if self._socket is not None:
                    self._socket.close()
                self._socket = None
                if attempt:
                    break
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _exchange(self, request: bytes) -> bytes:
        if self._socket is None:
            self._socket = connect(self._address, TIMEOUT_S)
            self._socket.settimeout(TIMEOUT_S)
        self._socket.sendall(LENGTH.pack(len(request)) + request)
        size = LENGTH.unpack(self._receive(LENGTH.size))[0]
        if size > MAX_RESPONSE_BYTES:
            raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
        return self._receive(size)

    def _receive(self, count: int) -> bytes:
        assert self._socket is not None
        data = bytearray()
        while len(data) < count:  # not MSG_WAITALL, which does not wait on a socket with a timeout
            chunk = self._socket.recv(count - len(data))
            if not chunk:
                raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            data += chunk
        return bytes(data)


def open_cuse() -> int:
    """Open the device of CUSE, made first where nobody did. Raises InputError."""
    try:
        with contextlib.suppress(FileExistsError):
            os.mknod(CUSE_DEVICE, 0o600 | 0o020000, CUSE_NUMBER)  # S_IFCHR
        return os.open(CUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise InputError("open", CUSE_DEVICE, f"{describe_cause(exc)}; this kernel needs CONFIG_CUSE") from exc


def serve(handle: int, port: int) -> None:
    """Answer the kernel until it lets go of the device."""
    upstream, name = Upstream(port), os.path.basename(DEFAULT_DEVICE)
    while True:
        try:
            raw = os.read(handle, cuse.READ_BYTES)
        except InterruptedError:
            continue
        except OSError as exc:
            if exc.errno in (errno.ENODEV, errno.ENOENT):  # unmounted; a request that was given up meanwhile
                if exc.errno == errno.ENODEV:
                    return
                continue
            raise InputError("read", CUSE_DEVICE, describe_cause(exc)) from exc
        request = cuse.parse_request(raw)
        reply = cuse.answer(request, name, upstream.exchange)
        if reply is not None:
            with contextlib.suppress(FileNotFoundError):  # the caller was killed meanwhile
                os.write(handle, reply)
        if request.opcode == cuse.Opcode.CUSE_INIT:
            _announce()


def _announce() -> None:
    with contextlib.suppress(OSError):
        os.chmod(DEFAULT_DEVICE, DEVICE_MODE)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def main() -> int:
    parser = argparse.ArgumentParser(prog="nsm-relay", description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, required=True, help="the parent's vsock port that answers for the NSM")
    args = parser.parse_args()
    serve(open_cuse(), args.port)
    return 0


if __name__ == "__main__":
    run_and_exit("nsm-relay", main)
