# SPDX-License-Identifier: Apache-2.0
"""One thing that a preflight found: what, how bad, why, and what helps. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from enclavekit_rbuilds.run.image import DEFAULT_CPUS

Severity = Literal["ok", "note", "warning", "error"]
# how nitro-cli gets onto a host
INSTALL = "sudo dnf install aws-nitro-enclaves-cli (Amazon Linux 2023), or build it from its repository elsewhere"
SEVERITIES: tuple[Severity, ...] = ("ok", "note", "warning", "error")


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    """error: running fails; warning: it may, or costs something; note: good to know."""
    id: str
    """Stable, for machines, e.g. `nitro-device-missing`."""
    text: str
    """What is so, one line, with the numbers."""
    cause: str = ""
    cure: str = ""


def ok(ident: str, text: str) -> Finding:
    return Finding("ok", ident, text)


def worst(findings: list[Finding]) -> Severity:
    return max((finding.severity for finding in findings), key=SEVERITIES.index, default="ok")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to run: from an image and flags, or nothing in particular."""

    memory_mib: int | None = None
    cpus: int = DEFAULT_CPUS
    cid: int | None = None
    has_network: bool = False
    arch: str | None = None
