# SPDX-License-Identifier: Apache-2.0
"""Table `logs` of `/etc/init.toml`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from enclavekit_core.address import MAX_U32
from enclavekit_core.errors import ConfigError

from enclavekit_enclave_init.logs.records import FORMATS, TEXT
from enclavekit_enclave_init.logs.redaction import compile_patterns

MIN_RING_BYTES, MAX_RING_BYTES = 128 * 1024, 1 << 30  # the least holds one read of a pipe
NOTHING, INIT_LINES, ALL_LINES = "nothing", "init", "all"
TO_PARENT = (NOTHING, INIT_LINES, ALL_LINES)
MAX_LAST_LINES = 1000


@dataclass(frozen=True, slots=True)
class LogConfig:
    """How logs are kept, and what of them the parent gets, who must not be trusted with the app's secrets."""

    format: str = TEXT
    """Of files: text or json."""
    ring_bytes: int = 1024 * 1024
    """Of all units together, in memory: what `initctl logs` reads."""
    redact: tuple[str, ...] = ()
    """Patterns (Python's `re`) whose matches become [redacted] everywhere."""
    kernel: bool = True
    """Read the kernel's log; on a machine whose kernel is the host's there is none of ours."""
    to_parent: str = INIT_LINES
    """What the parent may get by stream and in the exit report: nothing, init (PID 1's own lines), all."""
    stream_port: int = 0
    """vsock port on which the parent may follow the logs as JSON lines, unencrypted; usually 9100. 0: none."""
    last_lines: int = 20
    """Lines in the exit report."""


def parse_log_config(values: object, source: str) -> LogConfig:
    """Return the table. Raises ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(source, "logs", "it must be a table")
    for key, value in values.items():
        if reason := _wrong(key, value):
            raise ConfigError(source, f"logs.{key}", reason)
    taken = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return LogConfig(**taken)  # type: ignore[arg-type]  # _wrong


def _wrong(key: str, value: object) -> str:
    """Return what is wrong with a value; empty if nothing is."""
    match key:
        case "format":
            return "" if value in tuple(FORMATS) else f"it must be one of {', '.join(FORMATS)}"
        case "to_parent":
            return "" if value in TO_PARENT else f"it must be one of {', '.join(TO_PARENT)}"
        case "kernel":
            return "" if isinstance(value, bool) else "it must be true or false"
        case "redact":
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                return "it must be a list of patterns"
            try:
                compile_patterns(value)
            except ValueError as exc:
                return str(exc)
            return ""
        case "ring_bytes":
            low, high = MIN_RING_BYTES, MAX_RING_BYTES
        case "stream_port":
            low, high = 0, MAX_U32
        case "last_lines":
            low, high = 0, MAX_LAST_LINES
        case _:
            return "unknown key"
    whole = isinstance(value, int) and not isinstance(value, bool)
    return "" if whole and low <= int(str(value)) <= high else f"it must be a number from {low} to {high}"
