# SPDX-License-Identifier: Apache-2.0
"""A build's steps as data: what each takes, what decides its output, and their order. Pure.

A step's key is the hash over its name, its facts and the keys of its inputs. Where a step can say by content what it
made (a kernel's hash, an image's digest), that replaces its key for those who take it: a kernel built anew to the same
bytes changes nothing behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

# reused: taken from the cache; made: not there, so made; checked: looked at in every build, since only that tells
# whether it has changed
State = Literal["reused", "made", "checked"]


@dataclass(frozen=True, slots=True)
class Product:
    """What a step made."""

    value: Any
    """For the steps that take it."""
    key: str = ""
    """What it is by content; empty: the step's key says it."""
    state: State | None = None
    """How it came about; None: as the cache was used."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a step gets when it is its turn."""

    key: str
    inputs: Mapping[str, Any]
    """Step name -> value of its product, for the inputs that the step has declared."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step."""

    name: str
    what: str
    """What it does, in words, for people."""
    inputs: tuple[str, ...]
    """Names of the steps whose products it takes; these come first."""
    facts: tuple[str, ...]
    """Everything else that decides its output."""
    make: Callable[[Job], Product]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """How a step went, for people and for `--json`."""

    name: str
    what: str
    state: State
    seconds: float
    key: str = ""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a step would do."""

    name: str
    what: str
    inputs: tuple[str, ...]
    state: Literal["reuse", "make", "check", "depends"]
    """`depends`: on what the steps before it make, which is not known yet."""
    key: str = ""


@dataclass(frozen=True, slots=True)
class PlanResult:
    """What a plan made, and how."""

    products: dict[str, Product]
    records: list[StepRecord] = field(default_factory=list)


def order_steps(steps: Sequence[Step]) -> list[Step]:
    """Return `steps` with inputs first, else in the order given. Raises ValueError for a wrong plan: our bug."""
    by_name = {step.name: step for step in steps}
    if len(by_name) != len(steps):
        raise ValueError("two steps have one name")
    for step in steps:
        if unknown := [name for name in step.inputs if name not in by_name]:
            raise ValueError(f"{step.name} takes what no step makes: {unknown[0]}")
    ordered: dict[str, Step] = {}
    while len(ordered) < len(steps):
        ready = [step for step in steps if step.name not in ordered and set(step.inputs) <= set(ordered)]
        if not ready:
            raise ValueError("steps wait for each other: " + ", ".join(sorted(set(by_name) - set(ordered))))
        ordered[ready[0].name] = ready[0]
    return list(ordered.values())


def key_of_step(step: Step, inputs: Sequence[str]) -> str:
    """Return the step's key; `inputs` are the keys of its inputs in their order."""
    digest = hashlib.sha256()
    for group in ((step.name,), step.facts, inputs):
        digest.update(len(group).to_bytes(8, "big"))
        for part in group:
            raw = part.encode("utf-8", "surrogateescape")
            digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()[:24]  # as the cache's keys
