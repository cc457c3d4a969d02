# SPDX-License-Identifier: Apache-2.0
"""Whether a record that was read back is evidence of this very enclave, and until when.

The bus is not trusted: a record counts only if its document is by the NSM that we have ourselves, says what a record
of this file must say, and if its proof holds under the key in it. That key is the present one's or, after a restart,
the one before: the document says which, so that the record stands for itself.
"""

from __future__ import annotations

import dataclasses
import functools

from cryptography import x509
from ecvrf import SUITES, EcvrfError
from enclavekit_attestation.document import AttestationDocument, parse_document
from enclavekit_attestation.policy import Policy
from enclavekit_attestation.verify import verify
from enclavekit_core.errors import VerificationError

from enclavekit_ra_web_srv.claims import encode_alpha
from enclavekit_ra_web_srv.records import Record


@functools.lru_cache(maxsize=64)
def _ends_ms(certificate: bytes) -> int:
    return int(x509.load_der_x509_certificate(certificate).not_valid_after_utc.timestamp() * 1000)


def expiry_ms(document: AttestationDocument) -> int:
    """Return when the first certificate of the chain ends, milliseconds since 1970 UTC."""
    return min(_ends_ms(der) for der in (document.certificate, *document.cabundle))


class RecordCheck:
    """Compares with `own`, a document that our NSM has just made. Blocks for some milliseconds: for a thread."""

    def __init__(self, own: AttestationDocument) -> None:
        self._own = own

    def check(self, record: Record, now_ms: int) -> Record:
        """Return the record with its expiry. Raises VerificationError."""
        report = verify(record.document, Policy(allow_debug=True), at=now_ms, root=self._own.cabundle[0])
        found = report.document
        assert found is not None
        if found.module_id != self._own.module_id or found.pcrs != self._own.pcrs:
            raise VerificationError("record", "its document is of another enclave")
        if found.user_data != record.claim or found.public_key != record.proof.public_key:
            raise VerificationError("record", "its document says something else")
        suite = SUITES.get(record.proof.suite)
        try:
            if suite is None:
                raise VerificationError("record", "its suite is unknown")
            suite.verify(record.proof.public_key, encode_alpha(record.path, record.digest), record.proof.proof)
        except EcvrfError as exc:
            raise VerificationError("record", str(exc)) from exc
        return dataclasses.replace(record, expires_ms=expiry_ms(parse_document(record.document)))
