# SPDX-License-Identifier: Apache-2.0
"""What a document says about a file: one form, one path, one content, and a proof by the attested key."""

import hashlib
import json

import ecvrf
import pytest
from enclavekit_attestation.file_claim import check_file_claim, check_file_proof
from enclavekit_core.errors import VerificationError

SUITE = ecvrf.EDWARDS25519_SHA512_TAI
SECRET = bytes(range(32))
DIGEST = hashlib.sha3_512(b"x").digest()
PATH = '/data/grün "x"'.encode()


def compact(fields):
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()


def claim_of(path=PATH, digest=DIGEST, secret=SECRET, named=True):
    name = {"file_path": path.decode()} if named else {"file_path_sha3_256": hashlib.sha3_256(path).hexdigest()}
    try:
        alpha = {"file_path": path.decode(), "sha3_hash": digest.hex()}
    except UnicodeDecodeError:
        alpha = {**name, "sha3_hash": digest.hex()}
    proof = SUITE.prove(secret, compact(alpha))
    return compact({**name, "sha3_hash": digest.hex(), "vrf_proof": proof.hex(), "vrf_cipher_suite": SUITE.name})


@pytest.mark.parametrize(("path", "named"), [(PATH, True), (b"/" + b"x" * 3000, False), (b"/data/\xff", False)])
def test_claim_and_proof_hold(path, named):
    claim = claim_of(path, named=named)
    assert DIGEST.hex()[:16] in check_file_claim(claim, path, DIGEST)
    assert SUITE.name in check_file_proof(claim, path, DIGEST, SUITE.public_key(SECRET))


def test_everything_else_is_refused():
    good = claim_of()
    fields = json.loads(good)
    bad = [None, b"", b"[]", b"1", b"\xff", b"[" * 100_000, good + b" ", good.replace(b",", b", ", 1)]
    bad += [compact({name: value for name, value in fields.items() if name != left}) for left in fields]
    bad += [
        compact(dict(reversed(fields.items()))),
        compact({**fields, "more": "x"}),
        compact({**fields, "sha3_hash": 1}),
    ]
    bad += [good[:-1] + b',"sha3_hash":"' + b"00" * 64 + b'"}', compact({**fields, "sha3_hash": DIGEST.hex().upper()})]
    bad += [claim_of(digest=bytes(64)), claim_of(b"/data/other"), claim_of(b"/data/other", named=False)]
    for claim in bad:
        with pytest.raises(VerificationError):
            check_file_claim(claim, PATH, DIGEST)


def test_proof_by_another_key_or_over_something_else_is_refused():
    fields, public_key = json.loads(claim_of()), SUITE.public_key(SECRET)
    other = json.loads(claim_of(b"/data/other"))["vrf_proof"]
    draft = {**fields, "vrf_cipher_suite": "ECVRF-P256-SHA256-TAI-draft-05"}
    for claim, key in (
        (claim_of(), SUITE.public_key(bytes(32))),
        (claim_of(), None),
        (compact({**fields, "vrf_proof": other}), public_key),
        (compact({**fields, "vrf_proof": "zz"}), public_key),
        (compact({**fields, "vrf_cipher_suite": "ECVRF-EDWARDS25519-SHA512-ELL2"}), public_key),
        (compact({**fields, "vrf_cipher_suite": "none"}), public_key),
        (compact(draft), public_key),
    ):
        with pytest.raises(VerificationError):
            check_file_proof(claim, PATH, DIGEST, key)
