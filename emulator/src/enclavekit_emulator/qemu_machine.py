# SPDX-License-Identifier: Apache-2.0
"""Start an enclave as a virtual machine: QEMU and the process of its socket device, both tied to the supervisor.

Both are forked while the supervisor has one thread, ask the kernel to be killed with it, and wait for its word: QEMU
until the image is measured and the NSM is there, so that no guest runs that was not measured.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from enclavekit_core.streams import DEFAULT_BACKLOG

from enclavekit_emulator import namespaces as ns
from enclavekit_emulator.nitro_errors import BOOT_FAILURE, NitroError
from enclavekit_emulator.parent_ports import listen_unix
from enclavekit_emulator.qemu_command import BINARIES, NITRO_MACHINE, parse_machines

if TYPE_CHECKING:
    import asyncio

    from enclavekit_eif.model import Section
    from enclavekit_eif.reader import Eif

HYBRID_SOCKET = "vsock.sock"
COPY_BYTES = 1 << 20
HELP_TIMEOUT_S = 30.0
MAX_ERROR_BYTES = 4096


class QemuMachine:
    """QEMU and its device. The owner must `kill` it, whatever happens."""

    def __init__(
        self, pid: int, device_pid: int, console: int, files: tuple[int, int], go: socket.socket, vhost_fd: int
    ) -> None:
        self.pid, self.device_pid, self.console = pid, device_pid, console
        self.kernel, self.payload = files
        self.pidfd, self.device_pidfd = os.pidfd_open(pid), os.pidfd_open(device_pid)
        self.vhost_fd = vhost_fd
        """In QEMU's process: its socket to the device."""
        self._go = go
        self._device_failed = False

    def start(self, command: list[str]) -> None:
        """Let QEMU run. Raises NitroError 36 if it cannot even be executed."""
        self._go.sendall("\0".join(command).encode())
        self._go.shutdown(socket.SHUT_WR)
        for fd in (self.kernel, self.payload):
            os.close(fd)
        problem = self._go.recv(MAX_ERROR_BYTES)  # nothing once exec has closed it
        self._go.close()
        if problem:
            raise NitroError(BOOT_FAILURE, f"cannot run {command[0]}: {problem.decode(errors='replace')}")

    def watch_companions(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the machine when its device has failed: it can reach nobody any more, and nobody it."""
        loop.add_reader(self.device_pidfd, self._on_device_end, loop)

    def unwatch_companions(self, loop: asyncio.AbstractEventLoop) -> None:
        if self.device_pidfd >= 0:
            loop.remove_reader(self.device_pidfd)

    def _on_device_end(self, loop: asyncio.AbstractEventLoop) -> None:
        self.unwatch_companions(loop)
        _, status = os.waitpid(self.device_pid, 0)
        os.close(self.device_pidfd)
        self.device_pidfd = -1
        if status and self.pidfd >= 0:  # else it has seen the end of QEMU, and so will we
            self._device_failed = True
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def kill(self) -> None:
        """End both processes and reap them. Harmless when they have been reaped."""
        self._go.close()
        for pid, pidfd in ((self.pid, self.pidfd), (self.device_pid, self.device_pidfd)):
            if pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)
                os.close(pidfd)
        self.pidfd = self.device_pidfd = -1

    def reap(self) -> int:
        """Return the wait status of QEMU, which has ended."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pidfd = -1
        return status

    def describe_end(self, status: int) -> str:
        """Return how the machine ended, in words."""
        if self._device_failed:
            return "its vsock device failed, so its virtual machine was ended"
        if os.WIFSIGNALED(status):
            return f"its virtual machine was killed by signal {os.WTERMSIG(status)}"
        if code := os.WEXITSTATUS(status):
            return f"its virtual machine failed with status {code}"
        return "its virtual machine was switched off"

    def is_orderly(self, status: int) -> bool:
        """A guest's power switch says nothing about the app: without its report nobody knows."""
        return False


def find_qemu(arch: str) -> str | None:
    """Return the path of the QEMU for images of `arch`, if there is one."""
    return shutil.which(BINARIES[arch])


def has_nitro_machine(binary: str) -> bool:
    """Say whether this QEMU has the machine that emulates Nitro's."""
    try:
        done = subprocess.run([binary, "-M", "help"], capture_output=True, text=True, timeout=HELP_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return NITRO_MACHINE in parse_machines(done.stdout)


def spawn(fabric_directory: str, cid: int) -> QemuMachine:
    """Fork QEMU, which waits for `start`, and its device's process; call it before the process has other threads.

    Args: fabric_directory: the enclave's, for the socket by which the host reaches it.
    """
    hybrid = listen_unix(fabric_directory, HYBRID_SOCKET, 0o666, backlog=DEFAULT_BACKLOG)
    supervisor = os.getpid()
    ours, theirs = socket.socketpair()
    vhost, vhost_of_qemu = socket.socketpair()
    output, console = os.pipe()
    files = (os.memfd_create("kernel", 0), os.memfd_create("payload", 0))  # filled later; QEMU inherits them
    try:
        device = _fork(
            supervisor,
            lambda: _run_device(vhost, hybrid, cid, (ours, theirs, vhost_of_qemu), (output, console, *files)),
        )
        qemu = _fork(supervisor, lambda: _run_qemu(theirs, (ours, vhost), console, vhost_of_qemu.fileno()))
    finally:
        vhost_fd = vhost_of_qemu.fileno()
        for end in (vhost, vhost_of_qemu, hybrid, theirs):
            end.close()
        os.close(console)
    os.set_blocking(output, False)
    return QemuMachine(qemu, device, output, files, ours, vhost_fd)


def _fork(supervisor: int, run: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        for number in signal.valid_signals():
            with contextlib.suppress(OSError, ValueError):  # those that cannot be set
                signal.signal(number, signal.SIG_DFL)
        ns.prctl(ns.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == supervisor:  # else it died before that, and nobody would kill us
            run()
    finally:
        os._exit(1)


def _run_device(
    vhost: socket.socket, hybrid: socket.socket, cid: int, ends: tuple[socket.socket, ...], fds: tuple[int, ...]
) -> NoReturn:
    from enclavekit_emulator.vsock_device.daemon import serve

    for end in ends:
        end.close()
    for fd in fds:
        os.close(fd)
    try:
        serve(vhost, hybrid, cid)
        os._exit(0)  # QEMU has ended
    except BaseException:
        import traceback

        traceback.print_exc()  # into the supervisor's log
        os._exit(1)


def _run_qemu(go: socket.socket, others: tuple[socket.socket, ...], console: int, vhost_fd: int) -> None:
    for other in others:
        other.close()
    os.set_inheritable(vhost_fd, True)
    command = b""
    while chunk := go.recv(COPY_BYTES):
        command += chunk
    if not command:
        return
    null = os.open(os.devnull, os.O_RDONLY)
    for number, handle in ((0, null), (1, console), (2, console)):
        os.dup2(handle, number, inheritable=True)
    argv = command.decode().split("\0")
    try:
        os.execv(argv[0], argv)  # noqa: S606 - no shell is the point
    except OSError as exc:
        go.sendall((exc.strerror or str(exc)).lower().encode())


def copy_sections(eif: Eif, sections: list[Section], target: int) -> str:
    """Write `sections`, end to end, into the memory file `target`; return its name for QEMU. Raises OSError."""
    with open(target, "wb", closefd=False) as out:
        for section in sections:
            with eif.open_section(section) as source:
                shutil.copyfileobj(source, out, COPY_BYTES)
    return f"/proc/self/fd/{target}"


def copy_image(eif: Eif, target: int) -> str:
    """Write the whole image into the memory file `target`; return its name for QEMU. Raises OSError."""
    size, done = os.fstat(eif.fd).st_size, 0
    while done < size:
        count = os.sendfile(target, eif.fd, done, size - done)
        if not count:
            break  # it was cut short meanwhile, which is noticed
        done += count
    return f"/proc/self/fd/{target}"
