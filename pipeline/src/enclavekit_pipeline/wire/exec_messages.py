# SPDX-License-Identifier: Apache-2.0
"""Messages of commands: what is to run, and how it ended. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from enclavekit_pipeline.wire.messages import MAX_WORDS, Message, malformed

LIMITS = ("core", "cpu", "fsize", "memory", "nofile", "nproc", "stack")
"""What may be limited, each of a process: cpu in seconds, nofile and nproc in numbers, the others in bytes."""
MAX_LIMIT = 2**53  # exact in every JSON reader, and more than any machine has
Cells = Annotated[int, msgspec.Meta(ge=1, le=0xFFFF)]
Limit = Annotated[int, msgspec.Meta(ge=0, le=MAX_LIMIT)]


class WindowSize(Message, frozen=True):
    """How large the caller's terminal is now."""

    rows: Cells
    columns: Cells


class Terminal(WindowSize, frozen=True):
    """The command gets a terminal of its own."""

    term: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._+-]{1,64}\Z")] = "dumb"
    """Becomes TERM."""


class Surroundings(Message, frozen=True):
    """Where and as whom something runs; what exec and shell share."""

    environment: dict[str, str] = {}
    directory: str | None = None
    user: str | None = None
    """Name or `uid[:gid]`."""
    system: bool = False
    terminal: Terminal | None = None
    limits: dict[str, Limit] = {}
    """Of LIMITS."""

    def check_words(self, argv: list[str]) -> None:
        """Raises RemoteProtocolError."""
        words = [*argv, *self.environment, *self.environment.values(), self.directory or "", self.user or ""]
        if len(words) > MAX_WORDS:
            raise malformed("too many words")
        if any(not name or "=" in name for name in self.environment):
            raise malformed("an environment variable without a name")
        if unknown := set(self.limits) - set(LIMITS):
            raise malformed(f"no limit {min(unknown)[:20]!r}")
        if any("\0" in word for word in words):
            raise malformed("NUL in a word")


class ExecRequest(Surroundings, frozen=True, kw_only=True, tag="exec", tag_field="verb"):
    argv: list[str]
    stdin: bool = False
    timeout_s: float | None = None
    detach: bool = False
    """Becomes a job, which runs on without its caller."""

    def check(self) -> None:
        """Raises RemoteProtocolError."""
        if not self.argv or not self.argv[0]:
            raise malformed("no command")
        self.check_words(self.argv)
        if self.timeout_s is not None and not 0 < self.timeout_s < 10**9:
            raise malformed("time-out out of range")


class ShellRequest(Surroundings, frozen=True, tag="shell", tag_field="verb"):
    """The login shell of the root and user; the enclave knows which that is. It always reads standard input."""

    def check(self) -> None:
        """Raises RemoteProtocolError."""
        self.check_words([])


class Exit(Message, frozen=True):
    status: Annotated[int, msgspec.Meta(ge=0, le=255)]
    """0..255, or 128+n if signal n ended it."""
    signal: int | None = None
    timed_out: bool = False
