# SPDX-License-Identifier: Apache-2.0
"""Signing images that are there already: by key file, by KMS, by a signature made elsewhere."""

import base64
import datetime
import http.server
import json
import os
import shutil
import stat
import subprocess
import sys
import threading

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from enclavekit_core.errors import InputError, VerificationError
from enclavekit_eif import model
from enclavekit_eif.cli import main
from enclavekit_eif.detached import DetachedSigner, signing_request
from enclavekit_eif.measure import measure
from enclavekit_eif.model import HEADER, MAX_SECTIONS, SectionType, decode_header
from enclavekit_eif.reader import read_eif
from enclavekit_eif.sign import sign_eif
from enclavekit_eif.signature import (
    ALGORITHMS,
    load_certificate,
    load_signer,
    raw_signature,
    read_signature,
    verify_signature,
)
from enclavekit_eif.writer import write_eif

CURVES = {"secp256r1": ec.SECP256R1(), "secp384r1": ec.SECP384R1(), "secp521r1": ec.SECP521R1()}
AT = "2030-01-01T00:00:00Z"


def pcrs(path):
    with read_eif(path) as eif:
        measured = measure(eif)
        assert measured.crc_ok
        if eif.signature:
            verify_signature(read_signature(eif), measured.pcr0)
        return measured


@pytest.mark.parametrize("curve", CURVES)
def test_signing_later_gives_the_bytes_of_signing_at_once(tmp_path, inputs, image, key_files, curve):
    signer = load_signer(*key_files(ec.generate_private_key(CURVES[curve])))
    at_once = tmp_path / "at-once.eif"
    measured = write_eif(at_once, **inputs, signer=signer)
    assert sign_eif(image, tmp_path / "later.eif", signer) == measured
    assert (tmp_path / "later.eif").read_bytes() == at_once.read_bytes()


def test_signing_anew_replaces_the_signature_and_the_table(tmp_path, image, key_files):
    first, second = load_signer(*key_files(name="a" * 60)), load_signer(*key_files(name="b"))
    sign_eif(image, tmp_path / "first.eif", first)
    sign_eif(image, tmp_path / "second.eif", second)
    sign_eif(tmp_path / "first.eif", tmp_path / "first.eif", second)
    assert (tmp_path / "first.eif").read_bytes() == (tmp_path / "second.eif").read_bytes()
    assert len((tmp_path / "first.eif").read_bytes()) != image.stat().st_size


def test_a_sample_of_the_format_is_signed_to_the_byte(tmp_path, data, key_files):
    """All but the signature's own section stays as the synthetic sample has it: header fields included."""
    out = tmp_path / "signed.eif"
    sign_eif(data / "synthetic-unsigned.eif", out, load_signer(*key_files()))
    before, after = (data / "synthetic-unsigned.eif").read_bytes(), out.read_bytes()
    assert after[HEADER.size : len(before)] == before[HEADER.size :]
    old, new = decode_header(before[: HEADER.size]), decode_header(after[: HEADER.size])
    assert (old.version, old.flags, old.default_mem, old.default_cpus) == (
        new.version, new.flags, new.default_mem, new.default_cpus,
    )  # fmt: skip
    assert new.num_sections == old.num_sections + 1
    assert new.offsets[: old.num_sections] == old.offsets[: old.num_sections]


def test_in_place_keeps_the_mode_and_follows_a_link(tmp_path, image, key_files):
    image.chmod(0o640)
    (tmp_path / "link").symlink_to(image)
    sign_eif(tmp_path / "link", tmp_path / "link", load_signer(*key_files()))
    assert (tmp_path / "link").is_symlink()
    assert stat.S_IMODE(image.stat().st_mode) == 0o640
    assert pcrs(image).pcr8 is not None


def test_a_refused_signature_leaves_all_as_it_was(tmp_path, image, key_files):
    certificate, _ = key_files()
    before, names = image.read_bytes(), set(os.listdir(tmp_path))

    class Wrong:
        certificate_pem = load_certificate(certificate).certificate_pem

        def sign(self, pcr0):
            return load_signer(*key_files(name="signer")).sign(bytes(48))

    with pytest.raises(VerificationError):
        sign_eif(image, image, Wrong())
    signer = load_signer(*key_files(name="signer"))
    for year in (2019, 2041):
        with pytest.raises(VerificationError):
            sign_eif(image, image, signer, at=datetime.datetime(year, 1, 1, tzinfo=datetime.UTC))
    with pytest.raises(InputError):
        sign_eif(image, tmp_path, signer)
    with pytest.raises(InputError):
        sign_eif(image, tmp_path / "missing" / "x.eif", signer)
    damaged = bytearray(before)
    damaged[-1] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    with pytest.raises(InputError):
        sign_eif(tmp_path / "damaged", tmp_path / "out", signer)
    assert image.read_bytes() == before
    assert set(os.listdir(tmp_path)) == names | {"damaged"}


