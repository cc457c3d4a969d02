# SPDX-License-Identifier: Apache-2.0
"""Lines of a log with their time, unit and stream, and the two ways to write them. Pure.

    text    [YYYY-MM-DD HH:MM:SS] line        UTC, as the Rust enclave-init writes it
    json    {"time":"2026-01-02T03:04:05.678Z","unit":"app","stream":"stdout","text":"line"}

Bytes that are not UTF-8 become U+FFFD in JSON and stay as they are in text.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass

STDOUT, STDERR, INIT, KERNEL = "stdout", "stderr", "init", "kernel"
INIT_NAME, KERNEL_NAME = "enclave-init", "kernel"  # where a unit's name stands; no unit may have either
TEXT, JSON = "text", "json"


@dataclass(frozen=True, slots=True)
class Batch:
    """Lines of one unit and stream that came in one read, hence at one time."""

    sequence: int
    """Number of the first line, counted over all units from 1."""
    time_s: float
    """Unix time."""
    unit: str
    stream: str
    """STDOUT, STDERR, INIT or KERNEL."""
    text: bytes
    """The lines, each with its newline: one object for a whole read, however many lines it has."""

    @property
    def count(self) -> int:
        return self.text.count(b"\n")

    @property
    def lines(self) -> list[bytes]:
        return self.text.split(b"\n")[:-1]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a batch."""

    sequence: int
    time_s: float
    unit: str
    stream: str
    text: bytes


def lines_of(batches: Iterable[Batch]) -> Iterable[Line]:
    """Yield the single lines."""
    for batch in batches:
        for offset, text in enumerate(batch.lines):
            yield Line(batch.sequence + offset, batch.time_s, batch.unit, batch.stream, text)


def format_text(batch: Batch) -> bytes:
    """Return the batch in the text form, a newline after each line."""
    stamp = time.strftime("[%Y-%m-%d %H:%M:%S] ", time.gmtime(batch.time_s)).encode()
    return stamp + batch.text[:-1].replace(b"\n", b"\n" + stamp) + b"\n"


def format_json(batch: Batch) -> bytes:
    """Return the batch as one JSON object a line."""
    head = json.dumps({"time": format_time(batch.time_s), "unit": batch.unit, "stream": batch.stream})
    head = head.replace(": ", ":").replace(", ", ",")[:-1]
    return "".join(
        f'{head},"text":{json.dumps(line.decode(errors="replace"), ensure_ascii=False)}}}\n' for line in batch.lines
    ).encode()


def format_time(time_s: float) -> str:
    """Return a Unix time in RFC 3339, in milliseconds."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(time_s))}.{int(time_s % 1 * 1000):03d}Z"


FORMATS = {TEXT: format_text, JSON: format_json}
