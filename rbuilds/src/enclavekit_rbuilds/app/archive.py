# SPDX-License-Identifier: Apache-2.0
"""Read an app from an image archive: an OCI layout in a tar file, or what `docker save` writes. No daemon, no root.

Layers are streamed: each file goes once to a scratch file, which the tree refers to. Every layer is checked against the
hash that the image configuration names, so a damaged or exchanged layer is found, whatever the archive says.

Source: OCI image specification (image-layout.md, manifest.md, config.md); moby, image/spec/v1.2 (manifest.json).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
import zlib
from typing import IO, Any, cast

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.app.image_config import ImageConfig, parse_image_config
from enclavekit_rbuilds.app.layers import Spool, apply_layer
from enclavekit_rbuilds.app.tree import AppTree
from enclavekit_rbuilds.base.progress import Progress

MAX_JSON_BYTES = 8 * 1024 * 1024  # an image index or configuration; real ones are under 100 KiB
MAX_LAYERS = 1024  # engines stop at 127
MAX_LAYER_BYTES = 64 * 1024**3  # unpacked; more than any enclave has memory, and stops decompression bombs
CHUNK_BYTES = 1 << 20
OCI_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class ImageArchive:
    """An open archive: its members by name."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self.tar = tarfile.open(path, "r:*")  # noqa: SIM115 - lives as long as this object
            self.members = {member.name.removeprefix("./"): member for member in self.tar}
        except OSError as exc:
            raise InputError("read", path, describe_cause(exc)) from exc
        except (tarfile.TarError, EOFError, ValueError, zlib.error) as exc:
            raise InputError("read", path, "it is not a sound tar archive") from exc

    def close(self) -> None:
        self.tar.close()

    def open(self, name: str) -> IO[bytes]:
        """Open a member. Raises InputError if there is none or it is not a file."""
        member = self.members.get(name)
        for _ in range(2):  # docker save links equal layers
            if member is not None and member.issym():
                joined = os.path.normpath(os.path.join(os.path.dirname(member.name), member.linkname))
                member = self.members.get(joined)
        if member is None or not member.isfile():
            raise InputError("read", self.path, f"it has no file {name!r}")
        stream = self.tar.extractfile(member)
        assert stream is not None  # it is a file
        return stream

    def json(self, name: str, digest: str = "") -> Any:
        """Return a parsed JSON member, checked against `sha256:...` if given."""
        with self.open(name) as stream:
            raw = stream.read(MAX_JSON_BYTES + 1)
        if len(raw) > MAX_JSON_BYTES:
            raise InputError("read", self.path, f"{name!r} is larger than {MAX_JSON_BYTES} bytes")
        if digest and hashlib.sha256(raw).hexdigest() != digest.removeprefix("sha256:"):
            raise InputError("read", self.path, f"{name!r} does not have the hash in its name")
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as exc:
            raise InputError("read", self.path, f"{name!r} is not JSON") from exc

    def blob(self, descriptor: Any) -> tuple[str, str]:
        """Return (member name, digest) of an OCI descriptor."""
        digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
        if not isinstance(digest, str) or not digest.startswith("sha256:") or not digest[7:].isalnum():
            raise InputError("read", self.path, "a descriptor has no sha256 digest")
        return f"blobs/sha256/{digest[7:]}", digest


def read_archive(path: str, scratch: str, arch: str, progress: Progress) -> tuple[AppTree, ImageConfig]:
    """Return the file tree and run configuration of the one image in the archive at `path`.

    Args: scratch: a directory for the files' contents; it must live as long as the tree.
    Raises: InputError.
    """
    archive = ImageArchive(path)
    try:
        config, layers = _find_image(archive, arch)
        diff_ids = _diff_ids(config, path)
        if len(diff_ids) != len(layers):
            raise InputError("read", path, f"it has {len(layers)} layers, its configuration {len(diff_ids)}")
        tree, spool, with_attributes = AppTree(), Spool(os.path.join(scratch, "files")), 0
        for number, (name, diff_id) in enumerate(zip(layers, diff_ids, strict=True), 1):
            what = f"layer {number} of {path}"
            with archive.open(name) as stream:
                layer = LayerStream(stream, what)
                with_attributes += apply_layer(tree, cast(IO[bytes], layer), number, what, spool)
                layer.check(diff_id)
    except (tarfile.TarError, EOFError, zlib.error) as exc:
        raise InputError("read", path, f"it is damaged: {exc}") from exc
    finally:
        archive.close()
    if with_attributes:
        progress.note(f"{with_attributes} files lose extended attributes (file capabilities): an initramfs holds none")
    return tree, parse_image_config(config, path)


