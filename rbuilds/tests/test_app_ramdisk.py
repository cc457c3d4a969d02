# SPDX-License-Identifier: Apache-2.0
"""The app's ramdisk, byte for byte: its order, links, split files, and what changes under the packer's hands."""

from __future__ import annotations

import hashlib
import os
import random
import stat
from pathlib import Path

import pytest
from enclavekit_core.errors import InputError
from enclavekit_core.split_files import LIST_PATH, decode_file_list
from enclavekit_eif.cpio import iter_cpio, open_ramdisk
from enclavekit_rbuilds.app.directory import read_directory
from enclavekit_rbuilds.app.inodes import Content, Inode
from enclavekit_rbuilds.app.tree import AppTree
from enclavekit_rbuilds.image import ramdisk as ramdisk_module
from enclavekit_rbuilds.image.app_archive import MAX_PART_BYTES
from enclavekit_rbuilds.image.ramdisk import AppFile, pack_app

SMALL = 1000
BESIDE = [AppFile(b"service/app.service", b"ExecStart = 1\n"), AppFile(b"data", None, 5, 6)]


@pytest.fixture
def pack(tmp_path: Path):
    def run(tree: AppTree, files: list[AppFile] | None = None, *, compression: str = "none", **options: int) -> bytes:
        path = tmp_path / "app.ramdisk"
        packed = pack_app(tree, BESIDE if files is None else files, str(path), compression, **options)
        assert packed.size == path.stat().st_size
        return path.read_bytes()

    return run


def members(raw: bytes, tmp_path: Path) -> dict[str, tuple[int, int, int, bytes, int, int]]:
    """Return name -> mode, uid, gid, data, inode, links in the archive's order."""
    path = tmp_path / "read.ramdisk"
    path.write_bytes(raw)
    with path.open("rb") as source:
        return {
            os.fsdecode(entry.name): (entry.mode, entry.uid, entry.gid, entry.data.read(), entry.ino, entry.nlink)
            for entry in iter_cpio(source)
        }


def test_entries_are_in_byte_order_with_parents_first(app: Path, pack, tmp_path: Path) -> None:
    for name in ("bin-extra", "bin.d", "Bin"):
        (app / name).mkdir()
    names = list(members(pack(read_directory(str(app))), tmp_path))
    assert names == sorted(names, key=os.fsencode)
    assert {"rootfs", "service", "service/app.service", "data", "rootfs/bin-extra"} <= set(names)
    for name in names:
        parent = os.path.dirname(name)
        assert not parent or names.index(parent) < names.index(name)


def test_links_devices_and_owners(pack, tmp_path: Path) -> None:
    data = tmp_path / "content"
    data.write_bytes(b"0123456789")
    tree = AppTree()
    tree.place((b"z",), Inode(stat.S_IFREG | 0o4755, 1, 2, content=Content(os.fsencode(data), 3, 4)))
    first = tree.find((b"z",))
    assert first is not None
    tree.link((b"a", b"same"), first)
    tree.place((b"null",), Inode(stat.S_IFCHR | 0o666, rdev=(1, 3)))
    tree.place((b"l",), Inode(stat.S_IFLNK | 0o777, content=b"/z"))
    tree.place((b"alone",), Inode(stat.S_IFREG | 0o600, content=Content(os.fsencode(data), 0, 1)))
    found = members(pack(tree), tmp_path)
    assert found["rootfs/a/same"][:4] == (stat.S_IFREG | 0o4755, 1, 2, b"3456")
    assert found["rootfs/z"][3] == b"" and found["rootfs/z"][4:] == found["rootfs/a/same"][4:]
    assert found["rootfs/z"][5] == 2 and found["rootfs/alone"][5] == 1
    assert found["rootfs/null"][0] == stat.S_IFCHR | 0o666
    assert found["rootfs/l"][3] == b"/z"
    assert found["data"][:3] == (stat.S_IFDIR | 0o755, 5, 6)
    inodes = [value[4] for name, value in found.items() if name != "rootfs/z"]
    assert len(set(inodes)) == len(inodes)


