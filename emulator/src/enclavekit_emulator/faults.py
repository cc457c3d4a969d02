# SPDX-License-Identifier: Apache-2.0
"""Ways in which an emulated NSM misbehaves on demand, so that tests see verifiers and services cope.

Every fault can only make evidence worse: a document that is refused, or none at all.
"""

from __future__ import annotations

import enum

from enclavekit_core.errors import ConfigError

SLOW_S = 1.0  # longer than any request takes, short enough for a test


class Fault(enum.Enum):
    EXPIRED_LEAF = "expired-leaf"
    WRONG_ROOT = "wrong-root"
    ZERO_PCRS = "zero-pcrs"
    REORDERED_BUNDLE = "reordered-bundle"
    SLOW = "slow"
    FAILING = "failing"


def parse_faults(names: tuple[str, ...]) -> frozenset[Fault]:
    """Return the faults of these names. Raises ConfigError."""
    try:
        return frozenset(Fault(name) for name in names)
    except ValueError as exc:
        known = ", ".join(fault.value for fault in Fault)
        raise ConfigError("NSM fault", "", f"{exc.args[0].split()[0]} is none of {known}") from exc
