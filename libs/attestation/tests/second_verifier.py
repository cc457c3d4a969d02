# SPDX-License-Identifier: Apache-2.0
"""A second verifier, written from docs/reference/verification.md alone, with cbor2 and cryptography, nothing of ours.

It is what somebody in another language would make of the page. Where the two verifiers differ, the page is wrong, or
one of them is. `verify` returns the name of the first step that fails, or "passes"; sections are the page's.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import json
import re

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

MAX_DOCUMENT, MAX_PAYLOAD = 16512, 16384
ES384 = bytes.fromhex("300a06082a8648ce3d040303")
RA_TLS = x509.ObjectIdentifier("2.25.183587865731266916543054570927095228216")
STATE = (
    ("vrf_cipher_suite", r"[A-Za-z0-9_-]{1,40}"),
    ("vrf_public_key", r"(?:[0-9a-f]{64}|[0-9a-f]{66})"),
    ("manifest_root", r"[0-9a-f]{128}"),
)


class Refused(Exception):
    """A step that failed."""


def need(condition: object) -> None:
    if not condition:
        raise Refused


def verify(
    raw: bytes,
    roots: list[bytes],
    at_ms: int | None,
    *,
    live: bool = False,
    nonce: bytes | None = None,
    pcrs: dict[int, bytes] | None = None,
    allow_debug: bool = False,
    max_age_ms: int | None = None,
    binding: tuple[str, bytes] | None = None,
) -> str:
    """Verify as the page says; `at_ms` None is the document's own time, `binding` is (service, certificate in DER)."""
    step = "format"
    try:
        payload, signature = read_envelope(raw)
        document = read_payload(payload)
        at_ms = document["timestamp"] if at_ms is None else at_ms
        step = "chain"
        key = check_chain(document, roots, at_ms)
        step = "signature"
        check_signature(key, payload, signature)
        step = "freshness"
        age_ms = at_ms - document["timestamp"]
        limit_ms = max_age_ms if max_age_ms is not None else 300_000 if live else None
        need(age_ms >= -60_000 and (limit_ms is None or age_ms <= limit_ms))
        step = "nonce"
        need(nonce is None or (document["nonce"] is not None and hmac.compare_digest(nonce, document["nonce"])))
        step = "debug"
        debug = check_debug(document["pcrs"], allow_debug)
        step = "pcrs"
        for index, value in (pcrs or {}).items():
            found = document["pcrs"].get(index)
            hidden = debug and index in (0, 1, 2, 8) and found is not None and not any(found)
            need(hidden or found == value)
        step = "binding"
        if binding is not None:
            check_binding(document, *binding)
    except Refused:
        return step
    return "passes"


# 1. format


def read_envelope(raw: bytes) -> tuple[bytes, bytes]:
    need(len(raw) <= MAX_DOCUMENT)
    rest = raw.removeprefix(b"\xd2")
    need(rest.startswith(bytes.fromhex("8444a1013822a0")))
    rest = rest[7:]
    need(rest)
    head = rest[0]
    if 0x40 <= head <= 0x57:
        size, rest = head - 0x40, rest[1:]
    elif head == 0x58:
        need(len(rest) >= 2 and rest[1] >= 24)
        size, rest = rest[1], rest[2:]
    else:
        need(head == 0x59 and len(rest) >= 3 and rest[1])
        size, rest = int.from_bytes(rest[1:3], "big"), rest[3:]
    need(1 <= size <= MAX_PAYLOAD and len(rest) == size + 2 + 96 and rest[size : size + 2] == b"\x58\x60")
    return rest[:size], rest[size + 2 :]


def read_payload(payload: bytes) -> dict:
    document = decode(payload)
    required = {"module_id", "digest", "timestamp", "pcrs", "certificate", "cabundle"}
    options = {"public_key", "user_data", "nonce"}
    need(isinstance(document, dict) and set(document) <= required | options and required <= set(document))
    need(isinstance(document["module_id"], str) and re.fullmatch(r"[\x20-\x7e]+", document["module_id"]))
    need(document["digest"] == "SHA384")
    need(type(document["timestamp"]) is int and document["timestamp"] > 0)
    pcrs = document["pcrs"]
    need(isinstance(pcrs, dict) and 1 <= len(pcrs) <= 32)
    for index, value in pcrs.items():
        need(type(index) is int and 0 <= index <= 31 and type(value) is bytes and len(value) in (32, 48, 64))
    need(is_bytes(document["certificate"], 1, 1024))
    bundle = document["cabundle"]
    need(isinstance(bundle, list) and 1 <= len(bundle) <= 8 and all(is_bytes(one, 1, 1024) for one in bundle))
    for name, least in (("public_key", 1), ("user_data", 0), ("nonce", 0)):
        document.setdefault(name, None)
        need(document[name] is None or is_bytes(document[name], least, 1024))
    return document


