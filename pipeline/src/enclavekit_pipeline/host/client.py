# SPDX-License-Identifier: Apache-2.0
"""The caller's way in: connect, make the enclave prove itself, prove ourselves. What follows is in `session`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from enclavekit_attestation.binding import spki_sha256_of
from enclavekit_attestation.caller import Identity
from enclavekit_attestation.verify import VerifiedDocument
from enclavekit_core import streams, tls
from enclavekit_core.address import VsockAddress
from enclavekit_core.errors import RemoteProtocolError, TransportError, VerificationError

from enclavekit_pipeline.channel.mux import Connection, RequestRefused, Stream
from enclavekit_pipeline.channel.tls_socket import TlsSocket
from enclavekit_pipeline.host.trust import Trust
from enclavekit_pipeline.wire.frames import Frame, Kind
from enclavekit_pipeline.wire.handshake import NONCE_BYTES, ClientHandshake, proof_bytes
from enclavekit_pipeline.wire.messages import Failure, decode_payload

DEFAULT_PORT = 53000
DEFAULT_CONNECT_TIMEOUT_S = 10.0
SERVER_NAME = "enclave"  # TLS wants one; the attested key is what counts
TLS_TIMEOUT_S = 20.0
FIRST_RETRY_S, LAST_RETRY_S = 0.02, 0.5
HANDSHAKE_TIMEOUT_S = 30.0
LOG_VARIABLE = "ENCLAVEKIT_LOG"  # set: our decisions are logged too; a command that works is silent otherwise


@dataclass(frozen=True)
class Entered:
    """What a handshake has brought."""

    name: str
    """What the enclave's list calls us."""
    verified: VerifiedDocument


class TurnedAway(TransportError):
    """The connection ended before the enclave said a word, and we had said nothing but a nonce: whoever stands at its
    door when it is full is turned away like that. It is worth another try.
    """


@dataclass(frozen=True)
class Target:
    """Whom to enter, and as whom."""

    address: VsockAddress
    trust: Trust
    identity: Identity
    connect_timeout_s: float


async def connect(target: Target) -> TlsSocket:
    """Connect, and try again while the enclave is still booting. Raises TransportError."""
    deadline = time.monotonic() + target.connect_timeout_s
    pause = FIRST_RETRY_S
    while True:
        try:
            return await connect_once(target.address, max(deadline - time.monotonic(), FIRST_RETRY_S))
        except TransportError as exc:
            # nothing of ours has been said yet; what is not "nobody is listening" does not get better by waiting
            if deadline - time.monotonic() <= pause or not isinstance(
                exc.__cause__, (ConnectionRefusedError, ConnectionResetError)
            ):
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, LAST_RETRY_S)


async def connect_once(address: VsockAddress, timeout_s: float) -> TlsSocket:
    """Connect and speak TLS; whom with is for the evidence to say. Raises TransportError."""
    sock = await asyncio.to_thread(streams.connect, address, timeout_s)
    try:
        async with asyncio.timeout(TLS_TIMEOUT_S):
            return await TlsSocket.connect(sock, tls.attested_client_context(), SERVER_NAME)
    except TimeoutError as exc:
        raise TransportError("connect to", address, "timed out in the TLS handshake") from exc
    except OSError as exc:  # ssl.SSLError is one
        raise TransportError("connect to", address, exc) from exc


async def shake_hands(connection: Connection, certificate: bytes, target: Target) -> Entered:
    """Verify the enclave, then show who we are."""
    handshake = ClientHandshake(os.urandom(NONCE_BYTES))
    decided = decision_log(target)
    try:
        await connection.send(handshake.hello())
        frame = await connection.read_frame()
    except TransportError as exc:
        raise TurnedAway("enter", target.address, "it closed the connection before it proved anything") from exc
    evidence = handshake.receive_evidence(frame)
    try:
        verified = target.trust.verify(evidence.document, handshake.nonce, certificate)
    except VerificationError as exc:
        decided("enclave refused", reason=exc.reason)
        raise
    decided("enclave verified", module=verified.module_id, pcrs=verified.compared_pcrs, debug=verified.debug)
    signed = proof_bytes(spki_sha256_of(certificate), handshake.nonce, evidence.server_nonce)
    await connection.send(handshake.auth(target.identity.certificate_der, target.identity.sign(signed)))
    name = handshake.receive_accept(await connection.read_frame())
    decided("let in", client=name)
    return Entered(name, verified)


def decision_log(target: Target) -> Callable[..., None]:
    """Return what logs a decision; does nothing unless ENCLAVEKIT_LOG is set."""
    if LOG_VARIABLE not in os.environ:
        return lambda event, **fields: None
    from enclavekit_core import logs

    logs.configure()
    return logs.get_logger("pipeline").bind(enclave=str(target.address)).info


async def receive(stream: Stream, *wanted: Kind) -> Frame:
    """Return the next frame if it is of a wanted kind. Raises RequestRefused with the enclave's words for an ERROR."""
    frame = await stream.receive()
    if frame.kind is Kind.ERROR:
        raise RequestRefused(decode_payload(Failure, frame.payload))
    if frame.kind not in wanted:
        raise RemoteProtocolError(f"cannot read frame: {frame.kind.name} where {wanted[0].name} is due")
    return frame
