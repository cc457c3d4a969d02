# SPDX-License-Identifier: Apache-2.0
"""A call in a process of its own, for what a service needs once: what it loads, and the memory it leaves behind, go
with that process.
"""

from __future__ import annotations

import os
import pickle
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

from enclavekit_core.errors import EnclavekitError

Value = TypeVar("Value")


def call_short_lived(function: Callable[[], Value]) -> Value:
    """Return what `function` returns in a fork of this process, which ends then; call it before there are threads.

    Its value is pickled, through a pipe that nobody else has.

    Raises:
        EnclavekitError: the one that it raised.
        RuntimeError: it ended otherwise; what it said of that is on stderr.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
        if pid == 0:
            _answer(function, write)
    finally:
        os.close(write)
        with open(read, "rb") as source:
            answer = source.read()  # to its end, or ours
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0:
        raise RuntimeError(f"a process of ours ended with {status}")
    failure, value = pickle.loads(answer)  # noqa: S301 - from our own fork
    if failure is not None:
        raise _rebuild(*failure)
    return value  # type: ignore[no-any-return]


def _answer(function: Callable[[], object], write: int) -> NoReturn:
    status = 1
    try:
        try:
            answer = pickle.dumps((None, function()))
        except EnclavekitError as exc:
            # not the error itself: it would be made again from its text alone
            answer = pickle.dumps(((type(exc), str(exc), vars(exc)), None))
        with open(write, "wb") as target:
            target.write(answer)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _rebuild(kind: type[EnclavekitError], text: str, fields: dict[str, object]) -> EnclavekitError:
    error = kind.__new__(kind, text)
    vars(error).update(fields)
    return error
