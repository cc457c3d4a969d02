# SPDX-License-Identifier: Apache-2.0
"""What the flags of the console amount to, as a value. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

NetworkMode = Literal["none", "forward", "reverse", "both"]
InitName = Literal["python", "c"]

FORWARD, REVERSE = "forward", "reverse"
DEFAULT_CID = 127  # of the Rust framework's scripts; rbuilds run begins there as well and takes the next free one


@dataclass(frozen=True, slots=True)
class Settings:
    """All flags of one call; a line of flags in the REPL makes a new one."""

    source: str | None = None
    """Dockerfile, image archive or root directory; None: the manifest names it."""
    manifest: str | None = None
    network: NetworkMode | None = None
    """None: what the manifest lists."""
    init: InitName = "python"
    kernel_version: str | None = None
    kernel_user: str | None = None
    kernel_host: str | None = None
    memory_mib: int | None = None
    """None: what the image asks for."""
    cpus: int | None = None
    cid: int | None = None
    """None: DEFAULT_CID or the next free one. Given: that one or failure."""
    debug: bool = False
    question: bool = False
    local_shell: bool = False
    tty: bool = False
    dry_run: bool = False
    json: bool = False
    commands: tuple[str, ...] = ()
    """Lines given with --cmd, in their order."""
    text: str | None = None
    """Name of the help text asked for; nothing else is done then."""

    def with_network(self, direction: str) -> Settings:
        """Return the settings with one direction more: both flags together mean both directions."""
        if direction not in (FORWARD, REVERSE) or self.network in (None, "none", direction):
            return replace(self, network=direction)  # type: ignore[arg-type]
        return replace(self, network="both")

    def switch(self, name: str) -> tuple[Settings, bool]:
        """Return the settings with one of the switches turned, and whether it is on now."""
        is_on = not getattr(self, name)
        return replace(self, **{name: is_on}), is_on  # type: ignore[arg-type]

    def toggle_network(self, direction: str) -> Settings:
        """Return the settings with a direction switched, as a word typed in the REPL does."""
        now = {"forward": {FORWARD}, "reverse": {REVERSE}, "both": {FORWARD, REVERSE}}.get(self.network or "", set())
        wanted = {FORWARD, REVERSE} if direction == "both" else {direction}
        after = now - wanted if wanted <= now else now | wanted
        mode = "both" if len(after) == 2 else next(iter(after), None)
        return replace(self, network=mode)  # type: ignore[arg-type]
