# SPDX-License-Identifier: Apache-2.0
"""The tree beside the kernel's own idea of a root directory, layers beside a plain model, and archives that lie.

`openat2(RESOLVE_IN_ROOT)` looks a path up as a chroot would; it needs no privileges.
"""

from __future__ import annotations

import ctypes
import gzip
import io
import os
import stat
import tarfile
import tempfile
from pathlib import Path

import pytest
from enclavekit_core.errors import InputError
from enclavekit_rbuilds.app.archive import read_archive
from enclavekit_rbuilds.app.inodes import Inode, TreeError
from enclavekit_rbuilds.app.tree import AppTree
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.image.ramdisk import pack_app
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import Images, Member, file, folder, link, tar_bytes

SYS_OPENAT2, RESOLVE_IN_ROOT = 437, 0x10  # asm/unistd.h (all architectures), linux/openat2.h
NAMES = [b"a", b"b", b"c"]
COMPONENTS = [*NAMES, b"..", b".", b""]


class OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def kernel_inode(root: int, path: bytes) -> int | None:
    """Return the inode that `path` leads to with `root` as the root directory; None if nowhere."""
    libc = ctypes.CDLL(None, use_errno=True)
    how = OpenHow(os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT)
    fd = libc.syscall(ctypes.c_long(SYS_OPENAT2), root, path, ctypes.byref(how), ctypes.sizeof(how))
    if fd < 0:
        if ctypes.get_errno() == 38:
            pytest.skip("the kernel has no openat2")
        return None
    try:
        return os.fstat(fd).st_ino
    finally:
        os.close(fd)


paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(tuple)
targets = st.tuples(st.booleans(), st.lists(st.sampled_from(COMPONENTS), min_size=1, max_size=5)).map(
    lambda pair: (b"/" if pair[0] else b"") + b"/".join(pair[1])
)
kinds = st.one_of(st.just("directory"), st.just("file"), targets.filter(bool))


@settings(max_examples=150, deadline=None)
@given(
    entries=st.lists(st.tuples(paths, kinds), max_size=12),
    questions=st.lists(st.lists(st.sampled_from(COMPONENTS), min_size=1, max_size=6), max_size=12),
)
def test_lookups_are_the_kernels(
    entries: list[tuple[tuple[bytes, ...], str | bytes]], questions: list[list[bytes]]
) -> None:
    tree = AppTree()
    inodes: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as directory:
        top = os.fsencode(directory)
        root = os.open(top, os.O_PATH | os.O_DIRECTORY)
        try:
            for path, kind in entries:
                if tree.find(path) is not None:
                    continue
                mode = {"directory": stat.S_IFDIR | 0o755, "file": stat.S_IFREG | 0o644}.get(str(kind), 0)
                inode = Inode(mode) if mode else Inode(stat.S_IFLNK | 0o777, content=bytes(kind))  # type: ignore[arg-type]
                try:
                    tree.place(path, inode)
                except TreeError:
                    continue
            for node in tree.walk():  # the same on disk: real paths, so nothing leads out
                real = top + b"/" + node.path
                if node.is_directory:
                    os.mkdir(real)
                elif node.is_symlink:
                    os.symlink(node.inode.content, real)
                else:
                    os.close(os.open(real, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))
                inodes[node.number] = os.lstat(real).st_ino
            inodes[0] = os.stat(top).st_ino
            for question in questions:
                node = tree.resolve(tuple(question))
                # a path that ends in `/` or `/.` wants a directory, of the kernel as of us
                expected = kernel_inode(root, b"/".join(question) or b".")
                assert (None if node is None else inodes[node.number]) == expected, (question, list(tree.walk()))
        finally:
            os.close(root)


# one layer as (name, kind) entries; the model keeps a plain set of paths and knows no links
layer_entries = st.lists(
    st.tuples(paths, st.sampled_from(["file", "directory", "whiteout", "opaque"])), max_size=6, unique_by=lambda e: e[0]
)


def apply_to_model(model: dict[tuple[bytes, ...], str], layer: list[tuple[tuple[bytes, ...], str]]) -> None:
    """The specification's order: what a layer hides, it hides of the layers below; then its own entries."""
    for path, kind in layer:
        hidden = [
            known for known in model if known[: len(path)] == path and not (kind == "opaque" and known == path)
        ]  # fmt: skip
        if kind in ("whiteout", "opaque"):
            for known in hidden:
                del model[known]
    for path, kind in layer:
        if kind in ("whiteout", "opaque"):
            continue
        for depth in range(1, len(path)):
            model.setdefault(path[:depth], "directory")
        if kind == "file" or model.get(path) == "file":
            for known in [known for known in model if known[: len(path)] == path]:
                del model[known]
        model[path] = kind


