# SPDX-License-Identifier: Apache-2.0
"""The handshake inside TLS, as two state machines: evidence first, then the caller. Pure.

    client                                 enclave
    HELLO {version, oldest, nonce}    -->
                                      <--  EVIDENCE: its nonce (32 bytes), then the attestation document
    AUTH {certificate, signature}     -->
                                      <--  ACCEPT {name, version}  or  ERROR

The document binds the client's nonce and the TLS key. The signature covers the same key and both nonces, so it is
worth nothing on another connection, to another enclave or at another time.
"""

from __future__ import annotations

import base64
import binascii
import enum
from dataclasses import dataclass

from enclavekit_core.errors import RemoteProtocolError

from enclavekit_pipeline.wire.frames import OLDEST_VERSION, PROTOCOL_VERSION, Frame, Kind
from enclavekit_pipeline.wire.messages import Accept, Auth, Failure, Hello, decode_payload, encode_payload

NONCE_BYTES = 32
PROOF_CONTEXT = b"enclavekit/pipeline/2 client proof\0"
MAX_CERTIFICATE_BYTES = 16 * 1024


def common_version(newest: int, oldest: int | None) -> int | None:
    """Return the newest version that we and a caller that speaks `oldest` to `newest` share, if there is one."""
    shared = min(newest, PROTOCOL_VERSION)
    return shared if shared >= max(newest if oldest is None else oldest, OLDEST_VERSION) else None


def proof_bytes(spki_sha256: bytes, client_nonce: bytes, server_nonce: bytes) -> bytes:
    """Return what the caller signs. All parts but the context have fixed lengths, so nothing can be shifted."""
    return PROOF_CONTEXT + spki_sha256 + client_nonce + server_nonce


class State(enum.Enum):
    START = enum.auto()
    HELLO_SENT = enum.auto()
    EVIDENCE_SENT = enum.auto()
    AUTH_SENT = enum.auto()
    AUTH_RECEIVED = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the enclave showed, unverified."""

    server_nonce: bytes
    document: bytes


@dataclass(frozen=True, slots=True)
class Proof:
    """What the caller showed, unverified."""

    certificate_der: bytes
    signature: bytes


class ClientHandshake:
    """Produces frames and takes the enclave's; the caller verifies the evidence between the two."""

    def __init__(self, nonce: bytes) -> None:
        self.nonce, self.state = nonce, State.START

    def hello(self) -> Frame:
        self._expect(State.START)
        self.state = State.HELLO_SENT
        oldest = OLDEST_VERSION if OLDEST_VERSION < PROTOCOL_VERSION else None
        return Frame(Kind.HELLO, encode_payload(Hello(version=PROTOCOL_VERSION, nonce=self.nonce.hex(), oldest=oldest)))

    def receive_evidence(self, frame: Frame) -> Evidence:
        """Raises RemoteProtocolError; the caller must verify what it gets before it calls `auth`."""
        self._expect(State.HELLO_SENT)
        self._refuse_other(frame, Kind.EVIDENCE)
        if len(frame.payload) <= NONCE_BYTES:
            raise self._fail("evidence is too short")
        return Evidence(frame.payload[:NONCE_BYTES], frame.payload[NONCE_BYTES:])

    def auth(self, certificate_der: bytes, signature: bytes) -> Frame:
        self._expect(State.HELLO_SENT)
        self.state = State.AUTH_SENT
        payload = Auth(
            certificate=base64.b64encode(certificate_der).decode(), signature=base64.b64encode(signature).decode()
        )
        return Frame(Kind.AUTH, encode_payload(payload))

    def receive_accept(self, frame: Frame) -> str:
        """Return the name that the enclave knows the caller by. Raises RemoteProtocolError, also for a refusal."""
        self._expect(State.AUTH_SENT)
        self._refuse_other(frame, Kind.ACCEPT)
        accepted = decode_payload(Accept, frame.payload)
        if not OLDEST_VERSION <= accepted.version <= PROTOCOL_VERSION:
            raise self._fail(f"it chose version {accepted.version}, which was not offered")
        self.state = State.DONE
        # fit to be shown: an enclave that lies must not move the cursor of our terminal
        return "".join(char if char.isprintable() else "?" for char in accepted.name)

    def _refuse_other(self, frame: Frame, wanted: Kind) -> None:
        if frame.kind is Kind.ERROR:
            self.state = State.FAILED
            raise RemoteProtocolError(decode_payload(Failure, frame.payload).text)
        if frame.kind is not wanted or frame.stream:
            raise self._fail(f"{frame.kind.name} where {wanted.name} is due")

    def _expect(self, state: State) -> None:
        if self.state is not state:
            raise self._fail(f"step out of order in {self.state.name}")

    def _fail(self, reason: str) -> RemoteProtocolError:
        self.state = State.FAILED
        return RemoteProtocolError(f"cannot shake hands with the enclave: {reason}")


class ServerHandshake:
    """Takes the caller's frames and produces the enclave's; whoever drives it fetches evidence and checks the proof."""

    def __init__(self, nonce: bytes) -> None:
        self.nonce, self.state = nonce, State.START
        self.client_nonce = b""
        self.version = PROTOCOL_VERSION

    def receive_hello(self, frame: Frame) -> bytes:
        """Return the caller's nonce. Raises RemoteProtocolError."""
        self._expect(State.START, frame, Kind.HELLO)
        hello = decode_payload(Hello, frame.payload)
        version = common_version(hello.version, hello.oldest)
        if version is None:
            spoken = (
                f"{OLDEST_VERSION} to {PROTOCOL_VERSION}" if OLDEST_VERSION < PROTOCOL_VERSION else PROTOCOL_VERSION
            )
            raise self._fail(f"version {hello.version} is not spoken here, {spoken} is")
        self.version = version
        try:
            self.client_nonce = bytes.fromhex(hello.nonce)
        except ValueError as exc:
            raise self._fail("the nonce is not hexadecimal") from exc
        if len(self.client_nonce) != NONCE_BYTES:
            raise self._fail(f"the nonce has {len(self.client_nonce)} bytes, {NONCE_BYTES} are needed")
        return self.client_nonce

    def evidence(self, document: bytes) -> Frame:
        self.state = State.EVIDENCE_SENT
        return Frame(Kind.EVIDENCE, self.nonce + document)

    def receive_auth(self, frame: Frame) -> Proof:
        """Raises RemoteProtocolError."""
        self._expect(State.EVIDENCE_SENT, frame, Kind.AUTH)
        auth = decode_payload(Auth, frame.payload)
        try:
            proof = Proof(
                base64.b64decode(auth.certificate, validate=True), base64.b64decode(auth.signature, validate=True)
            )
        except (binascii.Error, ValueError) as exc:
            raise self._fail("the proof is not base64") from exc
        if len(proof.certificate_der) > MAX_CERTIFICATE_BYTES:
            raise self._fail("the certificate is too large")
        self.state = State.AUTH_RECEIVED
        return proof

    def accept(self, name: str) -> Frame:
        if self.state is not State.AUTH_RECEIVED:
            raise self._fail("nobody to accept")
        self.state = State.DONE
        return Frame(Kind.ACCEPT, encode_payload(Accept(name=name, version=self.version)))

    def _expect(self, state: State, frame: Frame, kind: Kind) -> None:
        if self.state is not state or frame.kind is not kind or frame.stream or frame.end:
            raise self._fail(f"{frame.kind.name} where {kind.name} is due")

    def _fail(self, reason: str) -> RemoteProtocolError:
        self.state = State.FAILED
        return RemoteProtocolError(f"cannot shake hands with the caller: {reason}")
