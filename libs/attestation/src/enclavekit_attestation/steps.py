# SPDX-License-Identifier: Apache-2.0
"""The steps of a verification: what each checks, and what it leaves for those after it."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enclavekit_core.errors import VerificationError

from enclavekit_attestation.cose import verify_signature
from enclavekit_attestation.document import AttestationDocument, parse_document
from enclavekit_attestation.policy import Policy
from enclavekit_attestation.report import Mode, RefusedError, Report, Step, StepName, VerifiedDocument
from enclavekit_attestation.roots import AWS, TrustedRoot, root_fingerprint

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Binding:
    """Whose TLS key `user_data` must bind."""

    service: str
    certificate_der: bytes | None = None
    """The certificate of the connection, whose key it must be; None: any key, for the caller to pin."""


class Verification:
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
