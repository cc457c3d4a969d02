# SPDX-License-Identifier: Apache-2.0
"""YAML as configurations have it, without aliases and duplicate keys; and where in it something is."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from enclavekit_core.errors import ConfigError

PATH_STEP = re.compile(r"\[(\d+|\.\.\.)\]|([^.\[\]]+)")  # of msgspec's paths
UNKNOWN_FIELD = re.compile(r"unknown field `(.*)`")


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


def parse_yaml(text: str | bytes, source: str) -> Any:
    """Return what the one document in `text` stands for. Raises ConfigError that names `source` and the line."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - derived from SafeLoader
    except yaml.MarkedYAMLError as exc:
        line = f"line {exc.problem_mark.line + 1}" if exc.problem_mark else ""
        raise ConfigError(source, line, exc.problem or "not YAML") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(source, "", "not YAML") from exc


def find_line(text: str | bytes, where: str, reason: str) -> int:
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
