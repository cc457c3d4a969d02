# SPDX-License-Identifier: Apache-2.0
"""What `--json` tells: one record a step. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from enclavekit_rbuilds.console.masking import mask_words
from enclavekit_rbuilds.console.plan import Step

Status = Literal["done", "failed", "skipped", "planned", "noted"]


@dataclass(frozen=True, slots=True)
class Result:
    """One step. `planned` is a dry run's; `noted` are steps that something else does."""

    command: str
    step: str
    argv: list[str]
    """Secrets masked; empty where nothing is to be run."""
    status: Status
    exit_code: int | None
    """None if nothing ran; 128 + n if signal n ended it."""
    seconds: float
    output: str | None
    """The file that it makes."""
    note: str | None
    error: str | None
    """The last line of a failed step on stderr."""


def make_result(
    command: str, step: Step, status: Status, *, exit_code: int | None = None, seconds: float = 0.0, error: str = ""
) -> Result:
    return Result(
        command=command,
        step=step.name,
        argv=mask_words(step.argv),
        status=status,
        exit_code=exit_code,
        seconds=round(seconds, 3),
        output=step.output or None,
        note=step.note or None,
        error=error or None,
    )


def render_report(results: Sequence[Result], failure: str | None) -> str:
    """Return the report; `failure` is the line that ended the run."""
    return json.dumps({"steps": [asdict(result) for result in results], "failure": failure}, indent=2)
