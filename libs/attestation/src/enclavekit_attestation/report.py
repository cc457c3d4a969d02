# SPDX-License-Identifier: Apache-2.0
"""What a verification found: steps, each with what was found and expected; the document if all passed. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from enclavekit_core.errors import VerificationError


class Mode(enum.Enum):
    LIVE = "live"
    ARCHIVAL = "archival"


class StepName(enum.StrEnum):
    """The steps, in their order; what a step relies on was settled by the steps before it."""

    FORMAT = "format"
    CHAIN = "chain"
    SIGNATURE = "signature"
    FRESHNESS = "freshness"
    NONCE = "nonce"
    DEBUG = "debug"
    PCRS = "pcrs"
    USER_DATA = "user_data"
    BINDING = "binding"


@dataclass(frozen=True, slots=True)
class Step:
    """One check."""

    name: str
    detail: str
    """For people: what held, or why it did not."""
    passed: bool | None = True
    """None: not reached, because a step that it needs failed."""
    found: object = None
    """For programs: text, numbers, or containers of these; byte strings are in hex."""
    expected: object = None


@dataclass(frozen=True, slots=True)
class VerifiedDocument:
    """The authenticated fields of a document, and how far the check went."""

    module_id: str
    timestamp_ms: int
    """When the NSM made it, milliseconds since 1970 UTC."""
    pcrs: dict[int, bytes]
    public_key: bytes | None
    user_data: bytes | None
    nonce: bytes | None
    mode: Mode
    verified_at_ms: int
    """The moment that certificates were checked against."""
    compared_pcrs: tuple[int, ...]
    """Which PCRs were expected and equal; empty means that nothing is known about the code."""
    nonce_checked: bool
    """False: the document may be a replay within its greatest age."""
    debug: bool
    """Debug mode, allowed by the policy: the PCRs prove nothing."""
    root_sha256: str
    """SHA-256 of the trusted root's DER, hex."""
    steps: tuple[Step, ...]
    partition: str | None = None
    """The AWS partition whose root it is; None for a development root."""
    measurement_set: str | None = None
    """Name of the policy's measurement set that the PCRs are equal to, if it has such sets."""

    @property
    def development_root(self) -> bool:
        """True if a root was trusted that is no partition's."""
        return self.partition is None

    @property
    def needs_anchor(self) -> bool:
        """True: that the document existed at `verified_at_ms` must be known from elsewhere."""
        return self.mode is Mode.ARCHIVAL


@dataclass(frozen=True, slots=True)
class Report:
    """All steps of one verification."""

    mode: Mode
    steps: tuple[Step, ...]
    document: VerifiedDocument | None
    """None unless every step passed."""

    @property
    def passed(self) -> bool:
        return self.document is not None

    @property
    def first_failure(self) -> Step | None:
        return next((step for step in self.steps if step.passed is False), None)


class RefusedError(VerificationError):
    """A verification that failed, with its report."""

    def __init__(self, cause: VerificationError, step: str, report: Report) -> None:
        super().__init__(cause.what, cause.reason, cause.expected, cause.actual)
        self.step, self.report = step, report
