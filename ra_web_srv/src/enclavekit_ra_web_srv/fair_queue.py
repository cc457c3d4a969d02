# SPDX-License-Identifier: Apache-2.0
"""A bounded queue from which clients are served in turn, so that one that asks much delays itself only. Pure."""

from __future__ import annotations

import collections
from collections.abc import Hashable
from typing import Generic, TypeVar

from enclavekit_core.errors import EnclavekitError

Item = TypeVar("Item")


class QueueFullError(EnclavekitError):
    """Too much waits."""


class ClientFullError(EnclavekitError):
    """Too much of this client waits."""


class FairQueue(Generic[Item]):
    """First in, first out within a client; between clients one item each in turn."""

    def __init__(self, what: str, max_items: int, max_of_client: int) -> None:
        """`what` is what the items wait for, for messages."""
        self._what, self._max_items, self._max_of_client = what, max_items, max_of_client
        self._waiting: collections.OrderedDict[Hashable, collections.deque[Item]] = collections.OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, client: Hashable, item: Item) -> None:
        """Add an item. Raises QueueFullError, ClientFullError."""
        if len(self._waiting.get(client, ())) >= self._max_of_client:
            raise ClientFullError(f"cannot ask {self._what}: {self._max_of_client} requests of yours wait already")
        if self._count >= self._max_items:
            raise QueueFullError(f"cannot ask {self._what}: too many requests wait for it")
        self._waiting.setdefault(client, collections.deque()).append(item)
        self._count += 1

    def pop(self) -> Item:
        """Take the next item; its client goes behind the others. Raises IndexError if there is none."""
        if not self._waiting:
            raise IndexError("the queue is empty")
        client, items = self._waiting.popitem(last=False)
        item = items.popleft()
        if items:
            self._waiting[client] = items
        self._count -= 1
        return item