def _find_image(archive: ImageArchive, arch: str) -> tuple[Any, list[str]]:
    """Return (image configuration, names of the layers' members)."""
    if "manifest.json" in archive.members:
        manifest = archive.json("manifest.json")
        if not isinstance(manifest, list) or len(manifest) != 1:
            raise InputError("read", archive.path, f"it holds {len(manifest)} images; save one")
        entry = manifest[0]
        layers = entry.get("Layers") if isinstance(entry, dict) else None
        if not isinstance(layers, list) or not isinstance(entry.get("Config"), str) or len(layers) > MAX_LAYERS:
            raise InputError("read", archive.path, "its manifest.json is malformed")
        return archive.json(entry["Config"]), [str(name) for name in layers]
    if "index.json" not in archive.members:
        raise InputError("read", archive.path, "it is neither an OCI layout nor a docker-save archive")
    manifest = _oci_manifest(archive, archive.json("index.json"), arch)
    layers = manifest.get("layers")
    if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
        raise InputError("read", archive.path, "its manifest has no list of layers")
    return archive.json(*archive.blob(manifest.get("config"))), [archive.blob(layer)[0] for layer in layers]


def _oci_manifest(archive: ImageArchive, index: Any, arch: str) -> dict[str, Any]:
    """Walk from an index to the one image manifest for `arch`; an index may hold one other index."""
    for _ in range(3):
        manifests = index.get("manifests") if isinstance(index, dict) else None
        if manifests is None and isinstance(index, dict):
            return index
        if not isinstance(manifests, list):
            raise InputError("read", archive.path, "its index is malformed")
        wanted = [item for item in manifests if _fits(item, arch)]
        if len(wanted) != 1:
            raise InputError("read", archive.path, f"it holds {len(wanted)} images for {arch}; save one")
        index = archive.json(*archive.blob(wanted[0]))
    raise InputError("read", archive.path, "its indexes are nested too deeply")


def _fits(item: Any, arch: str) -> bool:
    platform = item.get("platform") if isinstance(item, dict) else None
    if not isinstance(platform, dict):
        return True
    return platform.get("architecture") in (OCI_ARCHITECTURES[arch], None, "") and platform.get("os") != "unknown"


def _diff_ids(config: Any, path: str) -> list[str]:
    rootfs = config.get("rootfs") if isinstance(config, dict) else None
    ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(ids, list) or not all(isinstance(item, str) for item in ids):
        raise InputError("read", path, "its image configuration does not list its layers")
    return ids


class LayerStream:
    """A layer's uncompressed bytes, hashed and counted on their way."""

    def __init__(self, stream: IO[bytes], what: str) -> None:
        self._stream, self._what = _uncompressed(stream), what
        self._digest, self._size = hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes. Raises InputError for damaged compression and for too much."""
        try:
            chunk = self._stream.read(size)
        except (OSError, EOFError, zlib.error) as exc:
            raise InputError("unpack", self._what, describe_cause(exc)) from exc
        self._size += len(chunk)
        if self._size > MAX_LAYER_BYTES:
            raise InputError("read", self._what, f"it is larger than {MAX_LAYER_BYTES} bytes")
        self._digest.update(chunk)
        return chunk

    def check(self, diff_id: str) -> None:
        """Read what is left and compare the hash of all. Raises InputError."""
        while self.read(CHUNK_BYTES):
            pass
        if f"sha256:{self._digest.hexdigest()}" != diff_id:
            raise InputError(
                "read", self._what, "its content does not have the hash that the image configuration names"
            )


def _uncompressed(stream: IO[bytes]) -> IO[bytes]:
    magic = stream.read(4)
    stream.seek(0)
    if magic.startswith(GZIP_MAGIC):
        return cast(IO[bytes], gzip.GzipFile(fileobj=stream))
    if magic == ZSTD_MAGIC:
        import zstandard

        decoder = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True)
        return cast(IO[bytes], _ZstdLayer(decoder, zstandard.ZstdError))
    return stream


class _ZstdLayer:
    """A zstd reader whose errors are EOFError, as damaged gzip's are."""

    def __init__(self, reader: Any, error: type[Exception]) -> None:
        self._reader, self._error = reader, error

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._reader.read(size))
        except self._error as exc:
            raise EOFError(f"damaged zstd data: {exc}") from exc
