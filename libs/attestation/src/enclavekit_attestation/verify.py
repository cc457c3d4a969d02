# SPDX-License-Identifier: Apache-2.0
"""Verification of an attestation document, step by step; nothing of a document is used before it is authenticated.

Two modes, because the leaf certificate lives for three hours: *live* (now, with a nonce, a greatest age), and
*archival* (a stated moment in the past; that the document existed then must be known from elsewhere).

Source: AWS, "Verifying the root of trust", attestation_process.md of aws-nitro-enclaves-nsm-api. For other languages,
the steps and their pitfalls are in docs/reference/verification.md.
"""

from __future__ import annotations

import datetime
import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from enclavekit_core.errors import VerificationError

from enclavekit_attestation.cose import verify_signature
from enclavekit_attestation.document import AttestationDocument, parse_document
from enclavekit_attestation.policy import Policy
from enclavekit_attestation.report import Mode, RefusedError, Report, Step, StepName, VerifiedDocument
from enclavekit_attestation.roots import AWS, TrustedRoot, aws_root, pinned_root, root_fingerprint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

__all__ = [
    "DOCUMENT_TIME",
    "Binding",
    "Mode",
    "RefusedError",
    "Report",
    "Step",
    "VerifiedDocument",
    "verify",
    "verify_document",
]

DOCUMENT_TIME: Literal["document"] = "document"
Moment = datetime.datetime | int | Literal["document"]


@dataclass(frozen=True, slots=True)
class Binding:
    """Whose TLS key `user_data` must bind."""

    service: str
    certificate_der: bytes | None = None
    """The certificate of the connection, whose key it must be; None: any key, for the caller to pin."""


def verify(
    document: bytes,
    policy: Policy,
    *,
    nonce: bytes | None = None,
    at: Moment | None = None,
    binding: Binding | None = None,
    root: bytes | None = None,
    whole_report: bool = False,
    now_ms: int | None = None,
) -> Report:
    """Verify a document and return the report of all steps.

    Args:
        document: the COSE_Sign1, tagged 18 or untagged.
        nonce: what the document must contain, when one was sent.
        at: None is live: now. A moment (aware datetime, or milliseconds since 1970 UTC) is archival: the certificates
            must be valid then; DOCUMENT_TIME takes the document's word for when it was made.
        binding: the TLS key that `user_data` must bind.
        root: DER of a development root, trusted instead of those of the policy.
        whole_report: return the report of a document that was refused, with the steps after the failed one, too.
        now_ms: what live means, for callers with a clock of their own.
    Raises:
        RefusedError (a VerificationError) with the report up to the step that failed, unless `whole_report`.
    """
    mode = Mode.LIVE if at is None else Mode.ARCHIVAL
    roots = (TrustedRoot(root, AWS if root == aws_root() else None),) if root is not None else policy.roots
    run = _Run(document, policy, nonce, mode, roots or (pinned_root(),), binding, whole_report)
    run.step(StepName.FORMAT, run.check_format)
    if run.parsed is not None:
        run.at_ms = _moment_ms(at, now_ms, run.parsed)
    for name, check in (
        (StepName.CHAIN, run.check_chain),
        (StepName.SIGNATURE, run.check_signature),
        (StepName.FRESHNESS, run.check_freshness),
        (StepName.NONCE, run.check_nonce),
        (StepName.DEBUG, run.check_debug),
        (StepName.PCRS, run.check_pcrs),
        *([(StepName.USER_DATA, run.check_user_data)] if policy.user_data else []),
        *([(StepName.BINDING, run.check_binding)] if binding else []),
    ):
        run.step(name, check)
    return run.report()


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
    """Verify a document and return what it says; `verify` with the arguments that most callers have.

    Args:
        now_ms: the moment to verify at, milliseconds since 1970 UTC: the clock, or a past moment if `archival`.
        steps: receives each passed check, so that a caller can show them when a later one fails.
    Raises:
        RefusedError (a VerificationError) naming the failed step.
    """
    at = now_ms if archival else None
    try:
        report = verify(raw, policy, nonce=nonce, at=at, root=root, now_ms=now_ms)
    except RefusedError as exc:
        if steps is not None:
            steps += [step for step in exc.report.steps if step.passed]
        raise
    if steps is not None:
        steps += report.steps
    assert report.document is not None
    return report.document


