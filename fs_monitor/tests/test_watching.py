# SPDX-License-Identifier: Apache-2.0
"""What inotify says nothing or too little of: mappings, other names, mounts, moved parents, used-up watches."""

import mmap
import os
import shutil
import signal
import subprocess
import sys

import pytest

from .conftest import hashes_of


def test_mapped_file_is_hashed_once_its_writer_is_gone(tree, monitor):
    """Writing to a mapping is no event, and outlives the descriptor."""
    with open(tree / "mapped", "w+b") as out:
        out.truncate(4096)
        mapping = mmap.mmap(out.fileno(), 4096)
    mapping[:4] = b"half"
    (tree / "later").write_bytes(b"x")
    expected = hashes_of(tree)
    del expected[os.fsencode(tree / "mapped")]
    monitor.agrees(lambda: expected)
    mapping[4:8] = b"full"
    mapping.close()
    monitor.agrees()


def test_rename_while_it_is_hashed(tree, monitor):
    with open(tree / "download.part", "wb") as out:
        out.truncate(48 << 20)
    monitor.until_status(lambda status: status["files"]["hashing"])
    os.rename(tree / "download.part", tree / "download")
    assert os.fsencode(tree / "download") in monitor.agrees()


def test_hash_of_a_file_that_has_a_writer_again_is_taken_back(tree, monitor):
    with open(tree / "first", "ab") as out:
        out.write(b"more")
        out.flush()
        monitor.agrees(dict)
    monitor.agrees()


def test_change_under_a_name_outside(tree, monitor, tmp_path):
    os.link(tree / "first", tree / "second")
    os.rename(tree / "second", tmp_path / "outside")
    os.link(tree / "first", tree / "third")
    monitor.agrees()
    (tmp_path / "outside").write_bytes(b"changed from outside")
    monitor.agrees()


def test_attributes_are_in_the_record(tree, monitor):
    os.utime(tree / "first", ns=(1, 1))
    monitor.agrees()


def test_directory_above_moves(tmp_path, start_monitor):
    tree = tmp_path / "above/between/tree"
    tree.mkdir(parents=True)
    (tree / "f").write_bytes(b"1")
    monitor = start_monitor(roots=[tree])
    monitor.agrees()
    os.rename(tmp_path / "above", tmp_path / "elsewhere")
    assert monitor.agrees(dict) == {}
    (tmp_path / "elsewhere/between/tree/f").write_bytes(b"2")
    os.rename(tmp_path / "elsewhere", tmp_path / "above")
    assert len(monitor.agrees()) == 1
    (tree / "g").write_bytes(b"3")
    monitor.agrees()


