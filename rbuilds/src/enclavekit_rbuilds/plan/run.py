# SPDX-License-Identifier: Apache-2.0
"""Run a plan step by step, or say what running it would do.

Nothing is remembered of a build but what its steps put into the cache: whoever is killed starts again and finds there
what was finished.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from enclavekit_core.errors import EnclavekitError

from enclavekit_rbuilds.base.cache import CacheUse, NotCachedError, hold, only_look, record_uses
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.plan.steps import (
    Forecast,
    Job,
    PlanResult,
    Product,
    State,
    Step,
    StepRecord,
    key_of_step,
    order_steps,
)

MAX_ATTEMPTS = 3  # of a step whose entry another build's eviction took away between making and holding it


def run_plan(
    steps: Sequence[Step], progress: Progress, finish: Callable[[PlanResult], None] | None = None
) -> PlanResult:
    """Run all steps and return what they made; `finish` runs while everything in the cache is still held.

    Raises: what a step raises, an EnclavekitError with the step's name in its message.
    """
    result = PlanResult({})
    with contextlib.ExitStack() as held:
        for step in order_steps(steps):
            started = time.monotonic()
            job = _job(step, result.products)
            with _named(step), progress.details():
                product, uses = _run_step(step, job, held)
            state: State = product.state or ("made" if any(use.made for use in uses) else "reused")
            key = product.key or job.key
            result.products[step.name] = Product(product.value, key, state)
            seconds = round(time.monotonic() - started, 3)
            result.records.append(StepRecord(step.name, step.what, state, seconds, key))
            progress.done(f"{step.name}: {state} ({step.what})", seconds)
        if finish is not None:
            finish(result)
    return result


def forecast_plan(steps: Sequence[Step]) -> list[Forecast]:
    """Return what `run_plan` would do; nothing is made, fetched or written. Raises as `run_plan`."""
    forecasts: list[Forecast] = []
    products: dict[str, Product] = {}
    for step in order_steps(steps):
        key = ""
        if not all(name in products for name in step.inputs):
            forecasts.append(Forecast(step.name, step.what, step.inputs, "depends"))
            continue
        job = _job(step, products)
        try:
            with only_look(), _named(step):
                product = step.make(job)
        except NotCachedError:
            forecasts.append(Forecast(step.name, step.what, step.inputs, "make", job.key))
            continue
        key = product.key or job.key
        products[step.name] = Product(product.value, key)
        forecasts.append(
            Forecast(step.name, step.what, step.inputs, "check" if product.state == "checked" else "reuse", key)
        )
    return forecasts


def _run_step(step: Step, job: Job, held: contextlib.ExitStack) -> tuple[Product, list[CacheUse]]:
    """Make the step's product and hold what it took from the cache until the plan has ended."""
    for _ in range(MAX_ATTEMPTS):
        with record_uses() as uses:
            product = step.make(job)
        with contextlib.ExitStack() as these:
            if all(these.enter_context(hold(use.path)) for use in uses):
                held.push(these.pop_all())
                return product, uses
    raise RuntimeError(f"the cache loses what {step.name} puts there")  # somebody empties it in a loop


def _job(step: Step, products: dict[str, Product]) -> Job:
    key = key_of_step(step, [products[name].key for name in step.inputs])
    return Job(key, {name: products[name].value for name in step.inputs})


@contextlib.contextmanager
def _named(step: Step) -> Iterator[None]:
    try:
        yield
    except EnclavekitError as exc:
        exc.args = (f"{exc} (step {step.name})",)
        raise
