# SPDX-License-Identifier: Apache-2.0
"""The unit `initctl-gateway`: lets the network in to PID 1, for those whom the measured list grants it.

    python3 -I -m enclavekit_enclave_init.initctl.gateway

A process of its own, so that TLS, certificates and strangers stay out of PID 1: it proves the enclave, checks the
caller's certificate and what the list lets that one ask, and hands the request with the caller's name to the control
socket. No list, no listener.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
from concurrent.futures import Executor, ThreadPoolExecutor

from enclavekit_attestation.binding import TlsIdentity, encode_binding
from enclavekit_attestation.revocation import Revocations
from enclavekit_core import aio, logs, tls
from enclavekit_core import runtime_config as rules
from enclavekit_core.address import CID_ANY, UnixAddress, VsockAddress
from enclavekit_core.cli import run_and_exit
from enclavekit_core.errors import EnclavekitError, RemoteProtocolError, VerificationError
from enclavekit_core.peers import Peer
from enclavekit_core.streams import Listener
from enclavekit_nsm.client import NsmClient

from enclavekit_enclave_init.initctl import channel
from enclavekit_enclave_init.initctl.access import SOCKET_PATH
from enclavekit_enclave_init.initctl.clients import CLIENTS_PATH, Client, Clients
from enclavekit_enclave_init.initctl.framing import LENGTH, MAX_REQUEST_BYTES, encode_frame
from enclavekit_enclave_init.initctl.requests import PERMISSIONS, Request, decode_request, encode_answer, encode_request

MAX_STRANGERS = 16  # before they have proven who they are; each costs an NSM call
MAX_CALLERS = 32
HANDSHAKE_TIMEOUT_S = 20.0
RELAY_BYTES = 64 * 1024

log = logs.get_logger("initctl-gateway")


class Gateway:
    def __init__(
        self,
        identity: TlsIdentity,
        nsm: NsmClient,
        nsm_thread: Executor,
        clients: Clients,
        revocations: Revocations,
        socket_path: str,
    ) -> None:
        """`nsm_thread` has one thread: the NSM takes one call at a time."""
        self._identity, self._nsm, self._nsm_thread = identity, nsm, nsm_thread
        self._clients, self._revocations = clients, revocations
        self._socket_path = socket_path
        self._strangers = self._callers = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        """Serve one connection, whatever comes."""
        try:
            await self._serve(reader, writer, peer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass  # gone, or too slow: nobody to tell
        except EnclavekitError as exc:
            log.warning("refused", peer=peer.text, reason=str(exc))
            with contextlib.suppress(OSError):
                writer.write(encode_frame(encode_answer("Error", {"message": str(exc)})))
                await asyncio.wait_for(writer.drain(), HANDSHAKE_TIMEOUT_S)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        if self._strangers >= MAX_STRANGERS:
            return
        self._strangers += 1
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                client = await self._shake_hands(reader, writer)
                request = decode_request(await read_frame(reader, MAX_REQUEST_BYTES))
        finally:
            self._strangers -= 1
        if request.client is not None:
            raise RemoteProtocolError("cannot carry out the request: its envelope is for the gateway to write")
        if request.permission not in client.permissions:
            raise VerificationError("the request", f"{client.name} may not {PERMISSIONS[request.permission]}")
        if self._callers >= MAX_CALLERS:
            raise VerificationError("the request", f"{MAX_CALLERS} requests are under way")
        log.info("request", client=client.name, peer=peer.text, request=request.describe())
        self._callers += 1
        try:
            await self._relay(Request(request.verb, request.values, client.name), reader, writer)
        finally:
            self._callers -= 1

    async def _shake_hands(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Client:
        client_nonce = channel.decode_hello(await read_frame(reader, channel.MAX_HANDSHAKE_BYTES))
        server_nonce = os.urandom(channel.NONCE_BYTES)
        own = self._identity
        document = await asyncio.get_running_loop().run_in_executor(
            self._nsm_thread,
            self._nsm.attestation,
            encode_binding(channel.SERVICE, own.spki_sha256),
            client_nonce,
            own.spki_der,
        )
        writer.write(encode_frame(channel.encode_evidence(server_nonce, document)))
        await writer.drain()
        certificate, signature = channel.decode_auth(await read_frame(reader, channel.MAX_HANDSHAKE_BYTES))
        signed = channel.proof_bytes(own.spki_sha256, client_nonce, server_nonce)
        client = self._clients.authenticate(certificate, signature, signed)
        self._revocations.check(client.name, client.spki_sha256)
        writer.write(encode_frame(channel.encode_accept(client.name)))
        await writer.drain()
        return client

    async def _relay(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand the request to PID 1 and its answers back, until either end leaves."""
        inside, to_init = await aio.open_stream(UnixAddress(self._socket_path))
        try:
            to_init.write(encode_frame(encode_request(request)))
            await to_init.drain()
            answering = asyncio.create_task(_copy(inside, writer))
            leaving = asyncio.create_task(reader.read(1))
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
        finally:
            to_init.close()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(RELAY_BYTES):
        sink.write(data)
        await sink.drain()


async def read_frame(reader: asyncio.StreamReader, max_bytes: int) -> bytes:
    """Return one frame. Raises RemoteProtocolError if it is too long, IncompleteReadError."""
    size = LENGTH.unpack(await reader.readexactly(LENGTH.size))[0]
    if size > max_bytes:
        raise RemoteProtocolError(f"cannot read message: {size} bytes are more than {max_bytes}")
    return await reader.readexactly(size)


async def serve(listener: Listener, gateway: Gateway, identity: TlsIdentity) -> None:
    """Serve until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    context = tls.server_context(identity.certificate_pem, identity.key_pem)
    server = await aio.start_server(gateway.handle, listener, tls=context)
    log.info("listening", address=str(listener.address), spki_sha256=identity.spki_sha256.hex())
    await stop.wait()
    server.close()


def run(args: argparse.Namespace) -> int:
    logs.configure()
    clients = Clients.load(args.clients)
    identity = TlsIdentity.generate(channel.SERVICE)
    with (
        ThreadPoolExecutor(1, thread_name_prefix="nsm") as nsm_thread,
        NsmClient.open(args.nsm) as nsm,
        Listener(VsockAddress(CID_ANY, args.port)) as listener,
    ):
        revocations = Revocations(args.runtime_schema, args.runtime_values)
        gateway = Gateway(identity, nsm, nsm_thread, clients, revocations, args.socket)
        asyncio.run(serve(listener, gateway, identity))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="initctl-gateway", description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", metavar="FILE", default=CLIENTS_PATH)
    parser.add_argument("--port", type=int, default=channel.PORT, help="vsock port (default: %(default)s)")
    parser.add_argument("--socket", metavar="PATH", default=SOCKET_PATH, help="PID 1's (default: %(default)s)")
    parser.add_argument(
        "--runtime-schema", metavar="FILE", default=rules.SCHEMA_PATH, help="if it has PIPELINE_REVOKED, see there"
    )
    parser.add_argument("--runtime-values", metavar="FILE", default=rules.VALUES_PATH, help="default: %(default)s")
    parser.add_argument("--nsm", metavar="PATH", help="device or socket (default: the enclave's)")
    return run(parser.parse_args())


if __name__ == "__main__":
    run_and_exit("initctl-gateway", main)
