# SPDX-License-Identifier: Apache-2.0
"""Who is in the measured list and may not enter all the same: names and key hashes in this deployment's runtime
configuration, setting PIPELINE_REVOKED. Pipeline's listener and initctl's gateway both ask here, since they share the
list.

The parent chooses these values at boot and could leave them out; whoever pins PCR16 sees that it did not. A list that
is announced by the image's schema but not there, or that is malformed, keeps everybody out: an omission must not let
in the one it was written against.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from enclavekit_core import runtime_config as rules
from enclavekit_core.errors import VerificationError

SETTING = "PIPELINE_REVOKED"
MAX_FILE_BYTES = 2 * rules.MAX_MESSAGE_BYTES
_KEY = re.compile(r"[0-9a-fA-F]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


@dataclass(frozen=True)
class Revocations:
    """Where the runtime configuration is; read at each entry, since it comes once, some time after boot."""

    schema_path: str = rules.SCHEMA_PATH
    values_path: str = rules.VALUES_PATH

    def check(self, name: str, spki_sha256: bytes) -> None:
        """Raises VerificationError if the client is revoked, or if it cannot be known whether it is."""
        schema = _read(self.schema_path)
        if schema is None or SETTING not in schema:
            return
        values = _read(self.values_path)
        if values is None:
            raise VerificationError("the caller", "the list of revoked clients has not come yet")
        names, keys = parse_revoked(values.get(SETTING))
        if name in names or spki_sha256 in keys:
            raise VerificationError("the caller", f"{name} is revoked")


def parse_revoked(value: object) -> tuple[frozenset[str], frozenset[bytes]]:
    """Return (names, SPKI hashes) of a list whose words are divided by commas or white space.

    Raises: VerificationError if any word is neither.
    """
    words = re.split(r"[\s,]+", value) if isinstance(value, str) else ["?"]
    names: set[str] = set()
    keys: set[bytes] = set()
    for word in filter(None, words):
        if _KEY.fullmatch(word):
            keys.add(bytes.fromhex(word))
        elif _NAME.fullmatch(word):
            names.add(word)
        else:
            raise _malformed()
    return frozenset(names), frozenset(keys)


def _read(path: str) -> dict[str, object] | None:
    try:
        with open(path, "rb") as source:
            value = json.loads(source.read(MAX_FILE_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise _malformed() from exc
    if not isinstance(value, dict):
        raise _malformed()
    return value


def _malformed() -> VerificationError:
    return VerificationError("the caller", "the list of revoked clients is malformed, so nobody enters")
