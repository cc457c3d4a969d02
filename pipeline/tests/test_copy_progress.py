# SPDX-License-Identifier: Apache-2.0
"""What a copy shows of itself: rate, time left, bar and events."""

import io
import json
import os
import pty
import subprocess

import pytest
from enclavekit_pipeline.host.copy_progress import JsonDisplay, Meter, render_bar, size_text
from enclavekit_pipeline.wire.copy_messages import Done
from enclavekit_pipeline.wire.tree_records import LeftOut, Why

from .conftest import BIN, CID


def test_rate_is_that_of_the_last_seconds():
    meter = Meter(10_000, 0.0)
    for second in range(1, 11):
        meter.update(second * 100, float(second))
    assert meter.rate(10.0) == 100
    assert meter.left_s(10.0) == 90
    for second in range(11, 20):  # ten times as fast now: what was before is forgotten
        meter.update(1000 + (second - 10) * 1000, float(second))
    assert meter.rate(19.0) == 1000
    assert meter.left_s(19.0) == 0


def test_nothing_is_said_that_nobody_knows():
    meter = Meter(None, 0.0)
    assert meter.rate(0.0) == 0
    meter.update(5, 1.0)
    assert meter.left_s(1.0) is None
    assert "left" not in render_bar(meter, 1, 1.0)
    assert "%" not in render_bar(meter, 1, 1.0)


def test_bar():
    meter = Meter(4 * 1024 * 1024, 0.0)
    meter.update(1024 * 1024, 1.0)
    assert render_bar(meter, 7, 1.0) == "[######..................]  25 %  1.0 MiB  7 entries  1.0 MiB/s  0:03 left"
    meter.update(9 * 1024 * 1024, 2.0)  # it has grown since it was measured
    assert "100 %" in render_bar(meter, 7, 2.0)


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**40, "1.0 TiB"), (2**53, "8192.0 TiB")]
)
def test_sizes(count, text):
    assert size_text(count) == text


def test_events_are_json_lines():
    out = io.StringIO()
    display = JsonDisplay(out)
    display.start(100)
    display.show(50, 1)
    display.omit(LeftOut(b"a\x1b", Why.LEADS_OUT))
    display.finish(Done(digest="00" * 32, size=100, entries=2))
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["start", "progress", "left-out", "done"]
    assert events[0]["total"] == 100
    assert events[2] == {"event": "left-out", "path": "a?", "why": "leads-out"}
    assert events[3] == {"event": "done", "bytes": 100, "entries": 2, "left_out": 1, "digest": "00" * 32}


def test_a_terminal_gets_a_bar_which_is_gone_in_the_end(enclave, tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 1_000_000)
    leader, follower = pty.openpty()
    argv = [BIN / "pipeline", "cp", *enclave.flags(), tmp_path / "file", f"{CID}:/data/file"]
    with subprocess.Popen(argv, env=enclave.environment, stderr=follower) as copying:
        os.close(follower)
        shown = b""
        while True:
            try:
                shown += os.read(leader, 4096)
            except OSError:  # EIO: nobody has it open any more
                break
    os.close(leader)
    assert copying.returncode == 0
    assert b"[####" in shown
    assert shown.endswith(b"\r\x1b[K")
