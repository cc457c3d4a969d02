# SPDX-License-Identifier: Apache-2.0
import gzip
import io
import os
import shutil
import stat
import subprocess

import pytest
import zstandard
from enclavekit_core.errors import InputError
from enclavekit_eif.cpio import CpioWriter, extract_cpio, iter_cpio, open_ramdisk, pack_tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def listed(data):
    return [(entry.name, entry.data.read()) for entry in iter_cpio(io.BytesIO(data))]


def zst(data):
    return zstandard.ZstdCompressor(level=3, write_checksum=True).compress(data)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(b"#!/bin/sh\n")
    (root / "usr/bin/tool").chmod(0o755)
    (root / "usr-local").write_bytes(b"x" * 5000)
    os.link(root / "usr-local", root / "usr/other-name")
    (root / "bin").symlink_to("usr/bin")
    (root / "empty").mkdir(mode=0o700)
    (root / "secret").write_bytes(b"")
    (root / "secret").chmod(0o600)
    return root


def snapshot(root):
    """What matters of a tree, names first."""
    found = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as source:
                    content = source.read()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            nlink = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
            found[os.path.relpath(path, root)] = (status.st_mode, nlink, content)
    return found


def packed(root, **options):
    out = io.BytesIO()
    pack_tree(root, out, **options)
    return out.getvalue()


def test_tree_survives_the_round_trip(tmp_path, tree):
    target = tmp_path / "target"
    target.mkdir()
    report = extract_cpio(io.BytesIO(packed(tree)), target)
    assert snapshot(target) == snapshot(tree)
    assert (report.entries, report.skipped) == (8, ())
    assert (target / "usr-local").stat().st_mtime == 0
    assert (target / "usr").stat().st_mtime == 0


def test_archive_depends_on_the_content_only(tmp_path, tree):
    first = packed(tree, owner=(0, 0))
    copy = tmp_path / "copy"
    # another order of creation, other inodes and times
    shutil.copytree(tree, copy, symlinks=True)
    (copy / "usr/other-name").unlink()
    os.link(copy / "usr-local", copy / "usr/other-name")
    os.utime(copy / "usr", (5, 5))
    assert packed(copy, owner=(0, 0)) == first


def test_archive_is_sorted_with_counted_inodes_and_one_time(tree):
    entries = list(iter_cpio(io.BytesIO(packed(tree, owner=(7, 8), mtime=99))))
    names = [entry.name for entry in entries]
    assert names == sorted(names)
    inodes = {entry.name: entry.ino for entry in entries}
    assert inodes[b"usr-local"] == inodes[b"usr/other-name"]
    assert sorted(set(inodes.values())) == list(range(1, len(entries)))
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries} == {(7, 8, 99)}
    assert {entry.name: entry.nlink for entry in entries if entry.nlink > 1 and not stat.S_ISDIR(entry.mode)} == {
        b"usr-local": 2,
        b"usr/other-name": 2,
    }


