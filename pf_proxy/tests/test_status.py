# SPDX-License-Identifier: Apache-2.0
"""What running proxies say about themselves: real processes asked over real sockets, and the pure parts."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time

import pytest
from enclavekit_core.address import CID_PARENT, TcpAddress, UnixAddress, VsockAddress
from enclavekit_core.errors import ConfigError
from enclavekit_core.streams import Listener, connect
from enclavekit_pf_proxy import cli
from enclavekit_pf_proxy.config import load_plan
from enclavekit_pf_proxy.plan import parse_status
from enclavekit_pf_proxy.status import client
from enclavekit_pf_proxy.status.metrics import render_metrics
from enclavekit_pf_proxy.status.model import ConnectionStatus, DecisionCount, ListenerStatus, Status, merge
from enclavekit_pf_proxy.status.places import find_sockets
from enclavekit_pf_proxy.status.text import format_bytes, format_seconds, format_status

from .test_run import ONE, START, exchange, pair, running, workers_of

PATIENCE_S = 20.0
NAMED = ONE.replace("}", ", name: web}")


@pytest.fixture
def upstream():
    with Listener(VsockAddress(CID_PARENT, 7000)) as listener:
        listener.socket.settimeout(PATIENCE_S)
        yield listener


def wait_until(condition):
    """Ask until the proxy has come so far; what it says changes when its loop comes round."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        (status,) = client.collect("", with_connections=True)
        if condition(status):
            return status
        assert time.monotonic() < deadline, status


def test_a_run_says_what_all_its_workers_do(tmp_path, upstream):
    config = tmp_path / "proxy.yaml"
    config.write_text("workers: 2\n" + NAMED)
    with running("run", str(config)) as (process, (address,)):
        with pair(address, upstream) as first, pair(address, upstream) as second:
            exchange(*first, b"hello")
            exchange(*second, b"x")
            status = wait_until(lambda status: sum(one.bytes_down for one in status.connections) == 6)
            assert (status.pid, status.workers, status.draining) == (process.pid, 2, 0)
            (listener,) = status.listeners
            assert (listener.listen, listener.service, listener.mode) == (str(address), "web", "ip-to-vsock")
            assert (listener.live, listener.accepted, listener.refused, listener.max_connections) == (2, 2, 0, 1024)
            assert (listener.bytes_up, listener.bytes_down) == (6, 6)
            assert {one.phase for one in status.connections} == {"relaying"}
            wanted = {f"tcp://127.0.0.1:{sock.getsockname()[1]}" for sock, _ in (first, second)}
            assert {one.peer for one in status.connections} == wanted
            assert {one.upstream for one in status.connections} == {"vsock://parent:7000"}
            assert len({one.conn for one in status.connections}) == 2
        wait_until(lambda status: status.listeners[0].live == 0 and status.listeners[0].bytes_up == 6)


def test_what_was_counted_outlives_its_worker(tmp_path, upstream):
    config = tmp_path / "proxy.yaml"
    config.write_text(NAMED)
    with running("run", str(config)) as (process, (address,)):
        with pair(address, upstream) as ends:
            exchange(*ends, b"before")
            wait_until(lambda status: status.listeners[0].bytes_up == 6)
            process.send_signal(signal.SIGHUP)
            process.wait_for("reloaded")
            with pair(address, upstream) as others:
                exchange(*others, b"after")
                # the first worker drains, and counts
                status = wait_until(lambda status: status.listeners[0].bytes_up == 11)
                assert (status.workers, status.draining) == (1, 1)
                assert (status.listeners[0].live, status.listeners[0].max_connections) == (2, 1024)
        # the first says so before it exits
        status = wait_until(lambda status: not status.draining and len(workers_of(process)) == 1)
        assert (status.listeners[0].accepted, status.listeners[0].bytes_up) == (2, 11)
        (worker,) = workers_of(process)
        os.kill(worker, signal.SIGKILL)
        process.wait_for("worker ended")
        wait_until(lambda status: status.workers == 1 and status.listeners[0].accepted == 2)


