# SPDX-License-Identifier: Apache-2.0
import io

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
