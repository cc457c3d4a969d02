# SPDX-License-Identifier: Apache-2.0
"""Strict, typed configuration from YAML.

A configuration is a `msgspec.Struct` derived from `StrictConfig`: frozen, unknown keys refused, every field documented.
Duplicate keys, which YAML libraries let the last of win, are an error.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from enclavekit_core.errors import ConfigError

MAX_CONFIG_BYTES = 1024 * 1024  # nobody writes more by hand; keeps alias bombs small
Value = TypeVar("Value")


class StrictConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all configuration structs."""


def parse_config(kind: type[Value], text: str | bytes, source: str) -> Value:
    """Parse YAML `text` into `kind`. Raises ConfigError that names `source`, the key and the reason."""
    from enclavekit_core.strict_yaml import find_line, parse_yaml  # whoever has no file to parse does not load it

    raw = parse_yaml(text, source)
    try:
        return msgspec.convert({} if raw is None else raw, kind)
    except msgspec.ValidationError as exc:
        reason, _, where = str(exc).partition(" - at `$")
        where = where.rstrip("`").lstrip(".")
        number = find_line(text, where, reason)
        place = f" (line {number})" if number else ""
        raise ConfigError(source, where, reason[:1].lower() + reason[1:] + place) from exc


def load_config(kind: type[Value], path: str) -> Value:
    """Read and parse the file at `path`. Raises ConfigError."""
    try:
        with open(path, "rb") as source:
            text = source.read(MAX_CONFIG_BYTES + 1)
    except OSError as exc:
        raise ConfigError(path, "", (exc.strerror or str(exc)).lower()) from exc
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(path, "", f"it is larger than {MAX_CONFIG_BYTES} bytes")
    return parse_config(kind, text, path)
