# SPDX-License-Identifier: Apache-2.0
"""Read an app from an image archive: an OCI layout (tar file or directory) or what `docker save` writes.

No daemon, no root. Everything is checked against the hash that names it: the manifest against the index, the
configuration against the manifest, each layer, stored and uncompressed, against both.

Source: OCI image specification (image-layout.md, manifest.md, config.md); moby, image/spec/v1.2 (manifest.json).
"""

from __future__ import annotations

import os
import re
from typing import Any

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.app.blobs import DAMAGE, DIGEST, ImageFiles, open_image
from enclavekit_rbuilds.app.image_config import ImageConfig, parse_image_config
from enclavekit_rbuilds.app.layers import LayerSource, Losses, apply_layer
from enclavekit_rbuilds.app.tree import MAX_LAYERS, AppTree
from enclavekit_rbuilds.base.progress import Progress

MAX_INDEX_DEPTH = 4
OCI_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
LAYER_TYPES = re.compile(
    r"application/vnd\.(oci\.image\.layer\.v1\.tar(\+gzip|\+zstd)?|docker\.image\.rootfs\.diff\.tar(\.gzip|\.zstd)?)"
)
CONFIG_TYPES = ("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
PLACEHOLDERS = (b"hostname", b"hosts", b"resolv.conf")
HASHED_NAME = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?")


def read_archive(path: str, scratch: str, arch: str, progress: Progress) -> tuple[AppTree, ImageConfig]:
    """Return the file tree and run configuration of the one image in the archive or layout directory at `path`.

    Args: scratch: a directory for the contents of compressed layers; it and `path` must live as long as the tree.
    Raises: InputError.
    """
    try:
        files = open_image(path, scratch)
        config, layers = _find_image(files, arch)
        _check_platform(config, arch, path)
        parsed = parse_image_config(config, path)
        diff_ids = _diff_ids(config, path)
        if len(diff_ids) != len(layers):
            raise InputError("read", path, f"it has {len(layers)} layers, its configuration {len(diff_ids)}")
        tree, losses = AppTree(), Losses()
        for number, ((name, digest), diff_id) in enumerate(zip(layers, diff_ids, strict=True), 1):
            source = LayerSource(files.place(name), diff_id, digest, f"layer {number} of {path}")
            apply_layer(tree, source, number, scratch, losses)
    except OSError as exc:
        raise InputError("read", path, describe_cause(exc)) from exc
    except DAMAGE as exc:
        raise InputError("read", path, f"it is damaged: {' '.join(str(exc).split())}") from exc
    _drop_placeholders(tree)
    for line in (*losses.sentences(), *parsed.notes):
        progress.note(line)
    return tree, parsed


def _drop_placeholders(tree: AppTree) -> None:
    """Remove the empty files that some engines leave where they had mounted theirs during RUN, and others do not."""
    for name in PLACEHOLDERS:
        node = tree.find((b"etc", name))
        if node is not None and node.content is not None and not node.content.size:
            tree.hide((b"etc", name), MAX_LAYERS + 1)


def _find_image(files: ImageFiles, arch: str) -> tuple[Any, list[tuple[str, str]]]:
    """Return (image configuration, (name, digest or "") of each layer's file)."""
    if "manifest.json" in files:
        return _docker_image(files)
    if "index.json" not in files:
        raise InputError("read", files.path, "it is neither an OCI layout nor a docker-save archive")
    manifest = _oci_manifest(files, files.json("index.json"), arch)
    layers = manifest.get("layers")
    if not isinstance(layers, list) or len(layers) > MAX_LAYERS:
        raise InputError("read", files.path, f"its manifest has no list of up to {MAX_LAYERS} layers")
    config = manifest.get("config")
    media_type = config.get("mediaType") if isinstance(config, dict) else None
    if media_type is not None and media_type not in CONFIG_TYPES:
        raise InputError("read", files.path, f"it holds an artifact of type {media_type!r}, not a container image")
    return files.json(*_blob(files, config)), [_layer(files, layer) for layer in layers]


def _docker_image(files: ImageFiles) -> tuple[Any, list[tuple[str, str]]]:
    manifest = files.json("manifest.json")
    if not isinstance(manifest, list) or len(manifest) != 1:
        count = len(manifest) if isinstance(manifest, list) else 0
        raise InputError("read", files.path, f"it holds {count} images; save one")
    entry = manifest[0]
    layers = entry.get("Layers") if isinstance(entry, dict) else None
    config = entry.get("Config") if isinstance(entry, dict) else None
    if not isinstance(layers, list) or not isinstance(config, str) or len(layers) > MAX_LAYERS:
        raise InputError("read", files.path, "its manifest.json is malformed")
    if not all(isinstance(name, str) for name in layers):
        raise InputError("read", files.path, "its manifest.json is malformed")
    # the new layout keeps OCI's names, in which layers and configuration have their hash
    return files.json(config, _hash_in(config)), [(os.path.normpath(name), _layer_hash_in(name)) for name in layers]


def _hash_in(name: str) -> str:
    match = HASHED_NAME.fullmatch(name)
    return f"sha256:{match[1]}" if match else ""


def _layer_hash_in(name: str) -> str:
    """`blobs/sha256/HASH` only: what the old layout calls HASH/layer.tar is named after other things."""
    return _hash_in(name) if name.startswith("blobs/") else ""


def _oci_manifest(files: ImageFiles, index: Any, arch: str) -> dict[str, Any]:
    """Walk from an index to the one image manifest for `arch`; an index may hold one other index."""
    for _ in range(MAX_INDEX_DEPTH):
        manifests = index.get("manifests") if isinstance(index, dict) else None
        if manifests is None and isinstance(index, dict):
            return index
        if not isinstance(manifests, list):
            raise InputError("read", files.path, "its index is malformed")
        wanted = {_blob(files, item): item for item in manifests if _fits(item, arch)}  # two tags may be one image
        if len(wanted) != 1:
            offered = sorted({_platform(item) for item in manifests} - {""})
            has = f" (it has {', '.join(offered)})" if offered and not wanted else "; save one" if wanted else ""
            raise InputError("read", files.path, f"it holds {len(wanted)} images for {arch}{has}")
        index = files.json(*next(iter(wanted)))
    raise InputError("read", files.path, "its indexes are nested too deeply")


def _fits(item: Any, arch: str) -> bool:
    platform = item.get("platform") if isinstance(item, dict) else None
    if not isinstance(platform, dict):
        return True
    return platform.get("architecture") in (OCI_ARCHITECTURES[arch], None, "") and platform.get("os") in (
        "linux",
        None,
        "",
    )


def _platform(item: Any) -> str:
    platform = item.get("platform") if isinstance(item, dict) else None
    if not isinstance(platform, dict) or platform.get("os") == "unknown":  # attestations of buildkit
        return ""
    return f"{platform.get('os')}/{platform.get('architecture')}"


def _blob(files: ImageFiles, descriptor: Any) -> tuple[str, str]:
    """Return (name, digest) of what an OCI descriptor describes. Raises InputError."""
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(digest, str) or not DIGEST.fullmatch(digest):
        raise InputError("read", files.path, "a descriptor has no sha256 digest")
    return f"blobs/sha256/{digest[7:]}", digest


def _layer(files: ImageFiles, descriptor: Any) -> tuple[str, str]:
    """Return (name, digest) of a layer that can be used. Raises InputError."""
    name, digest = _blob(files, descriptor)
    media_type = descriptor.get("mediaType")
    if isinstance(media_type, str) and ("nondistributable" in media_type or "foreign" in media_type):
        raise InputError("read", files.path, f"its layer {digest} is foreign: it lies elsewhere and cannot be checked")
    if media_type is not None and (not isinstance(media_type, str) or not LAYER_TYPES.fullmatch(media_type)):
        raise InputError("read", files.path, f"its layer {digest} has the unknown type {media_type!r}")
    size = descriptor.get("size")
    if isinstance(size, int) and size != files.place(name).size:
        raise InputError("read", files.path, f"its layer {digest} does not have the size that its manifest names")
    return name, digest


def _check_platform(config: Any, arch: str, path: str) -> None:
    """Refuse an image of another processor here: it would only fail in the enclave, where nobody sees it."""
    found = config.get("architecture") if isinstance(config, dict) else None
    if found and found != OCI_ARCHITECTURES[arch]:
        raise InputError("read", path, f"it is an image for {found}, not for {OCI_ARCHITECTURES[arch]} ({arch})")
    system = config.get("os") if isinstance(config, dict) else None
    if system and system != "linux":
        raise InputError("read", path, f"it is an image for {system}, not for linux")


def _diff_ids(config: Any, path: str) -> list[str]:
    rootfs = config.get("rootfs") if isinstance(config, dict) else None
    ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(ids, list) or not all(isinstance(item, str) and DIGEST.fullmatch(item) for item in ids):
        raise InputError("read", path, "its image configuration does not list its layers")
    return ids
