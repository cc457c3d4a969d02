# SPDX-License-Identifier: Apache-2.0
"""The forms that image archives come in, and every link in the chain of hashes that has to hold."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from enclavekit_core.errors import InputError
from enclavekit_rbuilds.app.archive import read_archive
from enclavekit_rbuilds.app.image_config import ImageConfig
from enclavekit_rbuilds.app.tree import AppTree
from enclavekit_rbuilds.base.progress import Progress

from .conftest import Member, file, folder, link, tar_bytes

OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"
LAYER = [folder("bin"), file("bin/app", b"#!/bin/sh\n", mode=0o755), link("bin/sh", "app"), file("x", b"y" * 2000)]
RUN = {"Cmd": ["/bin/app"]}


class Layout:
    """An OCI layout in a directory, built up by hand so that any part can be wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, content: bytes | dict[str, Any], media_type: str = "") -> dict[str, Any]:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        digest = hashlib.sha256(raw).hexdigest()
        (self.path / "blobs/sha256" / digest).write_bytes(raw)
        return {
            "digest": f"sha256:{digest}", "size": len(raw), **({"mediaType": media_type} if media_type else {}),
        }  # fmt: skip

    def image(
        self,
        layers: list[bytes],
        pack: Callable[[bytes], bytes] = lambda raw: raw,
        layer_type: str = f"{OCI}.layer.v1.tar",
        arch: str = "amd64",
    ) -> dict[str, Any]:
        ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
        config = {"architecture": arch, "os": "linux", "config": RUN, "rootfs": {"type": "layers", "diff_ids": ids}}
        manifest = {
            "schemaVersion": 2,
            "config": self.blob(config, f"{OCI}.config.v1+json"),
            "layers": [self.blob(pack(layer), layer_type) for layer in layers],
        }
        return self.blob(manifest, f"{OCI}.manifest.v1+json") | {"platform": {"architecture": arch, "os": "linux"}}

    def index(self, *manifests: dict[str, Any]) -> Path:
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": list(manifests)}))
        return self.path

    def tar(self) -> Path:
        path = self.path.with_suffix(".tar")
        with tarfile.open(path, "w") as archive:
            archive.add(self.path, ".")
        return path


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def notes() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def read(tmp_path: Path, notes: io.StringIO):
    def run(path: Path, arch: str = "x86_64") -> tuple[AppTree, ImageConfig]:
        return read_archive(str(path), tempfile.mkdtemp(dir=tmp_path), arch, Progress(notes))

    return run


def listing(tree: AppTree) -> dict[bytes, tuple[int, int, int, bytes, int]]:
    """Return path -> mode, uid, gid, content, link group: all that an image holds of a tree."""
    found, groups = {}, {}
    for node in tree.walk():
        inode = node.inode
        data = b"" if not isinstance(inode.content, bytes) else inode.content
        if node.content is not None:
            with open(node.content.path, "rb") as source:
                source.seek(node.content.offset)
                data = source.read(node.content.size)
        group = groups.setdefault(node.number, len(groups))
        found[node.path] = (inode.mode, inode.uid, inode.gid, data, group)
    return found


@pytest.fixture
def expected(layout: Layout, read) -> dict[bytes, Any]:
    other = Layout(layout.path.with_name("plain"))
    return listing(read(other.index(other.image([tar_bytes(LAYER)])))[0])


@pytest.mark.parametrize("as_tar", [False, True])
@pytest.mark.parametrize(
    ("pack", "media_type"),
    [
        (lambda raw: raw, f"{OCI}.layer.v1.tar"),
        (gzip.compress, f"{OCI}.layer.v1.tar+gzip"),
        (lambda raw: gzip.compress(raw[:3000]) + gzip.compress(raw[3000:]), f"{OCI}.layer.v1.tar+gzip"),
        (gzip.compress, f"{DOCKER}.image.rootfs.diff.tar.gzip"),
        (zstandard.compress, f"{OCI}.layer.v1.tar+zstd"),
        (
            lambda raw: zstandard.compress(raw[:3000]) + zstandard.compress(raw[3000:]) + b"\x50*M\x18\4\0\0\0abcd",
            f"{OCI}.layer.v1.tar+zstd",
        ),
    ],
    ids=["plain", "gzip", "two gzip members", "docker's type", "zstd", "zstd frames and a skippable one"],
)
def test_layout_forms_hold_the_same(layout: Layout, read, expected, pack, media_type: str, as_tar: bool) -> None:
    path = layout.index(layout.image([tar_bytes(LAYER)], pack, media_type))
    tree, config = read(layout.tar() if as_tar else path)
    assert listing(tree) == expected
    assert config.argv == ("/bin/app",)


@pytest.mark.parametrize(
    "pack", [gzip.compress, zstandard.compress, lzma.compress, bz2.compress], ids=["gz", "zst", "xz", "bz2"]
)
def test_an_archive_may_be_compressed_as_a_whole(layout: Layout, read, expected, tmp_path: Path, pack) -> None:
    layout.index(layout.image([tar_bytes(LAYER)]))
    path = tmp_path / "image.tar.packed"
    path.write_bytes(pack(layout.tar().read_bytes()))
    assert listing(read(path)[0]) == expected


