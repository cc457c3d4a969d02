# SPDX-License-Identifier: Apache-2.0
"""The page docs/reference/verification.md suffices: a verifier written from it alone finds what ours finds.

Both are run over the vectors, the AWS-signed documents in every mutation of their fields, documents that break one
rule each, and chains that do; they must agree on the step that fails first.
"""

import dataclasses
import hashlib
import json
import random
import ssl

import cbor2
import pytest
from enclavekit_attestation import Policy, TlsIdentity, encode_binding, parse_document, verify
from enclavekit_attestation.manifest_proof import check_proof
from enclavekit_attestation.ra_tls import document_in_certificate, make_certificate
from enclavekit_attestation.roots import aws_root
from enclavekit_attestation.verify import Binding
from enclavekit_core.errors import VerificationError
from enclavekit_core.tree_digest import Kind, TreeEntry, digest_of_directory

from . import second_verifier as second
from .conftest import REAL_DOCUMENTS, read_data
from .test_chain import BROKEN, RIGHT
from .test_document import ACCEPTED, REFUSED
from .test_mutations import BYTE_MUTATIONS, build, field_mutations, parts_of
from .test_spec_vectors import ROWS, vector

ZERO = bytes(48)


def first_failure(raw, policy, **options):
    report = verify(raw, policy, whole_report=True, **options)
    return report.first_failure.name if report.first_failure else "passes"


def both(raw, at, *, root=None, policy=None, nonce=None, binding=None):
    """Return what each verifier finds of a document at a moment of the past."""
    policy, root = policy or Policy(), root or aws_root()
    ours = first_failure(
        raw, policy, at=at, root=root, nonce=nonce, binding=None if binding is None else Binding(*binding)
    )
    theirs = second.verify(
        raw,
        [root],
        None if at == "document" else at,
        nonce=nonce,
        pcrs=policy.pcrs,
        allow_debug=policy.allow_debug,
        max_age_ms=None if policy.max_age_s is None else int(policy.max_age_s * 1000),
        binding=binding,
    )
    return ours, theirs


@pytest.mark.parametrize(("name", "change", "result"), ROWS)
def test_vectors(name, change, result):
    raw, at = vector(name, change)
    assert second.verify(raw, [aws_root()], at) == result


def test_real_documents_in_every_mutation_of_their_fields(real):
    others = [dict(parts_of(read_data(name))[2]) for name in REAL_DOCUMENTS]
    protected, unprotected, pairs, signature = parts_of(real.raw)
    for what, mutated in [("none", pairs), *field_mutations(pairs, others)]:
        raw = build(protected, unprotected, mutated, signature)
        ours, theirs = both(raw, "document", policy=Policy(allow_debug=True))
        assert ours == theirs, what
        assert (ours == "passes") is (mutated == pairs), what


@pytest.mark.filterwarnings("ignore:Parsed a serial number")  # by mutation
def test_real_documents_with_mutated_bytes(real):
    pick = random.Random(real.name)
    for position in [*range(12), *pick.sample(range(len(real.raw)), 60)]:
        for mutate in BYTE_MUTATIONS:
            raw = pick.choice(mutate(real.raw, position))
            ours, theirs = both(raw, real.made_at_ms, policy=Policy(allow_debug=True))
            assert ours == theirs, (position, mutate.__name__)


@pytest.mark.parametrize(
    "changes", [*ACCEPTED, *(changes for changes, _ in REFUSED)], ids=lambda value: str(value)[:40]
)
def test_rules_of_the_format(make, chain, changes):
    ours, theirs = both(make.document(chain, changes), make.now_ms, root=chain.root)
    assert ours == theirs
    assert (ours == "passes") is (changes in ACCEPTED)


