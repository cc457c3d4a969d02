# SPDX-License-Identifier: Apache-2.0
"""The life of a started enclave: heartbeat, console, control requests, end. One asyncio loop in its supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from typing import TYPE_CHECKING

from enclavekit_core.exit_report import ExitReport
from enclavekit_core.processes import catches_signal

from enclavekit_emulator.console_feed import ConsoleFeed
from enclavekit_emulator.enclave_end import make_end_record
from enclavekit_emulator.memory_limit import ran_out_of_memory
from enclavekit_emulator.nitro_errors import BOOT_FAILURE, NitroError
from enclavekit_emulator.parent_ports import (
    HEARTBEAT,
    PortServer,
    receive_exit_report,
    receive_heartbeat,
)
from enclavekit_emulator.sibling_switch import SiblingSwitch
from enclavekit_emulator.state import CONSOLE_FILE

if TYPE_CHECKING:
    from enclavekit_emulator.enclave_process import EnclaveProcess
    from enclavekit_emulator.qemu_machine import QemuMachine
    from enclavekit_emulator.supervisor import Supervisor

STOP_GRACE_S = 20.0  # from SIGTERM to SIGKILL: PID 1 stops its units one after the other
MAX_REQUEST_BYTES = 4096
REQUEST_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 2.0
ATTACH_TIMEOUT_S = 5.0  # from the end of an enclave until its starter, who asked for the console, has come for it
BOOT_CONSOLE_LINES = 12  # shown when a boot fails
END_TURNS = 50  # of the loop, for an exit report that lies in a socket already when PID 1 has ended


async def supervise(owner: Supervisor) -> None:
    """Stay with a started enclave until it has ended and its traces are gone. Raises NitroError if it does not boot."""
    assert owner.machine is not None
    life = _Life(owner, owner.machine)
    try:
        await life.listen()
        await life.boot()
        await life.wait_for_end()
    finally:
        life.stop_listening()
    await life.answer_waiters()


class _Life:
    def __init__(self, owner: Supervisor, machine: EnclaveProcess | QemuMachine) -> None:
        self._owner = owner
        self._machine = machine
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._stop = asyncio.Event()
        self._attached = asyncio.Event()
        self._changed = asyncio.Event()
        """Set together with any of the above, and when a heartbeat has come."""
        self._heartbeat: bytes | None = None
        self._front_left = False
        self._report: ExitReport | None = None
        self._console = ConsoleFeed(owner.console)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiters: list[tuple[str, asyncio.StreamWriter]] = []
        self._heartbeat_port = PortServer(self._on_heartbeat)
        self._exit_port = PortServer(self._on_exit_report)
        self._siblings = SiblingSwitch(owner.record.cid)
        self._control: asyncio.Server | None = None

    async def listen(self) -> None:
        """Serve the enclave's ports and the control socket, and watch PID 1, the console, the front and signals."""
        # imported here because a cycle of modules is none at run time
        from enclavekit_emulator.supervisor import STOP_SIGNALS

        owner = self._owner
        if owner.record.debug_mode:
            path = os.path.join(owner.store.directory(owner.record.enclave_id), CONSOLE_FILE)
            self._console.write_to(path)
        self._loop.add_reader(self._machine.pidfd, self._set, self._ended)
        self._machine.watch_companions(self._loop)
        self._loop.add_reader(owner.console, self._console.read)
        owner.front.setblocking(False)
        self._loop.add_reader(owner.front.fileno(), self._on_front_gone)
        for number in STOP_SIGNALS:
            self._loop.add_signal_handler(number, self._set, self._stop)
        await self._heartbeat_port.start(owner.listeners.pop("heartbeat"))
        await self._exit_port.start(owner.listeners.pop("exit"))
        if listener := owner.listeners.pop("siblings", None):  # a virtual machine's device connects by itself
            self._siblings.start(listener)
        self._control = await asyncio.start_unix_server(
            self._on_request, sock=owner.listeners.pop("control"), limit=MAX_REQUEST_BYTES
        )

    def _set(self, event: asyncio.Event) -> None:
        event.set()
        self._changed.set()
        if event is self._ended and self._machine.pidfd >= 0:
            self._loop.remove_reader(self._machine.pidfd)

    def _on_front_gone(self) -> None:
        """Whoever ran run-enclave has left: an enclave that it never heard of must not stay."""
        self._loop.remove_reader(self._owner.front.fileno())
        self._front_left = True
        self._changed.set()

    async def boot(self) -> None:
        """Wait for the heartbeat. Raises NitroError 36 with the cause first and the console's last lines."""
        owner = self._owner
        name = owner.record.name
        deadline = self._loop.time() + owner.launch.boot_timeout_s
        while True:
            self._changed.clear()
            if self._heartbeat is not None or self._ended.is_set() or self._stop.is_set() or self._front_left:
                break
            try:
                await asyncio.wait_for(self._changed.wait(), deadline - self._loop.time())
            except TimeoutError:
                break
        if self._heartbeat == HEARTBEAT and not self._front_left:
            self._heartbeat_port.close()
            owner.update(state="RUNNING")
            self._loop.remove_reader(owner.front.fileno())
            owner.tell({"started": True, "notes": owner.notes})
            owner.front.close()
            if not owner.record.debug_mode:
                self._console.discard()  # no console outside debug mode: nobody may read it later
            return
        if self._front_left:
            cause = "run-enclave was interrupted"
        elif self._heartbeat is not None:
            cause = f"its heartbeat was 0x{self._heartbeat.hex()}, not 0x{HEARTBEAT.hex()}"
        elif self._ended.is_set():
            self._console.drain()
            cause = f"{self._machine.describe_end(self._machine.reap())} before its heartbeat"
            if owner.record.cgroup and ran_out_of_memory(owner.record.cgroup):
                cause = f"it ran out of its {owner.record.memory_mib} MiB: {cause}"
        elif self._stop.is_set():
            cause = "it was told to stop before its heartbeat"
        else:
            cause = f"no heartbeat within {owner.launch.boot_timeout_s:.0f} s"
        lines = self._console.last_lines(BOOT_CONSOLE_LINES)
        raise NitroError(BOOT_FAILURE, f"cannot boot enclave {name}: {cause}", tuple(f"  console: {s}" for s in lines))

    async def wait_for_end(self) -> None:
        """Wait until the enclave has ended by itself or was told to, and remove its traces."""
        while not self._ended.is_set() and not self._stop.is_set():
            self._changed.clear()
            await self._changed.wait()
        terminated = not self._ended.is_set()
        if terminated:
            await self._terminate()
        for _ in range(END_TURNS):
            if self._report is not None:
                break
            await asyncio.sleep(0)
        owner = self._owner
        if owner.launch.attach_console:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._attached.wait(), ATTACH_TIMEOUT_S)
        self._console.drain()
        group = owner.record.cgroup
        out_of_memory = group is not None and ran_out_of_memory(group)
        status = self._machine.reap()
        owner.end = make_end_record(
            owner.record,
            self._machine.describe_end(status),
            self._report,
            orderly=self._machine.is_orderly(status),
            terminated=terminated,
            out_of_memory=out_of_memory,
        )

    async def _terminate(self) -> None:
        self._owner.update(state="TERMINATING")
        # the kernel ignores signals for which PID 1 has no handler: then there is nothing to wait for
        if catches_signal(self._machine.pid, signal.SIGTERM):
            signal.pidfd_send_signal(self._machine.pidfd, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), STOP_GRACE_S)
        if not self._ended.is_set():
            signal.pidfd_send_signal(self._machine.pidfd, signal.SIGKILL)
            await self._ended.wait()

    def stop_listening(self) -> None:
        """Stop everything that `listen` started, then remove the enclave's traces."""
        from enclavekit_emulator.supervisor import STOP_SIGNALS

        owner = self._owner
        for number in STOP_SIGNALS:
            self._loop.remove_signal_handler(number)
        if self._machine.pidfd >= 0:
            self._loop.remove_reader(self._machine.pidfd)
        self._machine.unwatch_companions(self._loop)
        if owner.console >= 0:
            self._loop.remove_reader(owner.console)
        if owner.front.fileno() >= 0:
            self._loop.remove_reader(owner.front.fileno())
            owner.front.setblocking(True)
        self._heartbeat_port.close()
        self._exit_port.close()
        self._siblings.close()
        if self._control is not None:
            self._control.close()
        self._console.close_file()
        owner.clean_up()

    async def answer_waiters(self) -> None:
        """Tell those who waited; nothing of the enclave exists any more when they hear it."""
        assert self._owner.end is not None
        for verb, writer in self._waiters:
            answer: dict[str, object] = {"status": self._owner.end.command_status()}
            answer["terminated" if verb == "terminate" else "end"] = self._owner.end.to_json()
            with contextlib.suppress(OSError, TimeoutError):
                writer.write(json.dumps(answer).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), ANSWER_TIMEOUT_S)
            writer.close()
        self._console.end()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=ANSWER_TIMEOUT_S)

    # -- the enclave's side

    async def _on_heartbeat(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        byte = await receive_heartbeat(reader, writer)
        if self._heartbeat is None:
            self._heartbeat = byte
            self._changed.set()

    async def _on_exit_report(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        report = await receive_exit_report(reader)
        self._report = self._report or report  # the first counts: PID 1 sends one

    # -- the user's side

    async def _on_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), REQUEST_TIMEOUT_S)
            verb = json.loads(line).get("do")
        except (OSError, ValueError, AttributeError, TimeoutError):
            writer.close()
            return
        if verb in ("terminate", "wait"):
            self._waiters.append((verb, writer))
            if verb == "terminate":
                self._set(self._stop)
        elif verb == "console" and self._owner.record.debug_mode:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                self._attached.set()
                await self._console.stream_to(reader, writer)
            finally:
                self._tasks.discard(task)
                writer.close()
        else:
            writer.close()
