# SPDX-License-Identifier: Apache-2.0
"""Our own terminal while a command in the enclave has it: raw, and as it was again whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import tty
from collections.abc import Callable, Iterator
from types import FrameType

from enclavekit_pipeline.wire.exec_messages import Terminal, WindowSize

STDIN, STDOUT, STDERR = 0, 1, 2
DEFAULT_ROWS, DEFAULT_COLUMNS = 24, 80  # of a terminal that nobody looks at
MAX_CELLS = 0xFFFF
DETACH_KEYS = b"\x10\x11"  # Ctrl-P Ctrl-Q, as in docker


def window_size() -> WindowSize:
    """Return the size of the terminal that we have, if any."""
    for descriptor in (STDOUT, STDIN, STDERR):
        with contextlib.suppress(OSError):
            size = os.get_terminal_size(descriptor)
            if size.lines and size.columns:
                return WindowSize(rows=min(size.lines, MAX_CELLS), columns=min(size.columns, MAX_CELLS))
    return WindowSize(rows=DEFAULT_ROWS, columns=DEFAULT_COLUMNS)


def describe_terminal(term: str) -> Terminal:
    """Return what the command's terminal is to be like, for our TERM."""
    size = window_size()
    name = term if 0 < len(term) <= 64 and all(c.isascii() and (c.isalnum() or c in "._+-") for c in term) else "dumb"
    return Terminal(rows=size.rows, columns=size.columns, term=name)


@contextlib.contextmanager
def raw_terminal(on_resume: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Make standard input raw, if it is a terminal, and put it back at the end, before a stop and before a death by
    signal. Nothing can be done about SIGKILL; `stty sane` is the user's then.

    Args:
        on_resume: called after a stop, when the window may have another size.
    """
    if not os.isatty(STDIN):
        yield
        return
    before = termios.tcgetattr(STDIN)

    def restore() -> None:
        with contextlib.suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(STDIN, termios.TCSADRAIN, before)

    def stop(number: int, frame: FrameType | None) -> None:
        restore()
        os.kill(os.getpid(), signal.SIGSTOP)
        with contextlib.suppress(termios.error):
            tty.setraw(STDIN, termios.TCSADRAIN)
        on_resume()

    stopped = signal.signal(signal.SIGTSTP, stop)
    try:
        tty.setraw(STDIN, termios.TCSADRAIN)
        yield
    finally:
        restore()
        signal.signal(signal.SIGTSTP, stopped)


class DetachKeys:
    """Finds the keys that leave a job in what is typed; they may come in two pieces. Pure."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Return what to pass on, and whether the keys were typed after it."""
        data = self._held + data
        before, found, _ = data.partition(DETACH_KEYS)
        if found:
            return before, True
        self._held = DETACH_KEYS[:1] if data.endswith(DETACH_KEYS[:1]) else b""
        return data[: len(data) - len(self._held)], False
