# SPDX-License-Identifier: Apache-2.0
"""Where a kernel comes from: AWS's blobs, one that was made, Debian's package, a file."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import msgspec
import pytest
from enclavekit_core.errors import EnclavekitError, InputError
from enclavekit_eif.reader import read_eif
from enclavekit_rbuilds.base.cache import cached, key_of
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.cli import main
from enclavekit_rbuilds.kernel.debian import newest_version, unpack_kernel
from enclavekit_rbuilds.kernel.fragment import our_fragment
from enclavekit_rbuilds.kernel.made import ENTRY, KernelRecord
from enclavekit_rbuilds.kernel.model import Kernel
from enclavekit_rbuilds.kernel.modules import depends_of, load_order, module_name
from enclavekit_rbuilds.kernel.sources import find_kernel, fit_compression
from enclavekit_rbuilds.manifest.model import KernelChoice
from hypothesis import given
from hypothesis import strategies as st

from .conftest import file
from .debs import make_deb
from .test_kernel_config import AWS_4_14, TITLE, bzimage
from .test_lock import mirror, publish  # noqa: F401 - a fixture

AWS_CMDLINE = "reboot=k panic=30 pci=off nomodules console=ttyS0 random.trust_cpu=on"
OURS = TITLE + our_fragment("x86_64")


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def find(
    source: str, path: object = None, sha256: str | None = None, arch: str = "x86_64", version: str | None = None
) -> Kernel:
    where = None if path is None else str(path)
    choice = KernelChoice(source, where, version, sha256)
    return find_kernel(choice, arch, Progress(io.StringIO(), quiet=True))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NITRO_CLI_BLOBS", raising=False)


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    directory = tmp_path / "blobs"
    directory.mkdir()
    (directory / "bzImage").write_bytes(bzimage(b"packed", "4.14.256-209.484.amzn2.x86_64 (x@y)"))
    (directory / "bzImage.config").write_text(AWS_4_14)
    (directory / "cmdline").write_text(AWS_CMDLINE + "\n")
    (directory / "nsm.ko").write_bytes(module("nsm"))
    return directory


def module(name: str, depends: str = "") -> bytes:
    return b"\x7fELF" + bytes(60) + b"\0license=GPL\0depends=" + depends.encode() + b"\0name=" + name.encode() + b"\0"


def made(directory: Path, kernel: bytes = b"", **changes: object) -> KernelRecord:
    raw = kernel or bzimage(b"made")
    record = KernelRecord(
        version="6.12.1",
        arch="x86_64",
        sha256=sha256(raw),
        source="linux-6.12.1.tar.xz",
        source_sha256="0" * 64,
        config_sha256=sha256(OURS.encode()),
        fragment_sha256="0" * 64,
        compiler="gcc",
        linker="ld",
        user="u",
        host="h",
        nitro_capable=True,
    )
    record = msgspec.structs.replace(record, **changes)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "bzImage").write_bytes(raw)
    (directory / "bzImage.config").write_text(OURS)
    (directory / "kernel.json").write_bytes(msgspec.json.encode(record))
    return record


def test_blobs_are_taken_with_all_that_belongs_to_them(blobs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = find("blobs", blobs)
    assert kernel.name == "AWS blobs" and kernel.version == "4.14.256-209.484.amzn2.x86_64"
    assert kernel.nitro_capable is True and kernel.cmdline == AWS_CMDLINE
    assert kernel.modules == (str(blobs / "nsm.ko"),) and kernel.compressions == {"gzip", "none"}
    monkeypatch.setenv("NITRO_CLI_BLOBS", str(blobs))
    assert find("blobs") == kernel
    (blobs / "nsm.ko").unlink()
    assert find("blobs").nitro_capable is False, "Linux 4.14 has no NSM driver of its own"


def test_blobs_that_are_not_whole_are_refused(blobs: Path, tmp_path: Path) -> None:
    for arch, spoil in (("aarch64", None), ("x86_64", "cmdline"), ("x86_64", "bzImage")):
        if spoil:
            (blobs / spoil).unlink()
        with pytest.raises(InputError):
            find("blobs", blobs, arch=arch)
    with pytest.raises(InputError, match="NITRO_CLI_BLOBS"):
        find("blobs", tmp_path / "nothing")


@pytest.mark.parametrize("text", ["", "two\nlines\n", "x" * 3000, "\x01"], ids=["empty", "lines", "long", "control"])
def test_command_line_has_to_be_one_line(blobs: Path, text: str) -> None:
    (blobs / "cmdline").write_text(text)
    with pytest.raises(InputError, match="command line"):
        find("blobs", blobs)


def test_image_with_blobs_says_so_and_packs_what_they_read(
    blobs: Path, framework: Path, app: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "app.eif"
    words = ["--rootfs", app, "--entrypoint", "serve", "--framework-rootfs", framework, "--kernel-source", "blobs"]
    assert main([str(word) for word in ("build", *words, "--kernel", blobs, "--output", path, "--json")]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["kernel"] == {
        "name": "AWS blobs",
        "version": "4.14.256-209.484.amzn2.x86_64",
        "sha256": sha256((blobs / "bzImage").read_bytes()),
        "nitro-capable": True,
    }
    eif = read_eif(str(path))
    assert eif.cmdline().decode() == AWS_CMDLINE
    for ramdisk in eif.ramdisks:
        assert eif.open_section(ramdisk).read(3) == b"\x1f\x8b\x08", "Linux 4.14 reads no zstd"
    assert "gzip" in output.err


def test_compression_is_what_the_kernel_reads() -> None:
    def kernel(*compressions: str) -> Kernel:
        return Kernel("/k", "k", "1", None, compressions=frozenset(compressions) if compressions else None)

    assert fit_compression(kernel(), "zstd") == ("zstd", "")
    assert fit_compression(kernel("gzip", "zstd", "none"), "zstd") == ("zstd", "")
    assert fit_compression(kernel("gzip", "none"), "none") == ("none", "")
    compression, note = fit_compression(kernel("gzip", "none"), "zstd")
    assert compression == "gzip" and "zstd" in note
    with pytest.raises(InputError, match="--compression none"):
        fit_compression(kernel("none"), "zstd")


def test_made_kernel_is_found_in_its_directory(tmp_path: Path) -> None:
    record = made(tmp_path / "kernel")
    for path in (tmp_path / "kernel", tmp_path / "kernel/bzImage"):
        kernel = find("made", path)
        assert kernel.version == "6.12.1" and kernel.nitro_capable is True and "linux-6.12.1" in kernel.name
    assert find("made", tmp_path / "kernel", record.sha256).path == str(tmp_path / "kernel/bzImage")
    with pytest.raises(InputError, match="SHA-256"):
        find("made", tmp_path / "kernel", "0" * 64)


@pytest.mark.parametrize("name", ["bzImage", "bzImage.config", "kernel.json"])
def test_made_kernel_that_was_changed_is_refused(tmp_path: Path, name: str) -> None:
    made(tmp_path / "kernel")
    with (tmp_path / "kernel" / name).open("ab") as out:
        out.write(b"x")
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        find("made", tmp_path / "kernel")


def test_made_kernel_is_found_in_the_cache_if_it_is_the_only_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rbuilds kernel make"):
        find("made")
    first = made(tmp_path / "first")
    cached(ENTRY, key_of(["first"]), lambda work: made(Path(work)) and None)
    assert find("made").version == "6.12.1"
    cached(ENTRY, key_of(["same"]), lambda work: made(Path(work)) and None)
    assert find("made").version == "6.12.1", "two entries with the same bytes are no choice"
    other = bzimage(b"another", "6.12.2 (a@b)")
    cached(ENTRY, key_of(["second"]), lambda work: made(Path(work), other, version="6.12.2") and None)
    with pytest.raises(InputError, match="--kernel-sha256"):
        find("made")
    assert find("made", sha256=first.sha256).version == "6.12.1"
    assert find("made", sha256=sha256(other)).version == "6.12.2"
    with pytest.raises(InputError, match="none in the cache"):
        find("made", sha256="0" * 64)
    with pytest.raises(InputError, match="aarch64"):
        find("made", arch="aarch64")


def test_file_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    path.write_bytes(bzimage(b"packed"))
    assert find("file", path).nitro_capable is None
    (tmp_path / "mine.config").write_text(TITLE + "CONFIG_VIRTIO_MMIO=y\n")
    assert find("file", path).nitro_capable is False
    (tmp_path / "mine.config").write_text(OURS)
    kernel = find("file", path, sha256(path.read_bytes()))
    assert kernel.nitro_capable is True and (kernel.name, kernel.version) == ("mine", "6.12.1")
    for bad in (tmp_path / "nothing", tmp_path, None):
        with pytest.raises(EnclavekitError):
            find("file", bad)


def debian_package(tmp_path: Path, modules: dict[str, bytes], config: bytes = AWS_4_14.encode()) -> str:
    members = [file("./boot/vmlinuz-6.1.0-1-cloud-amd64", b"KERNEL"), file("./boot/config-6.1.0-1-cloud-amd64", config)]
    folder = "./lib/modules/6.1.0-1-cloud-amd64/kernel"
    members += [file(f"{folder}/drivers/{name}.ko", raw) for name, raw in modules.items()]
    path = tmp_path / "linux-image.deb"
    path.write_bytes(make_deb(members, arch="amd64"))
    return str(path)


def test_modules_of_a_package_come_in_the_order_of_their_needs(tmp_path: Path) -> None:
    package = debian_package(
        tmp_path,
        {
            "vmw_vsock_virtio_transport": module("t", "vmw_vsock_virtio_transport_common,virtio,vsock"),
            "vmw_vsock_virtio_transport_common": module("c", "vsock"),
            "other-module": module("o", "virtio_mmio"),
            "vsock": module("v"),
            "virtio_mmio": module("m", "virtio,virtio-ring"),
            "virtio-ring": module("r", "virtio"),
            "virtio": module("virtio"),
        },
    )
    work = tmp_path / "work"
    work.mkdir()
    order = unpack_kernel(package, str(work))
    assert set(order) == {path.name for path in work.iterdir()} - {"vmlinuz", "vmlinuz.config"}
    assert "other-module.ko" not in order
    names = [module_name(name) for name in order]
    assert sorted(names) == sorted(
        [
            *("virtio", "virtio_mmio", "virtio_ring", "vsock"),
            *("vmw_vsock_virtio_transport", "vmw_vsock_virtio_transport_common"),
        ]
    )
    for name, raw in zip(names, order, strict=True):
        for needed in depends_of((work / raw).read_bytes()):
            assert names.index(needed) < names.index(name)


@pytest.mark.parametrize("spoilt", [b"not a module", b"\x7fELF without a line"])
def test_package_with_a_spoilt_module_is_refused(tmp_path: Path, spoilt: bytes) -> None:
    (tmp_path / "work").mkdir()
    with pytest.raises(InputError):
        unpack_kernel(debian_package(tmp_path, {"virtio": spoilt}), str(tmp_path / "work"))


def test_package_without_a_kernel_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.deb"
    path.write_bytes(make_deb([file("./usr/share/doc/x", b"x")]))
    (tmp_path / "work").mkdir()
    with pytest.raises(InputError, match="/boot/"):
        unpack_kernel(str(path), str(tmp_path / "work"))


@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdefg"), max_size=3), max_size=6))
def test_order_has_needs_first_or_says_that_there_is_none(graph: dict[str, list[str]]) -> None:
    try:
        order = load_order(sorted(graph), graph.get)
    except ValueError:
        return
    assert sorted(order) == sorted(graph)
    assert all(order.index(other) < order.index(name) for name in graph for other in graph[name] if other in graph)


def test_modules_that_need_each_other_are_named() -> None:
    with pytest.raises(ValueError, match="a, b"):
        load_order(["a"], {"a": ["b"], "b": ["a"]}.get)
    assert load_order(["builtin", "a"], {"a": ["builtin"]}.get) == ["a"]
    assert depends_of(module("x", "a-b,c")) == ("a_b", "c")


def test_debians_kernel_is_fetched_by_its_version(mirror: Path) -> None:  # noqa: F811 - a fixture
    names = {"linux-image-cloud-amd64": "linux-image-6.1.0-9-cloud-amd64"}
    files = ("./boot/vmlinuz-6.1.0-9-cloud-amd64", "./boot/config-6.1.0-9-cloud-amd64")

    def offer(*versions: str) -> None:
        publish(mirror, {name: list(versions) for name in (*names, *names.values())}, depends=names, files=files)

    offer("6.1.1-1", "6.1.2-1")
    assert newest_version("x86_64") == "6.1.2-1"
    older = find("debian", version="6.1.1-1")
    assert (older.name, older.version) == ("Debian 6.1.0-9-cloud-amd64", "6.1.1-1")
    assert Path(older.path).read_bytes() == b"CONFIG_X=6.1.1-1\n"
    assert find("debian").version == "6.1.2-1"
    offer("6.1.2-1")
    assert find("debian", version="6.1.1-1") == older, "it is in the cache"
    with pytest.raises(InputError, match="SNAPSHOT"):
        find("debian", version="6.1.0-1")
    with pytest.raises(InputError, match="SHA-256"):
        find("debian", version="6.1.2-1", sha256="0" * 64)


def test_kernel_of_another_version_is_refused(blobs: Path) -> None:
    version = "4.14.256-209.484.amzn2.x86_64"
    assert find("blobs", blobs, version=version).version == version
    with pytest.raises(InputError, match=version):
        find("blobs", blobs, version="4.14.257")