def _moment_ms(at: Moment | None, now_ms: int | None, document: AttestationDocument) -> int:
    if at == DOCUMENT_TIME:
        return document.timestamp_ms
    if isinstance(at, datetime.datetime):
        if at.tzinfo is None:
            raise ValueError("a moment needs a time zone")
        return int(at.timestamp() * 1000)
    if isinstance(at, int):
        return at
    return time.time_ns() // 1_000_000 if now_ms is None else now_ms


class _Run:
    """One verification: what is known so far, and the checks that add to it."""

    def __init__(
        self,
        raw: bytes,
        policy: Policy,
        nonce: bytes | None,
        mode: Mode,
        roots: tuple[TrustedRoot, ...],
        binding: Binding | None,
        whole_report: bool,
    ) -> None:
        self.raw, self.policy, self.nonce, self.mode = raw, policy, nonce, mode
        self.roots, self.binding, self.whole_report = roots, binding, whole_report
        self.at_ms = 0
        self.steps: list[Step] = []
        self.parsed: AttestationDocument | None = None
        self.root = roots[0]
        self.leaf_key: EllipticCurvePublicKey | None = None
        self.compared: tuple[int, ...] = ()
        self.measurement_set: str | None = None

    @property
    def document(self) -> AttestationDocument:
        assert self.parsed is not None
        return self.parsed

    def step(self, name: StepName, check: Callable[[], Step]) -> None:
        """Run one check. Raises RefusedError if it fails, unless the whole report is wanted."""
        if name is not StepName.FORMAT and self.parsed is None:
            self.steps.append(Step(name, "not reached: there is no document", passed=None))
            return
        try:
            self.steps.append(check())
        except VerificationError as exc:
            failed = Step(name, exc.reason, passed=False, found=_plain(exc.actual), expected=_plain(exc.expected))
            self.steps.append(failed)
            if not self.whole_report:
                raise RefusedError(exc, name, self.report()) from exc

    def report(self) -> Report:
        passed = bool(self.steps) and all(step.passed for step in self.steps)
        return Report(self.mode, tuple(self.steps), self._verified() if passed else None)

    def check_format(self) -> Step:
        self.parsed = parse_document(self.raw)
        detail = f"COSE_Sign1 with ES384, {len(self.raw)} bytes, every field well-formed"
        return Step(StepName.FORMAT, detail, found=len(self.raw))

    def check_chain(self) -> Step:
        from enclavekit_attestation.chain import verify_chain  # X.509 takes 50 ms to import; `import` need not pay

        bundle = self.document.cabundle
        self.root = next((root for root in self.roots if root.der == bundle[0]), self.roots[0])
        self.leaf_key = verify_chain(self.document.certificate, bundle, self.root.der, self.at_ms)
        fingerprint = root_fingerprint(self.root.der)
        owner = "a DEVELOPMENT root" if self.root.partition is None else f"the {self._owner()} Nitro root"
        detail = f"{len(bundle) + 1} certificates up to {owner} {fingerprint[:16]}"
        trusted = [root_fingerprint(one.der) for one in self.roots]
        return Step(StepName.CHAIN, detail, found=fingerprint, expected=trusted)

    def _owner(self) -> str:
        return "AWS" if self.root.partition == AWS else f"AWS ({self.root.partition})"

    def check_signature(self) -> Step:
        from enclavekit_attestation.chain import Certificate

        key = self.leaf_key
        if key is None:  # the chain has failed; the whole report tells whether the document is at least in one piece
            key = Certificate.load(self.document.certificate, "leaf certificate").p384_key()
        verify_signature(self.document.envelope, key)
        return Step(StepName.SIGNATURE, "made by the leaf certificate's key over the received bytes")

    def check_freshness(self) -> Step:
        age_ms = self.at_ms - self.document.timestamp_ms
        if age_ms < -self.policy.clock_skew_s * 1000:
            reason = f"the document is {-age_ms / 1000:.0f} s younger than the moment of verification"
            raise VerificationError("freshness", reason, actual=age_ms)
        limit_ms = self.policy.max_age_ms(archival=self.mode is Mode.ARCHIVAL)
        if limit_ms is not None and age_ms > limit_ms:
            reason = f"the document is {age_ms / 1000:.0f} s old, the limit is {limit_ms / 1000:.0f} s"
            raise VerificationError("freshness", reason, expected=limit_ms, actual=age_ms)
        limit = "no limit" if limit_ms is None else f"limit {limit_ms / 1000:.0f} s"
        detail = f"{self.mode.value}: {age_ms / 1000:.1f} s old, {limit}"
        return Step(StepName.FRESHNESS, detail, found=age_ms, expected=limit_ms)

    def check_nonce(self) -> Step:
        found, sent = self.document.nonce, self.nonce
        if sent is None:
            if self.policy.require_nonce and self.mode is Mode.LIVE:
                raise VerificationError("nonce", "the policy requires one, and none was sent", actual=found)
            return Step(StepName.NONCE, "none was asked for", found=_plain(found))
        if found is None or not hmac.compare_digest(found, sent):
            reason = "the document has none" if found is None else "it is not the one that was sent"
            raise VerificationError("nonce", reason, expected=sent, actual=found)
        return Step(StepName.NONCE, f"equal, {len(sent)} bytes", found=_plain(found), expected=_plain(sent))

    def check_debug(self) -> Step:
        self.policy.check_debug(self.document)
        debug = self.document.is_debug
        return Step(StepName.DEBUG, "DEBUG MODE, which is allowed" if debug else "off", found=debug)

    def check_pcrs(self) -> Step:
        compared, name = self.policy.check_pcrs(self.document, self.at_ms)
        self.compared, self.measurement_set = tuple(compared), name
        if self.document.is_debug:
            detail = "PCR0, PCR1 and PCR2 are zero, nothing is known about the code"
        elif not compared:
            detail = "not zero; none was expected, so any enclave would pass"
        else:
            detail = "equal: " + ", ".join(f"PCR{index}" for index in compared) + (f" (set {name!r})" if name else "")
        found = {str(index): self.document.pcrs[index].hex() for index in compared}
        return Step(StepName.PCRS, detail, found=found, expected=found)

    def check_user_data(self) -> Step:
        assert self.policy.user_data is not None
        user_data = self.document.user_data
        return Step(StepName.USER_DATA, self.policy.user_data.check(user_data), found=_plain(user_data))

    def check_binding(self) -> Step:
        import base64

        from enclavekit_attestation.binding import check_binding, read_binding

        assert self.binding is not None
        service, certificate = self.binding.service, self.binding.certificate_der
        if certificate is not None:
            check_binding(self.document.user_data, service, certificate, public_key=self.document.public_key)
        spki_sha256 = read_binding(self.document.user_data, service)
        pin = base64.b64encode(spki_sha256).decode()
        whose = "is the certificate's" if certificate is not None else "is yet to be pinned"
        detail = f"service {service!r} has the TLS key sha256//{pin}, which {whose}"
        return Step(StepName.BINDING, detail, found=spki_sha256.hex())

    def _verified(self) -> VerifiedDocument:
        document = self.document
        return VerifiedDocument(
            module_id=document.module_id,
            timestamp_ms=document.timestamp_ms,
            pcrs=dict(document.pcrs),
            public_key=document.public_key,
            user_data=document.user_data,
            nonce=document.nonce,
            mode=self.mode,
            verified_at_ms=self.at_ms,
            compared_pcrs=self.compared,
            nonce_checked=self.nonce is not None,
            debug=document.is_debug,
            root_sha256=root_fingerprint(self.root.der),
            steps=tuple(self.steps),
            partition=self.root.partition,
            measurement_set=self.measurement_set,
        )


def _plain(value: object) -> object:
    """Return a value for JSON: byte strings in hex, keys as text."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
