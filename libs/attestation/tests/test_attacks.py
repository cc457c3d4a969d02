# SPDX-License-Identifier: Apache-2.0
"""Attacks by their names, on a client that asks a server over TLS: each is refused, each for a reason of its own."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from enclavekit_attestation import TlsIdentity

from .enclave_server import PCRS, EnclaveServer

HOUR = datetime.timedelta(hours=1)
ZERO = bytes(48)


@pytest.fixture(scope="module")
def life():
    now = datetime.datetime.now(datetime.UTC)
    return {"not_before": now - HOUR, "not_after": now + 2 * HOUR}


@pytest.fixture(scope="module")
def chains(make, life):
    """An honest chain, one below a root of somebody's own, and one whose leaf has expired: the last under one root."""
    names = ("root", "regional", "zonal", "instance", "leaf")
    honest, forged = (make.chain(**dict.fromkeys(names, life)) for _ in range(2))
    over = {"not_before": life["not_before"] - 3 * HOUR, "not_after": life["not_before"] + HOUR / 2}
    return {"honest": honest, "forged": forged, "expired": make.chain(**{**dict.fromkeys(names, life), "leaf": over})}


def forged_chain_with_its_own_root(server, chains):
    server.chain = chains["forged"]


def forged_chain_behind_the_trusted_root(server, chains):
    server.chain = chains["forged"]
    server.fields["cabundle"] = [chains["honest"].root, *chains["forged"].cabundle[1:]]


def forged_leaf(server, chains):
    server.chain = chains["forged"]
    server.fields["cabundle"] = chains["honest"].cabundle


def honest_chain_with_the_attackers_signature(server, chains):
    honest = chains["honest"]
    server.chain = type(honest)(**{**vars(honest), "leaf_key": chains["forged"].leaf_key})


def expired_leaf(server, chains):
    server.chain = chains["expired"]


def document_for_another_nonce(server, chains):
    server.fields["nonce"] = b"another"


def document_without_a_nonce(server, chains):
    server.fields["nonce"] = None


def replay_of_what_was_recorded(server, chains):
    recorded = server.document(bytes(32))
    server.misbehave = lambda status, headers, body: (status, headers, recorded)


def replay_of_what_is_old(server, chains):
    server.fields["timestamp"] = int((datetime.datetime.now(datetime.UTC) - HOUR / 2).timestamp() * 1000)


def zero_registers(server, chains):
    server.fields["pcrs"] = {**PCRS, 0: ZERO, 1: ZERO, 2: ZERO}


def some_zero_registers(server, chains):
    server.fields["pcrs"] = {**PCRS, 1: ZERO}


def registers_left_out(server, chains):
    server.fields["pcrs"] = {3: PCRS[3]}


def another_program(server, chains):
    server.fields["pcrs"] = {**PCRS, 0: PCRS[5]}


def relay_over_tls_of_ones_own(server, chains):
    server.bound_to = TlsIdentity.generate("an honest enclave")


def relay_of_another_service(server, chains):
    server.service = "pipeline"


def relay_with_the_honest_hash_and_the_own_key(server, chains):
    server.fields["public_key"] = TlsIdentity.generate("an honest enclave").spki_der


ATTACKS = {
    forged_chain_with_its_own_root: (12, "it starts at another root"),
    forged_chain_behind_the_trusted_root: (12, "cabundle[1]: its signature is not by the certificate above it"),
    forged_leaf: (12, "leaf certificate: its signature is not by the certificate above it"),
    honest_chain_with_the_attackers_signature: (13, "not by the leaf certificate's key over this payload"),
    expired_leaf: (12, "leaf certificate: it expired at"),
    document_for_another_nonce: (15, "nonce: it is not the one that was sent"),
    document_without_a_nonce: (15, "nonce: the document has none"),
    replay_of_what_was_recorded: (15, "nonce: it is not the one that was sent"),
    replay_of_what_is_old: (14, "s old, the limit is 300 s"),
    zero_registers: (16, "the enclave runs in debug mode"),
    some_zero_registers: (16, "PCR1 is zero, which no image has"),
    registers_left_out: (16, "the document has no PCR0"),
    another_program: (17, "PCR0 is"),
    relay_over_tls_of_ones_own: (19, "made for another TLS key"),
    relay_of_another_service: (19, "made for service 'pipeline'"),
    relay_with_the_honest_hash_and_the_own_key: (19, "public_key of the document is not the key"),
}


@pytest.mark.parametrize("attack", [None, *ATTACKS], ids=lambda attack: getattr(attack, "__name__", "none"))
def test_attack_is_refused(attest, make, chains, tmp_path, attack):
    trusted = chains["expired" if attack is expired_leaf else "honest"].root
    (tmp_path / "root.pem").write_bytes(x509.load_der_x509_certificate(trusted).public_bytes(Encoding.PEM))
    server = EnclaveServer(make, chains["honest"], PCRS)
    try:
        if attack is not None:
            attack(server, chains)
        flags = ("--insecure-dev-root", tmp_path / "root.pem", "--pcr", f"0={PCRS[0].hex()}")
        result = attest("verify", "--url", server.url, *flags)
    finally:
        server.close()
    code, reason = ATTACKS.get(attack, (0, "VERIFIED"))
    assert result.code == code, result
    assert reason in (result.err if attack is not None else result.out)
    assert ("VERIFIED" in result.out and "NOT VERIFIED" not in result.out) is (attack is None)


def test_reasons_differ():
    """But of a wrong nonce and a replay: a document that is fresh and for another nonce is what both are."""
    reasons = [reason for _, reason in ATTACKS.values()]
    assert len(set(reasons)) == len(reasons) - 1
