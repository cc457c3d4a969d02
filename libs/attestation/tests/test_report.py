# SPDX-License-Identifier: Apache-2.0
"""The report of `verify`: what each attack looks like in it, and that nothing is authenticated unless all is well."""

import datetime

import pytest
from enclavekit_attestation import (
    DOCUMENT_TIME,
    Binding,
    Mode,
    Policy,
    RefusedError,
    TlsIdentity,
    encode_binding,
    verify,
)
from enclavekit_attestation.exit_codes import EXIT_CODES, exit_code_of
from enclavekit_attestation.report import StepName
from enclavekit_attestation.user_data import FieldDemand, UserDataDemand

CODE = {index: bytes([index + 1]) * 48 for index in range(16)}
ZERO = {**CODE, 0: bytes(48), 1: bytes(48), 2: bytes(48)}
IDENTITY = TlsIdentity.generate("enclave")
GOOD = {
    "pcrs": CODE,
    "nonce": b"ours",
    "user_data": encode_binding("ra-web-srv", IDENTITY.spki_sha256),
    "public_key": IDENTITY.spki_der,
}
DEMAND = UserDataDemand(fields={"service": FieldDemand(equals="ra-web-srv")}, other_fields=True)
POLICY = Policy({0: CODE[0]}, user_data=DEMAND)


def certificate_of(identity):
    import ssl

    return ssl.PEM_cert_to_DER_cert(identity.certificate_pem.decode())


@pytest.fixture
def check(make, chain):
    def run(fields=(), policy=POLICY, *, signed_by=chain, age_ms=0, **options):
        raw = make.document(signed_by, {**GOOD, **dict(fields)})
        options = {"binding": Binding("ra-web-srv", certificate_of(IDENTITY)), "nonce": b"ours", **options}
        return verify(raw, policy, root=chain.root, now_ms=make.now_ms + age_ms, **options)

    return run


def test_report_of_a_good_document(check, make):
    report = check()
    assert report.passed
    assert [step.name for step in report.steps] == list(StepName)
    assert all(step.passed for step in report.steps)
    assert report.document.steps == report.steps
    found = {step.name: (step.found, step.expected) for step in report.steps}
    assert found["nonce"] == (b"ours".hex(), b"ours".hex())
    assert found["pcrs"] == ({"0": CODE[0].hex()},) * 2
    assert found["freshness"] == (0, 300_000)
    assert found["binding"] == (IDENTITY.spki_sha256.hex(), None)
    assert report.first_failure is None


def attack(name, step, reason, *, fields=(), **options):
    return pytest.param(fields, options, step, reason, id=name)


def other_chain(make):
    return make.chain()


ATTACKS = [
    attack("a chain with a root of its own inside", "chain", "another root", signed_by=other_chain),
    attack("an expired chain", "chain", "it expired", age_ms=3 * 3_600_000),
    attack("a wrong nonce", "nonce", "not the one that was sent", fields={"nonce": b"theirs"}),
    attack("no nonce", "nonce", "has none", fields={"nonce": None}),
    attack("a replay", "freshness", "s old, the limit is", age_ms=301_000),
    attack("zero PCRs", "debug", "debug mode", fields={"pcrs": ZERO}),
    attack("some zero PCRs", "debug", "no image has", fields={"pcrs": {**CODE, 1: bytes(48)}}),
    attack("other code", "pcrs", "PCR0 is", fields={"pcrs": {**CODE, 0: bytes([99]) * 48}}),
    attack(
        "a document of another service",
        "user_data",
        "'service' is 'pipeline'",
        fields={"user_data": encode_binding("pipeline", IDENTITY.spki_sha256)},
    ),
    attack(
        "the document of another enclave over one's own TLS key",
        "binding",
        "another TLS key",
        binding=Binding("ra-web-srv", certificate_of(TlsIdentity.generate("relay"))),
    ),
]


@pytest.mark.parametrize(("fields", "options", "step", "reason"), ATTACKS)
def test_attack_is_refused_at_its_step(check, make, fields, options, step, reason):
    options = {name: value(make) if callable(value) else value for name, value in options.items()}
    with pytest.raises(RefusedError, match=reason) as caught:
        check(fields, **options)
    report = caught.value.report
    assert caught.value.step == step == report.first_failure.name == report.steps[-1].name
    assert report.document is None
    assert all(one.passed for one in report.steps[:-1])


@pytest.mark.parametrize(("fields", "options", "step", "reason"), ATTACKS)
def test_whole_report_goes_on_and_authenticates_nothing(check, make, fields, options, step, reason):
    options = {name: value(make) if callable(value) else value for name, value in options.items()}
    report = check(fields, whole_report=True, **options)
    assert [one.name for one in report.steps] == list(StepName)
    assert report.first_failure.name == step
    assert not report.passed
    assert report.document is None


def test_whole_report_shows_several_failures(check):
    report = check({"nonce": None, "pcrs": ZERO, "user_data": None}, whole_report=True)
    failed = [step.name for step in report.steps if not step.passed]
    assert failed == ["nonce", "debug", "pcrs", "user_data", "binding"]
    assert next(step for step in report.steps if step.name == "nonce").expected == b"ours".hex()


def test_whole_report_of_no_document():
    report = verify(b"\x84", POLICY, whole_report=True)
    assert [step.passed for step in report.steps] == [False] + [None] * 7
    assert not report.passed


def test_signature_is_told_apart_from_the_chain(make, chain, check):
    """A document in one piece under a foreign root: its own leaf's key has signed it, which proves nothing."""
    report = check(signed_by=make.chain(), whole_report=True)
    assert {step.name: step.passed for step in report.steps}["signature"] is True
    assert not report.passed


def test_archival_report_says_what_it_needs(check, make):
    moment = datetime.datetime.fromtimestamp(make.now_ms / 1000, datetime.UTC)
    for at in (DOCUMENT_TIME, make.now_ms, moment):
        report = check(at=at)
        assert report.mode is Mode.ARCHIVAL
        assert report.document.needs_anchor
        assert report.document.verified_at_ms == make.now_ms
    assert not check().document.needs_anchor
    with pytest.raises(ValueError, match="time zone"):
        check(at=datetime.datetime(2026, 1, 1))


def test_policy_may_require_a_nonce(check):
    policy = Policy({0: CODE[0]}, require_nonce=True)
    assert check(policy=policy)
    assert check(policy=policy, nonce=None, at=DOCUMENT_TIME)
    with pytest.raises(RefusedError, match="none was sent"):
        check(policy=policy, nonce=None)


def test_every_step_has_its_exit_code():
    codes = [exit_code_of(step) for step in StepName]
    assert len(set(codes)) == len(codes) == len(EXIT_CODES)
    assert not set(codes) & {0, 1, 2, 3, 4, 5, 6, 70, 130}
