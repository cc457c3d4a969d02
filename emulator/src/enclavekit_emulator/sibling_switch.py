# SPDX-License-Identifier: Apache-2.0
"""Connects an enclave of the process machine to its siblings: it asks by CID and port, and gets the connected socket.

    CONNECT <CID> <port>\\n    in, on a connection of its own
    OK\\n + the socket         back (SCM_RIGHTS); nothing but the end if there is nobody

Only the connecting is ours: the bytes go from one enclave to the other. The one that asks is hostile, so each question
has a size and a deadline, and there are few at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Coroutine

from enclavekit_emulator.sibling_dial import dial, read_answer

MAX_QUESTIONS = 16  # at a time; a question takes a millisecond, or the time that a virtual machine takes to answer
MAX_LINE_BYTES = 32  # "CONNECT 4294967295 4294967295\n" is 30
TIMEOUT_S = 15.0
RETRY_S = 1.0  # after an accept that failed for want of descriptors


def parse_question(line: bytes) -> tuple[int, int] | None:
    """Return (CID, port) of a whole line; None if it is none. Pure."""
    words = line.removesuffix(b"\n").split(b" ")
    if len(words) != 3 or words[0] != b"CONNECT" or not (words[1].isdigit() and words[2].isdigit()):
        return None
    cid, port = int(words[1]), int(words[2])
    return (cid, port) if cid < 2**32 and port < 2**32 else None


class SiblingSwitch:
    """Answers the questions of one enclave."""

    def __init__(self, source_cid: int) -> None:
        self._source_cid = source_cid
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, listener: socket.socket) -> None:
        """Serve `listener`, which is closed by `close`."""
        listener.setblocking(False)
        self._spawn(self._accept(listener))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with listener:
            while True:
                try:
                    sock, _ = await loop.sock_accept(listener)
                except OSError:
                    await asyncio.sleep(RETRY_S)
                    continue
                if len(self._tasks) > MAX_QUESTIONS:  # this task is one of them
                    sock.close()
                    continue
                self._spawn(self._answer(sock))

    async def _answer(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(TIMEOUT_S):
                question = parse_question(await _read_line(sock))
                if question is None:
                    return
                dialled = dial(self._source_cid, *question)
                with dialled.sock:
                    if dialled.is_asked:
                        await _readable(dialled.sock)
                        if not read_answer(dialled.sock):
                            return
                    dialled.sock.setblocking(True)  # as the one who asked expects it
                    socket.send_fds(sock, [b"OK\n"], [dialled.sock.fileno()])


async def _read_line(sock: socket.socket) -> bytes:
    """Return what was sent up to a newline, the end or the limit."""
    loop, line = asyncio.get_running_loop(), b""
    while len(line) < MAX_LINE_BYTES and not line.endswith(b"\n"):
        chunk = await loop.sock_recv(sock, MAX_LINE_BYTES - len(line))
        if not chunk:
            break
        line += chunk
    return line


async def _readable(sock: socket.socket) -> None:
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(sock)
