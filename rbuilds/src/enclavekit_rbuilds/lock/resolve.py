# SPDX-License-Identifier: Apache-2.0
"""Find out what a build would be made of, without writing an image: the steps before it, run and asked."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import msgspec

from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.framework import base_stage
from enclavekit_rbuilds.kernel.debian import newest_version
from enclavekit_rbuilds.lock.enforce import CHECKED, inputs_of_step
from enclavekit_rbuilds.lock.model import Lock, lock_of
from enclavekit_rbuilds.manifest.network import plan_network
from enclavekit_rbuilds.plan.framework import framework_services
from enclavekit_rbuilds.plan.run import run_plan
from enclavekit_rbuilds.plan.steps import PlanResult

if TYPE_CHECKING:
    from enclavekit_rbuilds.build import BuildRequest


def resolve_lock(request: BuildRequest, progress: Progress, *, offline: bool = False) -> Lock:
    """Return the lock for `request`. Raises EnclavekitError.

    Args: offline: take the framework that the cache has, as a build would, instead of asking the mirror what is newest.
    """
    from enclavekit_rbuilds.build import plan_build

    network = plan_network(request.network, request.services, request.source)
    services = framework_services(
        request.services, network, request.network.rules, request.kernel, request.arch, progress
    )
    asks = not offline and request.framework_rootfs is None
    if asks and (request.origin is None or request.origin.kind != "archive"):
        with progress.step("what Debian's mirror offers"):
            pins = base_stage.candidates(base_stage.wish_for(request.arch, services), origin=request.origin)
            kernel = request.kernel
            if kernel.source == "debian" and kernel.version is None:
                kernel = msgspec.structs.replace(kernel, version=newest_version(request.arch, request.origin))
        request = dataclasses.replace(request, pins=pins, kernel=kernel)
    found: list[Input] = []

    def collect(done: PlanResult) -> None:
        for name, product in done.products.items():
            found.extend(inputs_of_step(name, product.value, request.context))

    with contextlib.ExitStack() as scope:
        steps = plan_build(request, progress, scope)
        run_plan([step for step in steps if step.name in {*CHECKED, "framework-base"}], progress, collect)
    return lock_of(request.arch, services, found)
