# SPDX-License-Identifier: Apache-2.0
"""What an operator sees: ignore file, status, hashes, metrics, readiness, a stop that loses nothing."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading

import pytest
from enclavekit_core.bus import SERVICE_FS_MONITOR
from enclavekit_core.bus_setup import credentials_path
from enclavekit_core.errors import EnclavekitError, InputError
from enclavekit_core.tree_digest import NO_DIGEST, Kind, TreeEntry, digest_of_directory, digest_of_link
from enclavekit_fs_monitor import control_client, hasher
from enclavekit_fs_monitor.file_state import Happening
from enclavekit_fs_monitor.hasher import LARGE_BYTES, Hasher
from enclavekit_fs_monitor.ignore_rules import parse_rules
from enclavekit_fs_monitor.inotify import Inotify
from enclavekit_fs_monitor.root_watch import RootWatch
from enclavekit_fs_monitor.tracker import Tracker
from enclavekit_fs_monitor.watch_tree import WatchTree

from .conftest import hashes_of


def test_ignore_file_applies_to_scans_events_and_moves_and_is_read_again(tree, start_monitor, tmp_path):
    (tmp_path / "ignore").write_bytes(b"# what editors leave\n*.swp\ncache/\n!keep.swp\n")
    for name in ("cache", "sub"):
        (tree / name).mkdir()
    for name in ("a", "a.swp", "keep.swp", "cache/x", "sub/b.swp", "sub/c"):
        (tree / name).write_bytes(b"1")
    monitor = start_monitor()

    def holds(*names):
        monitor.agrees(
            lambda: {p: h for p, h in hashes_of(tree).items() if p in {os.fsencode(tree / n) for n in names}}
        )

    holds("a", "keep.swp", "sub/c")
    (tree / "cache/y").write_bytes(b"2")
    (tree / "late.swp").write_bytes(b"2")
    os.rename(tree / "a", tree / "a2.swp")
    os.rename(tree / "sub/b.swp", tree / "sub/b")
    os.rename(tree / "sub", tree / "cache/sub")
    holds("keep.swp")
    os.rename(tree / "cache", tree / "kept")
    holds("keep.swp", "kept/x", "kept/y", "kept/sub/b", "kept/sub/c")
    (tmp_path / "ignore.new").write_bytes(b"/kept\n")
    os.rename(tmp_path / "ignore.new", tmp_path / "ignore")
    holds("a.swp", "a2.swp", "late.swp", "keep.swp")
    (tmp_path / "ignore").unlink()
    monitor.agrees()


def test_bad_ignore_file_stops_the_start_but_not_the_service(tree, start_monitor, tmp_path):
    (tmp_path / "ignore").write_bytes(b"*.tmp\n")
    monitor = start_monitor()
    (tree / "x.tmp").write_bytes(b"1")
    (tree / "y").write_bytes(b"1")
    expected = {os.fsencode(tree / "y"): hashes_of(tree)[os.fsencode(tree / "y")]}
    monitor.agrees(lambda: expected)
    (tmp_path / "ignore").write_bytes(b"*.tmp\n[z-a]\n")
    (tree / "z.tmp").write_bytes(b"1")
    monitor.until_status(lambda status: "line 2" in status["ignore"]["error"])
    monitor.agrees(lambda: expected)
    other = start_monitor()
    assert other.process.wait(30) == 2


def test_log_of_the_service_itself_is_no_file_of_the_tree(tree, nats, start_monitor):
    monitor = start_monitor(roots=[tree.parent])  # with its own log, the bus's store, the socket
    store = os.fsencode(f"{nats.directory}/store/")
    log = os.fsencode(tree.parent / "monitor0.log")
    (tree / "f").write_bytes(b"1")
    monitor.agrees(lambda: {p: h for p, h in hashes_of(tree.parent).items() if p != log and not p.startswith(store)})


def test_status_hash_and_metrics(tree, monitor):
    monitor.until_status(lambda status: status["files"]["closed"] == 1)
    status = monitor.command("status", "--wait", "--json")
    assert status["ready"] and status["failed"] == []
    assert status["roots"][0]["present"] and not status["roots"][0]["blind"]
    assert monitor.command("status").startswith(b"ready: 1 ")
    found = monitor.command("hash", "--wait", str(tree / "first"), "--json")
    info = os.stat(tree / "first")
    expected = hashes_of(tree)[os.fsencode(tree / "first")].hex()
    assert (found["kind"], found["sha3_512"]) == ("file", expected)
    assert (found["size"], found["mtime_ns"]) == (info.st_size, info.st_mtime_ns)
    assert monitor.command("hash", "--wait", str(tree / "first")) == f"{expected}  {tree}/first\n".encode()
    samples = dict(re.findall(rb"^(\w+)(?:\{\})? ([0-9.]+)$", monitor.command("metrics"), re.MULTILINE))
    assert samples[b"fs_monitor_ready"] == b"1"
    assert int(samples[b"fs_monitor_hashed_bytes_total"]) >= 1
    assert samples[b"fs_monitor_overflows_total"] == b"0"
    assert samples[b"fs_monitor_hash_queue_files"] == b"0"
    assert stat.S_IMODE(os.stat(monitor.socket.removeprefix("unix://")).st_mode) == 0o600


def test_hash_finds_names_of_every_kind(tree, monitor):
    names = [
        b"with space",
        b"new\nline",
        b"\xff\xfe",
        "grün".encode(),
        "gru\u0308n".encode(),
        b"x" * 255,
        b"back\\slash",
    ]
    for name in names:
        with open(os.path.join(os.fsencode(tree), name), "wb") as out:
            out.write(name)
    found = monitor.agrees()
    for name in names:
        path = os.path.join(os.fsencode(tree), name)
        said = monitor.command("hash", "--wait", path, "--json")
        assert (os.fsencode(said["path"]), said["sha3_512"]) == (path, found[path].hex())
    line = monitor.command("hash", "--wait", os.path.join(os.fsencode(tree), b"new\nline"))
    assert line.startswith(b"\\") and line.endswith(b"new\\nline\n")


def test_hash_waits_for_a_file_that_is_yet_to_come(tree, monitor, tmp_path):
    argv = [sys.executable, "-m", "enclavekit_fs_monitor", "hash", "--wait", str(tree / "late"), "--socket"]
    with subprocess.Popen([*argv, monitor.socket], stdout=subprocess.PIPE) as waiting:
        with open(tree / "late", "wb") as out:
            out.write(b"half")
            out.flush()
            monitor.until_status(lambda status: status["failed"])
            assert waiting.poll() is None
            out.write(b" and half")
        line, _ = waiting.communicate(timeout=60)
    assert line.split()[0].decode() == hashes_of(tree)[os.fsencode(tree / "late")].hex()
    monitor.command("hash", "--wait", str(tmp_path / "outside"), expect=2)  # it cannot come


def test_digest_of_a_directory_covers_names_types_and_modes(tree, monitor):
    (tree / "dir/sub").mkdir(parents=True)
    (tree / "dir/file").write_bytes(b"content")
    (tree / "dir/link").symlink_to("file")
    os.mkfifo(tree / "dir/fifo")
    for name, mode in (("file", 0o640), ("sub", 0o750), ("fifo", 0o600)):
        os.chmod(tree / "dir" / name, mode)
    known = monitor.agrees()
    expected = digest_of_directory(
        [
            TreeEntry(b"file", Kind.FILE, 0o640, known[os.fsencode(tree / "dir/file")]),
            TreeEntry(b"link", Kind.LINK, 0, digest_of_link(b"file")),
            TreeEntry(b"fifo", Kind.OTHER, 0o600, NO_DIGEST),
            TreeEntry(b"sub", Kind.DIRECTORY, 0o750, digest_of_directory([])),
        ]
    )
    found = monitor.command("hash", "--wait", str(tree / "dir"), "--json")
    assert (found["kind"], found["sha3_512"], found["files"]) == ("directory", expected.hex(), 1)
    os.rename(tree / "dir/sub", tree / "dir/sub2")
    renamed = monitor.command("hash", "--wait", str(tree / "dir"), "--json")
    assert renamed["sha3_512"] != expected.hex()


def test_what_has_no_hash_says_why(tree, monitor, tmp_path):
    with open(tree / "open", "wb") as out:
        out.write(b"x")
        for path, kind in ((tree / "open", EnclavekitError), (tree, EnclavekitError), (tree / "none", InputError)):
            with pytest.raises(kind):
                control_client.ask(monitor.socket, "/hash", {"path": str(path)})
        with pytest.raises(InputError, match="lies in no root"):
            control_client.ask(monitor.socket, "/hash", {"path": str(tmp_path)})
        monitor.command("hash", str(tree / "none"), expect=2)
    monitor.agrees()
    monitor.command("hash", "--wait", str(tree))  # a file that was hashed at once is looked at a second time


def test_directory_with_a_change_that_nobody_announced_is_looked_at_when_asked(tree, monitor, tmp_path):
    os.link(tree / "first", tmp_path / "outside")
    (tmp_path / "outside").write_bytes(b"changed from outside")
    with pytest.raises(EnclavekitError):
        control_client.ask(monitor.socket, "/hash", {"path": str(tree)})
    monitor.agrees()


def test_metrics_over_tcp_show_no_hashes(tree, start_monitor):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    (tree / "f").write_bytes(b"1")
    monitor = start_monitor("--metrics-listen", f"tcp://127.0.0.1:{port}")
    monitor.agrees()

    def get(route):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", route)
        answer = connection.getresponse()
        return answer.status, answer.read()

    assert get("/metrics")[1].startswith(b"# HELP fs_monitor_ready ")
    assert json.loads(get("/health")[1])["status"] == "ok"
    assert get("/status")[0] == get(f"/hash?path={tree}")[0] == 404


def test_second_service_on_one_socket_is_refused(tree, monitor, start_monitor):
    other = start_monitor("--socket", monitor.socket)
    assert other.process.wait(30) == 3
    assert monitor.status()["files"]["closed"] == 1


def test_commands_without_a_service(tmp_path, tree, monitor):
    monitor.stop()
    assert b"cannot connect to unix://" in monitor.command("status", expect=3)


def test_readiness_waits_for_the_bus_and_is_told_to_the_supervisor(tree, nats, start_monitor, tmp_path):
    (tree / "f").write_bytes(b"1")
    nats.stop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "notify"))
        notified.settimeout(60)
        monitor = start_monitor(NOTIFY_SOCKET=str(tmp_path / "notify"))
        monitor.until_answers()
        assert not monitor.until_status(lambda status: status["files"]["closed"])["ready"]
        assert monitor.command("status", expect=1).startswith(b"not ready")
        nats.start()
        assert notified.recv(100) == b"READY=1"
        assert monitor.command("status", "--wait", "--json")["ready"]
        monitor.agrees()
        assert monitor.stop() == 0
        assert notified.recv(100) == b"STOPPING=1"


def test_bus_that_hangs_holds_nothing_else_up(tree, monitor, nats):
    """It is connected and does not answer, in the middle of a write."""
    nats.process.send_signal(signal.SIGSTOP)
    for number in range(20):
        (tree / f"f{number}").write_bytes(b"%d" % number)
    monitor.until_status(lambda status: status["files"]["closed"] == 21)
    known = monitor.command("hash", "--wait", str(tree / "f7"), "--json")
    assert known["sha3_512"] == hashes_of(tree)[os.fsencode(tree / "f7")].hex()
    nats.process.send_signal(signal.SIGCONT)
    monitor.agrees()


def test_starts_with_no_file_and_no_flag_but_where_its_bus_is(tree, nats, start_monitor):
    """The tree is where it is started; there is no ignore file, and none is needed."""
    (tree / "f").write_bytes(b"1")
    credentials = credentials_path(SERVICE_FS_MONITOR, nats.directory)
    argv = [sys.executable, "-m", "enclavekit_fs_monitor", "--nats-url", nats.url, "--credentials", credentials]
    argv += ["--socket", f"unix://{tree.parent}/s"]
    with subprocess.Popen(argv, cwd=tree, stderr=subprocess.DEVNULL) as process:
        nats.until(lambda hashes, _: hashes == hashes_of(tree), lambda: "it has not hashed where it was started")
        process.terminate()
    assert process.returncode == 0


def test_stop_publishes_what_has_just_happened(tree, monitor):
    for number in range(50):
        (tree / f"f{number}").write_bytes(b"%d" % number)
    (tree / "first").unlink()
    assert monitor.stop() == 0
    expected = hashes_of(tree)
    assert len(expected) == 50
    monitor.nats.until(
        lambda hashes, records: hashes == expected and records.keys() == expected.keys(),
        lambda: "not all was published",
    )


async def test_what_a_read_has_taken_when_the_stop_comes_is_not_lost(tree):
    """The stop comes while the thread holds the events that it has just taken from the kernel."""
    inotify, tracker, seen = Inotify(), Tracker(), []
    watched = WatchTree(str(tree), inotify, parse_rules(b"", os.fsencode(tree), "ignore"))
    root = RootWatch(watched, inotify, tracker, lambda sightings: seen.extend(s.path for s in sightings), 0.0)
    running = asyncio.ensure_future(root.run())
    await root.first_scan.wait()
    taken, gate, read = asyncio.Event(), threading.Event(), watched.read
    loop = asyncio.get_running_loop()

    def read_slowly():
        observations = read()
        if observations:
            loop.call_soon_threadsafe(taken.set)
            gate.wait()
        return observations

    watched.read = read_slowly
    (tree / "last").write_bytes(b"1")
    await asyncio.wait_for(taken.wait(), 60)
    root.stop()
    gate.set()
    await asyncio.wait_for(running, 60)
    root.close()
    assert os.fsencode(tree / "last") in seen


def test_stop_without_a_bus_ends_all_the_same(tree, nats, monitor):
    nats.stop()
    (tree / "f").write_bytes(b"1")
    assert monitor.stop(signal.SIGINT) == 0


async def test_large_files_leave_a_worker_to_small_ones(tmp_path, monkeypatch):
    """Every large file that may be read at once is, and does not end: small ones get their hashes."""
    gate, found, all_small = threading.Event(), {}, asyncio.Event()
    read = hasher.hash_open_file

    def read_slowly(handle, **flags):
        if os.fstat(handle).st_size > LARGE_BYTES:
            gate.wait()
        return read(handle, **flags)

    monkeypatch.setattr(hasher, "hash_open_file", read_slowly)

    def take(findings):
        found.update({finding.path: finding.outcome for finding in findings})
        if sum(path.endswith(b"small") for path in found) == 50:
            all_small.set()

    workers = Hasher(lambda path: os.open(path, os.O_RDONLY), take)
    for number in range(2 * workers.workers):
        path = tmp_path / f"{number}large"
        path.touch()
        os.truncate(path, LARGE_BYTES + 1)
        workers.put(os.fsencode(path), 1)
    for number in range(50):
        path = tmp_path / f"{number}small"
        path.write_bytes(b"x")
        workers.put(os.fsencode(path), 1)
    running = asyncio.ensure_future(workers.run())
    try:
        await asyncio.wait_for(all_small.wait(), 60)
        assert not any(path.endswith(b"large") for path in found)
        gate.set()
        await asyncio.wait_for(workers.wait_idle(), 60)
        assert set(found.values()) == {Happening.HASHED}
        assert len(found) == 50 + 2 * workers.workers
    finally:
        gate.set()
        running.cancel()
        workers.close()
