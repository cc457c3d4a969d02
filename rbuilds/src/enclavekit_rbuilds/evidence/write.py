# SPDX-License-Identifier: Apache-2.0
"""Write an image's evidence beside it: measurements, bill of materials, provenance; all three or none."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.evidence import DEFAULT_BUILDER
from enclavekit_rbuilds.evidence.facts import EvidencePaths, ImageFacts, evidence_paths, read_facts
from enclavekit_rbuilds.evidence.provenance import make_statement
from enclavekit_rbuilds.evidence.sbom import make_sbom

DISTRIBUTION = "enclavekit-rbuilds"


@dataclass(frozen=True, slots=True)
class EvidenceChoice:
    """What a user decides about the evidence of a build."""

    builder_id: str = DEFAULT_BUILDER
    with_time: bool = False


def write_evidence(inputs: Sequence[Input], request: Any, target: str, started: float) -> list[str]:
    """Write the evidence of the image at `target`, as `request.evidence` wants it; return the files.

    Args: started: when the build began, in seconds since 1970; told only if the request asks for it.
    Raises: InputError; then there is no evidence beside the image, not even that of an image that was there before:
    it would be evidence of something else.
    """
    choice: EvidenceChoice | None = request.evidence
    if choice is None:
        remove_evidence(target)
        return []
    paths = evidence_paths(target)
    times = (_rfc3339(started), _rfc3339(time.time())) if choice.with_time else None
    try:
        contents = make_evidence(read_facts(target), request, inputs, paths, builder_id=choice.builder_id, times=times)
        _place(contents)
    except BaseException:
        remove_evidence(target)
        raise
    return list(contents)


def make_evidence(
    facts: ImageFacts,
    request: Any,
    inputs: Sequence[Input],
    paths: EvidencePaths,
    *,
    builder_id: str = DEFAULT_BUILDER,
    times: tuple[str, str] | None = None,
) -> dict[str, bytes]:
    """Return path -> content of the three files."""
    version = metadata.version(DISTRIBUTION)
    pcrs = encode_json({"Measurements": facts.measurements})
    sbom = encode_json(make_sbom(facts, inputs, version))
    statement = make_statement(
        facts,
        request,
        inputs,
        version,
        byproducts={os.path.basename(paths.pcrs): pcrs, os.path.basename(paths.sbom): sbom},
        builder_id=builder_id,
        times=times,
    )
    return {paths.pcrs: pcrs, paths.sbom: sbom, paths.provenance: encode_json(statement)}


def _rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def encode_json(value: Any) -> bytes:
    """Return `value` as indented ASCII JSON with a newline: readable in a diff, the same in every locale."""
    return json.dumps(value, indent=2).encode("ascii") + b"\n"


def remove_evidence(image: str) -> None:
    """Remove what evidence lies beside `image`."""
    paths = evidence_paths(image)
    for path in (paths.pcrs, paths.sbom, paths.provenance):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
            os.unlink(path)


def _place(contents: dict[str, bytes]) -> None:
    """Write all files under other names first, so that a full disk is noticed before anything is replaced."""
    written: list[tuple[str, str]] = []
    try:
        for path, content in contents.items():
            try:
                part = os.path.join(os.path.dirname(path), f".rbuilds-{secrets.token_hex(8)}")
                with open(part, "xb") as out:
                    written.append((part, path))
                    out.write(content)
            except OSError as exc:
                raise InputError("write", path, describe_cause(exc)) from exc
        for part, path in written:
            try:
                os.rename(part, path)
            except OSError as exc:
                raise InputError("write", path, describe_cause(exc)) from exc
    finally:
        for part, _ in written:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
