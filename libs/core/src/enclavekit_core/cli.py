# SPDX-License-Identifier: Apache-2.0
"""What every command line shares: one line for an error, its exit code, quiet ends for Ctrl-C and closed pipes."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from enclavekit_core.errors import EnclavekitError, InputError, describe_cause

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE
OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)  # write(2) to a file, a terminal


def run_command(program: str, command: Callable[[], int | None]) -> int:
    """Run `command` and return the exit code; an EnclavekitError becomes one line on stderr."""
    fill_standard_streams()
    try:
        return _run_and_flush(command)
    except EnclavekitError as exc:
        print(f"{program}: {exc}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _give_up_stdout()  # whoever read our output has left
        return EXIT_BROKEN_PIPE


def _run_and_flush(command: Callable[[], int | None]) -> int:
    """Raises InputError if standard output takes no more, and what `command` raises."""
    try:
        status = command() or 0
        sys.stdout.flush()
        return status
    except OSError as exc:
        # a file of our own would have its name in it, and been spoken of by whoever opened it: this is `print`
        if exc.errno not in OUTPUT_ERRORS or exc.filename is not None:
            raise
        _give_up_stdout()
        raise InputError("write", "standard output", describe_cause(exc)) from exc


def fill_standard_streams() -> None:
    """Open what is closed of standard input, output and error, so that using it fails; idempotent.

    Else the next file or socket would get its number, and our output; and without standard error, `print` takes
    standard output for it.
    """
    for descriptor, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest that is free, hence this one
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for as long as we run
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as above


def _give_up_stdout() -> None:
    """Let what is left go nowhere: a second error at the interpreter's end would only be noise."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_and_exit(program: str, command: Callable[[], int | None]) -> NoReturn:
    """`run_command`, then exit."""
    sys.exit(run_command(program, command))