def test_an_image_with_no_place_for_a_signature_is_refused(tmp_path, inputs, key_files):
    ramdisks = inputs["ramdisks"][:1] * (MAX_SECTIONS - 4)
    write_eif(tmp_path / "full.eif", **{**inputs, "ramdisks": ramdisks})
    signer = load_signer(*key_files())
    sign_eif(tmp_path / "full.eif", tmp_path / "signed.eif", signer)
    with read_eif(tmp_path / "signed.eif") as eif:
        assert len(eif.sections) == MAX_SECTIONS
    sign_eif(tmp_path / "signed.eif", tmp_path / "signed.eif", signer)  # it has a place: its own

    sections = model.plan_sections([(SectionType.KERNEL, 1), (SectionType.CMDLINE, 1), (SectionType.RAMDISK, 1)])
    raw = bytearray(model.encode_header(0, sections, version=2))
    for section in sections:
        raw += model.SECTION_HEADER.pack(section.type, 0, 1) + b"x"
    (tmp_path / "old.eif").write_bytes(raw)
    with pytest.raises(InputError):
        sign_eif(tmp_path / "old.eif", tmp_path / "out.eif", signer)


@pytest.mark.parametrize("curve", CURVES)
def test_openssl_signs_a_detached_request(tmp_path, image, key_files, capfdbinary, curve):
    if not shutil.which("openssl"):
        pytest.skip("no openssl on this machine")
    certificate, key = key_files(ec.generate_private_key(CURVES[curve]))
    request = tmp_path / "request"
    assert main(["sign", str(image), "--detached-request", str(request), "--certificate", certificate]) == 0
    told = json.loads(capfdbinary.readouterr().out)
    assert told["PCR0"] == pcrs(image).pcr0.hex()
    digest = tmp_path / "request.digest"
    assert digest.read_bytes().hex() == told["Digest"]
    by_message, by_digest = tmp_path / "by-message", tmp_path / "by-digest"
    subprocess.run(["openssl", "dgst", f"-{told['Hash']}", "-sign", key, "-out", by_message, request], check=True)
    subprocess.run(["openssl", "pkeyutl", "-sign", "-inkey", key, "-in", digest, "-out", by_digest], check=True)
    raw = tmp_path / "raw"
    raw.write_bytes(raw_signature(by_digest.read_bytes(), ALGORITHMS[curve]))
    text = tmp_path / "base64"
    text.write_bytes(base64.encodebytes(by_digest.read_bytes()))
    for made in (by_message, by_digest, raw, text):
        out = tmp_path / "out.eif"
        argv = ["sign", str(image), "--attach", str(made), "--certificate", certificate, "-o", str(out), "--at", AT]
        assert main(argv) == 0
        assert pcrs(out).pcr8 is not None
        out.unlink()


def test_a_request_follows_the_curve_and_nothing_else(tmp_path, image, key_files):
    certificate, _ = key_files()
    for words in ([], ["--curve", "P-384"], ["--certificate", certificate]):
        assert main(["sign", str(image), "--detached-request", str(tmp_path / "request"), *words]) == 0
        expected = signing_request(ALGORITHMS["secp384r1"], pcrs(image).pcr0)
        assert (tmp_path / "request").read_bytes() == expected.message
    assert main(["sign", str(image), "--detached-request", str(tmp_path / "request"), "--curve", "P-256"]) == 0
    assert len((tmp_path / "request.digest").read_bytes()) == 32


def test_signatures_that_do_not_fit_are_refused(tmp_path, image, key_files):
    key = ec.generate_private_key(ec.SECP384R1())
    certificate, _ = key_files(key)
    pem = load_certificate(certificate).certificate_pem
    digest = signing_request(ALGORITHMS["secp384r1"], pcrs(image).pcr0).digest
    good = key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA384())))
    before = image.read_bytes()
    other = ec.generate_private_key(ec.SECP384R1()).sign(digest, ec.ECDSA(Prehashed(hashes.SHA384())))
    for bad, refusal in [
        (other, VerificationError),
        (key.sign(bytes(48), ec.ECDSA(Prehashed(hashes.SHA384()))), VerificationError),
        (bytes(96), VerificationError),
        (b"", InputError),
        (good[:-1], InputError),
        (good + b"x", InputError),
        (b"\x30\x06\x02\x01\x01\x02\x01\xff", InputError),  # s is negative
    ]:
        with pytest.raises(refusal):
            sign_eif(image, image, DetachedSigner(pem, bad))
    assert image.read_bytes() == before
    sign_eif(image, image, DetachedSigner(pem, good))


