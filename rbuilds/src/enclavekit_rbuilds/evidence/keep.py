# SPDX-License-Identifier: Apache-2.0
"""Images and the evidence beside them, copied: each file whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.evidence.facts import EvidencePaths, evidence_paths


def keep_images(scratch: str, name: str, directory: str) -> list[str]:
    """Copy what was built to `directory`, as first.eif and second.eif with their evidence. Raises InputError."""
    kept = []
    try:
        os.makedirs(directory, exist_ok=True)
        for which in ("first", "second"):
            image = os.path.join(scratch, which, name)
            if os.path.exists(image):
                kept.append(os.path.join(directory, f"{which}.eif"))
                place_image(image, kept[-1])
    except OSError as exc:
        raise InputError("write", directory, describe_cause(exc)) from exc
    return kept


def place_image(image: str, target: str) -> None:
    """Copy an image and the evidence beside it to `target`, each file whole or not at all. Raises InputError."""
    pairs = [
        (image, target),
        *zip(evidence_files(evidence_paths(image)), evidence_files(evidence_paths(target)), strict=True),
    ]
    for source, place in pairs:
        if not os.path.exists(source):
            continue
        descriptor, part = tempfile.mkstemp(prefix=".rbuilds-", dir=os.path.dirname(os.path.abspath(place)))
        os.close(descriptor)
        try:
            shutil.copyfile(source, part)
            os.chmod(part, 0o644)
            os.rename(part, place)
        except OSError as exc:
            os.unlink(part)
            raise InputError("write", place, describe_cause(exc)) from exc


def evidence_files(paths: EvidencePaths) -> tuple[str, str, str]:
    """Return the files of evidence, in an order that is always the same."""
    return paths.pcrs, paths.sbom, paths.provenance
