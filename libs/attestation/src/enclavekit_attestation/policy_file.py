# SPDX-License-Identifier: Apache-2.0
"""The shape of a policy file; apart from `policy`, so that verifying does not import YAML."""

from __future__ import annotations

from enclavekit_core.config import StrictConfig, load_config

__all__ = ["PolicyFile", "load_config"]


class PolicyFile(StrictConfig, frozen=True):
    pcrs: dict[int | str, str]
    """Expected values: index (`0` or `PCR0`) to 96 hex digits."""
    allow_debug: bool = False
    """Accept debug mode, in which PCR0..2 are zero."""
    max_age_s: float | None = None
    """Oldest document accepted; default 300 for live checks, no limit for archival ones."""
    clock_skew_s: float | None = None
    """How far ahead the document's clock may be; default 60."""
