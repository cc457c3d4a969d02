# SPDX-License-Identifier: Apache-2.0
"""The keys of a client's Initial packets, which follow from what everybody on the way sees, and what they open. Pure.

Source: RFC 9001 sections 5.2 to 5.4 and appendix A, RFC 9369 section 3.3 and appendix A.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from enclavekit_pf_proxy.quic.packets import V1, V2, LongPacket

SALTS = {
    V1: bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"),
    V2: bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"),
}
PREFIXES = {V1: b"quic ", V2: b"quicv2 "}
KEY_BYTES, IV_BYTES = 16, 12  # AES-128-GCM, whatever the connection goes on with
SAMPLE_BYTES, SAMPLE_AFTER = 16, 4  # as if every packet number had four bytes
NUMBER_BITS, LONG_HEADER_BITS = 0x03, 0x0F  # of the first byte: length of the number less one; what is encrypted
MAX_CACHED = 512


@dataclass(frozen=True, slots=True)
class InitialKeys:
    aead: AESGCM
    iv: bytes
    header: CipherContext


@lru_cache(maxsize=MAX_CACHED)
def derive_keys(version: int, first_id: bytes) -> InitialKeys:
    """Return the client's keys. `first_id`: the destination's connection id in its first packet, or after a Retry."""
    secret = _expand(hmac.digest(SALTS[version], first_id, sha256), b"client in", sha256().digest_size)
    prefix = PREFIXES[version]
    header = Cipher(AES(_expand(secret, prefix + b"hp", KEY_BYTES)), ECB()).encryptor()  # noqa: S305 - one block
    aead = AESGCM(_expand(secret, prefix + b"key", KEY_BYTES))
    return InitialKeys(aead, _expand(secret, prefix + b"iv", IV_BYTES), header)


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446 section 7.1, of one block and without a context."""
    label = b"tls13 " + label
    info = size.to_bytes(2, "big") + bytes([len(label)]) + label + b"\0"
    return hmac.digest(secret, info + b"\1", sha256)[:size]


def open_packet(packet: LongPacket, keys: InitialKeys, largest: int) -> tuple[int, bytes] | None:
    """Return the number and the frames of an Initial packet; None if these are not its keys.

    Of a packet number only the low bytes are sent, and the rest follows from `largest`, the largest that the server has
    got (-1: none). It may have got fewer than were passed on: a number that would then be another one is not
    accepted. Clients come nowhere near: they send a handful of Initial packets, numbered from 0.
    """
    sample_at = packet.number_at + SAMPLE_AFTER
    sample = packet.data[sample_at : sample_at + SAMPLE_BYTES]
    if len(sample) < SAMPLE_BYTES:
        return None
    mask = keys.header.update(sample)
    first = packet.data[0] ^ mask[0] & LONG_HEADER_BITS
    size = 1 + (first & NUMBER_BITS)
    number_bytes = bytes(a ^ b for a, b in zip(packet.data[packet.number_at :][:size], mask[1 : 1 + size], strict=True))
    if largest + 2 > 1 << (8 * size - 1):
        return None
    number = int.from_bytes(number_bytes, "big")
    end = packet.number_at + size
    header = bytes([first]) + packet.data[1 : packet.number_at] + number_bytes
    nonce = int.from_bytes(keys.iv, "big") ^ number
    try:
        return number, keys.aead.decrypt(nonce.to_bytes(IV_BYTES, "big"), packet.data[end:], header)
    except InvalidTag:
        return None
