# SPDX-License-Identifier: Apache-2.0
"""How an image came about: an in-toto Statement v1 with SLSA Provenance v1. Pure; deterministic unless a time is given.

Paths of the builder's machine are left out: two people who build the same get the same statement.

Source: in-toto attestation framework, spec/v1/statement.md and resource_descriptor.md; SLSA, provenance v1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import msgspec

from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.evidence import DEFAULT_BUILDER
from enclavekit_rbuilds.evidence.facts import ImageFacts
from enclavekit_rbuilds.evidence.sbom import package_url, sort_inputs

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:enclavekit:rbuilds:build:v1"
SOURCES = ("dockerfile", "archive", "rootfs")
# of a build request: where something lies on this machine, or how it is got, instead of what it is. What they lead to
# is in the dependencies, by hash
LEFT_OUT = frozenset(
    {
        *(
            *SOURCES,
            "context",
            "framework_rootfs",
            "output",
            "source",
            "evidence",
            "pins",
            "origin",
            "lock",
            "no_engine_cache",
        ),
        *("path", "key", "certificate"),  # of a kernel, a signer
    }
)
PEM = "-----BEGIN "
EMPTY: tuple[Any, ...] = (None, "", [], {})


def make_statement(
    facts: ImageFacts,
    request: Any,
    inputs: Sequence[Input],
    tool_version: str,
    *,
    byproducts: Mapping[str, bytes],
    builder_id: str = DEFAULT_BUILDER,
    times: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Return the statement about an image.

    Args:
        request: the BuildRequest, a dataclass; its settings are the external parameters.
        byproducts: name -> content of the files that come with the image, bound by their hashes.
        times: begin and end of the build in RFC 3339; makes the statement differ from build to build.
    """
    metadata = {"startedOn": times[0], "finishedOn": times[1]} if times else {}
    return {
        "_type": STATEMENT_TYPE,
        "subject": make_subjects(facts),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": external_parameters(request),
                "internalParameters": {},
                "resolvedDependencies": [_dependency(item, facts.arch) for item in sort_inputs(inputs)],
            },
            "runDetails": {
                "builder": {"id": builder_id, "version": {"enclavekit-rbuilds": tool_version}},
                "metadata": metadata,
                "byproducts": [
                    {"name": name, "digest": {"sha256": hashlib.sha256(content).hexdigest()}}
                    for name, content in sorted(byproducts.items())
                ],
            },
        },
    }


def make_subjects(facts: ImageFacts) -> list[dict[str, Any]]:
    """Return what the statement is about: the file, and each register, so that an enclave's PCR finds it as well."""
    registers = [{"name": name, "digest": {"sha384": value}} for name, value in sorted(facts.pcrs().items())]
    return [{"name": facts.file, "digest": {"sha256": facts.sha256}}, *registers]


def external_parameters(request: Any) -> dict[str, Any]:
    """Return the settings of a build, without places and without what was left at its default."""
    found: dict[str, Any] = {"app": next((name for name in SOURCES if getattr(request, name, None)), "none")}
    for item in fields(request):
        value = getattr(request, item.name)
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        if value != default and (plain := _plain_field(item.name, value)) not in EMPTY:
            found[item.name] = plain
    return found


def _plain_field(name: str, value: Any) -> Any:
    if isinstance(value, str) and value.startswith(PEM):
        return {"sha256": hashlib.sha256(value.encode()).hexdigest()}
    return None if name in LEFT_OUT else _plain(value)


def _plain(value: Any) -> Any:
    """Return `value` as JSON can hold it; bytes as their hash, since they are only named here."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain({item.name: getattr(value, item.name) for item in fields(value)})
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.to_builtins(value))
    if isinstance(value, bytes):
        return {"sha256": hashlib.sha256(value).hexdigest()}
    if isinstance(value, Mapping):
        shown = {str(name): _plain_field(str(name), inner) for name, inner in sorted(value.items())}
        return {name: plain for name, plain in shown.items() if plain not in EMPTY}
    if isinstance(value, (set, frozenset)):
        return sorted(_plain(inner) for inner in value)
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _dependency(item: Input, arch: str) -> dict[str, Any]:
    described: dict[str, Any] = {"name": f"{item.kind}:{item.name}"}
    if (url := package_url(item, arch)) is not None:
        described["uri"] = url
    if item.sha256:
        described["digest"] = {"sha256": item.sha256}
    annotations = {"version": item.version, "source": item.source, "size": item.size}
    if present := {name: value for name, value in annotations.items() if value}:
        described["annotations"] = present
    return described