def is_bytes(value: object, least: int, most: int) -> bool:
    return type(value) is bytes and least <= len(value) <= most


def decode(payload: bytes) -> object:
    """Decode one item and nothing after it; the outermost map alone may be of indefinite length."""
    if payload[0] == 0xBF:
        pairs = len(strict(payload, allow_indefinite=True))
        need(pairs < 24)
        payload = bytes([0xA0 + pairs]) + payload[1:-1]  # the same map, with its length
    return strict(payload, allow_indefinite=False)


def strict(data: bytes, *, allow_indefinite: bool) -> object:
    class NoTags(dict):
        def __missing__(self, tag):
            raise cbor2.CBORDecodeError("tag")

        def __bool__(self):
            return True

    stream = io.BytesIO(data)
    try:
        value = cbor2.load(
            stream,
            allow_indefinite=allow_indefinite,
            allow_duplicate_keys=False,
            max_depth=3,
            semantic_decoders=NoTags({-1: None}),
        )
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError) as exc:
        raise Refused from exc
    need(not stream.read(1))
    return value


# 2. chain


def check_chain(document: dict, roots: list[bytes], at_ms: int) -> ec.EllipticCurvePublicKey:
    bundle = document["cabundle"]
    need(bundle[0] in roots)
    chain = [load(der) for der in (*bundle, document["certificate"])]
    last = len(chain) - 1
    for position, certificate in enumerate(chain):
        der = (*bundle, document["certificate"])[position]
        above = chain[max(position - 1, 0)]
        need(certificate.version is x509.Version.v3)
        key = certificate.public_key()
        need(isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1))
        need(certificate.signature_algorithm_oid.dotted_string == "1.2.840.10045.4.3.3")
        need(der == sequence(0x30, certificate.tbs_certificate_bytes + ES384 + bits(certificate.signature)))
        begin, end = (
            when.timestamp() * 1000 for when in (certificate.not_valid_before_utc, certificate.not_valid_after_utc)
        )
        need(begin <= at_ms <= end)
        understood = {"2.5.29.19", "2.5.29.15"}
        need(all(not one.critical or one.oid.dotted_string in understood for one in certificate.extensions))
        need(certificate.issuer.public_bytes() == above.subject.public_bytes())
        try:
            issuer_key = above.public_key()
            need(isinstance(issuer_key, ec.EllipticCurvePublicKey))
            issuer_key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(hashes.SHA384()))
        except InvalidSignature as exc:
            raise Refused from exc
        constraints = extension(certificate, x509.BasicConstraints)
        need(constraints.critical)
        usage = extension(certificate, x509.KeyUsage).value
        if position < last:
            need(constraints.value.ca and usage.key_cert_sign)
            below = last - position - 1
            need(constraints.value.path_length is None or constraints.value.path_length >= below)
            need(position == 0 or certificate.subject.public_bytes() != certificate.issuer.public_bytes())
        else:
            need(not constraints.value.ca and constraints.value.path_length is None)
            need(usage.digital_signature and not usage.key_cert_sign)
    return chain[-1].public_key()


def load(der: bytes) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        _ = certificate.extensions, certificate.public_key(), certificate.subject, certificate.issuer
    except Exception as exc:  # whatever the library says of bytes that are no certificate
        raise Refused from exc
    return certificate


def extension(certificate: x509.Certificate, kind: type) -> x509.Extension:
    try:
        return certificate.extensions.get_extension_for_class(kind)
    except x509.ExtensionNotFound as exc:
        raise Refused from exc


