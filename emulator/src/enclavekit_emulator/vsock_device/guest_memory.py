# SPDX-License-Identifier: Apache-2.0
"""The guest's memory as QEMU shares it: slices by guest-physical or by QEMU's own address. Pure, over buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class BadAddressError(ValueError):
    """An address range that is not, or not wholly, the guest's memory; the message is the cause."""


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch of guest memory."""

    guest_address: int
    user_address: int
    """Where it is in QEMU; rings are given by this one."""
    view: memoryview
    """Its bytes, writable."""

    @property
    def size(self) -> int:
        return len(self.view)


class GuestMemory:
    """All regions."""

    def __init__(self, regions: Sequence[Region] = ()) -> None:
        self.regions = tuple(regions)

    def guest(self, address: int, size: int) -> memoryview:
        """Return `size` bytes at guest-physical `address`. Raises BadAddressError."""
        for region in self.regions:
            offset = address - region.guest_address
            if offset >= 0 and offset + size <= len(region.view):
                return region.view[offset : offset + size]
        raise BadAddressError(f"no guest memory at {address:#x}+{size:#x}")

    def user(self, address: int, size: int) -> memoryview:
        """Return `size` bytes at QEMU's `address`. Raises BadAddressError."""
        for region in self.regions:
            offset = address - region.user_address
            if offset >= 0 and offset + size <= len(region.view):
                return region.view[offset : offset + size]
        raise BadAddressError(f"no guest memory at QEMU's {address:#x}+{size:#x}")
