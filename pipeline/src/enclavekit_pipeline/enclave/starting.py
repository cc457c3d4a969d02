# SPDX-License-Identifier: Apache-2.0
"""Starting processes from the listener: by the small process that `forker` is, or, where that is not there, by a fork
of the listener itself.
"""

from __future__ import annotations

import contextlib
import errno
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass

from enclavekit_core.errors import InputError

from enclavekit_pipeline.enclave import forker
from enclavekit_pipeline.enclave.forker import Order

ANSWER_TIMEOUT_S = 10.0  # for a child to be ready; a small process that is stopped or starved is given up
START_TIMEOUT_S = 10.0  # for the steps and exec(2), which nothing but a file system that hangs makes slow
HEARD = b"."
MAX_REPORT_BYTES = 1024


@dataclass
class Process:
    """A child of ours."""

    pid: int
    returncode: int | None = None
    """As subprocess has it: negative for a signal; None until it has been reaped."""

    def wait(self) -> int:
        """Reap it; blocks while it runs."""
        if self.returncode is None:
            try:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            except ChildProcessError:  # somebody else has: its status is lost
                self.returncode = forker.CANNOT_START
        return self.returncode


class Starter:
    """Starts processes; used by one thread."""

    def __init__(self) -> None:
        self._orders: socket.socket | None = None
        self._forker: subprocess.Popen[bytes] | None = None

    @classmethod
    def launch(cls) -> Starter:
        """Start the small process; without it, all works the same and takes longer."""
        starter = cls()
        if os.uname().machine not in forker.SYS_CLONE or not os.path.isfile(forker.__file__):
            return starter
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            argv = [sys.executable, "-I", "-S", forker.__file__, str(its.fileno())]
            try:
                starter._forker = subprocess.Popen(argv, stdin=subprocess.DEVNULL, pass_fds=[its.fileno()])
            except OSError:
                ours.close()
                return starter
        ours.settimeout(ANSWER_TIMEOUT_S)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            ours.setsockopt(socket.SOL_SOCKET, option, 2 * forker.MAX_ORDER_BYTES)
        starter._orders = ours
        return starter

    def start(self, order: Order, descriptors: list[int]) -> Process:
        """Start a process as `order` says; return once it runs what it should.

        Args:
            descriptors: standard input, output and error, then what the steps of the order name by place, from 4 on.
        Raises:
            InputError: it could not be started; the cause says which step failed.
        """
        word = repr(os.fsdecode(order[1][0]))
        with contextlib.ExitStack() as stack:
            read, write = os.pipe2(os.O_CLOEXEC)
            stack.callback(os.close, read)
            with contextlib.ExitStack() as its:
                its.callback(os.close, write)
                process = Process(self._fork(order, [*descriptors[:3], write, *descriptors[3:]]))
            if not _readable(read):
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                raise InputError("run", word, "it does not start")
            report = os.read(read, MAX_REPORT_BYTES)
        if not report:
            return process
        process.wait()
        step, number = marshal.loads(report)  # noqa: S302 - from our own code in the child
        cause = os.strerror(number).lower()
        raise InputError("run", word, f"it could not {step}: {cause}" if step else cause)

    def _fork(self, order: Order, descriptors: list[int]) -> int:
        """Return the number of a new child. Raises InputError if the system has no room for one."""
        pid = self._ask(order, descriptors)
        if pid is None:
            try:
                pid = os.fork()
            except OSError as exc:
                pid = -(exc.errno or 1)
            if pid == 0:
                os.setsid()
                forker.shed()
                forker.become(order, descriptors)
        if pid < 0:
            raise InputError("run", repr(os.fsdecode(order[1][0])), os.strerror(-pid).lower())
        return pid

    def _ask(self, order: Order, descriptors: list[int]) -> int | None:
        """Give the order to the child that is ready; None if there is none any more."""
        if self._orders is None:
            return None
        try:
            pid = self._next_child(self._orders)
            if pid > 0:
                socket.send_fds(self._orders, [marshal.dumps(order)], descriptors)
            else:
                self._orders.send(HEARD)
            return pid
        except OSError:
            self.close()
            return None

    @staticmethod
    def _next_child(orders: socket.socket) -> int:
        """Return the number of the child that waits for an order, or the negative error number why there is none."""
        while answer := orders.recv(MAX_REPORT_BYTES):
            pid = int(marshal.loads(answer))  # noqa: S302 - from our own process, over our own pair
            if pid < 0 or os.waitpid(pid, os.WNOHANG)[0] == 0:  # somebody may have killed it
                return pid
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    def close(self) -> None:
        """End the small process; idempotent. What it has started runs on."""
        if self._forker is not None:
            with contextlib.suppress(ProcessLookupError):
                self._forker.send_signal(signal.SIGKILL)
            self._forker.wait()
            self._forker = None
        if self._orders is not None:
            orders, self._orders = self._orders, None
            with contextlib.suppress(OSError), orders:
                child = Process(self._next_child(orders))  # the one that was to be next ends when we are gone
                orders.close()
                child.wait()


def _readable(descriptor: int) -> bool:
    """Wait until there is something to read, or the end."""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return bool(poller.poll(START_TIMEOUT_S * 1000))
