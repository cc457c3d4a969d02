# SPDX-License-Identifier: Apache-2.0
import ssl
import subprocess
import sys

import pytest


def run(*flags, timeout=30):
    argv = [sys.executable, "-m", "enclavekit_ra_web_srv", *flags]
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("listen: 7\n", "listen"),
        ("lisen: tcp://127.0.0.1:1\n", "lisen"),
        ("roots: []\nbus: false\n", "roots"),
        ("roots: [/a/../b]\nbus: false\n", "/a/../b"),
        ("listen: vsock://any:8443\n", "pf-proxy"),
        ("[", "c.yaml"),
    ],
)
def test_bad_configuration(tmp_path, nsm, text, reason):
    (tmp_path / "c.yaml").write_text(text)
    done = run("-c", str(tmp_path / "c.yaml"), "--nsm", nsm.path)
    assert done.returncode == 2
    assert done.stderr.startswith("ra-web-srv: cannot use ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_an_nsm_it_does_not_start(tmp_path):
    done = run("--no-bus", "--listen", "tcp://127.0.0.1:0", "--nsm", str(tmp_path / "nothing"))
    assert done.returncode == 4
    assert done.stderr.startswith("ra-web-srv: cannot open ")


def test_port_in_use(server, nsm):
    done = run("--no-bus", "--nsm", nsm.path, "--listen", f"tcp://127.0.0.1:{server.port}")
    assert done.returncode == 3
    assert f"cannot listen on tcp://127.0.0.1:{server.port}: address already in use" in done.stderr


def test_missing_credentials(tmp_path, nsm):
    done = run("--nsm", nsm.path, "--listen", "tcp://127.0.0.1:0", "--credentials", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert "none.yaml" in done.stderr


def test_flags_win_over_the_file(tmp_path, start_server):
    (tmp_path / "c.yaml").write_text("listen: tcp://127.0.0.1:1\nbus: true\nroots: [/nowhere]\n")
    server = start_server("--no-bus", "-c", str(tmp_path / "c.yaml"))
    assert server.get("/health").json == {
        "status": "ok",
        "bus": "off",
        "files_on_bus": 0,
        "attested_ahead": 0,
        "to_attest": 0,
    }


def test_only_tls_1_3_is_spoken(server):
    connection = server.connect()
    assert connection.sock.version() == "TLSv1.3"
    connection.close()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    import socket

    with socket.create_connection(("127.0.0.1", server.port)) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)


def test_stops_while_a_client_holds_a_connection(server):
    connection = server.connect()
    connection.request("GET", "/health")
    connection.getresponse().read()
    assert server.stop() == 0
    connection.close()


def test_request_under_way_is_answered_before_it_stops(start_server, nsm):
    server = start_server("--no-bus", nsm_path=nsm.start("slow"))
    connection = server.connect()
    connection.request("GET", "/attestation?nonce=00")
    other = server.connect()
    other.request("GET", "/metrics")
    other.getresponse().read()  # so that the first has been read
    server.process.terminate()
    answer = connection.getresponse()
    assert answer.status == 200
    assert b"attestation_document" in answer.read()
    connection.close()
    other.close()
    assert server.process.wait(30) == 0


def test_key_appears_nowhere(start_server, data, tmp_path):
    server = start_server("--no-bus")
    server.get("/attestation", nonce="00")
    server.stop()
    for file in tmp_path.rglob("*"):
        assert not (file.is_file() and b"PRIVATE KEY" in file.read_bytes()), file