def sequence(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes([tag, size]) + content
    width = (size.bit_length() + 7) // 8
    return bytes([tag, 0x80 | width]) + size.to_bytes(width, "big") + content


def bits(signature: bytes) -> bytes:
    return sequence(0x03, b"\0" + signature)


# 3. signature


def check_signature(key: ec.EllipticCurvePublicKey, payload: bytes, signature: bytes) -> None:
    size = len(payload)
    head = (
        bytes([0x40 + size]) if size < 24 else bytes([0x58, size]) if size < 256 else b"\x59" + size.to_bytes(2, "big")
    )
    signed = bytes.fromhex("846a5369676e61747572653144a101382240") + head + payload
    r, s = int.from_bytes(signature[:48], "big"), int.from_bytes(signature[48:], "big")
    try:
        key.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as exc:
        raise Refused from exc


# 6. debug


def check_debug(pcrs: dict[int, bytes], allowed: bool) -> bool:
    need({0, 1, 2} <= set(pcrs))
    zero = [not any(pcrs[index]) for index in (0, 1, 2)]
    if not any(zero):
        return False
    need(all(zero) and allowed)
    return True


# 9. binding


def check_binding(document: dict, service: str, certificate_der: bytes) -> None:
    key = load(certificate_der).public_key()
    spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    head = f'{{"purpose":"enclavekit/tls/1","service":"{service}","spki_sha256":"{hashlib.sha256(spki).hexdigest()}"'
    rest = "".join(f'(?:,"{name}":"{form}")?' for name, form in STATE)
    user_data = document["user_data"] or b""
    need(re.fullmatch(re.escape(head.encode()) + rest.encode() + rb"\}", user_data))
    need(document["public_key"] in (None, spki))


def document_in_certificate(certificate_der: bytes) -> bytes:
    """The RA-TLS extension's value."""
    for one in load(certificate_der).extensions:
        if one.oid == RA_TLS:
            return one.value.value
    raise Refused


# Files


def check_file(user_data: bytes | None, path: bytes, content_sha3_512: bytes) -> str:
    """Return the VRF's input, once `user_data` is what the page says about this file."""
    fields = json.loads(user_data or b"{}")
    rest = {"sha3_hash": content_sha3_512.hex()}
    rest |= {name: fields.get(name, "") for name in ("vrf_proof", "vrf_cipher_suite")}
    by_digest = {"file_path_sha3_256": hashlib.sha3_256(path).hexdigest()}
    try:
        by_name = {"file_path": path.decode("utf-8")}
    except UnicodeDecodeError:
        by_name = by_digest
    form = by_name if len(compact({**by_name, **rest})) <= 512 else by_digest
    need(user_data == compact({**form, **rest}))
    return compact({**by_name, "sha3_hash": rest["sha3_hash"]}).decode()


def compact(fields: dict) -> bytes:
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def check_manifest_proof(root: bytes, path: str, directories: list[dict]) -> str | None:
    """Return the kind of what is at `path`, or None where the proof shows that there is nothing."""
    kinds = {"file": 1, "directory": 2, "link": 3, "other": 4}
    names = [name for name in path.encode("utf-8", "surrogateescape").split(b"/") if name]
    need(names)
    expected = root
    for position, name in enumerate(names):
        need(position < len(directories))
        sha3, found, before = hashlib.sha3_512(b"enclavekit-tree-v1\0"), None, b""
        rows = [
            (entry["name"].encode("utf-8", "surrogateescape"), kinds[entry["kind"]], entry["mode"], entry["digest"])
            for entry in directories[position]["entries"]
        ]
        for own, kind, mode, digest in sorted(rows):
            need(own != before and own not in (b"", b".", b"..") and b"/" not in own and len(own) <= 255)
            need(len(bytes.fromhex(digest)) == 64)
            mode = 0 if kind == kinds["link"] else mode
            sha3.update(bytes([kind]) + mode.to_bytes(2, "big") + len(own).to_bytes(2, "big") + own)
            sha3.update(bytes.fromhex(digest))
            before = own
            if own == name:
                found = (kind, bytes.fromhex(digest))
        need(sha3.digest() == expected)
        if found is None or (position < len(names) - 1 and found[0] != 2):
            return None
        expected = found[1]
    return next(kind for kind, number in kinds.items() if found is not None and number == found[0])
