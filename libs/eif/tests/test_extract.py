# SPDX-License-Identifier: Apache-2.0
import io
import os
import stat

import pytest
from enclavekit_core.errors import InputError
from enclavekit_eif.cpio import CpioWriter, extract_cpio


def make(*entries):
    """Bytes of archives with one entry each: (name, kind, content or mode), in this order, names as they are."""
    out = b""
    for name, kind, content in entries:
        fields = (1, kind | 0o644, 0, 0, 1, 0, len(content), 0, 0, 1, 3, len(name) + 1, 0)
        head = b"070701" + b"".join(b"%08x" % field for field in fields) + name + b"\0"
        out += head + bytes(-len(head) & 3) + content + bytes(-len(content) & 3)
    return out + b"070701" + b"0" * 88 + b"0000000b" + b"0" * 8 + b"TRAILER!!!\0\0\0\0"


@pytest.fixture
def jail(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "target").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "entries",
    [
        [(b"../outside/x", stat.S_IFREG, b"")],
        [(b"a/../../outside/x", stat.S_IFREG, b"")],
        [(b"l", stat.S_IFLNK, b"../outside"), (b"l/x", stat.S_IFREG, b"")],
        [(b"l", stat.S_IFLNK, b"../outside"), (b"l/d/x", stat.S_IFDIR, b"")],
        [(b"f", stat.S_IFREG, b""), (b"f/x", stat.S_IFREG, b"")],
        [(b"l", stat.S_IFLNK, b"")],
        [(b"l", stat.S_IFLNK, b"a\0b")],
        [(b"l", stat.S_IFLNK, b"a" * 5000)],
        [(b"odd", 0, b"")],
        [(b"/", stat.S_IFREG, b"")],
        [(b"d/x", stat.S_IFREG, b""), (b"d", stat.S_IFREG, b"")],
        [(b"n" * 300, stat.S_IFREG, b"")],
    ],
)
def test_hostile_entries_are_refused(jail, entries):
    with pytest.raises(InputError, match="cannot extract"):
        extract_cpio(io.BytesIO(make(*entries)), jail / "target")
    assert list((jail / "outside").iterdir()) == []


def test_absolute_names_stay_inside(jail):
    extract_cpio(io.BytesIO(make((b"/etc/x", stat.S_IFREG, b"1"), (b"./y/./z", stat.S_IFREG, b"2"))), jail / "target")
    assert (jail / "target/etc/x").read_bytes() == b"1"
    assert (jail / "target/y/z").read_bytes() == b"2"


def test_links_are_replaced_and_not_followed(jail):
    (jail / "outside/x").write_text("untouched")
    entries = [
        (b"file", stat.S_IFLNK, b"../outside/x"),
        (b"file", stat.S_IFREG, b"new"),
        (b"dir", stat.S_IFLNK, b"../outside"),
        (b"dir", stat.S_IFDIR, b""),
        (b"dir/x", stat.S_IFREG, b"inside"),
    ]
    extract_cpio(io.BytesIO(make(*entries)), jail / "target")
    assert (jail / "outside/x").read_text() == "untouched"
    assert (jail / "target/file").read_bytes() == b"new"
    assert (jail / "target/dir/x").read_bytes() == b"inside"


def test_a_replaced_directory_is_no_longer_trusted(jail):
    entries = [
        (b"d", stat.S_IFDIR, b""),
        (b"d", stat.S_IFLNK, b"../outside"),
        (b"d/x", stat.S_IFREG, b""),
    ]
    with pytest.raises(InputError, match="parent"):
        extract_cpio(io.BytesIO(make(*entries)), jail / "target")
    assert list((jail / "outside").iterdir()) == []


def test_links_that_were_in_the_target_are_not_followed(jail):
    (jail / "target/l").symlink_to("../outside")
    with pytest.raises(InputError, match="parent"):
        extract_cpio(io.BytesIO(make((b"l/x", stat.S_IFREG, b""))), jail / "target")


def test_inode_numbers_of_another_archive_link_nothing(jail):
    def one(name, content):
        return make((name, stat.S_IFREG, content)).replace(b"00000001" * 1 + b"0" * 8, b"00000002" + b"0" * 8, 1)

    extract_cpio(io.BytesIO(one(b"a", b"1") + one(b"b", b"2")), jail / "target")
    assert (jail / "target/a").read_bytes() == b"1"
    assert (jail / "target/a").stat().st_nlink == 1


def test_special_files_are_reported_and_fifos_made(jail):
    entries = [
        (b"null", stat.S_IFCHR, b""),
        (b"disk", stat.S_IFBLK, b""),
        (b"socket", stat.S_IFSOCK, b""),
        (b"fifo", stat.S_IFIFO, b""),
    ]
    report = extract_cpio(io.BytesIO(make(*entries)), jail / "target")
    assert [skipped.name for skipped in report.skipped] == ["null", "disk", "socket"]
    assert os.listdir(jail / "target") == ["fifo"]


def test_setuid_bits_need_same_owner(jail):
    out = io.BytesIO()
    with CpioWriter(out) as archive:
        archive.add_file(b"su", b"", mode=0o4755, uid=os.geteuid(), gid=os.getegid())
        archive.add_directory(b"shared", mode=0o2775, uid=os.geteuid(), gid=os.getegid())
    for same_owner, mode in ((False, 0o755), (True, 0o4755)):
        extract_cpio(io.BytesIO(out.getvalue()), jail / "target", same_owner=same_owner)
        assert stat.S_IMODE((jail / "target/su").stat().st_mode) == mode


def test_modes_do_not_depend_on_the_umask_and_closed_directories_are_filled(jail):
    out = io.BytesIO()
    with CpioWriter(out) as archive:
        archive.add_directory(b"closed", mode=0o555)
        archive.add_file(b"closed/file", b"x", mode=0o666)
    before = os.umask(0o077)
    try:
        extract_cpio(io.BytesIO(out.getvalue()), jail / "target")
    finally:
        os.umask(before)
    assert stat.S_IMODE((jail / "target/closed").stat().st_mode) == 0o555
    assert stat.S_IMODE((jail / "target/closed/file").stat().st_mode) == 0o666


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away and make device nodes")
def test_root_keeps_owners_and_makes_devices(jail):
    out = io.BytesIO()
    with CpioWriter(out) as archive:
        archive.add_directory(b"d", uid=11, gid=12)
        archive.add_file(b"d/f", b"x", mode=0o4711, uid=13, gid=14)
        archive.add_symlink(b"d/l", b"f", uid=15, gid=16)
        archive.add_node(b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    report = extract_cpio(io.BytesIO(out.getvalue()), jail / "target", same_owner=True, make_devices=True)
    owners = {}
    for name in ("d", "d/f", "d/l"):
        status = os.lstat(jail / "target" / name)
        owners[name] = (status.st_uid, status.st_gid)
    assert owners == {"d": (11, 12), "d/f": (13, 14), "d/l": (15, 16)}
    assert stat.S_IMODE(os.stat(jail / "target/d/f").st_mode) == 0o4711
    if not report.skipped:  # a container may forbid device nodes even to root
        assert os.lstat(jail / "target/null").st_rdev == os.makedev(1, 3)


def test_missing_target_is_an_error(tmp_path, archive):
    with pytest.raises(InputError, match="cannot extract to"):
        extract_cpio(io.BytesIO(archive({b"a": b""})), tmp_path / "missing")
