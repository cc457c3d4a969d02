# SPDX-License-Identifier: Apache-2.0
"""`pipeline listen`: proves the enclave to callers, lets in whom the list names, serves what it grants them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field

from enclavekit_attestation.binding import TlsIdentity, encode_binding
from enclavekit_attestation.revocation import Revocations
from enclavekit_core import logs, tls
from enclavekit_core.address import CID_ANY, VsockAddress
from enclavekit_core.allocator import keep_freed, use_one_arena
from enclavekit_core.errors import ConfigError, DeviceError, EnclavekitError, InputError, VerificationError
from enclavekit_core.peers import Peer
from enclavekit_core.short_lived import call_short_lived
from enclavekit_core.streams import Listener
from enclavekit_nsm.client import NsmClient

from enclavekit_pipeline.channel.mux import Connection, Stream
from enclavekit_pipeline.enclave.client_groups import ClientGroups
from enclavekit_pipeline.enclave.clients import Clients, Grant, Refused, check_request
from enclavekit_pipeline.enclave.jobs import Jobs
from enclavekit_pipeline.enclave.legacy_listener import LegacyListener, check_debug
from enclavekit_pipeline.enclave.processes import serve_ps
from enclavekit_pipeline.enclave.reception import Reception
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.enclave.serve_copy import serve_copy_in, serve_copy_out
from enclavekit_pipeline.enclave.serve_exec import serve_exec
from enclavekit_pipeline.enclave.serve_forward import serve_dial, serve_listen
from enclavekit_pipeline.enclave.serve_info import serve_info
from enclavekit_pipeline.enclave.serve_jobs import serve_attach, serve_detached, serve_jobs, serve_kill, serve_logs
from enclavekit_pipeline.enclave.starting import Starter
from enclavekit_pipeline.enclave.workplace import MAX_THREADS, Workplace
from enclavekit_pipeline.wire.copy_messages import CopyInRequest, CopyOutRequest
from enclavekit_pipeline.wire.exec_messages import ExecRequest, ShellRequest
from enclavekit_pipeline.wire.forward_messages import DialRequest, ListenRequest
from enclavekit_pipeline.wire.frames import CONTROL_STREAM, Frame, Kind
from enclavekit_pipeline.wire.handshake import NONCE_BYTES, ServerHandshake, proof_bytes
from enclavekit_pipeline.wire.info_messages import InfoRequest
from enclavekit_pipeline.wire.job_messages import AttachRequest, JobsRequest, KillRequest, LogsRequest, PsRequest
from enclavekit_pipeline.wire.messages import (
    CODE_BUSY,
    CODE_DENIED,
    CODE_FAILED,
    CODE_INPUT,
    MAX_MESSAGE_CHARS,
    Failure,
    encode_payload,
)
from enclavekit_pipeline.wire.requests import Request, decode_request, target_of, verb_of

SERVICE = "pipeline"
MAX_SESSIONS = 64  # callers inside at once; each may have up to 3 MiB of credit per request
KEPT_HEAP_BYTES = 2 * 1024 * 1024  # what one stream's credit lets come
UNWIND_S = 20.0  # for requests whose caller is gone; then they are cancelled

log = logs.get_logger("pipeline")


@dataclass
class Server:
    """Everything a connection needs."""

    identity: TlsIdentity
    nsm: NsmClient
    nsm_thread: Executor
    """One thread: the NSM takes one call at a time, and files must not wait behind it."""
    clients: Clients
    place: Workplace
    revocations: Revocations = field(default_factory=Revocations)
    sessions: Counter[str] = field(default_factory=Counter)
    """By client, of those that are inside."""
    jobs: Jobs = field(default_factory=Jobs)

    async def handle(self, connection: Connection, peer: Peer, let_in: Callable[[], None]) -> None:
        """Serve one connection; the caller closes it."""
        try:
            grant = await self._shake_hands(connection, let_in)
        except VerificationError as exc:
            log.warning("client refused", peer=peer.text, reason=exc.reason)
            await refuse(connection, CODE_DENIED, f"cannot enter the enclave: {exc.reason}")
            return
        except Refused as exc:
            log.warning("client turned away", peer=peer.text, reason=str(exc))
            await refuse(connection, CODE_BUSY, f"cannot enter the enclave: {exc}")
            return
        except DeviceError as exc:
            log.error("no evidence", peer=peer.text, reason=str(exc))
            await refuse(connection, CODE_FAILED, str(exc))
            return
        except EnclavekitError as exc:
            log.info("handshake ended early", peer=peer.text, reason=str(exc))
            await refuse(connection, CODE_FAILED, str(exc))
            return
        log.info("client let in", client=grant.name, peer=peer.text)
        try:
            await self._serve_streams(connection, grant)
        finally:
            self.sessions[grant.name] -= 1
            log.info("client gone", client=grant.name)

    async def _shake_hands(self, connection: Connection, let_in: Callable[[], None]) -> Grant:
        handshake = ServerHandshake(os.urandom(NONCE_BYTES))
        nonce = handshake.receive_hello(await connection.read_frame())
        binding = encode_binding(SERVICE, self.identity.spki_sha256)
        document = await asyncio.get_running_loop().run_in_executor(
            self.nsm_thread, self.nsm.attestation, binding, nonce, self.identity.spki_der
        )
        await connection.send(handshake.evidence(document))
        proof = handshake.receive_auth(await connection.read_frame())
        signed = proof_bytes(self.identity.spki_sha256, nonce, handshake.nonce)
        grant = self.clients.authenticate(proof.certificate_der, proof.signature, signed)
        self.revocations.check(grant.name, self.clients.key_of(grant))
        if self.sessions.total() >= MAX_SESSIONS:
            raise Refused(f"{MAX_SESSIONS} callers are inside already")
        if grant.sessions is not None and self.sessions[grant.name] >= grant.sessions:
            raise Refused(f"{grant.name} is inside {grant.sessions} times already")
        self.sessions[grant.name] += 1
        try:
            let_in()
            await connection.send(handshake.accept(grant.name))
        except BaseException:
            self.sessions[grant.name] -= 1
            raise
        return grant

    async def _serve_streams(self, connection: Connection, grant: Grant) -> None:
        reading = asyncio.create_task(connection.run())
        running: set[asyncio.Task[None]] = set()
        try:
            while (opened := await connection.opened.get()) is not None:
                stream, frame = opened
                task = asyncio.create_task(self._serve_stream(stream, frame, grant))
                running.add(task)
                task.add_done_callback(running.discard)
            # the caller asks for nothing more: what it has asked for goes on. Once it is gone, each request learns of
            # it from its stream and puts in order what it leaves behind
            while running and not reading.done():
                await asyncio.wait({reading, *running}, return_when=asyncio.FIRST_COMPLETED)
            if running:
                await asyncio.wait(running, timeout=UNWIND_S)
        finally:
            connection.finish()
            reading.cancel()
            for task in running:
                task.cancel()
            await asyncio.gather(reading, *running, return_exceptions=True)

    async def _serve_stream(self, stream: Stream, frame: Frame, grant: Grant) -> None:
        """Serve one request; its failure is the caller's to hear, not the connection's end."""
        what: dict[str, object] = {"client": grant.name}
        try:
            request = decode_request(frame.payload)
            what |= {"verb": verb_of(request), "target": target_of(request), "system": request.system}
            check_request(grant, request)
            log.info("request allowed", **what)
            outcome = await self._carry_out(request, grant, stream)
            log.info("request done", outcome=outcome, **what)
        except Refused as exc:
            log.warning("request refused", reason=str(exc), **what)
            await fail(stream, CODE_DENIED, f"cannot do that in the enclave: {exc}")
        except InputError as exc:
            log.info("request failed", reason=exc.reason, **what)
            await fail(stream, CODE_INPUT, str(exc))
        except EnclavekitError as exc:
            log.info("request cut", reason=str(exc), **what)
            await fail(stream, CODE_FAILED, str(exc))
        except Exception:  # a bug of ours, or the system's last word: one request's affair, and the log's
            log.exception("request broken", **what)
            await fail(stream, CODE_FAILED, "cannot do that in the enclave: it failed inside, see its log")
        finally:
            stream.close()

    async def _carry_out(self, request: Request, grant: Grant, stream: Stream) -> str:
        match request:
            case ExecRequest(detach=True):
                return await serve_detached(request, grant, stream, self.place, self.jobs)
            case ExecRequest() | ShellRequest():
                return await serve_exec(request, grant, stream, self.place)
            case JobsRequest():
                return await serve_jobs(request, grant, stream, self.jobs)
            case LogsRequest():
                return await serve_logs(request, grant, stream, self.jobs)
            case AttachRequest():
                return await serve_attach(request, grant, stream, self.jobs)
            case KillRequest():
                return await serve_kill(request, grant, stream, self.place, self.jobs)
            case PsRequest():
                return await serve_ps(request, grant, stream, self.place, self.jobs)
            case CopyInRequest():
                async with self.place.copy_slot(grant.name):
                    return await serve_copy_in(request, grant, stream, self.place)
            case CopyOutRequest():
                async with self.place.copy_slot(grant.name):
                    return await serve_copy_out(request, grant, stream, self.place)
            case InfoRequest():
                return await serve_info(grant, stream, self.place, MAX_SESSIONS)
            case DialRequest():
                return await serve_dial(request, grant, stream, self.place)
            case ListenRequest():
                return await serve_listen(request, grant, stream, self.place)


def _failure(code: str, message: str) -> bytes:
    return encode_payload(Failure(code=code, message=message[:MAX_MESSAGE_CHARS]))


async def fail(stream: Stream, code: str, message: str) -> None:
    with contextlib.suppress(EnclavekitError):
        await stream.send(Kind.ERROR, _failure(code, message))


async def refuse(connection: Connection, code: str, message: str) -> None:
    with contextlib.suppress(EnclavekitError):
        await connection.send(Frame(Kind.ERROR, _failure(code, message), CONTROL_STREAM))


def listen(
    *,
    port: int,
    clients_path: str,
    root: str,
    nsm_path: str | None,
    revocations: Revocations,
    insecure_legacy_port: int | None = None,
) -> int:
    """Serve until SIGTERM or SIGINT. Raises ConfigError without a client list, DeviceError without an NSM.

    Args:
        insecure_legacy_port: where the Rust framework's protocol is served as well, to anybody; None: nowhere.
    """
    logs.configure()
    use_one_arena()
    keep_freed(KEPT_HEAP_BYTES)
    if os.geteuid() == 0:
        os.setgroups([])  # what acts as somebody else is to have only that one's rights
    clients, identity = call_short_lived(lambda: (Clients.load(clients_path), TlsIdentity.generate(SERVICE)))
    if not os.path.isdir(root):
        log.warning("no app root: requests act on the framework's", root=root)
        root = "/"
    try:
        app_root, system_root = Root(root), Root("/")
    except OSError as exc:
        raise ConfigError(root, "", (exc.strerror or str(exc)).lower()) from exc
    with (
        contextlib.closing(ClientGroups.make(clients.grants, clients_path)) as groups,
        contextlib.closing(Starter.launch()) as starter,
        contextlib.ExitStack() as stack,
        ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="work") as threads,
        ThreadPoolExecutor(1, thread_name_prefix="nsm") as nsm_thread,
        NsmClient.open(nsm_path) as nsm,
        Listener(VsockAddress(CID_ANY, port)) as listener,
    ):
        place = Workplace(app_root, system_root, threads, starter, groups)
        server = Server(identity, nsm, nsm_thread, clients, place, revocations)
        legacy = None
        if insecure_legacy_port is not None:
            check_debug(nsm)
            legacy = stack.enter_context(Listener(VsockAddress(CID_ANY, insecure_legacy_port)))
        asyncio.run(serve(listener, server, legacy))
    return 0


async def serve(listener: Listener, server: Server, legacy: Listener | None = None) -> None:
    """Serve `listener` until a signal asks to stop; then cut what is under way."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    context = tls.server_context(server.identity.certificate_pem, server.identity.key_pem)
    serving = [asyncio.create_task(Reception(listener, context, server.handle).run())]
    if legacy is not None:
        serving.append(asyncio.create_task(LegacyListener(server.place).run(legacy)))
    log.info("listening", address=str(listener.address), spki_sha256=server.identity.spki_sha256.hex())
    await stop.wait()
    for task in serving:
        task.cancel()
    await asyncio.gather(*serving, return_exceptions=True)
    await server.jobs.close()
