# SPDX-License-Identifier: Apache-2.0
"""The grammar of the document: every rule broken once, in documents that are otherwise signed and right."""

import cbor2
import pytest
from enclavekit_attestation import Policy, parse_document, verify_document
from enclavekit_core.errors import VerificationError
from hypothesis import given
from hypothesis import strategies as st

PCR = bytes(range(48))
ABSENT = KeyError  # makes `make.payload` leave the field out

ACCEPTED = [
    {"nonce": ABSENT},
    {"nonce": b""},
    {"nonce": b"n" * 1024},
    {"user_data": b"u" * 1024},
    {"public_key": b"k"},
    {"pcrs": {**dict.fromkeys(range(32), PCR)}},
]
REFUSED = [
    ({"module_id": ABSENT}, "module_id"),
    ({"module_id": ""}, "module_id"),
    ({"module_id": "i-1\x1b[2J"}, "printable"),
    ({"module_id": "i-\u00e9"}, "printable"),
    ({"module_id": b"i-1"}, "module_id"),
    ({"digest": "SHA256"}, "digest"),
    ({"digest": None}, "digest"),
    ({"timestamp": 0}, "timestamp"),
    ({"timestamp": -1}, "timestamp"),
    ({"timestamp": "1"}, "timestamp"),
    ({"timestamp": True}, "simple"),
    ({"timestamp": 1.5}, "float"),
    ({"pcrs": {}}, "PCRs"),
    ({"pcrs": ABSENT}, "PCRs"),
    ({"pcrs": [PCR]}, "PCRs"),
    ({"pcrs": {32: PCR}}, "index"),
    ({"pcrs": {-1: PCR}}, "index"),
    ({"pcrs": {"0": PCR}}, "index"),
    ({"pcrs": {0: PCR[:-1]}}, "digest"),
    ({"pcrs": {0: PCR.hex()}}, "digest"),
    ({"certificate": b""}, "certificate"),
    ({"certificate": bytes(1025)}, "certificate"),
    ({"certificate": None}, "certificate"),
    ({"cabundle": []}, "cabundle"),
    ({"cabundle": None}, "cabundle"),
    ({"cabundle": b"abc"}, "cabundle"),
    ({"cabundle": [b""]}, "cabundle"),
    ({"cabundle": [bytes(1025)]}, "cabundle"),
    ({"cabundle": [b"1"] * 9}, "cabundle"),
    ({"public_key": b""}, "public_key"),
    ({"public_key": bytes(1025)}, "public_key"),
    ({"user_data": bytes(1025)}, "user_data"),
    ({"user_data": "text"}, "user_data"),
    ({"nonce": bytes(1025)}, "nonce"),
    ({"nonce": 1}, "nonce"),
    ({"surprise": 1}, "unknown field"),
    ({1: 1}, "unknown field"),
]


@pytest.mark.parametrize("changes", ACCEPTED, ids=str)
def test_variants_of_the_grammar_verify(make, chain, changes):
    raw = make.document(chain, changes)
    verified = verify_document(raw, Policy(), now_ms=make.now_ms, root=chain.root)
    for name, value in changes.items():
        assert getattr(verified, name) == (None if value is ABSENT else value)


@pytest.mark.parametrize(("changes", "reason"), REFUSED, ids=lambda value: str(value)[:40])
def test_broken_rules_are_refused(make, chain, changes, reason):
    with pytest.raises(VerificationError, match=reason):
        parse_document(make.document(chain, changes))


def test_payload_of_indefinite_length_verifies(make, chain):
    payload = make.payload(chain, {"nonce": b"n"})
    pairs = b"".join(cbor2.dumps(key) + cbor2.dumps(value) for key, value in payload.items())
    raw = make.sign(chain, b"\xbf" + pairs + b"\xff")
    assert verify_document(raw, Policy(), now_ms=make.now_ms, root=chain.root, nonce=b"n").nonce == b"n"


def test_signed_duplicate_keys_are_refused(make, chain):
    payload = make.payload(chain)
    pairs = b"".join(cbor2.dumps(key) + cbor2.dumps(value) for key, value in payload.items())
    raw = make.sign(chain, b"\xaa" + pairs + cbor2.dumps("nonce") + cbor2.dumps(b"other"))
    with pytest.raises(VerificationError, match="twice"):
        verify_document(raw, Policy(), now_ms=make.now_ms, root=chain.root)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("8444a1013822a0", "8544a1013822a0", "not a COSE_Sign1"),
        ("8444a1013822a0", "d28344a1013822a0", "not a COSE_Sign1"),
        ("8444a1013822a0", "d2d28444a1013822a0", "not a COSE_Sign1"),
        ("8444a1013822a0", "9f44a1013822a0", "not a COSE_Sign1"),
        ("8444a1013822a0", "8443a10126a0", "protected"),  # ES256
        ("8444a1013822a0", "8440a0", "protected"),
        ("8444a1013822a0", "8445bf013822ffa0", "protected"),
        ("8444a1013822a0", "845804a1013822a0", "longer form"),
        ("8444a1013822a0", "8444a1013822a10126", "unprotected"),
        ("8444a1013822a0", "8444a1013822bfff", "unprotected"),
        ("8444a1013822a0", "8444a1013822f6", "unprotected"),
    ],
)
def test_other_envelopes_are_refused(make, chain, old, new, reason):
    raw = make.document(chain)
    assert raw.hex().startswith(old)
    with pytest.raises(VerificationError, match=reason):
        parse_document(bytes.fromhex(new + raw.hex()[len(old) :]))


@pytest.mark.parametrize("payload", [b"", b"\xf6", b"\x80", b"\x01", bytes(16385)])
def test_other_payloads_are_refused(make, chain, payload):
    with pytest.raises(VerificationError):
        parse_document(make.sign(chain, payload))


@pytest.mark.parametrize("length", [0, 95, 97, 103])
def test_signatures_of_other_sizes_are_refused(make, chain, length):
    parts = cbor2.loads(make.document(chain))
    with pytest.raises(VerificationError, match="signature"):
        parse_document(cbor2.dumps([*parts[:3], bytes(length)]))


@given(st.binary(max_size=400))
def test_anything_else_is_refused(raw):
    for data in (raw, b"\x84\x44\xa1\x01\x38\x22\xa0" + raw):
        with pytest.raises(VerificationError):
            parse_document(data)
