# SPDX-License-Identifier: Apache-2.0
"""Evidence from a server: asked for with our own nonce, on a connection whose certificate is kept."""

from __future__ import annotations

import http.client
import secrets
import socket
import ssl
import urllib.parse
from dataclasses import dataclass

from enclavekit_core.errors import ConfigError, RemoteProtocolError, TransportError
from enclavekit_core.tls import attested_client_context, peer_certificate_der

from enclavekit_attestation.cose import MAX_DOCUMENT_BYTES

DEFAULT_PATH = "/attestation"
CBOR_TYPE = "application/cbor"
NONCE_BYTES = 32
TIMEOUT_S = 30.0  # an NSM with a queue before it may take seconds
SERVICE_RA = "ra-web-srv"


@dataclass(frozen=True, slots=True)
class Target:
    """Where evidence is: the parts of an https URL."""

    host: str
    port: int
    path: str

    @property
    def url(self) -> str:
        return f"https://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}{self.path}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """A document that nobody has verified, and what to verify it against."""

    document: bytes
    nonce: bytes
    certificate_der: bytes


def parse_target(url: str) -> Target:
    """Read `https://host[:port][/path]`; without a path, /attestation. Raises ConfigError."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise ConfigError(f"URL {url!r:.100}", "", "it is not a URL") from exc
    if parts.scheme != "https" or not host:
        raise ConfigError(f"URL {url!r:.100}", "", "it does not begin with https:// and a host")
    if parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(f"URL {url!r:.100}", "", "it has a user, a query or a fragment")
    return Target(host, port or 443, DEFAULT_PATH if parts.path in ("", "/") else parts.path)


def with_nonce(path: str, nonce: bytes) -> str:
    """Return the request target for a fresh document."""
    return f"{path}?nonce={nonce.hex()}"


def fetch_evidence(target: Target, timeout_s: float = TIMEOUT_S) -> Evidence:
    """Ask for a document.

    Raises: TransportError; RemoteProtocolError if the answer is none.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    connection = http.client.HTTPSConnection(
        target.host, target.port, timeout=timeout_s, context=attested_client_context()
    )
    try:
        connection.connect()
        assert isinstance(connection.sock, ssl.SSLSocket)
        certificate = peer_certificate_der(connection.sock)
        connection.request("GET", with_nonce(target.path, nonce), headers={"Accept": CBOR_TYPE})
        answer = connection.getresponse()
        document = answer.read(MAX_DOCUMENT_BYTES + 1)
    except OSError as exc:
        raise TransportError("get evidence from", target.url, exc) from exc
    except http.client.HTTPException as exc:
        raise RemoteProtocolError(f"cannot get evidence from {target.url}: the answer is not HTTP") from exc
    finally:
        connection.close()
    check_answer(target.url, answer.status, answer.headers.get_content_type(), document)
    return Evidence(document, nonce, certificate)


def fetch_certificate(target: Target, timeout_s: float = TIMEOUT_S) -> bytes:
    """Return the certificate (DER) that the server shows; nothing is asked for. Raises TransportError."""
    try:
        with (
            socket.create_connection((target.host, target.port), timeout_s) as plain,
            attested_client_context().wrap_socket(plain, server_hostname=target.host) as tls,
        ):
            return peer_certificate_der(tls)
    except OSError as exc:
        raise TransportError("get the certificate of", target.url, exc) from exc


def check_answer(url: str, status: int, content_type: str, body: bytes) -> None:
    """Raise RemoteProtocolError unless this is an answer with a document."""
    if status != http.client.OK:
        raise RemoteProtocolError(f"cannot get evidence from {url}: status {status}")
    if content_type != CBOR_TYPE:
        raise RemoteProtocolError(f"cannot get evidence from {url}: the answer is {content_type:.60}, not {CBOR_TYPE}")
    if len(body) > MAX_DOCUMENT_BYTES:
        raise RemoteProtocolError(f"cannot get evidence from {url}: more than {MAX_DOCUMENT_BYTES} bytes")
