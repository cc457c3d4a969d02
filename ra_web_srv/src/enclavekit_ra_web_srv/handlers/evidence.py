# SPDX-License-Identifier: Apache-2.0
"""Routes about the enclave: its evidence, registers, keys and random bytes."""

from __future__ import annotations

import base64
from collections.abc import Callable

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from ecvrf import Suite
from enclavekit_core.errors import InputError
from enclavekit_nsm.client import NsmClient

from enclavekit_ra_web_srv import answers as m
from enclavekit_ra_web_srv import asked
from enclavekit_ra_web_srv.evidence import Evidence
from enclavekit_ra_web_srv.nsm_worker import NsmWorker
from enclavekit_ra_web_srv.requests import accepts_cbor
from enclavekit_ra_web_srv.routes import BAD_INPUT, CBOR, OF_NSM, Answer, Ask, Kinds, Route
from enclavekit_ra_web_srv.vrf_key import VrfKey

PUBLIC_KEY_VIEWS = {"hex": True, "json": True, "string": False, "text": False}  # -> whether it is hex


class EvidenceRoutes:
    def __init__(
        self,
        nsm: NsmWorker,
        evidence: Evidence,
        vrf: VrfKey,
        spki_sha256: bytes,
        manifest_root: Callable[[], bytes | None],
    ) -> None:
        self._nsm, self._evidence, self._vrf = nsm, evidence, vrf
        self._spki_sha256, self._manifest_root = spki_sha256, manifest_root

    def routes(self) -> list[Route]:
        attested: dict[int, Kinds] = {200: m.Attestation, **BAD_INPUT, **OF_NSM}
        return [
            Route("GET", "/attestation", self.attestation, attested, query=asked.NonceQuery, content_types=(CBOR,)),
            Route("GET", "/pubkeys", self.pubkeys, {200: m.PublicKeys, **BAD_INPUT, **OF_NSM}, query=asked.KeyQuery),
            Route("GET", "/pcrs", self.pcrs, {200: m.Pcrs, **OF_NSM}),
            Route("GET", "/nsm_desc", self.nsm_desc, {200: m.NsmDescription, **OF_NSM}),
            Route("GET", "/rng_seq", self.rng_seq, {200: m.Random, **BAD_INPUT, **OF_NSM}, query=asked.RandomQuery),
        ]

    async def attestation(self, ask: Ask[asked.NonceQuery, None]) -> Answer | m.Attestation:
        """A fresh document that binds the keys of this server and the root of the manifest to the caller's nonce."""
        nonce, root = bytes.fromhex(ask.query.nonce), self._manifest_root()
        document = await self._evidence.of_tls_key(nonce, ask.client, root)
        if accepts_cbor(ask.accept):
            return Answer(document, content_type=CBOR)
        return m.Attestation(
            attestation_document=base64.b64encode(document).decode("ascii"),
            tls_spki_sha256=self._spki_sha256.hex(),
            nonce=nonce.hex(),
            vrf_public_key=self._vrf.public_key.hex(),
            vrf_cipher_suite=self._vrf.suite.name,
            manifest_root=None if root is None else root.hex(),
        )

    async def pubkeys(self, ask: Ask[asked.KeyQuery, None]) -> m.PublicKeys:
        """The VRF's public key, and the one that the NSM signs documents with."""
        as_hex = PUBLIC_KEY_VIEWS.get(ask.query.view)
        if as_hex is None:
            raise InputError("use", "'view' parameter", f"it is none of {', '.join(PUBLIC_KEY_VIEWS)}")
        if ask.query.fmt not in ("pem", "der"):
            raise InputError("use", "'fmt' parameter", "it is neither pem nor der")
        if ask.query.fmt == "der" and not as_hex:
            raise InputError("use", "'fmt' parameter", "DER is no text: ask for it with view=hex")
        encoding = Encoding.PEM if ask.query.fmt == "pem" else Encoding.DER
        leaf = x509.load_der_x509_certificate((await self._evidence.fresh(ask.client)).certificate)
        keys = [
            key.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
            for key in (point_to_key(self._vrf.suite, self._vrf.public_key), leaf.public_key())
        ]
        proofs, docs = (key.hex() if as_hex else key.decode("ascii") for key in keys)
        return m.PublicKeys(proofs, docs, self._vrf.public_key.hex(), self._vrf.suite.name)

    async def pcrs(self, ask: Ask[asked.Nothing, None]) -> m.Pcrs:
        """The registers that are locked, from a fresh document."""
        document = await self._evidence.fresh(ask.client)
        return m.Pcrs(
            "Platform configuration registers, SHA-384, from a fresh attestation document",
            {str(index): value.hex() for index, value in sorted(document.pcrs.items())},
        )

    async def nsm_desc(self, ask: Ask[asked.Nothing, None]) -> m.NsmDescription:
        """What the NSM says about itself."""
        found = await self._nsm.call(lambda nsm: nsm.describe_nsm(), ask.client)
        return m.NsmDescription(
            found.version_major,
            found.version_minor,
            found.version_patch,
            found.module_id,
            found.max_pcrs,
            sorted(found.locked_pcrs),
            found.digest,
        )

    async def rng_seq(self, ask: Ask[asked.RandomQuery, None]) -> m.Random:
        """Random bytes from the NSM."""
        length = ask.query.length

        def draw(nsm: NsmClient) -> bytes:
            drawn = b""
            while len(drawn) < length:
                drawn += nsm.get_random()
            return drawn[:length]

        return m.Random(length, (await self._nsm.call(draw, ask.client)).hex())


def point_to_key(suite: Suite, point: bytes) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
    """Return the VRF's public key as a key of that curve, for those who want its SubjectPublicKeyInfo."""
    if "EDWARDS25519" in suite.name:
        return ed25519.Ed25519PublicKey.from_public_bytes(point)
    curve = ec.SECP256K1() if "SECP256K1" in suite.name else ec.SECP256R1()
    return ec.EllipticCurvePublicKey.from_encoded_point(curve, point)
