# SPDX-License-Identifier: Apache-2.0
"""Where commands and answers come from: a terminal, or lines of standard input."""

from __future__ import annotations

import os
import select
import sys
from typing import Protocol

from enclavekit_core.errors import InputError

# on a pipe that nobody writes to, as some CI systems give: a question must fail there, not wait for ever
ANSWER_TIMEOUT_S = 60.0
MAX_LINE_BYTES = 64 * 1024
CHUNK_BYTES = 4096


class Lines(Protocol):
    def next_line(self) -> str | None:
        """Return the next command line, None at the end. Raises InputError."""

    def answer(self, question: str) -> str:
        """Return the answer, stripped. Raises InputError if there is none to be had."""


class PipedLines:
    """Lines of a descriptor that is no terminal. Commands and answers are lines of the same stream."""

    def __init__(self, descriptor: int = 0, *, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.descriptor = descriptor
        self.answer_timeout_s = answer_timeout_s
        self._buffer = b""
        self._ended = False

    def next_line(self) -> str | None:
        return self._read(None)

    def answer(self, question: str) -> str:
        print(question, file=sys.stderr, flush=True)
        line = self._read(self.answer_timeout_s)
        if line is None:
            raise InputError("ask", f"{question!r}", "there is no terminal, and standard input holds no answer")
        return line.strip()

    def _read(self, timeout_s: float | None) -> str | None:
        while b"\n" not in self._buffer and not self._ended:
            if len(self._buffer) > MAX_LINE_BYTES:
                raise InputError("read", "standard input", f"a line is longer than {MAX_LINE_BYTES} bytes")
            try:
                if timeout_s is not None and not select.select([self.descriptor], [], [], timeout_s)[0]:
                    return None
                chunk = os.read(self.descriptor, CHUNK_BYTES)
            except OSError:
                chunk = b""  # closed: nothing comes from there
            self._ended = not chunk
            self._buffer += chunk
        if not self._buffer:
            return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        try:
            return line.decode().rstrip("\r")
        except UnicodeDecodeError as exc:
            raise InputError("read", "standard input", "a line is not UTF-8") from exc


class TerminalAnswers:
    """No commands, only answers, from a terminal."""

    def next_line(self) -> str | None:
        return None

    def answer(self, question: str) -> str:
        try:
            return input(f"{question} ").strip()
        except EOFError:
            raise InputError("ask", f"{question!r}", "the terminal was closed") from None
