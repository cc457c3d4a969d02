# SPDX-License-Identifier: Apache-2.0
"""Say what an image is, in the JSON of `nitro-cli describe-eif`: same keys, same order, same spelling."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

from enclavekit_core.errors import VerificationError

from enclavekit_eif.measure import measure
from enclavekit_eif.reader import Eif

if TYPE_CHECKING:
    from cryptography import x509

MONTHS = (
    "Jan",
    "Feb",
    "Mar",
    "Apr",
    "May",
    "Jun",
    "Jul",
    "Aug",
    "Sep",
    "Oct",
    "Nov",
    "Dec",
)  # strftime follows the locale
LONG_NAMES = {  # as OpenSSL spells them; others are shown as dotted numbers
    "2.5.4.3": "commonName",
    "2.5.4.4": "surname",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "countryName",
    "2.5.4.7": "localityName",
    "2.5.4.8": "stateOrProvinceName",
    "2.5.4.9": "streetAddress",
    "2.5.4.10": "organizationName",
    "2.5.4.11": "organizationalUnitName",
    "2.5.4.12": "title",
    "2.5.4.42": "givenName",
    "1.2.840.113549.1.9.1": "emailAddress",
    "0.9.2342.19200300.100.1.25": "domainComponent",
}
ALGORITHM_NAMES = {
    "1.2.840.10045.4.3.2": "ecdsa-with-SHA256",
    "1.2.840.10045.4.3.3": "ecdsa-with-SHA384",
    "1.2.840.10045.4.3.4": "ecdsa-with-SHA512",
    "1.2.840.113549.1.1.11": "sha256WithRSAEncryption",
    "1.2.840.113549.1.1.12": "sha384WithRSAEncryption",
    "1.2.840.113549.1.1.13": "sha512WithRSAEncryption",
}


def describe_eif(eif: Eif) -> dict[str, Any]:
    """Return the description of an image.

    A wrong CRC and a signature that does not verify are reported (`CheckCRC`, `SignatureCheck`), not raised.

    Raises: InputError if the file cannot be read or its signature section is malformed.
    """
    measurements = measure(eif)
    described: dict[str, Any] = {
        "EifVersion": eif.version,
        "Measurements": measurements.to_json(),
        "IsSigned": eif.signature is not None,
    }
    if eif.signature is None:
        described["CheckCRC"] = measurements.crc_ok
    else:
        from enclavekit_eif.signature import read_signature  # cryptography: not needed for unsigned images

        signature = read_signature(eif)
        described["SigningCertificate"] = describe_certificate(signature.certificate())
        described["CheckCRC"] = measurements.crc_ok
        described["SignatureCheck"] = _is_verified(signature, measurements.pcr0)
    return described | describe_metadata(eif)


def describe_metadata(eif: Eif) -> dict[str, Any]:
    """Return ImageName, ImageVersion and Metadata; nothing before version 4.

    CustomMetadata is flattened into Metadata, as nitro-cli does; where it is not an object it keeps its name (nitro-cli
    fails on it).
    """
    if eif.metadata is None:
        return {}
    shown = {**eif.metadata["BuildMetadata"], "DockerInfo": eif.metadata["DockerInfo"]}
    custom = eif.metadata["CustomMetadata"]
    if isinstance(custom, dict):
        shown = {**shown, **{key: value for key, value in custom.items() if key not in shown}}
    elif custom is not None:
        shown["CustomMetadata"] = custom
    return {"ImageName": eif.metadata["ImageName"], "ImageVersion": eif.metadata["ImageVersion"], "Metadata": shown}


def describe_certificate(certificate: x509.Certificate) -> dict[str, Any]:
    """Return the `SigningCertificate` object; its name is that of the issuer."""
    issuer = {}
    for attribute in certificate.issuer:
        oid = attribute.oid.dotted_string
        value = attribute.value
        issuer[LONG_NAMES.get(oid, oid)] = value if isinstance(value, str) else value.hex()
    oid = certificate.signature_algorithm_oid.dotted_string
    return {
        "IssuerName": issuer,
        "Algorithm": ALGORITHM_NAMES.get(oid, oid),
        "NotBefore": _openssl_time(certificate.not_valid_before_utc),
        "NotAfter": _openssl_time(certificate.not_valid_after_utc),
        "Signature": certificate.signature.hex(":").upper(),
    }


def _openssl_time(moment: datetime.datetime) -> str:
    return f"{MONTHS[moment.month - 1]} {moment.day:2} {moment:%H:%M:%S} {moment.year} GMT"


def _is_verified(signature: Any, pcr0: bytes) -> bool:
    from enclavekit_eif.signature import verify_signature

    try:
        verify_signature(signature, pcr0)
    except VerificationError:
        return False
    return True
