# SPDX-License-Identifier: Apache-2.0
"""Every request that PID 1 takes, as a table: its fields, what it needs, what it does. Pure.

The JSON is the Rust enclave-init's: a request without fields is a string, `"Ping"`, any other an object with one key,
`{"ServiceStart":{"name":"app"}}`. `VERBS` is also the table of docs/reference/initctl.md.
House rule: everything that knows what a request may say lives in this file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from enclavekit_core.address import MAX_U32
from enclavekit_core.errors import InputError

from enclavekit_enclave_init.logs.records import INIT_NAME, KERNEL_NAME
from enclavekit_enclave_init.units.values import normalize_name

MAX_LINES = 100_000
MAX_SIGNAL = 64
MAX_PID = 1 << 22  # PID_MAX_LIMIT in include/linux/threads.h
MAX_ARGUMENTS = 1024
MAX_ENVELOPE_CLIENT_CHARS = 64

STATUS, LOGS, LOGS_CLEAR, LOGS_STREAM = "status", "logs", "logs-clear", "logs-stream"
CONTROL, ENABLE, PROCESSES, RELOAD, REBOOT, SHUTDOWN = "control", "enable", "processes", "reload", "reboot", "shutdown"
PERMISSIONS = {
    STATUS: "see units, processes, times and metrics",
    LOGS: "read and follow logs",
    LOGS_CLEAR: "remove logs",
    LOGS_STREAM: "have a log sent to the parent",
    CONTROL: "start, stop, restart, reload and signal units",
    ENABLE: "enable and disable units",
    PROCESSES: "start, stop and signal processes besides units",
    RELOAD: "read the unit files anew",
    REBOOT: "restart the enclave",
    SHUTDOWN: "end the enclave",
}
ALL = "all"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request."""

    kind: str
    """For the reference."""
    parse: Callable[[object], object]
    """Raises ValueError."""
    default: object = None
    required: bool = True


@dataclass(frozen=True, slots=True)
class Verb:
    """One request."""

    permission: str
    meaning: str
    answer: str
    """Key of the answer; several where it depends."""
    fields: Mapping[str, Field] = field(default_factory=dict)
    is_new: bool = False
    """The Rust enclave-init does not have it."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request whose fields have been checked."""

    verb: str
    values: Mapping[str, Any]
    client: str | None = None
    """For whom a gateway asks: the name of the client certificate."""

    @property
    def permission(self) -> str:
        return VERBS[self.verb].permission

    def describe(self) -> str:
        """Return it in words for PID 1's log; values of an environment are left out."""
        shown = {key: value for key, value in self.values.items() if key != "env" and value not in (None, ())}
        return " ".join([self.verb, *(f"{key}={value}" for key, value in shown.items())])


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("it must be a string without NUL")
    return value


def _unit(value: object) -> str:
    return normalize_name(_text(value))


def _log_name(value: object) -> str:
    return _text(value) if value in (INIT_NAME, KERNEL_NAME) else _unit(value)


