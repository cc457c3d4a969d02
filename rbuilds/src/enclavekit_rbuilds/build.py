# SPDX-License-Identifier: Apache-2.0
"""`rbuilds build`: the plan from an app to an enclave image, and its result.

The image is kernel, command line, ramdisk 0 (framework; PCR1 with the kernel) and ramdisk 1 (app and policy; PCR2).
Nothing in it depends on when, where or by whom it is built.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from enclavekit_core.errors import ConfigError, InputError
from enclavekit_core.runtime_config import Schema

from enclavekit_rbuilds.app.image_config import Overrides
from enclavekit_rbuilds.base.cache import sweep
from enclavekit_rbuilds.base.cache_store import evict
from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.evidence.write import EvidenceChoice, write_evidence
from enclavekit_rbuilds.framework.assemble import Framework
from enclavekit_rbuilds.framework.origin import Origin
from enclavekit_rbuilds.init_c.build import LOST, check_alone
from enclavekit_rbuilds.init_c.steps import init_step
from enclavekit_rbuilds.lock import Lock, enforce, pin_kernel
from enclavekit_rbuilds.manifest.attestation import File
from enclavekit_rbuilds.manifest.clients import Client
from enclavekit_rbuilds.manifest.control import ControlGrant
from enclavekit_rbuilds.manifest.model import SERVICES, KernelChoice, Network, Resources, Signing
from enclavekit_rbuilds.manifest.network import plan_network
from enclavekit_rbuilds.plan.app import AppRamdisk, AppRequest, app_step
from enclavekit_rbuilds.plan.framework import framework_services, framework_steps, kernel_step
from enclavekit_rbuilds.plan.image import Image, ImageRequest, image_steps
from enclavekit_rbuilds.plan.run import forecast_plan, run_plan
from enclavekit_rbuilds.plan.source import source_step
from enclavekit_rbuilds.plan.steps import Forecast, PlanResult, Step, StepRecord


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """What to build; exactly one of `dockerfile`, `archive` and `rootfs` is set."""

    output: str
    dockerfile: str | None = None
    context: str | None = None
    """Directory that a Dockerfile's COPY sees; default: the Dockerfile's own."""
    archive: str | None = None
    rootfs: str | None = None
    engine: str = ""
    build_args: tuple[str, ...] = ()
    """NAME=value for the Dockerfile's ARG, or NAME for the value in the environment."""
    target: str = ""
    """The Dockerfile's stage to build; empty: the last."""
    keep_owners: bool = False
    """Of a directory: files keep the uid and gid that they have on disk."""
    no_engine_cache: bool = False
    """Let the engine run every step of the Dockerfile again."""
    init: str = "python"
    """Or `c`: a small static one that runs the app alone."""
    kernel: KernelChoice = field(default_factory=KernelChoice)
    cmdline: str | None = None
    framework_rootfs: str | None = None
    pins: Mapping[str, Input] | None = None
    """Debian package -> the very package to take; None: what the mirror offers."""
    origin: Origin | None = None
    """Where the framework's base comes from; None: whatever works here."""
    lock: Lock | None = None
    """Anything that is not in it ends the build; it decides the pins."""
    clients: tuple[Client, ...] = ()
    name: str | None = None
    version: str = "1.0"
    overrides: tuple[Overrides, ...] = ()
    """Applied in this order."""
    services: frozenset[str] = frozenset(SERVICES)
    network: Network = field(default_factory=Network)
    runtime_config: Schema = field(default_factory=dict)
    """What the values of a deployment may be."""
    attestation: tuple[File, ...] = ()
    """How the attestation server serves, as the files that it reads; none: as by default."""
    proxied_port: int | None = None
    """Of these files' unit: no ingress may have it."""
    logs: bytes = b""
    """How PID 1 keeps them, as the file that it reads; empty: as by default."""
    control: tuple[ControlGrant, ...] = ()
    resources: Resources = field(default_factory=Resources)
    signing: Signing | None = None
    arch: str = "x86_64"
    compression: str = "zstd"
    source: str = "the command line"
    """What to name in complaints about these values: the manifest, if there is one."""
    evidence: EvidenceChoice | None = field(default_factory=EvidenceChoice)
    """What to say in the files beside the image; None: write none."""


@dataclass(frozen=True, slots=True)
class BuildResult:
    """What was built, for people and for `--json`."""

    eif: str
    size: int
    measurements: dict[str, str]
    kernel: dict[str, Any]
    parts: dict[str, dict[str, int]]
    """Part -> bytes as stored and, for ramdisks, unpacked: what they take of the enclave's memory."""
    packages: dict[str, str] = field(default_factory=dict)
    services: list[str] = field(default_factory=list)
    network: dict[str, Any] = field(default_factory=dict)
    resources: dict[str, int] = field(default_factory=dict)
    inputs: list[Input] = field(default_factory=list)
    """All that the image was made of, by content."""
    steps: list[StepRecord] = field(default_factory=list)
    evidence: list[str] = field(default_factory=list)
    """The files that say what the image is and what it was made of."""


def run_build(request: BuildRequest, progress: Progress) -> BuildResult:
    """Build the image. Raises EnclavekitError; then there is no output, and what was there before is untouched."""
    check_request(request)
    sweep()
    started = time.time()
    results: list[BuildResult] = []
    with contextlib.ExitStack() as scope:
        steps = plan_build(request, progress, scope)
        run_plan(steps, progress, lambda done: results.append(_result(request, done, progress)))
    for entry in evict():
        progress.note(f"the cache was full: {entry.name}-{entry.key} was not used for the longest time, and went")
    return replace(results[0], evidence=write_evidence(results[0].inputs, request, request.output, started))