def test_encodings_of_the_payload(make, chain):
    """Signed, hence an NSM's own; yet two readers must not read two documents."""
    pairs = make.payload(chain, {"nonce": b"n"})
    items = [(cbor2.dumps(key), cbor2.dumps(value)) for key, value in pairs.items()]
    body = b"".join(key + value for key, value in items)
    definite = bytes([0xA0 + len(items)])
    pcrs, bundle, text = cbor2.dumps(pairs["pcrs"]), cbor2.dumps(pairs["cabundle"]), cbor2.dumps(pairs["module_id"])
    payloads = {
        "definite": definite + body,
        "indefinite": b"\xbf" + body + b"\xff",
        "long length of the map": b"\xb8" + bytes([len(items)]) + body,
        "long number": definite
        + body.replace(cbor2.dumps(pairs["timestamp"]), b"\x1b" + pairs["timestamp"].to_bytes(8, "big")),
        "indefinite pcrs": definite + body.replace(pcrs, b"\xbf" + pcrs[1:] + b"\xff"),
        "indefinite cabundle": definite + body.replace(bundle, b"\x9f" + bundle[1:] + b"\xff"),
        "indefinite text": definite + body.replace(text, b"\x7f" + text + b"\xff"),
        "indefinite bytes": definite + body.replace(b"\x41n", b"\x5f\x41n\xff"),
        "indefinite within indefinite": b"\xbf" + body.replace(pcrs, b"\xbf" + pcrs[1:] + b"\xff") + b"\xff",
        "no break": b"\xbf" + body,
        "break of a definite map": definite + body + b"\xff",
        "bytes after it": definite + body + b"\x00",
        "bytes after the break": b"\xbf" + body + b"\xff\x00",
        "tagged": definite + body.replace(b"\x41n", b"\xd8\x40\x41n"),
        "undefined": definite + body.replace(b"\x41n", b"\xf7"),
        "false": definite + body.replace(b"\x41n", b"\xf4"),
        "twice": bytes([0xA1 + len(items)]) + body + b"".join(items[-1]),
        "twice within": definite + body.replace(pcrs, bytes([0xB8, 17]) + pcrs[1:] + b"\x00\x58\x30" + ZERO),
        "not UTF-8": definite + body.replace(text, bytes([0x60 + 2]) + b"\xff\xfe"),
        "an array": b"\x80",
        "nothing but a break": b"\xbf\xff",
        "half": (definite + body)[: len(body) // 2],
    }
    found = {name: both(make.sign(chain, payload), make.now_ms, root=chain.root) for name, payload in payloads.items()}
    assert {name: ours for name, (ours, _) in found.items()} == {name: theirs for name, (_, theirs) in found.items()}
    passing = {name for name, (ours, _) in found.items() if ours == "passes"}
    assert passing == {"definite", "indefinite", "long length of the map", "long number"}


@pytest.mark.parametrize("changes", [*RIGHT, *(changes for changes, _ in BROKEN)], ids=lambda value: str(value)[:60])
def test_rules_of_the_chain(make, changes):
    chain = make.chain(**changes)
    ours, theirs = both(make.document(chain), make.now_ms, root=chain.root)
    assert ours == theirs
    assert (ours == "passes") is (changes in RIGHT)


def test_other_chains(make, chain):
    other = make.chain()
    root, regional, zonal, instance = chain.cabundle
    for bundle in (
        [root],
        [root, regional, zonal],
        [root, zonal, regional, instance],
        [root, regional, zonal, instance, instance],
        [root, *other.cabundle[1:]],
        other.cabundle,
    ):
        raw = make.document(chain, {"cabundle": bundle})
        assert both(raw, make.now_ms, root=chain.root) == ("chain", "chain")


@pytest.mark.parametrize("age_ms", [-60_001, -60_000, 0, 5_000, 5_001])
def test_freshness_nonce_and_registers(make, chain, age_ms):
    code = {index: bytes([index + 1]) * 48 for index in range(3)}
    debug = {0: ZERO, 1: ZERO, 2: ZERO, 3: code[0], 8: ZERO}
    documents = [
        {"pcrs": pcrs, "nonce": nonce}
        for pcrs in (code, debug, {0: ZERO, 1: code[1], 2: code[2]}, {0: code[0], 1: code[1]})
        for nonce in (None, b"", b"n")
    ]
    policies = [Policy(code), Policy({**code, 8: code[1]}, allow_debug=True), Policy({3: code[1]}, allow_debug=True)]
    seen = set()
    for fields in documents:
        raw = make.document(chain, fields)
        for policy in (*policies, *(dataclasses.replace(policy, max_age_s=5.0) for policy in policies)):
            for nonce in (None, b"", b"n"):
                ours, theirs = both(raw, make.now_ms + age_ms, root=chain.root, policy=policy, nonce=nonce)
                assert ours == theirs, (fields, policy, nonce)
                seen.add(ours)
    assert seen >= ({"freshness"} if age_ms < -60_000 else {"nonce", "debug", "pcrs", "passes"})


def bindings(identity):
    """Right and wrong `user_data` for an identity's key."""
    good = encode_binding("ra-web-srv", identity.spki_sha256)
    state = {"vrf_cipher_suite": "X-1", "vrf_public_key": "ab" * 33, "manifest_root": "cd" * 64}
    full = encode_binding("ra-web-srv", identity.spki_sha256, state)
    yield from ((good, True), (full, True), (None, False), (b"", False), (b"[]", False))
    for name in state:
        yield encode_binding("ra-web-srv", identity.spki_sha256, {name: state[name]}), True
    other = TlsIdentity.generate("other")
    for bad in (
        encode_binding("pipeline", identity.spki_sha256),
        encode_binding("ra-web-srv", other.spki_sha256),
        good.replace(b",", b", ", 1),
        good[:-1] + b',"x":1}',
        good.replace(b"/tls/1", b"/tls/2"),
        good + b" ",
        good.replace(identity.spki_sha256.hex().encode(), identity.spki_sha256.hex().upper().encode()),
        full.replace(b"ab" * 33, b"ab" * 31),
        full.replace(b"cd" * 64, b"CD" * 64),
        full[:-1] + b',"manifest_root":"' + b"cd" * 64 + b'"}',
        json.dumps(dict(reversed(json.loads(full).items())), separators=(",", ":")).encode(),
    ):
        if bad not in (good, full):  # a hash without letters has no upper case
            yield bad, False


def test_bindings(make, chain):
    identity, other = TlsIdentity.generate("x"), TlsIdentity.generate("y")
    certificate = ssl.PEM_cert_to_DER_cert(identity.certificate_pem.decode())
    for user_data, right in bindings(identity):
        for public_key, same in ((None, True), (identity.spki_der, True), (other.spki_der, False)):
            raw = make.document(chain, {"user_data": user_data, "public_key": public_key})
            found = both(raw, make.now_ms, root=chain.root, binding=("ra-web-srv", certificate))
            expected = "passes" if right and same else "binding"
            assert found == (expected, expected), (user_data, same)


def test_evidence_in_certificates(make, chain):
    identity = TlsIdentity.generate("x")
    fields = {"user_data": encode_binding("ra-web-srv", identity.spki_sha256), "public_key": identity.spki_der}
    pem = make_certificate(identity, "x", make.document(chain, fields))
    der = ssl.PEM_cert_to_DER_cert(pem.decode())
    raw = second.document_in_certificate(der)
    assert raw == document_in_certificate(der)
    assert both(raw, make.now_ms, root=chain.root, binding=("ra-web-srv", der)) == ("passes", "passes")
    plain = ssl.PEM_cert_to_DER_cert(identity.certificate_pem.decode())
    with pytest.raises(second.Refused):
        second.document_in_certificate(plain)


def test_manifest_proofs():
    def entry(name, kind, content=b"", mode=0o644):
        digest = ZERO + bytes(16) if kind is Kind.OTHER else hashlib.sha3_512(content).digest()
        return TreeEntry(name, kind, mode, digest)

    inner = [entry(b"f", Kind.FILE, b"x"), entry(b"l", Kind.LINK, b"/x", 0o777), entry(b"\xff", Kind.OTHER)]
    middle = TreeEntry(b"d", Kind.DIRECTORY, 0o755, digest_of_directory(inner))
    outer = [middle, entry(b"g", Kind.FILE, b"y")]
    root = digest_of_directory(outer)

    def shown(path, entries):
        rows = [
            {
                "name": one.name.decode("utf-8", "surrogateescape"),
                "kind": one.kind.name.lower(),
                "mode": one.mode,
                "digest": one.digest.hex(),
            }
            for one in entries
        ]
        return {"path": path, "entries": rows}

    proof = [shown("/", outer), shown("/d", inner)]
    for path in ("/g", "/d", "/d/f", "/d/l", "/d/\udcff", "/d/none", "/none", "/g/below"):
        for directories in (proof, proof[::-1], proof[:1], [], [proof[0], shown("/d", inner[:2])]):
            try:
                entry_found = check_proof(root, path, directories)
                ours = None if entry_found is None else entry_found.kind.name.lower()
            except VerificationError:
                ours = "refused"
            try:
                theirs = second.check_manifest_proof(root, path, directories)
            except second.Refused:
                theirs = "refused"
            assert ours == theirs, (path, directories)
    assert second.check_manifest_proof(root, "/d/f", proof) == "file"


def test_it_uses_nothing_of_ours():
    with open(second.__file__) as source:
        assert "enclavekit" not in "".join(line for line in source if line.startswith(("import ", "from ")))


def test_documents_are_parsed_alike(real):
    payload, _ = second.read_envelope(real.raw)
    theirs, ours = second.read_payload(payload), parse_document(real.raw)
    assert theirs["pcrs"] == ours.pcrs
    assert theirs["timestamp"] == ours.timestamp_ms
