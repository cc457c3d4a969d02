# SPDX-License-Identifier: Apache-2.0
"""Take an image apart into files: the effect of `eif extract`."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from typing import IO

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_eif.extract import Extracted, extract_cpio
from enclavekit_eif.measure import CHUNK_BYTES, measure
from enclavekit_eif.model import SectionType
from enclavekit_eif.reader import Eif

FILE_NAMES = {
    SectionType.KERNEL: "kernel",
    SectionType.CMDLINE: "cmdline",
    SectionType.METADATA: "metadata.json",
    SectionType.SIGNATURE: "signature.cbor",
}
ROOT = "root"


def unpack_eif(eif: Eif, directory: str, *, tree: bool = False, same_owner: bool = False) -> Extracted | None:
    """Write each section to a file of the new `directory`: kernel, cmdline, metadata.json, ramdisk-0, ...

    Args:
        directory: must not exist, or be empty. It appears complete or not at all.
        tree: also unpack all ramdisks, in boot order, into its subdirectory `root`; the report on that is returned.

    Raises: InputError, also for an image whose CRC does not match.
    """
    if not measure(eif).crc_ok:
        raise InputError("extract", eif.path, "its CRC does not match: the file is damaged")
    if os.path.lexists(directory) and not _is_empty_directory(directory):
        raise InputError("extract to", directory, "it exists and is not an empty directory")
    parent, base = os.path.split(os.path.abspath(directory))
    temporary = os.path.join(parent, f".{base[:200]}.{secrets.token_hex(6)}")
    try:
        os.mkdir(temporary)
        try:
            report = _fill(eif, temporary, tree, same_owner)
            os.rename(temporary, directory)
        except BaseException:
            shutil.rmtree(temporary, onerror=_make_writable)
            raise
    except OSError as exc:
        raise InputError("extract to", directory, describe_cause(exc)) from exc
    return report


def _fill(eif: Eif, directory: str, tree: bool, same_owner: bool) -> Extracted | None:
    ramdisks = 0
    for section in eif.sections:
        if section.type is SectionType.RAMDISK:
            name, ramdisks = f"ramdisk-{ramdisks}", ramdisks + 1
        else:
            name = FILE_NAMES[section.type]
        with eif.open_section(section) as data, open(os.path.join(directory, name), "xb") as out:
            _copy(data, out)
    if not tree:
        return None
    root = os.path.join(directory, ROOT)
    os.mkdir(root)
    with eif.open_ramdisks() as stream:
        return extract_cpio(stream, root, same_owner=same_owner)


def _copy(source: IO[bytes], out: IO[bytes]) -> None:
    shutil.copyfileobj(source, out, CHUNK_BYTES)


def _is_empty_directory(path: str) -> bool:
    try:
        with os.scandir(path) as children:
            return next(children, None) is None
    except NotADirectoryError:
        return False


def _make_writable(function: Callable[..., object], path: str, _exc: object) -> None:
    """Let rmtree into directories that the archive made read-only; they are ours."""
    os.chmod(os.path.dirname(path), 0o700)
    if os.path.isdir(path) and not os.path.islink(path):
        os.chmod(path, 0o700)
        shutil.rmtree(path, ignore_errors=True)
    else:
        function(path)
