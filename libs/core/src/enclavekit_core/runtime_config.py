# SPDX-License-Identifier: Apache-2.0
"""Runtime configuration: values that differ per deployment, described by a schema in the measured image. Pure.

The parent chooses the values and is not trusted, so the schema says what may be chosen, and the result is extended into
PCR16, which is then locked: a verifier who knows the values computes PCR16 (`expected_pcr16`), and who only pins it
notices every other choice. On the wire (parent to enclave, vsock port PORT, one connection at a time):

    u32 big-endian length, JSON object NAME -> value                       the parent's choice
    u32 big-endian length, {"pcr16": "<hex>"} or {"error": "<why not>"}    the enclave's answer; the first ends it
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Literal

from enclavekit_core.config import StrictConfig
from enclavekit_core.errors import ConfigError

PORT = 9003
PCR_INDEX = 16  # the first that is not locked at boot
SCHEMA_PATH = "/etc/enclavekit/runtime-config.json"
VALUES_PATH = "/run/enclavekit/runtime-config.json"
ENVIRONMENT_PATH = "/run/enclavekit/runtime-config.env"
MAX_MESSAGE_BYTES = 256 * 1024
MAX_SETTINGS = 256
MAX_STRING_CHARS = 4096

Value = str | int | bool
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_TYPES: dict[str, type] = {"string": str, "integer": int, "boolean": bool}


class Setting(StrictConfig, frozen=True, omit_defaults=True):
    """What one value may be; the words are JSON Schema's."""

    type: Literal["string", "integer", "boolean"]
    description: str = ""
    default: Value | None = None
    """Without one the parent must choose."""
    enum: list[Value] | None = None
    minimum: int | None = None
    maximum: int | None = None
    pattern: str | None = None
    """Python's regular expressions; the whole value must match."""


Schema = dict[str, Setting]


def check_schema(schema: Schema, source: str, prefix: str = "") -> None:
    """Raise ConfigError for a schema that contradicts itself: names, patterns, defaults, words of another type.

    Args: prefix: stands before the setting's name in the error's key.
    """
    if len(schema) > MAX_SETTINGS:
        raise ConfigError(source, "", f"there are {len(schema)} settings, there can be {MAX_SETTINGS}")
    for name, setting in schema.items():
        if not _NAME.fullmatch(name):
            raise ConfigError(source, prefix + name, "a setting's name is that of an environment variable")
        for word, owner in (("minimum", "integer"), ("maximum", "integer"), ("pattern", "string")):
            if getattr(setting, word) is not None and setting.type != owner:
                raise ConfigError(source, f"{prefix}{name}.{word}", f"it is for type {owner}")
        if setting.pattern is not None:
            try:
                re.compile(setting.pattern)
            except re.error as exc:
                raise ConfigError(source, f"{prefix}{name}.pattern", f"it is no regular expression: {exc}") from exc
        for value in (*(setting.enum or ()), *(() if setting.default is None else (setting.default,))):
            if problem := _find_problem(setting, value):
                raise ConfigError(source, prefix + name, f"{value!r}, which the schema itself names, {problem}")


def resolve_values(schema: Schema, given: object, source: str) -> dict[str, Value]:
    """Return the value of every setting: the given one, else its default. Raises ConfigError, all or nothing."""
    if not isinstance(given, Mapping):
        raise ConfigError(source, "", "it is not a map of names to values")
    for name in given:
        if name not in schema:
            raise ConfigError(source, str(name)[:128], "the image's schema has no such setting")
    values: dict[str, Value] = {}
    for name, setting in sorted(schema.items()):
        value = given.get(name, setting.default)
        if value is None:
            raise ConfigError(source, name, "it has no default and must be given")
        if problem := _find_problem(setting, value):
            raise ConfigError(source, name, f"the value {problem}")
        values[name] = value
    return values


def encode_values(values: Mapping[str, Value]) -> bytes:
    """Return the one JSON text of `values`: sorted names, no blanks, UTF-8."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def encode_environment(values: Mapping[str, Value]) -> bytes:
    """Return `NAME=value` lines as an EnvironmentFile holds them; true and false are lower case."""
    lines = (f"{name}={json.dumps(v) if isinstance(v, bool) else v}\n" for name, v in sorted(values.items()))
    return "".join(lines).encode()


def pcr_data(values: Mapping[str, Value]) -> bytes:
    """Return the 48 bytes that PCR16 is extended with: SHA-384 of `encode_values`."""
    return hashlib.sha384(encode_values(values)).digest()


def expected_pcr16(values: Mapping[str, Value]) -> bytes:
    """Return PCR16 of an enclave that took `values`: SHA-384 over 48 zero bytes and `pcr_data`."""
    return hashlib.sha384(bytes(48) + pcr_data(values)).digest()


def _find_problem(setting: Setting, value: object) -> str:
    """Return what is wrong with `value`, to stand after a noun; empty if nothing is."""
    kind = _TYPES[setting.type]
    if type(value) is not kind:  # a bool is an int, but not here
        return f"is not of type {setting.type}"
    if isinstance(value, str):
        if len(value) > MAX_STRING_CHARS:
            return f"is longer than {MAX_STRING_CHARS} characters"
        if not value.isprintable():
            return "holds a control character"  # a newline would be another line of the environment file
        if setting.pattern is not None and not re.fullmatch(setting.pattern, value):
            return f"does not match {setting.pattern}"
    elif isinstance(value, int):
        if setting.minimum is not None and value < setting.minimum:
            return f"is below {setting.minimum}"
        if setting.maximum is not None and value > setting.maximum:
            return f"is above {setting.maximum}"
    if setting.enum is not None and value not in setting.enum:
        return f"is none of {', '.join(map(str, setting.enum))}"
    return ""
