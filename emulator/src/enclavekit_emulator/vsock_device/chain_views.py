# SPDX-License-Identifier: Apache-2.0
"""The buffers of a chain as header and payload, however the driver has cut them. Pure, over buffers.

Source: virtio 1.2, 2.7.4 (no assumption on the layout of a message in its buffers).
"""

from __future__ import annotations

from enclavekit_emulator.vsock_device.packet import HEADER_BYTES
from enclavekit_emulator.vsock_device.split_ring import Chain, RingError


def split_views(views: list[memoryview]) -> tuple[bytes, list[memoryview]]:
    """Return the header's bytes and what follows them, however the driver has cut its buffers."""
    header = b""
    for index, view in enumerate(views):
        need = HEADER_BYTES - len(header)
        header += bytes(view[:need])
        if len(view) > need:
            return header, [view[need:], *views[index + 1 :]]
        if len(header) == HEADER_BYTES:
            return header, views[index + 1 :]
    return header, []


def split_writable(chain: Chain) -> tuple[list[memoryview], list[memoryview]]:
    """Return where the header goes and where the payload goes. Raises RingError if not even the header has room."""
    header: list[memoryview] = []
    need = HEADER_BYTES
    for index, view in enumerate(chain.writable):
        header.append(view[:need])
        if len(view) >= need:
            rest = [view[need:]] if len(view) > need else []
            return header, rest + chain.writable[index + 1 :]
        need -= len(view)
    raise RingError("a receive buffer without room for a header")


def write_header(chain: Chain, raw: bytes) -> None:
    scatter(split_writable(chain)[0], raw)


def scatter(views: list[memoryview], raw: bytes) -> None:
    for view in views:
        view[:] = raw[: len(view)]
        raw = raw[len(view) :]


def trim(views: list[memoryview], size: int) -> list[memoryview]:
    """Return the first `size` bytes of `views`."""
    trimmed = []
    for view in views:
        if not size:
            break
        trimmed.append(view[:size])
        size -= len(trimmed[-1])
    return trimmed