def test_tcp_and_udp_at_one_address_are_two_listeners(tmp_path, upstream):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    entry = f"{{mode: ip-to-vsock, listen: '127.0.0.1:{port}', upstream: 'parent:7000'"
    config = tmp_path / "proxy.yaml"
    config.write_text(f"listeners:\n- {entry}}}\n- {entry}, protocol: udp}}\n")
    with running("run", str(config)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"x", ("127.0.0.1", port))
        peer, _ = upstream.accept()
        with peer:
            status = wait_until(lambda status: len(status.connections) == 1)
            live = {one.listen: one.live for one in status.listeners}
            assert live == {f"tcp://127.0.0.1:{port}": 0, f"udp://127.0.0.1:{port}": 1}
            assert status.connections[0].listen == f"udp://127.0.0.1:{port}"


def test_metrics_and_health_over_tcp_name_no_connection(tmp_path, upstream):
    config = tmp_path / "proxy.yaml"
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config.write_text(f"metrics_listen: 127.0.0.1:{port}\nsocket: unix://{tmp_path}/own.sock\n{NAMED}")
    with running("run", str(config)) as (_, (address,)), pair(address, upstream) as ends:
        exchange(*ends)
        assert find_sockets() == []
        own = tmp_path / "own.sock"
        assert stat.S_IMODE(own.stat().st_mode) == 0o600
        assert len(json.loads(client.get(UnixAddress(str(own)), "/status?connections"))["connections"]) == 1
        over_tcp = TcpAddress("127.0.0.1", port)
        assert json.loads(client.get(over_tcp, "/status?connections"))["connections"] == []
        assert json.loads(client.get(over_tcp, "/health")) == {"workers": 1}
        page = client.get(over_tcp, "/metrics").decode()
        assert f'pf_proxy_accepted_total{{listen="{address}",service="web"}} 1' in page.splitlines()


def test_a_single_mode_answers_if_told_to(tmp_path, upstream, capsys):
    own = str(tmp_path / "own.sock")
    argv = ("ip-to-vsock", "-i", "127.0.0.1:0", "-v", "parent:7000", "--socket", own)
    with running(*argv) as (process, (address,)), pair(address, upstream) as ends:
        exchange(*ends)
        assert cli.main(["status", "--socket", own, "--connections", "--json"]) == 0
        (status,) = json.loads(capsys.readouterr().out)["proxies"]
        assert status["pid"] == process.pid
        assert [one["live"] for one in status["listeners"]] == [1]
        assert len(status["connections"]) == 1
        assert cli.main(["metrics", "--socket", own]) == 0
        assert "pf_proxy_workers 1" in capsys.readouterr().out
    assert not os.path.exists(own)


