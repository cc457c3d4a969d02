# SPDX-License-Identifier: Apache-2.0
"""PCRs: how they come about, and sets of expected ones of which any may be met. Pure.

Source: AWS Nitro Enclaves user guide, "Where to get an enclave's measurements"; the documents in tests/data.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from enclavekit_core.errors import ConfigError

from enclavekit_attestation.document import CODE_PCRS, MAX_PCRS

PCR_BYTES = 48  # SHA-384, the only digest of the NSM
ZERO_PCR = bytes(PCR_BYTES)
ROLE_PCR, INSTANCE_PCR = 3, 4
PCR_NAME = re.compile(r"(?:PCR)?(0|[1-9][0-9]?)\Z", re.IGNORECASE | re.ASCII)


def pcr_of_text(text: str) -> bytes:
    """Return PCR3 of an IAM role's ARN, or PCR4 of an instance id: the text itself extends the register."""
    return hashlib.sha384(ZERO_PCR + text.encode()).digest()


def pcr_of_certificate(der: bytes) -> bytes:
    """Return PCR8 of a signing certificate: its hash extends the register."""
    return hashlib.sha384(ZERO_PCR + hashlib.sha384(der).digest()).digest()


def check_expected(pcrs: Mapping[int, bytes], source: str = "policy") -> None:
    """Raise ConfigError for values that no document can or may have."""
    for index, value in pcrs.items():
        if not 0 <= index < MAX_PCRS:
            raise ConfigError(source, f"PCR{index}", f"the index is not from 0 to {MAX_PCRS - 1}")
        if len(value) != PCR_BYTES:
            raise ConfigError(source, f"PCR{index}", f"it has {len(value)} bytes instead of {PCR_BYTES}")
        if index in CODE_PCRS and value == ZERO_PCR:
            raise ConfigError(source, f"PCR{index}", "zero is the value of every debug enclave, not of an image")


def merge_expected(one: Mapping[int, bytes], other: Mapping[int, bytes], source: str = "policy") -> dict[int, bytes]:
    """Return both; raises ConfigError where they contradict each other."""
    for index, value in other.items():
        if one.get(index, value) != value:
            raise ConfigError(source, f"PCR{index}", "two different values are expected")
    return {**one, **other}


def pins_image(pcrs: Iterable[int]) -> bool:
    """Whether these PCRs together stand for a whole image: PCR0, or both PCR1 and PCR2."""
    indices = set(pcrs)
    return 0 in indices or {1, 2} <= indices


@dataclass(frozen=True, slots=True)
class MeasurementSet:
    """PCRs that are expected together, e.g. those of one release. Raises ConfigError."""

    name: str
    pcrs: dict[int, bytes]
    not_before_ms: int | None = None
    """Milliseconds since 1970 UTC; None: always."""
    not_after_ms: int | None = None

    def __post_init__(self) -> None:
        if not self.pcrs:
            raise ConfigError("policy", self.name, "it expects no PCR, so any document would meet it")
        check_expected(self.pcrs)
        if None not in (self.not_before_ms, self.not_after_ms) and self.window[0] > self.window[1]:
            raise ConfigError("policy", self.name, "it ends before it begins")

    @property
    def window(self) -> tuple[float, float]:
        before, after = self.not_before_ms, self.not_after_ms
        return -float("inf") if before is None else before, float("inf") if after is None else after

    def mismatch(self, pcrs: Mapping[int, bytes], at_ms: int, hidden: frozenset[int]) -> str | None:
        """Return why `pcrs` do not meet the set at `at_ms`, None if they do; `hidden` are not compared (debug mode)."""
        begin, end = self.window
        if at_ms < begin:
            return f"not valid before {moment(begin)}"
        if at_ms > end:
            return f"not valid after {moment(end)}"
        for index, expected in sorted(self.pcrs.items()):
            if index not in hidden and pcrs.get(index) != expected:
                return f"PCR{index} is {shown(pcrs.get(index))}, expected {expected.hex()}"
        return None


def shown(value: bytes | None) -> str:
    return "missing" if value is None else value.hex()


def moment(at_ms: float) -> str:
    """Return a moment for people; milliseconds if it is beyond the calendar."""
    try:
        when = datetime.datetime.fromtimestamp(at_ms / 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return f"{at_ms} ms"
    return f"{when:%Y-%m-%dT%H:%M:%S}.{int(at_ms) % 1000:03}Z"


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
