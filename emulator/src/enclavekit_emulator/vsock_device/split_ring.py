# SPDX-License-Identifier: Apache-2.0
"""A split virtqueue seen from the device: take chains of buffers, hand them back. Pure, over buffers.

The guest may write anything here at any time, so every value is read once and checked before it is used.
Memory order: what this module reads and writes is ordered by the processor on x86 (TSO), and everywhere by the system
calls between two turns; no notification is ever suppressed, so a store that is seen late costs nothing but a wake-up.
Source: virtio 1.2, 2.7 (split virtqueues).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from enclavekit_emulator.vsock_device.guest_memory import GuestMemory

MAX_RING_SIZE = 1024  # entries; Linux's vsock driver takes what QEMU offers, 128
DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags, next
USED_ELEMENT = struct.Struct("<II")  # head of the chain, bytes written
FLAG_NEXT, FLAG_WRITE, FLAG_INDIRECT = 1, 2, 4
MAX_CHAIN_BYTES = 1 << 20  # Linux posts 4 KiB and sends 64 KiB


class RingError(ValueError):
    """The guest has broken the queue's rules; the message is the cause."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of buffers taken from the guest."""

    head: int
    readable: list[memoryview]
    """What the guest wrote for us."""
    writable: list[memoryview]
    """Where we may write."""


class SplitRing:
    """One queue that the guest has set up."""

    def __init__(
        self,
        size: int,
        descriptors: memoryview,
        available: memoryview,
        used: memoryview,
        memory: GuestMemory,
        base: int,
    ) -> None:
        """Take over a ring of `size` entries (a power of 2) whose next available index is `base`."""
        self.size, self._mask = size, size - 1
        self._descriptors, self._memory = descriptors, memory
        self._available, self._used_bytes = available.cast("H"), used
        self._used_index = used[2:4].cast("H")
        self.next_available = base
        self._next_used = self._told = self._used_index[0]

    @staticmethod
    def sizes(size: int) -> tuple[int, int, int]:
        """Return the bytes of descriptor table, available ring and used ring."""
        return DESCRIPTOR.size * size, 4 + 2 * size, 4 + USED_ELEMENT.size * size

    def waiting(self) -> int:
        """Return how many chains the guest has made available. Raises RingError."""
        count = (self._available[1] - self.next_available) & 0xFFFF
        if count > self.size:
            raise RingError(f"{count} buffers are available in a ring of {self.size}")
        return count

    def take(self) -> Chain | None:
        """Return the next chain; None if there is none. Raises RingError, BadAddressError."""
        if not self.waiting():
            return None
        head = self._available[2 + (self.next_available & self._mask)]
        chain = self._read_chain(head)
        self.next_available = (self.next_available + 1) & 0xFFFF
        return chain

    def put_back(self) -> None:
        """Undo the last `take`: the chain stays available."""
        self.next_available = (self.next_available - 1) & 0xFFFF

    def _read_chain(self, head: int) -> Chain:
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        index, total = head, 0
        for _ in range(self.size):
            if index >= self.size:
                raise RingError(f"descriptor {index} in a ring of {self.size}")
            address, length, flags, following = DESCRIPTOR.unpack_from(self._descriptors, index * DESCRIPTOR.size)
            if flags & FLAG_INDIRECT:
                raise RingError("an indirect descriptor, which was not agreed on")
            total += length
            if total > MAX_CHAIN_BYTES:
                raise RingError(f"a chain of more than {MAX_CHAIN_BYTES} bytes")
            if length:
                view = self._memory.guest(address, length)
                if flags & FLAG_WRITE:
                    writable.append(view)
                elif writable:
                    raise RingError("a readable buffer behind a writable one")
                else:
                    readable.append(view)
            if not flags & FLAG_NEXT:
                return Chain(head, readable, writable)
            index = following
        raise RingError("a chain that does not end")

    def give_back(self, head: int, written: int) -> None:
        """Hand a chain back to the guest with `written` bytes in its writable part."""
        offset = 4 + USED_ELEMENT.size * (self._next_used & self._mask)
        USED_ELEMENT.pack_into(self._used_bytes, offset, head, written)
        self._next_used = (self._next_used + 1) & 0xFFFF
        self._used_index[0] = self._next_used  # last: from here the guest sees it

    def has_news(self) -> bool:
        """Say whether anything was handed back since the last call, which is when the guest has to be told."""
        told, self._told = self._told, self._next_used
        return told != self._next_used