def test_watching_goes_on_until_interrupted(tmp_path, upstream):
    own = str(tmp_path / "own.sock")
    with running("ip-to-vsock", "-i", "127.0.0.1:0", "-v", "parent:7000", "--socket", own) as (process, _):
        argv = [sys.executable, "-c", START, "status", "--socket", own, "--json", "--watch", "0.01"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as watcher:
            seen = [json.loads(watcher.stdout.readline())["proxies"][0] for _ in range(3)]
            watcher.send_signal(signal.SIGINT)
            watcher.communicate(timeout=PATIENCE_S)
        assert watcher.returncode == 128 + signal.SIGINT
        assert [one["pid"] for one in seen] == [process.pid] * 3
        assert seen[0]["uptime_s"] < seen[2]["uptime_s"]


def test_nobody_there_is_one_line(runtime_dir, capsys):
    (tmp := os.path.join(runtime_dir, "pf-proxy"), os.makedirs(tmp, 0o700))
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(f"{tmp}/1.sock")
    stale.close()
    assert cli.main(["status"]) == 3
    assert capsys.readouterr().err.count("\n") == 1
    assert os.listdir(tmp) == []
    assert cli.main(["status", "--watch=-1"]) == 2


def test_bad_requests_and_slow_ones_harm_nobody(tmp_path, upstream):
    config = tmp_path / "proxy.yaml"
    config.write_text(f"socket: unix://{tmp_path}/own.sock\n{ONE}")
    with running("run", str(config)) as (_, (address,)):
        where = UnixAddress(str(tmp_path / "own.sock"))
        slow = [connect(where) for _ in range(3)]
        slow[0].sendall(b"GET /sta")
        for request in (b"POST / HTTP/1.1\r\n\r\n", b"\0" * 20_000, b"GET /nothing HTTP/1.1\r\n\r\n"):
            with connect(where) as sock:
                sock.settimeout(PATIENCE_S)
                sock.sendall(request)
                assert sock.recv(100).split()[1] in (b"400", b"404")
        with pair(address, upstream) as ends:
            exchange(*ends)
        slow[0].sendall(b"tus HTTP/1.1\r\n\r\n")
        slow[0].settimeout(PATIENCE_S)
        assert slow[0].recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        for sock in slow:
            sock.close()


def test_where_to_answer_is_read_strictly(tmp_path):
    config = tmp_path / "proxy.yaml"
    config.write_text(ONE)
    assert load_plan(str(config)).status.by_default
    for unusable in ("socket: 127.0.0.1:1\n", "socket: tcp://127.0.0.1:1\n", "metrics_listen: unix:///x\n"):
        config.write_text(unusable + ONE)
        with pytest.raises(ConfigError):
            load_plan(str(config))
    assert not parse_status("", "", "x", by_default=False).is_wanted


def listener(**fields):
    zero = dict.fromkeys(("live", "accepted", "refused", "bytes_up", "bytes_down"), 0)
    return ListenerStatus(
        **{"listen": "l", "upstream": "u", "mode": "m", "service": "", "max_connections": 8, **zero, **fields}
    )


def test_merging_adds_up_and_forgets_listeners_that_are_gone():
    one = Status(1, 1.0, listeners=[listener(live=1, accepted=2)], decisions=[DecisionCount("denied", "port", 1)])
    other = Status(2, 1.0, 0, 1, [listener(live=3, accepted=3)], [DecisionCount("denied", "port", 2)], omitted=5)
    past = Status(3, 1.0, listeners=[listener(live=9, accepted=4, bytes_up=7), listener(listen="gone", accepted=1)])
    assert merge(9, 2.0, [other, one], [past]).listeners == merge(9, 2.0, [one, other], [past]).listeners
    whole = merge(9, 2.0, [one, other], [past])
    assert (whole.pid, whole.workers, whole.draining, whole.omitted) == (9, 1, 1, 5)
    assert whole.listeners == [listener(live=4, accepted=9, bytes_up=7, max_connections=8)]
    assert whole.decisions == [DecisionCount("denied", "port", 3)]
    assert one.listeners == [listener(live=1, accepted=2)]  # left as it was


def test_text_has_rates_and_connections():
    before = Status(1, 60.0, listeners=[listener(accepted=1, bytes_up=0)])
    after = Status(
        1, 62.0, listeners=[listener(accepted=5, bytes_up=4096)], decisions=[DecisionCount("allowed", "rule", 4)]
    )
    after.connections = [ConnectionStatus("00ff", "l", "peer", "", "relaying", 3700.0, 0.0, 1536, 0)]
    lines = format_status(after, before, 2.0)
    assert lines[0] == "pf-proxy 1: up 1 min 2 s, 1 worker; 2.0 connections/s, 2.0 KiB/s"
    assert lines[2].split() == ["l", "u", "0/8", "5", "0", "4.0", "KiB", "0", "B"]
    assert lines[3] == "decisions: 4 allowed (rule)"
    assert lines[5].split() == [
        "00ff",
        "peer",
        "-",
        "relaying",
        "1",
        "h",
        "1",
        "min",
        "0.0",
        "s",
        "1.5",
        "KiB",
        "0",
        "B",
    ]
    assert (format_bytes(5 << 50), format_seconds(200_000)) == ("5120 TiB", "2 d 7 h")


def test_metrics_escape_what_a_configuration_may_hold():
    page = render_metrics(Status(1, 0.5, listeners=[listener(service='a"b\\c\nd', accepted=10**15)]))
    assert 'pf_proxy_accepted_total{listen="l",service="a\\"b\\\\c\\nd"} 1000000000000000' in page.splitlines()
    assert "pf_proxy_uptime_seconds 0.500000" in page.splitlines()
    assert "decisions" not in page
