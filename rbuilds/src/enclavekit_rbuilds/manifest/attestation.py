# SPDX-License-Identifier: Apache-2.0
"""How the attestation server serves: `attestation` of the manifest, as files in ramdisk 1, hence measured.

Source: the configuration of ra-web-srv, whose README says what each key does.
"""

from __future__ import annotations

import json
import posixpath
from typing import Annotated, Literal

from enclavekit_core.config import StrictConfig
from enclavekit_core.errors import ConfigError, InputError, describe_cause
from msgspec import Meta

PATH = "etc/enclavekit/ra-web-srv.yaml"
CLIENT_CA_PATH = "etc/enclavekit/ra-client-ca.pem"
PROXIED_UNIT_PATH = "service/pf-ra-proxied.service"
PROXIED_UNIT = """\
# Brings connections whose first bytes say who the client is; the server reads them, and so counts clients.
ExecStart = ["/usr/bin/pf-proxy", "vsock-to-ip", "-v", "any:{port}", "-i", "127.0.0.1:{port}"]
Restart = "always"
RestartSec = 1
"""

MAX_CLIENT_CA_BYTES = 256 * 1024

File = tuple[str, bytes]  # path in the ramdisk, content


class Attestation(StrictConfig, frozen=True):
    """The attestation server's settings; default: its own."""

    roots: Annotated[
        list[str] | None, Meta(description="Trees whose files may be hashed and attested; default: /data.")
    ] = None
    vrf_cipher_suite: Annotated[
        Literal[
            "ECVRF-EDWARDS25519-SHA512-TAI",
            "ECVRF-EDWARDS25519-SHA512-ELL2",
            "ECVRF-P256-SHA256-TAI",
            "ECVRF-P256-SHA256-SSWU",
            "ECVRF-SECP256K1-SHA256-TAI",
        ]
        | None,
        Meta(description="Of the VRF proofs; default: ECVRF-EDWARDS25519-SHA512-TAI."),
    ] = None
    client_ca: Annotated[
        str | None, Meta(description="PEM file: routes about files need a certificate of one of these.")
    ] = None
    proxied_port: Annotated[
        Annotated[int, Meta(ge=1, le=65535)] | None,
        Meta(description="vsock port, and one of the loopback, for proxies that begin with a PROXY header."),
    ] = None


def check_attestation(attestation: Attestation, source: str) -> None:
    """Raise ConfigError for what the server would refuse at boot, when nobody can mend it."""
    if attestation.roots is not None and not attestation.roots:
        raise ConfigError(source, "attestation.roots", "without any root no file can be attested")
    for path in attestation.roots or ():
        if not path.startswith("/") or posixpath.normpath(path) != (path.rstrip("/") or "/"):
            raise ConfigError(source, "attestation.roots", f"path {path!r} is not absolute and plain")


def read_client_ca(path: str) -> str:
    """Return the certificates in a PEM file, and nothing else of it. Raises InputError."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        with open(path, "rb") as source:
            raw = source.read(MAX_CLIENT_CA_BYTES + 1)
    except OSError as exc:
        raise InputError("read certificates", path, describe_cause(exc)) from exc
    if b"PRIVATE KEY" in raw:
        raise InputError("use certificates", path, "it holds a private key, which must not go into an image")
    try:
        found = x509.load_pem_x509_certificates(raw[:MAX_CLIENT_CA_BYTES])
    except ValueError as exc:
        raise InputError("use certificates", path, "it is not certificates in PEM form") from exc
    return "".join(one.public_bytes(Encoding.PEM).decode() for one in found)


def render_attestation(attestation: Attestation, client_ca: str | None) -> tuple[File, ...]:
    """Return the files; none if all is as by default. `client_ca` is the content of the file that is named."""
    settings: dict[str, object] = {}
    files: list[File] = []
    for name in ("roots", "vrf_cipher_suite"):
        if getattr(attestation, name) is not None:
            settings[name] = getattr(attestation, name)
    if client_ca is not None:
        settings["client_ca"] = f"/{CLIENT_CA_PATH}"
        files.append((CLIENT_CA_PATH, client_ca.encode()))
    if attestation.proxied_port is not None:
        settings["proxied_listen"] = f"tcp://127.0.0.1:{attestation.proxied_port}"
        files.append((PROXIED_UNIT_PATH, PROXIED_UNIT.format(port=attestation.proxied_port).encode()))
    if settings:
        # JSON is YAML, and has one form
        files.append((PATH, (json.dumps(settings, indent=2) + "\n").encode()))
    return tuple(files)
