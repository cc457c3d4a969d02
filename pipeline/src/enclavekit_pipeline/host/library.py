# SPDX-License-Identifier: Apache-2.0
"""An enclave for programs: what the command line does, in asyncio.

    async with Enclave(name="notes", eif="notes.eif", identity="keys/alice") as enclave:
        result = await enclave.exec(["cat", "/data/notes"])
        await enclave.put("local.txt", "/data/in.txt")

One connection, attested once; everything on it may run at the same time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from enclavekit_attestation.caller import Identity
from enclavekit_attestation.verify import VerifiedDocument
from enclavekit_core.address import VsockAddress
from enclavekit_core.enclaves import find_cid
from enclavekit_core.errors import CommandError, ConfigError

from enclavekit_pipeline.host.client import DEFAULT_CONNECT_TIMEOUT_S, DEFAULT_PORT, Target, decision_log, receive
from enclavekit_pipeline.host.copy_client import KEEP_ALL_BUT_OWNERS, CopyOptions, copy_in, copy_out
from enclavekit_pipeline.host.process import Process, Result
from enclavekit_pipeline.host.session import Session
from enclavekit_pipeline.host.trust import VARIABLES, build_trust
from enclavekit_pipeline.wire.exec_messages import ExecRequest
from enclavekit_pipeline.wire.frames import Kind
from enclavekit_pipeline.wire.info_messages import Info, InfoRequest

if TYPE_CHECKING:
    from enclavekit_pipeline.host.forward_client import Forwarding

__all__ = ["CopyOptions", "Enclave", "Process", "Result"]

TAIL_BYTES = 2000


class Enclave:
    """An enclave, entered by `async with`."""

    def __init__(
        self,
        *,
        cid: int | None = None,
        name: str | None = None,
        policy: str | os.PathLike[str] | None = None,
        eif: str | os.PathLike[str] | None = None,
        pcrs: Mapping[int, bytes] | None = None,
        identity: str | os.PathLike[str] | Identity | None = None,
        port: int = DEFAULT_PORT,
        insecure_dev_root: str | os.PathLike[str] | None = None,
        allow_debug: bool = False,
        max_age_s: float | None = None,
        connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S,
    ) -> None:
        """Say which enclave, what it must prove, and who we are; nothing is sent yet.

        Args:
            cid, name: one of them; a name may also be an id.
            policy, eif, pcrs: one of them says which code it must run; else PIPELINE_POLICY or PIPELINE_EIF does.
            identity: prefix of the files that `pipeline keygen` made; else PIPELINE_IDENTITY.
            insecure_dev_root: trust this root instead of AWS's, for emulated enclaves.
        Raises: ConfigError, InputError.
        """
        if (cid is None) == (name is None):
            raise ConfigError("Enclave", "", "one of cid and name says which one is meant")
        prefix = identity or os.environ.get(VARIABLES["identity"])
        if not prefix:
            raise ConfigError("Enclave", "identity", "nothing says who we are")
        trust = build_trust(
            eif=os.fspath(eif) if eif is not None else None,
            policy=os.fspath(policy) if policy is not None else None,
            pcrs=[f"{index}={value.hex()}" for index, value in (pcrs or {}).items()],
            insecure_dev_root=os.fspath(insecure_dev_root) if insecure_dev_root is not None else None,
            allow_debug=allow_debug,
            max_age_s=max_age_s,
            environment=os.environ,
        )
        who = prefix if isinstance(prefix, Identity) else Identity.load(os.fspath(prefix))
        self.target = Target(VsockAddress(find_cid(str(name or cid)), port), trust, who, connect_timeout_s)
        self._session: Session | None = None
        self._forwarding: Forwarding | None = None

    async def __aenter__(self) -> Enclave:
        """Connect. Raises TransportError, VerificationError (nothing was sent then), RemoteProtocolError."""
        self._session = await Session.enter(self.target)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = self._forwarding = None

    @property
    def session(self) -> Session:
        """The connection. Raises ConfigError outside `async with`."""
        if self._session is None:
            raise ConfigError("Enclave", "", "it is entered by `async with`")
        return self._session

    @property
    def verified(self) -> VerifiedDocument:
        """What the enclave has proved."""
        return self.session.verified

    async def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        environment: Mapping[str, str] | None = None,
        directory: str | None = None,
        user: str | None = None,
        timeout_s: float | None = None,
        system: bool = False,
        check: bool = False,
    ) -> Result:
        """Run a command, word by word, and return its status and outputs.

        Raises: RequestRefused if it could not be run, InputError for outputs of more than 64 MiB, TransportError;
            with `check` CommandError for a status other than 0.
        """
        request = ExecRequest(
            argv=list(argv),
            stdin=stdin is not None,
            environment=dict(environment or {}),
            directory=directory,
            user=user,
            timeout_s=timeout_s,
            system=system,
        )
        try:
            async with self._run(request) as process:
                result = await process.communicate(stdin)
        except BaseExceptionGroup as group:  # of the tasks of `communicate`; the first says what went wrong
            raise group.exceptions[0] from None
        if check and result.status:
            tail = result.stderr[-TAIL_BYTES:].decode(errors="replace")
            raise CommandError("run a command in the enclave", list(argv), result.status, tail)
        return result

    @contextlib.asynccontextmanager
    async def start(
        self,
        argv: Sequence[str],
        *,
        stdin: bool = False,
        environment: Mapping[str, str] | None = None,
        directory: str | None = None,
        user: str | None = None,
        timeout_s: float | None = None,
        system: bool = False,
    ) -> AsyncIterator[Process]:
        """Yield a command under way, with streams; it is ended when the block is left. Raises as `exec`."""
        request = ExecRequest(
            argv=list(argv),
            stdin=stdin,
            environment=dict(environment or {}),
            directory=directory,
            user=user,
            timeout_s=timeout_s,
            system=system,
        )
        async with self._run(request) as process:
            yield process

    @contextlib.asynccontextmanager
    async def _run(self, request: ExecRequest) -> AsyncIterator[Process]:
        async with self.session.open(request) as stream:
            await receive(stream, Kind.OPENED)
            process = Process(stream)
            try:
                yield process
            finally:
                await process.stop()

    async def put(
        self,
        source: str | os.PathLike[str],
        path: str,
        options: CopyOptions = KEEP_ALL_BUT_OWNERS,
        *,
        system: bool = False,
    ) -> int:
        """Copy a file or a tree of ours to `path` in the enclave, each file whole or not at all; return the bytes."""
        chosen = replace(options, system=system or options.system)
        return (await copy_in(self.session, os.fspath(source), path, chosen)).size

    async def get(
        self,
        path: str,
        target: str | os.PathLike[str],
        options: CopyOptions = KEEP_ALL_BUT_OWNERS,
        *,
        system: bool = False,
    ) -> int:
        """Copy a file or a tree of the enclave to `target`, each file whole or not at all; return the bytes."""
        chosen = replace(options, system=system or options.system)
        return (await copy_out(self.session, path, os.fspath(target), chosen)).size

    @contextlib.asynccontextmanager
    async def forward(self, rule: str, *, reverse: bool = False, system: bool = False) -> AsyncIterator[str]:
        """Forward connections while the block runs; yield the address that is listened on.

        Args:
            rule: as of `pipeline forward -L`, say `0=tcp://127.0.0.1:8443`; with `reverse` as of -R.
        Raises: ConfigError for a rule that is none, TransportError, InputError, RequestRefused. What fails of single
            connections resets them, and is logged with ENCLAVEKIT_LOG.
        """
        from enclavekit_pipeline.host.forward_client import Forwarding
        from enclavekit_pipeline.host.forward_rules import parse_forward

        if self._forwarding is None:  # one for the session: the enclave's connections arrive in one place
            decided = decision_log(self.target)
            self._forwarding = Forwarding(self.session, lambda text: decided("connection not forwarded", reason=text))
        async with self._forwarding.open(parse_forward(rule, reverse=reverse), system=system) as address:
            yield str(address)

    async def info(self) -> Info:
        """Return what the enclave says about itself and grants us."""
        return await self.session.ask(InfoRequest(), Kind.INFO, Info)

    async def ping(self) -> float:
        """Return the seconds to the enclave and back."""
        return await self.session.ping()
