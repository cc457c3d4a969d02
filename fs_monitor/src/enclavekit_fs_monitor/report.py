# SPDX-License-Identifier: Apache-2.0
"""What the service says about itself: fields for `status`, samples for Prometheus."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from enclavekit_fs_monitor.file_state import State
from enclavekit_fs_monitor.metrics import render

if TYPE_CHECKING:
    from enclavekit_fs_monitor.service import Monitor

MAX_FAILED = 20  # of the files that have no hash, so many are named


def status_of(monitor: Monitor) -> dict[str, object]:
    """Return the fields of `fs-monitor status --json`."""
    counters, now_s = monitor.counters, time.monotonic()
    failed = [
        {"path": os.fsdecode(path), "state": record.state.value, "attempts": record.attempts}
        for path, record in monitor.tracker.records()
        if record.attempts and record.state is not State.CLOSED
    ]
    return {
        "ready": monitor.ready.is_set(),
        "roots": [
            {
                "path": os.fsdecode(root.tree.root),
                "present": root.tree.is_present,
                "blind": root.is_blind,
                "watches": root.tree.watches,
                "unwatched": root.tree.unwatched,
                "too_long": root.tree.too_long,
                "scans": root.scans,
                "overflows": root.tree.overflows,
            }
            for root in monitor.roots
        ],
        "files": monitor.tracker.count_states(),
        "failed": failed[:MAX_FAILED],
        "queue": {"waiting": monitor.hasher.queue.waiting, "running": monitor.hasher.queue.running},
        "bus": {
            "url": monitor.bus.url,
            "connected": monitor.bus.is_connected,
            "to_write": len(monitor.publisher),
            "error": monitor.publisher.last_error,
        },
        "lag": {"last_s": round(monitor.lag.last_s, 6), "oldest_s": round(monitor.lag.oldest_s(now_s), 6)},
        "hashed": {"files": counters.hashed_files, "bytes": counters.hashed_bytes},
        "published": counters.published,
        "ignore": {
            "file": monitor.ignore_file.path,
            "patterns": monitor.roots[0].tree.rules.count,
            "error": monitor.ignore_error,
        },
    }


def metrics_of(monitor: Monitor) -> str:
    """Return all metrics in Prometheus's text format."""
    counters, lag, now_s = monitor.counters, monitor.lag, time.monotonic()
    roots = monitor.roots
    none: dict[str, str] = {}
    return render(
        [
            ("ready", "gauge", "1 once the first scan is on the bus.", monitor.ready.is_set(), none),
            ("events_total", "counter", "Events of the kernel.", sum(root.tree.events for root in roots), none),
            (
                "overflows_total",
                "counter",
                "Times that events were lost, each followed by a scan.",
                sum(root.tree.overflows for root in roots),
                none,
            ),
            ("scans_total", "counter", "Scans of a whole tree.", sum(root.scans for root in roots), none),
            ("watches", "gauge", "Directories and linked files under watch.", sum(r.tree.watches for r in roots), none),
            ("unwatched", "gauge", "Of those, not watched: limit reached.", sum(r.tree.unwatched for r in roots), none),
            ("too_long", "gauge", "Names too long for a key.", sum(r.tree.too_long for r in roots), none),
            *(
                ("files", "gauge", "Files by state.", count, {"state": state})
                for state, count in monitor.tracker.count_states().items()
            ),
            ("hashed_files_total", "counter", "Files hashed.", counters.hashed_files, none),
            ("hashed_bytes_total", "counter", "Bytes hashed.", counters.hashed_bytes, none),
            ("unstable_total", "counter", "Attempts on files with a writer.", counters.unstable_files, none),
            ("unreadable_total", "counter", "Attempts on files that cannot be read.", counters.unreadable_files, none),
            ("hash_queue_files", "gauge", "Files that wait for a worker.", monitor.hasher.queue.waiting, none),
            ("bus_connected", "gauge", "1 while the bus is there.", monitor.bus.is_connected, none),
            ("bus_queue_keys", "gauge", "Keys that wait for the bus.", len(monitor.publisher), none),
            ("bus_errors_total", "counter", "Failed writes, each repeated.", counters.bus_errors, none),
            ("published_total", "counter", "Hashes acknowledged by the bus.", counters.published, none),
            ("withdrawn_total", "counter", "Hashes deleted from the bus.", counters.withdrawn, none),
            ("lag_oldest_seconds", "gauge", "Age of the oldest change not on the bus.", lag.oldest_s(now_s), none),
            ("lag_seconds_sum", "counter", "Time from change to bus, summed.", lag.sum_s, none),
            ("lag_seconds_count", "counter", "Changes in that sum.", lag.count, none),
        ]
    )
