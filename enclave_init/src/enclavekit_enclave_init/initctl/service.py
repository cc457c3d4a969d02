# SPDX-License-Identifier: Apache-2.0
"""Carries out requests: the shell between the control socket and everything that PID 1 can do.

A request that begins something (a start, a stop) is answered when it has come about; nothing waits for it meanwhile
but the one who asked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

from enclavekit_core.address import VsockAddress
from enclavekit_core.errors import InputError, describe_cause

from enclavekit_enclave_init.initctl import answers, proc_table
from enclavekit_enclave_init.initctl.boot_times import BootTimes
from enclavekit_enclave_init.initctl.connection import Connection
from enclavekit_enclave_init.initctl.framing import Framing, encode_frame
from enclavekit_enclave_init.initctl.http import answer_get
from enclavekit_enclave_init.initctl.metrics import Sample, describe_health, render_metrics
from enclavekit_enclave_init.initctl.processes import Processes
from enclavekit_enclave_init.initctl.requests import Request, encode_answer
from enclavekit_enclave_init.initctl.waiting import Goal, Waiting
from enclavekit_enclave_init.logs.hub import LogHub, Reader
from enclavekit_enclave_init.logs.line_queue import LineQueue
from enclavekit_enclave_init.logs.parent_streams import ParentStreams
from enclavekit_enclave_init.logs.records import INIT_NAME, KERNEL_NAME, Batch, lines_of
from enclavekit_enclave_init.runtime.control import Control
from enclavekit_enclave_init.runtime.event_loop import EventLoop
from enclavekit_enclave_init.supervision.state import UnitStatus

LINES_PER_ANSWER = 1000  # so that an answer of many lines is many answers, and none is large


class ControlService:
    """Everything that a request can reach."""

    def __init__(
        self,
        loop: EventLoop,
        control: Control,
        hub: LogHub,
        times: BootTimes,
        streams: ParentStreams,
        directories: tuple[str, str],
    ) -> None:
        """`directories` are those of logs and units, for SystemStatus."""
        self._loop, self._control, self._hub, self._times, self._streams = loop, control, hub, times, streams
        self._directories = directories
        self._waiting = Waiting(control)
        self._processes = Processes(loop, hub)

    def carry_out(self, request: Request, connection: Connection) -> None:
        """Answer, now or later. Raises EnclavekitError for what is refused; then nothing has been done."""
        handler = getattr(self, f"_on_{request.verb}")
        answer = handler(connection, **request.values)
        if answer is not None:
            connection.answer(*answer)
            connection.finish()

    def answer_get(self, path: str) -> bytes:
        units = self._control.snapshot()
        return answer_get(path, describe_health(units), self._metrics(units))

    # units ----------------------------------------------------------------------------------------------------

    def _on_Ping(self, _: Connection) -> Any:
        return ("Pong",)

    def _on_ListServices(self, _: Connection) -> Any:
        return "ServiceList", {"services": [answers.unit_in_list(unit) for unit in self._control.snapshot()]}

    def _on_ServiceStatus(self, _: Connection, name: str) -> Any:
        return "ServiceStatus", {"status": answers.unit_status(self._find(name))}

    def _on_ServiceStart(self, connection: Connection, name: str) -> Any:
        self._control.start(name)
        self._await(connection, name, Goal.UP, f"{name} is up")

    def _on_ServiceStop(self, connection: Connection, name: str) -> Any:
        self._control.stop(name)
        self._await(connection, name, Goal.DOWN, f"{name} is down")

    def _on_ServiceRestart(self, connection: Connection, name: str) -> Any:
        old_pid = self._find(name).pid
        self._control.restart(name)
        self._await(connection, name, Goal.UP, f"{name} is up again", old_pid)

    def _on_ServiceReload(self, _: Connection, name: str) -> Any:
        self._control.reload(name)
        return _success(f"{name} reloads")

    def _on_ServiceKill(self, _: Connection, name: str, signal: int) -> Any:
        self._control.kill(name, signal)
        return _success(f"signal {signal} was sent to {name}")

    def _on_ServiceEnable(self, _: Connection, name: str) -> Any:
        self._control.enable(name)
        return _success(f"{name} is enabled")

    def _on_ServiceDisable(self, connection: Connection, name: str) -> Any:
        self._control.disable(name)
        self._await(connection, name, Goal.DOWN, f"{name} is disabled")

    def _find(self, name: str) -> UnitStatus:
        for unit in self._control.snapshot():
            if unit.name == name:
                return unit
        raise InputError("find", f"unit {name}", "there is no such unit")

    def _await(self, connection: Connection, name: str, goal: Goal, message: str, old_pid: int | None = None) -> None:
        def on_settled(failure: str) -> None:
            if failure:
                connection.answer("Error", {"message": failure})
            else:
                connection.answer(*_success(message))
            connection.finish()

        connection.on_abandon = self._waiting.wait_for(name, goal, on_settled, old_pid)

    # logs -----------------------------------------------------------------------------------------------------

    def _on_ServiceLogs(self, _: Connection, name: str, lines: int) -> Any:
        self._check_log(name)
        return "ServiceLogs", {"logs": answers.log_texts(self._hub.tail((name,), lines))}

    def _on_ServiceLogsClear(self, _: Connection, name: str) -> Any:
        self._check_log(name)
        try:
            self._hub.clear(name)
        except OSError as exc:
            raise InputError("clear", f"the log of {name}", describe_cause(exc)) from exc
        return _success(f"the log of {name} is empty")

    def _on_ServiceLogsStream(self, _: Connection, name: str, vsock_cid: int, vsock_port: int) -> Any:
        self._check_log(name)
        self._streams.dial(name, VsockAddress(vsock_cid, vsock_port))
        return "LogsStreamStarted", {"service": name, "vsock_cid": vsock_cid, "vsock_port": vsock_port}

    def _on_ServiceLogsStreamStop(self, _: Connection, name: str) -> Any:
        ended = self._streams.hang_up(name)
        if not ended:
            raise InputError("end", f"the stream of {name}", "there is none")
        return _success(f"{ended} streams of {name} have ended")

    def _on_Logs(self, connection: Connection, units: tuple[str, ...], lines: int, since: float, follow: bool) -> Any:
        for name in units:
            self._check_log(name)
        if connection.framing is not Framing.FRAMED:
            raise InputError("carry out", "Logs", "it has several answers, which only framed requests can get")
        chosen = units or None
        if follow:
            reader = Reader(chosen, LineQueue(_frame_batch))
            try:
                self._hub.follow(reader)
            except ValueError as exc:
                raise InputError("follow", "the logs", str(exc)) from exc
            connection.on_abandon = lambda: self._hub.leave(reader)
        found = self._hub.tail(chosen, lines, since)
        for at in range(0, len(found), LINES_PER_ANSWER):
            entries = answers.log_entries(found[at : at + LINES_PER_ANSWER])
            connection.answer("LogLines", {"lines": entries})
        if not follow:
            return ("End",)
        reader.wake = connection.follow(reader.queue)  # type: ignore[method-assign]  # its owner sets it
        return None

    def _check_log(self, name: str) -> None:
        if name not in (INIT_NAME, KERNEL_NAME) and name not in self._hub.lines:
            self._find(name)

    # processes ------------------------------------------------------------------------------------------------

    def _on_ProcessList(self, _: Connection) -> Any:
        return "ProcessList", {"processes": self._processes.describe(self._main_pids())}

    def _on_ProcessStatus(self, _: Connection, pid: int) -> Any:
        for process in self._processes.describe(self._main_pids(), (pid,)):
            return "ProcessStatus", {"process": process}
        raise InputError("find", f"process {pid}", "there is no such process")

    def _on_ProcessStart(
        self, connection: Connection, command: str, args: tuple[str, ...], env: tuple[str, ...]
    ) -> Any:
        def on_started(pid: int, failure: str) -> None:
            if failure:
                connection.answer("Error", {"message": f"cannot start {command}: {failure}"})
            else:
                connection.answer("ProcessStarted", {"pid": pid, "message": f"{command} runs as pid {pid}"})
            connection.finish()

        self._processes.start((command, *args), env, on_started)

    def _on_ProcessStop(self, _: Connection, pid: int) -> Any:
        self._processes.signal(pid, 15)
        return _success(f"signal 15 was sent to process {pid}")

    def _on_ProcessKill(self, _: Connection, pid: int, signal: int) -> Any:
        self._processes.signal(pid, signal)
        return _success(f"signal {signal} was sent to process {pid}")

    def _on_ProcessRestart(self, connection: Connection, pid: int) -> Any:
        name = self._main_pids().get(pid)
        if name is None:
            raise InputError("restart", f"process {pid}", "it is not the main process of a unit")
        return self._on_ServiceRestart(connection, name)

    def _main_pids(self) -> dict[int, str]:
        return {unit.pid: unit.name for unit in self._control.snapshot() if unit.pid is not None}

    # system ---------------------------------------------------------------------------------------------------

    def _on_SystemStatus(self, _: Connection) -> Any:
        processes = len(proc_table.list_pids())
        status = answers.system_status(self._control.snapshot(), self._uptime(), processes, *self._directories)
        return "SystemStatus", {"status": status}

    def _on_SystemTree(self, _: Connection) -> Any:
        units = self._control.snapshot()
        memory = self._memory(units)
        described = [{**answers.unit_status(unit), "memory_bytes": memory.get(unit.name)} for unit in units]
        return "SystemTree", {"uptime_s": round(self._uptime(), 3), "units": described}

    def _on_SystemAnalyze(self, _: Connection) -> Any:
        return "SystemAnalyze", self._times.describe()

    def _on_SystemHealth(self, _: Connection) -> Any:
        return "SystemHealth", describe_health(self._control.snapshot())

    def _on_SystemMetrics(self, _: Connection) -> Any:
        return "SystemMetrics", {"text": self._metrics(self._control.snapshot())}

    def _on_SystemReload(self, _: Connection) -> Any:
        changes = self._control.reload_units()
        parts = [
            f"{what}: {', '.join(names)}"
            for what, names in (
                ("new", changes.added),
                ("gone", changes.removed),
                ("changed", changes.changed),
                ("to be restarted", changes.needs_restart),
            )
            if names
        ]
        return "Success", {
            "message": "; ".join(parts) or "nothing has changed",
            "added": list(changes.added),
            "removed": list(changes.removed),
            "changed": list(changes.changed),
            "needs_restart": list(changes.needs_restart),
            "notes": list(changes.notes),
        }

    def _on_SystemReboot(self, connection: Connection) -> Any:
        self._answer_last(connection, "everything stops, then the enclave restarts")
        self._control.shutdown("reboot")

    def _on_SystemShutdown(self, connection: Connection) -> Any:
        self._answer_last(connection, "everything stops, then the enclave ends")
        self._control.shutdown("poweroff")

    def _on_SystemPowerOff(self, connection: Connection) -> Any:
        self._answer_last(connection, "the enclave ends now")
        self._loop.end_now(f"a power-off was asked for by {connection.caller}")

    def _answer_last(self, connection: Connection, message: str) -> None:
        """Answer before it is done: afterwards nobody may be left to."""
        connection.answer(*_success(message))
        connection.finish()

    def _uptime(self) -> float:
        return time.monotonic() - self._times.began

    def _metrics(self, units: list[UnitStatus]) -> str:
        own = proc_table.read_stat(os.getpid())
        return render_metrics(
            Sample(
                units=units,
                uptime_s=self._uptime(),
                boot_s=self._times.boot_s,
                resident_bytes=own.resident_pages * proc_table.PAGE_KB * 1024 if own else 0,
                log_lines=self._hub.lines,
                lost_lines=self._hub.lost_lines,
                memory_bytes=self._memory(units),
            )
        )

    def _memory(self, units: Iterable[UnitStatus]) -> dict[str, int]:
        return self._processes.memory_bytes({unit.pid: unit.name for unit in units if unit.pid is not None})


def _success(message: str) -> tuple[str, dict[str, object]]:
    return "Success", {"message": message}


def _frame_batch(batch: Batch) -> bytes:
    return encode_frame(encode_answer("LogLines", {"lines": answers.log_entries(lines_of((batch,)))}))
