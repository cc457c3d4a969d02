# SPDX-License-Identifier: Apache-2.0
"""What is launched and what runs, as values that travel between rbuilds and its supervisors as JSON. Pure."""

from __future__ import annotations

from typing import Literal

import msgspec
from enclavekit_core.errors import EnclavekitError

BackendName = Literal["nitro-cli", "nitro-emu"]
BACKENDS: tuple[BackendName, ...] = ("nitro-cli", "nitro-emu")


class LaunchError(EnclavekitError):
    """An enclave that could not be started, found, entered or ended (exit 5: a program that we ran failed)."""

    exit_code = 5

    def __init__(self, verb: str, what: str, cause: str, code: str = "") -> None:
        """`code` is nitro-cli's number, such as E26, or empty."""
        self.code = code
        super().__init__(f"cannot {verb} {what}: {cause}")


class Egress(msgspec.Struct, frozen=True):
    """What leaves the enclave: parent's vsock port -> host:port."""

    host: str
    port: int
    vsock_port: int


class Resolver(msgspec.Struct, frozen=True):
    """Where the enclave's DNS questions go: parent's vsock port -> a resolver, by TCP."""

    host: str
    port: int
    vsock_port: int


class Outbound(msgspec.Struct, frozen=True):
    """What leaves the enclave by its own policy: each connection says where it goes."""

    vsock_port: int
    resolvers: tuple[Resolver, ...] = ()
    allow_destinations: tuple[str, ...] = ()
    """NETWORK[:PORT[-LAST]] that may be connected to although loopback, link-local or the like."""


class Ingress(msgspec.Struct, frozen=True):
    """What comes in: the host's TCP port -> the enclave's vsock port."""

    port: int
    vsock_port: int


class Publish(msgspec.Struct, frozen=True):
    """Host ports led to an ingress port by nftables."""

    first: int
    last: int
    """Inclusive."""
    port: int

    def __str__(self) -> str:
        ports = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        return f"{ports}:{self.port}"


class LaunchPlan(msgspec.Struct, frozen=True):
    """One launch as it was asked for; what is left open is decided under the lock."""

    backend: BackendName
    eif: str
    """Absolute path."""
    name: str
    memory_mib: int
    cpus: int
    debug: bool = False
    attach: bool = False
    cid: int = 0
    """Asked for: taken means failure. 0: `first_cid`, or the next free one."""
    first_cid: int = 0
    egress: tuple[Egress, ...] = ()
    outbound: Outbound | None = None
    ingress: tuple[Ingress, ...] = ()
    bind: str = "127.0.0.1"
    """Where ingress ports listen."""
    publish: tuple[Publish, ...] = ()
    machine: str = ""
    """Of nitro-emu: process, qemu or auto; empty: its own default."""


class AppEnd(msgspec.Struct, frozen=True):
    """How the app of an enclave ended."""

    status: int | None
    """Of a command that waited for it; None if nobody knows."""
    words: tuple[str, ...]
    """Why, in what circumstances, and what it said last; a line each."""


class RunningEnclave(msgspec.Struct, frozen=True):
    """One enclave as nitro-cli or nitro-emu describes it."""

    backend: BackendName
    name: str
    id: str
    cid: int
    pid: int
    """The process that holds it: the enclave ends with it and it with the enclave."""
    memory_mib: int
    cpus: int
    debug: bool
    state: str

    @property
    def confidential(self) -> bool:
        """Whether the machine is one that protects it: never in debug mode, never emulated."""
        return self.backend == "nitro-cli" and not self.debug
