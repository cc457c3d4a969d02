# SPDX-License-Identifier: Apache-2.0
"""The JSON schema of the manifest, made from its types. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from enclavekit_rbuilds.manifest.model import Manifest

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def render_schema() -> str:
    """Return the schema as a JSON document that ends with a newline."""
    schema: dict[str, Any] = {"$schema": DIALECT, "title": "enclave.yaml", **msgspec.json.schema(Manifest)}
    for definition in schema["$defs"].values():
        # a docstring's line breaks are those of the source
        definition["description"] = re.sub(r"\s+", " ", definition["description"]).strip()
    app = schema["$defs"]["AppSource"]
    app["oneOf"] = [{"required": [name]} for name in ("dockerfile", "archive", "rootfs")]
    schema["$defs"]["Signing"]["oneOf"] = [{"required": [name]} for name in ("key", "kms_key")]
    return json.dumps(schema, indent=2) + "\n"
