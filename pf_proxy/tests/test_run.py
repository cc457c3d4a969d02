# SPDX-License-Identifier: Apache-2.0
"""`pf-proxy run` and `--workers`: supervised processes, a reload that drops nothing, a drain."""

import itertools
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from enclavekit_core.address import CID_PARENT, VsockAddress, parse_address
from enclavekit_core.errors import TransportError
from enclavekit_core.streams import Listener, connect
from enclavekit_pf_proxy import cli
from enclavekit_pf_proxy.config import load_plan

PATIENCE_S = 20.0
START = "import sys; from enclavekit_pf_proxy.cli import main; sys.exit(main())"
ONE = "listeners:\n- {mode: ip-to-vsock, listen: '127.0.0.1:0', upstream: 'parent:7000'}\n"
TWO = ONE + "- {mode: ip-to-vsock, listen: '127.0.0.1:0', upstream: 'parent:7001', name: second}\n"
RANGE = "workers: 2\nlisteners:\n- {mode: vsock-to-ip, listen: 'any:7100-7102', upstream: '127.0.0.1:%d'}\n"


@contextmanager
def running(*arguments, addresses=1):
    argv = [sys.executable, "-c", START, *arguments, "--print-address"]
    environment = {**os.environ, "ENCLAVEKIT_LOG": "info"}
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        log = []
        seen = threading.Condition()

        def read():
            for line in process.stderr:
                with seen:
                    log.append(line)
                    seen.notify_all()

        reader = threading.Thread(target=read, daemon=True)
        reader.start()

        def wait_for(event):
            with seen:
                assert seen.wait_for(lambda: any(event in line for line in log), PATIENCE_S), log
                log.clear()

        process.wait_for = wait_for
        try:
            yield (
                process,
                [
                    parse_address(process.stdout.readline().strip().replace("udp://", "tcp://"))
                    for _ in range(addresses)
                ],
            )
        finally:
            process.terminate()
            process.wait(PATIENCE_S)
            reader.join(PATIENCE_S)


def workers_of(process):
    with open(f"/proc/{process.pid}/task/{process.pid}/children") as listed:
        return [int(pid) for pid in listed.read().split()]


@pytest.fixture
def upstream():
    with Listener(VsockAddress(CID_PARENT, 7000)) as listener:
        listener.socket.settimeout(PATIENCE_S)
        yield listener


@contextmanager
def pair(address, listener):
    client = connect(address)
    client.settimeout(PATIENCE_S)
    peer, _ = listener.accept()
    with client, peer:
        yield client, peer


def exchange(client, peer, text=b"x"):
    client.sendall(text)
    assert peer.recv(100) == text
    peer.sendall(text)
    assert client.recv(100) == text


def test_a_reload_drops_no_connection(tmp_path, upstream):
    config = tmp_path / "proxy.yaml"
    config.write_text(ONE)
    with running("run", str(config)) as (process, (address,)), pair(address, upstream) as (client, peer):
        exchange(client, peer)
        config.write_text(TWO)
        process.send_signal(signal.SIGHUP)
        address_of_second = parse_address_of_reload(process)
        exchange(client, peer, b"still there")
        with pair(address, upstream) as (another, other_peer):
            exchange(another, other_peer)
        with Listener(VsockAddress(CID_PARENT, 7001)) as second, pair(address_of_second, second) as ends:
            exchange(*ends)
        process.send_signal(signal.SIGTERM)
        exchange(client, peer, b"draining")


def parse_address_of_reload(process):
    process.wait_for("reloaded")
    return parse_address(process.stdout.readline().strip())


def test_a_reload_that_cannot_be_used_changes_nothing(tmp_path, upstream):
    config = tmp_path / "proxy.yaml"
    config.write_text(ONE)
    with running("run", str(config)) as (process, (address,)):
        before = workers_of(process)
        config.write_text("listeners: []\n")
        process.send_signal(signal.SIGHUP)
        process.wait_for("cannot reload")
        assert workers_of(process) == before
        with pair(address, upstream) as ends:
            exchange(*ends)


def test_connections_during_reloads_are_all_served(tmp_path, upstream):
    """With workers that become more and fewer: none of the clients is turned away."""
    config = tmp_path / "proxy.yaml"
    config.write_text("workers: 2\n" + ONE)
    stop = threading.Event()

    def serve():
        while True:
            peer, _ = upstream.accept()
            with peer:
                data = peer.recv(1)
                if data == b"q":
                    return
                peer.sendall(data)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    with running("run", str(config)) as (process, (address,)):

        def reload():
            for number in itertools.count():
                if stop.is_set():
                    return
                config.write_text(f"workers: {1 + number % 3}\n{ONE}")
                process.send_signal(signal.SIGHUP)
                process.wait_for("reloaded")

        reloader = threading.Thread(target=reload, daemon=True)
        reloader.start()
        for _ in range(300):
            with connect(address) as client:
                client.settimeout(PATIENCE_S)
                client.sendall(b"x")
                assert client.recv(1) == b"x"
        stop.set()
        reloader.join(PATIENCE_S)
        with connect(address) as client:
            client.sendall(b"q")
            server.join(PATIENCE_S)


