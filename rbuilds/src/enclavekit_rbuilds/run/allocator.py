# SPDX-License-Identifier: Apache-2.0
"""The allocator's configuration, /etc/nitro_enclaves/allocator.yaml. Pure.

Source: nitro-enclaves-allocator, which refuses every other key and needs exactly one of cpu_count and cpu_pool.
"""

from __future__ import annotations

from dataclasses import dataclass

import yaml

KEYS = {"memory_mib", "cpu_count", "cpu_pool"}


@dataclass(frozen=True, slots=True)
class Allocator:
    memory_mib: int
    cpu_count: int | None
    cpu_pool: str | None


def parse_allocator(text: str) -> Allocator:
    """Parse the file. Raises ValueError with the cause."""
    if not any(line.strip() == "---" for line in text.splitlines()):
        raise ValueError("it has no line ---, which the allocator needs first")
    try:
        raw = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as exc:
        raise ValueError("it is not YAML: " + " ".join(str(exc).split())) from exc
    if not isinstance(raw, dict):
        raise ValueError("it is not a mapping")
    if unknown := sorted(str(key) for key in raw if key not in KEYS):
        raise ValueError(f"the allocator refuses the key {unknown[0]}")
    memory, count, pool = raw.get("memory_mib"), raw.get("cpu_count"), raw.get("cpu_pool")
    if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
        raise ValueError("memory_mib is missing or not a number")
    if (count is None) == (pool is None):
        raise ValueError("it needs exactly one of cpu_count and cpu_pool")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ValueError("cpu_count is not a number from 1 up")
    return Allocator(memory, count, None if pool is None else str(pool))
