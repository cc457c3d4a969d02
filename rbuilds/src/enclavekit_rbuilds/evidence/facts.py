# SPDX-License-Identifier: Apache-2.0
"""What evidence says about an image, read from the image itself and never from what the build believes."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass

from enclavekit_core.errors import InputError, VerificationError, describe_cause
from enclavekit_eif.measure import measure
from enclavekit_eif.model import ARCH_NAMES
from enclavekit_eif.reader import Eif, read_eif

PCR_NAME = re.compile(r"PCR\d+")
EIF_SUFFIX = ".eif"


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """An image by content."""

    file: str
    """Name of the file, without its directory."""
    name: str
    version: str
    arch: str
    size: int
    sha256: str
    measurements: dict[str, str]
    """HashAlgorithm and the PCRs, as nitro-cli names them."""

    def pcrs(self) -> dict[str, str]:
        """Return the registers by name."""
        return {name: value for name, value in self.measurements.items() if PCR_NAME.fullmatch(name)}


@dataclass(frozen=True, slots=True)
class EvidencePaths:
    """Where an image's evidence lies: beside it, under its name."""

    pcrs: str
    sbom: str
    provenance: str


def evidence_paths(image: str) -> EvidencePaths:
    """Return NAME.pcr.json, NAME.cdx.json and NAME.intoto.json for NAME.eif (or a NAME of any kind)."""
    stem = image.removesuffix(EIF_SUFFIX)
    return EvidencePaths(f"{stem}.pcr.json", f"{stem}.cdx.json", f"{stem}.intoto.json")


def read_facts(path: str) -> ImageFacts:
    """Measure and hash the image at `path`. Raises InputError; VerificationError if its CRC is wrong."""
    with read_eif(path) as eif:
        measured = measure(eif)
        if not measured.crc_ok:
            raise VerificationError(path, "its CRC does not fit its bytes: the file is damaged")
        metadata = eif.metadata or {}
        return ImageFacts(
            file=os.path.basename(path),
            name=str(metadata.get("ImageName", "")) or os.path.basename(path),
            version=str(metadata.get("ImageVersion", "")),
            arch=ARCH_NAMES[eif.arch],
            size=os.fstat(eif.fd).st_size,
            sha256=_sha256(eif),
            measurements=measured.to_json(),
        )


def _sha256(eif: Eif) -> str:
    try:
        # of the open file, so that what was measured is what is hashed
        with open(os.dup(eif.fd), "rb") as source:
            source.seek(0)
            return hashlib.file_digest(source, "sha256").hexdigest()
    except OSError as exc:
        raise InputError("read", eif.path, describe_cause(exc)) from exc
