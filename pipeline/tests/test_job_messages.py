# SPDX-License-Identifier: Apache-2.0
"""What may be asked of commands and jobs: exactly that, and anything else is refused in words. And what an enclave says
of them, which may be lies.
"""

import json

import pytest
from enclavekit_core.errors import ConfigError, RemoteProtocolError
from enclavekit_pipeline.commands.kill import signal_number
from enclavekit_pipeline.commands.listing import age, shown, table
from enclavekit_pipeline.commands.target import parse_limits
from enclavekit_pipeline.wire.exec_messages import ExecRequest, ShellRequest, Terminal, WindowSize
from enclavekit_pipeline.wire.job_messages import (
    AttachRequest,
    JobInfo,
    JobsRequest,
    KillRequest,
    LogsRequest,
    PsRequest,
)
from enclavekit_pipeline.wire.messages import decode_payload, encode_payload
from enclavekit_pipeline.wire.requests import decode_request, target_of, verb_of
from hypothesis import given
from hypothesis import strategies as st

REQUESTS = [
    ExecRequest(argv=["ls", "secret"], terminal=Terminal(rows=1, columns=65535, term="xterm"), limits={"cpu": 0}),
    ExecRequest(argv=["ls"], detach=True, stdin=True),
    ShellRequest(user="app", environment={"A": "b"}),
    JobsRequest(system=True),
    LogsRequest(job="j1", follow=True),
    AttachRequest(job="j20", window=WindowSize(rows=3, columns=4)),
    KillRequest(pid=17, signal=9),
    KillRequest(job="j3", signal=64),
    PsRequest(),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=verb_of)
def test_requests_arrive_as_they_were(request_):
    assert decode_request(encode_payload(request_)) == request_
    assert "secret" not in target_of(request_)


@pytest.mark.parametrize(
    "wrong",
    [
        {"verb": "shell", "argv": ["x"]},
        {"verb": "shell", "user": "a\0"},
        {"verb": "exec", "argv": ["x"], "limits": {"colour": 1}},
        {"verb": "exec", "argv": ["x"], "limits": {"cpu": -1}},
        {"verb": "exec", "argv": ["x"], "limits": {"cpu": 2**60}},
        {"verb": "exec", "argv": ["x"], "terminal": {"rows": 0, "columns": 1}},
        {"verb": "exec", "argv": ["x"], "terminal": {"rows": 1, "columns": 65536}},
        {"verb": "exec", "argv": ["x"], "terminal": {"rows": 1, "columns": 1, "term": "a=b"}},
        {"verb": "exec", "argv": ["x"], "terminal": {"rows": 1, "columns": 1, "term": "x" * 65}},
        {"verb": "logs", "job": "1"},
        {"verb": "logs", "job": "j0"},
        {"verb": "logs", "job": "j1/../x"},
        {"verb": "kill", "signal": 9},
        {"verb": "kill", "signal": 9, "pid": 1, "job": "j1"},
        {"verb": "kill", "signal": 9, "pid": 0},
        {"verb": "kill", "signal": 9, "pid": -1},
        {"verb": "kill", "signal": 0, "pid": 1},
        {"verb": "kill", "signal": 65, "pid": 1},
        {"verb": "ps", "pid": 1},
    ],
)
def test_requests_that_are_refused(wrong):
    with pytest.raises(RemoteProtocolError):
        decode_request(json.dumps(wrong).encode())


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["j1", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["argv", "job", "pid", "signal", "terminal", "limits", "environment", "window", "detach", "system", "user"]


@given(st.sampled_from(sorted(map(verb_of, REQUESTS))), st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4))
def test_any_request_is_good_or_refused_in_words(verb, fields):
    try:
        request = decode_request(json.dumps({"verb": verb, **fields}).encode())
    except RemoteProtocolError:
        return
    assert decode_request(encode_payload(request)) == request


@given(st.binary(max_size=100))
def test_any_answer_is_good_or_refused_in_words(data):
    for kind in (JobInfo, WindowSize):
        with pytest.raises(RemoteProtocolError):
            decode_payload(kind, data)


@given(st.lists(st.lists(st.text(max_size=12), min_size=2, max_size=2), max_size=4))
def test_lies_do_not_move_the_cursor(rows):
    text = table(("A", "B"), [[shown(cell) for cell in row] for row in rows])
    assert all(char.isprintable() or char == "\n" for char in text)
    assert text.count("\n") == len(rows)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59, "59s"), (60, "1m"), (7200, "2h"), (86400 * 3 + 5, "3d")])
def test_age(seconds, text):
    assert age(seconds) == text


def test_limits_of_the_command_line():
    assert parse_limits(["memory=64M", "cpu=3", "stack=8K", "fsize=1G"]) == {
        "memory": 2**26,
        "cpu": 3,
        "stack": 8192,
        "fsize": 2**30,
    }
    for wrong in ("memory", "memory=", "memory=M", "memory=1T", "cpu=-1", "cpu=1.5", "x=1", f"cpu={2**54}"):
        with pytest.raises(ConfigError):
            parse_limits([wrong])


@pytest.mark.parametrize(("text", "number"), [("TERM", 15), ("sigkill", 9), ("9", 9), ("64", 64)])
def test_signals_by_name_and_number(text, number):
    assert signal_number(text) == number