def forecast_build(request: BuildRequest) -> list[Forecast]:
    """Return what `run_build` would do, without doing any of it. Raises EnclavekitError for what would fail at once."""
    check_request(request)
    with contextlib.ExitStack() as scope:
        return forecast_plan(plan_build(request, Progress(io.StringIO()), scope))  # nothing happens: nothing to tell


def check_request(request: BuildRequest) -> None:
    """Refuse what contradicts itself before anything is made. Raises ConfigError, InputError."""
    target = os.path.abspath(request.output)
    if os.path.isdir(target) or not os.path.isdir(os.path.dirname(target)):
        raise InputError("write", request.output, "it is a directory" if os.path.isdir(target) else "no such directory")
    if any(client.allow for client in request.clients) and "pipeline" not in request.services:
        raise ConfigError(request.source, "services", "clients are listed, but without pipeline nobody can enter")
    if request.attestation and "attestation" not in request.services:
        raise ConfigError(request.source, "attestation", "it is about a service that the image does not have")
    if request.init == "c":
        if request.logs:
            raise ConfigError(request.source, "logs", "the small init of --init c keeps none")
        if request.control:
            raise ConfigError(request.source, "control", "the small init of --init c takes no requests")
        check_alone(
            request.source,
            services=request.services,
            clients=request.clients,
            network=[*request.network.egress, *request.network.deny, *request.network.ingress]
            or ([True] if request.network.insecure_learn else []),
            runtime_config=request.runtime_config,
        )


def plan_build(request: BuildRequest, progress: Progress, scope: contextlib.ExitStack) -> list[Step]:
    """Return the steps; what fails for the builder's own reasons comes before what takes long."""
    network = plan_network(request.network, request.services, request.source, request.proxied_port)
    app = AppRequest(
        arch=request.arch,
        compression=request.compression,
        overrides=request.overrides,
        clients=request.clients,
        services=request.services,
        network=network,
        runtime_config=request.runtime_config,
        attestation=request.attestation,
        logs=request.logs,
        control=request.control,
        keep_owners=request.keep_owners,
        init=request.init,
    )
    custom = {
        **({"init": request.init} if request.init != "python" else {}),
        "services": sorted(request.services),
        "network": network.table(),
        "resources": _resources(request),
    }
    image = ImageRequest(
        output=request.output,
        name=request.name or os.path.splitext(os.path.basename(request.output))[0],
        version=request.version,
        arch=request.arch,
        cmdline=request.cmdline,
        custom=custom,
        signing=request.signing,
    )
    source = source_step(
        scope,
        dockerfile=request.dockerfile,
        context=request.context,
        engine=request.engine,
        archive=request.archive,
        rootfs=request.rootfs,
        fresh=request.no_engine_cache,
        build_args=request.build_args,
        target=request.target,
        arch=request.arch,
    )
    choice = request.kernel if request.lock is None else pin_kernel(request.kernel, request.lock)
    kernel = kernel_step(choice, request.arch, request.compression, progress)
    services = framework_services(
        request.services, network, request.network.rules, request.kernel, request.arch, progress
    )
    if request.init == "c":
        progress.note(f"with the C init there is {LOST}")
    framework = (
        [init_step(request.arch, request.compression)]
        if request.init == "c"
        else framework_steps(
            request.arch,
            request.compression,
            services,
            progress,
            ready_root=request.framework_rootfs,
            pins=request.pins if request.lock is None else request.lock.debian(),
            origin=request.origin,
        )
    )
    steps = [source, kernel, app_step(app, progress), *framework, *image_steps(image)]
    if request.lock is None:
        return steps
    return enforce(steps, request.lock, request.output, request.arch, services, request.context)


def _result(request: BuildRequest, done: PlanResult, progress: Progress) -> BuildResult:
    """Describe what the plan made; called while the cache still holds it."""
    app: AppRamdisk = done.products["app"].value
    framework: Framework = done.products["framework"].value
    image: Image = done.products["signature" if "signature" in done.products else "image"].value
    kernel = done.products["kernel"].value
    for note in app.notes:
        progress.note(note)
    if request.network.insecure_learn:
        progress.note("insecure_learn: this image lets every connection out; its PCR2 is not that of one that does not")
    return BuildResult(
        eif=request.output,
        size=os.stat(request.output).st_size,
        measurements=image.measurements,
        kernel=image.kernel,
        parts={
            "kernel": {"stored": os.stat(kernel.path).st_size},
            "framework": {"stored": framework.ramdisk.size, "unpacked": framework.ramdisk.unpacked},
            "app": {"stored": app.ramdisk.size, "unpacked": app.ramdisk.unpacked},
        },
        packages=framework.packages,
        services=sorted(request.services),
        network=plan_network(request.network, request.services, request.source).table(),
        resources=_resources(request),
        inputs=_inputs(image, framework, app),
        steps=done.records,
    )


def _inputs(image: Image, framework: Framework, app: AppRamdisk) -> list[Input]:
    about = image.kernel
    kernel = Input("kernel", about["name"], about["version"], about["sha256"])
    found = [kernel, *framework.inputs, *app.inputs]
    return sorted(found, key=lambda item: (item.kind, item.name, item.version, item.sha256))


def _resources(request: BuildRequest) -> dict[str, int]:
    resources = request.resources
    values = {"memory_mib": resources.memory_mib, "cpus": resources.cpus, "cid": resources.cid}
    return {name: value for name, value in values.items() if value is not None}
