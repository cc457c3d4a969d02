# SPDX-License-Identifier: Apache-2.0
"""A child of PID 1 that does one thing which may take its time, so that PID 1 does not wait.

PID 1 has one thread, so its child may go on running Python after the fork.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import NoReturn

from enclavekit_core.errors import EnclavekitError, describe_cause

MAX_MESSAGE_BYTES = 1000


def fork_helper(task: Callable[[], None]) -> tuple[int, int]:
    """Run `task` in a child; return its pid and a pipe with what went wrong, empty if nothing did. Raises OSError."""
    reader, writer = os.pipe()
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _run(task, writer)
    except OSError:
        os.close(reader)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        os.close(writer)
    os.set_blocking(reader, False)
    return pid, reader


def _run(task: Callable[[], None], writer: int) -> NoReturn:
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        task()
        status = 0
    except (EnclavekitError, OSError) as exc:
        os.write(writer, describe_cause(exc).encode(errors="backslashreplace")[:MAX_MESSAGE_BYTES])
    except BaseException as exc:
        os.write(writer, f"{type(exc).__name__}: {exc}".encode(errors="backslashreplace")[:MAX_MESSAGE_BYTES])
    finally:
        os._exit(status)
