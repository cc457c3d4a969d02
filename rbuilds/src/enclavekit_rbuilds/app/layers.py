# SPDX-License-Identifier: Apache-2.0
"""Apply container layers, tar streams, to an app's tree; contents stay where they are on disk.

A layer that is stored uncompressed is not copied: the tree refers to its place in the archive. A compressed one is
unpacked to one scratch file. Either way its bytes pass once, hashed on their way.

Source: OCI image specification, layer.md (whiteouts, opaque whiteouts, change sets); tar by the standard library.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, cast

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.app.blobs import (
    CHUNK_BYTES,
    DAMAGE,
    MAX_ARCHIVE_BYTES,
    BlobReader,
    GuardedTarInfo,
    Place,
    uncompressed,
)
from enclavekit_rbuilds.app.inodes import Content, Inode, TreeError
from enclavekit_rbuilds.app.tree import AppTree, split_path

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
MAX_ID = 0xFFFFFFFE  # uid_t, less the one that means "no change"
MAX_CAPABILITY_BYTES = 64  # struct vfs_ns_cap_data has 24
XATTR_PREFIXES = ("SCHILY.xattr.", "LIBARCHIVE.xattr.")
CAPABILITY = "security.capability"
# labels of a host's policy, which means nothing in an enclave
IGNORED_XATTRS = frozenset({"security.selinux", "security.ima", "security.evm"})
KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


@dataclass(slots=True)
class Losses:
    """What of an app an enclave cannot hold: the first names of each kind, and how many there are."""

    found: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    max_names: int = 3

    def add(self, kind: str, name: str) -> None:
        names = self.found.setdefault(kind, [])
        self.counts[kind] = self.counts.get(kind, 0) + 1
        if len(names) < self.max_names:
            names.append(name)

    def sentences(self) -> list[str]:
        """Return one line for each kind."""
        lines = []
        for kind in sorted(self.found):
            more = self.counts[kind] - len(self.found[kind])
            lines.append(f"{kind}: {', '.join(self.found[kind])}" + (f" and {more} more" if more else ""))
        return lines


@dataclass(frozen=True, slots=True)
class LayerSource:
    """One layer as an archive stores it."""

    place: Place
    diff_id: str
    """`sha256:...` of its uncompressed bytes, which the image configuration names."""
    digest: str = ""
    """`sha256:...` of its bytes as stored, if a manifest names it."""
    what: str = ""
    """Names it in errors."""


def apply_layer(tree: AppTree, source: LayerSource, layer: int, scratch: str, losses: Losses) -> None:
    """Apply one layer and check its hashes. Raises InputError for a malformed layer or an entry that cannot be placed.

    Args: scratch: a directory for unpacked contents; it has to live as long as the tree.
    """
    name = ""
    with _opened(source, os.path.join(scratch, f"layer-{layer}")) as stream:
        try:
            with tarfile.open(
                fileobj=cast(IO[bytes], stream),
                mode="r|",
                bufsize=CHUNK_BYTES,
                tarinfo=GuardedTarInfo,
                encoding="utf-8",
                errors="surrogateescape",
            ) as archive:
                last = -1
                while (member := archive.next()) is not None:
                    name = member.name
                    if member.offset <= last or member.size < 0:
                        raise tarfile.ReadError("an entry says that it has a negative size")
                    last = member.offset
                    _apply(tree, archive, member, layer, stream, losses)
                    cast(Any, archive).members.clear()  # the library keeps all that it has seen; we need none again
        except TreeError as exc:
            raise InputError("place", f"{name!r} of {source.what}", str(exc)) from exc
        except DAMAGE as exc:
            raise InputError("read", source.what, f"it is not a sound tar archive: {_one_line(exc)}") from exc
        stream.check(source)


@contextlib.contextmanager
def _opened(source: LayerSource, scratch_path: str) -> Iterator[LayerStream]:
    try:
        with BlobReader(source.place) as blob:
            stream = LayerStream(blob, source, scratch_path)
            try:
                yield stream
            finally:
                stream.close()
    except OSError as exc:
        raise InputError("unpack", source.what, describe_cause(exc)) from exc


class LayerStream:
    """A layer's uncompressed bytes, hashed and counted on their way; kept in a scratch file if they were compressed."""

    def __init__(self, blob: BlobReader, source: LayerSource, scratch_path: str) -> None:
        self._blob = blob
        self._what = source.what
        self._digest, self._size = hashlib.sha256(), 0
        self.scratch_path = scratch_path
        buffered = io.BufferedReader(blob, CHUNK_BYTES)
        self._stream = uncompressed(buffered)
        self._copy: IO[bytes] | None = None
        self.path, self.offset = source.place.path, source.place.offset
        if self._stream is not buffered:
            self.path, self.offset = scratch_path, 0
            self._copy = open(scratch_path, "wb")  # noqa: SIM115 - closed by close()

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes. Raises OSError, EOFError for damaged compression, InputError for too much."""
        chunk = self._stream.read(size)
        self._size += len(chunk)
        if self._size > MAX_ARCHIVE_BYTES:
            raise InputError("read", self._what, f"it is larger than {MAX_ARCHIVE_BYTES} bytes")
        self._digest.update(chunk)
        if self._copy is not None:
            self._copy.write(chunk)
        return chunk

    def check(self, source: LayerSource) -> None:
        """Read what is left and compare the hashes of all. Raises InputError."""
        try:
            while self.read(CHUNK_BYTES):
                pass
            while self._blob.read(CHUNK_BYTES):  # what follows the compressed data
                pass
        except DAMAGE as exc:
            raise InputError("unpack", self._what, _one_line(exc)) from exc
        if source.digest and f"sha256:{self._blob.digest.hexdigest()}" != source.digest:
            raise InputError("read", self._what, "its content does not have the hash in its name")
        if f"sha256:{self._digest.hexdigest()}" != source.diff_id:
            raise InputError(
                "read", self._what, "its content does not have the hash that the image configuration names"
            )

    def close(self) -> None:
        if self._copy is not None:
            self._copy.close()


def _apply(
    tree: AppTree, archive: tarfile.TarFile, member: tarfile.TarInfo, layer: int, stream: LayerStream, losses: Losses
) -> None:
    where = split_path(member.name.encode("utf-8", "surrogateescape"))
    if where and where[-1].startswith(WHITEOUT):
        if where[-1] == OPAQUE:
            tree.hide_children(where[:-1], layer)
        elif hidden := where[-1].removeprefix(WHITEOUT):
            tree.hide((*where[:-1], hidden), layer)
        return
    target = member.linkname.encode("utf-8", "surrogateescape")
    if member.islnk():
        node = tree.find(split_path(target))
        if node is None:
            raise TreeError("it is a hard link to a file that is not there")
        tree.link(where, node, layer)
        return
    kind = KINDS.get(member.type)
    if kind is None:
        raise TreeError(f"its type {member.type!r} is unknown")
    if not (0 <= member.uid <= MAX_ID and 0 <= member.gid <= MAX_ID):
        raise TreeError(f"its owner {member.uid}:{member.gid} is out of range")
    inode = Inode(kind | stat.S_IMODE(member.mode), member.uid, member.gid)
    if kind == stat.S_IFREG:
        inode.content = _content(archive, member, stream)
        inode.capability = _attributes(member, losses)
    elif kind == stat.S_IFLNK:
        if not target or b"\0" in target or len(target) > 4095:
            raise TreeError("its target is empty, too long or holds a NUL byte")
        inode.mode, inode.content = stat.S_IFLNK | 0o777, target
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        inode.rdev = (member.devmajor, member.devminor)
        if not all(0 <= number < 1 << 20 for number in inode.rdev):
            raise TreeError("its device number is out of range")
    tree.place(where, inode, layer)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, stream: LayerStream) -> Content:
    """Return where a file's bytes are; a sparse file's are put together in a scratch file that is sparse as well."""
    if not member.issparse():
        return Content(os.fsencode(stream.path), stream.offset + member.offset_data, member.size)
    path = f"{stream.scratch_path}-sparse"
    source = archive.extractfile(member)
    assert source is not None  # it is a regular file
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as out:
        start = position = os.fstat(out.fileno()).st_size
        if start + member.size > MAX_ARCHIVE_BYTES:
            raise TreeError(f"the layer's sparse files have more than {MAX_ARCHIVE_BYTES} bytes")
        out.truncate(start + member.size)
        while chunk := source.read(CHUNK_BYTES):
            if chunk.strip(b"\0"):
                out.seek(position)
                out.write(chunk)
            position += len(chunk)
    if position != start + member.size:
        raise TreeError("it is cut off")
    return Content(os.fsencode(path), start, member.size)


def _attributes(member: tarfile.TarInfo, losses: Losses) -> bytes:
    """Return a file's capabilities; note which other extended attributes it loses."""
    capability = b""
    for key, value in member.pax_headers.items():
        prefix = next((prefix for prefix in XATTR_PREFIXES if key.startswith(prefix)), None)
        name = key.removeprefix(prefix) if prefix else ""
        if not name or name in IGNORED_XATTRS:
            continue
        if name == CAPABILITY and prefix == XATTR_PREFIXES[0]:
            capability = value.encode("utf-8", "surrogateescape")
            if len(capability) > MAX_CAPABILITY_BYTES:
                raise TreeError("its file capabilities are malformed")
        else:
            losses.add(f"files lose the extended attribute {name}", member.name)
    return capability


def _one_line(exc: BaseException) -> str:
    return " ".join(str(exc).split()) or type(exc).__name__
