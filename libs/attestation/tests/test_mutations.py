# SPDX-License-Identifier: Apache-2.0
"""Documents signed by AWS, mutated in every way: nothing but the original passes. The plain run takes a seeded sample.

Changes of the payload are caught by the signature whatever they are; so certificates are mutated once more where
nothing but the chain can notice, and fields of documents that are signed anew in test_document.
"""

import itertools
import random

import cbor2
import pytest
from enclavekit_attestation import DOCUMENT_TIME, Policy, parse_document, verify
from enclavekit_attestation.chain import verify_chain
from enclavekit_attestation.roots import aws_root
from enclavekit_core.errors import VerificationError

SAMPLE = 120
POLICY = Policy(allow_debug=True)


def passes(raw):
    return verify(raw, POLICY, at=DOCUMENT_TIME, whole_report=True).passed


def change(data, position):
    return [data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :] for bit in range(8)]


def drop(data, position):
    return [data[:position] + data[position + 1 :]]


def duplicate(data, position):
    return [data[: position + 1] + data[position:]]


def swap(data, position):
    other = (position + 1) % len(data)
    swapped = bytearray(data)
    swapped[position], swapped[other] = swapped[other], swapped[position]
    return [bytes(swapped)]


BYTE_MUTATIONS = [change, drop, duplicate, swap]


@pytest.mark.parametrize("mutate", BYTE_MUTATIONS)
def test_sampled_mutated_bytes_fail(real, mutate):
    pick = random.Random(f"{real.name} {mutate.__name__}")
    assert passes(real.raw)
    for position in pick.sample(range(len(real.raw)), SAMPLE):
        mutated = pick.choice(mutate(real.raw, position))
        assert mutated == real.raw or not passes(mutated), position


@pytest.mark.long
@pytest.mark.parametrize("mutate", BYTE_MUTATIONS)
def test_every_mutated_byte_fails(real, mutate):
    for position in range(len(real.raw)):
        for mutated in mutate(real.raw, position)[:1]:
            assert mutated == real.raw or not passes(mutated), position


def build(protected, unprotected, pairs, signature):
    """Encode a document from its parts; `pairs` are the payload's, as often and in the order given."""
    payload = bytes([0xA0 + len(pairs)]) + b"".join(cbor2.dumps(key) + cbor2.dumps(value) for key, value in pairs)
    return b"\x84" + b"".join(map(cbor2.dumps, (protected, unprotected, payload, signature)))


def parts_of(raw):
    protected, unprotected, payload, signature = cbor2.loads(raw)
    return protected, unprotected, list(cbor2.loads(payload).items()), signature


@pytest.fixture(scope="module")
def others():
    """The fields of another document."""
    from .conftest import REAL_DOCUMENTS, read_data

    return [dict(parts_of(read_data(name))[2]) for name in REAL_DOCUMENTS]


def field_mutations(pairs, others):
    """Yield (what, pairs) for each field dropped, doubled, moved, emptied, and taken from other documents."""
    for index, (key, value) in enumerate(pairs):
        yield f"{key} dropped", pairs[:index] + pairs[index + 1 :]
        yield f"{key} doubled", [*pairs, (key, value)]
        yield f"{key} doubled beside", [*pairs[: index + 1], *pairs[index:]]
        yield f"{key} moved", [*pairs[:index], *pairs[index + 1 :], (key, value)]
        yield f"{key} renamed", [*pairs[:index], (key + "_", value), *pairs[index + 1 :]]
        for other in (None, b"", "", 0, [], {}, b"\x01", *(fields[key] for fields in others)):
            yield f"{key} replaced", [*pairs[:index], (key, other), *pairs[index + 1 :]]
    table = dict(pairs)
    for index in table["pcrs"]:
        others_left = {number: value for number, value in table["pcrs"].items() if number != index}
        for pcrs in (others_left, {**table["pcrs"], index: bytes([index + 1]) * 48}, {**others_left, 31: bytes(48)}):
            yield f"PCR{index}", list({**table, "pcrs": pcrs}.items())
    yield "another field", [*pairs, ("surprise", 1)]


