# SPDX-License-Identifier: Apache-2.0
"""The 32 registers of an NSM and their rules. Pure.

Registers 0..15 are locked when an enclave starts; extending is SHA384(old || data) with the data as given; a lock lasts
until the enclave ends. Source: AWS's nsm-check and QEMU's hw/virtio/virtio-nsm.c.
"""

from __future__ import annotations

import hashlib

from enclavekit_nsm.messages import PCR_BYTES, PCR_COUNT, ErrorCode

LOCKED_AT_BOOT = 16
ZERO_PCR = bytes(PCR_BYTES)


class PcrError(Exception):
    """A rule says no; `code` is what the NSM answers."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code.value)
        self.code = code


class PcrBank:
    """Values and locks. Not thread-safe: the device handles one request at a time."""

    def __init__(self, initial: dict[int, bytes] | None = None) -> None:
        """`initial` maps index to 48 bytes; the others are zero. Raises ValueError for other shapes."""
        self._values = [ZERO_PCR] * PCR_COUNT
        for index, value in (initial or {}).items():
            if not 0 <= index < PCR_COUNT or len(value) != PCR_BYTES:
                raise ValueError(f"PCR{index} of {len(value)} bytes")
            self._values[index] = bytes(value)
        self._locked = [index < LOCKED_AT_BOOT for index in range(PCR_COUNT)]

    def describe(self, index: int) -> tuple[bool, bytes]:
        """Return (locked, value). Raises PcrError(InvalidIndex)."""
        self._check(index)
        return self._locked[index], self._values[index]

    def extend(self, index: int, data: bytes) -> bytes:
        """Return the new value. Raises PcrError: InvalidIndex, or ReadOnlyIndex if it is locked."""
        self._check(index)
        if self._locked[index]:
            raise PcrError(ErrorCode.READ_ONLY_INDEX)
        self._values[index] = hashlib.sha384(self._values[index] + data).digest()
        return self._values[index]

    def lock(self, index: int) -> None:
        """Raises PcrError: InvalidIndex, or ReadOnlyIndex if it is locked already."""
        self._check(index)
        if self._locked[index]:
            raise PcrError(ErrorCode.READ_ONLY_INDEX)
        self._locked[index] = True

    def lock_range(self, count: int) -> None:
        """Lock 0..count-1; those locked already stay so. Raises PcrError(InvalidIndex) for more than there are."""
        if not 0 <= count <= PCR_COUNT:
            raise PcrError(ErrorCode.INVALID_INDEX)
        self._locked[:count] = [True] * count

    def locked_values(self) -> dict[int, bytes]:
        """Return what an attestation document shows: all locked registers and only those, ascending."""
        return {index: value for index, value in enumerate(self._values) if self._locked[index]}

    def _check(self, index: int) -> None:
        if not 0 <= index < PCR_COUNT:
            raise PcrError(ErrorCode.INVALID_INDEX)