@pytest.mark.parametrize(
    "argv",
    [
        ["--key", "KEY"],
        ["--certificate", "CRT"],
        ["--key", "KEY", "--certificate", "CRT", "--at", "yesterday"],
        ["--key", "KEY", "--certificate", "CRT", "--curve", "P-256"],
        ["--key", "KEY", "--certificate", "KEY"],
        ["--key", "KEY", "--certificate", "/nowhere"],
        ["--detached-request", "OUT", "--certificate", "CRT", "--curve", "P-256"],
        ["--detached-request", "OUT", "-o", "OUT"],
        ["--detached-request", "/nowhere/out"],
        ["--attach", "/nowhere", "--certificate", "CRT"],
        ["--kms-key", "alias/mine", "--certificate", "CRT"],
        ["--kms-key", "arn:aws:kms:eu-west-1:12:key/x", "--certificate", "CRT"],
    ],
)
def test_bad_command_lines_exit_2_and_write_nothing(tmp_path, image, key_files, argv, capfd):
    certificate, key = key_files()
    out = tmp_path / "out"
    words = [{"KEY": key, "CRT": certificate, "OUT": str(out)}.get(word, word) for word in argv]
    before = image.read_bytes()
    try:
        assert main(["sign", str(image), *words]) == 2
    except SystemExit as exc:
        assert exc.code == 2
    assert image.read_bytes() == before
    assert not out.exists()
    assert capfd.readouterr().err.startswith(("eif: cannot ", "usage: "))


def test_expired_certificates_exit_6(image, key_files):
    certificate, key = key_files()
    before = image.read_bytes()
    for at in ("2019-01-01", "2041-01-01T00:00:00+02:00"):
        assert main(["sign", str(image), "--key", key, "--certificate", certificate, "--at", at]) == 6
    assert image.read_bytes() == before


class FakeKms(http.server.BaseHTTPRequestHandler):
    """The Sign action of AWS KMS over its real wire protocol (JSON 1.1), with a key of our own."""

    key: ec.EllipticCurvePrivateKey
    seen: list
    refuse = False

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.headers["X-Amz-Target"], body))
        if self.refuse:
            self._answer(400, {"__type": "AccessDeniedException", "message": "not yours"})
            return
        chosen = {"ECDSA_SHA_256": hashes.SHA256(), "ECDSA_SHA_384": hashes.SHA384(), "ECDSA_SHA_512": hashes.SHA512()}
        scheme = ec.ECDSA(Prehashed(chosen[body["SigningAlgorithm"]]))
        signature = self.key.sign(base64.b64decode(body["Message"]), scheme)
        self._answer(200, {"KeyId": body["KeyId"], "Signature": base64.b64encode(signature).decode()})

    def _answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


ARN = "arn:aws:kms:eu-west-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


@pytest.fixture
def kms(monkeypatch, tmp_path):
    """A KMS that boto3 finds by its own environment variable; `kms.key` is its key."""
    pytest.importorskip("boto3", reason="boto3, the optional extra for KMS, is not installed")
    handler = type("Handler", (FakeKms,), {"seen": [], "key": ec.generate_private_key(ec.SECP384R1())})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        yield handler
        server.shutdown()


@pytest.mark.parametrize("curve", CURVES)
def test_a_key_in_kms_signs(tmp_path, image, key_files, kms, curve):
    kms.key = ec.generate_private_key(CURVES[curve])
    certificate, _ = key_files(kms.key)
    out = tmp_path / "out.eif"
    assert main(["sign", str(image), "--kms-key", ARN, "--certificate", certificate, "-o", str(out), "--at", AT]) == 0
    assert pcrs(out).pcr8 is not None
    ((target, body),) = kms.seen
    assert target == "TrentService.Sign"
    assert (body["KeyId"], body["MessageType"]) == (ARN, "DIGEST")
    expected = signing_request(ALGORITHMS[curve], pcrs(image).pcr0)
    assert (body["SigningAlgorithm"], base64.b64decode(body["Message"])) == (expected.algorithm.name, expected.digest)


def test_a_kms_that_refuses_or_has_another_key_writes_nothing(image, key_files, kms):
    before = image.read_bytes()
    other, _ = key_files()
    argv = ["sign", str(image), "--kms-key", ARN, "--at", AT, "--certificate"]
    assert main([*argv, other]) == 6
    kms.refuse = True
    mine, _ = key_files(kms.key, name="mine")
    assert main([*argv, mine]) == 3
    assert image.read_bytes() == before


def test_an_expired_certificate_does_not_reach_kms(image, key_files, kms):
    certificate, _ = key_files(kms.key)
    assert main(["sign", str(image), "--kms-key", ARN, "--certificate", certificate, "--at", "2041-01-01"]) == 6
    assert kms.seen == []


def test_without_boto3_one_line_says_what_to_install(image, key_files):
    certificate, _ = key_files()
    words = ["sign", str(image), "--kms-key", ARN, "--certificate", certificate, "--at", AT]
    code = "import sys; sys.modules['boto3'] = None; from enclavekit_eif.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "enclavekit-eif[kms]" in done.stderr


def test_raw_form_is_r_and_s_padded(key_files):
    key = ec.generate_private_key(ec.SECP521R1())
    der = key.sign(b"x", ec.ECDSA(hashes.SHA512()))
    raw = raw_signature(der, ALGORITHMS["secp521r1"])
    r, s = decode_dss_signature(der)
    assert (int.from_bytes(raw[:66], "big"), int.from_bytes(raw[66:], "big"), len(raw)) == (r, s, 132)
    short = bytes.fromhex("3006020101020102")
    assert raw_signature(short, ALGORITHMS["secp256r1"]) == bytes(31) + b"\1" + bytes(31) + b"\2"
