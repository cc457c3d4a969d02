# SPDX-License-Identifier: Apache-2.0
"""A base as one file, for hosts that can fetch nothing: `rbuilds framework export` and `import`.

tar.zst, the same bytes for the same base: `manifest.json`, then `root/...` in the manifest's order. The manifest has
each member's kind, mode, size and hash or target; the reader takes nothing that is not there, and nothing at all
unless the whole file has the hash that the user named. Links stay below the root.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import stat
import tarfile
from collections.abc import Sequence
from typing import BinaryIO, Literal, cast

import msgspec
import zstandard
from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.base.inputs import Input

FORMAT = 1
MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 16 * 1024 * 1024  # 4000 files make 0.7 MB
MAX_ROOT_BYTES = 2 * 1024**3  # far more than a framework: it has to fit into an enclave's memory
MAX_WINDOW_BYTES = 128 * 1024 * 1024
LEVEL = 12  # of zstd: written once, read often
MALFORMED = (tarfile.TarError, zstandard.ZstdError, msgspec.MsgspecError, EOFError, OSError, ValueError)
MODES = {"d": (0o755, 0o1777), "f": (0o644, 0o755), "l": (0o777,)}


class BaseRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a base is made of."""

    recipe: str
    suite: str
    arch: str
    origin: str
    """apt, container or archive."""
    inputs: tuple[Input, ...]
    parts: dict[str, int]
    """Part -> bytes."""


