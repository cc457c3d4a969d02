# SPDX-License-Identifier: Apache-2.0
"""How `attest` ends, by the step that failed; the table of docs/reference/exit-codes.md. Pure."""

from __future__ import annotations

from enclavekit_attestation.report import StepName

EXIT_CODES = {
    StepName.FORMAT: (11, "not a well-formed document"),
    StepName.CHAIN: (12, "certificates expired, or not of a trusted root"),
    StepName.SIGNATURE: (13, "signature of another key, or over other bytes"),
    StepName.FRESHNESS: (14, "too old, or of the future"),
    StepName.NONCE: (15, "another nonce, or none"),
    StepName.DEBUG: (16, "debug mode: zero PCRs"),
    StepName.PCRS: (17, "other PCRs than expected"),
    StepName.USER_DATA: (18, "user_data not as the policy demands"),
    StepName.BINDING: (19, "made for another TLS key or service"),
}
FILE_EXIT_CODE, PROOF_EXIT_CODE = 20, 21
OF_FILES = {
    FILE_EXIT_CODE: "the file in the enclave is another (attest file)",
    PROOF_EXIT_CODE: "its VRF proof does not hold (attest file)",
}


def exit_code_of(step: str) -> int:
    return EXIT_CODES[StepName(step)][0]


def help_text() -> str:
    """Return the table for --help."""
    rows = [
        (0, "verified: every check that was asked for held"),
        (2, "the command line or an input file cannot be used"),
        (3, "no connection, or no evidence at the other end"),
        *((code, f"not verified: {meaning}") for code, meaning in EXIT_CODES.values()),
        *((code, f"not verified: {meaning}") for code, meaning in OF_FILES.items()),
    ]
    return "exit codes:\n" + "".join(f"  {code:<3}{meaning}\n" for code, meaning in rows)
