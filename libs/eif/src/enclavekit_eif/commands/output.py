# SPDX-License-Identifier: Apache-2.0
"""How the subcommands print: JSON for machines, aligned columns for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from enclavekit_eif.difference import printable


def print_json(value: Any) -> None:
    """Print JSON in UTF-8 whatever the locale, as nitro-cli does."""
    sys.stdout.flush()
    sys.stdout.buffer.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def print_text(text: str) -> None:
    """Print a line whatever the locale and whatever is in it: what cannot be shown is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(printable(text).encode(encoding, "backslashreplace").decode(encoding))


def print_columns(rows: Sequence[Sequence[str]], gap: str = "  ") -> None:
    """Print rows of equal length in columns; the last one is not padded."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)] if rows else []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print_text(gap.join([*cells, row[-1]]).rstrip())
