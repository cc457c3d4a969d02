# SPDX-License-Identifier: Apache-2.0
"""Run one step: its output goes on as it comes, to several places at once.

`base.command.run` gives output when a program has ended; people and logs of long steps want it meanwhile, and a step
that leaves a daemon behind must not keep us until that closes its end of the pipe.
"""

from __future__ import annotations

import os
import select
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from enclavekit_core.errors import InputError, describe_cause

CHUNK_BYTES = 64 * 1024
TAIL_BYTES = 4 * 1024  # of stderr, for the one line that says why
PATIENCE_S = 10.0  # for a step to end by itself after Ctrl-C, which reached it as well
MODULES = {"rbuilds": "enclavekit_rbuilds.cli", "eif": "enclavekit_eif.cli"}

Sink = Callable[[bytes], None]


class Terminated(KeyboardInterrupt):
    """SIGTERM came: unlike Ctrl-C, it came to us alone."""


@dataclass(frozen=True, slots=True)
class Outcome:
    status: int
    """Exit code; 128 + n if signal n ended it."""
    last_line: str
    """The last line on stderr."""


def real_argv(argv: Sequence[str]) -> list[str]:
    """Return the argv that runs `rbuilds` or `eif` of this very installation, whatever PATH says.

    -P: Python must not import modules from the directory in which it is called.
    """
    module = MODULES.get(argv[0])
    if module is None:
        return list(argv)
    code = f"import sys; from {module} import main; sys.exit(main())"
    return [sys.executable, "-P", "-c", code, *argv[1:]]


def run_process(argv: Sequence[str], out: Sink, err: Sink, *, stdin: int = subprocess.DEVNULL) -> Outcome:
    """Run `argv` to its end. Raises InputError if it cannot be started; what a sink raises ends the program."""
    try:
        child = subprocess.Popen(list(argv), stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as exc:
        raise InputError("run", argv[0], describe_cause(exc)) from exc
    assert child.stdout is not None and child.stderr is not None
    tail = b""

    def keep_tail(chunk: bytes) -> None:
        nonlocal tail
        tail = (tail + chunk)[-TAIL_BYTES:]
        err(chunk)

    try:
        with child.stdout, child.stderr:
            _pass_on(child, {child.stdout.fileno(): out, child.stderr.fileno(): keep_tail})
        status = child.wait()
    except BaseException as exc:
        _end(child, exc)
        raise
    lines = [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
    return Outcome(status if status >= 0 else 128 - status, lines[-1] if lines else "")


def _pass_on(child: subprocess.Popen[bytes], sinks: dict[int, Sink]) -> None:
    """Give each chunk to its sink until both pipes are closed, or the child has ended and they are empty."""
    ended = os.pidfd_open(child.pid)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            for descriptor in sinks:
                selector.register(descriptor, selectors.EVENT_READ)
            left = set(sinks)
            while left:
                ready = [key.fd for key, _ in selector.select()]
                for descriptor in left.intersection(ready):
                    chunk = os.read(descriptor, CHUNK_BYTES)
                    if chunk:
                        sinks[descriptor](chunk)
                    else:
                        selector.unregister(descriptor)
                        left.discard(descriptor)
                if ready == [ended] and not select.select(left, [], [], 0)[0]:
                    return  # what is still open is held by something that outlives the step
    finally:
        os.close(ended)


def _end(child: subprocess.Popen[bytes], cause: BaseException) -> None:
    if child.poll() is not None:
        return
    if not isinstance(cause, KeyboardInterrupt) or isinstance(cause, Terminated):
        child.terminate()
    try:
        child.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def end_on_sigterm() -> None:
    """Have SIGTERM end the running step, then us."""

    def handler(_number: int, _frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, handler)
