# SPDX-License-Identifier: Apache-2.0
"""Strict, typed configuration from YAML.

A configuration is a `msgspec.Struct` derived from `StrictConfig`: frozen, unknown keys refused, every field documented.
Duplicate keys, which YAML libraries let the last of win, are an error.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any, TypeVar

import msgspec
import yaml

from enclavekit_core.errors import ConfigError

MAX_CONFIG_BYTES = 1024 * 1024  # nobody writes more by hand; keeps alias bombs small
PATH_STEP = re.compile(r"\[(\d+|\.\.\.)\]|([^.\[\]]+)")  # of msgspec's paths
UNKNOWN_FIELD = re.compile(r"unknown field `(.*)`")
Value = TypeVar("Value")


class StrictConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of all configuration structs."""


def _refuse(problem: str, mark: yaml.Mark) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(problem=problem, problem_mark=mark)


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise _refuse("aliases are not supported", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise _refuse(f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_config(kind: type[Value], text: str | bytes, source: str) -> Value:
    """Parse YAML `text` into `kind`. Raises ConfigError that names `source`, the key and the reason."""
    try:
        raw = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - derived from SafeLoader
    except yaml.MarkedYAMLError as exc:
        line = f"line {exc.problem_mark.line + 1}" if exc.problem_mark else ""
        raise ConfigError(source, line, exc.problem or "not YAML") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(source, "", "not YAML") from exc
    try:
        return msgspec.convert({} if raw is None else raw, kind)
    except msgspec.ValidationError as exc:
        reason, _, where = str(exc).partition(" - at `$")
        where = where.rstrip("`").lstrip(".")
        number = _find_line(text, where, reason)
        place = f" (line {number})" if number else ""
        raise ConfigError(source, where, reason[:1].lower() + reason[1:] + place) from exc


def _find_line(text: str | bytes, where: str, reason: str) -> int:
    """Return the line, from 1, of what msgspec complains about at `where` (`a.b[0]`); 0 if it cannot be told."""
    node = yaml.compose(text, Loader=_StrictLoader)
    unknown = UNKNOWN_FIELD.search(reason)
    steps = [*PATH_STEP.findall(where), *([("", unknown[1])] if unknown else [])]
    line = 0
    for index, key in steps:
        if isinstance(node, yaml.SequenceNode) and index.isdigit() and int(index) < len(node.value):
            node = node.value[int(index)]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode):
            pairs = [pair for pair in node.value if getattr(pair[0], "value", None) == key]
            if not pairs:
                return line  # a key of a free mapping, which msgspec does not name
            line = pairs[0][0].start_mark.line + 1
            node = pairs[0][1]
        else:
            return line
    return line


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
