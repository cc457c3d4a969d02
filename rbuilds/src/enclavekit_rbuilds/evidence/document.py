# SPDX-License-Identifier: Apache-2.0
"""Hold an enclave's attestation document against an image that was just rebuilt, by the command `attest`.

A command and not a library: verifying documents is the work of another part, which this one does not depend on.
"""

from __future__ import annotations

import os

from enclavekit_core.errors import CommandError, InputError, VerificationError

from enclavekit_rbuilds.base.command import run
from enclavekit_rbuilds.evidence.facts import ImageFacts
from enclavekit_rbuilds.evidence.write import encode_json

NOT_VERIFIED = range(11, 20)  # by the step that failed: docs/reference/exit-codes.md
UNUSABLE = InputError.exit_code


def verify_document(path: str, facts: ImageFacts, scratch: str, at: str | None, dev_root: str | None) -> None:
    """Verify that the enclave behind the document at `path` runs the image.

    Args:
        at: as `attest verify --at` takes it; None: the document must be fresh.
        dev_root: PEM of a development root to trust instead of AWS's; None trusts AWS's alone.
    Raises: VerificationError; InputError if `attest` is missing or the document unusable.
    """
    measurements = os.path.join(scratch, "expected.pcr.json")
    with open(measurements, "wb") as out:
        out.write(encode_json({"Measurements": facts.measurements}))
    words = ["attest", "verify", path, "--measurements", measurements]
    if at is not None:
        words += ["--at", at]
    if dev_root is not None:
        words += ["--insecure-dev-root", dev_root]
    try:
        run(words, f"verify {path}", needed_for="it verifies attestation documents (enclavekit-attestation)")
    except CommandError as exc:
        reason = exc.stderr_tail.strip().splitlines()[-1] if exc.stderr_tail.strip() else "no message"
        if exc.returncode in NOT_VERIFIED:
            raise VerificationError(path, reason) from exc
        if exc.returncode == UNUSABLE:
            raise InputError("verify", path, reason) from exc
        raise