def test_same_bytes_for_any_number_of_workers(pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's promise that the recipe relies on; several jobs are needed to see it."""
    random.seed(7)
    words = [random.randbytes(4096) for _ in range(200)]
    (tmp_path / "app").mkdir()
    for number in range(3):
        (tmp_path / f"app/{number}").write_bytes(b"".join(random.choices(words, k=3000)))
    tree = read_directory(str(tmp_path / "app"))
    packed = set()
    for workers in (1, 2, 5):
        monkeypatch.setattr(ramdisk_module, "_workers", lambda workers=workers: workers)
        packed.add(hashlib.sha256(pack(tree, compression="zstd")).hexdigest())
    assert len(packed) == 1


@pytest.fixture
def split_app(app: Path) -> Path:
    random.seed(1)
    (app / "srv/big").write_bytes(random.randbytes(3 * SMALL + 1))
    (app / "srv/big").chmod(0o4750)
    (app / "another").hardlink_to(app / "srv/big")
    (app / "exact").write_bytes(random.randbytes(SMALL))
    (app / "over").write_bytes(random.randbytes(SMALL + 1))
    return app


def test_files_above_the_limit_are_split_and_listed(split_app: Path, pack, tmp_path: Path) -> None:
    raw = pack(read_directory(str(split_app)), max_part_bytes=SMALL)
    found = members(raw, tmp_path)
    assert all(len(value[3]) <= SMALL or name == LIST_PATH[1:] for name, value in found.items())
    files = decode_file_list(found[LIST_PATH[1:]][3])
    assert [file.names for file in files.split] == [("/rootfs/another", "/rootfs/srv/big"), ("/rootfs/over",)]
    for file, path in zip(files.split, ("srv/big", "over"), strict=True):
        content = (split_app / path).read_bytes()
        assert b"".join(found[part[1:]][3] for part in file.parts) == content
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert file.mode == stat.S_IMODE((split_app / path).stat().st_mode)
        assert all(name[1:] not in found for name in file.names)
    assert len(found["rootfs/exact"][3]) == SMALL
    assert raw == pack(read_directory(str(split_app)), max_part_bytes=SMALL)


def test_a_split_image_is_what_pid1_joins(split_app: Path, pack, tmp_path: Path) -> None:
    """Both ends at once: unpack the archive, join, compare with the directory."""
    join = pytest.importorskip("enclavekit_enclave_init.boot.join", reason="enclave_init is not installed")
    from enclavekit_eif.cpio import extract_cpio

    raw = pack(read_directory(str(split_app)), max_part_bytes=SMALL, compression="zstd")
    (tmp_path / "r").write_bytes(raw)
    target = tmp_path / "enclave"
    target.mkdir()
    with (tmp_path / "r").open("rb") as source:
        extract_cpio(open_ramdisk(source), target, same_owner=os.geteuid() == 0)
    for file in join.read_file_list(str(target) + LIST_PATH).split:
        if os.geteuid() != 0:  # its owner is root, which only root can make it
            import dataclasses

            file = dataclasses.replace(file, uid=os.geteuid(), gid=os.getegid())
        join.join_file(file, str(target))
    assert not any((target / ".split").rglob("*/*"))
    for path in split_app.rglob("*"):
        if path.is_file() and not path.is_symlink():
            twin = target / "rootfs" / path.relative_to(split_app)
            assert twin.read_bytes() == path.read_bytes()
            if path.stat().st_size > SMALL:
                assert stat.S_IMODE(twin.stat().st_mode) == stat.S_IMODE(path.stat().st_mode)
                assert twin.stat().st_mtime == 0
    assert (target / "rootfs/another").samefile(target / "rootfs/srv/big")


def test_an_app_of_small_files_without_capabilities_has_no_list(app: Path, pack, tmp_path: Path) -> None:
    found = members(pack(read_directory(str(app))), tmp_path)
    assert LIST_PATH[1:] not in found and ".split" not in found


def test_capabilities_are_listed(pack, tmp_path: Path) -> None:
    tree = AppTree()
    tree.place((b"bin", b"ping"), Inode(stat.S_IFREG | 0o755, capability=b"\1\2\3"))
    [item] = decode_file_list(members(pack(tree), tmp_path)[LIST_PATH[1:]][3]).capabilities
    assert (item.name, item.value) == ("/rootfs/bin/ping", "010203")


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"shorter"),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.symlink_to("/etc/hostname")),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
    ids=["cut", "removed", "link", "fifo"],
)
def test_a_file_that_changes_between_reading_and_packing_is_refused(app: Path, pack, change) -> None:
    (app / "srv/log").write_bytes(b"x" * 100)
    tree = read_directory(str(app))
    change(app / "srv/log")
    with pytest.raises(InputError, match="srv/log"):
        pack(tree)


def test_an_archive_that_changes_while_it_is_packed_is_refused(tmp_path: Path, pack) -> None:
    """Its layers were hashed before: other bytes by now would go unseen."""
    archive = tmp_path / "image.tar"
    archive.write_bytes(b"a" * 100)
    tree = AppTree()
    for number in range(3):
        tree.place((b"%d" % number,), Inode(stat.S_IFREG | 0o644, content=Content(os.fsencode(archive), 10, 10)))

    class Changing(AppTree):
        def walk(self):  # type: ignore[no-untyped-def]
            for number, node in enumerate(super().walk()):
                yield node
                if number == 1:
                    archive.write_bytes(b"b" * 100)
                    os.utime(archive, ns=(1, 1))

    tree.__class__ = Changing
    with pytest.raises(InputError, match="changed"):
        pack(tree)


def test_a_full_disk_is_one_clear_error(app: Path) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    with pytest.raises(InputError, match="no space left"):
        pack_app(read_directory(str(app)), BESIDE, "/dev/full", "none")


@pytest.mark.long
def test_a_file_above_newcs_limit_is_split_at_it(tmp_path: Path) -> None:
    """The real limit, with a file that takes no disk: holes, and marks where parts meet."""
    (tmp_path / "app").mkdir()
    size = MAX_PART_BYTES + 5000
    with (tmp_path / "app/huge").open("wb") as out:
        for position, mark in ((0, b"first"), (MAX_PART_BYTES - 3, b"bridge"), (size - 4, b"last")):
            out.seek(position)
            out.write(mark)
    pack_app(read_directory(str(tmp_path / "app")), [], str(tmp_path / "ramdisk"), "zstd")
    found = {}
    with (tmp_path / "ramdisk").open("rb") as source:
        for entry in iter_cpio(source):
            left, tail = entry.size, b""
            while left:
                chunk = entry.data.read(min(left, 1 << 20))
                left, tail = left - len(chunk), (tail + chunk)[-4:]
            found[os.fsdecode(entry.name)] = (entry.size, tail)
    assert found[".split/0000/0000"] == (MAX_PART_BYTES, b"\0bri")
    assert found[".split/0000/0001"] == (5000, b"last")
    assert "rootfs/huge" not in found
