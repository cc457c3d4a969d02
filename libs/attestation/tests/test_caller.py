# SPDX-License-Identifier: Apache-2.0
"""How callers prove who they are: by the OpenSSL of Python's ssl and by package cryptography, which must
say the same.
"""

import hashlib
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from enclavekit_attestation import ssl_keys
from enclavekit_attestation.binding import self_signed
from enclavekit_attestation.caller import check_by_cryptography, check_by_ssl, check_proof, key_of_client
from enclavekit_core.errors import VerificationError
from hypothesis import given
from hypothesis import strategies as st

SIGNED = b"what only this connection has"
DER, SPKI = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
KEYS = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "P-521": ec.generate_private_key(ec.SECP521R1()),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}
OTHERS = {"RSA": rsa.generate_private_key(65537, 2048), "Ed448": ed448.Ed448PrivateKey.generate()}
# SubjectPublicKeyInfo of P-256, its parameters spelled out, up to the point; by `openssl ecparam -param_enc explicit`
SPELLED_OUT = bytes.fromhex(
    "3082014b3082010306072a8648ce3d02013081f7020101302c06072a8648ce3d0101022100ffffffff000000010000000000"
    "00000000000000ffffffffffffffffffffffff305b0420ffffffff00000001000000000000000000000000ffffffffffffff"
    "fffffffffc04205ac635d8aa3a93e7b3ebbd55769886bc651d06b0cc53b0f63bce3c3e27d2604b031500c49d360886e70493"
    "6a6678e1139d26b7819f7e900441046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c2964fe342"
    "e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5022100ffffffff00000000ffffffffffffffffbce6"
    "faada7179e84f3b9cac2fc632551020101034200"
)
P256_GENERATOR = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)
needs_library = pytest.mark.skipif(
    ssl_keys.find_library() is None, reason="this Python's ssl has no OpenSSL 3 that can be reached: built in, or older"
)


def by_ssl(certificate, signature, signed):
    return check_by_ssl(ssl_keys.find_library(), certificate, signature, signed)


@pytest.fixture(params=[pytest.param(by_ssl, marks=needs_library, id="ssl"), check_by_cryptography])
def check(request):
    return request.param


def certificate_of(key, name="alice"):
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return ssl.PEM_cert_to_DER_cert(self_signed(key, name).decode())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return build(key, subject)


def build(key, subject):
    some = x509.load_der_x509_certificate(CERTIFICATE)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
    builder = builder.not_valid_before(some.not_valid_before_utc).not_valid_after(some.not_valid_after_utc)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    return builder.serial_number(1).sign(key, digest).public_bytes(DER)


