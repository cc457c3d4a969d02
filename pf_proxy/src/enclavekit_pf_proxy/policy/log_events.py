# SPDX-License-Identifier: Apache-2.0
"""A decision as a line of the log has it, and back: what a rule needs to be made of it. Pure."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator
from typing import Any

from enclavekit_core.host_names import normalise_name

from enclavekit_pf_proxy.policy.decision import Attempt, Decision, Reason
from enclavekit_pf_proxy.policy.first_bytes import Shown

EVENTS = ("egress allowed", "egress denied")
REFUSED_NAME = "dns denied"
NOT_LOOKED = {reason.value for reason in (Reason.NO_RULE, Reason.RAW_ADDRESS, Reason.PORT, Reason.PRIVATE)}
MAX_NAMES = 8  # of an address, in a line


def describe_decision(attempt: Attempt, decision: Decision) -> dict[str, Any]:
    """Return the fields of the event."""
    shown, rule = attempt.shown, decision.rule
    which = "deny" if decision.reason is Reason.DENY_RULE else "allow"
    return {
        "protocol": attempt.protocol,
        "address": str(attempt.address),
        "port": attempt.port,
        "name": decision.name,
        "names": list(attempt.names[-MAX_NAMES:]),
        "shown": shown.name if shown is not None else None,
        **({"encrypted": True} if shown is not None and shown.encrypted else {}),
        "reason": decision.reason.value,
        "rule": None if rule is None else f"{which}[{rule.number}] {rule.target}",
    }


def read_events(lines: Iterable[str]) -> Iterator[Attempt | str]:
    """Return the connections that the lines of a log tell of, and the names that were not resolved. Other lines, and
    what is in front of the JSON, are passed over: logs come with other programs' lines and collectors' times in them.
    """
    for line in lines:
        start = line.find("{")
        try:
            event = json.loads(line[start:]) if start >= 0 else None
            found = _read_event(event) if isinstance(event, dict) else None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        if found is not None:
            yield found


def _read_event(event: dict[str, Any]) -> Attempt | str | None:
    return normalise_name(event["name"]) if event.get("event") == REFUSED_NAME else _to_attempt(event)


def _to_attempt(event: dict[str, Any]) -> Attempt | None:
    if event.get("event") not in EVENTS or event["reason"] == Reason.MALFORMED.value:
        return None
    protocol, port = event["protocol"], event["port"]
    if protocol not in ("tcp", "udp") or not isinstance(port, int) or not 0 < port < 65536:
        return None
    names = tuple(name for text in event["names"] if (name := normalise_name(text)) is not None)
    shown = None if event["shown"] is None else normalise_name(event["shown"])
    if event["reason"] in NOT_LOOKED:
        shown = names[-1] if names else None  # nobody has looked at its first bytes: the narrower rule is tried first
    seen = Shown(shown, event.get("encrypted") is True)
    return Attempt(protocol, ipaddress.ip_address(event["address"]), port, names, seen)
