# SPDX-License-Identifier: Apache-2.0
"""How much of something, as people write it in units and in lists of clients. Every function raises ValueError with the
rule that was broken.
"""

from __future__ import annotations

MAX_BYTES = 1 << 62
MAX_TASKS = 1 << 22  # the kernel's PID_MAX_LIMIT


def parse_tasks(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_TASKS:
        raise ValueError(f"it must be a whole number from 1 to {MAX_TASKS}")
    return value


def parse_size(value: object) -> int:
    """Return bytes: a number, or one with K, M, G or T (powers of 1024)."""
    if isinstance(value, str):
        digits, unit = (value[:-1], value[-1:]) if value[-1:] in "KMGT" else (value, "")
        if digits.isascii() and digits.isdigit() and len(digits) < 20:
            value = int(digits) << (10 * (" KMGT".index(unit) if unit else 0))
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_BYTES:
        raise ValueError("it must be a number of bytes, or one with K, M, G or T")
    return value


def parse_percent(value: object) -> float:
    """Return how many processors: "50%" is 0.5."""
    text = value.removesuffix("%") if isinstance(value, str) and value.endswith("%") else ""
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text) > 0):
        raise ValueError('it must be a percentage of one processor, such as "50%" or "200%"')
    return int(text) / 100
