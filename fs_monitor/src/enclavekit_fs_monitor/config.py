# SPDX-License-Identifier: Apache-2.0
"""What fs-monitor is told on its command line."""

from __future__ import annotations

from dataclasses import dataclass

from enclavekit_core.bus import BUCKET_HASHES

DEFAULT_NATS_URL = "nats://127.0.0.1:4222"


@dataclass(frozen=True, slots=True)
class Settings:
    directory: str = "."
    """The tree to watch; resolved once, at the start."""
    nats_url: str = DEFAULT_NATS_URL
    kv_bucket_name: str = BUCKET_HASHES
    credentials: str | None = None
    """The service's account on the bus (YAML: user, password); None for a server without accounts."""
