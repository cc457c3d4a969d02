# SPDX-License-Identifier: Apache-2.0
"""fs-monitor as it runs: after anything that happens to the tree, the bucket holds its hashes and nothing else."""

import os
import shutil
import signal
import subprocess

import pytest

from .conftest import short_event_queues


def test_files_that_were_there_before(tree, start_monitor):
    (tree / "a/b").mkdir(parents=True)
    (tree / "a/b/one").write_bytes(b"1")
    (tree / "two").write_bytes(b"")
    found = start_monitor().agrees()
    assert len(found) == 2
    assert all(len(value) == 64 for value in found.values())


def test_write_append_truncate_and_delete(tree, monitor):
    file = tree / "f"
    file.write_bytes(b"one")
    monitor.agrees()
    with open(file, "ab") as out:
        out.write(b" more")
    monitor.agrees()
    os.truncate(file, 2)  # by path: no close follows
    monitor.agrees()
    file.unlink()
    assert os.fsencode(file) not in monitor.agrees()


def test_new_directories_lose_nothing(tree, monitor, tmp_path):
    source = tmp_path / "source"
    for number in range(60):
        (source / f"d{number % 7}" / f"e{number % 5}").mkdir(parents=True, exist_ok=True)
        (source / f"d{number % 7}" / f"e{number % 5}" / f"f{number}").write_bytes(os.urandom(number * 100))
    subprocess.run(["cp", "-r", source, tree / "copied"], check=True)
    with subprocess.Popen(["tar", "cf", "-", "-C", source, "."], stdout=subprocess.PIPE) as tar:
        (tree / "unpacked").mkdir()
        subprocess.run(["tar", "xf", "-", "-C", tree / "unpacked"], stdin=tar.stdout, check=True)
    assert len(monitor.agrees()) == 121


def test_renames(tree, monitor, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tree / "dir/sub").mkdir(parents=True)
    (tree / "dir/sub/f").write_bytes(b"f")
    (tree / "dir2").mkdir()
    (tree / "dir2/g").write_bytes(b"a sibling whose name begins like dir")
    (tree / "dir.txt").write_bytes(b"another one")
    (tree / "other").write_bytes(b"to be replaced")
    monitor.agrees()
    os.rename(tree / "first", tree / "renamed")
    os.rename(tree / "renamed", tree / "other")
    monitor.agrees()
    os.rename(tree / "dir", outside / "dir")
    assert os.fsencode(tree / "dir2/g") in monitor.agrees()
    (outside / "dir/sub/new").write_bytes(b"made outside")
    os.rename(outside / "dir", tree / "back")
    monitor.agrees()
    os.rename(tree / "back/sub", tree / "moved within")
    (tree / "moved within/late").write_bytes(b"its watch has to know the new name")
    monitor.agrees()
    os.rename(tree / "moved within/late", outside / "late")
    shutil.rmtree(tree / "back")
    monitor.agrees()


def test_names_of_every_kind(tree, monitor):
    names = [b"with space", b"new\nline", b"\xff\xfe not utf-8", "grün".encode(), "gru\u0308n".encode(), b"x" * 255]
    names += [b"a=b", b"a=20b", b"a b", b"dots..", b".hidden", b"*", b">", b"$KV", b"-", b"~", b"\\"]
    for name in names:
        with open(os.path.join(os.fsencode(tree), name), "wb") as out:
            out.write(name)
    deep = tree.joinpath(*["d" * 200] * 8)
    deep.mkdir(parents=True)
    (deep / "f").write_bytes(b"deep")
    assert len(monitor.agrees()) == len(names) + 2


def test_links_and_odd_files(tree, monitor, tmp_path):
    (tmp_path / "secret").write_bytes(b"outside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/f").write_bytes(b"outside")
    (tree / "link").symlink_to(tmp_path / "secret")
    (tree / "dir-link").symlink_to(tmp_path / "outside")
    (tree / "loop").symlink_to(".")
    os.mkfifo(tree / "fifo")
    os.link(tree / "first", tree / "hard")  # complete at once: no close follows
    assert set(monitor.agrees()) == {os.fsencode(tree / "first"), os.fsencode(tree / "hard")}
    (tree / "hard").write_bytes(b"changed under its other name")
    monitor.agrees()
    os.replace(tree / "link", tree / "first")  # a link takes the place of a file
    assert set(monitor.agrees()) == {os.fsencode(tree / "hard")}


