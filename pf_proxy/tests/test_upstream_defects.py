# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the Rust framework's proxies is not so here: a page names tests for each, and they exist."""

import json
import os
from pathlib import Path

import pytest
from enclavekit_core import logs
from enclavekit_core.address import CID_PARENT, TcpAddress, VsockAddress
from enclavekit_core.streams import Listener, connect

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/reference/pf-proxy-defects.md"
DEFECTS = 20


def test_each_defect_has_tests_that_exist(check_defects_page):
    check_defects_page(PAGE, DEFECTS, Path(__file__).parent)


@pytest.fixture
def debug_log():
    logs.configure("debug", json_lines=True)
    yield
    logs.configure()


def test_the_log_names_the_peer(run_proxy, debug_log, capsys):
    with (
        Listener(TcpAddress("127.0.0.1", 0)) as upstream,
        run_proxy(VsockAddress(CID_PARENT, 7000), upstream.bound_address) as server,
        connect(server.address) as client,
        upstream.accept()[0] as there,
    ):
        client.sendall(b"x")
        assert there.recv(1) == b"x"
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    [accepted] = [line for line in lines if line["event"] == "accepted"]
    assert f"pid {os.getpid()}" in accepted["peer"] and accepted["listen"] == str(server.address)