def test_a_worker_that_dies_is_replaced(tmp_path, upstream):
    config = tmp_path / "proxy.yaml"
    config.write_text(ONE)
    with running("run", str(config)) as (process, (address,)):
        (worker,) = workers_of(process)
        os.kill(worker, signal.SIGKILL)
        process.wait_for("worker ended")
        with pair(address, upstream) as ends:
            exchange(*ends)


def test_workers_end_with_their_supervisor(tmp_path):
    config = tmp_path / "proxy.yaml"
    config.write_text("workers: 2\n" + ONE)
    with running("run", str(config)) as (process, (address,)):
        waiting = [os.pidfd_open(pid) for pid in workers_of(process)]
        assert len(waiting) == 2
        process.kill()
        process.wait(PATIENCE_S)
        for pidfd in waiting:
            assert select.select([pidfd], [], [], PATIENCE_S)[0]
            os.close(pidfd)
        with pytest.raises(TransportError):
            connect(address)


def test_workers_share_a_range_of_vsock_ports(tmp_path, runtime_dir):
    config = tmp_path / "proxy.yaml"
    with socket.create_server(("127.0.0.1", 0)) as web:
        web.settimeout(PATIENCE_S)
        config.write_text(RANGE % web.getsockname()[1])
        with running("run", str(config), addresses=3) as (process, addresses):
            for address in addresses:
                client = connect(VsockAddress(CID_PARENT, address.port))
                peer, _ = web.accept()
                with client, peer:
                    exchange(client, peer)
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
    assert not [name for name in os.listdir(f"{runtime_dir}/fabric/{CID_PARENT}") if name.endswith(".sock")]


def test_a_single_listener_has_workers_too(upstream):
    with running("ip-to-vsock", "-i", "127.0.0.1:0", "-v", "parent:7000", "--workers", "2") as (process, (address,)):
        assert len(workers_of(process)) == 2
        for _ in range(8):
            with pair(address, upstream) as ends:
                exchange(*ends)


def test_a_second_supervisor_does_not_share_the_port(tmp_path, upstream, capsys):
    config = tmp_path / "proxy.yaml"
    config.write_text(ONE)
    with running("run", str(config)) as (_, (address,)):
        config.write_text(ONE.replace("127.0.0.1:0", f"127.0.0.1:{address.port}"))
        assert cli.main(["run", str(config)]) == 3
    assert "address already in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "listeners: []",
        "listeners: [{mode: ip-to-vsock, listen: '127.0.0.1:1'}]",
        "listeners: [{mode: ip-to-vsock, listen: '127.0.0.1:1', upstream: 'any:1'}]",
        "listeners: [{mode: ip-to-vsock, listen: '127.0.0.1:1', upstream: 'tcp://h:1'}]",
        "listeners: [{mode: ip-to-vsock, listen: 'vsock://3:1', upstream: '3:1'}]",
        "listeners: [{mode: ip-to-vsock, listen: '127.0.0.1:1-3', upstream: '3:1-2'}]",
        "listeners: [{mode: ip-to-vsock, listen: '127.0.0.1:3-1', upstream: '3:1'}]",
        "listeners: [{mode: ip-to-vsock, listen: '127.0.0.1:1-60000', upstream: '3:1'}]",
        "listeners: [{mode: vsock-to-ip-transparent, listen: 'any:1', upstream: '127.0.0.1:1'}]",
        "listeners: [{mode: vsock-to-ip, listen: 'any:1', upstream: 'h:1', only_destinations: true}]",
        "listeners: [{mode: vsock-to-ip, listen: 'any:1', upstream: 'h:1', allow_cids: [1], allow_cids_from: /x}]",
        "listeners: [{mode: vsock-to-ip, listen: 'any:1', upstream: 'h:1', allow_cids_from: /no/such/file}]",
        "listeners: [{mode: ip-to-vsock, listen: '127.0.0.1:1', upstream: '3:1', allow_cids: [1]}]",
        "listeners: [{mode: ip-to-vsock, listen: '127.0.0.1:1', upstream: '3:1', surprise: 1}]",
        "listeners: [{mode: ip-to-vsock, listen: '127.0.0.1:1', upstream: '3:1', send_proxy: 3}]",
        "listeners: [{mode: ip-to-vsock, listen: '127.0.0.1:1', upstream: '3:1', limits: {idle_timeout_s: .inf}}]",
        "workers: 0\n" + ONE,
        "policy: no-such-file\n" + ONE,
        "dns: {upstreams: ['3:1']}\n" + ONE,
        "listeners: [&a {mode: ip-to-vsock, listen: '127.0.0.1:1', upstream: '3:1'}, *a]",
        "listeners:\n" + 2 * "- {mode: ip-to-vsock, listen: '127.0.0.1:1', upstream: '3:1'}\n",
    ],
)
def test_unusable_configurations_exit_2_in_one_line(text, tmp_path, capsys):
    config = tmp_path / "proxy.yaml"
    config.write_text(text)
    assert cli.main(["run", str(config), "--check"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pf-proxy: cannot ") and err.count("\n") == 1


def test_limits_of_a_listener_go_before_those_of_all(tmp_path):
    config = tmp_path / "proxy.yaml"
    own = ONE.replace("}", ", limits: {idle_timeout_s: 5}}")
    config.write_text("limits: {idle_timeout_s: 60, max_connections: 7}\n" + own)
    limits = load_plan(str(config)).services[0].limits
    assert (limits.idle_timeout_s, limits.max_connections) == (5, 7)
