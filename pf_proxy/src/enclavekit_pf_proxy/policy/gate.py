# SPDX-License-Identifier: Apache-2.0
"""The policy at work: what DNS answered, what is decided, the event of each decision."""

from __future__ import annotations

import ipaddress
import os
import time
from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING

from enclavekit_core.address import TcpAddress
from enclavekit_core.egress_policy import Policy, parse_policy
from enclavekit_core.errors import ConfigError, describe_cause
from enclavekit_core.ip_addresses import IpAddress
from enclavekit_core.logs import get_logger

from enclavekit_pf_proxy.policy.answers import AnswerTable
from enclavekit_pf_proxy.policy.decision import (
    Attempt,
    Decision,
    Reason,
    Verdict,
    decide,
    may_answer,
    may_pass,
    may_resolve,
)
from enclavekit_pf_proxy.policy.first_bytes import FirstBytes, Shown
from enclavekit_pf_proxy.policy.learning import Learner
from enclavekit_pf_proxy.policy.log_events import describe_decision

if TYPE_CHECKING:
    from enclavekit_pf_proxy.passage import CheckBytes, CheckDatagram
    from enclavekit_pf_proxy.policy.first_datagrams import FirstDatagrams
    from enclavekit_pf_proxy.quic.session import HelloMemory

MAX_POLICY_BYTES = 256 * 1024


class Gate:
    """One policy with the answers that its resolver gave. For one loop; the resolver's threads do not touch it."""

    def __init__(self, policy: Policy, learn_path: str = "") -> None:
        """`learn_path`: allow everything and write the rules that it took to this file."""
        self.policy = policy
        self.answers = AnswerTable()
        self.decisions: Counter[tuple[str, str]] = Counter()
        """(verdict, reason) -> how often."""
        self._learner = Learner() if learn_path else None
        self._learn_path = learn_path
        self._hellos: HelloMemory | None = None
        self._log = get_logger("pf-proxy")

    def decide(self, destination: TcpAddress, shown: Shown | None, conn: int, protocol: str = "tcp") -> Decision:
        """Decide on a connection or UDP session and, unless it is to be inspected first, say so in the log."""
        address = ipaddress.ip_address(destination.host)
        names = self.answers.names_of(address, time.monotonic())
        attempt = Attempt(protocol, address, destination.port, names, shown)
        decision = decide(self.policy, attempt)
        learns_bytes = self._learner is not None and shown is None and (protocol == "tcp" or can_read_quic())
        if decision.verdict is Verdict.INSPECT or learns_bytes:
            return Decision(Verdict.INSPECT, decision.reason, decision.rule, decision.name)
        if self._learner is not None:
            decision = self._learn(attempt)
        self.decisions[decision.verdict.value, decision.reason.name.lower()] += 1
        write = self._log.info if decision.verdict is Verdict.ALLOWED else self._log.warning
        write(f"egress {decision.verdict.value}", conn=f"{conn:016x}", **describe_decision(attempt, decision))
        return decision

    def begin_inspection(self, protocol: str = "tcp") -> FirstBytes | FirstDatagrams:
        """Return what collects the first bytes of a connection, or the first datagrams of a UDP session."""
        if protocol == "tcp":
            return FirstBytes()
        from enclavekit_pf_proxy.policy.first_datagrams import FirstDatagrams
        from enclavekit_pf_proxy.quic.session import HelloMemory, QuicSession

        if self._hellos is None:
            self._hellos = HelloMemory()
        return FirstDatagrams(QuicSession(self._hellos), time.monotonic)

    def follow(
        self, destination: TcpAddress, first: FirstBytes | FirstDatagrams, allowed: Decision, conn: int, protocol: str
    ) -> CheckBytes | CheckDatagram | None:
        """Return what has to be asked about all that a client sends after `first`; None if nothing has."""
        if self._learner is not None:
            return None
        return first.follow(allowed.name, lambda shown: self.decide(destination, shown, conn, protocol).is_allowed)

    # for the resolver

    def may_resolve(self, name: str) -> bool:
        """Say whether a name may be asked for. Called once per question: a refusal is an event."""
        if self._learner is not None or may_resolve(self.policy, name):
            return True
        self.decisions[Verdict.DENIED.value, "name"] += 1
        self._log.warning("dns denied", name=name, reason="no rule allows the name")
        return False

    def may_answer(self, name: str, address: IpAddress) -> bool:
        return self._learner is not None or may_answer(self.policy, name, address)

    def may_pass(self, name: str) -> bool:
        return self._learner is not None or may_pass(self.policy, name)

    def record(self, name: str, address: IpAddress, ttl_s: float) -> None:
        self.answers.record(name, address, ttl_s, time.monotonic())

    def _learn(self, attempt: Attempt) -> Decision:
        assert self._learner is not None
        if self._learner.record(attempt):
            temporary = f"{self._learn_path}.{os.getpid()}"
            try:
                with open(temporary, "w", encoding="utf-8") as out:
                    out.write(self._learner.write_policy())
                os.replace(temporary, self._learn_path)
            except OSError as exc:
                self._log.error("cannot write what was learned", path=self._learn_path, cause=describe_cause(exc))
        return Decision(Verdict.ALLOWED, Reason.LEARNING, None, min(attempt.names, default=None))


def can_read_quic() -> bool:
    """Say whether the library that opens QUIC's packets is there."""
    return find_spec("cryptography") is not None


def load_gate(policy_path: str, learn_path: str = "") -> Gate:
    """Read the policy file. Raises ConfigError."""
    if not policy_path:
        return Gate(Policy(), learn_path)
    try:
        with open(policy_path, "rb") as source:
            text = source.read(MAX_POLICY_BYTES + 1)
    except OSError as exc:
        raise ConfigError(policy_path, "", describe_cause(exc)) from exc
    if len(text) > MAX_POLICY_BYTES:
        raise ConfigError(policy_path, "", f"it is larger than {MAX_POLICY_BYTES} bytes")
    policy = parse_policy(text, policy_path)
    for rule in policy.allow:
        if rule.reads_quic and not can_read_quic():
            reason = "it needs the server name of QUIC: enclavekit-pf-proxy[quic], which reads it, is not installed"
            raise ConfigError(policy_path, f"allow[{rule.number}]", reason)
    return Gate(policy, learn_path)
