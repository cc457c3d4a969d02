# SPDX-License-Identifier: Apache-2.0
"""The one place where programs are run: argv lists, never a shell string."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import IO

from enclavekit_core.errors import CommandError, InputError, describe_cause

STDERR_TAIL_BYTES = 8 * 1024  # what a person reads of a failed build: the last hundred lines or so
DEFAULT_TIMEOUT_S = 1800.0  # a Dockerfile may compile for long; something that hangs must still end


def run(
    argv: Sequence[str],
    what: str,
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    output: IO[bytes] | None = None,
    needed_for: str = "",
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> bytes:
    """Run `argv` to its end and return its standard output (empty if it went to `output`).

    Args:
        what: completes "cannot ...", e.g. "fetch Debian packages".
        env: the whole environment; None inherits ours.
        needed_for: said when the program is missing.
    Raises: InputError if the program is missing or cannot run here; CommandError with the end of stderr if it fails.
    """
    try:
        done = subprocess.run(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output if output is not None else subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            cwd=cwd,
            timeout=timeout_s,
            check=False,
        )
    except FileNotFoundError as exc:
        reason = "it is not installed" + (f"; {needed_for}" if needed_for else "")
        raise InputError("find program", argv[0], reason) from exc
    except OSError as exc:  # another architecture's program, no permission
        raise InputError("run", argv[0], describe_cause(exc)) from exc
    except subprocess.TimeoutExpired as exc:
        raise InputError(what, f"with {argv[0]}", f"it was still running after {timeout_s:.0f} s") from exc
    if done.returncode:
        tail = (done.stderr or b"")[-STDERR_TAIL_BYTES:].decode(errors="replace")
        raise CommandError(what, list(argv), done.returncode, tail)
    return done.stdout or b""
