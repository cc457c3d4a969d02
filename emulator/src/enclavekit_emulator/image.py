# SPDX-License-Identifier: Apache-2.0
"""Read the image to boot: every failure becomes nitro-cli's E35, or E19 where the file cannot be opened at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from enclavekit_core.errors import EnclavekitError

from enclavekit_emulator.nitro_errors import EIF_PARSING, SIGNATURE_CHECK, NitroError

if TYPE_CHECKING:
    from enclavekit_eif.reader import Eif


def check_readable(path: str) -> int:
    """Return the size of the image file in bytes. Raises NitroError 19 if it is no file that we may read."""
    try:
        with open(path, "rb") as source:
            return os.fstat(source.fileno()).st_size
    except OSError as exc:
        raise NitroError(19, f"cannot open {path}: {(exc.strerror or str(exc)).lower()}") from exc


def open_image(path: str) -> Eif:
    """Read headers and metadata of an image. Raises NitroError 19 or 35."""
    from enclavekit_eif.reader import read_eif

    check_readable(path)
    try:
        return read_eif(path)
    except EnclavekitError as exc:
        raise NitroError(EIF_PARSING, str(exc)) from exc


def file_identity(eif: Eif) -> tuple[int, ...]:
    """Return what changes when somebody writes to the file that is held open."""
    info = os.fstat(eif.fd)
    return (info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def measure_image(eif: Eif) -> dict[str, str]:
    """Return the measurements as describe-eif prints them.

    Raises: NitroError 35 if the image is damaged, 59 if it is signed and the signature is not of this image.
    """
    from enclavekit_eif.measure import measure

    try:
        measurements = measure(eif)
    except EnclavekitError as exc:
        raise NitroError(EIF_PARSING, str(exc)) from exc
    if not measurements.crc_ok:
        raise NitroError(EIF_PARSING, f"cannot run {eif.path}: its CRC does not match: the file is damaged")
    if eif.signature is not None:
        from enclavekit_eif.signature import read_signature, verify_signature

        try:
            verify_signature(read_signature(eif), measurements.pcr0)
        except EnclavekitError as exc:
            raise NitroError(SIGNATURE_CHECK, f"cannot run {eif.path}: {exc}") from exc
    return measurements.to_json()


def describe_image(path: str) -> dict[str, Any]:
    """Return what describe-eif prints; a wrong CRC is shown there and no error. Raises NitroError 19 or 35."""
    from enclavekit_eif.describe import describe_eif

    with open_image(path) as eif:
        try:
            return describe_eif(eif)
        except EnclavekitError as exc:
            raise NitroError(EIF_PARSING, str(exc)) from exc


def describe_labels(eif: Eif) -> dict[str, Any]:
    """Return ImageName, ImageVersion and Metadata as describe-enclaves --metadata prints them."""
    from enclavekit_eif.describe import describe_metadata

    try:
        return describe_metadata(eif)
    except EnclavekitError as exc:
        raise NitroError(EIF_PARSING, str(exc)) from exc


def open_ramdisks(eif: Eif, *, single_user: bool) -> Callable[[str], None]:
    """Open all ramdisks now and return what extracts them, in order, below a directory.

    The extraction runs where neither the file nor Python's modules can be opened any more.

    Args:
        single_user: only one id is mapped: owners in the archive cannot be kept.
    """
    from enclavekit_eif.cpio import extract_cpio, open_ramdisk

    with contextlib.suppress(ImportError):
        import zstandard  # noqa: F401 - a later member of a ramdisk may need it when it can be imported no more

    try:
        streams = [open_ramdisk(eif.open_section(section)) for section in eif.ramdisks]
    except EnclavekitError as exc:
        raise NitroError(EIF_PARSING, str(exc)) from exc

    def extract(directory: str) -> None:
        for stream in streams:
            extract_cpio(stream, directory, same_owner=not single_user, make_devices=True)

    return extract
