# SPDX-License-Identifier: Apache-2.0
"""What the enclave reports is hostile input."""

import json

import pytest
from enclavekit_core.errors import RemoteProtocolError
from enclavekit_core.exit_report import (
    CAUSES,
    MAX_REPORT_BYTES,
    ExitReport,
    LastLine,
    encode_exit_report,
    parse_exit_report,
)
from hypothesis import given
from hypothesis import strategies as st

OLD = {"version": 1, "unit": "app", "exit_status": 7, "signal": None, "reason": "it exited"}
LINE = {"unit": "app", "stream": "stderr", "text": "boom"}
GOOD = {**OLD, "version": 2, "cause": "exited", "oom": False, "uptime_s": 1.5, "last_lines": [LINE]}


def parse(record):
    return parse_exit_report(json.dumps(record).encode())


def test_both_versions():
    assert parse(OLD) == ExitReport("app", 7, None, "it exited")
    assert parse(GOOD) == ExitReport(
        "app", 7, None, "it exited", "exited", False, 1.5, (LastLine("app", "stderr", "boom"),)
    )
    assert parse({**OLD, "unit": None, "exit_status": None, "signal": 9}) == ExitReport(None, None, 9, "it exited")


@given(
    st.builds(
        ExitReport,
        unit=st.none() | st.just("app"),
        exit_status=st.none() | st.integers(0, 255),
        signal=st.none() | st.integers(1, 64),
        reason=st.text("abc de", max_size=50).map(str.strip),
        cause=st.sampled_from(CAUSES),
        oom=st.booleans(),
        uptime_s=st.floats(0, 1e9),
        last_lines=st.lists(st.builds(LastLine, st.just("app"), st.just("stdout"), st.just("x")), max_size=5).map(
            tuple
        ),
    )
)
def test_what_is_encoded_is_parsed(report):
    assert parse_exit_report(encode_exit_report(report)) == report


def test_old_report_is_handed_on_as_it_came():
    assert parse_exit_report(encode_exit_report(parse(OLD))) == parse(OLD)


def test_report_has_a_size_and_keeps_the_newest_lines():
    lines = tuple(LastLine("app", "stdout", f"{number} " + "\N{GRINNING FACE}" * 1000) for number in range(2000))
    data = encode_exit_report(ExitReport("a", 0, None, "x" * 100_000, "exited", False, 1.0, lines))
    assert len(data) <= MAX_REPORT_BYTES and data.count(b"\n") == 1
    report = parse_exit_report(data)
    assert report.last_lines and report.last_lines[-1].text.startswith("1999 ")


def test_report_cannot_steer_a_terminal():
    evil = "\x1b]0;x\x07" + "y" * 10000
    report = parse({**GOOD, "unit": evil, "reason": evil, "last_lines": [{**LINE, "unit": evil, "text": evil}]})
    for text in (report.unit, report.reason, *report.describe(), report.last_lines[0].unit):
        assert "\x1b" not in text and "\x07" not in text and len(text) <= 900


def test_description_and_status():
    oom = ExitReport("app", None, 9, "app killed by signal 9", "out-of-memory", True, 2.04, parse(GOOD).last_lines)
    assert oom.describe() == ("app killed by signal 9 (out of memory), after 2.0 s", "  app: boom")
    assert oom.command_status() == 137
    assert ExitReport("app", 3, None, "").command_status() == 3
    assert ExitReport(None, None, None, "").command_status() is None


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3}, {"version": True}, {"version": 1}, {"exit_status": 256}, {"exit_status": -1},
        {"exit_status": True}, {"exit_status": "7"}, {"signal": 0}, {"signal": 65}, {"unit": 1}, {"reason": None},
        {"more": 1}, {"cause": "boredom"}, {"cause": []}, {"oom": 1}, {"uptime_s": -1}, {"uptime_s": 1e10},
        {"uptime_s": True}, {"uptime_s": None}, {"last_lines": None}, {"last_lines": [1]}, {"last_lines": [{}]},
        {"last_lines": [{**LINE, "text": 1}]}, {"last_lines": [LINE] * 1001},
    ],
)  # fmt: skip
def test_wrong_fields_are_refused(change):
    with pytest.raises(RemoteProtocolError):
        parse({**GOOD, **change})


@given(st.binary(max_size=300))
def test_any_bytes_are_survived(line):
    with pytest.raises(RemoteProtocolError):
        parse_exit_report(line)


def test_depth_is_survived():
    with pytest.raises(RemoteProtocolError):
        parse_exit_report(b"[" * 4000)


@pytest.mark.parametrize("record", [OLD, GOOD])
def test_every_truncation_is_refused(record):
    line = json.dumps(record).encode()
    for end in range(len(line)):
        with pytest.raises(RemoteProtocolError):
            parse_exit_report(line[:end])
