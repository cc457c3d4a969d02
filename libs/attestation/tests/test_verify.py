# SPDX-License-Identifier: Apache-2.0
"""Freshness, nonce and PCRs of documents that are otherwise good."""

import pytest
from enclavekit_attestation import Mode, Policy, verify_document
from enclavekit_core.errors import VerificationError

ZERO = bytes(48)
PCR0, PCR1, PCR2 = (bytes([index + 1]) * 48 for index in range(3))
CODE = {0: PCR0, 1: PCR1, 2: PCR2}
DEBUG = {0: ZERO, 1: ZERO, 2: ZERO, 3: PCR0, 8: ZERO}


@pytest.fixture
def check(make, chain):
    """Verify a document with the given changes; `age_ms` is how old it is."""

    def run(policy, changes=(), *, age_ms=0, **options):
        raw = make.document(chain, changes)
        return verify_document(raw, policy, now_ms=make.now_ms + age_ms, root=chain.root, **options)

    return run


def test_live_document_is_accepted_and_described(check, chain):
    seen = []
    verified = check(Policy(CODE), {"pcrs": CODE, "nonce": b"n", "user_data": b"u"}, nonce=b"n", steps=seen)
    assert (verified.mode, verified.nonce_checked, verified.compared_pcrs) == (Mode.LIVE, True, (0, 1, 2))
    assert (verified.user_data, verified.nonce, verified.public_key) == (b"u", b"n", None)
    assert verified.development_root
    assert tuple(seen) == verified.steps
    assert [step.name for step in seen] == ["format", "chain", "signature", "freshness", "nonce", "debug", "pcrs"]


@pytest.mark.parametrize("sent", [b"m", b"nn", b""])
def test_other_nonce_is_refused(check, sent):
    with pytest.raises(VerificationError, match="nonce"):
        check(Policy(), {"nonce": b"n"}, nonce=sent)


def test_missing_nonce_is_refused(check):
    with pytest.raises(VerificationError, match="nonce"):
        check(Policy(), {"nonce": None}, nonce=b"")


@pytest.mark.parametrize(
    ("age_ms", "max_age_s", "archival"),
    [(300_000, None, False), (1000, 1, False), (-60_000, None, False), (7_000_000, None, True), (5_000, 5, True)],
)
def test_fresh_enough(check, age_ms, max_age_s, archival):
    assert check(Policy(max_age_s=max_age_s), age_ms=age_ms, archival=archival)


@pytest.mark.parametrize(
    ("age_ms", "max_age_s", "archival"),
    [(300_001, None, False), (1001, 1, False), (-60_001, None, False), (-60_001, None, True), (5_001, 5, True)],
)
def test_stale_or_future_is_refused(check, age_ms, max_age_s, archival):
    with pytest.raises(VerificationError, match="freshness"):
        check(Policy(max_age_s=max_age_s), age_ms=age_ms, archival=archival)


@pytest.mark.parametrize("index", [0, 1, 2, 3, 31])
def test_other_or_missing_pcr_is_refused(check, index):
    with pytest.raises(VerificationError, match=f"PCR{index} is"):
        check(Policy({index: bytes([99]) * 48}), {"pcrs": CODE})


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_document_without_code_pcrs_is_refused(check, missing):
    pcrs = {index: value for index, value in CODE.items() if index != missing}
    with pytest.raises(VerificationError, match=f"no PCR{missing}"):
        check(Policy(allow_debug=True), {"pcrs": pcrs})


@pytest.mark.parametrize("zero", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_partly_zero_is_refused_even_in_debug_mode(check, zero):
    with pytest.raises(VerificationError, match="no image has"):
        check(Policy(allow_debug=True), {"pcrs": {**CODE, **dict.fromkeys(zero, ZERO)}})


def test_debug_mode_needs_permission(check):
    with pytest.raises(VerificationError, match="debug mode"):
        check(Policy(), {"pcrs": DEBUG})
    verified = check(Policy({**CODE, 3: PCR0, 8: PCR1}, allow_debug=True), {"pcrs": DEBUG})
    assert verified.debug
    assert verified.compared_pcrs == (3,)


def test_debug_permission_does_not_loosen_a_production_document(check):
    with pytest.raises(VerificationError, match="PCR0 is"):
        check(Policy({0: PCR1}, allow_debug=True), {"pcrs": CODE})


def test_debug_permission_does_not_cover_other_pcrs(check):
    with pytest.raises(VerificationError, match="PCR3 is"):
        check(Policy({3: PCR1}, allow_debug=True), {"pcrs": DEBUG})


def test_signature_by_another_key_is_refused(make, chain):
    other = make.chain()
    raw = make.sign(other, make.payload_bytes(chain))
    with pytest.raises(VerificationError, match="signature"):
        verify_document(raw, Policy(), now_ms=make.now_ms, root=chain.root)
