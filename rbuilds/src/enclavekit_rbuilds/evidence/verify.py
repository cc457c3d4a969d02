# SPDX-License-Identifier: Apache-2.0
"""Check that the evidence beside an image is about that image: hash and PCRs in each file, and the files bound.

This finds a mix-up and a file that was changed alone. It does not say who wrote the evidence: that is what a signature
over the statement is for, or getting it from somebody one trusts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.evidence.facts import PCR_NAME, EvidencePaths, ImageFacts
from enclavekit_rbuilds.evidence.provenance import PREDICATE_TYPE, STATEMENT_TYPE, make_subjects
from enclavekit_rbuilds.evidence.sbom import PROPERTY

MAX_EVIDENCE_BYTES = 64 * 1024 * 1024  # a bill of some hundred thousand components; ours have a few hundred


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was compared."""

    file: str
    what: str
    holds: bool
    stated: Any = None
    actual: Any = None


def check_evidence(facts: ImageFacts, paths: EvidencePaths) -> list[Check]:
    """Compare the three files with the image. Raises InputError for one that is missing or not what it should be."""
    raw = {path: _read(path) for path in (paths.pcrs, paths.sbom, paths.provenance)}
    return [
        *check_pcrs(facts, _parse(paths.pcrs, raw[paths.pcrs]), paths.pcrs),
        *check_sbom(facts, _parse(paths.sbom, raw[paths.sbom]), paths.sbom),
        *check_statement(
            facts,
            _parse(paths.provenance, raw[paths.provenance]),
            paths.provenance,
            {paths.pcrs: raw[paths.pcrs], paths.sbom: raw[paths.sbom]},
        ),
    ]


def read_pcrs(path: str) -> dict[str, str]:
    """Return the registers that a file in the shape of `describe-eif` states. Raises InputError."""
    return _pcrs_of(_parse(path, _read(path)), path)


def check_pcrs(facts: ImageFacts, document: dict[str, Any], path: str) -> Iterator[Check]:
    """Compare `{"Measurements": {"PCR0": ...}}` with the image."""
    yield from compare_pcrs(path, _pcrs_of(document, path), facts.pcrs())


def compare_pcrs(path: str, stated: dict[str, str], actual: dict[str, str]) -> Iterator[Check]:
    """Compare registers; one that only one side has does not hold."""
    for name in sorted(stated.keys() | actual.keys(), key=lambda name: int(name[3:])):
        left, right = stated.get(name), actual.get(name)
        yield Check(path, name, left == right, left, right)


def check_sbom(facts: ImageFacts, document: dict[str, Any], path: str) -> Iterator[Check]:
    """Compare the component that the bill is about with the image."""
    if document.get("bomFormat") != "CycloneDX":
        raise InputError("read", path, "it is not a CycloneDX bill of materials")
    about = _dig(document, path, "metadata", "component")
    hashes = [item.get("content") for item in _objects(about, path, "hashes") if item.get("alg") == "SHA-256"]
    yield Check(path, "sha256", hashes == [facts.sha256], hashes[0] if hashes else None, facts.sha256)
    names = ((str(item.get("name", "")), item.get("value")) for item in _objects(about, path, "properties"))
    stated = {name.removeprefix(PROPERTY): str(value) for name, value in names if name.startswith(f"{PROPERTY}PCR")}
    yield from compare_pcrs(path, {name: value for name, value in stated.items() if _is_pcr(name)}, facts.pcrs())


def check_statement(
    facts: ImageFacts, document: dict[str, Any], path: str, byproducts: dict[str, bytes]
) -> Iterator[Check]:
    """Compare the statement's subjects with the image, and its byproducts with the other files."""
    if document.get("_type") != STATEMENT_TYPE or document.get("predicateType") != PREDICATE_TYPE:
        raise InputError("read", path, "it is not an in-toto Statement v1 with SLSA Provenance v1")
    stated = {str(item.get("name")): item.get("digest") for item in _objects(document, path, "subject")}
    wanted = {item["name"]: item["digest"] for item in make_subjects(facts)}
    wanted_file = wanted.pop(facts.file)
    # the file may have been renamed since: its hash counts
    files = [digest for name, digest in stated.items() if not _is_pcr(name)]
    yield Check(path, "sha256", files == [wanted_file], files, wanted_file)
    for name in sorted(wanted.keys() | {name for name in stated if _is_pcr(name)}):
        yield Check(path, name, stated.get(name) == wanted.get(name), stated.get(name), wanted.get(name))
    details = _dig(document, path, "predicate", "runDetails")
    bound = sorted(str(item.get("digest")) for item in _objects(details, path, "byproducts"))
    for name, content in byproducts.items():
        digest = {"sha256": hashlib.sha256(content).hexdigest()}
        yield Check(path, f"hash of {os.path.basename(name)}", str(digest) in bound, bound, digest)


def _is_pcr(name: str) -> bool:
    return PCR_NAME.fullmatch(name) is not None


def _pcrs_of(document: dict[str, Any], path: str) -> dict[str, str]:
    table = document.get("Measurements", document)
    if not isinstance(table, dict):
        raise InputError("read", path, "Measurements is not an object")
    found = {name: value for name, value in table.items() if _is_pcr(name)}
    if not found or not all(isinstance(value, str) for value in found.values()):
        raise InputError("read", path, "it has no PCRs in the form that `eif describe` prints")
    return {name: value.lower() for name, value in found.items()}


def _dig(document: dict[str, Any], path: str, *names: str) -> dict[str, Any]:
    here: Any = document
    for name in names:
        here = here.get(name) if isinstance(here, dict) else None
    if not isinstance(here, dict):
        raise InputError("read", path, f"it has no object {'.'.join(names)}")
    return here


def _objects(document: dict[str, Any], path: str, name: str) -> list[dict[str, Any]]:
    found = document.get(name)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise InputError("read", path, f"{name} is not a list of objects")
    return found


def _read(path: str) -> bytes:
    try:
        # no waiting for a writer where somebody put a named pipe
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as source:
            content = source.read(MAX_EVIDENCE_BYTES + 1)
    except OSError as exc:
        raise InputError("read", path, describe_cause(exc)) from exc
    if len(content or b"") > MAX_EVIDENCE_BYTES:
        raise InputError("read", path, f"it is larger than {MAX_EVIDENCE_BYTES} bytes")
    return content or b""


def _parse(path: str, content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise InputError("read", path, f"it is not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise InputError("read", path, "it is not a JSON object")
    return document
