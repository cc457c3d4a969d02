# SPDX-License-Identifier: Apache-2.0
"""Attestation documents: parse, verify, policy, TLS binding."""

from enclavekit_attestation.binding import TlsIdentity, check_binding, encode_binding
from enclavekit_attestation.document import AttestationDocument, parse_document
from enclavekit_attestation.measurement import MeasurementSet
from enclavekit_attestation.policy import Policy, load_measurements, load_policy
from enclavekit_attestation.report import Mode, RefusedError, Report, Step, VerifiedDocument
from enclavekit_attestation.roots import read_insecure_dev_root
from enclavekit_attestation.verify import DOCUMENT_TIME, Binding, verify, verify_document

__all__ = [
    "DOCUMENT_TIME",
    "AttestationDocument",
    "Binding",
    "MeasurementSet",
    "Mode",
    "Policy",
    "RefusedError",
    "Report",
    "Step",
    "TlsIdentity",
    "VerifiedDocument",
    "check_binding",
    "encode_binding",
    "load_measurements",
    "load_policy",
    "parse_document",
    "read_insecure_dev_root",
    "verify",
    "verify_document",
]
