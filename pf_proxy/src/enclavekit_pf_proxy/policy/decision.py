# SPDX-License-Identifier: Apache-2.0
"""Allowed or not: the DNS answer that led there, the name in the first bytes and the destination must agree. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from enclavekit_core.egress_policy import MAX_PORT, Policy, Rule
from enclavekit_core.ip_addresses import IpAddress, is_private, unwrap

from enclavekit_pf_proxy.destinations import GUARDED
from enclavekit_pf_proxy.policy.first_bytes import Shown


class Verdict(enum.Enum):
    ALLOWED = "allowed"
    DENIED = "denied"
    INSPECT = "inspect"
    """It depends on the connection's first bytes."""


class Reason(enum.Enum):
    """Why, from the furthest to the closest to an allowed connection."""

    NO_RULE = "no rule allows it"
    RAW_ADDRESS = "no DNS answer led to this address"
    PORT = "no rule for its name has this port"
    PRIVATE = "its name leads to a private address"
    MALFORMED = "its first bytes are malformed"
    ENCRYPTED = "its name is encrypted"
    ABSENT = "its first bytes show no name"
    MISMATCH = "its first bytes show another name"
    DENY_RULE = "a rule denies it"
    RULE = "a rule allows it"
    LEARNING = "learning"


ORDER = {reason: place for place, reason in enumerate(Reason)}


@dataclass(frozen=True, slots=True)
class Attempt:
    """A connection, or a session of datagrams, that somebody in the enclave wants."""

    protocol: str
    """tcp or udp."""
    address: IpAddress
    port: int
    names: Sequence[str] = ()
    """Names whose DNS answers led to the address, the last answer's at the end."""
    shown: Shown | None = None
    """What its first bytes show; None while nobody has looked."""


@dataclass(frozen=True, slots=True)
class Decision:
    verdict: Verdict
    reason: Reason
    rule: Rule | None = None
    name: str | None = None

    @property
    def is_allowed(self) -> bool:
        return self.verdict is Verdict.ALLOWED

    @property
    def needs_bytes(self) -> bool:
        return self.verdict is Verdict.INSPECT


def decide(policy: Policy, attempt: Attempt) -> Decision:
    """Decide. Deny rules win; without an allow rule the answer is no."""
    address = unwrap(attempt.address)
    denied = _find_denied(policy, attempt, address)
    if denied is not None:
        return denied
    allow = [rule for rule in policy.allow if rule.covers(attempt.protocol, attempt.port)]
    for rule in allow:
        if rule.contains(address):
            return Decision(Verdict.ALLOWED, Reason.RULE, rule)
    best = Decision(Verdict.DENIED, _reason_without_rule(policy, attempt))
    for rule in allow:
        names = sorted(name for name in attempt.names if rule.names(name) and not _is_denied(policy, attempt, name))
        if not names:
            continue
        found = _judge(rule, names, address, attempt.shown)
        if found.verdict is Verdict.ALLOWED:
            return found
        if found.verdict is Verdict.INSPECT or (
            best.verdict is Verdict.DENIED and ORDER[found.reason] > ORDER[best.reason]
        ):
            best = found
    return best


def may_resolve(policy: Policy, name: str) -> bool:
    """Say whether a name may be asked for at all: some rule allows it, and none denies it for all ports."""
    return may_pass(policy, name) and any(rule.names(name) for rule in policy.allow)


def may_pass(policy: Policy, name: str) -> bool:
    """Say whether a CNAME may lead through `name`: not if a rule denies it for all ports."""
    return not any(_denies_all(rule) and rule.names(name) for rule in policy.deny)


def may_answer(policy: Policy, name: str, address: IpAddress) -> bool:
    """Say whether an answer that leads from `name` to `address` may be believed: not if that would be rebinding."""
    inner = unwrap(address)
    rules = [rule for rule in policy.allow if rule.names(name)]
    if is_guarded(inner) or not rules:
        return False
    return not is_private(inner) or any(rule.private_address for rule in rules)


def is_guarded(address: IpAddress) -> bool:
    """Loopback, link-local, metadata and the like: no name ever leads there."""
    return any(address in network for network in GUARDED if network.version == address.version)


def _denies_all(rule: Rule) -> bool:
    return rule.ports == ((0, MAX_PORT),) and len(rule.protocols) == 2


def _find_denied(policy: Policy, attempt: Attempt, address: IpAddress) -> Decision | None:
    for rule in policy.deny:
        if not rule.covers(attempt.protocol, attempt.port):
            continue
        shown = attempt.shown.name if attempt.shown is not None else None
        if rule.contains(address) or (shown is not None and rule.names(shown)):
            return Decision(Verdict.DENIED, Reason.DENY_RULE, rule, shown)
    if attempt.names and all(_is_denied(policy, attempt, name) for name in attempt.names):
        return Decision(Verdict.DENIED, Reason.DENY_RULE, None, min(attempt.names))
    return None


def _is_denied(policy: Policy, attempt: Attempt, name: str) -> bool:
    return any(rule.covers(attempt.protocol, attempt.port) and rule.names(name) for rule in policy.deny)


def _reason_without_rule(policy: Policy, attempt: Attempt) -> Reason:
    if not attempt.names:
        return Reason.RAW_ADDRESS
    known = any(rule.names(name) for rule in policy.allow for name in attempt.names)
    return Reason.PORT if known else Reason.NO_RULE


def _judge(rule: Rule, names: list[str], address: IpAddress, shown: Shown | None) -> Decision:
    """Return what `rule`, whose port and names fit, says."""

    def no(reason: Reason) -> Decision:
        return Decision(Verdict.DENIED, reason, rule, names[0])

    if is_guarded(address) or (is_private(address) and not rule.private_address):
        return no(Reason.PRIVATE)
    if rule.absent_name and (shown is None or shown.name is None):
        return Decision(Verdict.ALLOWED, Reason.RULE, rule, names[0])
    if shown is None:
        return Decision(Verdict.INSPECT, Reason.RULE, rule, names[0])
    if shown.malformed:
        return no(Reason.MALFORMED)
    if shown.encrypted:
        allowed = rule.encrypted_name
        return Decision(Verdict.ALLOWED, Reason.RULE, rule, names[0]) if allowed else no(Reason.ENCRYPTED)
    if shown.name is None:
        return no(Reason.ABSENT)
    if shown.name not in names:
        return no(Reason.MISMATCH)
    return Decision(Verdict.ALLOWED, Reason.RULE, rule, shown.name)
