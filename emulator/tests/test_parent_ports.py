# SPDX-License-Identifier: Apache-2.0
"""What the enclave reports is hostile input."""

import json

import pytest
from enclavekit_core.errors import RemoteProtocolError
from enclavekit_emulator.parent_ports import ExitReport, parse_exit_report
from hypothesis import given
from hypothesis import strategies as st

GOOD = {"version": 1, "unit": "app", "exit_status": 7, "signal": None, "reason": "it exited"}


def test_exit_report():
    assert parse_exit_report(json.dumps(GOOD).encode()) == ExitReport("app", 7, None, "it exited")
    nobody = {**GOOD, "unit": None, "exit_status": None}
    assert parse_exit_report(json.dumps(nobody).encode()) == ExitReport(None, None, None, "it exited")
    killed = {**GOOD, "exit_status": None, "signal": 9}
    assert parse_exit_report(json.dumps(killed).encode()) == ExitReport("app", None, 9, "it exited")


def test_exit_report_cannot_steer_a_terminal():
    report = parse_exit_report(json.dumps({**GOOD, "reason": "\x1b]0;x\x07" + "y" * 10000}).encode())
    assert "\x1b" not in report.reason and len(report.reason) <= 400


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"exit_status": 256},
        {"exit_status": -1},
        {"exit_status": True},
        {"exit_status": "7"},
        {"signal": 0},
        {"signal": 65},
        {"unit": 1},
        {"signal": "9"},
        {"reason": None},
        {"more": 1},
    ],
)
def test_exit_report_refuses_wrong_fields(change):
    with pytest.raises(RemoteProtocolError):
        parse_exit_report(json.dumps({**GOOD, **change}).encode())


@given(st.binary(max_size=300))
def test_exit_report_survives_any_bytes(line):
    with pytest.raises(RemoteProtocolError):
        parse_exit_report(line)


def test_exit_report_survives_depth():
    with pytest.raises(RemoteProtocolError):
        parse_exit_report(b"[" * 4000)


def test_every_truncation_is_refused():
    line = json.dumps(GOOD).encode()
    for end in range(len(line)):
        with pytest.raises(RemoteProtocolError):
            parse_exit_report(line[:end])
