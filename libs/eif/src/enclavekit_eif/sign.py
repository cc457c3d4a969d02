# SPDX-License-Identifier: Apache-2.0
"""Sign an image that has been written: everything stays as it is, and a signature section comes last."""

from __future__ import annotations

import datetime
import os
import stat
import zlib
from typing import Protocol

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_eif.measure import CHUNK_BYTES, Measurements, measure, pcr_of
from enclavekit_eif.model import (
    CRC_OFFSET,
    FIRST_VERSION_WITH,
    MAX_SECTIONS,
    SECTION_HEADER,
    SectionType,
    encode_header,
    plan_sections,
)
from enclavekit_eif.reader import Eif, read_eif
from enclavekit_eif.signature import decode_signature, verify_signature, verify_validity
from enclavekit_eif.writer import replaced_file

Path = str | os.PathLike[str]


class Signer(Protocol):
    """Who can sign: a key file, a key in KMS, or a signature that somebody else made."""

    @property
    def certificate_pem(self) -> bytes: ...

    def sign(self, pcr0: bytes) -> bytes:
        """Return the data of a signature section over this PCR0."""
        ...


def measure_undamaged(eif: Eif) -> Measurements:
    """Return what is to be signed. Raises InputError for an image that is damaged or cannot take a signature."""
    if eif.version < FIRST_VERSION_WITH[SectionType.SIGNATURE]:
        raise InputError("sign", eif.path, f"an image of version {eif.version} has no place for a signature")
    if len(eif.sections) - (eif.signature is not None) >= MAX_SECTIONS:
        raise InputError("sign", eif.path, f"its {len(eif.sections)} sections leave no place for a signature")
    measured = measure(eif)
    if not measured.crc_ok:
        raise InputError("sign", eif.path, "its CRC is wrong: the file is damaged")
    return measured


def sign_eif(path: Path, target: Path, signer: Signer, *, at: datetime.datetime | None = None) -> Measurements:
    """Write the image at `path`, signed, to `target`, which may be the same; return its measurements.

    A signature that it has is replaced. The same image and a signer that is deterministic give the same bytes. A file
    that is at `target` already passes on its mode and owner; through a link, the file that it names is written.

    Args:
        at: the time (aware) at which the certificate has to be valid; None: now.

    Raises:
        InputError: the image is damaged or cannot be written; `target` is as it was.
        VerificationError: the signature is not one of the certificate's key, or the certificate is not valid.
    """
    with read_eif(path) as eif:
        measured = measure_undamaged(eif)
        data = signer.sign(measured.pcr0)
        # a service or a person may have signed something else: nobody wants to learn that at boot
        signature = decode_signature(data)
        verify_signature(signature, measured.pcr0)
        verify_validity(signature, at or datetime.datetime.now(datetime.UTC))
        _write(eif, os.path.realpath(target), data)
    pcr8 = pcr_of([signature.certificate_der()])
    return Measurements(measured.pcr0, measured.pcr1, measured.pcr2, pcr8, crc_ok=True)


def _write(eif: Eif, target: str, signature: bytes) -> None:
    kept = [section for section in eif.sections if section.type != SectionType.SIGNATURE]
    layout = [(section.type, section.size) for section in kept] + [(SectionType.SIGNATURE, len(signature))]
    sections = plan_sections(layout)

    def header_with(crc32: int) -> bytes:
        values = {"version": eif.version, "default_mem": eif.default_mem, "default_cpus": eif.default_cpus}
        return encode_header(eif.flags, sections, crc32, **values)

    header = header_with(0)
    try:
        crc = zlib.crc32(header[:CRC_OFFSET])
        with replaced_file(target) as fd, open(fd, "wb", closefd=False) as out:
            _take_over(target, fd)
            out.write(header)
            for section in kept:
                head = SECTION_HEADER.pack(section.type, 0, section.size)
                crc = zlib.crc32(head, crc)
                out.write(head)
                with eif.open_section(section) as source:
                    while chunk := source.read(CHUNK_BYTES):
                        crc = zlib.crc32(chunk, crc)
                        out.write(chunk)
            tail = SECTION_HEADER.pack(SectionType.SIGNATURE, 0, len(signature)) + signature
            out.write(tail)
            out.seek(0)
            out.write(header_with(zlib.crc32(tail, crc)))
    except OSError as exc:
        raise InputError("write EIF", target, describe_cause(exc)) from exc


def _take_over(target: str, fd: int) -> None:
    """Give the new file the mode, and as root the owner, of the file whose place it will take."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise InputError("write EIF", target, "not a regular file")
    if os.geteuid() == 0:
        os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
