# SPDX-License-Identifier: Apache-2.0
"""cpio archives as ramdisks hold them: what other parts import. `newc` reads, `pack` writes, `extract` unpacks."""

from enclavekit_eif.compression import open_ramdisk
from enclavekit_eif.extract import Extracted, Skipped, extract_cpio
from enclavekit_eif.newc import CpioEntry, EntryData, iter_cpio
from enclavekit_eif.pack import CpioWriter, Packed, pack_tree

__all__ = [
    "CpioEntry",
    "CpioWriter",
    "EntryData",
    "Extracted",
    "Packed",
    "Skipped",
    "extract_cpio",
    "iter_cpio",
    "open_ramdisk",
    "pack_tree",
]
