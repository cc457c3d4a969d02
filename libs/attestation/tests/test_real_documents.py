# SPDX-License-Identifier: Apache-2.0
"""Documents signed by AWS: they verify at their own time, and not if a single byte differs."""

import hashlib
import os
import random

import cbor2
import pytest
from enclavekit_attestation import Mode, Policy, parse_document, verify_document
from enclavekit_attestation.document import FIELDS
from enclavekit_attestation.roots import AWS_ROOT_SHA256, aws_root, read_insecure_dev_root
from enclavekit_core.errors import VerificationError
from pycose.keys import EC2Key
from pycose.keys.curves import P384
from pycose.messages import Sign1Message

SAMPLED_BYTES = 300  # the plain run; all of them take 15 s a document


def verify(raw, at_ms, **changes):
    return verify_document(raw, Policy(**changes), now_ms=at_ms, archival=True)


def test_embedded_root_is_the_published_one(data_dir):
    assert hashlib.sha256(aws_root()).hexdigest() == AWS_ROOT_SHA256
    assert read_insecure_dev_root(os.path.join(data_dir, "aws-nitro-root-g1.pem")) == aws_root()


def test_document_verifies_at_its_own_time(real):
    verified = verify(real.raw, real.made_at_ms, allow_debug=real.debug)
    fields = cbor2.loads(cbor2.loads(real.raw)[2])
    assert set(fields) == set(FIELDS)
    assert verified.pcrs == fields["pcrs"]
    assert verified.timestamp_ms == fields["timestamp"] == real.made_at_ms
    assert (verified.user_data, verified.nonce, verified.public_key, verified.module_id) == tuple(
        fields[name] for name in ("user_data", "nonce", "public_key", "module_id")
    )
    assert (verified.debug, verified.mode, verified.development_root) == (real.debug, Mode.ARCHIVAL, False)


def test_document_with_tag_18_verifies(real):
    assert verify(b"\xd2" + real.raw, real.made_at_ms, allow_debug=True).timestamp_ms == real.made_at_ms


def test_debug_document_is_refused_unless_allowed(real):
    if real.debug:
        with pytest.raises(VerificationError, match="debug mode"):
            verify(real.raw, real.made_at_ms)
    else:
        assert not verify(real.raw, real.made_at_ms).debug


@pytest.mark.parametrize("hours", [-4, 4, 24 * 365])
def test_document_is_refused_outside_its_leafs_life(real, hours):
    with pytest.raises(VerificationError, match=r"not valid before|expired"):
        verify(real.raw, real.made_at_ms + hours * 3_600_000, allow_debug=True)


def test_document_is_refused_live(real):
    with pytest.raises(VerificationError):
        verify_document(real.raw, Policy(allow_debug=True), now_ms=1_790_000_000_000)


def test_document_is_refused_under_another_root(production, chain):
    with pytest.raises(VerificationError, match="another root"):
        verify_document(production.raw, Policy(), now_ms=production.made_at_ms, root=chain.root)


def flip_and_verify(real, positions):
    pick = random.Random(7)
    for position in positions:
        changed = bytearray(real.raw)
        changed[position] ^= 1 << pick.randrange(8)
        with pytest.raises(VerificationError):
            verify(bytes(changed), real.made_at_ms, allow_debug=True)


def test_some_changed_bytes_fail(real):
    envelope = {*range(16), *range(len(real.raw) - 100, len(real.raw), 9)}
    pick = random.Random(real.name)
    flip_and_verify(real, sorted(envelope | set(pick.sample(range(len(real.raw)), SAMPLED_BYTES))))


@pytest.mark.long
def test_every_changed_byte_fails(real):
    flip_and_verify(real, range(len(real.raw)))


def test_every_truncation_fails(production):
    for length in range(len(production.raw)):
        with pytest.raises(VerificationError):
            parse_document(production.raw[:length])


@pytest.mark.parametrize("extra", [b"\x00", b"\xf6", b"\xff", b"\x84" * 64])
def test_trailing_bytes_fail(production, extra):
    with pytest.raises(VerificationError, match="after its end"):
        verify(production.raw + extra, production.made_at_ms)


def test_pycose_agrees_on_the_signature(real):
    """An independent COSE implementation finds the same signature good, and a changed payload bad."""
    from cryptography.x509 import load_der_x509_certificate

    document = parse_document(real.raw)
    numbers = load_der_x509_certificate(document.certificate).public_key().public_numbers()
    message = Sign1Message.from_cose_obj(cbor2.loads(real.raw), allow_unknown_attributes=False)
    message.key = EC2Key(crv=P384, x=numbers.x.to_bytes(48, "big"), y=numbers.y.to_bytes(48, "big"))
    assert message.verify_signature()
    message.payload += b"\0"
    assert not message.verify_signature()
