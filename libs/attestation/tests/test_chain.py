# SPDX-License-Identifier: Apache-2.0
"""Every rule of the chain, broken once in an otherwise right chain."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from enclavekit_attestation.chain import verify_chain
from enclavekit_core.errors import VerificationError

HOUR = datetime.timedelta(hours=1)
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
CRITICAL = [(x509.SubjectAlternativeName([x509.DNSName("x")]), True)]
HARMLESS = [(x509.SubjectAlternativeName([x509.DNSName("x")]), False)]

BROKEN = [
    ({"leaf": {"not_after": NOW - HOUR / 2}}, r"leaf certificate: it expired"),
    ({"leaf": {"not_before": NOW + HOUR}}, r"leaf certificate: it is not valid before"),
    ({"zonal": {"not_after": NOW - HOUR / 2}}, r"cabundle\[2\]: it expired"),
    ({"root": {"not_after": NOW - HOUR / 2}}, r"root certificate: it expired"),
    ({"leaf": {"wrong_signer": True}}, r"leaf certificate: its signature"),
    ({"instance": {"wrong_signer": True}}, r"cabundle\[3\]: its signature"),
    ({"regional": {"wrong_signer": True}}, r"cabundle\[1\]: its signature"),
    ({"root": {"wrong_signer": True}}, r"root certificate: its signature"),
    ({"leaf": {"issuer_name": "other"}}, r"leaf certificate: its issuer"),
    ({"zonal": {"issuer_name": "other"}}, r"cabundle\[2\]: its issuer"),
    ({"instance": {"ca": False, "path_length": None}}, r"cabundle\[3\]: it is not a CA"),
    ({"instance": {"constraints": False}}, r"cabundle\[3\]: it has no basicConstraints"),
    ({"instance": {"constraints_critical": False}}, r"cabundle\[3\]: its basicConstraints are not critical"),
    ({"instance": {"cert_sign": False}}, r"cabundle\[3\]: its key may not sign certificates"),
    ({"instance": {"usage": False}}, r"cabundle\[3\]: it has no keyUsage"),
    ({"regional": {"path_length": 1}}, r"cabundle\[1\]: its path length 1"),
    ({"zonal": {"path_length": 0}}, r"cabundle\[2\]: its path length 0"),
    ({"root": {"path_length": 2}}, r"root certificate: its path length 2"),
    ({"leaf": {"ca": True}}, r"leaf certificate: it is a CA"),
    ({"leaf": {"constraints": False}}, r"leaf certificate: it has no basicConstraints"),
    ({"leaf": {"cert_sign": True}}, r"leaf certificate: its key may not sign documents"),
    ({"leaf": {"digital_signature": False}}, r"leaf certificate: its key may not sign documents"),
    ({"leaf": {"usage": False}}, r"leaf certificate: it has no keyUsage"),
    ({"leaf": {"extra": CRITICAL}}, r"leaf certificate: it has an unknown critical extension"),
    ({"leaf": {"curve": ec.SECP256R1}}, r"leaf certificate: its key is not on P-384"),
    ({"leaf": {"curve": ec.SECP521R1}}, r"leaf certificate: its key is not on P-384"),
    ({"leaf": {"digest": hashes.SHA256}}, r"leaf certificate: it is not signed with ECDSA and SHA-384"),
    ({"zonal": {"digest": hashes.SHA512}}, r"cabundle\[2\]: it is not signed with ECDSA and SHA-384"),
]
RIGHT = [
    {},
    {"root": {"path_length": 3}},
    {"instance": {"path_length": None}},
    {"leaf": {"extra": HARMLESS}},
    {"leaf": {"not_before": NOW, "not_after": NOW}},
]


@pytest.mark.parametrize("changes", RIGHT, ids=str)
def test_right_chain_gives_the_leafs_key(make, changes):
    chain = make.chain(**changes)
    key = verify_chain(chain.leaf, chain.cabundle, chain.root, int(NOW.timestamp()) * 1000)
    assert key == chain.leaf_key.public_key()


@pytest.mark.parametrize(("changes", "reason"), BROKEN, ids=lambda value: str(value)[:60])
def test_broken_chain_is_refused(make, changes, reason):
    chain = make.chain(**changes)
    with pytest.raises(VerificationError, match=reason):
        verify_chain(chain.leaf, chain.cabundle, chain.root, make.now_ms)


def test_a_root_of_the_documents_own_is_refused(make, chain):
    with pytest.raises(VerificationError, match="another root"):
        verify_chain(chain.leaf, chain.cabundle, make.chain().root, make.now_ms)


def test_the_trusted_root_in_front_of_another_chain_is_refused(make, chain):
    other = make.chain()
    with pytest.raises(VerificationError, match=r"cabundle\[1\]: its signature"):
        verify_chain(other.leaf, [chain.root, *other.cabundle[1:]], chain.root, make.now_ms)


def test_missing_and_swapped_links_are_refused(make, chain):
    root, regional, zonal, instance = chain.cabundle
    for bundle in (
        [root],
        [root, regional],
        [root, regional, zonal],
        [root, zonal, regional, instance],
        [root, regional, zonal, instance, instance],
    ):
        with pytest.raises(VerificationError):
            verify_chain(chain.leaf, bundle, chain.root, make.now_ms)


@pytest.mark.parametrize("moment", [-(10**18), 10**18, 2**63])
def test_impossible_moments_are_refused(chain, moment):
    with pytest.raises(VerificationError):
        verify_chain(chain.leaf, chain.cabundle, chain.root, moment)


def test_garbage_certificates_are_refused(make, chain):
    for junk in (b"", b"\x30", b"\x30\x82\xff\xff", chain.leaf + b"\0", chain.leaf[:-1]):
        with pytest.raises(VerificationError, match="leaf certificate: it is not a well-formed"):
            verify_chain(junk, chain.cabundle, chain.root, make.now_ms)
