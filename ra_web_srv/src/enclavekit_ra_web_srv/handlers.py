# SPDX-License-Identifier: Apache-2.0
"""The routes. A handler reads its request, asks one collaborator, and writes JSON; none of them blocks.

Routes and field names are those of the Rust ra-web-srv; each works with and without a slash at its end.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable

from aiohttp import web
from enclavekit_core.bus_connection import Bus
from enclavekit_core.errors import DeviceError, EnclavekitError, InputError
from enclavekit_core.file_hash import FileHash
from enclavekit_core.logs import get_logger

from enclavekit_ra_web_srv import requests
from enclavekit_ra_web_srv.attest_ahead import AttestAhead
from enclavekit_ra_web_srv.evidence import Evidence
from enclavekit_ra_web_srv.file_hasher import FileHasher, HasherBusyError, NoSuchFileError, UnstableFileError
from enclavekit_ra_web_srv.jobs import Jobs, TooManyJobsError
from enclavekit_ra_web_srv.known_files import KnownFiles
from enclavekit_ra_web_srv.nsm_worker import NsmBusyError, NsmWorker
from enclavekit_ra_web_srv.paths import ConfinedPath, PathRefusedError, confine
from enclavekit_ra_web_srv.views import show_document

MAX_BODY_BYTES = 64 * 1024  # the only body is a path
HASH_WAIT_S = 2.0  # how long /hash/ and /doc/ wait for a hash before they say "Processing"
RETRY_AFTER_S = 1
CBOR_TYPE = "application/cbor"
STATUS_OF_ERROR: dict[type[EnclavekitError], int] = {
    InputError: 400,
    NoSuchFileError: 404,
    UnstableFileError: 409,
    DeviceError: 503,
    HasherBusyError: 503,
    NsmBusyError: 503,
    TooManyJobsError: 503,
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = get_logger("ra-web-srv")


def json_response(fields: object, status: int = 200) -> web.Response:
    """Answer with JSON; ASCII only, so that path bytes that are no UTF-8 survive as escaped surrogates."""
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status in (202, 503) else None
    text = json.dumps(fields, indent=2) + "\n"
    return web.Response(text=text, status=status, headers=headers, content_type="application/json")


def error_response(status: int, message: str) -> web.Response:
    return json_response({"error": message}, status)


@web.middleware
async def errors_to_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every failure into a status and `{"error": "cannot ..."}`."""
    try:
        return await handler(request)
    except PathRefusedError:
        return error_response(403, "cannot use path: it is outside of what this server may read")
    except web.HTTPException as exc:
        answer = error_response(exc.status, f"cannot serve {request.method} {request.path}: {exc.reason.lower()}")
        if isinstance(exc, web.HTTPMethodNotAllowed):
            answer.headers["Allow"] = exc.headers["Allow"]
        return answer
    except EnclavekitError as exc:
        status = STATUS_OF_ERROR.get(type(exc), 500)
        if status >= 500:
            log.error("request failed", route=request.path, cause=str(exc))
        return error_response(status, str(exc))
    except Exception:  # the outermost: a bug must cost one answer, and what it was stays in our log
        log.exception("request failed", route=request.path)
        return error_response(500, "cannot answer: internal error")


