# SPDX-License-Identifier: Apache-2.0
"""Tables of what an enclave lists, fit to be shown: one that lies must not move the cursor of our terminal."""

from __future__ import annotations

from collections.abc import Sequence

from enclavekit_core.errors import ConfigError

MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86400


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return lines with aligned columns; the last is as wide as it is."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]) for line in lines
    )


def shown(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text) or "-"


def age(seconds: int) -> str:
    for unit, length in (("d", DAY_S), ("h", HOUR_S), ("m", MINUTE_S)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def check_job(text: str) -> str:
    """Raises ConfigError if it is not what a job is called."""
    from enclavekit_pipeline.wire.job_messages import JOB_ID

    if not JOB_ID.fullmatch(text):
        raise ConfigError(repr(text), "", "it is no job: they are called j1, j2 and so on")
    return text
