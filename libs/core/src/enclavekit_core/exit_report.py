# SPDX-License-Identifier: Apache-2.0
"""The last word of an enclave to its parent, on vsock parent:9002: one line of JSON that says how it ended. Pure.

    {"version":2,"unit":"app","exit_status":null,"signal":9,"reason":"app killed by signal 9","cause":"out-of-memory",
     "oom":true,"uptime_s":12.5,"last_lines":[{"unit":"app","stream":"stderr","text":"..."}]}

`unit` is null if no unit with OnExit has ended; of `exit_status` and `signal` at most one is not null; `last_lines` are
oldest first, and which there are is for the image to say. Version 1 ends with `reason`. To whoever reads this the
enclave is hostile: the line has a size, what it says is made printable, and it may lie.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enclavekit_core.errors import RemoteProtocolError

VERSION = 2
MAX_REPORT_BYTES = 64 * 1024
MAX_REASON_CHARS = 1000  # it is a sentence
MAX_LINE_CHARS = 400  # of a last line, and of anything else that is shown
MAX_LAST_LINES = 1000
MAX_UPTIME_S = 1e9

# what an enclave may end of
EXITED, KILLED, OUT_OF_MEMORY, FAILED, REQUESTED, BOOT_FAILED, INIT_FAILED = CAUSES = (
    "exited",  # the unit with OnExit, by itself
    "killed",  # it, by a signal
    "out-of-memory",  # it, by the kernel's OOM killer
    "failed",  # it could not be started, or lost what it requires
    "requested",  # somebody asked for the end
    "boot-failed",
    "init-failed",  # a bug in PID 1
)
_KEYS_1 = {"version", "unit", "exit_status", "signal", "reason"}
_KEYS_2 = _KEYS_1 | {"cause", "oom", "uptime_s", "last_lines"}


@dataclass(frozen=True, slots=True)
class LastLine:
    unit: str
    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class ExitReport:
    unit: str | None
    """None if no unit that decides about the end has ended."""
    exit_status: int | None
    signal: int | None
    reason: str
    cause: str = ""
    """Of CAUSES; empty in version 1."""
    oom: bool = False
    """The kernel has killed something in the enclave because there was no memory."""
    uptime_s: float | None = None
    """From PID 1's first instruction."""
    last_lines: tuple[LastLine, ...] = ()

    def command_status(self) -> int | None:
        """Return the exit status for a command that waited: 128+n for signal n; None if the app did not end."""
        if self.exit_status is not None:
            return self.exit_status
        return None if self.signal is None else 128 + self.signal

    def describe(self) -> tuple[str, ...]:
        """Return it in words, a line each."""
        memory = " (out of memory)" if self.oom else ""
        uptime = "" if self.uptime_s is None else f", after {self.uptime_s:.1f} s"
        return (f"{self.reason}{memory}{uptime}", *(f"  {line.unit}: {line.text}" for line in self.last_lines))

    def to_json(self) -> dict[str, Any]:
        """Return what the line says, without its version."""
        return {
            "unit": self.unit,
            "exit_status": self.exit_status,
            "signal": self.signal,
            "reason": self.reason,
            "cause": self.cause,
            "oom": self.oom,
            "uptime_s": self.uptime_s,
            "last_lines": [{"unit": line.unit, "stream": line.stream, "text": line.text} for line in self.last_lines],
        }


def encode_exit_report(report: ExitReport) -> bytes:
    """Return the line; as many of the last lines as fit into MAX_REPORT_BYTES. Without a cause it is of version 1."""
    if not report.cause:
        old = {key: value for key, value in report.to_json().items() if key in _KEYS_1}
        old = {"version": 1, **old, "reason": report.reason[:MAX_REASON_CHARS]}
        return json.dumps(old, separators=(",", ":")).encode() + b"\n"
    record = {"version": VERSION, **report.to_json(), "reason": report.reason[:MAX_REASON_CHARS]}
    lines = [{**line, "text": line["text"][:MAX_LINE_CHARS]} for line in record["last_lines"][-MAX_LAST_LINES:]]
    while True:
        data = json.dumps({**record, "last_lines": lines}, separators=(",", ":")).encode() + b"\n"
        if len(data) <= MAX_REPORT_BYTES or not lines:
            return data
        lines = lines[len(lines) // 4 + 1 :]


def parse_exit_report(line: bytes) -> ExitReport:
    """Parse one report, of version 1 or 2. Raises RemoteProtocolError."""
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise _refuse("it is not JSON") from exc
    version = raw.get("version") if isinstance(raw, dict) else None
    if isinstance(version, bool) or version not in (1, 2) or raw.keys() != (_KEYS_1 if version == 1 else _KEYS_2):
        raise _refuse("it is neither of version 1 nor of version 2")
    unit = None if raw["unit"] is None else _text(raw, "unit")
    report = ExitReport(unit, _whole(raw, "exit_status", 0, 255), _whole(raw, "signal", 1, 64), _text(raw, "reason"))
    if version == 1:
        return report
    if raw["cause"] not in CAUSES or not isinstance(raw["oom"], bool):
        raise _refuse("cause or oom is wrong")
    uptime = raw["uptime_s"]
    if isinstance(uptime, bool) or not isinstance(uptime, (int, float)) or not 0 <= uptime <= MAX_UPTIME_S:
        raise _refuse("uptime_s is out of range")
    lines = raw["last_lines"]
    if not isinstance(lines, list) or len(lines) > MAX_LAST_LINES:
        raise _refuse("last_lines is not a list of lines")
    last = tuple(map(_parse_line, lines))
    return ExitReport(
        unit, report.exit_status, report.signal, report.reason, raw["cause"], raw["oom"], float(uptime), last
    )


def _parse_line(raw: object) -> LastLine:
    if not isinstance(raw, dict) or raw.keys() != {"unit", "stream", "text"}:
        raise _refuse("last_lines is not a list of lines")
    return LastLine(_text(raw, "unit"), _text(raw, "stream"), _text(raw, "text"))


def _text(raw: Mapping[str, object], key: str) -> str:
    value = raw[key]
    if not isinstance(value, str):
        raise _refuse(f"{key} is not text")
    return printable(value)


def _whole(raw: Mapping[str, object], key: str, low: int, high: int) -> int | None:
    value = raw[key]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _refuse(f"{key} is out of range")
    return value


def _refuse(reason: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"cannot read the enclave's exit report: {reason}")


def printable(text: str) -> str:
    """Return `text` without anything that could steer a terminal, cut to MAX_LINE_CHARS."""
    return "".join(char if char.isprintable() else "?" for char in text.expandtabs())[:MAX_LINE_CHARS].rstrip()
