# SPDX-License-Identifier: Apache-2.0
"""A file's document, asked for on a connection to a server that has proven itself on that very connection."""

from __future__ import annotations

import http.client
import json
import secrets
import time
import urllib.parse

from enclavekit_core.errors import RemoteProtocolError, TransportError
from enclavekit_core.tls import attested_client_context, peer_certificate_der

from enclavekit_attestation.cose import MAX_DOCUMENT_BYTES
from enclavekit_attestation.fetch import CBOR_TYPE, NONCE_BYTES, TIMEOUT_S, Evidence, Target, check_answer, with_nonce

MAX_ANSWER_BYTES = 4 * MAX_DOCUMENT_BYTES  # a document in hex, a path of 4096 bytes escaped, hash and proof
POLL_S = 0.5
DOC_PATH, GENERATE_PATH = "/doc", "/generate"
JSON_TYPE = "application/json"


class FileSession:
    """One connection; whoever uses it verifies `prove`'s evidence before asking about files."""

    def __init__(self, target: Target) -> None:
        """Connect. Raises TransportError."""
        self._target = target
        self._connection = http.client.HTTPSConnection(
            target.host, target.port, timeout=TIMEOUT_S, context=attested_client_context()
        )
        # a connection that http.client makes anew would be one that has proven nothing
        self._connection.auto_open = 0
        try:
            self._connection.connect()
            self._certificate = peer_certificate_der(self._connection.sock)
        except OSError as exc:
            raise TransportError("connect to", target.url, exc) from exc

    def close(self) -> None:
        self._connection.close()

    def prove(self) -> Evidence:
        """Ask for evidence about this connection's key. Raises TransportError, RemoteProtocolError."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        status, kind, body = self._ask("GET", with_nonce(self._target.path, nonce), {"Accept": CBOR_TYPE})
        check_answer(self._target.url, status, kind, body)
        return Evidence(body, nonce, self._certificate)

    def generate(self, path: str) -> None:
        """Have the enclave hash the file, which fs-monitor may not have told it of; how far it is shows in `document`.

        Raises: TransportError, RemoteProtocolError.
        """
        body = json.dumps({"path": path}).encode("ascii")
        status, _kind, answer = self._ask("POST", GENERATE_PATH, {"Content-Type": JSON_TYPE}, body)
        if status != http.client.ACCEPTED:
            raise self._refuse(path, status, answer)

    def document(self, path: str, wait_s: float) -> tuple[bytes, bytes]:
        """Return a fresh document about a file and the nonce in it; while the file is being hashed, wait.

        Raises: TransportError; RemoteProtocolError, also if there is no such file.
        """
        nonce = secrets.token_bytes(NONCE_BYTES)
        fields = {"path": path, "view": "bin_hex", "nonce": nonce.hex()}
        query = urllib.parse.urlencode(fields, errors="surrogateescape")
        deadline_s = time.monotonic() + wait_s
        while True:
            status, _kind, answer = self._ask("GET", f"{DOC_PATH}?{query}", {})
            if status not in (http.client.ACCEPTED, http.client.SERVICE_UNAVAILABLE) or time.monotonic() > deadline_s:
                break
            time.sleep(POLL_S)
        if status != http.client.OK:
            raise self._refuse(path, status, answer)
        try:
            return bytes.fromhex(json.loads(answer)["att_doc"]), nonce
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise RemoteProtocolError(f"cannot get evidence about {path!r}: the answer has no document") from exc

    def _ask(
        self, method: str, target: str, headers: dict[str, str], body: bytes | None = None
    ) -> tuple[int, str, bytes]:
        try:
            self._connection.request(method, target, body, headers)
            answer = self._connection.getresponse()
            content = answer.read(MAX_ANSWER_BYTES + 1)
        except http.client.HTTPException as exc:
            raise RemoteProtocolError(
                f"cannot get evidence from {self._target.url}: it did not answer in HTTP"
            ) from exc
        except OSError as exc:
            raise TransportError("get evidence from", self._target.url, exc) from exc
        if len(content) > MAX_ANSWER_BYTES:
            raise RemoteProtocolError(f"cannot get evidence from {self._target.url}: the answer is too long")
        return answer.status, answer.headers.get_content_type(), content

    def _refuse(self, path: str, status: int, answer: bytes) -> RemoteProtocolError:
        try:
            reason = str(json.loads(answer)["error"])
        except (ValueError, KeyError, TypeError, RecursionError):
            reason = "it is still being hashed" if status == http.client.ACCEPTED else ""
        shown = ascii(reason)[1:-1][:300] or f"status {status}"
        return RemoteProtocolError(f"cannot get evidence about {path!r} from {self._target.url}: {shown}")
