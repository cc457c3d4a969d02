# SPDX-License-Identifier: Apache-2.0
"""Answers for as long as they may be kept. Pure."""

from __future__ import annotations

from collections import OrderedDict

from enclavekit_pf_proxy.resolver.vetting import Answer, Key

MAX_ENTRIES = 4096


class AnswerCache:
    """Bounded; what has not been used for longest goes first. Times are the caller's clock, in seconds."""

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[Key, tuple[Answer, float]] = OrderedDict()

    def store(self, key: Key, answer: Answer, now: float) -> None:
        if answer.ttl_s <= 0:
            self._entries.pop(key, None)
            return
        self._entries[key] = (answer, now)
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def find(self, key: Key, now: float) -> tuple[Answer, float] | None:
        """Return (answer, its age in seconds) if it is fresh."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        answer, stored = entry
        if now - stored >= answer.ttl_s:
            del self._entries[key]
            return None
        self._entries.move_to_end(key)
        return answer, now - stored
