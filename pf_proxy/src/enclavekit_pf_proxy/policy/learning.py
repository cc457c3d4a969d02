# SPDX-License-Identifier: Apache-2.0
"""The rules that a run needed, as a policy file. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from enclavekit_pf_proxy.destinations import unwrap
from enclavekit_pf_proxy.policy.decision import Attempt, is_guarded, is_private

HEADER = "# What one run connected to. Read it before you use it: nothing here has been judged.\nallow:\n"


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
        name = min(attempt.names, default="")
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
        if not self._ports:
            return HEADER.replace("allow:", "allow: []")
        lines = []
        for rule in sorted(self._ports):
            target = f'name: "{rule.name}"' if rule.name else f'network: "{rule.network}"'
            words = [target, f"ports: {sorted(self._ports[rule])}"]
            words += ["protocol: udp"] if rule.protocol == "udp" else []
            for setting in ("private_address", "absent_name", "encrypted_name"):
                words += [f"{setting}: true"] if getattr(rule, setting) else []
            lines.append(f"- {{{', '.join(words)}}}\n")
        return HEADER + "".join(lines)
