# SPDX-License-Identifier: Apache-2.0
"""What a policy may demand of `user_data`. Pure.

Either it is exactly some bytes, or it is a JSON object whose fields are as the schema says. JSON with a key named
twice is refused: which of the two counts would be the reader's choice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from enclavekit_core.errors import ConfigError, VerificationError

TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str,
    "integer": int,
    "boolean": bool,
    "object": dict,
    "array": list,
}
WHAT = "user_data"


@dataclass(frozen=True, slots=True)
class FieldDemand:
    """What one field must be; demands add up."""

    equals: str | int | bool | None = None
    matches: str | None = None
    """A regular expression for the whole of a string."""
    type: str | None = None
    """A key of TYPES."""
    optional: bool = False

    def __post_init__(self) -> None:
        if self.type is not None and self.type not in TYPES:
            raise ConfigError("policy", WHAT, f"{self.type!r} is none of {', '.join(TYPES)}")
        try:
            re.compile(self.matches or "")
        except re.error as exc:
            raise ConfigError("policy", WHAT, f"{self.matches!r} is not a regular expression: {exc}") from exc

    def mismatch(self, value: object) -> str | None:
        """Return why `value` is not as demanded, None if it is."""
        if self.equals is not None and (type(value) is not type(self.equals) or value != self.equals):
            return f"is {_shown(value)}, expected {_shown(self.equals)}"
        if self.matches is not None and not (isinstance(value, str) and re.fullmatch(self.matches, value)):
            return f"is {_shown(value)}, which does not match {self.matches!r}"
        if self.type is not None and not _is_of(value, self.type):
            return f"is {_shown(value)}, which is no {self.type}"
        return None


@dataclass(frozen=True, slots=True)
class UserDataDemand:
    """A schema for `user_data`."""

    exactly: bytes | None = None
    fields: Mapping[str, FieldDemand] = field(default_factory=dict)
    """Of a JSON object; used unless `exactly` is given."""
    other_fields: bool = False
    """Whether the object may have fields that are not named."""

    def check(self, user_data: bytes | None) -> str:
        """Return what held, for people. Raises VerificationError."""
        if user_data is None:
            raise VerificationError(WHAT, "the document has none")
        if self.exactly is not None:
            if user_data != self.exactly:
                reason = f"it is {_shown(user_data.hex())}, expected {_shown(self.exactly.hex())}"
                raise VerificationError(WHAT, reason, self.exactly, user_data)
            return f"equal, {len(user_data)} bytes"
        found = _parse_object(user_data)
        for name, demand in self.fields.items():
            if name not in found:
                if not demand.optional:
                    raise VerificationError(WHAT, f"it has no field {name!r}", actual=user_data)
            elif (mismatch := demand.mismatch(found[name])) is not None:
                raise VerificationError(WHAT, f"its field {name!r} {mismatch}", actual=user_data)
        if not self.other_fields and (others := sorted(set(found) - set(self.fields))):
            raise VerificationError(WHAT, f"it has a field {others[0][:64]!r} that is not expected", actual=user_data)
        return f"as expected: {', '.join(self.fields) or 'a JSON object'}"


def _parse_object(user_data: bytes) -> dict[str, object]:
    try:
        found = json.loads(user_data.decode(), object_pairs_hook=_refuse_duplicates)
    except (ValueError, RecursionError) as exc:
        raise VerificationError(WHAT, "it is not JSON, or JSON with a key twice", actual=user_data) from exc
    if not isinstance(found, dict):
        raise VerificationError(WHAT, "it is not a JSON object", actual=user_data)
    return found


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key is there twice")
    return table


def _is_of(value: object, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 100 else text[:100] + "..."
