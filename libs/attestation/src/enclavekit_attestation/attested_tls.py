# SPDX-License-Identifier: Apache-2.0
"""An SSLContext whose connections work only with an enclave that proves itself, on that very connection.

To the caller the handshake takes a round trip more: TLS 1.3, then the document is asked for with a fresh nonce,
verified by the policy, and its TLS key compared with that of the connection. Only then does the handshake return.
Before that, or if it fails, the connection neither sends nor receives. Works wherever an SSLContext is taken: sockets,
asyncio, aiohttp, httpx, urllib3.

A key that was proven is taken as proven for `recheck_s`: it lives in the enclave's memory only and dies with it.
"""

from __future__ import annotations

import secrets
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

from enclavekit_core.errors import ConfigError, RemoteProtocolError, VerificationError
from enclavekit_core.tls import peer_certificate_der

from enclavekit_attestation.binding import spki_sha256_of
from enclavekit_attestation.evidence_exchange import EvidenceExchange
from enclavekit_attestation.fetch import DEFAULT_PATH, NONCE_BYTES, SERVICE_RA
from enclavekit_attestation.policy import DEFAULT_MAX_AGE_S, Policy
from enclavekit_attestation.verify import Binding, verify

MAX_PROVEN_KEYS = 1000  # a client of more enclaves than this asks some of them again
CHUNK_BYTES = 16 * 1024  # a TLS record
HTTP_1_1 = "http/1.1"


class EvidenceError(ssl.SSLError):
    """The server has not proven itself; `cause` says why. An SSLError, so that libraries end the connection."""

    def __init__(self, cause: VerificationError | RemoteProtocolError) -> None:
        super().__init__(ssl.SSL_ERROR_SSL, str(cause))
        self.cause = cause


class Prover:
    """What connections of one context must show."""

    def __init__(self, policy: Policy, service: str, path: str, root: bytes | None, recheck_s: float) -> None:
        self.policy, self.service, self.path, self.root = policy, service, path, root
        self.recheck_s = recheck_s
        self._proven: OrderedDict[bytes, float] = OrderedDict()  # SPKI hash -> until when, monotonic
        self._lock = threading.Lock()

    def is_proven(self, spki_sha256: bytes) -> bool:
        with self._lock:
            return self._proven.get(spki_sha256, 0.0) > time.monotonic()

    def check(self, document: bytes, nonce: bytes, certificate_der: bytes) -> None:
        """Verify evidence and remember the key. Raises VerificationError."""
        binding = Binding(self.service, certificate_der)
        verify(document, self.policy, nonce=nonce, binding=binding, root=self.root)
        key = spki_sha256_of(certificate_der)
        with self._lock:
            self._proven[key] = time.monotonic() + self.recheck_s
            self._proven.move_to_end(key)
            while len(self._proven) > MAX_PROVEN_KEYS:
                self._proven.popitem(last=False)


class _Proof:
    """The state of one connection: not begun, under way, proven or refused."""

    def __init__(self, connection: ssl.SSLObject | ssl.SSLSocket) -> None:
        self._connection = connection
        self._exchange: EvidenceExchange | None = None
        self._certificate = b""
        self._unsent = b""
        self._error: EvidenceError | None = None
        self.done = False

    def advance(self, write: Callable[[bytes], int], read: Callable[[int], bytes]) -> None:
        """Go on until the server has proven itself.

        Raises: EvidenceError; ssl.SSLWantReadError and SSLWantWriteError, after which it is called again.
        """
        if self._error is not None:
            raise self._error
        try:
            self._begin()
            while self._unsent:
                self._unsent = self._unsent[write(self._unsent) :]
            while not self.done:
                assert self._exchange is not None
                document = self._exchange.feed(read(CHUNK_BYTES))
                if document is not None:
                    self._prover.check(document, self._exchange.nonce, self._certificate)
                    self.done = True
        except (VerificationError, RemoteProtocolError) as exc:
            self._error = EvidenceError(exc)
            raise self._error from exc

    @property
    def _prover(self) -> Prover:
        return cast(AttestedContext, self._connection.context).prover

    def _begin(self) -> None:
        if self._exchange is not None or self.done:
            return
        protocol = self._connection.selected_alpn_protocol()
        if protocol not in (None, HTTP_1_1):
            raise RemoteProtocolError(f"cannot get evidence over {protocol!r:.20}: it is asked for by HTTP/1.1")
        self._certificate = peer_certificate_der(self._connection)
        if self._prover.is_proven(spki_sha256_of(self._certificate)):
            self.done = True
            return
        self._exchange = EvidenceExchange(
            self._connection.server_hostname, self._prover.path, secrets.token_bytes(NONCE_BYTES)
        )
        self._unsent = self._exchange.request


