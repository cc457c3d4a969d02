# SPDX-License-Identifier: Apache-2.0
"""`pipeline keygen`: the key and certificate that answer an enclave's challenge (`enclavekit_attestation.caller`)."""

from __future__ import annotations

import contextlib
import datetime
import os
import re

from enclavekit_core.errors import InputError, describe_cause

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")  # ends up in file names, certificates and logs
NAME_RULE = "a name has 1 to 64 of A-Z a-z 0-9 . _ @ - and begins with a letter or digit"
LIFETIME = datetime.timedelta(days=3650)  # the enclave's list decides who may enter, not a date


def generate(name: str, directory: str) -> tuple[str, str]:
    """Make DIRECTORY/NAME.key (mode 0600) and NAME.crt; return their paths. Raises InputError; replaces nothing."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    if not NAME.fullmatch(name):
        raise InputError("make identity", repr(name), NAME_RULE)
    key = ed25519.Ed25519PrivateKey.generate()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, None)
    )
    pem = serialization.Encoding.PEM
    key_pem = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    base = os.path.join(directory, name)
    written: list[str] = []
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        for path, data, mode in (
            (f"{base}.key", key_pem, 0o600),
            (f"{base}.crt", certificate.public_bytes(pem), 0o644),
        ):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            written.append(path)
            with open(descriptor, "wb") as out:
                out.write(data)
    except OSError as exc:
        for path in written:
            with contextlib.suppress(OSError):
                os.unlink(path)
        raise InputError("make identity", base, describe_cause(exc)) from exc
    return f"{base}.key", f"{base}.crt"
