# SPDX-License-Identifier: Apache-2.0
"""Routes about all files together: the signed list, and what is or is not in it."""

from __future__ import annotations

import base64

from enclavekit_core.tree_digest import Kind, TreeEntry
from msgspec import UNSET

from enclavekit_ra_web_srv import answers as m
from enclavekit_ra_web_srv import asked
from enclavekit_ra_web_srv.evidence import Evidence
from enclavekit_ra_web_srv.manifest_keeper import ManifestKeeper
from enclavekit_ra_web_srv.paths import PathRefusedError, as_text, confine, normalise
from enclavekit_ra_web_srv.requests import path_bytes
from enclavekit_ra_web_srv.routes import BAD_INPUT, OF_NSM, Ask, Kinds, Route

KINDS = {Kind.FILE: "file", Kind.DIRECTORY: "directory", Kind.LINK: "link", Kind.OTHER: "other"}


class ManifestRoutes:
    def __init__(self, roots: tuple[bytes, ...], keeper: ManifestKeeper, evidence: Evidence) -> None:
        self._roots, self._keeper, self._evidence = roots, keeper, evidence

    def routes(self) -> list[Route]:
        others: dict[int, Kinds] = {**BAD_INPUT, **OF_NSM, 403: m.Error, 404: m.Error}
        return [
            Route(
                "GET",
                "/manifest",
                self.manifest,
                {200: m.ManifestAnswer, **others},
                query=asked.ManifestQuery,
                about_files=True,
            ),
            Route(
                "GET",
                "/manifest/proof",
                self.proof,
                {200: m.ManifestProof, **others},
                query=asked.ManifestProofQuery,
                about_files=True,
            ),
        ]

    async def manifest(self, ask: Ask[asked.ManifestQuery, None]) -> m.ManifestAnswer:
        """All files with size and hash, page by page, and a document that signs their Merkle root."""
        query = ask.query
        below = normalise(path_bytes(query.path))
        if below is None:
            raise PathRefusedError
        manifest = self._keeper.get(_root(query.root))
        nonce = None if query.nonce is UNSET else bytes.fromhex(query.nonce)
        document = None
        if not query.after or nonce is not None:
            document = await self._evidence.of_manifest(
                manifest.root, len(manifest.files), manifest.made_at_ms, nonce, ask.client
            )
        files = manifest.page(below, path_bytes(query.after), query.limit + 1)
        page = files[: query.limit]
        return m.ManifestAnswer(
            manifest_root=manifest.root.hex(),
            made_at_ms=manifest.made_at_ms,
            total_files=len(manifest.files),
            files=[
                m.ManifestFile(as_text(file.path), file.size_bytes, file.digest.hex() if file.digest else None)
                for file in page
            ],
            next=as_text(page[-1].path) if len(files) > query.limit else None,
            attestation_document=None if document is None else base64.b64encode(document).decode("ascii"),
        )

    async def proof(self, ask: Ask[asked.ManifestProofQuery, None]) -> m.ManifestProof:
        """The directories on the way to a path, which prove that it is, or is not, below the root."""
        path = confine(path_bytes(ask.query.path), self._roots)
        manifest = self._keeper.get(_root(ask.query.root))
        way = manifest.prove(path.path)
        parts = [part for part in path.path.split(b"/") if part]
        present = len(way) == len(parts) and (not parts or any(entry.name == parts[-1] for entry in way[-1][1]))
        return m.ManifestProof(
            path=path.text,
            manifest_root=manifest.root.hex(),
            present=present,
            directories=[
                m.DirectoryAnswer(as_text(name), [_entry(entry) for entry in entries]) for name, entries in way
            ],
        )


def _root(text: str | object) -> bytes | None:
    return bytes.fromhex(text) if isinstance(text, str) else None


def _entry(entry: TreeEntry) -> m.TreeEntryAnswer:
    mode = 0 if entry.kind is Kind.LINK else entry.mode & 0o7777
    return m.TreeEntryAnswer(as_text(entry.name), KINDS[entry.kind], mode, entry.digest.hex())
