# SPDX-License-Identifier: Apache-2.0
"""What there is to say of a key of a unit file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Key:
    """What one key of a unit file means."""

    attribute: str
    parse: Callable[[object], object]
    kind: str
    default: str
    meaning: str
    many: bool = False
    """Other keys give values of the same attribute: they are joined."""
