# SPDX-License-Identifier: Apache-2.0
"""Routes that check what a client sends, for clients of the Rust server.

A server's word about its own evidence proves nothing: whoever wants to know uses `attest` outside. What is said here is
at least true: chains end at a pinned root, never at one out of the document.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cryptography import x509
from ecvrf import SUITES, EcvrfError
from enclavekit_attestation.document import AttestationDocument, parse_document
from enclavekit_attestation.policy import Policy
from enclavekit_attestation.report import Report, StepName
from enclavekit_attestation.verify import DOCUMENT_TIME, Moment, verify
from enclavekit_core.errors import InputError, VerificationError

from enclavekit_ra_web_srv import answers as m
from enclavekit_ra_web_srv import asked
from enclavekit_ra_web_srv.claims import encode_alpha
from enclavekit_ra_web_srv.evidence import Evidence
from enclavekit_ra_web_srv.fair_queue import QueueFullError
from enclavekit_ra_web_srv.file_hasher import FileHasher, NoSuchFileError
from enclavekit_ra_web_srv.paths import confine
from enclavekit_ra_web_srv.requests import path_bytes
from enclavekit_ra_web_srv.routes import BAD_INPUT, OF_NSM, Answer, Ask, Kinds, Route
from enclavekit_ra_web_srv.views import pcr_text
from enclavekit_ra_web_srv.vrf_key import VrfKey

MAX_CHECKS = 16  # that wait for the thread; each takes some milliseconds of it
HASH_WAIT_S = 30.0  # for a hash that the caller wants to see compared, not to be told to come again
REGISTER = re.compile(r"\s*([0-9]{1,2})\s*:\s*([0-9a-fA-F]+)\s*")
# what old proofs name; made before RFC 9381
DRAFT_05 = {
    "P256_SHA256_TAI": "ECVRF-P256-SHA256-TAI-draft-05",
    "SECP256R1_SHA256_TAI": "ECVRF-P256-SHA256-TAI-draft-05",
    "SECP256K1_SHA256_TAI": "ECVRF-SECP256K1-SHA256-TAI-draft-05",
}
SEPARATOR = re.compile(r"\s*[,\n]\s*")
ONE_S_OWN_WORD = "this is the word of the server about itself: check it outside, with `attest`"

Value = TypeVar("Value")


class CheckRoutes:
    def __init__(
        self,
        roots: tuple[bytes, ...],
        hasher: FileHasher,
        evidence: Evidence,
        vrf: VrfKey,
        insecure_dev_root: bytes | None,
    ) -> None:
        """`insecure_dev_root` is trusted instead of AWS's, in an emulated enclave."""
        self._roots, self._hasher, self._evidence, self._vrf = roots, hasher, evidence, vrf
        self._root = insecure_dev_root
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="check")
        self._waiting = 0

    def routes(self) -> list[Route]:
        def check(
            path: str, handler: Callable[..., object], kind: type, body: type, *, about_files: bool = False
        ) -> Route:
            answers: dict[int, Kinds] = {200: kind, **BAD_INPUT, **OF_NSM}
            if about_files:
                answers |= {202: m.Progress, 403: m.Error, 404: m.Error, 409: m.Error}
            return Route("POST", path, handler, answers, body=body, about_files=about_files)  # type: ignore[arg-type]

        return [
            check("/verify_pcrs", self.verify_pcrs, m.PcrVerdict, asked.PcrsBody),
            check("/verify_hash", self.verify_hash, m.HashVerdict, asked.HashBody, about_files=True),
            check("/verify_proof", self.verify_proof, m.ProofVerdict, asked.ProofBody),
            check("/verify_doc", self.verify_doc, m.DocumentVerdict, asked.DocumentBody),
            check("/verify_cert_valid", self.verify_cert_valid, m.CertificateVerdict, asked.DocumentBody),
            check("/verify_cert_bundle", self.verify_cert_bundle, m.BundleVerdict, asked.DocumentBody),
        ]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def verify_pcrs(self, ask: Ask[asked.Nothing, asked.PcrsBody]) -> m.PcrVerdict:
        """Whether these are all the locked registers of this enclave."""
        provided = parse_pcrs(ask.body.pcrs)
        actual = (await self._evidence.fresh(ask.client)).pcrs
        valid = provided == actual
        verdict = "PCRs are equal" if valid else "PCRs differ, or are not all that are locked"
        return m.PcrVerdict(valid, f"{verdict}; {ONE_S_OWN_WORD}", ask.body.pcrs, pcr_text(actual))

    async def verify_hash(self, ask: Ask[asked.Nothing, asked.HashBody]) -> Answer | m.HashVerdict:
        """Whether a file has this hash now."""
        path = confine(path_bytes(ask.body.file_path), self._roots)
        if await self._hasher.is_directory(path):
            raise InputError("hash", repr(path.text), "it is a directory")
        try:
            found = await self._hasher.hash(path, HASH_WAIT_S)
        except NoSuchFileError:
            return Answer(m.Error(f"cannot hash {path.text!r}: there is no such regular file"), 404)
        if found is None:
            return Answer(m.Progress(path.text, "Processing"), 202)
        valid = hmac.compare_digest(found.digest, bytes.fromhex(ask.body.sha3_hash))
        message = "Hash is valid" if valid else "Hash is not valid: the file has another content"
        return m.HashVerdict(valid, path.text, ask.body.sha3_hash, found.digest.hex(), message)

    async def verify_proof(self, ask: Ask[asked.Nothing, asked.ProofBody]) -> m.ProofVerdict:
        """Whether a VRF proof holds under a public key."""
        public_key = bytes.fromhex(ask.body.public_key)
        own = hmac.compare_digest(public_key, self._vrf.public_key)
        try:
            await self._run(lambda: check_proof(bytes.fromhex(ask.body.user_data), public_key))
        except EcvrfError as exc:
            return m.ProofVerdict(False, str(exc), own)
        whose = "this server's key" if own else "a key that is not this server's: see that an NSM document attests it"
        return m.ProofVerdict(True, f"VRF proof is valid, by {whose}", own)

    async def verify_doc(self, ask: Ask[asked.Nothing, asked.DocumentBody]) -> m.DocumentVerdict:
        """Whether a document is signed, with certificates that led to the pinned root when it was made."""
        report = await self._report(ask.body.cose_doc_bytes, DOCUMENT_TIME)
        failed = _failure(report, StepName.CHAIN, StepName.SIGNATURE)
        message = failed or f"Document was signed by an NSM at the time that it names; {ONE_S_OWN_WORD}"
        return m.DocumentVerdict(failed is None, message)

    async def verify_cert_valid(self, ask: Ask[asked.Nothing, asked.DocumentBody]) -> m.CertificateVerdict:
        """Whether the certificate of a document was issued under the pinned root, and is valid now."""
        document = await self._parse(ask.body.cose_doc_bytes)
        report = await self._report(ask.body.cose_doc_bytes, DOCUMENT_TIME)
        failed = _failure(report, StepName.CHAIN)
        try:
            leaf = x509.load_der_x509_certificate(document.certificate)
            start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
            info = _describe(leaf)
        except Exception as exc:  # hostile bytes: whichever of its exceptions the parser picks, it is no certificate
            raise InputError("read", "certificate", "it is not one") from exc
        in_time = start.timestamp() <= time.time() <= end.timestamp()
        late = None if in_time else f"certificate is valid from {start:%Y-%m-%dT%H:%M:%SZ} to {end:%Y-%m-%dT%H:%M:%SZ}"
        return m.CertificateVerdict(failed is None, in_time, failed or late or "Certificate is valid", info)

    async def verify_cert_bundle(self, ask: Ask[asked.Nothing, asked.DocumentBody]) -> m.BundleVerdict:
        """Whether the whole chain of a document leads to the pinned root and is valid now."""
        failed = _failure(await self._report(ask.body.cose_doc_bytes, time.time_ns() // 1_000_000), StepName.CHAIN)
        message = "Certificate chain is valid" if failed is None else "Certificate chain is not valid"
        return m.BundleVerdict(failed is None, message, failed)

    async def _parse(self, text: str) -> AttestationDocument:
        try:
            return parse_document(bytes.fromhex(text))
        except VerificationError as exc:
            raise InputError("read", "document", exc.reason) from exc

    async def _report(self, text: str, at: Moment) -> Report:
        """Verify without any expectation. Raises InputError for what is no document."""
        raw = bytes.fromhex(text)
        await self._parse(text)
        policy = Policy(allow_debug=True)
        return await self._run(lambda: verify(raw, policy, at=at, root=self._root, whole_report=True))

    async def _run(self, check: Callable[[], Value]) -> Value:
        """Run a check in the one thread for them. Raises QueueFullError."""
        if self._waiting >= MAX_CHECKS:
            raise QueueFullError("cannot check: too many checks wait")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, check)
        finally:
            self._waiting -= 1


def parse_pcrs(text: str) -> dict[int, bytes]:
    """Read `0: hex, 1: hex, ...`, with commas or line breaks between. Raises InputError."""
    pcrs: dict[int, bytes] = {}
    for part in SEPARATOR.split(text.strip().rstrip(",")):
        found = REGISTER.fullmatch(part.replace('"', ""))
        if found is None or len(found[2]) % 2 or int(found[1]) in pcrs:
            raise InputError("read", "'pcrs' field", "it is not `0: hex, 1: hex, ...`, each register once")
        pcrs[int(found[1])] = bytes.fromhex(found[2])
    return pcrs


def check_proof(user_data: bytes, public_key: bytes) -> None:
    """Check the proof in the `user_data` of a file's document. Raises InputError, EcvrfError."""
    try:
        fields = json.loads(user_data)
        suite_name, proof = fields["vrf_cipher_suite"], bytes.fromhex(fields["vrf_proof"])
        digest = bytes.fromhex(fields["sha3_hash"])
        if "file_path" in fields:
            alpha = encode_alpha(fields["file_path"].encode("utf-8"), digest)
        else:
            raise InputError("check", "proof", "`user_data` has the digest of a path in place of the path")
        suite = SUITES.get(DRAFT_05.get(suite_name, suite_name))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise InputError("read", "'user_data' field", "it is not what a document says about a file") from exc
    if suite is None:
        raise InputError("check", "proof", f"the suite {suite_name!r:.60} is unknown")
    suite.verify(public_key, alpha, proof)


def _failure(report: Report, *names: StepName) -> str | None:
    """Return why one of these steps failed."""
    return next((step.detail for step in report.steps if step.name in names and not step.passed), None)


def _describe(certificate: x509.Certificate) -> str:
    lines = {
        "serial": f"{certificate.serial_number:x}",
        "issuer": certificate.issuer.rfc4514_string(),
        "subject": certificate.subject.rfc4514_string(),
        "not before": certificate.not_valid_before_utc.isoformat(),
        "not after": certificate.not_valid_after_utc.isoformat(),
        "signature algorithm": certificate.signature_algorithm_oid.dotted_string,
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())
