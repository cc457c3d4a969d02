# SPDX-License-Identifier: Apache-2.0
"""Commands and environments in unit files. Pure; every function raises ValueError with the rule that was broken."""

from __future__ import annotations

from dataclasses import dataclass

from enclavekit_enclave_init.units.values import parse_path, parse_strings, parse_text


@dataclass(frozen=True, slots=True)
class EnvironmentFile:
    """A file of `NAME=value` lines, read when a unit starts."""

    path: str
    """Absolute, in the framework's root."""
    optional: bool = False
    """A missing file is then no error."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command besides ExecStart."""

    argv: tuple[str, ...]
    ignores_failure: bool = False


def split_command(text: str) -> tuple[str, ...]:
    """Split a command line into arguments.

    Blanks and newlines separate; "..." and '...' group, also to an empty argument; a backslash outside '...' takes
    the next character as it is. Nothing else is special: no variables, no globs, no shell.

    Raises: ValueError for an unterminated quote or a trailing backslash.
    Source: the Rust enclave-init, less its losses (empty arguments vanished, open quotes were accepted).
    """
    arguments: list[str] = []
    current: list[str] = []
    quote, started, escaped = "", False, False
    for char in text:
        if escaped:
            current.append(char)
            escaped = False
        elif char == "\\" and quote != "'":
            escaped = started = True
        elif quote:
            if char == quote:
                quote = ""
            else:
                current.append(char)
        elif char in "\"'":
            quote, started = char, True
        elif char in " \t\r\n":
            if started:
                arguments.append("".join(current))
            current, started = [], False
        else:
            current.append(char)
            started = True
    if quote or escaped:
        raise ValueError("a quote is not closed" if quote else "it ends with a backslash")
    if started:
        arguments.append("".join(current))
    return tuple(arguments)


def parse_command(value: object) -> tuple[str, ...]:
    argv = split_command(parse_text(value)) if isinstance(value, str) else parse_strings(value)
    if not argv or not argv[0]:
        raise ValueError("it names no program")
    return argv


def parse_command_list(value: object) -> tuple[Command, ...]:
    """A command line, or a list of such; `-` before one: its failure does not matter."""
    lines = (value,) if isinstance(value, str) else parse_strings(value)
    commands = []
    for line in lines:
        text = parse_text(line).strip()
        commands.append(Command(parse_command(text.removeprefix("-")), text.startswith("-")))
    return tuple(commands)


def parse_one_command(value: object) -> Command:
    return Command(parse_command(value))


def parse_environment(value: object) -> tuple[tuple[str, str], ...]:
    pairs = []
    for item in parse_strings(value):
        key, equals, text = item.partition("=")
        if not key or not equals:
            raise ValueError(f"{item!r} is not NAME=value")
        pairs.append((key, text))
    return tuple(pairs)


def parse_environment_files(value: object) -> tuple[EnvironmentFile, ...]:
    items = (value,) if isinstance(value, str) else parse_strings(value)
    return tuple(EnvironmentFile(parse_path(item.removeprefix("-")), item.startswith("-")) for item in items)


def parse_environment_lines(text: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs of an environment file: NAME=value, the value as it stands; blank and # lines are skipped.

    Raises: ValueError with the number of the line that is none of these.
    """
    pairs = []
    for number, line in enumerate(text.split("\n"), 1):
        name, equals, value = line.partition("=")
        if not line.strip() or line.startswith("#"):
            continue
        if not equals or not name or name != name.strip() or "\0" in line:
            raise ValueError(f"line {number} is not NAME=value")
        pairs.append((name, value))
    return tuple(pairs)
