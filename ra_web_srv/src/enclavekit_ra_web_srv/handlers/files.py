# SPDX-License-Identifier: Apache-2.0
"""Routes about files: hashes, proofs, documents, one or many."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from enclavekit_core.errors import EnclavekitError
from enclavekit_core.file_hash import FileHash
from msgspec import UNSET

from enclavekit_ra_web_srv import answers as m
from enclavekit_ra_web_srv import asked
from enclavekit_ra_web_srv.attest_ahead import AttestAhead
from enclavekit_ra_web_srv.evidence import Evidence
from enclavekit_ra_web_srv.file_hasher import FileHasher, NoSuchFileError
from enclavekit_ra_web_srv.jobs import Jobs
from enclavekit_ra_web_srv.known_files import KnownFiles
from enclavekit_ra_web_srv.paths import ConfinedPath, PathRefusedError, as_text, confine, normalise
from enclavekit_ra_web_srv.record_store import RecordStore
from enclavekit_ra_web_srv.requests import path_bytes
from enclavekit_ra_web_srv.routes import BAD_INPUT, OF_NSM, Answer, Ask, Kinds, Route
from enclavekit_ra_web_srv.views import show_document
from enclavekit_ra_web_srv.vrf_key import FileProof

HASH_WAIT_S = 2.0  # how long we wait for a hash before we say "Processing"
LIST_AT_ONCE = 64  # files of one list: as many as are looked at in one go
PROCESSING, READY, NOT_FOUND = "Processing", "Ready", "Not found"
ABOUT_ONE: dict[int, Kinds] = {
    **BAD_INPUT,
    202: m.Progress,
    403: m.Error,
    404: m.NotFound,
    409: m.Error,
    429: m.Error,
    503: m.Error,
}
ABOUT_MANY: dict[int, Kinds] = {**BAD_INPUT, 403: m.Error, 429: m.Error, 503: m.Error}

Item = TypeVar("Item")
Make = Callable[[ConfinedPath, FileHash], Awaitable[Item | None]]


class FileRoutes:
    def __init__(
        self,
        roots: tuple[bytes, ...],
        hasher: FileHasher,
        known: KnownFiles,
        jobs: Jobs,
        evidence: Evidence,
        records: RecordStore,
        ahead: AttestAhead,
        ready: Callable[[], Awaitable[Answer]],
    ) -> None:
        """`ready` answers `/ready` when it is asked about no file."""
        self._roots, self._hasher, self._known, self._jobs = roots, hasher, known, jobs
        self._evidence, self._records, self._ahead, self._service_ready = evidence, records, ahead, ready

    def routes(self) -> list[Route]:
        def one(path: str, handler: Callable[..., Awaitable[Answer | msgspec.Struct]], kind: type) -> Route:
            return Route("GET", path, handler, {200: kind, **ABOUT_ONE}, query=asked.FileQuery, about_files=True)

        def many(path: str, handler: Callable[..., Awaitable[Answer | msgspec.Struct]], kind: type) -> Route:
            return Route("GET", path, handler, {200: kind, **ABOUT_MANY}, query=asked.ListQuery, about_files=True)

        started: dict[int, Kinds] = {202: m.Generated, 403: m.Error, 404: m.Error, 429: m.Error, 503: m.Error}
        document: dict[int, Kinds] = {200: m.FileDocumentAnswer, **ABOUT_ONE, **OF_NSM}
        documents: dict[int, Kinds] = {200: m.Documents, **ABOUT_MANY}
        return [
            Route("POST", "/generate", self.generate, started, body=asked.GenerateBody, about_files=True),
            Route("GET", "/jobs/{job}", self.job, {200: m.JobStatus, 403: m.Error, 404: m.Error}, about_files=True),
            Route(
                "GET",
                "/ready",
                self.ready,
                {200: (m.ReadyFile, m.ServiceReady), **ABOUT_ONE, 503: (m.ServiceReady, m.Error)},
                query=asked.ReadyQuery,
            ),
            many("/readiness", self.readiness, m.Readiness),
            one("/hash", self.hash, m.FileHashAnswer),
            many("/hashes", self.hashes, m.Hashes),
            one("/proof", self.proof, m.FileProofAnswer),
            many("/proofs", self.proofs, m.Proofs),
            Route("GET", "/doc", self.doc, document, query=asked.DocumentQuery, about_files=True),
            Route("GET", "/docs", self.docs, documents, query=asked.DocumentListQuery, about_files=True),
        ]

    async def generate(self, ask: Ask[asked.Nothing, asked.GenerateBody]) -> Answer:
        """Begin to hash a file, or every file below a directory."""
        path = confine(path_bytes(ask.body.path), self._roots)
        job, is_directory = await self._jobs.start(path, ask.client)
        kind = "directory" if is_directory else "file"
        return Answer(m.Generated(f"Started processing {kind}", path.text, job.identifier), 202)

    async def job(self, ask: Ask[asked.Nothing, None]) -> Answer | m.JobStatus:
        """How far a job of `/generate` is."""
        job = self._jobs.get(ask.argument)
        if job is None:
            return Answer(m.Error("cannot find job: there is none of this name, or it was too long ago"), 404)
        return m.JobStatus(job.identifier, job.path.text, job.state.value, job.hashed, job.failed, job.error)

    async def ready(self, ask: Ask[asked.ReadyQuery, None]) -> Answer | m.ReadyFile:
        """Whether a file has a hash; without `path`, whether this server is ready to serve."""
        if ask.query.path is UNSET:
            return await self._service_ready()
        path = confine(path_bytes(ask.query.path), self._roots)
        found = await self._find(path, 0)
        return found if isinstance(found, Answer) else m.ReadyFile(path.text, found.digest.hex(), READY)

    async def hash(self, ask: Ask[asked.FileQuery, None]) -> Answer | m.FileHashAnswer:
        """The hash of a file as it is now."""
        path = confine(path_bytes(ask.query.path), self._roots)
        found = await self._find(path, HASH_WAIT_S)
        return found if isinstance(found, Answer) else m.FileHashAnswer(path.text, found.digest.hex())

    async def proof(self, ask: Ask[asked.FileQuery, None]) -> Answer | m.FileProofAnswer:
        """A VRF proof over path and hash of a file."""
        path = confine(path_bytes(ask.query.path), self._roots)
        found = await self._find(path, HASH_WAIT_S)
        return found if isinstance(found, Answer) else await self._proof_answer(path, found)

    async def doc(self, ask: Ask[asked.DocumentQuery, None]) -> Answer | m.FileDocumentAnswer:
        """A document in which the NSM signs path, hash and proof of a file."""
        nonce = None if ask.query.nonce is UNSET else bytes.fromhex(ask.query.nonce)
        path = confine(path_bytes(ask.query.path), self._roots)
        found = await self._find(path, HASH_WAIT_S)
        if isinstance(found, Answer):
            return found
        record = await self._evidence.of_file(path.path, found.digest, nonce, ask.client)
        return _document_answer(path, found, record.proof, record.document, ask.query.view)

    async def readiness(self, ask: Ask[asked.ListQuery, None]) -> m.Readiness:
        """Which files at or below a path have a hash, and which are still being hashed."""

        async def make(path: ConfinedPath, found: FileHash) -> m.ReadyFile:
            return m.ReadyFile(path.text, found.digest.hex(), READY)

        path, found, missing, following = await self._list(ask.query, make)
        return m.Readiness(path, found, [m.Progress(name, PROCESSING) for name in missing], following)

    async def hashes(self, ask: Ask[asked.ListQuery, None]) -> m.Hashes:
        """The hashes of all files at or below a path."""

        async def make(path: ConfinedPath, found: FileHash) -> m.FileHashAnswer:
            return m.FileHashAnswer(path.text, found.digest.hex())

        path, found, missing, following = await self._list(ask.query, make)
        return m.Hashes(path, missing, following, hashes=found)

    async def proofs(self, ask: Ask[asked.ListQuery, None]) -> m.Proofs:
        """The proofs of all files at or below a path."""

        async def make(path: ConfinedPath, found: FileHash) -> m.FileProofAnswer:
            return await self._proof_answer(path, found)

        path, found, missing, following = await self._list(ask.query, make)
        return m.Proofs(path, missing, following, proofs=found)

    async def docs(self, ask: Ask[asked.DocumentListQuery, None]) -> m.Documents:
        """The documents of all files at or below a path; those that are yet to be made are begun."""

        async def make(path: ConfinedPath, found: FileHash) -> m.FileDocumentAnswer | None:
            record = await self._records.find(path.path, found.digest)
            if record is None:
                self._ahead.note(path.path, found.digest)
                return None
            return _document_answer(path, found, record.proof, record.document, ask.query.view)

        path, found, missing, following = await self._list(ask.query, make)
        return m.Documents(path, missing, following, documents=found)

    async def _proof_answer(self, path: ConfinedPath, found: FileHash) -> m.FileProofAnswer:
        proof = await self._evidence.proof_of_file(path.path, found.digest)
        key = proof.public_key.hex()
        return m.FileProofAnswer(path.text, found.digest.hex(), proof.proof.hex(), proof.suite, key)

    async def _find(self, path: ConfinedPath, wait_s: float) -> FileHash | Answer:
        """Return the hash, or the answer that says why there is none. Raises UnstableFileError, HasherBusyError."""
        if path.path not in self._known:
            return self._not_found(path)
        try:
            found = await self._hasher.hash(path, wait_s)
        except NoSuchFileError:
            self._known.forget_generated(path.path)
            self._records.forget_if_kept(path.path)
            return self._not_found(path)
        return found if found is not None else Answer(m.Progress(path.text, PROCESSING), 202)

    def _not_found(self, path: ConfinedPath) -> Answer:
        reason = "it was deleted" if path.path in self._known.deleted else "no such file was hashed"
        return Answer(m.NotFound(path.text, NOT_FOUND, f"cannot find a hash of {path.text!r}: {reason}"), 404)

    async def _list(
        self, query: asked.ListQuery | asked.DocumentListQuery, make: Make[Item]
    ) -> tuple[str, list[Item], list[str], str | None]:
        """Return the path, what `make` makes of the files of one page, those it makes nothing of, and the next page."""
        below = normalise(path_bytes(query.path))
        if below is None:
            raise PathRefusedError
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + HASH_WAIT_S
        names = self._known.page(below, path_bytes(query.after), query.limit + 1)
        following = as_text(names[query.limit - 1]) if len(names) > query.limit else None

        async def answer(name: bytes) -> Item | Missing | None:
            path = confine(name, self._roots)
            try:
                found = await self._hasher.hash(path, max(0.0, deadline_s - loop.time()))
                return await make(path, found) if found is not None else None
            except NoSuchFileError:
                return MISSING
            except EnclavekitError:
                return None  # it keeps changing, or too much is under way

        page = [name for name in names[: query.limit] if _is_allowed(name, self._roots)]
        answers: list[Item | Missing | None] = []
        for begin in range(0, len(page), LIST_AT_ONCE):
            answers += await asyncio.gather(*(answer(name) for name in page[begin : begin + LIST_AT_ONCE]))
        made = [item for item in answers if item is not None and not isinstance(item, Missing)]
        missing = [as_text(name) for name, item in zip(page, answers, strict=True) if item is None]
        return as_text(below), made, missing, following


class Missing:
    """The file has gone since."""


MISSING = Missing()


def _is_allowed(path: bytes, roots: tuple[bytes, ...]) -> bool:
    try:
        confine(path, roots)
    except PathRefusedError:
        return False
    return True


def _document_answer(
    path: ConfinedPath, found: FileHash, proof: FileProof, document: bytes, view: str
) -> m.FileDocumentAnswer:
    return m.FileDocumentAnswer(
        path.text,
        found.digest.hex(),
        proof.proof.hex(),
        proof.suite,
        show_document(document, view),
        proof.public_key.hex(),
    )
