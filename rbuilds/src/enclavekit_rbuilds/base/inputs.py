# SPDX-License-Identifier: Apache-2.0
"""What a build was made of, one record per input: for the lock, the SBOM and the provenance statement."""

from __future__ import annotations

from typing import Literal

import msgspec


class Input(msgspec.Struct, frozen=True, omit_defaults=True):
    """One input of a build, by content."""

    kind: Literal["debian", "wheel", "kernel", "app", "own", "file"]
    name: str
    version: str
    sha256: str
    """Hexadecimal; of the file as fetched, or of the canonical listing of a directory."""
    size: int = 0
    """Bytes; 0 where it means nothing."""
    source: str = ""
    """Where it came from, in words that hold on every machine: a suite, a file name, a digest."""