def is_plain(layer: list[tuple[tuple[bytes, ...], str]]) -> bool:
    """Real layers list a path once, no file as a parent, and do not hide what they bring themselves."""
    own = {path: kind for path, kind in layer if kind in ("file", "directory")}
    hides = [path for path, kind in layer if kind == "whiteout"]
    for path, kind in layer:
        if any(own.get(path[:depth]) == "file" for depth in range(1, len(path))):
            return False
        if kind == "opaque" and own.get(path) == "file":
            return False
    return not any(mine[: len(path)] == path for path in hides for mine in own) and not any(
        path[: len(hidden)] == hidden for hidden in hides for path, kind in layer if kind == "opaque"
    )


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=st.lists(layer_entries.filter(is_plain), min_size=1, max_size=4))
def test_layers_give_what_the_specification_says(
    tmp_path_factory: pytest.TempPathFactory, layers: list[list[tuple[tuple[bytes, ...], str]]]
) -> None:
    model: dict[tuple[bytes, ...], str] = {}
    packed = []
    for layer in layers:
        before = dict(model)
        members: list[Member] = []
        for path, kind in layer:
            name = b"/".join(path).decode()
            if any(before.get(path[:depth]) == "file" for depth in range(1, len(path))):
                return  # a parent that is a file below: engines never write that
            if kind == "opaque" and before.get(path) == "file":
                return
            if kind == "file":
                members.append(file(name, b"x"))
            elif kind == "directory":
                members.append(folder(name))
            elif kind == "whiteout":
                members.append(file(f"{os.path.dirname(name)}/.wh.{os.path.basename(name)}"))
            else:
                members.append(file(f"{name}/.wh..wh..opq"))
        apply_to_model(model, layer)
        packed.append(members)
    where = tmp_path_factory.mktemp("layers")
    tree, _ = read_archive(str(Images(where).docker(packed)), str(where), "x86_64", Progress(io.StringIO()))
    found = {tuple(node.path.split(b"/")): "directory" if node.is_directory else "file" for node in tree.walk()}
    assert found == model


LAYER = tar_bytes(
    [
        folder("d"),
        file("d/one", b"x" * 700),
        link("d/two", "d/one", hard=True),
        link("l", "/d"),
        file("l/three", b"y" * 40),
        file("d/.wh.gone"),
    ]
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, len(LAYER) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.integers(0, len(LAYER)),
    packs=st.booleans(),
)
def test_a_damaged_layer_with_the_right_hash_is_an_error_or_a_tree_inside_itself(
    images: Images, tmp_path: Path, changes: list[tuple[int, int]], cut: int, packs: bool
) -> None:
    """Who makes an image can put anything into it and name the right hash: then only the readers' care is left."""
    raw = bytearray(LAYER[:cut] if cut < len(LAYER) // 8 else LAYER)
    for position, value in changes:
        if position < len(raw):
            raw[position] = value
    layer = bytes(raw)
    stored = gzip.compress(layer, 1) if packs else layer
    import json

    manifest = json.dumps([{"Config": "c", "Layers": ["l"]}]).encode()
    config = json.dumps(images.config([layer], {})).encode()
    path = images.write("f.tar", [file("manifest.json", manifest), file("c", config), file("l", stored)])
    scratch = tempfile.mkdtemp(dir=tmp_path)
    try:
        tree, _ = read_archive(str(path), scratch, "x86_64", Progress(io.StringIO()))
    except InputError as exc:
        assert "\n" not in str(exc)
        return
    for node in tree.walk():
        assert b".." not in node.path.split(b"/") and not node.path.startswith(b"/")
        assert tree.find(tuple(node.path.split(b"/"))) == node
        content = node.content
        if content is not None and content.size:
            assert os.fsdecode(content.path).startswith((str(path), scratch))
    try:
        pack_app(tree, [], os.path.join(scratch, "ramdisk"), "none")
    except InputError as exc:
        assert "\n" not in str(exc)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    raw=st.binary(max_size=3000),
    head=st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"BZh9", LAYER[:512]]),
)
def test_any_bytes_are_an_input_error(tmp_path: Path, raw: bytes, head: bytes) -> None:
    path = tmp_path / "any.tar"
    path.write_bytes(head + raw)
    with pytest.raises(InputError) as caught:
        read_archive(str(path), str(tmp_path), "x86_64", Progress(io.StringIO()))
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("sha256:" + "0" * 64),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["manifests", "layers", "config", "digest", "size", "mediaType", "platform", "Layers", "Config"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["index.json", "manifest.json"]), document=json_values)
def test_any_index_is_an_input_error(images: Images, tmp_path: Path, name: str, document: object) -> None:
    import json

    path = images.write("j.tar", [file(name, json.dumps(document).encode())])
    with pytest.raises(InputError) as caught:
        read_archive(str(path), str(tmp_path), "x86_64", Progress(io.StringIO()))
    assert "\n" not in str(caught.value)


def test_tarfile_of_this_python_does_not_loop_on_negative_sizes(images: Images, tmp_path: Path) -> None:
    """Known of the library (CVE-2025-8194): an entry that says it ends before it starts is read for ever."""
    info = tarfile.TarInfo("a")
    info.pax_headers = {"size": "-1024"}
    raw = info.tobuf(tarfile.PAX_FORMAT) + b"\0" * 1024
    (tmp_path / "n.tar").write_bytes(raw)
    with pytest.raises(InputError):
        read_archive(str(tmp_path / "n.tar"), str(tmp_path), "x86_64", Progress(io.StringIO()))
