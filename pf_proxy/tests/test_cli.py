# SPDX-License-Identifier: Apache-2.0
"""The commands as users run them: a process each, over a fabric of the test's own."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest
from enclavekit_core.address import CID_PARENT, VsockAddress, parse_address
from enclavekit_core.streams import Listener, connect
from enclavekit_pf_proxy import cli

PATIENCE_S = 20.0
OLD_NAMES = {"ip-to-vsock": cli.ip_to_vsock_main, "vsock-to-ip": cli.vsock_to_ip_main}
START = "import sys; from enclavekit_pf_proxy import cli; sys.exit(getattr(cli, sys.argv[1])(sys.argv[2:]))"


@contextmanager
def running(entry, *arguments):
    argv = [sys.executable, "-c", START, entry, *arguments, "--print-address"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, parse_address(process.stdout.readline().strip())
        finally:
            process.terminate()
            process.communicate(timeout=PATIENCE_S)


@pytest.mark.parametrize("entry", ["main", "ip_to_vsock_main"])
@pytest.mark.parametrize("target", ["parent:7000", "3:7000", "vsock://parent:7000"])
def test_ip_to_vsock(entry, target):
    mode = ["ip-to-vsock"] if entry == "main" else []
    arguments = (*mode, "-i", "127.0.0.1:0", "-v", target)
    with Listener(VsockAddress(CID_PARENT, 7000)) as upstream, running(entry, *arguments) as (process, address):
        client, (sock, _) = connect(address), upstream.accept()
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        assert sock.recv(5, socket.MSG_WAITALL) == b"hello"
        sock.sendall(b"bye")
        sock.close()
        assert client.recv(3, socket.MSG_WAITALL) == b"bye"
        client.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("entry", ["main", "vsock_to_ip_main"])
def test_vsock_to_ip(entry):
    mode = ["vsock-to-ip"] if entry == "main" else []
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        target = f"localhost:{upstream.getsockname()[1]}"
        with running(entry, *mode, "-v", "any:7001", "-i", target, "--allow-cid", "parent"):
            client, (sock, _) = connect(VsockAddress(CID_PARENT, 7001)), upstream.accept()
            client.sendall(b"hello")
            assert sock.recv(5, socket.MSG_WAITALL) == b"hello"
            client.close()
            sock.close()


@pytest.mark.parametrize("name", OLD_NAMES)
def test_port_in_use_is_one_line_and_exit_3(name, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken, Listener(VsockAddress(CID_PARENT, 7000)):
        port = taken.getsockname()[1]
        code = OLD_NAMES[name](["-i", f"127.0.0.1:{port}", "-v", "parent:7000"])
    listen = f"tcp://127.0.0.1:{port}" if name == "ip-to-vsock" else "vsock://parent:7000"
    out, err = capsys.readouterr()
    assert code == 3
    assert (out, err) == ("", f"{name}: cannot listen on {listen}: address already in use\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("-i", "127.0.0.1:1"),
        ("-v", "3:1"),
        ("-i", "127.0.0.1", "-v", "3:1"),
        ("-i", "127.0.0.1:70000", "-v", "3:1"),
        ("-i", "127.0.0.1:0", "-v", "host:1"),
        ("-i", "127.0.0.1:0", "-v", "-1:1"),
        ("-i", "127.0.0.1:0", "-v", "any:1"),
        ("-i", "127.0.0.1:0", "-v", "tcp://127.0.0.1:1"),
        ("-i", "vsock://3:1", "-v", "3:1"),
        ("-i", "127.0.0.1:0", "-v", "3:1", "--max-connections", "0"),
        ("-i", "127.0.0.1:0", "-v", "3:1", "--connect-timeout", "0"),
        ("-i", "127.0.0.1:0", "-v", "3:1", "--idle-timeout", "-1"),
        ("-i", "127.0.0.1:0", "-v", "3:1", "--drain-timeout", "nan"),
        ("-i", "127.0.0.1:0", "-v", "3:1", "--surprise"),
    ],
)
def test_unusable_command_line_exits_2(arguments, capsys):
    try:
        code = cli.main(["ip-to-vsock", *arguments])
    except SystemExit as exc:
        code = exc.code
    assert code == 2
    assert capsys.readouterr().out == ""


def test_vsock_to_ip_refuses_port_0_upstream(capsys):
    assert cli.main(["vsock-to-ip", "-v", "any:7001", "-i", "127.0.0.1:0"]) == 2


def test_unresolvable_listen_address_exits_3(capsys):
    assert cli.main(["ip-to-vsock", "-i", "name.invalid:1", "-v", "3:1"]) == 3
    assert "cannot listen on tcp://name.invalid:1" in capsys.readouterr().err


def test_installed_commands_answer_help():
    for name in ("pf-proxy", *OLD_NAMES):
        path = os.path.join(os.path.dirname(sys.executable), name)
        if not os.path.exists(path):
            pytest.skip(f"{name} is not installed")
        assert (
            "CID" in subprocess.run([path, "--help"], capture_output=True, text=True, check=True).stdout
            or name == "pf-proxy"
        )


def test_learn_reads_a_log_that_is_there(tmp_path, capsys):
    log = tmp_path / "log"
    assert cli.main(["learn", str(log)]) == 2
    assert capsys.readouterr().err.startswith(f"pf-proxy: cannot read {log}: ")
    log.write_text("nothing of ours\n")
    assert cli.main(["learn", str(log)]) == cli.main(["learn", "--format", "policy", str(log)]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")] == [
        "network:",
        "  egress: []",
        "allow: []",
    ]
