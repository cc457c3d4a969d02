# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
import tarfile
import tempfile
from pathlib import Path

import pytest
from enclavekit_core.errors import InputError
from enclavekit_rbuilds.app.archive import read_archive
from enclavekit_rbuilds.app.image_config import ImageConfig
from enclavekit_rbuilds.app.tree import AppTree
from enclavekit_rbuilds.base.progress import Progress
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture
def read(tmp_path: Path):
    def run(path: Path) -> tuple[AppTree, ImageConfig]:
        scratch = tempfile.mkdtemp(dir=tmp_path)
        return read_archive(str(path), scratch, "x86_64", Progress(io.StringIO()))

    return run


def content(tree: AppTree, path: bytes) -> bytes:
    node = tree.find(tuple(path.split(b"/")))
    assert node is not None and node.content is not None
    with open(node.content.path, "rb") as source:
        source.seek(node.content.offset)
        return source.read(node.content.size)


def names(tree: AppTree) -> list[bytes]:
    return [node.path for node in tree.walk()]


@pytest.mark.parametrize("form", ["docker", "oci"])
def test_both_forms_give_the_same_tree_and_configuration(images, read, form: str) -> None:
    layers = [[images.file("./etc/a", b"1", mode=0o4755, uid=7, gid=8)], [images.file("etc/b", b"22")]]
    run = {"Entrypoint": ["/a"], "Cmd": ["b"], "Env": ["X=y=z"], "User": "7:8", "WorkingDir": "/w", "StopSignal": "INT"}
    tree, config = read(getattr(images, form)(layers, run))
    assert names(tree) == [b"etc", b"etc/a", b"etc/b"]
    node = tree.find((b"etc", b"a"))
    assert node is not None
    assert (node.inode.mode, node.inode.uid, node.inode.gid) == (0o104755, 7, 8)
    assert content(tree, b"etc/b") == b"22"
    assert config == ImageConfig(("/a",), ("b",), {"X": "y=z"}, "7:8", "/w", "INT")


def test_whiteouts_hide_lower_layers(images, read) -> None:
    layers = [
        [images.file("keep", b"1"), images.file("gone", b"1"), images.file("d/x", b"1"), images.file("d/y", b"1")],
        [images.file("d/.wh..wh..opq"), images.file("d/z", b"2"), images.file(".wh.gone"), images.file(".wh.never")],
    ]
    tree, _ = read(images.docker(layers))
    assert names(tree) == [b"d", b"d/z", b"keep"]


def test_hard_link_to_a_lower_layer(images, read) -> None:
    tree, _ = read(images.docker([[images.file("a", b"x")], [images.link("b", "a", hard=True)]]))
    assert content(tree, b"b") == b"x"
    first, second = tree.find((b"a",)), tree.find((b"b",))
    assert first is not None and second is not None
    assert first.number == second.number and tree.link_counts() == {first.number: 2}


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda i: [i.file("../../etc/passwd", b"x")], "leads out"),
        (lambda i: [i.file("a/../../b", b"x")], "leads out"),
        (lambda i: [i.link("a", "../../etc/shadow", hard=True)], "leads out"),
        (lambda i: [i.link("a", "nothing", hard=True)], "not there"),
        (lambda i: [i.file("f", b"x"), i.file("f/g", b"x")], "not a directory"),
    ],
)
def test_entries_that_cannot_be_placed_are_refused(images, read, layer, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        read(images.docker([layer(images)]))


def test_an_absolute_link_stays_in_the_root(images, read, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    tree, _ = read(images.docker([[images.link("out", str(outside))], [images.folder(str(outside))]]))
    tree, _ = read(
        images.docker([[images.folder("etc"), images.link("out", "/etc")], [images.file("out/passwd", b"x")]])
    )
    assert tree.find((b"etc", b"passwd")) is not None
    assert not list(outside.iterdir())


def test_a_layer_with_other_content_than_the_configuration_names_is_refused(images, read) -> None:
    path = images.docker([[images.file("a", b"original")]])
    path.write_bytes(path.read_bytes().replace(b"original", b"exchange"))
    with pytest.raises(InputError, match="does not have the hash"):
        read(path)


def test_several_images_are_refused(images, read) -> None:
    path = images.write("two.tar", [images.file("manifest.json", json.dumps([{}, {}]).encode())])
    with pytest.raises(InputError, match="2 images"):
        read(path)


@pytest.mark.parametrize("raw", [b"", b"not a tar", b"\0" * 10240, b"\x1f\x8b\x08\x00rubbish"])
def test_what_is_no_archive_is_refused(read, tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(raw)
    with pytest.raises(InputError):
        read(tmp_path / "x.tar")


@pytest.mark.parametrize("form", ["docker", "oci"])
def test_an_archive_cut_anywhere_is_an_input_error_or_complete(images, read, form: str) -> None:
    path = getattr(images, form)([[images.file("a", b"x" * 3000)]], {"Cmd": ["/a"]})
    whole = path.read_bytes()
    for end in range(0, len(whole), 509):
        path.write_bytes(whole[:end])
        try:
            tree, _ = read(path)
        except InputError:
            continue
        assert content(tree, b"a") == b"x" * 3000


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(offset=st.integers(0, 20000), value=st.integers(0, 255), form=st.sampled_from(["docker", "oci"]))
def test_a_changed_byte_is_an_input_error_or_harmless(images, read, offset: int, value: int, form: str) -> None:
    path = getattr(images, form)([[images.file("a", b"x" * 300), images.link("b", "a")]], {"Cmd": ["/a"]})
    raw = bytearray(path.read_bytes())
    raw[offset % len(raw)] = value
    path.write_bytes(raw)
    try:
        tree, _ = read(path)
    except InputError:
        return
    assert content(tree, b"a") == b"x" * 300


def test_a_layer_may_be_zstd(images, read) -> None:
    import zstandard

    layer = images.tar([images.file("a", b"x")])
    members = [
        images.file("manifest.json", json.dumps([{"Config": "c", "Layers": ["l"]}]).encode()),
        images.file("c", json.dumps(images.config([layer], {})).encode()),
        images.file("l", zstandard.compress(layer)),
    ]
    tree, _ = read(images.write("z.tar", members))
    assert content(tree, b"a") == b"x"


def test_nothing_is_read_past_a_declared_size(images, read) -> None:
    info = tarfile.TarInfo("a")
    info.size = 10**9
    raw = info.tobuf(tarfile.PAX_FORMAT) + b"short"
    members = [
        images.file("manifest.json", json.dumps([{"Config": "c", "Layers": ["l"]}]).encode()),
        images.file("c", json.dumps(images.config([raw], {})).encode()),
        images.file("l", raw),
    ]
    with pytest.raises(InputError):
        read(images.write("s.tar", members))
