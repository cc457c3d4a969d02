# SPDX-License-Identifier: Apache-2.0
"""initctl and the control socket against a real PID 1. Few boots, much asked of each."""

import contextlib
import json
import os
import random
import signal
import socket
import time
from pathlib import Path

import pytest
from enclavekit_enclave_init.initctl.framing import AnswerDecoder, encode_frame

from .test_pid1 import MAX_RSS_KB, OVER, PYTHON, py, sh

PATIENCE_S = 60
WAIT = "while ! [ -e /out/go ]; do sleep 0.01; done"
FOREVER = "ExecStart = 'sleep 1000'\n"


def raw(machine, data, end=False):
    """Send bytes to the control socket and return everything that comes back."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(machine.control_socket)
        sock.settimeout(PATIENCE_S)
        with contextlib.suppress(BrokenPipeError):
            sock.sendall(data)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := sock.recv(65536):
                got += chunk
        return got


def test_units_are_controlled_and_shown(machine):
    machine.unit("db", FOREVER)
    machine.unit("web", FOREVER + "Requires = ['db']\n")
    machine.unit("spare", FOREVER + "ServiceEnable = false\n")
    machine.unit("setup", "ExecStart = 'true'\nType = 'oneshot'\n")
    machine.unit("broken", "ExecStart = '/no/such'\nServiceEnable = false\n")
    machine.boot()
    tree = {unit["name"]: unit for unit in machine.initctl_json("status")["units"]}
    assert tree["web"]["dependencies"]["requires"] == ["db"] and tree["setup"]["exit_status"] == 0
    text = machine.initctl("status").splitlines()
    assert any(line.startswith("web ") and " running " in line for line in text)
    assert any(line.startswith("`- db ") for line in text)

    assert machine.initctl_json("ping") == {}
    listed = {unit["name"]: unit for unit in machine.initctl_json("list")["services"]}
    assert {name: unit["active"] for name, unit in listed.items()} == {
        "broken": False, "db": True, "setup": False, "spare": False, "web": True,
    }  # fmt: skip
    assert set(listed["db"]) >= {"name", "enabled", "active", "restart_policy", "restart_count"}

    def status(name):
        return machine.initctl_json("status", name)["status"]

    # restart: answered when it is up again, as another process; what requires it comes back too
    before, web_before = status("db")["pid"], status("web")["pid"]
    machine.initctl("restart", "db")
    assert status("db")["pid"] not in (None, before) and status("db")["state"] == "running"
    machine.initctl("start", "web")
    assert status("web")["pid"] != web_before and status("db")["signal"] == signal.SIGTERM

    machine.initctl("stop", "web")
    assert not status("web")["active"] and status("db")["active"]
    machine.initctl("start", "web")
    machine.initctl("stop", "db")  # takes web along, which needs it
    assert not status("web")["active"] and not status("db")["active"]
    machine.initctl("start", "web")  # brings db along
    assert status("db")["active"]

    assert "no such file" in machine.initctl("start", "broken", status=1)
    assert "no such unit" in machine.initctl("start", "ghost", status=1)
    for name in ("../x", "a b", "enclave-init", ""):
        machine.initctl("disable", name, status=2)
    machine.initctl("kill", "db", "-s", "0", status=2)

    # enable and disable change what they name and nothing else
    pids = {name: status(name)["pid"] for name in ("db", "web")}
    machine.initctl("enable", "spare", "--now")
    assert status("spare")["active"] and status("spare")["enabled"]
    machine.initctl("disable", "spare")
    assert not status("spare")["active"] and not status("spare")["enabled"]
    assert machine.initctl_json("reload")["changed"] == []
    assert pids == {name: status(name)["pid"] for name in ("db", "web")}
    machine.initctl("enable", "spare")
    assert not status("spare")["active"]

    assert json.loads(machine.initctl("health", "--json", status=1))["units"]["broken"]["ready"] is False
    assert machine.initctl_json("system-status")["status"]["total_services"] == 5
    times = machine.initctl_json("analyze")
    assert times["boot_ms"] > 0 and times["own_ms"] > 0
    assert {"db", "web", "setup"} <= {unit["name"] for unit in times["units"]}
    assert any("loopback" in step["what"] for step in times["steps"])
    assert "loopback" in machine.initctl("analyze")


def test_processes_are_listed_started_and_signalled(machine):
    machine.unit("app", sh("sleep 1000 & echo $! >/out/grandchild; wait"))
    machine.boot()
    machine.wait_for(lambda: (machine.out / "grandchild").exists() and (machine.out / "grandchild").read_text().strip())
    processes = {one["pid"]: one for one in machine.initctl_json("ps")["processes"]}
    main = machine.initctl_json("status", "app")["status"]["pid"]
    grandchild = int((machine.out / "grandchild").read_text())
    assert processes[main]["service_name"] == "app" and processes[main]["managed"] and processes[main]["child"]
    assert processes[grandchild]["service_name"] == "app" and not processes[grandchild]["child"]
    assert processes[1]["ppid"] == 0 and not processes[1]["managed"]
    assert machine.initctl_json("ps", "status", main)["process"]["cmdline"].startswith("sh -c")

    # only its own children, and never a group, everybody or itself
    for pid in (-1, 0, 1):
        machine.initctl("ps", "kill", "-s", "9", "--", pid, status=2)
    assert "not a child" in machine.initctl("ps", "kill", grandchild, status=2 - 1)
    assert "no such process" in machine.initctl("ps", "stop", 400_000, status=1)
    assert "not the main process" in machine.initctl("ps", "restart", grandchild, status=1)

    started = machine.initctl_json("ps", "start", "-e", "A=1", "--", "sh", "-c", "echo a=$A; exec sleep 1000")
    machine.wait_for(lambda: "a=1" in machine.initctl("logs", "run@1"))
    session = machine.initctl_json("ps", "status", started["pid"])["process"]
    assert session["child"] and session["service_name"] == "run@1"
    machine.initctl("ps", "kill", started["pid"], "-s", "9")
    machine.wait_for(lambda: "killed by signal 9" in machine.initctl("logs", "enclave-init"))
    # a program that does not exist is no success, as it was with a pid and nothing behind it
    assert "no such file" in machine.initctl("ps", "start", "/no/such/program", status=1)
    machine.initctl("ps", "run", "true")

    machine.initctl("ps", "restart", main)
    assert machine.initctl_json("status", "app")["status"]["pid"] not in (None, main)
    [line] = machine.initctl("top", "-n", "1", "--json").splitlines()
    assert {1, machine.initctl_json("status", "app")["status"]["pid"]} <= {one["pid"] for one in json.loads(line)}


def test_old_clients_and_prometheus_are_answered(machine):
    machine.unit("app", sh("echo one; echo two >&2; exec sleep 1000"))
    machine.unit("ill", "ExecStart = 'false'\n")
    machine.boot().wait_line("app: one")
    machine.wait_line("app: two")
    # the Rust initctl: one send, one answer, the end of the stream
    assert json.loads(raw(machine, b'"Ping"')) == "Pong"
    services = json.loads(raw(machine, b'"ListServices"'))["ServiceList"]["services"]
    assert [service["name"] for service in services] == ["app", "ill"]
    status = json.loads(raw(machine, b'{"ServiceStatus":{"name":"app"}}'))["ServiceStatus"]["status"]
    assert set(status["dependencies"]) == {"before", "after", "requires", "required_by"}
    logs = json.loads(raw(machine, b'{"ServiceLogs":{"name":"app","lines":50}}'))["ServiceLogs"]["logs"]
    assert [line[22:] for line in logs] == ["one", "two"] and logs[0].startswith("[20")
    assert "several answers" in json.loads(raw(machine, b'"Logs"'))["Error"]["message"]
    assert json.loads(raw(machine, b'{"ProcessKill":{"pid":-1,"signal":9}}')).keys() == {"Error"}
    # in pieces, and longer than what one recv took
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(machine.control_socket)
        for byte in b'{"ServiceStatus":{"name":"' + b"x" * 9000 + b'"}}':
            sock.sendall(bytes((byte,)))
        assert b"not a unit name" in sock.recv(100_000)

    def get(path):
        head, _, body = raw(machine, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()).partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    code, metrics = get("/metrics")
    assert code == 200 and 'enclave_init_unit_ready{unit="app"} 1' in metrics.splitlines()
    assert 'enclave_init_log_lines_total{unit="app"} 2' in metrics.splitlines()
    assert metrics.splitlines() == [line for line in metrics.splitlines() if line.startswith(("#", "enclave_init_"))]
    rss = next(line for line in metrics.splitlines() if line.startswith("enclave_init_resident_memory_bytes "))
    assert float(rss.split()[1]) < MAX_RSS_KB * 1024
    assert get("/ready/app")[0] == 200 and get("/live/app")[0] == 200
    machine.wait_for(lambda: get("/live/ill")[0] == 503)
    assert get("/ready")[0] == 503 and get("/elsewhere")[0] == 404
    assert b"400" in raw(machine, b"GETTING\r\n\r\n")


def test_only_who_is_listed_may_ask(machine):
    if os.geteuid() != 0:
        pytest.skip("needs root: a single mapped id cannot become another")
    ask = (
        "import socket, sys\n"
        "def ask(data):\n"
        "    s = socket.socket(socket.AF_UNIX)\n"
        "    try:\n"
        "        s.connect('/run/init.sock'); s.sendall(data)\n"
        "        return s.recv(65536).decode()\n"
        "    except OSError as exc:\n"
        "        return type(exc).__name__\n"
        'requests = b\'"Ping"\', b\'"ListServices"\', b\'{"ServiceStop":{"name":"db"}}\', b\'"SystemShutdown"\'\n'
        "for data in requests: print(ask(data), flush=True)\n"
        "print('asked', flush=True)\n"
    )
    machine.unit("db", FOREVER)
    machine.unit("listed", py(ask) + "User = 33\nRequires = ['db']\n")
    machine.unit("stranger", py(ask) + "User = 44\nRequires = ['db']\n")
    machine.file("/etc/init.toml", "[[control.allow]]\nuid = 33\npermissions = ['status']\n")
    machine.boot().wait_line("listed: asked")
    machine.wait_line("stranger: asked")
    pong, services, stop, shutdown, _ = machine.log("listed")
    assert json.loads(pong) == "Pong" and "ServiceList" in services
    assert "uid 33 may not" in stop and "uid 33 may not" in shutdown
    assert set(machine.log("stranger")) <= {"", "asked", "ConnectionResetError", "BrokenPipeError"}
    assert machine.initctl_json("status", "db")["status"]["active"]


def test_socket_lets_nobody_in_by_default(machine):
    machine.unit("app", FOREVER)
    machine.boot()
    machine.initctl("ping")
    assert os.stat(machine.control_socket).st_mode & 0o777 == 0o600


def test_no_request_however_wrong_disturbs_pid_1(machine):
    machine.unit("app", FOREVER)
    machine.boot()
    machine.initctl("ping")
    descriptors = len(os.listdir(f"/proc/{machine.pid1}/fd"))
    chance = random.Random(7)
    samples = [
        b'"Ping"',
        b'{"ServiceStatus":{"name":"app"}}',
        encode_frame(b'"ListServices"'),
        b"GET /metrics HTTP/1.0\n\n",
    ]
    idle = [socket.socket(socket.AF_UNIX) for _ in range(100)]  # more than there are places: they say nothing
    try:
        for sock in idle:
            sock.connect(machine.control_socket)
        for sock in idle[::2]:
            sock.close()
        for sock in idle[1::2]:
            sock.close()
        for _ in range(300):
            data = bytearray(chance.choice(samples))
            for _ in range(chance.randrange(4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(machine.control_socket)  # with a timeout it would not wait for room in the queue
                sock.settimeout(PATIENCE_S)
                with contextlib.suppress(OSError):
                    sock.sendall(data[: chance.randrange(len(data) + 1)])
                    if chance.random() < 0.5:
                        sock.shutdown(socket.SHUT_WR)
                        while sock.recv(65536):
                            pass
    finally:
        for sock in idle:
            sock.close()
    assert machine.initctl_json("status", "app")["status"]["active"]
    machine.wait_for(lambda: len(os.listdir(f"/proc/{machine.pid1}/fd")) <= descriptors)


@pytest.mark.parametrize("verb", ["shutdown", "reboot", "poweroff"])
def test_three_ways_to_end(machine, verb):
    machine.unit(
        "app", sh("trap 'echo stopped >/out/stopped; exit 5' TERM; echo up; while :; do sleep 0.01; done") + OVER
    )
    machine.boot().wait_line("app: up")
    machine.initctl(verb)
    report = machine.wait()
    assert report["cause"] == ("requested" if verb == "poweroff" else report["cause"])
    assert (machine.out / "stopped").exists() == (verb != "poweroff")
    assert report["exit_status"] == (None if verb == "poweroff" else 5)
    # in a PID namespace reboot(2) tells by the signal of its init what was meant
    expected = signal.SIGHUP if verb == "reboot" else signal.SIGINT
    assert machine.process.returncode in (-expected, 128 + expected)


def test_logs_are_shown_followed_and_cleared(machine):
    machine.file("/etc/init.toml", "[logs]\nformat = 'json'\nredact = ['pw=[a-z]+']\n")
    machine.unit(
        "app",
        sh(f"echo 'out pw=secret'; echo err >&2; {WAIT}; echo later; exec sleep 1000"),
    )
    machine.unit("other", sh("echo other"))
    machine.boot().wait_line("app: err")
    machine.wait_line("other: other")
    entries = [json.loads(line) for line in machine.initctl("logs", "app", "--json").splitlines()]
    assert sorted((entry["stream"], entry["text"]) for entry in entries) == [
        ("stderr", "err"), ("stdout", "out [redacted]"),
    ]  # fmt: skip
    assert len(machine.initctl("logs", "-n", "1").splitlines()) == 1
    everybody = machine.initctl("logs", "-u", "app", "-u", "other")
    assert " app! err" in everybody and " other: other" in everybody and "enclave-init" not in everybody
    assert machine.initctl("logs", "app", "--since", "1h").count("\n") == 2
    assert machine.initctl("logs", "app", "--since", str(int(time.time()) + 1000)) == ""
    assert "enclave-init" in machine.initctl("logs") and "app starts as pid" in machine.initctl("logs", "enclave-init")
    machine.initctl("logs", "ghost", status=1)

    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(machine.control_socket)
        sock.settimeout(PATIENCE_S)
        request = {"Logs": {"units": ["app"], "lines": 1, "follow": True}}
        sock.sendall(encode_frame(json.dumps(request).encode()))
        decoder, seen = AnswerDecoder(), []
        while "later" not in seen:
            for answer in decoder.feed(sock.recv(65536)):
                seen += [line["text"] for line in json.loads(answer)["LogLines"]["lines"]]
            if len(seen) == 1:
                (machine.out / "go").touch()
        assert seen[-1] == "later" and len(seen) == 2
    written = [json.loads(line) for line in (machine.out / "app.log").read_text().splitlines()]
    assert {entry["unit"] for entry in written} == {"app"} and "secret" not in (machine.out / "app.log").read_text()
    machine.initctl("logs-clear", "app")
    assert machine.initctl("logs", "app") == "" and not (machine.out / "app.log").exists()


def test_reader_that_stops_loses_lines_and_nobody_else_does(machine):
    lines = 400_000  # 14 MB through a queue of half a MiB
    machine.file("/etc/init.toml", "max_log_size = 33554432\n")
    machine.unit(
        "app",
        sh(f"{WAIT}; yes {'0123456789abcdef' * 2} | head -n {lines}; echo done; exec sleep 1000"),
    )
    machine.boot()
    machine.initctl("ping")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(machine.control_socket)
        sock.settimeout(PATIENCE_S)
        sock.sendall(encode_frame(b'{"Logs":{"units":["app"],"lines":0,"follow":true}}'))
        machine.wait_for(lambda: machine.initctl_json("ping") == {})
        (machine.out / "go").touch()
        # it reads nothing until the unit is done
        machine.wait_for(lambda: '"text": "done"' in machine.initctl("logs", "app", "-n", "1", "--json"))
        assert len(machine.log("app")) == lines + 1
        decoder, kept, dropped = AnswerDecoder(), 0, 0
        while kept + dropped < lines + 1:
            for answer in decoder.feed(sock.recv(1 << 20)):
                for line in json.loads(answer)["LogLines"]["lines"]:
                    if line["unit"] == "enclave-init":
                        dropped += int(line["text"].split()[0])
                    else:
                        kept += 1
        assert dropped and kept + dropped == lines + 1
    status = Path(f"/proc/{machine.pid1}/status").read_text()
    assert int(status.partition("VmRSS:")[2].split()[0]) < MAX_RSS_KB + 2048  # the queue is gone, its arena need not be


def test_parent_follows_what_the_image_lets_it_have(machine):
    machine.file("/etc/init.toml", "[logs]\nto_parent = 'all'\nstream_port = 9100\n")
    machine.unit("app", sh("n=0; while sleep 0.02; do n=$((n+1)); echo tick $n; done"))
    machine.boot().wait_line("app: tick 1")
    readers = []
    for _ in range(3):
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(PATIENCE_S)
        sock.connect(str(machine.runtime / "fabric" / "16" / "9100.sock"))
        readers.append(sock.makefile("rb"))
        sock.close()
    for reader in readers:
        entry = json.loads(reader.readline())
        assert entry["unit"] == "app" and entry["stream"] == "stdout" and entry["text"].startswith("tick ")
        reader.close()
    # the Rust initctl's way: PID 1 connects to us
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(PATIENCE_S)
        listener.bind(str(machine.runtime / "fabric" / "16" / "parent" / "9777.sock"))
        listener.listen()
        answer = json.loads(raw(machine, b'{"ServiceLogsStream":{"name":"app","vsock_cid":3,"vsock_port":9777}}'))
        assert answer == {"LogsStreamStarted": {"service": "app", "vsock_cid": 3, "vsock_port": 9777}}
        sock, _ = listener.accept()
        with sock, sock.makefile("rb") as lines:
            assert lines.readline()[22:].startswith(b"tick ")
            assert "Success" in json.loads(raw(machine, b'{"ServiceLogsStreamStop":{"name":"app"}}'))
            while lines.readline():
                pass
    # to the parent and to nobody else, and not where nobody listens
    for cid, port in ((77, 9777), (3, 9999)):
        request = json.dumps({"ServiceLogsStream": {"name": "app", "vsock_cid": cid, "vsock_port": port}})
        assert "Error" in json.loads(raw(machine, request.encode()))


def test_parent_gets_no_output_of_the_app_by_default(machine):
    machine.unit("app", sh("echo secret; exit 3") + OVER)
    machine.unit("db", FOREVER)
    machine.boot()
    report = machine.wait()
    assert "secret" not in json.dumps(report) and report["last_lines"]
    assert not (machine.runtime / "fabric" / "16" / "9100.sock").exists()


def test_parent_gets_the_last_lines_where_the_image_says_so(machine):
    machine.file("/etc/init.toml", "[logs]\nto_parent = 'nothing'\n")
    machine.file("/etc/enclavekit/init.toml", "[logs]\nto_parent = 'all'\nlast_lines = 8\n")  # the app's own goes first
    machine.unit("app", sh("echo working; echo 'out of cheese' >&2; kill -9 $$") + OVER)
    report = machine.boot().wait()
    assert (report["cause"], report["signal"], report["unit"]) == ("killed", 9, "app")
    assert {"unit": "app", "stream": "stderr", "text": "out of cheese"} in report["last_lines"]
    assert len(report["last_lines"]) == 8 and 0 < report["uptime_s"] < 1000


def test_app_may_say_nothing_else_to_pid_1(machine):
    machine.file("/etc/enclavekit/init.toml", "[control]\nsocket = ''\n")
    machine.unit("app", "ExecStart = 'true'\n")
    report = machine.boot().wait()
    assert report["cause"] == "boot-failed" and "control" in report["reason"]


def test_failed_boot_is_reported_as_that(machine):
    machine.unit("app", "ExecStart = 'true'\nColour = 'red'\n")
    report = machine.boot().wait()
    assert report["cause"] == "boot-failed" and "Colour" in report["reason"]


def test_full_disk_costs_lines_and_not_the_enclave(machine):
    if os.geteuid() != 0:
        pytest.skip("needs root: it fills a file system of its own")
    machine.file("/etc/init.toml", "log_dir = '/tmp/log'\nmax_log_size = 1073741824\n")
    machine.unit(
        "app",
        f"ExecStart = ['{PYTHON}', '-IS', '-c', '''\n"
        "import os\n"
        "os.system('mount -o remount,size=1m /tmp')\n"
        "for n in range(60000): print('x' * 40)\n"
        "print('done', flush=True)\n"
        "import time; time.sleep(1000)\n"
        "''']\n",
    )
    machine.boot()
    machine.wait_for(lambda: ": done" in machine.initctl("logs", "app", "-n", "1"))
    metrics = machine.initctl("metrics")
    lost = next(
        line for line in metrics.splitlines() if line.startswith('enclave_init_log_lost_lines_total{unit="app"}')
    )
    assert float(lost.split()[1]) > 0
    machine.initctl("logs-clear", "app")
    machine.initctl("restart", "app")
    machine.initctl("shutdown")
    assert machine.wait()["cause"] == "requested"