def test_root_that_is_replaced_by_another_directory(tree, monitor, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/other").write_bytes(b"2")
    os.rename(tree, tmp_path / "old")
    os.rename(tmp_path / "new", tree)
    assert set(monitor.agrees()) == {os.fsencode(tree / "other")}
    (tree / "more").write_bytes(b"3")
    monitor.agrees()


def test_several_roots(tmp_path, start_monitor):
    roots = [tmp_path / name for name in ("a", "ab", "c")]
    for root in roots:
        root.mkdir()
        (root / "f").write_bytes(os.fsencode(root))
    monitor = start_monitor(roots=roots)
    assert len(monitor.agrees()) == 3
    os.rename(roots[0] / "f", roots[1] / "g")
    shutil.rmtree(roots[2])
    assert set(monitor.agrees()) == {os.fsencode(roots[1] / name) for name in "fg"}


def test_periodic_scan_finds_what_nobody_announced(tree, start_monitor, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("rescan_interval_s: 0.2\nquiet_s: 0\n")
    (tree / "f").write_bytes(b"1")
    monitor = start_monitor("--config", str(config))
    monitor.agrees()
    os.link(tree / "f", tmp_path / "outside")  # tells nobody
    (tmp_path / "outside").write_bytes(b"changed from outside")
    monitor.agrees()


def in_user_namespace(script):
    """A command that runs `script` as root of a new user namespace, then what follows it."""
    within = ["unshare", "--user", "--map-root-user", "sh", "-c", f'{script}; exec "$@"', "sh"]
    done = subprocess.run([*within, "true"], capture_output=True, text=True)
    if done.returncode or done.stderr:
        pytest.skip(f"no user namespace with limits of its own: {done.stderr.strip()}")
    return within


def test_watch_limit_falls_back_to_scans(tree, start_monitor):
    for number in range(8):
        (tree / f"d{number}").mkdir()
    within = in_user_namespace("echo 6 > /proc/sys/user/max_inotify_watches")
    monitor = start_monitor(within=within)
    (tree / "d7/f").write_bytes(b"1")
    assert len(monitor.agrees()) == 1
    (root,) = monitor.status()["roots"]
    assert root["blind"] and root["unwatched"] > 0
    for number in range(8):
        (tree / f"d{number}/later").write_bytes(b"2")
    assert len(monitor.agrees()) == 9


def test_mounts_in_the_tree(tree, start_monitor, tmp_path):
    within = in_user_namespace("true")
    within[1:1] = ["--mount", "--propagation", "private"]
    if subprocess.run([*within, "mount", "-t", "tmpfs", "none", tree], capture_output=True).returncode:
        pytest.skip("no mounts in a user namespace")
    for name in ("below", "proc", "bound"):
        (tree / name).mkdir()
    (tree / "below/hidden").write_bytes(b"1")
    (tree / "bound/f").write_bytes(b"2")
    (tmp_path / "source").mkdir()
    (tmp_path / "source/g").write_bytes(b"3")
    monitor = start_monitor(within=within)
    assert len(monitor.agrees()) == 2

    def inside(*argv):
        enter = ["nsenter", "-t", str(monitor.process.pid), "--user", "--mount", "--preserve-credentials"]
        subprocess.run([*enter, *argv], check=True)

    def paths():
        walk = (
            'import os,sys;print([os.path.join(d,n) for d,_,f in os.walk(sys.argv[1]) for n in f if "/proc" not in d])'
        )
        enter = ["nsenter", "-t", str(monitor.process.pid), "--user", "--mount", "--preserve-credentials"]
        return subprocess.run([*enter, sys.executable, "-c", walk, tree], check=True, capture_output=True, text=True)

    def holds(*names):
        expected = {os.fsencode(tree / name) for name in names}
        monitor.nats.until(lambda hashes, _: set(hashes) == expected, lambda: f"{expected}, {paths().stdout}")

    inside("mount", "-t", "tmpfs", "none", tree / "below")
    holds("bound/f")
    inside("sh", "-c", f"echo x > {tree}/below/on-tmpfs")
    inside("mount", "--bind", tmp_path / "source", tree / "bound")
    holds("below/on-tmpfs", "bound/g")
    (tmp_path / "source/later").write_bytes(b"by its other path")
    holds("below/on-tmpfs", "bound/g", "bound/later")
    inside("umount", tree / "below")
    inside("umount", tree / "bound")
    holds("below/hidden", "bound/f")


def test_directory_that_is_bound_to_two_places(tmp_path, start_monitor):
    """One watch, two paths: a change has to show under both."""
    within = in_user_namespace("true")
    tree = tmp_path / "tree"
    for name in ("one", "two"):
        (tree / name).mkdir(parents=True)
    within[1:1] = ["--mount", "--propagation", "private"]
    within[within.index("-c") + 1] = f'mount --bind {tree}/one {tree}/two || exit 1; exec "$@"'
    if subprocess.run([*within, "true"], capture_output=True).returncode:
        pytest.skip("no mounts in a user namespace")
    monitor = start_monitor(within=within, roots=[tree])
    for content in (b"1", b"22"):
        (tree / "one/f").write_bytes(content)
        (value,) = hashes_of(tree).values()
        expected = {os.fsencode(tree / name / "f"): value for name in ("one", "two")}
        monitor.nats.until(
            lambda hashes, _, expected=expected: hashes == expected, lambda expected=expected: str(expected)
        )


def test_path_that_is_too_long_for_a_key_is_told_and_harms_nobody(tree, monitor):
    """Longer than PATH_MAX: made with relative names, and within reach of nobody who has the whole path only."""
    made = [os.open(tree, os.O_RDONLY)]
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=made[-1])
        made.append(os.open("d" * 200, os.O_RDONLY, dir_fd=made[-1]))
    with open(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=made[-1]), "wb") as out:
        out.write(b"1")
    (tree / "later").write_bytes(b"2")
    expected = {path: value for path, value in hashes_of(tree).items() if len(path) < 4096}
    assert len(expected) == 2
    monitor.agrees(lambda: expected)
    monitor.until_status(lambda status: status["roots"][0]["too_long"])
    os.rename("f", tree / "short", src_dir_fd=made[-1])
    expected[os.fsencode(tree / "short")] = hashes_of(tree)[os.fsencode(tree / "short")]
    monitor.agrees(lambda: expected)
    os.rename(tree / ("d" * 200), tree / "moved")
    monitor.agrees(lambda: expected)
    while len(made) > 1:
        os.close(made.pop())
        os.rmdir("d" * 200 if len(made) > 1 else "moved", dir_fd=made[-1])
    os.close(made.pop())
    monitor.agrees()


def test_kill_in_the_middle_of_a_scan_leaves_nothing_wrong(tree, start_monitor):
    for number in range(300):
        (tree / f"f{number}").write_bytes(b"%d" % number)
    first = start_monitor()
    first.nats.until(lambda hashes, _: hashes, lambda: "nothing was published")
    first.stop(signal.SIGKILL)
    (tree / "f0").write_bytes(b"changed")
    (tree / "f299").unlink()
    start_monitor().agrees()
