# SPDX-License-Identifier: Apache-2.0
"""From an image and what was asked for to a launch: flags, then the image's wishes, then what it needs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.run.cids import check_cid
from enclavekit_rbuilds.run.image import DEFAULT_CPUS, Image
from enclavekit_rbuilds.run.model import BackendName, LaunchPlan, Outbound, Publish, Resolver
from enclavekit_rbuilds.run.rules import check_bind, check_publish
from enclavekit_rbuilds.run.sizing import default_memory_mib, memory_sum

MAX_NAME_CHARS = 255


@dataclass(frozen=True, slots=True)
class Wishes:
    """The flags; None where one was not given."""

    name: str | None = None
    cid: int | None = None
    memory_mib: int | None = None
    cpus: int | None = None
    debug: bool = False
    attach: bool = False
    proxies: bool = True
    bind: str = "127.0.0.1"
    publish: Sequence[Publish] = ()
    machine: str = ""
    resolvers: Sequence[tuple[str, int]] = ()
    """(address, port), for the enclave's questions."""
    allow_destinations: Sequence[str] = ()


def plan_launch(image: Image, backend: BackendName, wishes: Wishes) -> LaunchPlan:
    """Return the plan. Raises InputError for what cannot work, before anything is started."""
    if backend == "nitro-cli" and image.nitro_capable is False:
        raise InputError(
            "run",
            image.path,
            f"its kernel ({image.kernel}) cannot find Nitro's devices and is for the emulator only; build the image "
            "with another kernel (rbuilds kernel), or run it with --backend nitro-emu",
        )
    if wishes.machine and backend != "nitro-emu":
        raise InputError("use --machine", wishes.machine, f"{backend} runs real enclaves; it is for nitro-emu")
    wanted = image.resources
    memory_mib = wishes.memory_mib if wishes.memory_mib is not None else wanted.memory_mib
    if memory_mib is None:
        memory_mib = default_memory_mib(image.size, len(image.services))
    elif memory_mib < image.size.needed_mib:
        whose = "--memory" if wishes.memory_mib is not None else "resources.memory_mib of the image"
        reason = f"{whose} {memory_mib} MiB is less than it needs: {memory_sum(image.size)}"
        raise InputError("run", image.path, reason)
    cpus = wishes.cpus if wishes.cpus is not None else wanted.cpus or DEFAULT_CPUS
    if cpus < 1:
        raise InputError("run", image.path, f"{cpus} CPUs are too few")
    name = wishes.name if wishes.name is not None else image.name
    if not name or len(name) > MAX_NAME_CHARS or not name.isprintable() or name.startswith("-"):
        raise InputError("use enclave name", repr(name), "it is empty, too long, or cannot be typed")
    ingress = image.network.ingress if wishes.proxies else ()
    check_publish(wishes.publish, ingress)
    return LaunchPlan(
        backend=backend,
        eif=image.path,
        name=name,
        memory_mib=memory_mib,
        cpus=cpus,
        debug=wishes.debug or wishes.attach,
        attach=wishes.attach,
        cid=0 if wishes.cid is None else check_cid(wishes.cid),
        first_cid=wanted.cid or 0,
        egress=image.network.egress if wishes.proxies else (),
        outbound=_outbound(image, wishes) if wishes.proxies else None,
        ingress=ingress,
        bind=check_bind(wishes.bind),
        publish=tuple(wishes.publish),
        machine=wishes.machine,
    )


def _outbound(image: Image, wishes: Wishes) -> Outbound | None:
    ports = image.network.outbound
    if ports is None:
        if wishes.allow_destinations:
            reason = f"{image.path} has no egress rules: nothing asks this host to connect"
            raise InputError("use --allow-destination", wishes.allow_destinations[0], reason)
        return None
    resolvers = (
        Resolver(host, port, vsock_port)
        for (host, port), vsock_port in zip(wishes.resolvers, ports.dns_ports, strict=False)
    )
    return Outbound(ports.vsock_port, tuple(resolvers), tuple(wishes.allow_destinations))
