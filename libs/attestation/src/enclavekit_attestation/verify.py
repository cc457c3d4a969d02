# SPDX-License-Identifier: Apache-2.0
"""Verification of an attestation document, step by step; nothing of a document is used before it is authenticated.

Two modes, because the leaf certificate lives for three hours: *live* (now, with a nonce, a greatest age), and
*archival* (a stated moment in the past; that the document existed then must be known from elsewhere).

Source: AWS, "Verifying the root of trust", attestation_process.md of aws-nitro-enclaves-nsm-api.
"""

from __future__ import annotations

import enum
import hmac
from dataclasses import dataclass

from enclavekit_core.errors import VerificationError

from enclavekit_attestation.cose import verify_signature
from enclavekit_attestation.document import AttestationDocument, parse_document
from enclavekit_attestation.policy import Policy
from enclavekit_attestation.roots import AWS_ROOT_SHA256, aws_root, root_fingerprint


class Mode(enum.Enum):
    LIVE = "live"
    ARCHIVAL = "archival"


@dataclass(frozen=True, slots=True)
class Step:
    """One check that passed."""

    name: str
    detail: str


@dataclass(frozen=True, slots=True)
class VerifiedDocument:
    """The authenticated fields of a document, and how far the check went."""

    module_id: str
    timestamp_ms: int
    """When the NSM made it, milliseconds since 1970 UTC."""
    pcrs: dict[int, bytes]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    mode: Mode
    verified_at_ms: int
    """The moment that certificates were checked against."""
    compared_pcrs: tuple[int, ...]
    """Which PCRs were expected and equal; empty means that nothing is known about the code."""
    nonce_checked: bool
    """False: the document may be a replay within its greatest age."""
    debug: bool
    """Debug mode, allowed by the policy: the PCRs prove nothing."""
    root_sha256: str
    """SHA-256 of the trusted root's DER, hex."""
    steps: tuple[Step, ...]

    @property
    def development_root(self) -> bool:
        """True if anything but the pinned AWS root was trusted."""
        return self.root_sha256 != AWS_ROOT_SHA256


def verify_document(
    raw: bytes,
    policy: Policy,
    *,
    now_ms: int,
    root: bytes | None = None,
    nonce: bytes | None = None,
    archival: bool = False,
    steps: list[Step] | None = None,
) -> VerifiedDocument:
    """Verify a document and return what it says.

    Args:
        raw: the COSE_Sign1, tagged 18 or untagged.
        now_ms: the moment to verify at, milliseconds since 1970 UTC: the clock, or a past moment if `archival`.
        root: DER of the trusted root; None is the pinned AWS root. Anything else is for development.
        nonce: what the document must contain, when one was sent.
        steps: receives each passed check as it passes, so that a caller can show them when a later one fails.
    Raises:
        VerificationError naming the failed step.
    """
    from enclavekit_attestation.chain import verify_chain  # X.509 takes 50 ms to import; a mere `import` need not pay

    passed = [] if steps is None else steps
    trusted = aws_root() if root is None else root
    document = parse_document(raw)
    passed.append(Step("format", f"COSE_Sign1 with ES384, {len(raw)} bytes, every field well-formed"))

    leaf_key = verify_chain(document.certificate, document.cabundle, trusted, now_ms)
    fingerprint = root_fingerprint(trusted)
    owner = "the AWS Nitro root" if fingerprint == AWS_ROOT_SHA256 else "a DEVELOPMENT root"
    passed.append(Step("chain", f"{len(document.cabundle) + 1} certificates up to {owner} {fingerprint[:16]}"))

    verify_signature(document.envelope, leaf_key)
    passed.append(Step("signature", "made by the leaf certificate's key over the received bytes"))

    _check_time(document, policy, now_ms, archival, passed)
    _check_nonce(document, nonce, passed)
    compared = policy.check_pcrs(document)
    passed.append(Step("pcrs", _describe_pcrs(compared, document.is_debug)))
    return VerifiedDocument(
        module_id=document.module_id,
        timestamp_ms=document.timestamp_ms,
        pcrs=dict(document.pcrs),
        public_key=document.public_key,
        user_data=document.user_data,
        nonce=document.nonce,
        mode=Mode.ARCHIVAL if archival else Mode.LIVE,
        verified_at_ms=now_ms,
        compared_pcrs=tuple(compared),
        nonce_checked=nonce is not None,
        debug=document.is_debug,
        root_sha256=fingerprint,
        steps=tuple(passed),
    )


def _check_time(document: AttestationDocument, policy: Policy, now_ms: int, archival: bool, passed: list[Step]) -> None:
    age_ms = now_ms - document.timestamp_ms
    if age_ms < -policy.clock_skew_s * 1000:
        reason = f"the document is {-age_ms / 1000:.0f} s younger than the moment of verification"
        raise VerificationError("freshness", reason, actual=age_ms)
    limit_ms = policy.max_age_ms(archival=archival)
    if limit_ms is not None and age_ms > limit_ms:
        reason = f"the document is {age_ms / 1000:.0f} s old, the limit is {limit_ms / 1000:.0f} s"
        raise VerificationError("freshness", reason, expected=limit_ms, actual=age_ms)
    limit = "no limit" if limit_ms is None else f"limit {limit_ms / 1000:.0f} s"
    passed.append(
        Step("freshness", f"{Mode.ARCHIVAL.value if archival else Mode.LIVE.value}: {age_ms / 1000:.1f} s old, {limit}")
    )


def _check_nonce(document: AttestationDocument, nonce: bytes | None, passed: list[Step]) -> None:
    if nonce is None:
        passed.append(Step("nonce", "none was asked for"))
        return
    if document.nonce is None or not hmac.compare_digest(document.nonce, nonce):
        reason = "the document has none" if document.nonce is None else "it is not the one that was sent"
        raise VerificationError("nonce", reason, expected=nonce, actual=document.nonce)
    passed.append(Step("nonce", f"equal, {len(nonce)} bytes"))


def _describe_pcrs(compared: list[int], debug: bool) -> str:
    if debug:
        return "DEBUG MODE: PCR0, PCR1 and PCR2 are zero, nothing is known about the code"
    if not compared:
        return "not zero; none was expected, so any enclave would pass"
    return "equal: " + ", ".join(f"PCR{index}" for index in compared)
