# SPDX-License-Identifier: Apache-2.0
"""What a copy shows of itself: a bar on a terminal, or a JSON object per line. Time is an argument of what decides."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from typing import TextIO

from enclavekit_pipeline.wire.copy_messages import Done
from enclavekit_pipeline.wire.tree_order import shown
from enclavekit_pipeline.wire.tree_records import LeftOut, Why

RATE_WINDOW_S = 5.0  # the rate is that of the last seconds, not since a start that may be long ago
SAMPLE_S = 0.1
BAR_COLUMNS = 24
DEFAULT_COLUMNS = 80  # of a terminal that does not say
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
REASONS = {
    Why.SPECIAL: "neither file, directory nor link",
    Why.UNREADABLE: "it could not be read",
    Why.LEADS_OUT: "a link that leads out of the tree; --unsafe-links keeps it",
}


class Meter:
    """How far, how fast, how long still."""

    def __init__(self, total: int | None, now: float) -> None:
        """`total` is None if nobody knows it."""
        self.total, self.done = total, 0
        self._samples: deque[tuple[float, int]] = deque([(now, 0)])

    def update(self, done: int, now: float) -> None:
        self.done = done
        if now - self._samples[-1][0] < SAMPLE_S:
            return
        self._samples.append((now, done))
        while now - self._samples[0][0] > RATE_WINDOW_S and len(self._samples) > 2:
            self._samples.popleft()

    def rate(self, now: float) -> float:
        """Bytes per second."""
        since, then = self._samples[0]
        return (self.done - then) / (now - since) if now > since else 0.0

    def left_s(self, now: float) -> float | None:
        """Seconds; None if there is no saying."""
        rate = self.rate(now)
        return max(self.total - self.done, 0) / rate if self.total and rate > 0 else None


def render_bar(meter: Meter, entries: int, now: float) -> str:
    """Return one line for a terminal."""
    parts = []
    if meter.total:
        share = min(meter.done / meter.total, 1.0)
        filled = int(share * BAR_COLUMNS)
        parts.append(f"[{'#' * filled}{'.' * (BAR_COLUMNS - filled)}] {int(share * 100):3d} %")
    parts.append(size_text(meter.done))
    if entries > 1:
        parts.append(f"{entries} entries")
    parts.append(f"{size_text(int(meter.rate(now)))}/s")
    if (left := meter.left_s(now)) is not None:
        parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
    return "  ".join(parts)


def size_text(count: int) -> str:
    value, unit = float(count), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {UNITS[unit]}" if unit else f"{count} B"


class Display:
    """Says nothing but what was left out; the base of those that say more."""

    interval_s = 0.1
    wants_total = False

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out or sys.stderr
        self.left_out = 0
        self._meter = Meter(None, time.monotonic())
        self._next = 0.0

    def start(self, total: int | None) -> None:
        self._meter = Meter(total or None, time.monotonic())

    def show(self, done: int, entries: int) -> None:
        """Take note of how far it is; what it shows of that it shows rarely enough."""
        now = time.monotonic()
        self._meter.update(done, now)
        if now >= self._next:
            self._next = now + self.interval_s
            self.draw(self._meter, entries, now)

    def omit(self, record: LeftOut) -> None:
        self.left_out += 1
        self.line(f"pipeline: left out {shown(record.path)}: {REASONS[record.why]}")

    def finish(self, done: Done | None) -> None:
        """The end; None if it is not a good one."""

    def draw(self, meter: Meter, entries: int, now: float) -> None:
        """Show how far it is."""

    def line(self, text: str) -> None:
        print(text, file=sys.stderr)


class BarDisplay(Display):
    """One line that is written over again and again."""

    wants_total = True
    _shown = False

    def draw(self, meter: Meter, entries: int, now: float) -> None:
        # one column stays free: some terminals wrap as soon as the last one is written
        columns = (os.get_terminal_size(self.out.fileno()).columns or DEFAULT_COLUMNS) - 1
        self.out.write("\r" + render_bar(meter, entries, now)[:columns].ljust(columns))
        self.out.flush()
        self._shown = True

    def line(self, text: str) -> None:
        self._clear()
        super().line(text)

    def finish(self, done: Done | None) -> None:
        self._clear()

    def _clear(self) -> None:
        if self._shown:
            self.out.write("\r\x1b[K")
            self.out.flush()
            self._shown = False


class JsonDisplay(Display):
    """One event per line: start, progress, left-out, done."""

    interval_s = 0.5
    wants_total = True

    def start(self, total: int | None) -> None:
        super().start(total)
        self._event("start", total=total or None)

    def draw(self, meter: Meter, entries: int, now: float) -> None:
        left = meter.left_s(now)
        rate = round(meter.rate(now))
        self._event("progress", bytes=meter.done, entries=entries, bytes_per_s=rate, left_s=left and round(left, 1))

    def omit(self, record: LeftOut) -> None:
        self.left_out += 1
        self._event("left-out", path=shown(record.path), why=record.why.name.lower().replace("_", "-"))

    def finish(self, done: Done | None) -> None:
        if done is not None:
            self._event("done", bytes=done.size, entries=done.entries, left_out=self.left_out, sha256=done.sha256)

    def _event(self, event: str, **fields: object) -> None:
        print(json.dumps({"event": event, **fields}), file=self.out, flush=True)


def choose_display(*, as_json: bool) -> Display:
    """Return events if they are asked for, a bar if somebody sees it, else what says little."""
    if as_json:
        return JsonDisplay(sys.stdout)
    return BarDisplay() if sys.stderr.isatty() else Display()
