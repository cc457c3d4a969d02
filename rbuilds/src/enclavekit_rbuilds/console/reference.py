# SPDX-License-Identifier: Apache-2.0
"""The tables of the reference page of rbuilds.sh, made from those of the console.

    python -m enclavekit_rbuilds.console.reference docs/reference/rbuilds-sh.md

writes them between the page's marks, `<!-- table: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
import sys
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
from enclavekit_rbuilds.console.replaced import REPLACED
from enclavekit_rbuilds.console.texts import CHOICE_SUMMARY, shown_steps, signature

MARKED = re.compile(r"(<!-- table: ([a-z ]+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def flags_table() -> str:
    return render_table(("flags", ""), ((_flag(flag), flag.help) for flag in FLAGS))


def commands_table() -> str:
    rows = [_command(command) for command in COMMANDS if not command.single]
    rows.append((f"`{CHOICE}`", CHOICE_SUMMARY, f"one of {', '.join(f'`{name}`' for name in CHOICES)}"))
    rows += [(f"`{name}`", f"text: {text}", "") for name, text in TEXT_NAMES.items()]
    rows += [(f"`{name}`", f"switch: {text}", "") for name, text in TOGGLES.items()]
    rows.append((", ".join(f"`{word}`" for word in ENDS), "end here", ""))
    return render_table(("command", "", "runs"), rows)


def short_forms_table() -> str:
    rows = [("`make`", "`make_all`")]
    for word, name in SPACED.items():
        argument = BY_NAME[name].argument if name in BY_NAME else ""
        rows.append((f"`{f'make {word} {argument}'.rstrip()}`", f"`{name}`"))
    return render_table(("short", "for"), rows)


def single_steps_table() -> str:
    return render_table(("step", "", "runs"), (_command(command) for command in COMMANDS if command.single))


def replaced_table() -> str:
    return render_table(
        ("step", "instead"), ((f"`{step.name}`{' !' if step.fails else ''}", step.by) for step in REPLACED)
    )


TABLES: dict[str, Callable[[], str]] = {
    "flags": flags_table,
    "commands": commands_table,
    "short forms": short_forms_table,
    "single steps": single_steps_table,
    "replaced": replaced_table,
}


def fill_page(text: str) -> str:
    """Return the page with its tables as they should be. A mark with an unknown name is a KeyError."""
    return MARKED.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", text)


def render_table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _flag(flag: Flag) -> str:
    names = " ".join(f"`{alias}`" for alias in flag.aliases)
    return f"{names}{f' {flag.value}' if flag.value else ''}{' *' if flag.ours else ''}"


def _command(command: Command) -> tuple[str, str, str]:
    runs = "<br>".join(f"`{step}`" if not step.startswith("(") else step for step in shown_steps(command))
    return (f"`{signature(command)}`", command.summary, runs)


def main(path: str) -> None:
    with open(path, encoding="utf-8") as source:
        text = source.read()
    with open(path, "w", encoding="utf-8") as out:
        out.write(fill_page(text))


if __name__ == "__main__":
    main(sys.argv[1])
