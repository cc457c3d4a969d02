# SPDX-License-Identifier: Apache-2.0
"""The keys of a unit file: how each is read, and what it means. Pure.

House rule: everything that knows a unit key lives in the two tables joined here; the reference page of the unit files
is made from them.
"""

from __future__ import annotations

from enclavekit_enclave_init.units.key import Key
from enclavekit_enclave_init.units.life_keys import LIFE_KEYS
from enclavekit_enclave_init.units.place_keys import PLACE_KEYS

KEYS: dict[str, Key] = {**LIFE_KEYS, **PLACE_KEYS}


def format_reference() -> str:
    """Return the table of the reference page, Markdown."""
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    rows += [f"| `{name}` | {key.kind} | {key.default} | {key.meaning} |" for name, key in KEYS.items()]
    return "".join(row + "\n" for row in rows)
