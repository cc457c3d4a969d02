# SPDX-License-Identifier: Apache-2.0
"""The development root and the chain below it: the shape of AWS's, and never to be taken for it."""

import datetime
import errno
import itertools
import os
import re
import shutil
import stat
import subprocess
import sys

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import oid
from enclavekit_core.errors import InputError
from enclavekit_emulator import nsm_authority
from enclavekit_emulator.nsm_authority import ensure_dev_root, issue_leaf, make_root

MODULE = "i-0123456789abcdef0-enc00123456789abcde"  # as long as real ones get
NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
EXTENSION = oid.ExtensionOID


@pytest.fixture(scope="module")
def chain():
    leaf = issue_leaf(make_root(NOW), MODULE, NOW)
    return [x509.load_der_x509_certificate(der) for der in (*leaf.bundle_der, leaf.certificate_der)]


def critical_extensions(certificate):
    return {extension.oid: (extension.critical, extension.value) for extension in certificate.extensions}


def usages(certificate):
    value = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    names = ("digital_signature", "content_commitment", "key_cert_sign", "crl_sign", "key_agreement")
    return [name for name in names if getattr(value, name)]


def test_chain_has_the_extensions_of_real_ones(chain):
    *authorities, leaf = chain
    lengths = []
    for certificate in authorities:
        found = critical_extensions(certificate)
        critical, constraints = found[EXTENSION.BASIC_CONSTRAINTS]
        assert critical
        assert constraints.ca
        assert found[EXTENSION.KEY_USAGE][0]
        assert not found[EXTENSION.SUBJECT_KEY_IDENTIFIER][0]
        lengths.append(constraints.path_length)
    assert lengths == [None, 2, 1, 0]
    assert usages(authorities[0]) == ["digital_signature", "key_cert_sign", "crl_sign"]
    assert usages(authorities[3]) == ["key_cert_sign"]
    found = critical_extensions(leaf)
    assert set(found) == {EXTENSION.BASIC_CONSTRAINTS, EXTENSION.KEY_USAGE}
    assert found[EXTENSION.BASIC_CONSTRAINTS] == (True, x509.BasicConstraints(ca=False, path_length=None))
    assert not found[EXTENSION.KEY_USAGE][0]
    assert usages(leaf) == ["digital_signature", "content_commitment"]


def test_chain_is_p384_with_sha384_and_hangs_together(chain):
    for issuer, certificate in itertools.pairwise(chain):
        certificate.verify_directly_issued_by(issuer)
        named = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
        if certificate is not chain[-1]:
            above = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
            assert above.key_identifier == named
    for certificate in chain:
        assert isinstance(certificate.public_key().curve, ec.SECP384R1)
        assert isinstance(certificate.signature_hash_algorithm, hashes.SHA384)
        assert len(certificate.public_bytes(serialization.Encoding.DER)) <= 1024


def test_chain_lives_as_long_as_real_ones(chain):
    lives = [certificate.not_valid_after_utc - NOW for certificate in chain[1:]]
    assert lives == [datetime.timedelta(**life) for life in ({"days": 20}, {"days": 6}, {"days": 1}, {"hours": 3})]
    assert all(certificate.not_valid_before_utc == NOW - datetime.timedelta(seconds=3) for certificate in chain)


def test_leaf_serial_is_enclave_and_second(chain):
    assert chain[-1].serial_number == int("00123456789abcde" + f"{int(NOW.timestamp()):016x}", 16)


def test_names_are_whole_and_not_of_aws(chain):
    for certificate in chain:
        [name] = certificate.subject.get_attributes_for_oid(oid.NameOID.COMMON_NAME)
        assert re.search(r"\.nitro-enclaves$|\.enclavekit$", name.value)
        assert not re.search("aws|amazon", certificate.subject.rfc4514_string().replace("not AWS", ""), re.IGNORECASE)
        assert len(name.value) <= 64
    assert chain[0].subject.get_attributes_for_oid(oid.NameOID.COMMON_NAME)[0].value == "enclavekit-dev.nitro-enclaves"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing (Debian package openssl)")
def test_openssl_takes_the_chain(chain, tmp_path):
    names = ("root", "regional", "zonal", "instance", "leaf")
    for name, certificate in zip(names, chain, strict=True):
        (tmp_path / name).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    untrusted = [argument for name in names[1:4] for argument in ("-untrusted", str(tmp_path / name))]
    when = ["-attime", str(int(NOW.timestamp()))]
    command = ["openssl", "verify", "-x509_strict", *when, "-CAfile", str(tmp_path / "root"), *untrusted]
    # -x509_strict wants a key identifier in every certificate, which AWS's leaves have not: strict down to their issuer
    done = subprocess.run([*command, str(tmp_path / "instance")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    command.remove("-x509_strict")
    done = subprocess.run([*command, str(tmp_path / "leaf")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_processes_that_start_at_once_agree_on_one_root(tmp_path):
    code = "import sys; from enclavekit_emulator.nsm_authority import *; sys.stdin.read()\nensure_dev_root(sys.argv[1])"
    code += "\nprint(open(dev_root_path(sys.argv[1])).read())"
    command = [sys.executable, "-c", code, str(tmp_path / "state")]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for racer in racers:
        racer.stdin.close()  # the start
        racer.stdin = None
    results = [racer.communicate() for racer in racers]
    assert [racer.returncode for racer in racers] == [0] * 4, results
    assert len({out for out, _ in results}) == 1
    assert os.listdir(tmp_path / "state") == ["dev-root"]
    assert stat.S_IMODE(os.stat(tmp_path / "state" / "dev-root").st_mode) == 0o700


def test_full_disk_leaves_no_half_root(tmp_path, monkeypatch):
    written, real = [], nsm_authority._write

    def write(path, data, mode):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        real(path, data, mode)

    monkeypatch.setattr(nsm_authority, "_write", write)
    with pytest.raises(InputError, match="no space left"):
        ensure_dev_root(str(tmp_path / "state"))
    assert os.listdir(tmp_path / "state") == []
    monkeypatch.undo()
    ensure_dev_root(str(tmp_path / "state"))


@pytest.mark.parametrize("name", ["root.key", "root.pem"])
@pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "other", "link"])
def test_damaged_root_is_refused_and_kept(tmp_path, name, damage):
    ensure_dev_root(str(tmp_path / "one"))
    path = tmp_path / "one" / "dev-root" / name
    match damage:
        case "missing":
            path.unlink()
        case "empty" | "garbage":
            path.write_bytes(b"" if damage == "empty" else os.urandom(100))
        case "other":
            ensure_dev_root(str(tmp_path / "two"))
            path.write_bytes((tmp_path / "two" / "dev-root" / name).read_bytes())
        case "link":
            path.rename(tmp_path / name)
            path.symlink_to(tmp_path / name)
    before = sorted(os.listdir(path.parent))
    with pytest.raises(InputError, match="cannot use development root"):
        ensure_dev_root(str(tmp_path / "one"))
    assert sorted(os.listdir(path.parent)) == before
