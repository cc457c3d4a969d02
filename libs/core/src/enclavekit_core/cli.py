# SPDX-License-Identifier: Apache-2.0
"""What every command line shares: one line for an error, its exit code, quiet ends for Ctrl-C and closed pipes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from enclavekit_core.errors import EnclavekitError

EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


def run_command(program: str, command: Callable[[], int | None]) -> int:
    """Run `command` and return the exit code; an EnclavekitError becomes one line on stderr."""
    try:
        status = command() or 0
        sys.stdout.flush()
        return status
    except EnclavekitError as exc:
        print(f"{program}: {exc}", file=sys.stderr)
        return exc.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has left; a second error at interpreter exit would only be noise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def run_and_exit(program: str, command: Callable[[], int | None]) -> NoReturn:
    """`run_command`, then exit."""
    sys.exit(run_command(program, command))
