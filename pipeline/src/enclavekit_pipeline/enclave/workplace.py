# SPDX-License-Identifier: Apache-2.0
"""What requests act on in the enclave, and the threads that do what would block."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TypeVar

from enclavekit_pipeline.channel.threads import run_in
from enclavekit_pipeline.enclave.client_groups import ClientGroups
from enclavekit_pipeline.enclave.clients import Refused
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.enclave.starting import Starter
from enclavekit_pipeline.wire.requests import Request

MAX_COMMANDS = 128  # running at once; on kernels without pidfd_open(2) each keeps a thread waiting
MAX_FORWARDS = 512  # connections and listeners of all callers; each may hold up to 1 MiB and two descriptors
# copies at once: each holds two batches, 2 MiB, as long as its caller takes nothing of it, and as much of what has come
MAX_COPIES = 32
MAX_COPIES_OF_CLIENT = 16  # so that one who takes nothing keeps nobody else from copying
FILE_THREADS = 16  # beside those: copies go on while every command slot is taken
MAX_THREADS = MAX_COMMANDS + FILE_THREADS
Result = TypeVar("Result")


@dataclass
class Workplace:
    """Shared by all connections of a listener."""

    app_root: Root
    system_root: Root
    threads: Executor
    """Of MAX_THREADS."""
    starter: Starter = field(default_factory=Starter)
    groups: ClientGroups = field(default_factory=ClientGroups)
    commands: int = 0
    """Running now."""
    forwards: int = 0
    """Open now."""
    copies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_COPIES))
    copies_of: dict[str, asyncio.Semaphore] = field(default_factory=dict)
    """By client."""

    def root_of(self, request: Request) -> Root:
        return self.system_root if request.system else self.app_root

    async def in_thread(self, function: Callable[..., Result], *args: object) -> Result:
        """Run what may block, see `run_in`."""
        return await run_in(self.threads, function, *args)

    @contextlib.contextmanager
    def command_slot(self) -> Iterator[None]:
        """Raises Refused if all are taken."""
        if self.commands >= MAX_COMMANDS:
            raise Refused(f"{MAX_COMMANDS} commands are running already")
        self.commands += 1
        try:
            yield
        finally:
            self.commands -= 1

    @contextlib.asynccontextmanager
    async def copy_slot(self, client: str) -> AsyncIterator[None]:
        """Wait for a place: unlike a command's, a copy's end is near as a rule."""
        own = self.copies_of.setdefault(client, asyncio.Semaphore(MAX_COPIES_OF_CLIENT))
        async with own, self.copies:
            yield

    @contextlib.contextmanager
    def forward_slot(self) -> Iterator[None]:
        """Raises Refused if all are taken."""
        if self.forwards >= MAX_FORWARDS:
            raise Refused(f"{MAX_FORWARDS} connections are forwarded already")
        self.forwards += 1
        try:
            yield
        finally:
            self.forwards -= 1
