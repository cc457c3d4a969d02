# SPDX-License-Identifier: Apache-2.0
"""What a verified document must say to be accepted.

A policy file is YAML (or JSON): `pcrs: {0: <hex>, 8: <hex>}`, `allow_debug: false`, `max_age_s: 300`. Unknown keys are
errors. `Policy.from_measurements` takes the JSON of `eif describe`, `nitro-cli describe-eif` or `build-enclave`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from enclavekit_core.errors import ConfigError, VerificationError

from enclavekit_attestation.document import CODE_PCRS, MAX_PCRS, SIGNING_PCR, AttestationDocument

PCR_BYTES = 48  # SHA-384, the only digest of the NSM
ZERO_PCR = bytes(PCR_BYTES)
DEFAULT_MAX_AGE_S = 300.0  # live checks: long enough for a slow link, far below the leaf's three hours
DEFAULT_CLOCK_SKEW_S = 60.0  # how far the NSM's clock may be ahead of ours
MAX_MEASUREMENTS_BYTES = 1024 * 1024  # describe-eif output with its metadata is a few KiB
PCR_NAME = re.compile(r"(?:PCR)?(0|[1-9][0-9]?)\Z", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True, slots=True)
class Policy:
    """Expected PCRs and freshness. Raises ConfigError when made of values that no document can or may meet."""

    pcrs: dict[int, bytes] = field(default_factory=dict)
    """Expected value by index; those not named are not compared. See `identifies_code`."""
    allow_debug: bool = False
    """Accept an enclave in debug mode, whose PCR0..2 are zero: proves nothing about the code inside."""
    max_age_s: float | None = None
    """Oldest document accepted, seconds. None: DEFAULT_MAX_AGE_S for live checks, no limit for archival ones."""
    clock_skew_s: float = DEFAULT_CLOCK_SKEW_S
    """How far a document's timestamp may lie in the future, seconds."""

    def __post_init__(self) -> None:
        for index, value in self.pcrs.items():
            if not 0 <= index < MAX_PCRS:
                raise ConfigError("policy", f"PCR{index}", f"the index is not from 0 to {MAX_PCRS - 1}")
            if len(value) != PCR_BYTES:
                raise ConfigError("policy", f"PCR{index}", f"it has {len(value)} bytes instead of {PCR_BYTES}")
            if index in CODE_PCRS and value == ZERO_PCR:
                raise ConfigError("policy", f"PCR{index}", "zero is the value of every debug enclave, not of an image")
        if self.max_age_s is not None and not 0 < self.max_age_s < float("inf"):
            raise ConfigError("policy", "max_age_s", "it is not a positive number of seconds")
        if not 0 <= self.clock_skew_s < float("inf"):
            raise ConfigError("policy", "clock_skew_s", "it is not a number of seconds")

    @property
    def identifies_code(self) -> bool:
        """Whether the expected PCRs pin the whole image: PCR0, or both PCR1 and PCR2."""
        return 0 in self.pcrs or (1 in self.pcrs and 2 in self.pcrs)

    @classmethod
    def from_measurements(cls, measurements: Mapping[str, Any], source: str = "measurements") -> Policy:
        """Return a policy that expects the PCRs of an image.

        Args:
            measurements: `{"PCR0": hex, ...}`, or an object that has this under "Measurements".
            source: what to name in errors.
        Raises:
            ConfigError
        """
        table = measurements.get("Measurements", measurements)
        if not isinstance(table, Mapping):
            raise ConfigError(source, "Measurements", "it is not an object")
        policy = cls(parse_pcrs({name: value for name, value in table.items() if name != "HashAlgorithm"}, source))
        if not policy.identifies_code:
            raise ConfigError(source, "", "it has no PCR0")
        return policy

    def with_pcrs(self, more: Mapping[int, bytes]) -> Policy:
        """Return this policy with further expectations. Raises ConfigError where the two contradict each other."""
        for index, value in more.items():
            if self.pcrs.get(index, value) != value:
                raise ConfigError("policy", f"PCR{index}", "two different values are expected")
        return replace(self, pcrs={**self.pcrs, **more})

    def check_pcrs(self, document: AttestationDocument) -> list[int]:
        """Compare the PCRs of an authenticated document; return the indices that were compared and equal.

        Raises:
            VerificationError: debug mode not allowed, PCR0..2 missing or partly zero, a value missing or different.
        """
        missing = [index for index in CODE_PCRS if index not in document.pcrs]
        if missing:
            raise VerificationError("PCRs", f"the document has no PCR{missing[0]}")
        zero = [index for index in CODE_PCRS if not any(document.pcrs[index])]
        if zero and not document.is_debug:
            raise VerificationError("PCRs", f"PCR{zero[0]} is zero, which no image has")
        if document.is_debug and not self.allow_debug:
            raise VerificationError("PCRs", "PCR0, PCR1 and PCR2 are zero: the enclave runs in debug mode")
        compared = []
        for index, expected in sorted(self.pcrs.items()):
            actual = document.pcrs.get(index)
            if document.is_debug and index in (*CODE_PCRS, SIGNING_PCR) and actual is not None and not any(actual):
                continue  # debug mode hides them; it was allowed above, and the result says so
            if actual != expected:
                shown = "missing" if actual is None else actual.hex()
                reason = f"PCR{index} is {shown}, expected {expected.hex()}"
                raise VerificationError("PCRs", reason, expected=expected, actual=actual)
            compared.append(index)
        return compared

    def max_age_ms(self, *, archival: bool) -> int | None:
        """Return the greatest age in milliseconds; None means no limit."""
        if self.max_age_s is not None:
            return int(self.max_age_s * 1000)
        return None if archival else int(DEFAULT_MAX_AGE_S * 1000)


