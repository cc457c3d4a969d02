# SPDX-License-Identifier: Apache-2.0
"""The parent's end of the attested way to PID 1: TLS, evidence checked against a policy, then who we are."""

from __future__ import annotations

import dataclasses
import os
import ssl
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enclavekit_core.address import VsockAddress
from enclavekit_core.errors import ConfigError, InputError, RemoteProtocolError, TransportError
from enclavekit_core.streams import connect
from enclavekit_core.tls import attested_client_context, peer_certificate_der

from enclavekit_enclave_init.initctl import channel
from enclavekit_enclave_init.initctl.framing import LENGTH, encode_frame

if TYPE_CHECKING:
    from enclavekit_attestation.caller import Identity
    from enclavekit_attestation.policy import Policy

VARIABLES = {
    "eif": "PIPELINE_EIF",
    "policy": "PIPELINE_POLICY",
    "identity": "PIPELINE_IDENTITY",
    "insecure_dev_root": "PIPELINE_INSECURE_DEV_ROOT",
}  # pipeline's: who has set them for one enters by both
HANDSHAKE_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Demands:
    """What the enclave must prove, and who we are."""

    policy: Policy
    root: bytes | None
    identity: Identity


def make_demands(
    *,
    eif: str | None,
    policy: str | None,
    pcrs: list[str],
    identity: str | None,
    insecure_dev_root: str | None,
    allow_debug: bool,
    environment: Mapping[str, str],
) -> Demands:
    """Return the demands; flags go before the environment. Raises ConfigError, InputError, VerificationError."""
    from enclavekit_attestation.caller import Identity
    from enclavekit_attestation.policy import Policy, load_policy, parse_pcr
    from enclavekit_attestation.roots import read_insecure_dev_root

    if sum(map(bool, (eif, policy, pcrs))) > 1:
        raise ConfigError("--eif, --policy and --pcr", "", "one of them says what the enclave should be")
    if not (eif or policy or pcrs):
        eif, policy = environment.get(VARIABLES["eif"]), environment.get(VARIABLES["policy"])
    if eif:
        demanded = Policy(_measure(eif))
    elif policy:
        demanded = load_policy(policy)
    elif pcrs:
        demanded = Policy(dict(parse_pcr(*_split(text), "--pcr") for text in pcrs))
    else:
        reason = "nothing says what it should be: give --eif FILE, --policy FILE or --pcr N=HEX"
        raise ConfigError("an enclave", "", reason)
    if not demanded.identifies_code:
        raise ConfigError("the policy", "", "it does not pin the image: PCR0, or PCR1 and PCR2, must be expected")
    if allow_debug:
        demanded = dataclasses.replace(demanded, allow_debug=True)
        _warn("debug mode is allowed: the parent can read the enclave's memory")
    root_path = insecure_dev_root or environment.get(VARIABLES["insecure_dev_root"])
    root = None
    if root_path:
        _warn(f"{root_path} is trusted instead of AWS's root: emulation, nothing is confidential")
        root = read_insecure_dev_root(root_path)
    prefix = identity or environment.get(VARIABLES["identity"])
    if not prefix:
        raise ConfigError("an enclave", "", "nothing says who we are: give --identity PREFIX (see pipeline keygen)")
    return Demands(demanded, root, Identity.load(prefix))


def open_attested(address: VsockAddress, demands: Demands, timeout_s: float) -> ssl.SSLSocket:
    """Return a connection to an enclave that has proven itself and let us in.

    Raises: TransportError, VerificationError before a word of ours is said, RemoteProtocolError with its refusal.
    """
    sock = connect(address, timeout_s)
    try:
        sock.settimeout(HANDSHAKE_TIMEOUT_S)
        tls = attested_client_context().wrap_socket(sock, server_hostname="enclave")
    except OSError as exc:  # ssl.SSLError is one
        sock.close()
        raise TransportError("connect to", address, exc) from exc
    try:
        _shake_hands(tls, demands)
    except OSError as exc:
        tls.close()
        raise TransportError("shake hands with", address, exc) from exc
    except BaseException:
        tls.close()
        raise
    tls.settimeout(None)
    return tls


def _shake_hands(tls: ssl.SSLSocket, demands: Demands) -> None:
    from enclavekit_attestation.binding import check_binding, spki_sha256_of
    from enclavekit_attestation.verify import verify_document

    certificate, nonce = peer_certificate_der(tls), os.urandom(channel.NONCE_BYTES)
    tls.sendall(encode_frame(channel.encode_hello(nonce)))
    server_nonce, document = channel.decode_evidence(_read_frame(tls))
    verified = verify_document(
        document, demands.policy, now_ms=time.time_ns() // 1_000_000, root=demands.root, nonce=nonce
    )
    check_binding(verified.user_data, channel.SERVICE, certificate, public_key=verified.public_key)
    signed = channel.proof_bytes(spki_sha256_of(certificate), nonce, server_nonce)
    tls.sendall(encode_frame(channel.encode_auth(demands.identity.certificate_der, demands.identity.sign(signed))))
    channel.decode_accept(_read_frame(tls))


def _read_frame(tls: ssl.SSLSocket) -> bytes:
    size = LENGTH.unpack(_read_exactly(tls, LENGTH.size))[0]
    if size > channel.MAX_HANDSHAKE_BYTES:
        raise RemoteProtocolError(f"cannot shake hands: a message of {size} bytes")
    return _read_exactly(tls, size)


def _read_exactly(tls: ssl.SSLSocket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        chunk = tls.recv(count - len(data))
        if not chunk:
            raise RemoteProtocolError("cannot shake hands: the enclave ended the connection")
        data += chunk
    return data


def _measure(path: str) -> dict[int, bytes]:
    from enclavekit_eif.measure import measure
    from enclavekit_eif.reader import read_eif

    measured = measure(read_eif(path))
    if not measured.crc_ok:
        raise InputError("use image", path, "its CRC does not match: the file is damaged")
    return {0: measured.pcr0, 1: measured.pcr1, 2: measured.pcr2}


def _split(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    return name, value


def _warn(text: str) -> None:
    print(f"initctl: warning: {text}", file=sys.stderr)
