# SPDX-License-Identifier: Apache-2.0
import io
import subprocess
import sys

import pytest
import structlog
from enclavekit_core.logs import configure, get_logger


@pytest.fixture(autouse=True)
def as_before():
    yield
    structlog.reset_defaults()


def test_log_goes_to_the_stderr_of_the_moment(monkeypatch):
    """A logger is kept for longer than what stood for stderr when it was made."""
    log = get_logger("test")
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stderr", first)
    configure("info", json_lines=True)
    log.info("one")
    first_text = first.getvalue()
    first.close()
    monkeypatch.setattr("sys.stderr", second)
    log.info("two")
    assert '"event": "one"' in first_text
    assert '"event": "two"' in second.getvalue()


def test_what_only_command_line_tools_need_is_not_loaded():
    """It is there in a development environment: a service would carry it along."""
    code = """
import sys
import enclavekit_core.logs
assert not any(name.partition(".")[0] in ("rich", "pygments") for name in sys.modules)
import rich.console
"""
    subprocess.run([sys.executable, "-c", code], check=True)