def test_writer_adds_parents_and_lets_later_entries_win():
    out = io.BytesIO()
    with CpioWriter(out) as archive:
        archive.add_file(b"/a/b/c", b"first")
        archive.add_file(b"./a/b//c", b"second", mode=0o600, uid=5, gid=6)
        archive.add_symlink(b"link", b"a")
        archive.add_node(b"dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    entries = {entry.name: (entry, entry.data.read()) for entry in iter_cpio(io.BytesIO(out.getvalue()))}
    assert list(entries) == [b"a", b"a/b", b"a/b/c", b"dev", b"dev/null", b"link"]
    entry, content = entries[b"a/b/c"]
    assert (content, entry.mode, entry.uid, entry.gid) == (b"second", stat.S_IFREG | 0o600, 5, 6)
    assert (entries[b"a"][0].mode, entries[b"link"][1]) == (stat.S_IFDIR | 0o755, b"a")
    assert entries[b"dev/null"][0].rdev == (1, 3)


@pytest.mark.parametrize("name", [b"", b".", b"/", b"..", b"a/../b", b"nul\0", b"n" * 4096, b"TRAILER!!!"])
def test_writer_refuses_names_that_no_archive_can_hold(name):
    with pytest.raises(InputError):
        CpioWriter(io.BytesIO()).add_file(name, b"")


def test_writer_refuses_a_child_of_a_file():
    archive = CpioWriter(io.BytesIO())
    archive.add_file(b"a", b"")
    archive.add_file(b"a/b", b"")
    with pytest.raises(InputError, match="not a directory"):
        archive.close()


def test_pack_reports_what_it_cannot_read(tmp_path, tree):
    with pytest.raises(InputError, match="cannot pack"):
        packed(tmp_path / "missing")
    archive = CpioWriter(io.BytesIO())
    archive.add_tree(tree)
    (tree / "usr-local").write_bytes(b"grown since then" * 1000)
    with pytest.raises(InputError, match="changed"):
        archive.close()


CPIO = ["cpio"] if shutil.which("cpio") else ["busybox", "cpio"]


@pytest.mark.skipif(shutil.which(CPIO[0]) is None, reason="needs GNU cpio or busybox")
def test_cpio_reads_what_we_write_and_the_reverse(tmp_path, tree):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    subprocess.run([*CPIO, "-idm"], cwd=theirs, input=packed(tree), check=True)
    assert snapshot(theirs) == snapshot(tree)
    names = b"".join(os.fsencode(name) + b"\0" for name in [".", *snapshot(tree)])
    command = [*CPIO, "-o0", "-H", "newc"]
    made = subprocess.run(command, cwd=tree, input=names, check=True, stdout=subprocess.PIPE).stdout
    ours = tmp_path / "ours"
    ours.mkdir()
    extract_cpio(io.BytesIO(made), ours)  # others put the data of hard links with the last name
    assert snapshot(ours) == snapshot(tree)


@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: a + b,
        lambda a, b: a + bytes(512) + b,
        lambda a, b: gzip.compress(a + bytes(3) + b),
        lambda a, b: gzip.compress(a) + gzip.compress(b),
        lambda a, b: zst(a) + bytes(7) + zst(b),
        lambda a, b: a + bytes(4) + zst(b),
        lambda a, b: zst(a) + gzip.compress(b) + bytes(5),
        lambda a, b: gzip.compress(a) + b,
        lambda a, b: b"\x50\x2a\x4d\x18\x03\0\0\0abc" + zst(a) + gzip.compress(b),
    ],
)
def test_concatenated_archives_are_read_in_order(archive, join):
    first, second = archive({b"a": b"1" * 300000}), archive({b"a": b"2", b"b": os.urandom(300000)})
    joined = join(first, second)
    entries = listed(joined)
    assert [name for name, _content in entries] == [b"a", b"a", b"b"]
    assert entries[1] == (b"a", b"2")
    assert listed(open_ramdisk(io.BytesIO(joined)).read()) == entries


def test_unread_data_is_skipped(archive):
    data = archive({b"a": b"x" * 3000000, b"b": b"y"})
    assert [(entry.name, entry.data.read(2)) for entry in iter_cpio(io.BytesIO(data))] == [(b"a", b"xx"), (b"b", b"y")]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zst], ids=["plain", "gzip", "zstd"])
def test_truncation_at_every_index_is_refused(archive, pack):
    whole = pack(archive({b"a": b"1", b"name": b"22222"}))
    assert len(listed(whole)) == 2
    for size in range(1, len(whole)):
        with pytest.raises(InputError):
            listed(whole[:size])


@pytest.mark.parametrize("pack", [gzip.compress, zst], ids=["gzip", "zstd"])
def test_every_flipped_byte_of_a_compressed_archive_is_noticed(archive, pack):
    good = archive({b"a": b"1", b"name": os.urandom(50)})
    whole = pack(good)
    for index in range(len(whole)):
        damaged = bytearray(whole)
        damaged[index] ^= 0x80
        try:
            entries = listed(bytes(damaged))
        except InputError:
            continue
        assert entries == listed(good), index  # header bytes that mean nothing, as gzip's time