class Handlers:
    def __init__(
        self,
        roots: tuple[bytes, ...],
        hasher: FileHasher,
        known: KnownFiles,
        jobs: Jobs,
        nsm: NsmWorker,
        evidence: Evidence,
        spki_sha256: bytes,
        bus: Bus | None,
        ahead: AttestAhead,
    ) -> None:
        self._roots, self._hasher, self._known, self._jobs = roots, hasher, known, jobs
        self._nsm, self._evidence, self._spki_sha256, self._bus, self._ahead = nsm, evidence, spki_sha256, bus, ahead

    def application(self) -> web.Application:
        app = web.Application(middlewares=[errors_to_json], client_max_size=MAX_BODY_BYTES)
        for method, route, handler in (
            ("GET", "/health", self.health),
            ("POST", "/generate", self.generate),
            ("GET", "/jobs/{job}", self.job),
            ("GET", "/hash", self.hash),
            ("GET", "/doc", self.doc),
            ("GET", "/pcrs", self.pcrs),
            ("GET", "/nsm_desc", self.nsm_desc),
            ("GET", "/attestation", self.attestation),
        ):
            for spelling in (route, route + "/"):
                app.router.add_route(method, spelling, handler)
        app.on_response_prepare.append(_add_headers)
        return app

    async def health(self, request: web.Request) -> web.Response:
        """Whether the server answers; asks neither device nor bus."""
        bus = "off" if self._bus is None else "connected" if self._bus.is_connected else "disconnected"
        counts = {"files_on_bus": self._known.on_bus, "attested_ahead": self._ahead.attested}
        return json_response({"status": "ok", "bus": bus, **counts})

    async def generate(self, request: web.Request) -> web.Response:
        """Begin to hash a file, or every file below a directory."""
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType
        path = confine(requests.parse_generate(await request.read()), self._roots)
        job, is_directory = await self._jobs.start(path)
        kind = "directory" if is_directory else "file"
        return json_response(
            {"status": f"Started processing {kind}", "path": path.text, "job": job.identifier}, status=202
        )

    async def job(self, request: web.Request) -> web.Response:
        """How far a job of `/generate` is."""
        job = self._jobs.get(request.match_info["job"])
        return error_response(404, "cannot find job") if job is None else json_response(job.to_json())

    async def hash(self, request: web.Request) -> web.Response:
        """The hash of a file as it is now."""
        path = confine(requests.parse_path(_query(request)), self._roots)
        found = await self._find_hash(path)
        if isinstance(found, web.Response):
            return found
        return json_response({"file_path": path.text, "sha3_hash": found.digest.hex()})

    async def doc(self, request: web.Request) -> web.Response:
        """A document in which the NSM signs path and hash of a file."""
        fields = _query(request)
        view, nonce = requests.parse_view(fields), requests.parse_nonce(fields, required=False)
        path = confine(requests.parse_path(fields), self._roots)
        found = await self._find_hash(path)
        if isinstance(found, web.Response):
            return found
        document = await self._evidence.of_file(path.path, found.digest, nonce)
        return json_response(
            {
                "file_path": path.text,
                "sha3_hash": found.digest.hex(),
                "att_doc": show_document(document, view),
            }
        )

    async def pcrs(self, request: web.Request) -> web.Response:
        """The registers that are locked, from a fresh document."""
        pcrs = await self._evidence.pcrs()
        return json_response(
            {
                "description": "Platform configuration registers, SHA-384, from a fresh attestation document",
                "pcrs": {str(index): value.hex() for index, value in sorted(pcrs.items())},
            }
        )

    async def nsm_desc(self, request: web.Request) -> web.Response:
        """What the NSM says about itself."""
        description = await self._nsm.call(lambda nsm: nsm.describe_nsm())
        return json_response(
            {
                "version_major": description.version_major,
                "version_minor": description.version_minor,
                "version_patch": description.version_patch,
                "module_id": description.module_id,
                "max_pcrs": description.max_pcrs,
                "locked_pcrs": sorted(description.locked_pcrs),
                "digest": description.digest,
            }
        )

    async def attestation(self, request: web.Request) -> web.Response:
        """A fresh document that binds the key of this TLS server to the caller's nonce."""
        nonce = requests.parse_nonce(_query(request), required=True)
        assert nonce is not None
        document = await self._evidence.of_tls_key(nonce)
        if requests.accepts_cbor(request.headers.get("Accept", "")):
            return web.Response(body=document, content_type=CBOR_TYPE)
        return json_response(
            {
                "attestation_document": base64.b64encode(document).decode("ascii"),
                "tls_spki_sha256": self._spki_sha256.hex(),
                "nonce": nonce.hex(),
            }
        )

    async def _find_hash(self, path: ConfinedPath) -> FileHash | web.Response:
        """Return the hash, or the answer that says why there is none. Raises UnstableFileError, HasherBusyError."""
        not_found = {
            "status": "Not found",
            "file_path": path.text,
            "error": f"cannot find a hash of {path.text!r}: no such file was hashed",
        }
        if path.path not in self._known:
            return json_response(not_found, status=404)
        try:
            found = await self._hasher.hash(path, HASH_WAIT_S)
        except NoSuchFileError:
            self._known.forget_generated(path.path)
            return json_response(not_found, status=404)
        if found is None:
            return json_response({"status": "Processing", "file_path": path.text}, status=202)
        return found


def _query(request: web.Request) -> dict[str, str]:
    return requests.parse_query(request.rel_url.raw_query_string)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "ra-web-srv"
    response.headers["Cache-Control"] = "no-store"  # evidence is about now
    response.headers["X-Content-Type-Options"] = "nosniff"
