# SPDX-License-Identifier: Apache-2.0
"""The bill of materials: what is in an image, as CycloneDX 1.6 JSON. Pure.

Deterministic, without a clock: the serial number follows from the hash of the image.

Source: CycloneDX 1.6 (ECMA-424); package-url specification (types deb, pypi).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import quote

from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.evidence.facts import ImageFacts

SPEC_VERSION = "1.6"
SCHEMA = f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json"
SERIAL_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:enclavekit:sbom")
IMAGE_REF = "image"
PROPERTY = "enclavekit:"
DEBIAN_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}
COMPONENT_TYPES = {
    "debian": "library",
    "wheel": "library",
    "own": "library",
    "kernel": "operating-system",
    "app": "application",
    "file": "file",
}


def make_sbom(facts: ImageFacts, inputs: Sequence[Input], tool_version: str) -> dict[str, Any]:
    """Return the bill of materials of an image that was made of `inputs`."""
    components = _unique([_component(item, facts.arch) for item in sort_inputs(inputs)])
    return {
        "$schema": SCHEMA,
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": uuid.uuid5(SERIAL_NAMESPACE, facts.sha256).urn,
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {"components": [{"type": "application", "name": "rbuilds", "version": tool_version}]},
            "component": {
                "type": "firmware",
                "bom-ref": IMAGE_REF,
                "name": facts.name,
                "version": facts.version,
                "hashes": _hashes(facts.sha256),
                "properties": [
                    {"name": f"{PROPERTY}{name}", "value": value} for name, value in sorted(facts.pcrs().items())
                ],
            },
        },
        "components": components,
        "dependencies": [{"ref": IMAGE_REF, "dependsOn": [component["bom-ref"] for component in components]}],
    }


def sort_inputs(inputs: Iterable[Input]) -> list[Input]:
    """Return the inputs in an order that does not depend on how the build came by them."""
    return sorted(inputs, key=lambda item: (item.kind, item.name, item.version, item.sha256))


def package_url(item: Input, arch: str) -> str | None:
    """Return the package URL of what a package registry has; None for anything else."""
    version = quote(item.version, safe="")
    if item.kind == "debian":
        return f"pkg:deb/debian/{quote(item.name.lower(), safe='')}@{version}?arch={DEBIAN_ARCHES[arch]}"
    if item.kind == "wheel":
        return f"pkg:pypi/{quote(re.sub(r'[-_.]+', '-', item.name).lower(), safe='')}@{version}"
    return None


def _component(item: Input, arch: str) -> dict[str, Any]:
    url = package_url(item, arch)
    component: dict[str, Any] = {
        "type": COMPONENT_TYPES[item.kind],
        "bom-ref": url or f"{item.kind}:{item.name}@{item.version}",
        "name": item.name,
    }
    if item.version:
        component["version"] = item.version
    if item.sha256:
        component["hashes"] = _hashes(item.sha256)
    if url:
        component["purl"] = url
    properties = [{"name": f"{PROPERTY}kind", "value": item.kind}]
    if item.source:
        properties.append({"name": f"{PROPERTY}source", "value": item.source})
    if item.size:
        properties.append({"name": f"{PROPERTY}size", "value": str(item.size)})
    component["properties"] = properties
    return component


def _unique(components: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give each component a reference of its own: two layers of an app may have one name."""
    seen: dict[str, int] = {}
    for component in components:
        reference = component["bom-ref"]
        seen[reference] = count = seen.get(reference, 0) + 1
        if count > 1:
            component["bom-ref"] = f"{reference}#{count}"
    return components


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]