@pytest.mark.parametrize(
    "content, cause",
    [
        (b"070702" + b"0" * 104, "checksums"),
        (b"070707", "not a newc"),
        (b"hello world" * 20, "not a newc"),
        (b"070701" + b"g" * 104, "hexadecimal"),
        (b"070701" + b" 1234567" * 13, "hexadecimal"),
        (b"070701" + b"00000000" * 13, "a name of 0 bytes"),
        (b"070701" + b"FFFFFFFF" * 13, "a name of 4294967295"),
        (b"BZh91AY", "bzip2"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd\xff" + b"\xff" * 30, "zstd"),
        (gzip.compress(gzip.compress(b"", mtime=0), mtime=0), "not a newc"),  # the bytes name the test
    ],
)
def test_malformed_archives_are_refused(content, cause):
    with pytest.raises(InputError, match=cause):
        listed(content)


def test_names_must_end_at_their_first_nul(archive):
    for bad in (b"a\0b", b"abc"):
        with pytest.raises(InputError, match="NUL"):
            listed(archive({b"xyz": b""}).replace(b"xyz\0", (bad + b"d\0\0")[:4] if bad != b"abc" else b"abcd", 1))


class Counting(io.RawIOBase):
    """An endless archive: one header, then zeros for ever; counts what is taken from it."""

    def __init__(self, head):
        self.head, self.taken = head, 0

    def readable(self):
        return True

    def readinto(self, buffer):
        chunk = self.head[self.taken : self.taken + len(buffer)]
        size = len(chunk) or len(buffer)
        buffer[:size] = chunk or bytes(size)
        self.taken += size
        return size


def test_a_file_larger_than_the_limit_is_refused_before_it_is_read(tmp_path, archive):
    head = archive({b"big": b"x"}).replace(b"00000001000000000000000000000000", b"FFFFFFFF" + b"0" * 24, 1)
    source = Counting(head[:116])
    with pytest.raises(InputError, match="more than 1000 bytes"):
        extract_cpio(source, tmp_path, max_bytes=1000)
    assert source.taken < 1 << 20
    assert not (tmp_path / "big").exists()


def test_bombs_stop_at_the_limits(tmp_path, archive):
    data = archive({b"zeros": bytes(20_000_000)})
    for pack in (gzip.compress, zst):
        with pytest.raises(InputError, match="more than"):
            extract_cpio(io.BytesIO(pack(data)), tmp_path, max_bytes=1_000_000)
    with pytest.raises(InputError, match="more than 3 entries"):
        extract_cpio(io.BytesIO(archive({b"%d" % i: b"" for i in range(5)})), tmp_path, max_entries=3)


HEX = st.integers(0, 0xFFFFFFFF)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [b"a", b"a/b", b"/a", b"../x", b"a/../../x", b"l", b"l/x", b"./l", b".", b"a//b/", b"TRAILER!!!"]
            )
            | st.binary(min_size=1, max_size=6).map(lambda name: name.replace(b"\0", b"/")),
            st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, 0]),
            st.sampled_from([b"", b"..", b"/", b"../outside", b"a", b"data"]),
            st.integers(1, 3),
            st.integers(1, 3),
        ),
        max_size=8,
    )
)
def test_nothing_leaves_the_target(tmp_path_factory, entries):
    parts = []
    for name, kind, content, inode, nlink in entries:
        fields = (inode, kind | 0o644, 0, 0, nlink, 0, len(content), 0, 0, 1, 3, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name + b"\0"
        parts.append(head + bytes(-len(head) & 3) + content + bytes(-len(content) & 3))
    base = tmp_path_factory.mktemp("jail")
    (base / "outside").write_text("untouched")
    target = base / "target"
    target.mkdir()
    trailer = b"070701" + b"0" * 88 + b"0000000b" + b"0" * 8 + b"TRAILER!!!\0"
    try:
        extract_cpio(io.BytesIO(b"".join(parts) + trailer + bytes(3)), target)
    except InputError:
        pass
    assert sorted(path.name for path in base.iterdir()) == ["outside", "target"]
    assert (base / "outside").read_text() == "untouched"
    assert (base / "outside").stat().st_nlink == 1


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.integers(0, 400))
def test_any_bytes_are_read_or_refused(noise, index):
    out = io.BytesIO()
    with CpioWriter(out) as writer:
        writer.add_file(b"name", b"content")
    whole = out.getvalue()
    for data in (noise, whole[:index] + noise + whole[index:], whole[:index] + noise):
        try:
            listed(data)
        except InputError:
            pass
