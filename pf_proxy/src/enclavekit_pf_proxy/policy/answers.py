# SPDX-License-Identifier: Apache-2.0
"""Which names led to which addresses: what the enclave's own resolver answered, while it is fresh. Pure."""

from __future__ import annotations

from collections import OrderedDict

from enclavekit_core.ip_addresses import IpAddress, unwrap

MAX_ADDRESSES = 8192  # each a few hundred bytes; the one not answered for longest goes first
MAX_NAMES = 64  # of one address: large hosts have many, an app asks for few
GRACE_S = 300.0  # apps keep an address beyond its time to live, pools above all


class AnswerTable:
    """Address -> the names that were asked for and led to it. Times are the caller's clock, in seconds."""

    def __init__(self) -> None:
        self._names: OrderedDict[IpAddress, dict[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._names)

    def record(self, name: str, address: IpAddress, ttl_s: float, now: float) -> None:
        """Remember that `name` led to `address`."""
        key = unwrap(address)
        names = self._names.setdefault(key, {})
        self._names.move_to_end(key)
        names.pop(name, None)
        names[name] = now + ttl_s + GRACE_S
        while len(names) > MAX_NAMES:
            del names[next(iter(names))]
        while len(self._names) > MAX_ADDRESSES:
            self._names.popitem(last=False)

    def names_of(self, address: IpAddress, now: float) -> tuple[str, ...]:
        """Return the names that lead to `address` still, the one that was answered last at the end."""
        key = unwrap(address)
        names = self._names.get(key, {})
        for name in [name for name, until in names.items() if until < now]:
            del names[name]
        if not names:
            self._names.pop(key, None)
        return tuple(names)
