# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the Rust framework's init is not so here: a page names tests for each, and they exist. Those that
had no place elsewhere are here.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from enclavekit_core import fabric
from enclavekit_enclave_init.initctl.proc_table import parse_stat

from .test_initctl import FOREVER, PATIENCE_S, raw
from .test_pid1 import py, sh

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/reference/init-defects.md"
DEFECTS = 31
INITCTL = [sys.executable, "-c", "import sys; from enclavekit_enclave_init.initctl.cli import main; sys.exit(main())"]


def test_each_defect_has_tests_that_exist(check_defects_page):
    check_defects_page(PAGE, DEFECTS, Path(__file__).parent)


def test_pid_1_forks_from_a_single_thread(machine):
    machine.file("/etc/init.toml", "[logs]\nstream_port = 9100\nto_parent = 'all'\n")
    for number in range(3):
        machine.unit(f"u{number}", sh("while sleep 0.05; do echo tick; done"))
    machine.boot().wait_line("u0: tick")
    machine.initctl("restart", "u1")
    assert len(os.listdir(f"/proc/{machine.pid1}/task")) == 1


def test_disabled_unit_stays_down_and_is_still_listed(machine):
    machine.unit("always", FOREVER + "Restart = 'always'\nRestartSec = 0\n")
    machine.boot()
    assert machine.initctl_json("status", "always")["status"]["restart_count"] == 0
    machine.initctl("disable", "always")
    [listed] = machine.initctl_json("list")["services"]
    assert (listed["name"], listed["enabled"], listed["active"]) == ("always", False, False)
    machine.initctl("reload")
    assert not machine.initctl_json("status", "always")["status"]["active"]


def test_stream_outlives_a_reload_and_leaves_nothing_when_it_ends(machine):
    machine.file("/etc/init.toml", "[logs]\nto_parent = 'all'\n")
    machine.unit("app", sh("while sleep 0.02; do echo tick; done"))
    machine.boot().wait_line("app: tick")
    before = open_files(machine.pid1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(PATIENCE_S)
        listener.bind(str(machine.runtime / "fabric/16/parent/9777.sock"))
        listener.listen()
        for _ in range(3):
            raw(machine, b'{"ServiceLogsStream":{"name":"app","vsock_cid":3,"vsock_port":9777}}')
            sock, _ = listener.accept()
            with sock:
                machine.unit("new", FOREVER)
                machine.initctl("reload")
                for _ in range(3):
                    assert b"tick" in sock.recv(4096)
    # a listener that has gone is no connection that is kept
    for _ in range(3):
        assert "Error" in json.loads(
            raw(machine, b'{"ServiceLogsStream":{"name":"app","vsock_cid":3,"vsock_port":9777}}')
        )
    machine.wait_for(lambda: not open_files(machine.pid1) - before)


@pytest.fixture
def as_parent(machine):
    """Run initctl logs-stream where the parent of `machine` is."""
    host = machine.base / "host"
    (host / "registry").mkdir(parents=True)
    (host / "fabric").mkdir()
    fabric.write_record(str(host / "registry/self.json"), {"cid": 3})
    (host / "fabric/3").symlink_to(machine.runtime / "fabric/16/parent")
    started = []

    def start(*words):
        process = subprocess.Popen(
            [*INITCTL, "--socket", machine.control_socket, "logs-stream", *map(str, words)],
            env={**os.environ, fabric.RUNTIME_DIR_VARIABLE: str(host)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def open_files(pid):
    """What its descriptors are, by inode; one that is closed while we look is left out."""
    directory, found = f"/proc/{pid}/fd", set()
    for number in os.listdir(directory):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"{directory}/{number}"))
    return found


def test_logs_stream_ends_when_it_is_told_to_and_by_itself(machine, as_parent):
    machine.file("/etc/init.toml", "[logs]\nto_parent = 'all'\n")
    machine.unit("app", sh("echo first; exec sleep 1000"))
    machine.boot().wait_line("app: first")
    machine.initctl("ping")
    before = open_files(machine.pid1)
    follower = as_parent("app", "--listen-port", 9801, "--follow")
    machine.wait_for(lambda: open_files(machine.pid1) - before)
    # interrupted while the unit says nothing: it ends all the same, and so does the stream in the enclave
    follower.send_signal(signal.SIGINT)
    assert follower.wait(PATIENCE_S) == 130
    machine.wait_for(lambda: not open_files(machine.pid1) - before)
    # without --follow it ends by itself although the unit is silent; any CID may listen, the parent is dialled
    brief = as_parent("app", "--listen-port", 9802)
    _, errors = brief.communicate(timeout=PATIENCE_S)
    assert (brief.returncode, errors) == (0, b"")
    machine.wait_for(lambda: not open_files(machine.pid1) - before)


def test_logs_stream_says_that_its_port_is_taken(machine, as_parent):
    machine.file("/etc/init.toml", "[logs]\nto_parent = 'all'\n")
    machine.unit("app", FOREVER)
    machine.boot()
    machine.initctl("ping")
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(str(machine.runtime / "fabric/16/parent/9803.sock"))
        taken.listen()
        refused = as_parent("app", "--listen-port", 9803)
        _, errors = refused.communicate(timeout=PATIENCE_S)
    assert refused.returncode == 3 and b"cannot listen on" in errors


def test_any_name_of_a_process_is_shown(machine):
    name = "ö) S 1 (☃"
    machine.unit(
        "odd",
        py(
            "import ctypes, time\n"
            f"ctypes.CDLL(None).prctl(15, {name.encode()[:15]!r}, 0, 0, 0)\n"
            "open('/out/odd', 'x').close()\n"
            "time.sleep(1000)\n"
        ),
    )
    machine.unit("snow", sh("sleep 1000; : " + "☃" * 60))  # longer than a line of the table
    machine.boot()
    machine.wait_for(lambda: (machine.out / "odd").exists())
    pids = {name: machine.initctl_json("status", name)["status"]["pid"] for name in ("odd", "snow")}
    assert "☃" in machine.initctl("ps", "list") and "☃" in machine.initctl("top", "-n", "1")
    assert "☃" * 60 in machine.initctl("ps", "status", pids["snow"])
    assert machine.initctl_json("ps", "status", pids["odd"])["process"]["name"].startswith("ö) S 1 (")


@pytest.mark.parametrize("text", ["", "1", ") (", "1 (x", "1 (x) R", "x (y) R 1 2 3"])
def test_malformed_stat_is_an_error_and_no_more(text):
    with pytest.raises(ValueError, match=r".*"):
        parse_stat(text)


def test_list_and_status_reckon_alike(machine):
    machine.unit(
        "worker",
        py(
            "import time\n"
            "while time.process_time() < 0.5: pass\n"
            "open('/out/done', 'x').close()\n"
            "time.sleep(1000)\n"
        ),
    )  # fmt: skip
    machine.boot()
    machine.wait_for(lambda: (machine.out / "done").exists())
    pid = machine.initctl_json("status", "worker")["status"]["pid"]
    listed = {one["pid"]: one for one in machine.initctl_json("ps", "list")["processes"]}[pid]
    shown = machine.initctl_json("ps", "status", pid)["process"]
    # it rests: its share of the time since its start can only fall
    assert 0 < shown["cpu_percent"] <= listed["cpu_percent"]
    assert abs(shown["start_time"] - listed["start_time"]) <= 1 and shown["cpu_seconds"] > 0.4