def sign(key, data=SIGNED):
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(data, ec.ECDSA(hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(data, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(data)


def spki_of(key):
    return key.public_key().public_bytes(DER, SPKI)


CERTIFICATE = ssl.PEM_cert_to_DER_cert(self_signed(KEYS["P-256"], "alice").decode())
SIGNATURE = sign(KEYS["P-256"])


@pytest.mark.parametrize("kind", KEYS)
def test_owner_of_a_key_is_known_by_its_hash(check, kind):
    key = KEYS[kind]
    caller = check(certificate_of(key), sign(key), SIGNED)
    assert caller.spki_sha256 == hashlib.sha256(spki_of(key)).digest()
    assert caller.claimed_name == "alice"
    pem = ssl.DER_cert_to_PEM_cert(certificate_of(key))
    assert key_of_client(pem, None) == caller.spki_sha256  # as the list knows it


@pytest.mark.parametrize("kind", KEYS)
def test_signature_counts_for_one_key_and_one_text(check, kind):
    key = KEYS[kind]
    certificate, signature = certificate_of(key), sign(key)
    for wrong in (
        sign(key, SIGNED + b"!"),
        signature[:-1],
        signature + b"\0",
        b"",
        bytes(64),
        sign(KEYS["P-384"])[:20],
    ):
        with pytest.raises(VerificationError, match="signature"):
            check(certificate, wrong, SIGNED)
    with pytest.raises(VerificationError, match="signature"):
        check(certificate, signature, SIGNED + b"!")
    others = (other for name, other in KEYS.items() if name != kind)
    for other in others:
        with pytest.raises(VerificationError, match="signature"):
            check(certificate_of(other), signature, SIGNED)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_of_keys_are_none(check, kind):
    key = OTHERS[kind]
    with pytest.raises(VerificationError, match="neither an EC nor an Ed25519 key"):
        check(certificate_of(key), sign(key), SIGNED)


# by name: the bytes are others in each process of a test run
DAMAGED = {
    "nothing": b"",
    "empty sequence": b"\x30\x00",
    "garbage": b"garbage",
    "cut": CERTIFICATE[:-1],
    "longer": CERTIFICATE + b"\0",
    "two": CERTIFICATE + CERTIFICATE,
    "PEM": ssl.DER_cert_to_PEM_cert(CERTIFICATE).encode(),
    "key alone": spki_of(KEYS["P-256"]),
    "length beyond all": b"\x30\x84\xff\xff\xff\xff" + CERTIFICATE[4:],
}


@pytest.mark.parametrize("damaged", DAMAGED)
def test_what_is_no_certificate_is_none(check, damaged):
    with pytest.raises(VerificationError, match="not one"):
        check(DAMAGED[damaged], SIGNATURE, SIGNED)


def test_curves_of_ones_own_are_none(check):
    """CVE-2020-0601: with another generator anybody has the private key of anybody's public one."""
    point = spki_of(KEYS["P-256"])[-65:]
    hash_of_named = hashlib.sha256(spki_of(KEYS["P-256"])).digest()
    assert check(with_key(SPELLED_OUT + point), SIGNATURE, SIGNED).spki_sha256 == hash_of_named
    assert P256_GENERATOR in SPELLED_OUT
    for other in (point, spki_of(KEYS["secp256k1"])[-65:]):
        with pytest.raises(VerificationError, match="not one"):
            check(with_key(SPELLED_OUT.replace(P256_GENERATOR, other) + point), SIGNATURE, SIGNED)


def test_points_that_are_none_of_the_curve_are_no_keys(check):
    spki = spki_of(KEYS["P-256"])
    head, point = spki[:-65], spki[-65:]
    wrong = [head + point[:-1] + bytes([point[-1] ^ 1]), head + b"\x04" + bytes(64), head + b"\x05" + point[1:]]
    for one in wrong:
        with pytest.raises(VerificationError, match="not one"):
            check(with_key(one), SIGNATURE, SIGNED)


def test_point_at_infinity_is_no_key(check):
    """Anybody can sign for it: with s = e, u1 is 1, and u1 G + u2 Q is G, whose x is r."""
    spki = bytes.fromhex("3019301306072a8648ce3d020106082a8648ce3d03010703020000")
    x = int.from_bytes(P256_GENERATOR[1:33], "big")
    forged = encode_dss_signature(x, int.from_bytes(hashlib.sha256(SIGNED).digest(), "big"))
    with pytest.raises(VerificationError, match="not one"):
        check(with_key(spki), forged, SIGNED)


def test_compressed_point_is_the_same_key(check):
    key = KEYS["P-256"]
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)
    spki = bytes.fromhex("3039301306072a8648ce3d020106082a8648ce3d030107032200") + point
    assert check(with_key(spki), SIGNATURE, SIGNED).spki_sha256 == hashlib.sha256(spki_of(key)).digest()


def test_names_are_what_the_subject_says(check):
    key = KEYS["P-256"]
    two = [x509.NameAttribute(x509.NameOID.COMMON_NAME, name) for name in ("erste", "zweite")]
    for attributes, claimed in (
        ([], "without a name"),
        ([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "o"), *two], "erste"),
        ([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Zoë")], "Zoë"),
        ([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x" * 64)], "x" * 64),
    ):
        assert check(build(key, x509.Name(attributes)), SIGNATURE, SIGNED).claimed_name == claimed


@needs_library
@given(st.binary(max_size=80), st.integers(0, len(CERTIFICATE) - 1), st.integers(0, 80))
def test_both_ways_agree_on_damaged_certificates(insert, place, length):
    """What one lets in, the other does too, by the same hash: OpenSSL's parser may take what the stricter one refuses,
    as long as key and signature are those that the list knows.
    """
    damaged = CERTIFICATE[:place] + insert + CERTIFICATE[place + length :]
    try:
        strict = check_by_cryptography(damaged, SIGNATURE, SIGNED)
    except VerificationError:
        strict = None
    try:
        caller = by_ssl(damaged, SIGNATURE, SIGNED)
    except VerificationError:
        assert strict is None
    else:
        assert caller.spki_sha256 == hashlib.sha256(spki_of(KEYS["P-256"])).digest()
        assert strict is None or strict.spki_sha256 == caller.spki_sha256


@needs_library
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data):
    with pytest.raises(VerificationError):
        by_ssl(data, SIGNATURE, SIGNED)


@needs_library
def test_failures_are_not_left_to_the_next_tls_connection():
    """OpenSSL's errors wait in a queue of the thread, and ssl takes the last one for its own connection's."""
    library = ssl_keys.find_library()
    for certificate, signature in ((b"garbage", b""), (CERTIFICATE, b"garbage"), (CERTIFICATE[:-1], SIGNATURE)):
        with pytest.raises(VerificationError):
            by_ssl(certificate, signature, SIGNED)
        assert library.ERR_peek_error() == 0


def test_without_that_library_cryptography_does_it(monkeypatch):
    monkeypatch.setattr(ssl_keys, "find_library", lambda: None)
    assert check_proof(CERTIFICATE, SIGNATURE, SIGNED).claimed_name == "alice"
    with pytest.raises(VerificationError, match="signature"):
        check_proof(CERTIFICATE, SIGNATURE, SIGNED + b"!")


def with_key(spki):
    """Return the certificate with another key in it; its own signature is then wrong, and nobody asks for that."""
    inner = x509.load_der_x509_certificate(CERTIFICATE).tbs_certificate_bytes
    replaced = sequence(content_of(inner).replace(spki_of(KEYS["P-256"]), spki))
    return sequence(content_of(CERTIFICATE).replace(inner, replaced))


def content_of(der):
    return der[2 + (der[1] & 0x7F if der[1] & 0x80 else 0) :]


def sequence(content):
    size = len(content)
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return b"\x30" + (bytes([0x80 | len(length)]) if size > 0x7F else b"") + length + content
