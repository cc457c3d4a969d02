# SPDX-License-Identifier: Apache-2.0
"""Patterns whose matches leave no trace in any log. Pure.

Applied to each line before it is kept anywhere. A line longer than `output.MAX_LINE_BYTES` is cut first: what a cut
divides is not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

REDACTED = b"[redacted]"
MAX_PATTERNS = 64
MAX_PATTERN_CHARS = 1000


def compile_patterns(patterns: Iterable[str]) -> re.Pattern[bytes] | None:
    """Return one pattern for all, None for none. Raises ValueError naming the wrong one."""
    parts = []
    for pattern in patterns:
        try:
            compiled = re.compile(pattern.encode())
        except (re.error, RecursionError, OverflowError) as exc:
            raise ValueError(f"{pattern!r} is not a pattern: {exc}") from exc
        if compiled.groups:
            # a group's number or name would be another one, or taken, once the patterns are joined
            raise ValueError(f"{pattern!r} has a capturing group: write (?:...)")
        if compiled.flags & ~re.compile(b"").flags or compiled.match(b""):
            raise ValueError(f"{pattern!r} matches the empty line, or begins with flags")
        parts.append(b"(?:" + pattern.encode() + b")")
    if len(parts) > MAX_PATTERNS or any(len(part) > MAX_PATTERN_CHARS for part in parts):
        raise ValueError(f"there can be {MAX_PATTERNS} patterns of {MAX_PATTERN_CHARS} characters")
    return re.compile(b"|".join(parts)) if parts else None


def redact(line: bytes, pattern: re.Pattern[bytes] | None) -> bytes:
    """Return `line` with every match replaced by REDACTED."""
    return line if pattern is None else pattern.sub(REDACTED, line)
