# SPDX-License-Identifier: Apache-2.0
"""Write an EIF: streamed, deterministic, and either whole or not there.

Order of sections: kernel, cmdline, metadata, ramdisks, signature, as the reference builder writes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import stat
import zlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_eif.crc import combine
from enclavekit_eif.lanes import Lanes
from enclavekit_eif.measure import CHUNK_BYTES, Measurements, PcrHasher, RunningCrc, pcr_of
from enclavekit_eif.metadata import encode_metadata
from enclavekit_eif.model import (
    ARCH_NAMES,
    CRC_OFFSET,
    HEADER,
    MAX_CMDLINE_BYTES,
    MAX_METADATA_BYTES,
    MAX_SECTIONS,
    SECTION_HEADER,
    SectionType,
    encode_header,
    plan_sections,
)

if TYPE_CHECKING:
    from enclavekit_eif.signature import Signer

Path = str | os.PathLike[str]
MAX_RAMDISKS = MAX_SECTIONS - 4  # kernel, cmdline, metadata and a signature need a slot each


def write_eif(
    out_path: Path,
    *,
    kernel: Path,
    cmdline: bytes,
    ramdisks: list[Path] | list[str],
    metadata: dict[str, Any],
    arch: str = "x86_64",
    signer: Signer | None = None,
) -> Measurements:
    """Write the image to `out_path` and return what it measures. The same arguments give the same bytes.

    Args:
        kernel: bzImage (x86_64) or uncompressed Image (aarch64); its format is not checked.
        cmdline: kernel command line, measured as it is: no newline is added or removed.
        ramdisks: files in boot order; the first counts for PCR1, the others for PCR2.
        metadata: what `make_metadata` returns. Not measured.

    Raises: InputError if an input cannot be used or the file not written; nothing is left behind then, and a file that
        was at `out_path` before is untouched.
    """
    name = os.fspath(out_path)
    encoded = _check_values(name, cmdline, ramdisks, metadata, arch)
    flags = next(flag for flag, known in ARCH_NAMES.items() if known == arch)
    with contextlib.ExitStack() as stack:
        kernel_fd, kernel_size = _open_input(stack, kernel, "kernel")
        inputs = [_open_input(stack, path, "ramdisk") for path in ramdisks]
        parts: list[tuple[SectionType, int, int | bytes, str]] = [
            (SectionType.KERNEL, kernel_size, kernel_fd, os.fspath(kernel)),
            (SectionType.CMDLINE, len(cmdline), cmdline, "cmdline"),
            (SectionType.METADATA, len(encoded), encoded, "metadata"),
            *(
                (SectionType.RAMDISK, size, fd, os.fspath(path))
                for path, (fd, size) in zip(ramdisks, inputs, strict=True)
            ),
        ]
        try:
            with replaced_file(name) as out:
                return _write(out, parts, flags, signer)
        except OSError as exc:
            raise InputError("write EIF", name, describe_cause(exc)) from exc


def _check_values(name: str, cmdline: bytes, ramdisks: list[Any], metadata: dict[str, Any], arch: str) -> bytes:
    """Check what needs no file; return the encoded metadata."""
    if arch not in ARCH_NAMES.values():
        raise InputError("write EIF", name, f"unknown architecture {arch!r}, not {' or '.join(ARCH_NAMES.values())}")
    if b"\0" in cmdline:
        raise InputError("write EIF", name, "the kernel command line has a NUL byte")
    if len(cmdline) > MAX_CMDLINE_BYTES:
        raise InputError("write EIF", name, f"the kernel command line has more than {MAX_CMDLINE_BYTES} bytes")
    if not 1 <= len(ramdisks) <= MAX_RAMDISKS:
        raise InputError("write EIF", name, f"{len(ramdisks)} ramdisks are not 1 to {MAX_RAMDISKS}")
    try:
        encoded = encode_metadata(metadata)
    except ValueError as exc:
        raise InputError("write EIF", name, f"metadata: {exc}") from exc
    if len(encoded) > MAX_METADATA_BYTES:
        raise InputError("write EIF", name, f"the metadata has more than {MAX_METADATA_BYTES} bytes")
    return encoded


def _open_input(stack: contextlib.ExitStack, path: Path, what: str) -> tuple[int, int]:
    """Open a regular, non-empty file; return (descriptor, size). The stack closes it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        stack.callback(os.close, fd)
        status = os.fstat(fd)
    except (OSError, ValueError) as exc:
        raise InputError("read", f"{what} {os.fspath(path)}", describe_cause(exc)) from exc
    if not stat.S_ISREG(status.st_mode):
        raise InputError("read", f"{what} {os.fspath(path)}", "not a regular file")
    if not status.st_size:
        raise InputError("read", f"{what} {os.fspath(path)}", "it is empty")
    return fd, status.st_size


def _write(
    fd: int, parts: list[tuple[SectionType, int, int | bytes, str]], flags: int, signer: Signer | None
) -> Measurements:
    hasher, crc = PcrHasher(), RunningCrc()
    position = HEADER.size
    with Lanes() as lanes:
        for kind, size, source, label in parts:
            updates = [part.update for part in hasher.begin(kind)]
            head = SECTION_HEADER.pack(kind, 0, size)
            crc.update(head)
            position += _pwrite(fd, head, position)
            for chunk in _chunks(source, size, label):
                # what is hashed is what is written: no copying behind our back (sendfile), as the input may change
                lanes.feed(chunk, crc.update, partial(_pwrite, fd, position=position), *updates)
                position += len(chunk)
            lanes.drain()
    pcr0, pcr1, pcr2 = hasher.registers()
    layout = [(kind, size) for kind, size, _source, _label in parts]
    pcr8 = None
    if signer is not None:
        from enclavekit_eif.signature import EifSignature

        signature = signer.sign(pcr0)
        pcr8 = pcr_of([EifSignature(signer.certificate_pem, b"").certificate_der()])
        layout.append((SectionType.SIGNATURE, len(signature)))
        tail = SECTION_HEADER.pack(SectionType.SIGNATURE, 0, len(signature)) + signature
        crc.update(tail)
        position += _pwrite(fd, tail, position)
    sections = plan_sections(layout)
    assert sections[-1].end == position
    # the CRC starts with the header, which is complete only now
    header_crc = zlib.crc32(encode_header(flags, sections)[:CRC_OFFSET])
    whole = combine(header_crc, crc.value, position - HEADER.size)
    _pwrite(fd, encode_header(flags, sections, whole), 0)
    return Measurements(pcr0, pcr1, pcr2, pcr8, crc_ok=True)


def _chunks(source: int | bytes, size: int, label: str) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    position = 0
    while position < size:
        chunk = os.pread(source, min(CHUNK_BYTES, size - position), position)
        if not chunk:
            break
        yield chunk
        position += len(chunk)
    if position != size or os.fstat(source).st_size != size:
        raise InputError("read", label, "it changed while it was read")


def _pwrite(fd: int, data: bytes, position: int) -> int:
    done = os.pwrite(fd, data, position)
    while done < len(data):  # a full disk writes less before it fails
        done += os.pwrite(fd, data[done:], position + done)
    return len(data)


@contextlib.contextmanager
def replaced_file(path: str) -> Iterator[int]:
    """Give a descriptor of a new file beside `path` that takes its name at the end, or vanishes on any error.

    Its mode is 0666 less the umask. It is locked as long as it is written: who finds one that is not may remove it.
    Raises OSError.
    """
    directory, base = os.path.split(path)
    temporary = os.path.join(directory, f".{base[:200]}.{secrets.token_hex(6)}")
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
