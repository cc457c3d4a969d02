# SPDX-License-Identifier: Apache-2.0
"""One call of the console: flags, then one of three modes, then the report."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from enclavekit_core.errors import EnclavekitError, InputError

from enclavekit_rbuilds.console.flags import parse_flags
from enclavekit_rbuilds.console.lines import Lines, PipedLines, TerminalAnswers
from enclavekit_rbuilds.console.output import Output
from enclavekit_rbuilds.console.process import end_on_sigterm
from enclavekit_rbuilds.console.report import render_report
from enclavekit_rbuilds.console.session import Session, run_lines
from enclavekit_rbuilds.console.surroundings import CurrentDirectory
from enclavekit_rbuilds.console.texts import TEXTS


def run_console(words: Sequence[str], subcommands: Sequence[str]) -> int:
    """Return the exit code. Raises EnclavekitError."""
    settings = parse_flags(words)
    if settings.text is not None:
        print(TEXTS[settings.text]())
        return 0
    end_on_sigterm()
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    output = Output(as_json=settings.json)
    lines: Lines = TerminalAnswers() if is_terminal else PipedLines(_standard_input())
    session = Session(settings, CurrentDirectory(), lines, output, subcommands=subcommands, interactive=is_terminal)
    session.trace_settings()
    failure: str | None = None
    try:
        if settings.commands:
            run_lines(session, settings.commands)
            return 0
        if is_terminal:
            from enclavekit_rbuilds.console.repl import open_terminal, run_repl

            terminal = open_terminal(list(subcommands))
            session.lines = terminal
            return run_repl(session, terminal)
        run_script(session)
        return 0
    except EnclavekitError as exc:
        failure = str(exc)
        raise
    except KeyboardInterrupt:
        failure = "interrupted"
        raise
    finally:
        output.close()
        if settings.json:
            print(render_report(session.results, failure))


def _standard_input() -> int:
    """Return its descriptor; nothing to read where it is closed, as 0 may soon be something else then."""
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC) if sys.stdin is None else sys.stdin.fileno()


def run_script(session: Session) -> None:
    """Run the lines of standard input to its end. Raises EnclavekitError; what follows a failure is not run."""
    has_run = False
    while not session.ended:
        line = session.lines.next_line()
        if line is None:
            break
        has_run = has_run or bool(line.strip())
        session.run_line(line)
    if not has_run:
        # a job whose commands got lost on the way must not look done
        raise InputError("run", "commands", "there is none: no --cmd, and standard input is empty; --help lists them")
