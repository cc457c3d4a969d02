# SPDX-License-Identifier: Apache-2.0
"""What is counted, in Prometheus's text format. Pure.

Source: Prometheus documentation, "Exposition formats", text format 0.0.4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

PREFIX = "ra_web_srv_"


@dataclass(slots=True)
class HttpCounters:
    answers: Counter[int] = field(default_factory=Counter)
    """By status, since the start."""

    def count(self, status: int) -> None:
        self.answers[status] += 1


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: str
    """`counter` or `gauge`."""
    help: str
    samples: tuple[tuple[str, float], ...]
    """Labels as they are written, e.g. `{status="200"}` or nothing, and the value."""


def render_metrics(metrics: Iterable[Metric]) -> str:
    """Return the page."""
    lines = []
    for metric in metrics:
        name = PREFIX + metric.name
        lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
        lines += [f"{name}{labels} {value:.10g}" for labels, value in metric.samples]
    return "\n".join(lines) + "\n"
