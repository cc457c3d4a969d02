# SPDX-License-Identifier: Apache-2.0
"""The steps `kernel`, `framework-base` and `framework`: what has nothing to do with the app."""

from __future__ import annotations

import os
from collections.abc import Mapping

import msgspec

from enclavekit_rbuilds.base.cache import is_only_looking, key_of
from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.framework import assemble
from enclavekit_rbuilds.framework.closure import EGRESS, EGRESS_BY
from enclavekit_rbuilds.framework.origin import Origin
from enclavekit_rbuilds.kernel.diversion import LANGUAGES, Language, Traffic, choose_language
from enclavekit_rbuilds.kernel.sources import Kernel, find_kernel, fit_compression
from enclavekit_rbuilds.manifest.model import KernelChoice
from enclavekit_rbuilds.manifest.network import NetworkPlan
from enclavekit_rbuilds.plan.source import hash_file
from enclavekit_rbuilds.plan.steps import Job, Product, Step


def kernel_step(choice: KernelChoice, arch: str, compression: str, progress: Progress) -> Step:
    """Return the step; its product is known by the bytes of the kernel and its modules.

    A kernel that does not read `compression` decides another for the ramdisks, which is said here.
    """

    def make(_: Job) -> Product:
        kernel = find_kernel(choice, arch, progress)
        files = [kernel.path, *kernel.modules, *(name for names in kernel.egress_modules.values() for name in names)]
        content = [part for path in files for part in (os.path.basename(path), hash_file(path))]
        about = (kernel.name, kernel.version, str(kernel.nitro_capable), kernel.cmdline or "")
        key = key_of([*about, *content])
        if (note := fit_compression(kernel, compression)[1]) and not is_only_looking():
            progress.note(note)
        return Product(kernel, key, None if choice.source == "debian" else "checked")

    named = choice.path or {"debian": "Debian's, for the emulator only"}.get(choice.source, choice.source)
    facts = (choice.source, choice.path or "", choice.version or "", choice.sha256 or "", arch)
    return Step("kernel", named, (), facts, make)


def framework_services(
    services: frozenset[str],
    network: NetworkPlan,
    rules: Language | None,
    choice: KernelChoice,
    arch: str,
    progress: Progress,
) -> frozenset[str]:
    """Return all that the framework is to hold something for: `services`, and what the network needs.

    Which program puts egress rules in depends on the kernel, unless `rules` says it; a kernel that cannot have them
    is known here, before anything is made. Raises CommandError, InputError.
    """
    services = services | network.services
    if network.egress is None:
        return services
    if choice.source == "debian":  # its package, which need not be here yet, has both
        language = rules or LANGUAGES[0]
    else:
        kernel = find_kernel(choice, arch, progress)
        language = choose_language(kernel, Traffic(network.egress.has_udp, network.egress.ipv6), rules)
        if kernel.config is None and rules is None and not is_only_looking():
            unknown = f"nobody knows whether the kernel ({kernel.name}) has nf_tables, by which egress rules are put in"
            progress.note(f"{unknown}; if it has iptables only, network needs `rules: iptables`")
    return services - {EGRESS} | {EGRESS_BY[language]}


def framework_steps(
    arch: str,
    compression: str,
    services: frozenset[str],
    progress: Progress,
    *,
    ready_root: str | None = None,
    pins: Mapping[str, Input] | None = None,
    origin: Origin | None = None,
) -> list[Step]:
    """Return `framework-base`, unless there is a ready root, and `framework`."""

    def make_base(_: Job) -> Product:
        base = assemble.base_for(arch, services, progress, pins=pins, origin=origin)
        return Product(base, base.digest)

    def make(job: Job) -> Product:
        kernel: Kernel = job.inputs["kernel"]
        fitting, _ = fit_compression(kernel, compression)
        framework = assemble.build_framework(
            kernel, arch, fitting, progress, ready_root=ready_root, services=services, pins=pins, origin=origin
        )
        entry = os.path.basename(os.path.dirname(framework.ramdisk.path))
        return Product(framework, key_of([entry, msgspec.json.encode(framework.packages, order="sorted")]))

    named = " ".join(sorted(services)) or "nothing"
    pinned = "" if pins is None else msgspec.json.encode(sorted(pins.items())).decode()
    base_facts = (arch, named, pinned, repr(origin))
    what = f"framework ramdisk for {named}"
    if ready_root is not None:
        return [
            Step("framework", f"{what} from {ready_root}", ("kernel",), (compression, *base_facts, ready_root), make)
        ]
    return [
        Step("framework-base", "Debian's packages and the locked wheels", (), base_facts, make_base),
        Step("framework", what, ("kernel", "framework-base"), (compression, *base_facts), make),
    ]