def test_every_mutated_field_fails(real, others):
    protected, unprotected, pairs, signature = parts_of(real.raw)
    assert build(protected, unprotected, pairs, signature) == real.raw
    count = 0
    for what, mutated in field_mutations(pairs, others):
        if mutated != pairs:
            assert not passes(build(protected, unprotected, mutated, signature)), what
            count += 1
    assert count > 150


def test_every_mutated_envelope_fails(real, others):
    elements = [cbor2.dumps(element) for element in cbor2.loads(real.raw)]
    for order in itertools.permutations(range(4)):
        raw = b"\x84" + b"".join(elements[index] for index in order)
        assert passes(raw) is (order == (0, 1, 2, 3))
    for index in range(4):
        for mutated in (elements[:index] + elements[index + 1 :], elements[: index + 1] + elements[index:]):
            for head in (b"\x84", bytes([0x80 + len(mutated)])):
                assert not passes(head + b"".join(mutated))
        for other in (b"\xf6", b"\x40", b"\xa0", b"\x80", cbor2.dumps({1: -7}), cbor2.dumps({4: b"kid"})):
            if other != elements[index]:
                assert not passes(b"\x84" + b"".join([*elements[:index], other, *elements[index + 1 :]]))


def chain_passes(leaf, bundle, at_ms):
    try:
        verify_chain(leaf, bundle, aws_root(), at_ms)
    except VerificationError:
        return False
    return True


def test_every_mutated_chain_fails(real, others):
    document = parse_document(real.raw)
    leaf, bundle, at_ms = document.certificate, list(document.cabundle), real.made_at_ms
    assert chain_passes(leaf, bundle, at_ms)
    foreign = [certificate for fields in others for certificate in (*fields["cabundle"], fields["certificate"])]
    for order in itertools.permutations(bundle):
        assert chain_passes(leaf, order, at_ms) is (list(order) == bundle)
    for index in range(len(bundle)):
        for mutated in (bundle[:index] + bundle[index + 1 :], bundle[: index + 1] + bundle[index:]):
            assert not mutated or not chain_passes(leaf, mutated, at_ms)
        for other in (*foreign, leaf):
            if other != bundle[index]:
                assert not chain_passes(leaf, [*bundle[:index], other, *bundle[index + 1 :]], at_ms)
    for other in (*foreign, *bundle):
        if other != leaf:
            assert not chain_passes(other, bundle, at_ms)


def test_second_encodings_of_certificates_fail(real):
    """Unused bits in the signature's bit string: parsers take one where the last bit is zero, and nobody signs it."""
    document = parse_document(real.raw)
    certificates = [*document.cabundle, document.certificate]
    for index, certificate in enumerate(certificates[1:], start=1):
        position = certificate.rindex(b"\x00\x30", 0, len(certificate) - 96)
        for bits in range(1, 8):
            mutated = certificate[:position] + bytes([bits]) + certificate[position + 1 :]
            chain = [*certificates[:index], mutated, *certificates[index + 1 :]]
            assert not chain_passes(chain[-1], chain[:-1], real.made_at_ms)


def mutated_certificates(real, positions):
    """Yield chains with one certificate mutated at one byte; `positions(certificate)` says where."""
    document = parse_document(real.raw)
    certificates = [*document.cabundle, document.certificate]
    for index, certificate in enumerate(certificates):
        for position in positions(certificate):
            for mutate in BYTE_MUTATIONS:
                for mutated in mutate(certificate, position)[:1]:
                    if mutated != certificate:
                        chain = [*certificates[:index], mutated, *certificates[index + 1 :]]
                        yield chain[-1], chain[:-1], (index, position, mutate.__name__)


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # by mutation
def test_sampled_mutated_certificates_fail(real):
    pick = random.Random(real.name)
    for leaf, bundle, where in mutated_certificates(real, lambda der: pick.sample(range(len(der)), 12)):
        assert not chain_passes(leaf, bundle, real.made_at_ms), where


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_every_mutated_certificate_fails(real):
    for leaf, bundle, where in mutated_certificates(real, lambda der: range(len(der))):
        assert not chain_passes(leaf, bundle, real.made_at_ms), where
