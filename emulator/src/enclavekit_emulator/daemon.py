# SPDX-License-Identifier: Apache-2.0
"""Detach a supervisor from the command that starts it, and hear from it how the boot went."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Callable
from typing import Any, NoReturn

from enclavekit_emulator.nitro_errors import BOOT_FAILURE, NitroError

LOG_FILE = "supervisor.log"
MAX_LINE_BYTES = 64 * 1024  # console lines of a failed boot included


class Front:
    """The starting command's end of the socket to its supervisor."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._rest = b""

    def read(self) -> dict[str, Any]:
        """Return the next message. Raises the NitroError that the supervisor reports, or one saying that it ended."""
        while b"\n" not in self._rest:
            chunk = self._socket.recv(MAX_LINE_BYTES)
            if not chunk or len(self._rest) > MAX_LINE_BYTES:
                raise NitroError(BOOT_FAILURE, "cannot start the enclave: its supervisor was killed")
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\n")
        message = json.loads(line)
        if error := message.get("error"):
            raise NitroError(error["number"], error["message"], tuple(error["details"]))
        assert isinstance(message, dict)
        return message

    def close(self) -> None:
        self._socket.close()


def start_daemon(run: Callable[[socket.socket], None], directory: str) -> Front:
    """Run `run(front socket)` in a process of its own: own session, no terminal, no descriptor of ours.

    Args:
        directory: where its stderr goes (LOG_FILE).
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        _run_detached(run, theirs, directory)
    theirs.close()
    os.waitpid(child, 0)
    return Front(ours)


def _run_detached(run: Callable[[socket.socket], None], front: socket.socket, directory: str) -> NoReturn:
    status = 1
    try:
        os.setsid()
        if os.fork() > 0:
            os._exit(0)  # the supervisor is nobody's child, so nobody has to reap it
        os.chdir("/")
        os.umask(0o022)
        null = os.open(os.devnull, os.O_RDWR)
        log = os.open(os.path.join(directory, LOG_FILE), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for number, handle in ((0, null), (1, log), (2, log)):
            os.dup2(handle, number)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != front.fileno():
                with contextlib.suppress(OSError):  # the one that listed the directory
                    os.close(int(name))
        run(front)
        status = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            front.close()
        os._exit(status)