def parse_pcr(name: object, value: object, source: str = "policy") -> tuple[int, bytes]:
    """Parse one expectation: `name` is "0", "PCR0" or 0, `value` 96 hex digits. Raises ConfigError."""
    match = PCR_NAME.match(str(name))
    if match is None or isinstance(name, bool):
        raise ConfigError(source, str(name), "it is not the name of a PCR")
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-fA-F]{96}", value):
        raise ConfigError(source, str(name), f"its value is not {2 * PCR_BYTES} hex digits")
    return int(match[1]), bytes.fromhex(value)


def parse_pcrs(table: Mapping[Any, object], source: str = "policy") -> dict[int, bytes]:
    """Parse a map of expectations. Raises ConfigError, also if one PCR is named twice."""
    pcrs: dict[int, bytes] = {}
    for name, text in table.items():
        index, value = parse_pcr(name, text, source)
        if index in pcrs:
            raise ConfigError(source, str(name), "it is named twice")
        pcrs[index] = value
    return pcrs


def load_policy(path: str) -> Policy:
    """Read a policy file. Raises ConfigError."""
    from enclavekit_attestation.policy_file import PolicyFile, load_config

    loaded = load_config(PolicyFile, path)
    skew = DEFAULT_CLOCK_SKEW_S if loaded.clock_skew_s is None else loaded.clock_skew_s
    return Policy(parse_pcrs(loaded.pcrs, path), loaded.allow_debug, loaded.max_age_s, skew)


def load_measurements(path: str) -> Policy:
    """Read the JSON of `eif describe` or of nitro-cli. Raises ConfigError."""
    try:
        with open(path, "rb") as source:
            value = json.loads(source.read(MAX_MEASUREMENTS_BYTES + 1)[:MAX_MEASUREMENTS_BYTES])
    except OSError as exc:
        raise ConfigError(path, "", (exc.strerror or str(exc)).lower()) from exc
    except (ValueError, RecursionError) as exc:
        raise ConfigError(path, "", "it is not JSON") from exc
    if not isinstance(value, dict):
        raise ConfigError(path, "", "it is not a JSON object")
    return Policy.from_measurements(value, path)
