# SPDX-License-Identifier: Apache-2.0
"""Hold a build to its lock: each step that takes something from outside is checked as soon as it has it.

The first difference ends the build, before the image is begun; the message names the input and both values.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec
from enclavekit_core.errors import InputError

from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.lock.dockerfile import dockerfile_inputs
from enclavekit_rbuilds.lock.model import FILE_NAME, Lock, compare_inputs
from enclavekit_rbuilds.manifest.model import KernelChoice
from enclavekit_rbuilds.plan.image import about_kernel
from enclavekit_rbuilds.plan.steps import Job, Product, Step

BUILT_IMAGE = "image digest"  # what plan.app calls the digest of an image that an engine has built


def inputs_of_step(name: str, value: Any, context: str | None) -> list[Input]:
    """Return what the product of a step says it was made of, as far as a lock is concerned.

    Args: context: what COPY sees; None: the Dockerfile's directory.
    """
    if name == "kernel":
        about = about_kernel(value)
        return [Input("kernel", about["name"], about["version"], about["sha256"])]
    if name == "app":
        # an engine's image differs with the engine; its Dockerfile, context and base images stand for it
        return [one for one in value.inputs if one.source != BUILT_IMAGE]
    if name == "app-source":
        if value.image is None:
            return []
        return dockerfile_inputs(
            value.name, context or os.path.dirname(os.path.abspath(value.name)), value.image.engine
        )
    if name == "framework":
        return list(value.inputs)
    return []


def pin_kernel(choice: KernelChoice, lock: Lock) -> KernelChoice:
    """Return `choice` with the version that the lock has; only Debian's can be fetched by it."""
    versions = [one.version for one in lock.inputs if one.kind == "kernel"]
    if choice.source != "debian" or choice.version is not None or not versions:
        return choice
    return msgspec.structs.replace(choice, version=versions[0])


CHECKED: dict[str, Callable[[Input], bool]] = {
    "kernel": lambda one: one.kind == "kernel",
    "app": lambda one: one.kind == "app" and one.source != "base image",
    "app-source": lambda one: one.source in ("Dockerfile", "context", "base image"),
    "framework": lambda one: one.kind in ("debian", "wheel", "own") or one.source == "kernel module",
}


def enforce(
    steps: Sequence[Step], lock: Lock, output: str, arch: str, services: Collection[str], context: str | None = None
) -> list[Step]:
    """Return `steps`, each ending the build if what it took is not what `lock` has. Raises InputError."""
    if lock.arch != arch:
        raise InputError("build", output, f"the architecture is {lock.arch} in {FILE_NAME}, {arch} here")
    if set(lock.services) != set(services):
        was, now = (", ".join(sorted(names)) or "none" for names in (lock.services, services))
        raise InputError("build", output, f"the services are {was} in {FILE_NAME}, {now} here")
    return [_checked(step, lock, output, context) if step.name in CHECKED else step for step in steps]


def _checked(step: Step, lock: Lock, output: str, context: str | None) -> Step:
    def make(job: Job) -> Product:
        product = step.make(job)
        locked = [one for one in lock.by_key().values() if CHECKED[step.name](one)]
        differences = compare_inputs(locked, inputs_of_step(step.name, product.value, context))
        if differences:
            more = f" ({len(differences) - 1} more inputs differ)" if len(differences) > 1 else ""
            raise InputError("build", output, differences[0] + more)
        return product

    return dataclasses.replace(step, make=make)
