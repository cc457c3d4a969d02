# SPDX-License-Identifier: Apache-2.0
"""Verification of an attestation document, step by step; nothing of a document is used before it is authenticated.

Two modes, because the leaf certificate lives for three hours: *live* (now, with a nonce, a greatest age), and
*archival* (a stated moment in the past; that the document existed then must be known from elsewhere).

Source: AWS, "Verifying the root of trust", attestation_process.md of aws-nitro-enclaves-nsm-api. For other languages,
the steps and their pitfalls are in docs/reference/verification.md.
"""

from __future__ import annotations

import datetime
import time
from typing import Literal

from enclavekit_attestation.document import AttestationDocument
from enclavekit_attestation.policy import Policy
from enclavekit_attestation.report import Mode, RefusedError, Report, Step, StepName, VerifiedDocument
from enclavekit_attestation.roots import AWS, TrustedRoot, aws_root, pinned_root
from enclavekit_attestation.steps import Binding, Verification

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
    run = Verification(document, policy, nonce, mode, roots or (pinned_root(),), binding, whole_report)
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
