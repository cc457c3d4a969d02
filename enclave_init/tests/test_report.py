# SPDX-License-Identifier: Apache-2.0
import os

import pytest
from enclavekit_core.exit_report import encode_exit_report, parse_exit_report
from enclavekit_enclave_init.logs.config import LogConfig
from enclavekit_enclave_init.logs.console import Console
from enclavekit_enclave_init.logs.hub import LogHub
from enclavekit_enclave_init.report import BOOT, BUG, lines_for_parent, make_report
from enclavekit_enclave_init.supervision.events import Outcome


@pytest.mark.parametrize(
    ("outcome", "oom", "failed", "cause"),
    [
        (Outcome("r", "app", 0), False, "", "exited"),
        (Outcome("r", "app", 7), True, "", "exited"),
        (Outcome("r", "app", None, 15), False, "", "killed"),
        (Outcome("r", "app", None, 9), False, "", "killed"),
        (Outcome("r", "app", None, 9), True, "", "out-of-memory"),
        (Outcome("r", "app"), False, "", "failed"),
        (Outcome("r"), False, "", "requested"),
        (Outcome("r"), False, BOOT, "boot-failed"),
        (Outcome("r"), False, BUG, "init-failed"),
    ],
)
def test_cause(outcome, oom, failed, cause):
    report = make_report(outcome, oom=oom, uptime_s=1.23456, lines=[], failed=failed)
    assert (report.cause, report.uptime_s, report.oom) == (cause, 1.235, oom)
    assert parse_exit_report(encode_exit_report(report)) == report


@pytest.mark.parametrize(
    ("to_parent", "expected"),
    [("nothing", []), ("init", [b"of PID 1", b"of the kernel"]), ("all", [b"of the kernel", b"of the app"])],
)
def test_the_parent_gets_what_the_image_lets_it_have(to_parent, expected):
    config = LogConfig(to_parent=to_parent, last_lines=2)
    hub = LogHub(Console(os.open(os.devnull, os.O_WRONLY)), config)
    hub.say("of PID 1")
    hub.write("kernel", "kernel", [b"of the kernel"])
    hub.write("app", "stderr", [b"of the app"])
    lines = lines_for_parent(hub, config)
    assert [line.text for line in lines] == expected
    report = make_report(Outcome("r"), oom=False, uptime_s=0.0, lines=lines)
    assert [line.text.encode() for line in report.last_lines] == expected
