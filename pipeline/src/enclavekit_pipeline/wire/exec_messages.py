# SPDX-License-Identifier: Apache-2.0
"""Messages of commands: what is to run, and how it ended. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from enclavekit_pipeline.wire.messages import MAX_WORDS, Message, malformed


class ExecRequest(Message, frozen=True, tag="exec", tag_field="verb"):
    argv: list[str]
    stdin: bool = False
    environment: dict[str, str] = {}
    directory: str | None = None
    user: str | None = None
    """Name or `uid[:gid]`."""
    timeout_s: float | None = None
    system: bool = False

    def check(self) -> None:
        """Raises RemoteProtocolError."""
        words = [*self.argv, *self.environment, *self.environment.values(), self.directory or ""]
        if not self.argv or not self.argv[0] or len(words) > MAX_WORDS:
            raise malformed("no command, or too many words")
        if any(not name or "=" in name for name in self.environment):
            raise malformed("an environment variable without a name")
        if self.timeout_s is not None and not 0 < self.timeout_s < 10**9:
            raise malformed("time-out out of range")
        if any("\0" in word for word in words):
            raise malformed("NUL in a word")


class Exit(Message, frozen=True):
    status: Annotated[int, msgspec.Meta(ge=0, le=255)]
    """0..255, or 128+n if signal n ended it."""
    signal: int | None = None
    timed_out: bool = False
