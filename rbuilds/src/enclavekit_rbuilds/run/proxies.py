# SPDX-License-Identifier: Apache-2.0
"""Which processes an enclave needs beside it on its host: pf-proxy for each rule, an ear for its end. Pure.

Egress ports are the parent's, which all enclaves share: the same rule of several enclaves is one process, with a list
of who may use it. An ingress port belongs to one enclave.
"""

from __future__ import annotations

from dataclasses import dataclass

from enclavekit_rbuilds.run.model import Egress, Ingress, LaunchPlan, Outbound, Resolver

DRAIN_TIMEOUT_S = 2  # the enclave is gone when a proxy is told to stop: what is in flight has nowhere to go


@dataclass(frozen=True, slots=True)
class ProxyRule:
    key: str
    """What it listens on, as part of a file name."""
    arguments: tuple[str, ...]
    """After `pf-proxy`; empty for the listener of `exit_reports`."""
    text: str
    """For people, and for telling two rules with one key apart."""
    listed: bool
    """Whether it admits only the CIDs of its list."""
    follows_host: bool = False
    """Whether it is about this host's own set-up: a newer one replaces it, whoever uses it."""

    @property
    def is_network(self) -> bool:
        """Whether the enclave's network needs it; one that is only useful does not keep an enclave from running."""
        return bool(self.arguments)


# PID 1 of our images says how the app ended; nitro-emu listens for that itself
EXIT_REPORTS = ProxyRule("nitro-cli-exit-reports", (), "exit reports on vsock://parent:9002", listed=True)


def plan_proxies(plan: LaunchPlan, cid: int) -> tuple[ProxyRule, ...]:
    """Return the rules of one launch, in the order to start them."""
    egress = (egress_rule(rule, plan.backend) for rule in plan.egress)
    reports = (EXIT_REPORTS,) if plan.backend == "nitro-cli" else ()
    outbound = outbound_rules(plan.outbound, plan.backend) if plan.outbound is not None else ()
    return (*egress, *outbound, *(ingress_rule(rule, plan.bind, cid) for rule in plan.ingress), *reports)


def describe_network(plan: LaunchPlan, cid: int) -> list[str]:
    """Return the rules of one launch in words."""
    rules = [rule.text for rule in plan_proxies(plan, cid) if rule.is_network]
    return [*rules, *(f"publish {plan.bind} {rule}" for rule in plan.publish)]


def egress_rule(rule: Egress, backend: str) -> ProxyRule:
    upstream = _endpoint(rule.host, rule.port)
    return ProxyRule(
        key=f"{backend}-egress-{rule.vsock_port}",
        arguments=("vsock-to-ip", "-v", f"vsock://any:{rule.vsock_port}", "-i", upstream),
        text=f"egress vsock://parent:{rule.vsock_port} -> {upstream}",
        listed=True,
    )


def outbound_rules(outbound: Outbound, backend: str) -> tuple[ProxyRule, ...]:
    """Return the end that connects to wherever the enclave's own policy lets it, and one per resolver."""
    listen = f"vsock://any:{outbound.vsock_port}"
    allowed = tuple(word for text in outbound.allow_destinations for word in ("--allow-destination", text))
    guarded = "all but loopback, link-local and metadata addresses"
    but = f" and {', '.join(outbound.allow_destinations)}" if outbound.allow_destinations else ""
    way_out = ProxyRule(
        key=f"{backend}-outbound-{outbound.vsock_port}",
        arguments=("vsock-to-ip-transparent", "-v", listen, *allowed),
        text=f"egress vsock://parent:{outbound.vsock_port} -> where the image's policy lets it ({guarded}{but})",
        listed=True,
    )
    return (way_out, *(_resolver_rule(resolver, backend) for resolver in outbound.resolvers))


def _resolver_rule(resolver: Resolver, backend: str) -> ProxyRule:
    upstream = _endpoint(resolver.host, resolver.port)
    return ProxyRule(
        key=f"{backend}-dns-{resolver.vsock_port}",
        arguments=("vsock-to-ip", "-v", f"vsock://any:{resolver.vsock_port}", "-i", upstream),
        text=f"dns vsock://parent:{resolver.vsock_port} -> {upstream}",
        listed=True,
        follows_host=True,
    )


def ingress_rule(rule: Ingress, bind: str, cid: int) -> ProxyRule:
    listen = _endpoint(bind, rule.port)
    return ProxyRule(
        key=f"ingress-{bind.replace(':', '_')}-{rule.port}",
        arguments=("ip-to-vsock", "-i", listen, "-v", f"vsock://{cid}:{rule.vsock_port}"),
        text=f"ingress {listen} -> vsock://{cid}:{rule.vsock_port}",
        listed=False,
    )


def _endpoint(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
