# SPDX-License-Identifier: Apache-2.0
"""Start PID 1 of an emulated enclave, and see to it that it cannot outlive the process that started it.

Three processes take part. The supervisor forks a *builder*, which leaves the host's namespaces, forks what becomes
PID 1 and exits. PID 1 is thereby handed to the supervisor (a child subreaper), asks the kernel to be killed with it
(PR_SET_PDEATHSIG is tied to the parent *thread*: the supervisor's main thread, which lives as long as it does), builds
its root, and executes /init when told to. Source: unshare(2), prctl(2), pid_namespaces(7).

Messages on the channel (SOCK_SEQPACKET), in order; any other, or none, is a failure:
    builder: unshared   supervisor: mapped   builder: pid N   supervisor: adopted
    PID 1: built INODE + console descriptor   supervisor: go   PID 1: end of file, because exec closed it
    builder or PID 1 instead, at any time: error NUMBER TEXT
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn, TypeVar

from enclavekit_core.errors import EnclavekitError

from enclavekit_emulator import namespaces as ns
from enclavekit_emulator.enclave_end import describe_init_end, is_orderly
from enclavekit_emulator.id_map import IdMap, write_id_map
from enclavekit_emulator.memory_limit import join_memory_group
from enclavekit_emulator.nitro_errors import BOOT_FAILURE, EIF_PARSING, NitroError
from enclavekit_emulator.root_fs import RootError, RootPlan, build_root

if TYPE_CHECKING:
    import asyncio

STEP_TIMEOUT_S = 30.0  # of one step of the handshake but "built", whose time depends on the image
BUILD_TIMEOUT_S = 170.0  # less than the 180 s after which nitro-cli gives up
MAX_MESSAGE_BYTES = 4096
INIT = "/init"
INIT_ENVIRONMENT = {"HOME": "/", "TERM": "linux"}  # what the kernel gives to init
Result = TypeVar("Result")
ENCLAVE_NAMESPACES = ns.CLONE_NEWNS | ns.CLONE_NEWPID | ns.CLONE_NEWNET | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC


@dataclass(slots=True)
class EnclaveProcess:
    """PID 1, adopted and building its root. The owner must `kill` it, whatever happens."""

    pid: int
    pidfd: int
    channel: socket.socket
    memory_is_grouped: bool

    def wait_until_built(self) -> tuple[int, int]:
        """Return (inode of the PID namespace, console descriptor). Raises NitroError 35 or 36."""
        self.channel.settimeout(BUILD_TIMEOUT_S)
        try:
            message, handles = _receive(self.channel)
        except EOFError as exc:
            raise NitroError(BOOT_FAILURE, "cannot build the enclave's root: its first process was killed") from exc
        word, _, rest = message.partition(" ")
        if word != "built" or len(handles) != 1:
            raise NitroError(BOOT_FAILURE, f"cannot build the enclave's root: unexpected message {word!r}")
        return int(rest), handles[0]

    def start_init(self) -> None:
        """Let PID 1 execute /init. Raises NitroError 36 if it cannot."""
        self.channel.settimeout(STEP_TIMEOUT_S)
        self.channel.send(b"go")
        try:
            message, _ = _receive(self.channel)
        except EOFError:
            return
        finally:
            self.channel.close()
        raise NitroError(BOOT_FAILURE, f"cannot start the enclave: unexpected message {message!r}")

    def kill(self) -> None:
        """End PID 1, and with it every process of the enclave, and reap it. Harmless when it has been reaped."""
        self.channel.close()
        if self.pidfd < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self.forget()

    def reap(self) -> int:
        """Return the wait status of PID 1, which has ended."""
        _, status = os.waitpid(self.pid, 0)
        self.forget()
        return status

    def describe_end(self, status: int) -> str:
        """Return how PID 1 ended, in words."""
        return describe_init_end(status)

    def is_orderly(self, status: int) -> bool:
        """Say whether PID 1 ended the way that a machine is switched off."""
        return is_orderly(status)

    def watch_companions(self, loop: asyncio.AbstractEventLoop) -> None:
        """Nothing beside PID 1 belongs to it."""

    def unwatch_companions(self, loop: asyncio.AbstractEventLoop) -> None:
        pass

    def forget(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.pidfd = -1


def spawn(root: RootPlan, id_map: IdMap, cgroup: str | None, limit_bytes: int) -> EnclaveProcess:
    """Start PID 1 up to where it builds its root; call it before the process has other threads.

    Args:
        cgroup: directory of the enclave's memory group; without one, `limit_bytes` bounds the data of each process.
    Raises:
        NitroError 36 naming the step that the machine refused.
    """
    ns.prctl(ns.PR_SET_CHILD_SUBREAPER, 1)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    builder = os.fork()
    if builder == 0:
        ours.close()
        _run_builder(theirs, root, None if cgroup else limit_bytes)
    theirs.close()
    try:
        ours.settimeout(STEP_TIMEOUT_S)
        _expect(ours, "unshared")
        write_id_map(builder, id_map)
        grouped = cgroup is not None and join_memory_group(cgroup, builder)
        ours.send(b"mapped")
        pid = int(_expect(ours, "pid"))
        pidfd = os.pidfd_open(pid)
    except BaseException:
        ours.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(builder, signal.SIGKILL)
        os.waitpid(builder, 0)
        raise
    os.waitpid(builder, 0)  # from here PID 1 is our child
    ours.send(b"adopted")
    return EnclaveProcess(pid, pidfd, ours, grouped)


def _expect(channel: socket.socket, word: str) -> str:
    """Receive a message that starts with `word` and return the rest. Raises NitroError 36."""
    try:
        message, _ = _receive(channel)
    except EOFError as exc:
        raise NitroError(BOOT_FAILURE, f"cannot start the enclave's first process: it ended before {word!r}") from exc
    got, _, rest = message.partition(" ")
    if got != word:
        raise NitroError(BOOT_FAILURE, f"cannot start the enclave's first process: unexpected message {got!r}")
    return rest


def _receive(channel: socket.socket) -> tuple[str, list[int]]:
    """Return one message and its descriptors. Raises EOFError, or the NitroError that the other side reports."""
    try:
        data, handles, _flags, _address = socket.recv_fds(channel, MAX_MESSAGE_BYTES, 1)
    except TimeoutError as exc:
        raise NitroError(BOOT_FAILURE, "cannot start the enclave: a step took too long") from exc
    except ConnectionResetError:
        raise EOFError from None
    if not data:
        raise EOFError
    message = data.decode("utf-8", "replace")
    if message.startswith("error "):
        _, number, text = message.split(" ", 2)
        raise NitroError(int(number), text)
    return message, handles


def _run_builder(channel: socket.socket, root: RootPlan, limit_bytes: int | None) -> NoReturn:
    def build() -> None:
        ns.prctl(ns.PR_SET_PDEATHSIG, signal.SIGKILL)
        _step("create a user namespace", lambda: ns.unshare(ns.CLONE_NEWUSER))
        channel.send(b"unshared")
        if channel.recv(MAX_MESSAGE_BYTES) != b"mapped":
            return
        _step("create namespaces", lambda: ns.unshare(ENCLAVE_NAMESPACES))
        with contextlib.suppress(OSError):  # without it the enclave sees the name of its group, no more
            ns.unshare(ns.CLONE_NEWCGROUP)
        pid = os.fork()
        if pid == 0:
            _run_pid1(channel, root, limit_bytes)
        channel.send(b"pid %d" % pid)

    _run_reporting(channel, build)


def _run_pid1(channel: socket.socket, root: RootPlan, limit_bytes: int | None) -> NoReturn:
    def boot() -> None:
        if channel.recv(MAX_MESSAGE_BYTES) != b"adopted":
            return
        console = _step("build the enclave's root", lambda: build_root(root))
        if limit_bytes is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
        # after the last change of ids, which would clear it
        ns.prctl(ns.PR_SET_PDEATHSIG, signal.SIGKILL)
        if _is_hung_up(channel):  # the supervisor died before that: nobody would kill us
            return
        namespace = os.stat("/proc/self/ns/pid").st_ino
        socket.send_fds(channel, [b"built %d" % namespace], [console])
        os.close(console)
        if channel.recv(MAX_MESSAGE_BYTES) != b"go":
            return
        _step(f"execute {INIT} of the image", _exec_init)

    _run_reporting(channel, boot)


def _is_hung_up(channel: socket.socket) -> bool:
    poller = select.poll()
    poller.register(channel, 0)
    return bool(poller.poll(0))


def _exec_init() -> None:
    ns.leave_session_keyring()
    ns.drop_host_only_capabilities()
    ns.prctl(ns.PR_SET_NO_NEW_PRIVS, 1)
    console = os.open("/dev/console", os.O_WRONLY | os.O_CLOEXEC)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    for number, handle in ((0, null), (1, console), (2, console)):
        os.dup2(handle, number, inheritable=True)
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):  # those that cannot be set
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execve(INIT, [INIT], INIT_ENVIRONMENT)  # noqa: S606 - no shell is the point


def _step(what: str, action: Callable[[], Result]) -> Result:
    """Run one step; its failure becomes a NitroError that names it."""
    try:
        return action()
    except NitroError:
        raise
    except (OSError, RootError) as exc:
        where = f" ({exc.filename})" if isinstance(exc, OSError) and exc.filename else ""
        cause = exc.strerror.lower() if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise NitroError(BOOT_FAILURE, f"cannot {what}: {cause}{where}") from exc
    except EnclavekitError as exc:
        # the libraries' word for a ramdisk that cannot be unpacked
        raise NitroError(EIF_PARSING, str(exc)) from exc


def _run_reporting(channel: socket.socket, action: Callable[[], None]) -> NoReturn:
    """Run the whole life of a forked process: it never returns into the supervisor's code, and says why it failed."""
    try:
        action()
        os._exit(0)
    except NitroError as exc:
        text = f"error {exc.number} {exc.message}"
    except BaseException as exc:
        text = f"error {BOOT_FAILURE} cannot start the enclave: {type(exc).__name__}: {exc}"
    try:
        channel.send(text.encode("utf-8", "replace")[:MAX_MESSAGE_BYTES])
    finally:
        os._exit(1)
