# SPDX-License-Identifier: Apache-2.0
"""Read an image's ramdisks as the kernel does, and note what decides whether it can."""

from __future__ import annotations

import stat
from dataclasses import dataclass

from enclavekit_core.errors import InputError

from enclavekit_eif.compression import BUFFER_BYTES, compression_of
from enclavekit_eif.newc import iter_cpio
from enclavekit_eif.reader import Eif

ALIGNMENT = 4  # the kernel looks for an uncompressed archive's magic there only (init/initramfs.c, do_start)


@dataclass(frozen=True, slots=True)
class RamdiskFacts:
    compressions: tuple[str, ...]
    """Of each ramdisk, by its first bytes: "", "gzip", "zstd"."""
    misaligned: tuple[int, ...]
    """Uncompressed ramdisks that the kernel would not find."""
    init_mode: int | None
    """Mode of /init as the last archive that has one leaves it; None if there is none."""

    @property
    def init_executable(self) -> bool:
        """A link counts: where it leads is known at boot only."""
        mode = self.init_mode or 0
        return stat.S_ISLNK(mode) or (stat.S_ISREG(mode) and bool(mode & 0o111))


def read_ramdisks(eif: Eif) -> RamdiskFacts:
    """Read every entry of every ramdisk. Raises InputError for what is no archive that we can read."""
    compressions, misaligned = [], []
    position = 0
    init_mode: int | None = None
    for index, section in enumerate(eif.ramdisks):
        with eif.open_section(section) as source:
            ahead = source.peek(BUFFER_BYTES)
            start = ahead.lstrip(b"\0")
            name = compression_of(start)
            compressions.append(name)
            if not name and (position + len(ahead) - len(start)) % ALIGNMENT:
                misaligned.append(index)
            try:
                for entry in iter_cpio(source):
                    if entry.name.removeprefix(b"./").lstrip(b"/") == b"init":
                        init_mode = entry.mode
            except InputError as exc:
                raise InputError("read", f"ramdisk {index}", f"ramdisk {index}: {exc.reason}") from exc
        position += section.size
    return RamdiskFacts(tuple(compressions), tuple(misaligned), init_mode)