def test_file_with_an_open_writer_is_not_published(tree, monitor):
    with open(tree / "growing", "wb") as out:
        out.write(b"half")
        out.flush()
        (tree / "later").write_bytes(b"x")
        found = monitor.nats.until(lambda hashes, _: os.fsencode(tree / "later") in hashes, lambda: "later is missing")
        assert os.fsencode(tree / "growing") not in found
        out.write(b" and the rest")
    monitor.agrees()


def test_root_that_goes_and_comes_back(tree, monitor):
    shutil.rmtree(tree)
    assert monitor.agrees() == {}
    tree.mkdir()
    (tree / "again").write_bytes(b"x")
    assert len(monitor.agrees()) == 1


def test_leftovers_of_an_earlier_run(tree, nats, start_monitor):
    (tree / "changed").write_bytes(b"new")
    nats.put(f"{tree}/changed", bytes(64))
    nats.put(f"{tree}/gone", bytes(64))
    nats.put(f"{tree}-sibling/not ours".replace(" ", "-"), bytes(64))
    start_monitor()
    expected = {os.fsencode(f"{tree}/changed"), os.fsencode(f"{tree}-sibling/not-ours")}
    found = nats.until(lambda hashes, _: set(hashes) == expected and any(hashes[os.fsencode(tree / "changed")]), dict)
    assert found[os.fsencode(f"{tree}-sibling/not-ours")] == bytes(64)


@pytest.mark.parametrize("lose_store", [False, True])
def test_outage_of_the_bus_loses_nothing(tree, monitor, nats, lose_store):
    (tree / "before").write_bytes(b"x")
    monitor.agrees()
    nats.stop(lose_store=lose_store)
    (tree / "during").write_bytes(b"y")
    (tree / "before").unlink()
    nats.start()
    monitor.agrees()
    (tree / "after").write_bytes(b"z")
    monitor.agrees()


def test_bus_that_is_late(tree, nats, start_monitor):
    nats.stop()
    (tree / "f").write_bytes(b"x")
    started = start_monitor()
    nats.start()
    started.agrees()


def test_killed_and_started_again(tree, monitor, start_monitor):
    monitor.stop(9)
    (tree / "first").unlink()
    (tree / "second").write_bytes(b"2")
    start_monitor().agrees()


def test_what_is_on_the_bus_is_not_written_again(tree, start_monitor):
    for number in range(500):
        (tree / f"f{number}").write_bytes(b"%d" % number)
    first = start_monitor()
    first.command("status", "--wait")
    assert first.status()["published"] == 500
    first.stop()
    (tree / "f7").write_bytes(b"changed")
    (tree / "f8").unlink()
    second = start_monitor()
    second.command("status", "--wait")
    assert (second.status()["published"], second.status()["files"]["closed"]) == (1, 499)
    second.agrees()


def test_stops_cleanly(monitor):
    assert monitor.stop() == 0


def test_queue_overflow_loses_nothing(tree, start_monitor):
    (tree / "first").write_bytes(b"1")
    with short_event_queues():
        monitor = start_monitor()
        monitor.agrees()
    monitor.process.send_signal(signal.SIGSTOP)
    for number in range(100):
        (tree / f"f{number}").write_bytes(b"x")
    (tree / "first").unlink()  # lost: the queue is full
    (tree / "dir").mkdir()
    (tree / "dir/last").write_bytes(b"lost")
    monitor.process.send_signal(signal.SIGCONT)
    assert os.fsencode(tree / "dir/last") in monitor.agrees()
    assert monitor.status()["roots"][0]["overflows"] > 0
    (tree / "dir/after").write_bytes(b"x")  # and the directory is under watch now
    monitor.agrees()
