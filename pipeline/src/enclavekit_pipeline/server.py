# SPDX-License-Identifier: Apache-2.0
"""`pipeline listen`: accepts callers, proves the enclave to them, lets in whom the measured list names."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from enclavekit_attestation.binding import TlsIdentity, encode_binding
from enclavekit_core import aio, logs, tls
from enclavekit_core.address import CID_ANY, VsockAddress
from enclavekit_core.errors import EnclavekitError, InputError, VerificationError, describe_cause
from enclavekit_core.peers import Peer
from enclavekit_core.streams import Listener
from enclavekit_nsm.client import NsmClient

from enclavekit_pipeline.clients import Clients, Grant, Refused, check_request
from enclavekit_pipeline.frames import CONTROL_STREAM, Frame, Kind
from enclavekit_pipeline.handshake import NONCE_BYTES, ServerHandshake, proof_bytes
from enclavekit_pipeline.mux import Connection, Stream
from enclavekit_pipeline.requests import ExecRequest, Failure, decode_request, encode_payload
from enclavekit_pipeline.root import Root
from enclavekit_pipeline.server_requests import Workplace, serve_request

SERVICE = "pipeline"
DEFAULT_PORT = 53000
DEFAULT_CLIENTS = "/etc/enclavekit/clients.yaml"
DEFAULT_ROOT = "/rootfs"
HANDSHAKE_TIMEOUT_S = 20.0
MAX_HANDSHAKES = 16  # each costs an NSM call, and the NSM takes one at a time
MAX_CONNECTIONS = 64
MAX_STREAMS = 64  # of one connection
MAX_THREADS = 128  # each running command keeps one waiting

log = logs.get_logger("pipeline")


@dataclass
class Server:
    """Everything a connection needs."""

    identity: TlsIdentity
    nsm: NsmClient
    clients: Clients
    place: Workplace

    def __post_init__(self) -> None:
        self._handshakes = asyncio.Semaphore(MAX_HANDSHAKES)
        self._connections = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        """Serve one connection; never raises."""
        connection = Connection(reader, writer, peer.text)
        self._connections += 1
        try:
            if self._connections > MAX_CONNECTIONS:
                await refuse(connection, "busy", "cannot enter the enclave: too many connections")
                return
            async with self._handshakes, asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                grant = await self._shake_hands(connection)
            log.info("client let in", client=grant.name, peer=peer.text)
            await self._serve_streams(connection, grant)
            log.info("client gone", client=grant.name)
        except VerificationError as exc:
            log.warning("client refused", peer=peer.text, reason=exc.reason)
            await refuse(connection, "denied", f"cannot enter the enclave: {exc.reason}")
        except (EnclavekitError, TimeoutError) as exc:
            log.info("connection ended early", peer=peer.text, reason=describe_cause(exc))
            await refuse(connection, "protocol", str(exc) or "cannot shake hands: timed out")
        finally:
            self._connections -= 1
            await connection.close()

    async def _shake_hands(self, connection: Connection) -> Grant:
        handshake = ServerHandshake(os.urandom(NONCE_BYTES))
        nonce = handshake.receive_hello(await connection.read_frame())
        binding = encode_binding(SERVICE, self.identity.spki_sha256)
        document = await self.place.in_thread(self.nsm.attestation, binding, nonce, self.identity.spki_der)
        await connection.send(handshake.evidence(document))
        proof = handshake.receive_auth(await connection.read_frame())
        signed = proof_bytes(self.identity.spki_sha256, nonce, handshake.nonce)
        grant = self.clients.authenticate(proof.certificate_der, proof.signature, signed)
        await connection.send(handshake.accept(grant.name))
        return grant

    async def _serve_streams(self, connection: Connection, grant: Grant) -> None:
        reading = asyncio.create_task(connection.run(accept_streams=True))
        running: set[asyncio.Task[None]] = set()
        try:
            while (opened := await connection.opened.get()) is not None:
                stream, frame = opened
                task = asyncio.create_task(self._serve_stream(connection, stream, frame, grant))
                running.add(task)
                task.add_done_callback(running.discard)
        finally:
            reading.cancel()
            for task in running:
                task.cancel()
            await asyncio.gather(reading, *running, return_exceptions=True)

    async def _serve_stream(self, connection: Connection, stream: Stream, frame: Frame, grant: Grant) -> None:
        """Serve one request; its failure is the caller's to hear, not the connection's end."""
        what: dict[str, object] = {"client": grant.name}
        try:
            if connection.stream_count > MAX_STREAMS:
                raise Refused("too many requests at once")
            request = decode_request(frame.payload)
            # argv[0] only: what follows may be a secret
            target = request.argv[0] if isinstance(request, ExecRequest) else request.path
            what |= {"verb": type(request).__name__, "target": target, "system": request.system}
            check_request(grant, request)
            log.info("request allowed", **what)
            outcome = await serve_request(request, grant, stream, self.place)
            log.info("request done", outcome=outcome, **what)
        except Refused as exc:
            log.warning("request refused", reason=str(exc), **what)
            await fail(stream, "denied", f"cannot do that in the enclave: {exc}")
        except InputError as exc:
            log.info("request failed", reason=exc.reason, **what)
            await fail(stream, "system", str(exc))
        except EnclavekitError as exc:
            log.info("request cut", reason=str(exc), **what)
            await fail(stream, "protocol", str(exc))
        finally:
            connection.forget(stream)


async def fail(stream: Stream, code: str, message: str) -> None:
    with contextlib.suppress(EnclavekitError):
        await stream.send(Kind.ERROR, encode_payload(Failure(code=code, message=message[:4000])))


async def refuse(connection: Connection, code: str, message: str) -> None:
    with contextlib.suppress(EnclavekitError):
        payload = encode_payload(Failure(code=code, message=message[:4000]))
        await connection.send(Frame(Kind.ERROR, payload, CONTROL_STREAM))


def listen(*, port: int, clients_path: str, root: str, nsm_path: str | None) -> int:
    """Serve until SIGTERM or SIGINT. Raises ConfigError without a client list, DeviceError without an NSM."""
    logs.configure()
    clients = Clients.load(clients_path)
    app_root = root if os.path.isdir(root) else "/"
    with (
        ThreadPoolExecutor(MAX_THREADS, thread_name_prefix="pipeline") as threads,
        NsmClient.open(nsm_path) as nsm,
        Listener(VsockAddress(CID_ANY, port)) as listener,
    ):
        place = Workplace(Root(app_root), Root("/"), threads)
        identity = TlsIdentity.generate(SERVICE)
        asyncio.run(serve(listener, identity, nsm, clients, place))
    return 0


async def serve(listener: Listener, identity: TlsIdentity, nsm: NsmClient, clients: Clients, place: Workplace) -> None:
    """Serve `listener` until a signal asks to stop; then cut what is under way."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    server = Server(identity, nsm, clients, place)
    context = tls.server_context(identity.certificate_pem, identity.key_pem)
    running = await aio.start_server(server.handle, listener, tls=context)
    log.info("listening", address=str(listener.address), spki_sha256=identity.spki_sha256.hex())
    try:
        await stop.wait()
    finally:
        running.close()
        mine = asyncio.current_task()
        pending = [task for task in asyncio.all_tasks() if task is not mine]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