def test_docker_save_old_layout_with_linked_layers(images, read, expected) -> None:
    raw = tar_bytes(LAYER)
    manifest = [{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["1/layer.tar", "2/layer.tar"]}]
    members = [
        file("1/layer.tar", raw),
        link("2/layer.tar", "../1/layer.tar"),
        file("c.json", json.dumps(images.config([raw, raw], RUN)).encode()),
        file("manifest.json", json.dumps(manifest).encode()),
    ]
    assert listing(read(images.write("old.tar", members))[0]) == expected


def test_docker_save_new_layout(layout: Layout, read, expected) -> None:
    raw = tar_bytes(LAYER)
    layout.index(layout.image([raw]))
    config = images_config(layout)
    layers = [f"blobs/sha256/{hashlib.sha256(raw).hexdigest()}"]
    (layout.path / "manifest.json").write_text(json.dumps([{"Config": config, "RepoTags": None, "Layers": layers}]))
    assert listing(read(layout.tar())[0]) == expected
    (layout.path / config).write_bytes((layout.path / config).read_bytes() + b" ")
    with pytest.raises(InputError, match="hash in its name"):
        read(layout.tar())


def images_config(layout: Layout) -> str:
    """Return the path of the layout's image configuration."""
    for path in (layout.path / "blobs/sha256").iterdir():
        if b'"rootfs"' in path.read_bytes():
            return f"blobs/sha256/{path.name}"
    raise AssertionError("there is none")


def test_the_image_of_the_asked_architecture_is_taken(layout: Layout, read) -> None:
    index = layout.index(
        layout.image([tar_bytes([file("bin/amd", mode=0o755)])]),
        layout.image([tar_bytes([file("bin/arm", mode=0o755)])], arch="arm64"),
        layout.blob(b"{}") | {"platform": {"architecture": "unknown", "os": "unknown"}},
    )
    assert list(listing(read(index)[0])) == [b"bin", b"bin/amd"]
    assert list(listing(read(index, "aarch64")[0])) == [b"bin", b"bin/arm"]


def test_an_index_in_an_index_and_two_tags_of_one_image(layout: Layout, read, expected) -> None:
    image = layout.image([tar_bytes(LAYER)])
    inner = layout.blob({"manifests": [image, image | {"annotations": {"tag": "b"}}]}, f"{OCI}.index.v1+json")
    assert listing(read(layout.index(inner))[0]) == expected


def test_another_architecture_is_refused(layout: Layout, images, read) -> None:
    with pytest.raises(InputError, match="linux/arm64"):
        read(layout.index(layout.image([tar_bytes(LAYER)], arch="arm64")))
    with pytest.raises(InputError, match="amd64"):
        read(images.docker([LAYER], RUN), "aarch64")


