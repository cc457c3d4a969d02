# SPDX-License-Identifier: Apache-2.0
"""How PID 1 keeps the logs, and what of them the parent gets: `logs` of the manifest, as a file in ramdisk 1. Pure.

Source: table `logs` of enclave_init's configuration, docs/reference/initctl.md.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Literal

from enclavekit_core.config import StrictConfig
from enclavekit_core.errors import ConfigError
from msgspec import Meta

PATH = b"etc/enclavekit/init.toml"


class Logs(StrictConfig, frozen=True):
    """Logs of PID 1 and its units; the parent is not trusted with what the app prints unless this says so."""

    format: Annotated[Literal["text", "json"], Meta(description="Of files in /log.")] = "text"
    ring_bytes: Annotated[
        Annotated[int, Meta(ge=128 * 1024, le=1 << 30)] | None,
        Meta(description="In memory, for all units: what initctl logs shows; default: 1 MiB."),
    ] = None
    redact: Annotated[
        list[str],
        Meta(description="Patterns (Python's re, groups as (?:...)) whose matches become [redacted] everywhere."),
    ] = []
    to_parent: Annotated[
        Literal["nothing", "init", "all"],
        Meta(description="What the parent gets by stream and when the enclave ends; init: PID 1's own lines."),
    ] = "init"
    stream_port: Annotated[
        Annotated[int, Meta(ge=1, le=0xFFFFFFFF)] | None,
        Meta(description="vsock port where the parent may follow the logs, unencrypted; default: none."),
    ] = None
    last_lines: Annotated[
        Annotated[int, Meta(ge=0, le=1000)] | None, Meta(description="In the report of the end; default: 20.")
    ] = None


def check_logs(logs: Logs, source: str) -> None:
    """Raise ConfigError for a pattern that PID 1 would refuse at boot, when nobody can mend it."""
    for pattern in logs.redact:
        try:
            compiled = re.compile(pattern.encode())
        except (re.error, RecursionError, OverflowError) as exc:
            raise ConfigError(source, "logs.redact", f"{pattern!r} is not a pattern: {exc}") from exc
        if compiled.groups:
            raise ConfigError(source, "logs.redact", f"{pattern!r} has a capturing group: write (?:...)")
        if compiled.flags & ~re.compile(b"").flags or compiled.match(b"") or len(pattern) > 990:
            raise ConfigError(source, "logs.redact", f"{pattern!r} matches nothing at all, has flags, or is too long")
    if len(logs.redact) > 64:
        raise ConfigError(source, "logs.redact", "there can be 64 patterns")


def render_logs(logs: Logs) -> bytes:
    """Return the file; empty if all is as by default."""
    lines = []
    for name in logs.__struct_fields__:
        value = getattr(logs, name)
        if value not in (None, [], getattr(Logs(), name)):
            # TOML's basic strings and lists of them are JSON's, but for DEL, which has to be escaped
            lines.append(f"{name} = {json.dumps(value)}".replace("\x7f", "\\u007f"))
    return "\n".join(["[logs]", *lines, ""]).encode() if lines else b""
