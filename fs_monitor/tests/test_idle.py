# SPDX-License-Identifier: Apache-2.0
"""Nothing happens, and nothing runs: in every state each thread sleeps until an event wakes it."""

import os
import shutil
import signal
import subprocess
import time

import pytest

from .conftest import TIMEOUT_S

SHORTEST_PAUSE_MS = 900  # what retries and pings may ask for; a loop that looks for itself asks for less
# Source: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
CALLS = {
    "x86_64": {"futex": 202, "accept": 43, "accept4": 288, "epoll_wait": 232, "epoll_pwait": 281},
    "aarch64": {"futex": 98, "accept": 202, "accept4": 242, "epoll_pwait": 22},
}
pytestmark = pytest.mark.skipif(os.uname().machine not in CALLS, reason="system calls are known for two machines only")


def sleeps_until_woken(call):
    """Whether a line of /proc/PID/task/TID/syscall says that this thread waits, for long or for ever."""
    number, *arguments = call.split()
    if number in ("running", "-1"):
        return False
    names = {value: name for name, value in CALLS[os.uname().machine].items()}
    name, arguments = names.get(int(number)), [int(argument, 16) for argument in arguments]
    if name in ("accept", "accept4"):
        return True
    if name == "futex":
        return arguments[3] == 0  # no timeout
    timeout_ms = (arguments[3] & 0xFFFFFFFF) if name else 0
    return timeout_ms >= SHORTEST_PAUSE_MS  # -1, for ever, is the largest


def calls_and_switches(pid):
    found = {}
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            with (
                open(f"/proc/{pid}/task/{thread}/syscall") as call,
                open(f"/proc/{pid}/task/{thread}/status") as status,
            ):
                switches = [int(line.split()[1]) for line in status if "ctxt_switches" in line]
                found[thread] = (call.read(), sum(switches))
        except FileNotFoundError:
            continue  # ended
        except PermissionError as exc:
            pytest.skip(f"cannot see what threads wait for: {exc.strerror}")
    return found


def assert_comes_to_rest(process):
    """Return once all threads sleep, and did so from one look to the next."""
    deadline_s, before = time.monotonic() + TIMEOUT_S, None
    while time.monotonic() < deadline_s:
        assert process.poll() is None
        now = calls_and_switches(process.pid)
        if before == now and all(sleeps_until_woken(call) for call, _ in now.values()):
            return
        before = now
        os.sched_yield()
    raise AssertionError(f"it does not come to rest: {before}")


def test_sees_whether_a_program_polls():
    with subprocess.Popen(["python3", "-c", "import select; p = select.epoll()\nwhile 1: p.poll(0.2)"]) as polls:
        with subprocess.Popen(["python3", "-c", "import select; select.epoll().poll()"]) as sleeps:
            assert_comes_to_rest(sleeps)
            assert not any(sleeps_until_woken(call) for call, _ in calls_and_switches(polls.pid).values())
            sleeps.kill()
        polls.kill()


def test_ready(monitor):
    assert_comes_to_rest(monitor.process)


def test_with_metrics_over_tcp(start_monitor, tree):
    (tree / "f").write_bytes(b"1")
    monitor = start_monitor("--metrics-listen", "tcp://127.0.0.1:0")
    monitor.agrees()
    assert_comes_to_rest(monitor.process)


def test_bad_ignore_file(monitor):
    monitor.ignore.write_bytes(b"[z-a]\n")
    monitor.until_status(lambda status: status["ignore"]["error"])
    assert_comes_to_rest(monitor.process)


def test_bus_away(monitor, nats):
    nats.stop()
    monitor.until_status(lambda status: not status["bus"]["connected"])
    assert_comes_to_rest(monitor.process)


def test_bus_away_with_something_to_write(monitor, nats, tree):
    nats.stop()
    (tree / "late").write_bytes(b"1")
    monitor.until_status(lambda status: status["bus"]["to_write"])
    assert_comes_to_rest(monitor.process)
    nats.start()
    monitor.agrees()
    assert_comes_to_rest(monitor.process)


def test_file_with_a_writer(monitor, tree):
    with open(tree / "open", "wb") as out:
        out.write(b"x")
        out.flush()
        monitor.until_status(lambda status: status["failed"])
        assert_comes_to_rest(monitor.process)
    monitor.agrees()


def test_root_gone(monitor, tree):
    shutil.rmtree(tree)
    monitor.agrees()
    assert_comes_to_rest(monitor.process)
    deep = tree / "a/b"
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"1")
    assert len(monitor.agrees()) == 1
    assert_comes_to_rest(monitor.process)


def test_every_directory_above_gone(tmp_path, start_monitor):
    tree = tmp_path / "above/between/tree"
    tree.mkdir(parents=True)
    monitor = start_monitor(roots=[tree])
    (tree / "f").write_bytes(b"1")
    monitor.agrees()
    shutil.rmtree(tmp_path / "above")
    assert monitor.agrees() == {}
    assert_comes_to_rest(monitor.process)
    tree.mkdir(parents=True)
    (tree / "g").write_bytes(b"2")
    assert len(monitor.agrees()) == 1
    scans = monitor.status()["roots"][0]["scans"]
    (tmp_path / "above/between/other").mkdir()  # nobody waits for a name there any more
    (tree / "h").write_bytes(b"3")
    monitor.agrees()
    assert monitor.status()["roots"][0]["scans"] == scans


def test_stopped_and_continued(monitor, tree):
    monitor.process.send_signal(signal.SIGSTOP)
    (tree / "meanwhile").write_bytes(b"1")
    monitor.process.send_signal(signal.SIGCONT)
    monitor.agrees()
    assert_comes_to_rest(monitor.process)