def _refuse_use() -> ssl.SSLError:
    return ssl.SSLError(ssl.SSL_ERROR_SSL, "cannot use the connection: the server has not proven itself")


class AttestedObject(ssl.SSLObject):
    """For asyncio and anyio."""

    _proof: _Proof | None = None

    @property
    def proven(self) -> bool:
        return self._proof is not None and self._proof.done

    def do_handshake(self) -> None:
        if self._proof is None:
            super().do_handshake()
            self._proof = _Proof(self)
        self._proof.advance(super().write, super().read)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        if not self.proven:
            raise _refuse_use()
        return super().read(len, buffer) if buffer is not None else super().read(len)

    def write(self, data: Any) -> int:
        if not self.proven:
            raise _refuse_use()
        return super().write(data)


class AttestedSocket(ssl.SSLSocket):
    """For blocking sockets, and for non-blocking ones whose owner calls do_handshake."""

    _proof: _Proof | None = None

    @property
    def proven(self) -> bool:
        return self._proof is not None and self._proof.done

    def do_handshake(self, block: bool = False) -> None:
        if self._proof is None:
            super().do_handshake(block)
            self._proof = _Proof(self)
        self._proof.advance(super().write, super().read)

    # recv, recv_into and sendall come down to these; OpenSSL would handshake by itself at the first of them
    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        if not self.proven:
            raise _refuse_use()
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        if not self.proven:
            raise _refuse_use()
        return super().write(data)

    def send(self, data: Any, flags: int = 0) -> int:
        if not self.proven:
            raise _refuse_use()
        return super().send(data, flags)


class AttestedContext(ssl.SSLContext):
    """See the module; made by `attested_ssl_context`."""

    prover: Prover
    sslsocket_class = AttestedSocket
    sslobject_class = AttestedObject


def attested_ssl_context(
    policy: Policy,
    *,
    service: str = SERVICE_RA,
    path: str = DEFAULT_PATH,
    insecure_dev_root: bytes | None = None,
    insecure_any_code: bool = False,
    recheck_s: float | None = None,
) -> ssl.SSLContext:
    """Return a TLS 1.3 client context whose connections work only with an enclave that meets `policy`.

    Args:
        policy: must pin the image, see `Policy.identifies_code`.
        service: whose TLS key the evidence must bind.
        path: where the server gives evidence.
        insecure_dev_root: DER of the root to trust instead of the policy's: for emulated enclaves.
        insecure_any_code: accept a policy that does not pin the image: anybody can run some enclave.
        recheck_s: how long a key that was proven needs no new proof; default the policy's greatest age. 0: never.
    Raises:
        ConfigError: the policy does not pin the image.
    """
    if not (policy.identifies_code or insecure_any_code):
        raise ConfigError("the policy", "", "it does not pin the image: PCR0, or PCR1 and PCR2, must be expected")
    if recheck_s is None:
        recheck_s = DEFAULT_MAX_AGE_S if policy.max_age_s is None else policy.max_age_s
    context = AttestedContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the key is what is checked, in the handshake
    context.verify_mode = ssl.CERT_NONE
    context.prover = Prover(policy, service, path, insecure_dev_root, recheck_s)
    return context


def refusal_of(error: BaseException) -> VerificationError | RemoteProtocolError | None:
    """Return why a server was refused, from the error of whatever HTTP library; None if it was something else."""
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        one = pending.pop()
        if isinstance(one, EvidenceError):
            return one.cause
        if isinstance(one, BaseException) and id(one) not in seen:
            seen.add(id(one))
            pending += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return None
