# SPDX-License-Identifier: Apache-2.0
"""What a command line or a configuration file asks for: services, workers, how long to drain. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from enclavekit_core.address import Address, TcpAddress, UnixAddress, parse_address
from enclavekit_core.errors import ConfigError

from enclavekit_pf_proxy.limits import Limits, descriptors_for
from enclavekit_pf_proxy.rules.divert import DEFAULT_NAME, OWN_MARK, Backend, Method, Origin, RuleSet
from enclavekit_pf_proxy.service import LISTENS_ON_VSOCK, Service

if TYPE_CHECKING:
    from enclavekit_pf_proxy.policy.gate import Gate

MAX_WORKERS = 64


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """The loopback interface is brought up, and more."""

    default_route: str = ""
    """An interface that every destination has a route over, so that programs may send there; empty: none."""
    versions: tuple[int, ...] = (4, 6)
    """The kinds of IP that have it; for another a program is told at once that there is no way."""


@dataclass(frozen=True, slots=True)
class DnsPlan:
    """A resolver."""

    listen: TcpAddress
    """UDP and TCP."""
    upstreams: Sequence[Address]
    timeout_s: float = 3.0
    """Of each upstream."""


@dataclass(frozen=True, slots=True)
class StatusPlan:
    """Where the process can be asked about itself."""

    socket: UnixAddress | None = None
    by_default: bool = False
    """At a socket in the runtime directory."""
    metrics_listen: TcpAddress | None = None
    """For metrics and health."""

    @property
    def is_wanted(self) -> bool:
        return self.by_default or self.socket is not None or self.metrics_listen is not None


@dataclass(frozen=True, slots=True)
class Plan:
    services: Sequence[Service]
    workers: int = 1
    """Processes that share each listener."""
    drain_timeout_s: float = Limits().drain_timeout_s
    gate: Gate | None = None
    """The policy of all services that have one."""
    dns: DnsPlan | None = None
    rules: RuleSet | None = None
    """What the kernel is to bring to the services."""
    rules_backend: Backend = Backend.AUTO
    rules_name: str = DEFAULT_NAME
    applies_rules: bool = True
    """Whether they, and `network`, go in and out with the proxy; else somebody else has put them in."""
    network: NetworkPlan | None = None
    status: StatusPlan = StatusPlan()

    def check(self, source: str) -> None:
        """Raise ConfigError, which names `source`."""
        if not 1 <= self.workers <= MAX_WORKERS:
            raise ConfigError(source, "workers", f"it is not from 1 to {MAX_WORKERS}")
        if self.gate is not None and self.workers > 1:
            reason = "with a policy there is one: it must have seen the DNS answer that led to a connection"
            raise ConfigError(source, "workers", reason)
        if self.rules is not None and not self.rules.spares_own and (cause := self._sends_to_others()):
            raise ConfigError(source, "rules.mark", f"without a mark {cause} would come back to the proxy")
        seen: set[str] = set()
        for service in self.services:
            for offset in range(service.listen.ports):
                address = service.listen.at(offset)
                text = f"{service.protocol.value if isinstance(address, TcpAddress) else ''} {address}"
                if getattr(address, "port", 1) and text in seen:  # port 0 is another one each time
                    raise ConfigError(source, "", f"two listeners are on {address}")
                seen.add(text)

    @property
    def mark(self) -> int:
        """Of everything that is sent over IP, where rules have to tell it from what they divert; 0 where they need not.

        It takes a right that a proxy can do without if all that it sends are answers, which conntrack knows.
        """
        if self.rules is None or not self.rules.spares_own:
            return 0
        return OWN_MARK if self.rules.uses_tproxy or self._dials() else 0

    def _dials(self) -> bool:
        """Say whether it makes connections that its own rules could divert."""
        named = self.rules is not None and any(divert.networks for divert in self.rules.diverts)
        return any(named or not _stays_at_home(each) for each in self.services if each.mode in LISTENS_ON_VSOCK)

    def _sends_to_others(self) -> str:
        """Return what it sends elsewhere than to loopback, or to what a rule names; empty for nothing."""
        if self._dials():
            return "what it connects to over IP"
        tproxied = [each for each in self.rules.diverts if each.method is Method.TPROXY] if self.rules else []
        if any(each.networks or Origin.PREROUTING in each.origins for each in tproxied):
            return "its answers"
        return ""

    @property
    def descriptors(self) -> int:
        """How many one worker may need."""
        ports = sum(service.listen.ports for service in self.services)
        return ports + descriptors_for(sum(share(self, service).max_connections for service in self.services))


def _stays_at_home(service: Service) -> bool:
    """Say whether it connects to loopback only, which nothing is diverted from unless a rule names it."""
    upstream = service.upstream.first if service.upstream is not None else None
    if not isinstance(upstream, TcpAddress):
        return isinstance(upstream, UnixAddress)
    return upstream.host == "::1" or upstream.host.startswith("127.")


def share(plan: Plan, service: Service) -> Limits:
    """Return the limits of one worker: the kernel shares connections out evenly, and so are limits."""
    limits = service.limits
    return replace(
        limits,
        max_connections=-(-limits.max_connections // plan.workers),
        max_per_cid=-(-limits.max_per_cid // plan.workers),
    )


def parse_status(socket: str, metrics_listen: str, source: str, *, by_default: bool) -> StatusPlan:
    """Return what the texts ask for; empty ones ask for nothing, or for the default socket. Raises ConfigError."""
    at = parse_address(socket, "unix") if socket else None
    if at is not None and not isinstance(at, UnixAddress):
        raise ConfigError(source, "socket", f"{socket!r} is not unix:///path")
    metrics = parse_address(metrics_listen, "tcp") if metrics_listen else None
    if metrics is not None and not isinstance(metrics, TcpAddress):
        raise ConfigError(source, "metrics_listen", f"{metrics_listen!r} is not HOST:PORT")
    return StatusPlan(at, by_default and at is None, metrics)