def _whole(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"it must be a number from {low} to {high}")
        return value

    return parse


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e12:
        raise ValueError("it must be a number of seconds")
    return float(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")
    return value


def _list_of(parse: Callable[[object], object]) -> Callable[[object], tuple[object, ...]]:
    def parse_list(value: object) -> tuple[object, ...]:
        if not isinstance(value, list) or len(value) > MAX_ARGUMENTS:
            raise ValueError(f"it must be a list of at most {MAX_ARGUMENTS}")
        return tuple(parse(item) for item in value)

    return parse_list


def _setting(value: object) -> str:
    name, separator, _ = _text(value).partition("=")
    if not name or not separator:
        raise ValueError(f"{value!r} is not NAME=value")
    return _text(value)


NAME = {"name": Field("unit", _unit)}
LOG_NAME = {"name": Field("unit, enclave-init or kernel", _log_name)}
# 1 is PID 1 itself, and below are groups: none of them is a child of ours
PID = {"pid": Field("number above 1", _whole(2, MAX_PID))}
SIGNAL = Field(f"number from 1 to {MAX_SIGNAL}", _whole(1, MAX_SIGNAL), 15, required=False)
PORT = Field("number", _whole(0, MAX_U32))

VERBS: dict[str, Verb] = {
    "Ping": Verb(STATUS, "say that PID 1 answers", "Pong"),
    "ListServices": Verb(STATUS, "list units", "ServiceList"),
    "ServiceStatus": Verb(STATUS, "show a unit", "ServiceStatus", NAME),
    "ServiceStart": Verb(CONTROL, "start a unit and what it requires; answered when it is up", "Success", NAME),
    "ServiceStop": Verb(CONTROL, "stop a unit and what requires it; answered when it is down", "Success", NAME),
    "ServiceRestart": Verb(CONTROL, "stop a unit, wait for its end, start it; answered when it is up", "Success", NAME),
    "ServiceReload": Verb(CONTROL, "run its ExecReload", "Success", NAME, is_new=True),
    "ServiceKill": Verb(CONTROL, "signal its processes", "Success", {**NAME, "signal": SIGNAL}, is_new=True),
    "ServiceEnable": Verb(ENABLE, "let it start at boot; does not start it", "Success", NAME),
    "ServiceDisable": Verb(ENABLE, "do not let it start at boot; stops it", "Success", NAME),
    "ServiceLogs": Verb(
        LOGS,
        "the last lines of a unit, as text",
        "ServiceLogs",
        {**LOG_NAME, "lines": Field("number", _whole(0, MAX_LINES), 50, required=False)},
    ),
    "ServiceLogsClear": Verb(LOGS_CLEAR, "remove a unit's log", "Success", LOG_NAME),
    "ServiceLogsStream": Verb(
        LOGS_STREAM,
        "connect to a vsock port of the parent and send the unit's lines there as they come",
        "LogsStreamStarted",
        {**LOG_NAME, "vsock_cid": PORT, "vsock_port": PORT},
    ),
    "ServiceLogsStreamStop": Verb(LOGS_STREAM, "end these connections", "Success", LOG_NAME),
    "Logs": Verb(
        LOGS,
        "lines with their time, unit and stream; several answers, with follow until the connection ends",
        "LogLines, then End",
        {
            "units": Field("list of units, empty for all", _list_of(_log_name), (), required=False),
            "lines": Field("number", _whole(0, MAX_LINES), 50, required=False),
            "since": Field("Unix time", _number, 0.0, required=False),
            "follow": Field("true, false", _flag, False, required=False),
        },
        is_new=True,
    ),
    "ProcessList": Verb(STATUS, "list processes", "ProcessList"),
    "ProcessStatus": Verb(STATUS, "show a process", "ProcessStatus", PID),
    "ProcessStart": Verb(
        PROCESSES,
        "run a program with init.toml's environment and this; answered when it runs",
        "ProcessStarted",
        {
            "command": Field("string", _text),
            "args": Field("list of strings", _list_of(_text), (), required=False),
            "env": Field("list of NAME=value", _list_of(_setting), (), required=False),
        },
    ),
    "ProcessStop": Verb(PROCESSES, "SIGTERM to a child of PID 1", "Success", PID),
    "ProcessRestart": Verb(PROCESSES, "restart the unit whose main process this is", "Success", PID),
    "ProcessKill": Verb(PROCESSES, "signal a child of PID 1", "Success", {**PID, "signal": SIGNAL}),
    "SystemStatus": Verb(STATUS, "counts, uptime and directories", "SystemStatus"),
    "SystemTree": Verb(STATUS, "every unit with dependencies, last exit, memory", "SystemTree", is_new=True),
    "SystemAnalyze": Verb(STATUS, "what the boot took, by step and unit", "SystemAnalyze", is_new=True),
    "SystemHealth": Verb(STATUS, "readiness and liveness of every unit", "SystemHealth", is_new=True),
    "SystemMetrics": Verb(STATUS, "metrics in Prometheus's text form", "SystemMetrics", is_new=True),
    "SystemReload": Verb(RELOAD, "read the unit files anew; what runs goes on", "Success"),
    "SystemReboot": Verb(REBOOT, "stop everything in order, then restart; on Nitro that is the end", "Success"),
    "SystemShutdown": Verb(SHUTDOWN, "stop everything in order, then end the enclave", "Success"),
    "SystemPowerOff": Verb(SHUTDOWN, "kill everything and end the enclave now", "Success", is_new=True),
}  # fmt: skip - one verb a line reads as the table that it is


def decode_request(data: bytes) -> Request:
    """Return the request in `data`: bare, or in an envelope `{"request": ..., "client": NAME}`.

    Raises: InputError("read request", ...).
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise InputError("read", "the request", "it is not JSON") from exc
    client = None
    if isinstance(value, dict) and "request" in value:
        if value.keys() - {"request", "client"}:
            raise InputError("read", "the request", "its envelope has an unknown key")
        client, value = value.get("client"), value["request"]
        if client is not None and (not isinstance(client, str) or not 0 < len(client) <= MAX_ENVELOPE_CLIENT_CHARS):
            raise InputError("read", "the request", "its client is not a name")
    if isinstance(value, str):
        return make_request(value, {}, client)
    if not isinstance(value, dict) or len(value) != 1:
        raise InputError("read", "the request", "it is neither a verb nor an object with one key")
    verb, values = next(iter(value.items()))
    return make_request(verb, values, client)


def make_request(verb: str, values: object, client: str | None = None) -> Request:
    """Return the request with its defaults. Raises InputError."""
    known = VERBS.get(verb)
    if known is None:
        raise InputError("carry out", repr(verb[:64]), "there is no such request")
    if not isinstance(values, dict):
        raise InputError("carry out", verb, "its fields are not an object")
    if unknown := values.keys() - known.fields.keys():
        raise InputError("carry out", verb, f"unknown field {min(unknown)[:64]!r}")
    checked: dict[str, object] = {}
    for name, one in known.fields.items():
        if name not in values:
            if one.required:
                raise InputError("carry out", verb, f"it needs {name}")
            checked[name] = one.default
            continue
        try:
            checked[name] = one.parse(values[name])
        except ValueError as exc:
            raise InputError("carry out", verb, f"{name}: {exc}") from exc
    return Request(verb, checked, client)


def encode_request(request: Request) -> bytes:
    """Return the JSON of a request as `decode_request` reads it."""
    value: object = {request.verb: dict(request.values)} if VERBS[request.verb].fields else request.verb
    if request.client is not None:
        value = {"request": value, "client": request.client}
    return json.dumps(value, separators=(",", ":")).encode()


def encode_answer(kind: str, value: Mapping[str, object] | None = None) -> bytes:
    """Return the JSON of an answer: a string without fields, else an object with one key."""
    return json.dumps(kind if value is None else {kind: value}, separators=(",", ":")).encode()
