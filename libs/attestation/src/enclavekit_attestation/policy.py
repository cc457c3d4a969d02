# SPDX-License-Identifier: Apache-2.0
"""What a verified document must say to be accepted. `load_policy` reads it from a file, see policy_file.

`Policy.from_measurements` takes the JSON of `eif describe`, `nitro-cli describe-eif` or `build-enclave`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from enclavekit_core.errors import ConfigError, VerificationError

from enclavekit_attestation.document import CODE_PCRS, SIGNING_PCR, AttestationDocument
from enclavekit_attestation.measurement import (
    MeasurementSet,
    check_expected,
    merge_expected,
    parse_pcr,
    parse_pcrs,
    pins_image,
    shown,
)
from enclavekit_attestation.roots import TrustedRoot
from enclavekit_attestation.user_data import UserDataDemand

__all__ = ["Policy", "load_measurements", "load_policy", "parse_pcr", "parse_pcrs"]

DEFAULT_MAX_AGE_S = 300.0  # live checks: long enough for a slow link, far below the leaf's three hours
DEFAULT_CLOCK_SKEW_S = 60.0  # how far the NSM's clock may be ahead of ours
MAX_MEASUREMENTS_BYTES = 1024 * 1024  # describe-eif output with its metadata is a few KiB
HIDDEN_IN_DEBUG = frozenset((*CODE_PCRS, SIGNING_PCR))


@dataclass(frozen=True, slots=True)
class Policy:
    """Expected PCRs and freshness. Raises ConfigError when made of values that no document can or may meet."""

    pcrs: dict[int, bytes] = field(default_factory=dict)
    """Expected value by index, always; those not named are not compared. See `identifies_code`."""
    allow_debug: bool = False
    """Accept an enclave in debug mode, whose PCR0..2 are zero: proves nothing about the code inside."""
    max_age_s: float | None = None
    """Oldest document accepted, seconds. None: DEFAULT_MAX_AGE_S for live checks, no limit for archival ones."""
    clock_skew_s: float = DEFAULT_CLOCK_SKEW_S
    """How far a document's timestamp may lie in the future, seconds."""
    measurements: tuple[MeasurementSet, ...] = ()
    """Sets of which one must be met, besides `pcrs`; none means that there is nothing to choose from."""
    user_data: UserDataDemand | None = None
    """What `user_data` must be; None: anything."""
    roots: tuple[TrustedRoot, ...] = ()
    """Where chains may end; none means AWS's pinned root alone."""
    require_nonce: bool = False
    """Refuse live checks for which the caller has sent no nonce."""

    def __post_init__(self) -> None:
        check_expected(self.pcrs)
        names = [one.name for one in self.measurements]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError("policy", repeated, "two measurement sets have this name")
        for one in self.measurements:
            merge_expected(self.pcrs, one.pcrs)
        if self.max_age_s is not None and not 0 < self.max_age_s < float("inf"):
            raise ConfigError("policy", "max_age_s", "it is not a positive number of seconds")
        if not 0 <= self.clock_skew_s < float("inf"):
            raise ConfigError("policy", "clock_skew_s", "it is not a number of seconds")

    @property
    def identifies_code(self) -> bool:
        """Whether the expected PCRs pin the whole image, whichever set is met: PCR0, or both PCR1 and PCR2."""
        if not self.measurements:
            return pins_image(self.pcrs)
        return all(pins_image({*self.pcrs, *one.pcrs}) for one in self.measurements)

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
        return replace(self, pcrs=merge_expected(self.pcrs, more))

    def check_debug(self, document: AttestationDocument) -> None:
        """Check that the document tells about code at all.

        Raises: VerificationError: PCR0..2 missing or partly zero, or debug mode, which is not allowed.
        """
        missing = [index for index in CODE_PCRS if index not in document.pcrs]
        if missing:
            raise VerificationError("PCRs", f"the document has no PCR{missing[0]}")
        zero = [index for index in CODE_PCRS if not any(document.pcrs[index])]
        if zero and not document.is_debug:
            raise VerificationError("PCRs", f"PCR{zero[0]} is zero, which no image has")
        if document.is_debug and not self.allow_debug:
            raise VerificationError("PCRs", "PCR0, PCR1 and PCR2 are zero: the enclave runs in debug mode")

    def check_pcrs(self, document: AttestationDocument, at_ms: int) -> tuple[list[int], str | None]:
        """Compare the PCRs of an authenticated document that `check_debug` has passed.

        Returns: the indices that were compared and equal, and the name of the measurement set that was met, if any.
        Raises: VerificationError: a value missing or different, or no set met.
        """
        lenient = document.is_debug and self.allow_debug  # debug mode hides some of them, and the result says so
        hidden = frozenset(index for index in HIDDEN_IN_DEBUG if lenient and not any(document.pcrs.get(index, b"\1")))
        for index, expected in sorted(self.pcrs.items()):
            actual = document.pcrs.get(index)
            if index not in hidden and actual != expected:
                reason = f"PCR{index} is {shown(actual)}, expected {expected.hex()}"
                raise VerificationError("PCRs", reason, expected=expected, actual=actual)
        if not self.measurements:
            return sorted(set(self.pcrs) - hidden), None
        refusals = []
        for one in self.measurements:
            if (refusal := one.mismatch(document.pcrs, at_ms, hidden)) is None:
                return sorted({*self.pcrs, *one.pcrs} - hidden), one.name
            refusals.append(f"{one.name}: {refusal}")
        raise VerificationError(
            "PCRs",
            f"no measurement set is met ({'; '.join(refusals)})",
            expected={one.name: one.pcrs for one in self.measurements},
            actual=document.pcrs,
        )

    def max_age_ms(self, *, archival: bool) -> int | None:
        """Return the greatest age in milliseconds; None means no limit."""
        if self.max_age_s is not None:
            return int(self.max_age_s * 1000)
        return None if archival else int(DEFAULT_MAX_AGE_S * 1000)


def load_policy(path: str) -> Policy:
    """Read a policy file. Raises ConfigError."""
    from enclavekit_attestation.policy_file import read_policy

    return read_policy(path)


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
