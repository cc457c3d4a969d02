# SPDX-License-Identifier: Apache-2.0
"""The help texts of the console, made from its tables. Pure."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Callable, Iterable

from enclavekit_rbuilds.console.catalog import (
    BY_NAME,
    CHOICE,
    CHOICES,
    COMMANDS,
    ENDS,
    SPACED,
    TEXT_NAMES,
    TOGGLES,
    Command,
)
from enclavekit_rbuilds.console.flags import FLAGS, Flag
from enclavekit_rbuilds.console.plan import Context
from enclavekit_rbuilds.console.replaced import REPLACED
from enclavekit_rbuilds.console.settings import Settings

WIDTH = 110
USAGE = "usage: rbuilds.sh [FLAG ...] [APP.dockerfile] [--cmd LINE ...]"
MODES = (
    "With --cmd: runs these lines in order and ends. Else, on a terminal: a prompt with history and completion. Else: "
    "runs the lines of standard input and ends with it. The first step that fails ends the run, is named, and its exit "
    "code is that of the call; an unknown flag or command is 2."
)
CHOICE_SUMMARY = f"ask which of {len(CHOICES)} commands for enclaves to run, and run that one"
SAMPLE_APP = "app.dockerfile"


class SampleSurroundings:
    """A directory with one app, one image and no manifest: for showing what commands run."""

    def is_file(self, path: str) -> bool:
        return path == SAMPLE_APP

    def is_directory(self, path: str) -> bool:
        return False

    def images(self) -> list[str]:
        return ["eif/app.eif"]

    def manifest_name(self, path: str) -> str | None:
        return None

    def directory_name(self) -> str:
        return "app"


def shown_steps(command: Command) -> list[str]:
    """Return what a command runs for a sample app, a line a step."""
    context = Context(command.name, Settings(source=SAMPLE_APP), SampleSurroundings())
    return [shlex.join(step.argv) if step.argv else f"({step.note})" for step in command.plan(context)]


def signature(command: Command) -> str:
    return f"{command.name} {command.argument}".rstrip()


def flag_names(flag: Flag) -> str:
    return " ".join(flag.aliases) + (f" {flag.value}" if flag.value else "")


def help_cli() -> str:
    return "\n".join([USAGE, "", *_wrapped(MODES), "", "flags:", *_flags()])


def help_short() -> str:
    return "\n".join([help_cli(), "", "commands:", *_commands(single=False), "", *_words()])


def help_extended() -> str:
    return "\n".join([help_short(), "", "single steps:", *_commands(single=True), "", *_replaced()])


def manual() -> str:
    lines = ["what the commands run, for the app app.dockerfile:"]
    for command in COMMANDS:
        lines += ["", signature(command), *_wrapped(command.summary, "    ")]
        lines += [f"    $ {step}" if not step.startswith("(") else f"    {step}" for step in shown_steps(command)]
    lines += ["", CHOICE, *_wrapped(f"{CHOICE_SUMMARY}: {', '.join(CHOICES)}", "    ")]
    return "\n".join(lines)


def help_extended_manual() -> str:
    return f"{help_extended()}\n\n{manual()}"


def _flags() -> list[str]:
    lines: list[str] = []
    for flag in FLAGS:
        lines += [*_wrapped(flag_names(flag), "  "), *_wrapped(flag.help, "      ")]
    return lines


def _commands(*, single: bool) -> list[str]:
    rows = [(signature(command), command.summary) for command in COMMANDS if command.single == single]
    if not single:
        rows.insert(next(i for i, row in enumerate(rows) if row[0].startswith("run_eif")), (CHOICE, CHOICE_SUMMARY))
    return _rows(rows)


def _words() -> list[str]:
    """Return the words that are no commands of steps."""
    spaced = [(f"make {word}", name) for word, name in SPACED.items()]
    return [
        "short forms:",
        *_rows(
            [
                ("make", "make_all"),
                *(
                    (f"{form} {BY_NAME[name].argument}".rstrip() if name in BY_NAME else form, name)
                    for form, name in spaced
                ),
            ]
        ),
        "",
        "switches, each off and on again:",
        *_rows(TOGGLES.items()),
        "",
        "texts and ends:",
        *_rows([*TEXT_NAMES.items(), (" ".join(ENDS), "end here")]),
        "",
        *_wrapped(
            "Words after a command that begin with - go to the rbuilds subcommand behind it (see man). Each rbuilds "
            "subcommand can be given as a line as well, and so can a line of flags. # begins a comment."
        ),
    ]


def _replaced() -> list[str]:
    lines = ["steps that something else does (they say so; those marked ! fail):"]
    for step in REPLACED:
        lines += _wrapped(f"{step.name}{' !' if step.fails else ''}: {step.by}", "  ", "      ")
    return lines


def _rows(rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return [f"  {name.ljust(width)}  {text}" for name, text in rows]


def _wrapped(text: str, first: str = "", then: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=first if then is None else then,
        break_on_hyphens=False,
        break_long_words=False,
    )


TEXTS: dict[str, Callable[[], str]] = {
    "help": help_short,
    "help_cli": help_cli,
    "help_ext": help_extended,
    "help_ext_man": help_extended_manual,
    "man": manual,
    "info": help_extended_manual,
}
