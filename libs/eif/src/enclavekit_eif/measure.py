# SPDX-License-Identifier: Apache-2.0
"""Compute what the Nitro hypervisor measures of an image: PCR0, PCR1, PCR2, PCR8, and the CRC, in one pass.

    PCR(content) = SHA384(48 zero bytes || SHA384(content))
    PCR0 = kernel, cmdline, all ramdisks    PCR1 = kernel, cmdline, first ramdisk    PCR2 = the other ramdisks
    PCR8 = DER of the signing certificate, only if signed

Content is section data as stored (compressed if compressed), in file order. Source: AWS Nitro Enclaves user guide,
"Cryptographic attestation"; aws-nitro-enclaves-image-format, src/utils/eif_builder.rs.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_eif.lanes import Lanes
from enclavekit_eif.model import CRC_OFFSET, SectionType
from enclavekit_eif.reader import Eif

PCR_BYTES = 48
CHUNK_BYTES = 1 << 20  # large enough for a thread hand-over per chunk not to count
HASH_ALGORITHM = "Sha384 { ... }"  # nitro-cli up to 1.4 prints this; 1.5 another debug string. Never parse it.


def pcr_of_digest(digest: bytes) -> bytes:
    """Return the register after extending zeros by a SHA-384 digest."""
    return hashlib.sha384(bytes(PCR_BYTES) + digest).digest()


def pcr_of(chunks: Iterable[bytes]) -> bytes:
    """Return the PCR of the concatenation of `chunks`."""
    content = hashlib.sha384()
    for chunk in chunks:
        content.update(chunk)
    return pcr_of_digest(content.digest())


EMPTY_PCR = pcr_of([])
"""PCR2 of an image with one ramdisk."""


@dataclass(frozen=True, slots=True)
class Measurements:
    pcr0: bytes
    """Whole image."""
    pcr1: bytes
    """Kernel and framework."""
    pcr2: bytes
    """App."""
    pcr8: bytes | None
    """Signing certificate; None if unsigned (the register is zero then)."""
    crc_ok: bool
    """The stored CRC is that of the bytes. False means a damaged file; the PCRs are then those of the damaged bytes."""

    def to_json(self) -> dict[str, str]:
        """Return the `Measurements` object that nitro-cli prints."""
        shown = {
            "HashAlgorithm": HASH_ALGORITHM,
            "PCR0": self.pcr0.hex(),
            "PCR1": self.pcr1.hex(),
            "PCR2": self.pcr2.hex(),
        }
        if self.pcr8 is not None:
            shown["PCR8"] = self.pcr8.hex()
        return shown

    def registers(self) -> dict[int, bytes]:
        """Return the PCRs by number, PCR8 only if signed."""
        found = {0: self.pcr0, 1: self.pcr1, 2: self.pcr2}
        return found if self.pcr8 is None else {**found, 8: self.pcr8}


class PcrHasher:
    """PCR0, PCR1 and PCR2 of sections that come in file order.

    PCR0 and PCR1 have the same content up to the second ramdisk, so that part is hashed once: `_boot` is a copy of
    `_image` made where the two part.
    """

    def __init__(self) -> None:
        self._image = hashlib.sha384()
        self._boot: Any = None
        self._app = hashlib.sha384()
        self._ramdisks = 0

    def begin(self, kind: SectionType) -> list[Any]:
        """Return the hash objects that the data of the next section goes into; none if it is not measured."""
        if kind is SectionType.RAMDISK:
            self._ramdisks += 1
            if self._ramdisks == 1:
                return [self._image]
            if self._boot is None:
                self._boot = self._image.copy()
            return [self._image, self._app]
        if kind in (SectionType.KERNEL, SectionType.CMDLINE):
            return [self._image] if self._boot is None else [self._image, self._boot]
        return []

    def registers(self) -> tuple[bytes, bytes, bytes]:
        """Return (PCR0, PCR1, PCR2)."""
        boot = self._image if self._boot is None else self._boot
        return tuple(pcr_of_digest(part.digest()) for part in (self._image, boot, self._app))  # type: ignore[return-value]


def measure(eif: Eif) -> Measurements:
    """Read every byte of the image once and return its measurements.

    Raises: InputError if the file cannot be read or the signature section holds no certificate.
    """
    hasher = PcrHasher()
    crc = RunningCrc(zlib.crc32(eif.header[:CRC_OFFSET]))
    with Lanes() as lanes:
        for section in eif.sections:
            updates = [part.update for part in hasher.begin(section.type)]
            crc.update(_read(eif, section.offset, section.data_offset))
            position = section.data_offset
            while position < section.end:
                chunk = _read(eif, position, min(position + CHUNK_BYTES, section.end))
                lanes.feed(chunk, crc.update, *updates)
                position += len(chunk)
            lanes.drain()
    return Measurements(*hasher.registers(), _pcr8(eif), crc.value == eif.crc32)


class RunningCrc:
    """A CRC-32 with the interface of a hash."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def update(self, data: bytes) -> None:
        self.value = zlib.crc32(data, self.value)


def _read(eif: Eif, start: int, end: int) -> bytes:
    try:
        data = os.pread(eif.fd, end - start, start)
    except OSError as exc:
        raise InputError("read EIF", eif.path, describe_cause(exc)) from exc
    if len(data) < end - start:
        raise InputError("read EIF", eif.path, "it was truncated while being read")
    return data


def _pcr8(eif: Eif) -> bytes | None:
    if eif.signature is None:
        return None
    from enclavekit_eif.signature import read_signature  # imports cryptography, which unsigned images do not need

    return pcr_of([read_signature(eif).certificate_der()])
