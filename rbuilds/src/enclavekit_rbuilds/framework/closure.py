# SPDX-License-Identifier: Apache-2.0
"""What a framework must hold for the services that it is to run, and nothing else. Pure but for our own metadata.

A service names our members and Debian packages; the rest follows: members by the dependencies that each declares,
wheels by those dependencies and by the `needs` lines of the lock. Nothing in an enclave is there because of a service
that is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, resources

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.framework.wheel_lock import LockedWheel

ALL_SERVICES = frozenset({"attestation", "files", "pipeline"})
# no services of the manifest: what ingress rules need, what egress rules need where the kernel has nf_tables, or
# iptables only, and what those need that read the name of QUIC; nothing of them runs by itself
NETWORK, EGRESS, EGRESS_IPTABLES, QUIC = "network", "egress", "egress-iptables", "quic"
EGRESS_BY = {"nft": EGRESS, "iptables": EGRESS_IPTABLES}  # language of the kernel's rules -> what they need
OWN_PREFIX = "enclavekit-"
EXTRA = re.compile(r"""extra == ["']([^"']+)["']""")  # of a line of Requires-Dist
ALWAYS = ("enclavekit-enclave-init", "enclavekit-nsm")
# declared by members that have a host's side as well, which needs it; nothing in an enclave imports it
HOST_ONLY = frozenset({"enclavekit-eif"})
IMPORTED_AS = {"enclavekit-ecvrf": "ecvrf"}  # what is of use to anybody has a name of its own
COMMANDS = {  # name in the enclave -> where its main is
    "attest": "enclavekit_attestation.cli:main",
    "enclave-init": "enclavekit_enclave_init.cli:main",
    "fs-monitor": "enclavekit_fs_monitor.cli:main",
    "initctl": "enclavekit_enclave_init.initctl.cli:main",
    "nsm": "enclavekit_nsm.cli:main",
    "pf-proxy": "enclavekit_pf_proxy.cli:main",
    "pipeline": "enclavekit_pipeline.cli:main",
    "ra-web-srv": "enclavekit_ra_web_srv.cli:main",
}


@dataclass(frozen=True, slots=True)
class Service:
    """What one service needs beside what everything needs."""

    members: tuple[str, ...]
    """Our own; `NAME[EXTRA]` with what it declares for that."""
    debian: tuple[str, ...] = ()
    units: tuple[str, ...] = ()


NFT = (  # nft(8), which puts rules in, and the libraries that it is linked with
    *("nftables", "libbsd0", "libedit2", "libgmp10", "libjansson4", "libmd0", "libmnl0", "libnftables1"),
    *("libnftnl11", "libtinfo6", "libxtables12"),
)
IPTABLES = ("iptables", "libip4tc2", "libip6tc2", "libxtables12")  # the same for xtables-legacy-multi(8)
SERVICES = {
    "attestation": Service(("enclavekit-ra-web-srv", "enclavekit-pf-proxy"), units=("pf-ra", "ra-web-srv")),
    "files": Service(("enclavekit-fs-monitor",), ("nats-server",), ("files-ready", "fs-monitor", "nats", "nats-setup")),
    "pipeline": Service(("enclavekit-pipeline",), units=("pipeline",)),
    NETWORK: Service(("enclavekit-pf-proxy",)),
    EGRESS: Service(("enclavekit-pf-proxy[egress]",), NFT),
    EGRESS_IPTABLES: Service(("enclavekit-pf-proxy[egress]",), IPTABLES),
    QUIC: Service(("enclavekit-pf-proxy[quic]",)),
}


@dataclass(frozen=True, slots=True)
class Closure:
    """All that a framework for some services holds, sorted."""

    services: tuple[str, ...]
    members: tuple[str, ...]
    """Our own distributions."""
    wheels: tuple[str, ...]
    debian: tuple[str, ...]
    """Debian packages that services need beyond the runtime's."""
    commands: tuple[str, ...]
    units: tuple[str, ...]

    @property
    def packages(self) -> tuple[str, ...]:
        """Import names of `members`."""
        return tuple(package_of(name) for name in self.members)


def closure_of(
    services: Collection[str],
    wheels: Mapping[str, LockedWheel],
    requires: Callable[[str], Iterable[str]] | None = None,
) -> Closure:
    """Return what `services` need. Raises InputError for an unknown service, or a dependency that the lock lacks."""
    requires = requires or declared_dependencies
    if unknown := sorted(set(services) - set(SERVICES)):
        raise InputError("make framework", "for these services", f"{unknown[0]} is none of {', '.join(SERVICES)}")
    wanted = [SERVICES[name] for name in sorted(services)]
    members: set[str] = set()
    found: set[str] = set()
    pending = [*ALWAYS, *(member for service in wanted for member in service.members)]
    while pending:
        name, _, extra = pending.pop().rstrip("]").partition("[")
        if extra:
            pending += requires(f"{name}[{extra}]")
        if name in members | found | HOST_ONLY:
            continue
        if name.startswith(OWN_PREFIX):
            members.add(name)
            pending += requires(name)
        elif name in wheels:
            found.add(name)
            pending += wheels[name].needs
        else:
            raise InputError("make framework", f"with {name}", "framework.lock does not have it: renew the lock")
    packages = {package_of(name) for name in members}
    return Closure(
        services=tuple(sorted(services)),
        members=tuple(sorted(members)),
        wheels=tuple(sorted(found)),
        debian=tuple(sorted({name for service in wanted for name in service.debian})),
        commands=tuple(sorted(name for name, target in COMMANDS.items() if target.partition(".")[0] in packages)),
        units=tuple(sorted({name for service in wanted for name in service.units})),
    )


def declared_dependencies(member: str) -> list[str]:
    """Return the distributions that one of our members declares, normalised; of `NAME[EXTRA]` those for the extra.

    Raises: InputError.
    """
    name, _, extra = member.rstrip("]").partition("[")
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError as exc:
        raise InputError("pack", name, "it is not installed beside rbuilds") from exc
    found = ((name_of(line), EXTRA.search(line)) for line in lines)
    return [one for one, marker in found if (marker[1] if marker else "") == extra]


def package_of(member: str) -> str:
    """Return the import name of one of our distributions."""
    return IMPORTED_AS.get(member, member.replace("-", "_"))


def member_of(package: str) -> str:
    """Return the distribution of one of our import names."""
    return next((name for name, imported in IMPORTED_AS.items() if imported == package), package.replace("_", "-"))


def name_of(requirement: str) -> str:
    """Return the normalised name at the front of a requirement, e.g. `pyyaml` of `PyYAML>=6`."""
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", requirement)
    return re.sub(r"[-_.]+", "-", match[0]).lower() if match else ""


def units(services: Collection[str] = ALL_SERVICES) -> dict[str, str]:
    """Return the unit files of `services` by name; where one is simpler without another, that form of it."""
    wanted = {f"{name}.service" for service in services for name in SERVICES[service].units}
    data = resources.files("enclavekit_rbuilds").joinpath("data")
    texts = {item.name: item.read_text("utf-8") for item in data.joinpath("units").iterdir()}
    if "files" not in services:
        texts |= {item.name: item.read_text("utf-8") for item in data.joinpath("units-without-files").iterdir()}
    return {name: texts[name] for name in sorted(wanted)}
