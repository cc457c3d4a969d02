# SPDX-License-Identifier: Apache-2.0
"""The flags of `rbuilds build` inside another command's, and the words of a build that does the same elsewhere. Pure.

A build in another directory must read the same files, so paths that the user gave relative are made absolute. Which
flags hold paths, their metavar says; it is what people read in --help, hence never wrong for long.
"""

from __future__ import annotations

import argparse
import os
from typing import Any, Protocol

PATH_METAVARS = ("FILE", "DIR", "PATH", "CERT")
# a comparison decides about these itself
NOT_TAKEN = frozenset({"--dry-run", "--json", "--quiet", "--with-time"})


class Arguments(Protocol):
    """What flags are added to: a parser, or a group of one."""

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action: ...


class Recorder:
    """Passes flags on to a parser and remembers them; stands in for a parser in another command's add_arguments."""

    def __init__(self, parser: Any, actions: list[argparse.Action] | None = None) -> None:
        self._parser = parser
        self.actions: list[argparse.Action] = [] if actions is None else actions

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action | None:
        if NOT_TAKEN.intersection(names):
            return None
        action: argparse.Action = self._parser.add_argument(*names, **settings)
        self.actions.append(action)
        return action

    def add_mutually_exclusive_group(self, **settings: Any) -> Recorder:
        return Recorder(self._parser.add_mutually_exclusive_group(**settings), self.actions)

    def add_argument_group(self, *words: Any, **settings: Any) -> Recorder:
        return Recorder(self._parser.add_argument_group(*words, **settings), self.actions)


def words_of(actions: list[argparse.Action], args: argparse.Namespace, directory: str) -> list[str]:
    """Return the words that give another parser of these flags the same values.

    Args: directory: what relative paths are relative to; empty leaves them.
    """
    words: list[str] = []
    for action in actions:
        value = getattr(args, action.dest)
        if value == action.default or value is None:
            continue
        option = next((name for name in action.option_strings if name.startswith("--")), "")
        if action.nargs == 0:
            words.append(option)
            continue
        # = keeps a value that begins with a dash from being taken for a flag
        for item in value if isinstance(value, list) else [value]:
            words.append(f"{option}={_absolute(str(item), action.metavar, directory)}")
    return words


def _absolute(value: str, metavar: Any, directory: str) -> str:
    is_path = isinstance(metavar, str) and metavar.startswith(PATH_METAVARS)
    return os.path.join(directory, value) if directory and is_path and value else value
