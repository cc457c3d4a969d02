# SPDX-License-Identifier: Apache-2.0
"""Which users of the app may ask PID 1 for what, by the socket in its root: `control` of the manifest. Pure.

Source: table `control` of enclave_init's configuration, docs/reference/initctl.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

from enclavekit_core.config import StrictConfig
from msgspec import Meta

from enclavekit_rbuilds.manifest.clients import Control

SOCKET = "/run/init.sock"


class ControlGrant(StrictConfig, frozen=True):
    """What one user may ask; root may ask for everything."""

    user: Annotated[str, Meta(min_length=1, description="Name or number, of the app.")]
    permissions: Annotated[list[Control], Meta(min_length=1, description="Of initctl, or all.")]


class ControlSocket(StrictConfig, frozen=True):
    """PID 1's control socket in the app's root; it is there if anybody is listed."""

    allow: list[ControlGrant] = []


def render_control(grants: Sequence[tuple[int, ControlGrant]]) -> bytes:
    """Return what of PID 1's file says it; `grants` with the uid of each user. Empty if there are none."""
    tables = (
        f"[[control.allow]]\nuid = {uid}\npermissions = {json.dumps(list(grant.permissions))}\n"
        for uid, grant in grants
    )
    return "".join(tables).encode()
