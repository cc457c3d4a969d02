# SPDX-License-Identifier: Apache-2.0
"""The rules that a run needed, as a policy file or as an image's manifest has them. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from enclavekit_core.egress_policy import Rule, render_rule
from enclavekit_core.ip_addresses import is_private, unwrap

from enclavekit_pf_proxy.policy.decision import Attempt, is_guarded

NOTE = "# What one run connected to. Read it before you use it: nothing here has been judged.\n"
MANIFEST_KEYS = ("host", "host", "port")  # of a rule in enclave.yaml


@dataclass(frozen=True, slots=True, order=True)
class Learned:
    """One rule, but for its ports."""

    name: str
    network: str
    protocol: str
    private_address: bool
    absent_name: bool
    encrypted_name: bool


class Learner:
    """Collects what `decide` would have had to allow."""

    def __init__(self) -> None:
        self._ports: dict[Learned, set[int]] = {}

    def record(self, attempt: Attempt) -> bool:
        """Take one connection; return whether it needs something new."""
        shown = attempt.shown
        address = unwrap(attempt.address)
        name = attempt.names[-1] if attempt.names else ""  # an app connects to what it has just asked for
        if shown is not None and shown.name is not None and shown.name in attempt.names:
            name = shown.name
        # a name that no answer led to, or another one than the answer's, is a connection by address
        agrees = shown is None or shown.encrypted or shown.name in (None, name)
        by_name = bool(name) and agrees and not is_guarded(address)
        rule = Learned(
            name if by_name else "",
            "" if by_name else str(address),
            attempt.protocol,
            by_name and is_private(address),
            by_name and (shown is None or (shown.name is None and not shown.encrypted)),
            by_name and shown is not None and shown.encrypted,
        )
        ports = self._ports.setdefault(rule, set())
        if attempt.port in ports:
            return False
        ports.add(attempt.port)
        return True

    def write_policy(self) -> str:
        """Return the policy file's text: the same for the same connections, whatever their order."""
        lines = [f"- {render_rule(rule)}\n" for rule in self._rules()]
        return f"{NOTE}allow:{'' if lines else ' []'}\n{''.join(lines)}"

    def write_section(self, refused: Iterable[str] = ()) -> str:
        """Return the `network` section of an image's manifest. `refused`: names that were not resolved, for a note."""
        lines = [f"    - {render_rule(rule, names=MANIFEST_KEYS)}\n" for rule in self._rules()]
        note = "".join(f"# not resolved, as no rule allows it: {name}\n" for name in sorted(set(refused)))
        return f"{NOTE}{note}network:\n  egress:{'' if lines else ' []'}\n{''.join(lines)}"

    def _rules(self) -> list[Rule]:
        return [
            Rule(
                number,
                learned.name or None,
                ipaddress.ip_network(learned.network) if learned.network else None,
                tuple((port, port) for port in sorted(self._ports[learned])),
                frozenset([learned.protocol]),
                learned.private_address,
                learned.absent_name,
                learned.encrypted_name,
            )
            for number, learned in enumerate(sorted(self._ports))
        ]