class Entry(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One member of an archive."""

    path: str
    kind: Literal["d", "f", "l"]
    mode: int
    size: int
    content: str
    """SHA-256 of a file, target of a link, nothing of a directory."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The first member of an archive."""

    format: int
    record: BaseRecord
    entries: tuple[Entry, ...]


def write_archive(root: str, record: BaseRecord, out: BinaryIO) -> str:
    """Write `root` and `record` to `out`; return the SHA-256 of what was written. Raises InputError."""
    entries = scan_root(root)
    check_entries(entries)
    manifest = msgspec.json.encode(Manifest(FORMAT, msgspec.structs.replace(record, origin="archive"), tuple(entries)))
    hashing = _Hashing(out)
    # no threads: the library's workers would make other bytes than one
    packer = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    with (
        packer.stream_writer(cast(BinaryIO, hashing), closefd=False) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        tar.addfile(_header(MANIFEST, Entry(MANIFEST, "f", 0o644, len(manifest), "")), io.BytesIO(manifest))
        for entry in entries:
            header = _header(f"root/{entry.path}", entry)
            if entry.kind == "f":
                with open(os.path.join(root, entry.path), "rb") as source:
                    tar.addfile(header, source)
            else:
                tar.addfile(header)
    return hashing.digest.hexdigest()


def read_manifest(path: str) -> Manifest:
    """Return an archive's manifest, checked; nobody has authenticated it unless its hash was. Raises InputError."""
    try:
        with _open(path) as tar:
            return _manifest(tar)
    except MALFORMED as exc:
        raise InputError("read framework", path, describe_cause(exc)) from exc


def check_hash(path: str, sha256: str) -> None:
    """Compare a file with the hash that the user named. Raises InputError."""
    try:
        with open(path, "rb") as source:
            found = hashlib.file_digest(source, "sha256").hexdigest()
    except OSError as exc:
        raise InputError("read framework", path, describe_cause(exc)) from exc
    if found != sha256:
        raise InputError("use framework", path, f"its SHA-256 is {found}, {sha256} was named")


def unpack_archive(path: str, sha256: str, root: str) -> BaseRecord:
    """Check an archive's hash and write its files below `root`, which must not exist. Raises InputError."""
    try:
        check_hash(path, sha256)
        with _open(path) as tar:
            manifest = _manifest(tar)
            os.mkdir(root)
            for entry in manifest.entries:
                _write_entry(tar, entry, root)
            if tar.next() is not None:
                raise ValueError("it has members that its manifest has not")
    except MALFORMED as exc:
        raise InputError("read framework", path, describe_cause(exc)) from exc
    return manifest.record


def scan_root(root: str) -> list[Entry]:
    """Return what lies below `root`, sorted, with the few modes that a framework has."""
    found = []
    for where, names, files in os.walk(root):
        for name in [*names, *files]:
            path = os.path.join(where, name)
            inside, info = os.path.relpath(path, root), os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                found.append(Entry(inside, "l", 0o777, 0, os.readlink(path)))
            elif stat.S_ISDIR(info.st_mode):
                found.append(Entry(inside, "d", 0o1777 if info.st_mode & stat.S_ISVTX else 0o755, 0, ""))
            else:
                with open(path, "rb") as source:
                    digest = hashlib.file_digest(source, "sha256").hexdigest()
                found.append(Entry(inside, "f", 0o755 if info.st_mode & stat.S_IXUSR else 0o644, info.st_size, digest))
    return sorted(found, key=lambda entry: entry.path.split("/"))


def check_entries(entries: Sequence[Entry]) -> None:
    """Check that writing `entries` in order stays below one directory. Pure. Raises ValueError."""
    seen: dict[str, str] = {"": "d"}
    total = 0
    for entry in entries:
        words = entry.path.split("/")
        if "" in words or "." in words or ".." in words or "\0" in entry.path or len(entry.path) > 1024:
            raise ValueError(f"its member {entry.path[:80]!r} has no plain path")
        if seen.get("/".join(words[:-1])) != "d":
            raise ValueError(f"its member {entry.path[:80]!r} lies in no directory of the archive")
        if entry.path in seen:
            raise ValueError(f"its member {entry.path[:80]!r} is there twice")
        if entry.mode not in MODES[entry.kind]:
            raise ValueError(f"its member {entry.path[:80]!r} has mode {entry.mode:o}")
        if entry.size < 0 or (entry.kind != "f" and entry.size):
            raise ValueError(f"its member {entry.path[:80]!r} has {entry.size} bytes")
        if entry.kind == "l":
            _check_target(entry)
        seen[entry.path] = entry.kind
        total += entry.size
        if total > MAX_ROOT_BYTES:
            raise ValueError(f"its files have more than {MAX_ROOT_BYTES} bytes")


def _check_target(entry: Entry) -> None:
    target = posixpath.normpath(posixpath.join(posixpath.dirname(entry.path), entry.content))
    if not entry.content or "\0" in entry.content or target.startswith("/") or target.split("/")[0] == "..":
        raise ValueError(f"its link {entry.path[:80]!r} leads out of it, to {entry.content[:80]!r}")


class _Hashing:
    """Hashes what passes."""

    def __init__(self, out: BinaryIO) -> None:
        self.out, self.digest = out, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self.out.write(data)

    def flush(self) -> None:
        self.out.flush()


def _header(name: str, entry: Entry) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.type = {"d": tarfile.DIRTYPE, "f": tarfile.REGTYPE, "l": tarfile.SYMTYPE}[entry.kind]
    header.mode, header.size = entry.mode, entry.size
    header.linkname = entry.content if entry.kind == "l" else ""
    return header


class _open:
    """An archive as a tar stream."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> tarfile.TarFile:
        self._source = open(self._path, "rb")
        try:
            unpacked = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader(self._source)
            self._tar = tarfile.open(fileobj=cast(BinaryIO, unpacked), mode="r|")
        except BaseException:
            self._source.close()
            raise
        return self._tar

    def __exit__(self, *_: object) -> None:
        self._tar.close()
        self._source.close()


def _manifest(tar: tarfile.TarFile) -> Manifest:
    first = tar.next()
    if first is None or first.name != MANIFEST or not first.isreg() or first.size > MAX_MANIFEST_BYTES:
        raise ValueError(f"it does not start with a {MANIFEST}")
    content = tar.extractfile(first)
    assert content is not None
    raw = content.read()
    number = msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).get("format")
    if number is None or bytes(number) != str(FORMAT).encode():
        raise ValueError(f"its format is not {FORMAT}: it was made by another version of rbuilds")
    manifest = msgspec.json.decode(raw, type=Manifest)
    check_entries(manifest.entries)
    return manifest


def _write_entry(tar: tarfile.TarFile, entry: Entry, root: str) -> None:
    member = tar.next()
    kinds = {"d": tarfile.DIRTYPE, "f": tarfile.REGTYPE, "l": tarfile.SYMTYPE}
    if member is None or member.name != f"root/{entry.path}" or member.type != kinds[entry.kind]:
        raise ValueError(f"its member root/{entry.path[:80]} is not where the manifest has it")
    path = os.path.join(root, entry.path)
    if entry.kind == "d":
        os.mkdir(path)
        os.chmod(path, entry.mode)
    elif entry.kind == "l":
        if member.linkname != entry.content:
            raise ValueError(f"its link root/{entry.path[:80]} is not what the manifest says")
        os.symlink(entry.content, path)
    else:
        if member.size != entry.size:
            raise ValueError(f"its file root/{entry.path[:80]} is not what the manifest says")
        content = tar.extractfile(member)
        assert content is not None
        digest = hashlib.sha256()
        with open(path, "xb") as out:
            while chunk := content.read(1 << 20):
                digest.update(chunk)
                out.write(chunk)
        if digest.hexdigest() != entry.content:
            raise ValueError(f"its file root/{entry.path[:80]} is not what the manifest says")
        os.chmod(path, entry.mode)
