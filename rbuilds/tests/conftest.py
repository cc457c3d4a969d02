# SPDX-License-Identifier: Apache-2.0
"""What the tests of rbuilds share: image archives made by hand, a small app, a framework that is only files."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, content: bytes = b"", *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uid, info.gid, info.mtime = len(content), mode, uid, gid, 1_700_000_000
    return info, content


def folder(name: str, *, mode: int = 0o755) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, mode
    return info, b""


def link(name: str, target: str, *, hard: bool = False) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = (tarfile.LNKTYPE if hard else tarfile.SYMTYPE), target
    return info, b""


def tar_bytes(members: list[Member]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content) if content else None)
    return out.getvalue()


class Images:
    """Writes archives of images given as lists of layers."""

    file, folder, link = staticmethod(file), staticmethod(folder), staticmethod(link)
    tar = staticmethod(tar_bytes)

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def config(self, layers: list[bytes], run: dict[str, Any]) -> dict[str, Any]:
        ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
        return {"architecture": "amd64", "os": "linux", "config": run, "rootfs": {"type": "layers", "diff_ids": ids}}

    def docker(self, layers: list[list[Member]], run: dict[str, Any] | None = None, *, name: str = "image.tar") -> Path:
        raw = [tar_bytes(layer) for layer in layers]
        names = [f"{number}/layer.tar" for number in range(len(raw))]
        manifest = [{"Config": "config.json", "RepoTags": None, "Layers": names}]
        members = [
            file("manifest.json", json.dumps(manifest).encode()),
            file("config.json", json.dumps(self.config(raw, run or {})).encode()),
            *(file(member, content) for member, content in zip(names, raw, strict=True)),
        ]
        return self.write(name, members)

    def oci(self, layers: list[list[Member]], run: dict[str, Any] | None = None, *, name: str = "oci.tar") -> Path:
        raw = [tar_bytes(layer) for layer in layers]
        blobs: list[Member] = []

        def blob(content: bytes) -> dict[str, Any]:
            digest = hashlib.sha256(content).hexdigest()
            blobs.append(file(f"blobs/sha256/{digest}", content))
            return {"digest": f"sha256:{digest}", "size": len(content)}

        manifest = {
            "config": blob(json.dumps(self.config(raw, run or {})).encode()),
            "layers": [blob(gzip.compress(layer, mtime=0)) for layer in raw],
        }
        index = {"manifests": [blob(json.dumps(manifest).encode())]}
        return self.write(name, [file("index.json", json.dumps(index).encode()), *blobs])

    def write(self, name: str, members: list[Member]) -> Path:
        path = self.directory / name
        path.write_bytes(tar_bytes(members))
        return path


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A root directory with a program, a library it is linked to twice, a link and an account."""
    root = tmp_path / "app"
    for name in ("bin", "etc", "srv"):
        (root / name).mkdir(parents=True)
    (root / "bin/serve").write_text("#!/bin/sh\n")
    (root / "bin/serve").chmod(0o755)
    (root / "bin/sh").symlink_to("/bin/serve")
    (root / "srv/one").write_bytes(b"content")
    (root / "srv/two").hardlink_to(root / "srv/one")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nweb:x:33:44:web:/srv:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nweb:x:44:\nmail:x:8:\n")
    return root


@pytest.fixture
def framework(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ready framework root that needs no network: files only; nothing in it is compiled."""
    root = tmp_path / "framework"
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/python3").write_text("not really\n")
    monkeypatch.setattr("enclavekit_rbuilds.framework.bytecode.compile_modules", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return root


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "bzImage"
    path.write_bytes(b"KERNEL" * 100)
    return path


@pytest.fixture
def certificate(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that makes a client certificate NAME.crt."""

    def make(name: str) -> Path:
        import datetime

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        start = datetime.datetime(2020, 1, 1)
        made = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number(), start)
            .not_valid_after(datetime.datetime(2100, 1, 1))
            .sign(key, hashes.SHA256())
        )
        path = tmp_path / f"{name}.crt"
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        (tmp_path / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return path

    return make
