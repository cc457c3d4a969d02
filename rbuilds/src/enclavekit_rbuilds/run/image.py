# SPDX-License-Identifier: Apache-2.0
"""What an image says about how it wants to be run.

All of it is from the metadata section, which is neither measured nor signed: it sets defaults, and which hosts the
proxies lead to is printed at each start. What the enclave may reach is decided inside, by what is measured.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import msgspec
from enclavekit_core.errors import InputError
from enclavekit_eif.size import Size, size_of_eif

from enclavekit_rbuilds.run.model import Egress, Ingress

DEFAULT_CPUS = 2  # one core with two threads: the least that a Nitro host with hyperthreading gives
MAX_PORT = 65535
MAX_VSOCK_PORT = 0xFFFFFFFE
MAX_RESOLVERS = 3  # MAXNS of resolv.h: no C library takes more of a resolv.conf


class Resources(msgspec.Struct, frozen=True):
    memory_mib: int | None = None
    cpus: int | None = None
    cid: int | None = None


class OutboundPorts(msgspec.Struct, frozen=True):
    """The parent's vsock ports for what leaves by the image's policy."""

    vsock_port: int
    dns_ports: tuple[int, ...] = ()


class Network(msgspec.Struct, frozen=True):
    egress: tuple[Egress, ...] = ()
    """Ports of the parent that lead to one place each; of images whose programs connect to them by themselves."""
    outbound: OutboundPorts | None = None
    insecure_learn: bool = False
    """Its policy lets everything out."""
    ingress: tuple[Ingress, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    path: str
    """Absolute."""
    size: Size
    """What it takes, with the arithmetic."""
    arch: str
    name: str
    resources: Resources
    network: Network
    services: tuple[str, ...]
    """Of ours, that it runs beside the app."""
    kernel: str
    """Name and version as the builder gave them; empty if it did not."""
    nitro_capable: bool | None
    """Whether Nitro can boot the kernel, as the builder knew; None if nobody has looked."""


def read_image(path: str) -> Image:
    """Read an image: its metadata, and its ramdisks for what they take. Raises InputError."""
    from enclavekit_eif.reader import arch_name, read_eif

    with read_eif(path) as eif:
        return parse_image(os.path.abspath(path), size_of_eif(eif), arch_name(eif), eif.metadata or {})


def parse_image(path: str, size: Size, arch: str, metadata: dict[str, Any]) -> Image:
    """Return the image's wishes from its metadata. Raises InputError if a key of ours has a wrong form. Pure."""
    custom = metadata.get("CustomMetadata")
    custom = custom if isinstance(custom, dict) else {}
    kernel = custom.get("kernel")
    kernel = kernel if isinstance(kernel, dict) else {}
    capable = kernel.get("nitro-capable")
    try:
        resources = msgspec.convert(custom.get("resources") or {}, Resources)
        network = msgspec.convert(custom.get("network") or {}, Network)
        services = msgspec.convert(custom.get("services") or (), tuple[str, ...])
    except msgspec.ValidationError as exc:
        raise InputError("use the metadata of", path, str(exc)) from exc
    _check(path, resources, network)
    name = metadata.get("ImageName")
    return Image(
        path=path,
        size=size,
        arch=arch,
        name=name if isinstance(name, str) and name else os.path.basename(path).removesuffix(".eif") or "enclave",
        resources=resources,
        network=network,
        services=services,
        kernel=" ".join(str(kernel[key]) for key in ("name", "version") if kernel.get(key)),
        nitro_capable=capable if isinstance(capable, bool) else None,
    )


def _check(path: str, resources: Resources, network: Network) -> None:
    for name in ("memory_mib", "cpus", "cid"):
        value = getattr(resources, name)
        if value is not None and value < 0:
            raise InputError("use the metadata of", path, f"resources.{name} is negative")
    for away in network.egress:
        if not away.host or not away.host.isprintable() or away.host.startswith("-") or " " in away.host:
            raise InputError("use the metadata of", path, f"{away.host!r} in network.egress is not a host")
    rules: tuple[Egress | Ingress, ...] = (*network.egress, *network.ingress)
    for rule in rules:
        if not 0 < rule.port <= MAX_PORT or not 0 < rule.vsock_port <= MAX_VSOCK_PORT:
            raise InputError("use the metadata of", path, f"network rule {rule} has a port out of range")
    outbound = network.outbound
    parent_ports = [] if outbound is None else [outbound.vsock_port, *outbound.dns_ports]
    if not all(0 < port <= MAX_VSOCK_PORT for port in parent_ports) or len(parent_ports) > 1 + MAX_RESOLVERS:
        raise InputError("use the metadata of", path, "a port of network.outbound is out of range")
    for kind, ports in (
        ("parent's vsock", [*parent_ports, *(rule.vsock_port for rule in network.egress)]),
        ("ingress", [rule.port for rule in network.ingress]),
    ):
        if len(set(ports)) != len(ports):
            raise InputError("use the metadata of", path, f"an {kind} port is there twice")
