# SPDX-License-Identifier: Apache-2.0
"""What an enclave says about itself. Pure."""

from __future__ import annotations

from enclavekit_pipeline.wire.messages import Message


class InfoRequest(Message, frozen=True, tag="info", tag_field="verb"):
    """Granted to whoever is let in: what it tells is the caller's own rights and how things are."""

    system: bool = False

    def check(self) -> None:
        """Nothing in it can be wrong."""


class Info(Message, frozen=True):
    """The answer. An older enclave leaves out what it does not know."""

    version: str
    """Of the listener's package."""
    protocol: int
    client: str
    allow: list[str]
    """Verbs."""
    system: bool
    restricted_commands: bool
    """The list names the commands that may be run."""
    limits: dict[str, int]
    """By name: sessions, streams, commands, payload_bytes, window_bytes; and of the client, 0 for no limit of its own:
    sessions_of_client, memory_bytes_of_client, tasks_of_client, cpu_percent_of_client.
    """
    app_root: str
    """As the listener sees it; `/` is the framework's own."""
    uptime_s: float
    """Of the listener."""
    boot: dict[str, str]
    """Facts about the machine: kernel, machine, cpus, memory_mib, uptime_s, init."""