@pytest.mark.parametrize(
    ("media_type", "reason"),
    [
        (f"{OCI}.layer.nondistributable.v1.tar+gzip", "foreign"),
        (f"{DOCKER}.image.rootfs.foreign.diff.tar.gzip", "foreign"),
        (f"{OCI}.layer.v1.tar+gzip+encrypted", "unknown type"),
        ("application/octet-stream", "unknown type"),
    ],
)
def test_layers_that_cannot_be_used_are_refused(layout: Layout, read, media_type: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read(layout.index(layout.image([tar_bytes(LAYER)], gzip.compress, media_type)))


def test_what_is_no_container_image_is_refused(layout: Layout, read) -> None:
    config = layout.blob(b"{}", "application/vnd.cncf.helm.config.v1+json")
    with pytest.raises(InputError, match="artifact"):
        read(layout.index(layout.blob({"config": config, "layers": []})))


@pytest.mark.parametrize("as_tar", [False, True])
def test_every_changed_byte_of_every_blob_is_found(layout: Layout, read, as_tar: bool) -> None:
    path = layout.index(layout.image([gzip.compress(b"")[:0] + tar_bytes(LAYER)], gzip.compress))
    for blob in sorted((path / "blobs/sha256").iterdir()):
        raw = blob.read_bytes()
        for position in range(0, len(raw), 97):
            blob.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
            with pytest.raises(InputError):
                read(layout.tar() if as_tar else path)
        blob.write_bytes(raw)
        blob.unlink()
        with pytest.raises(InputError, match="it has no file"):
            read(layout.tar() if as_tar else path)
        blob.write_bytes(raw)
    read(layout.tar() if as_tar else path)


def test_bytes_after_a_compressed_layer_are_part_of_its_hash(layout: Layout, read) -> None:
    path = layout.index(layout.image([tar_bytes(LAYER)], lambda raw: gzip.compress(raw) + b"\0" * 100))
    read(path)
    blob = max((path / "blobs/sha256").iterdir(), key=lambda blob: blob.read_bytes().startswith(b"\x1f\x8b"))
    raw = blob.read_bytes()
    blob.write_bytes(raw[:-1] + b"\1")
    with pytest.raises(InputError):
        read(path)


def test_a_blob_that_is_a_link_is_not_followed(layout: Layout, read, tmp_path: Path) -> None:
    path = layout.index(layout.image([tar_bytes(LAYER)]))
    blob = max((path / "blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size)
    shutil.move(blob, tmp_path / "outside")
    blob.symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="it has no file"):
        read(path)


def test_capabilities_are_kept_and_other_attributes_named(layout: Layout, read, notes: io.StringIO) -> None:
    capability = b"\1\0\0\2\0\4\0\0" + b"\0" * 11 + b"\xff"
    members: list[Member] = []
    for number in range(5):
        member = file(f"bin/{number}", b"x")
        value = capability.decode("utf-8", "surrogateescape")
        member[0].pax_headers = {"SCHILY.xattr.security.capability": value, "SCHILY.xattr.user.note": "n"}
        member[0].pax_headers["SCHILY.xattr.security.selinux"] = "x"
        members.append(member)
    tree, _ = read(layout.index(layout.image([tar_bytes(members)])))
    assert [(node.path, value) for node, value in tree.capabilities()] == [
        (b"bin/%d" % number, capability) for number in range(5)
    ]
    lines = notes.getvalue().splitlines()
    assert len(lines) == 1 and all(word in lines[0] for word in ("user.note", "bin/0, bin/1, bin/2 and 2 more"))


@pytest.mark.skipif(shutil.which("tar") is None, reason="GNU tar is not installed")
@pytest.mark.parametrize(
    "flags",
    [
        ["--format=gnu", "--sparse"],
        ["--format=posix", "--sparse", "--sparse-version=0.0"],
        ["--format=posix", "--sparse", "--sparse-version=0.1"],
        ["--format=posix", "--sparse", "--sparse-version=1.0"],
        ["--format=ustar"],
        ["--format=v7"],
        ["--format=gnu"],
        ["--format=posix"],
    ],
    ids=" ".join,
)
def test_forms_of_tar(layout: Layout, read, tmp_path: Path, flags: list[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "holes").open("wb") as out:
        out.write(b"start")
        out.seek(3_000_000)
        out.write(b"middle")
        out.truncate(5_000_000)
    (source / "more").write_bytes(b"after")
    long = "n" * (90 if flags[0] in ("--format=v7", "--format=ustar") else 250)
    (source / "d").mkdir()
    (source / "d" / long).write_bytes(b"long")
    packed = tmp_path / "layer.tar"
    subprocess.run(["tar", *flags, "-C", source, "-cf", packed, "--sort=name", "."], check=True, capture_output=True)
    found = listing(read(layout.index(layout.image([packed.read_bytes()])))[0])
    assert found[b"holes"][3] == (source / "holes").read_bytes()
    assert found[b"more"][3] == b"after"
    assert found[b"d/" + long.encode()][3] == b"long"


@pytest.mark.parametrize(
    "header",
    [
        {"size": "-512"},
        {"size": "99999999999999999999"},
        {"uid": "4294967295"},
        {"gid": "-1"},
        {"path": "../../etc/passwd"},
        {"linkpath": "../../etc/passwd", "type": "link"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99999999999999"},
    ],
    ids=str,
)
def test_hostile_headers_are_one_clear_error(layout: Layout, read, header: dict[str, str]) -> None:
    info = tarfile.TarInfo("a")
    info.size = 3
    if header.pop("type", ""):
        info.type, info.linkname, info.size = tarfile.LNKTYPE, "b", 0
    info.pax_headers = header
    raw = info.tobuf(tarfile.PAX_FORMAT) + b"abc".ljust(512, b"\0") + b"\0" * 1024
    with pytest.raises(InputError) as caught:
        read(layout.index(layout.image([raw])))
    assert "\n" not in str(caught.value)


def test_a_header_that_wants_gigabytes_of_memory_is_refused(layout: Layout, read) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1 << 32
    with pytest.raises(InputError, match="not a sound tar"):
        read(layout.index(layout.image([info.tobuf(tarfile.USTAR_FORMAT)])))


def test_headers_without_end_are_refused(layout: Layout, read) -> None:
    info = tarfile.TarInfo("././@PaxHeader")
    info.type = tarfile.XHDTYPE
    with pytest.raises(InputError):
        read(layout.index(layout.image([info.tobuf(tarfile.USTAR_FORMAT) * 5000])))


def test_a_directory_that_is_no_layout_is_refused(read, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no index\.json"):
        read(tmp_path)


def test_what_an_enclave_does_not_do_is_said(images, read, notes: io.StringIO) -> None:
    run = {**RUN, "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/var/x": {}}, "Healthcheck": {"Test": ["CMD", "true"]}}
    _, config = read(images.docker([LAYER], run))
    assert config.volumes == ("/var/x",) and len(config.notes) == 3
    assert len(notes.getvalue().splitlines()) == 3
