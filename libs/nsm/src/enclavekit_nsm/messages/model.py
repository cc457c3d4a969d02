# SPDX-License-Identifier: Apache-2.0
"""What is asked of the NSM and what it answers, as types; fields in the order of the wire. Pure.

Source: aws-nitro-enclaves-nsm-api 0.5, src/api/mod.rs; libnsm's nsm.h for the error codes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

MAX_REQUEST_BYTES = 0x1000  # NSM_REQUEST_MAX_SIZE of the driver
MAX_RESPONSE_BYTES = 0x3000  # NSM_RESPONSE_MAX_SIZE
MAX_INPUT_BYTES = 1024  # user_data, nonce, public_key: what the NSM itself accepts
PCR_COUNT = 32
PCR_BYTES = 48  # SHA-384


class ErrorCode(enum.Enum):
    """What the NSM answers instead of a response; values are the names on the wire."""

    INVALID_ARGUMENT = "InvalidArgument"
    INVALID_INDEX = "InvalidIndex"
    INVALID_RESPONSE = "InvalidResponse"
    READ_ONLY_INDEX = "ReadOnlyIndex"
    INVALID_OPERATION = "InvalidOperation"
    BUFFER_TOO_SMALL = "BufferTooSmall"
    INPUT_TOO_LARGE = "InputTooLarge"
    INTERNAL_ERROR = "InternalError"


@dataclass(frozen=True, slots=True)
class DescribeNsmRequest:
    WIRE = "DescribeNSM"


@dataclass(frozen=True, slots=True)
class GetRandomRequest:
    WIRE = "GetRandom"


@dataclass(frozen=True, slots=True)
class DescribePcrRequest:
    WIRE = "DescribePCR"
    index: int


@dataclass(frozen=True, slots=True)
class ExtendPcrRequest:
    WIRE = "ExtendPCR"
    index: int
    data: bytes
    """Hashed as it is, not its digest: new = SHA384(old || data)."""


@dataclass(frozen=True, slots=True)
class LockPcrRequest:
    WIRE = "LockPCR"
    index: int


@dataclass(frozen=True, slots=True)
class LockPcrsRequest:
    WIRE = "LockPCRs"
    range: int
    """Locks 0..range-1; at most 32."""


@dataclass(frozen=True, slots=True)
class AttestationRequest:
    WIRE = "Attestation"
    user_data: bytes | None = None
    nonce: bytes | None = None
    public_key: bytes | None = None


@dataclass(frozen=True, slots=True)
class DescribeNsmResponse:
    WIRE = "DescribeNSM"
    version_major: int
    version_minor: int
    version_patch: int
    module_id: str
    max_pcrs: int
    locked_pcrs: tuple[int, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class GetRandomResponse:
    WIRE = "GetRandom"
    random: bytes


@dataclass(frozen=True, slots=True)
class DescribePcrResponse:
    WIRE = "DescribePCR"
    lock: bool
    data: bytes


@dataclass(frozen=True, slots=True)
class ExtendPcrResponse:
    WIRE = "ExtendPCR"
    data: bytes


@dataclass(frozen=True, slots=True)
class LockPcrResponse:
    WIRE = "LockPCR"


@dataclass(frozen=True, slots=True)
class LockPcrsResponse:
    WIRE = "LockPCRs"


@dataclass(frozen=True, slots=True)
class AttestationResponse:
    WIRE = "Attestation"
    document: bytes


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    WIRE = "Error"
    code: ErrorCode


Request = (
    DescribeNsmRequest
    | GetRandomRequest
    | DescribePcrRequest
    | ExtendPcrRequest
    | LockPcrRequest
    | LockPcrsRequest
    | AttestationRequest
)
Response = (
    DescribeNsmResponse
    | GetRandomResponse
    | DescribePcrResponse
    | ExtendPcrResponse
    | LockPcrResponse
    | LockPcrsResponse
    | AttestationResponse
    | ErrorResponse
)

REQUESTS: dict[str, type[Request]] = {
    kind.WIRE: kind
    for kind in (
        DescribeNsmRequest,
        GetRandomRequest,
        DescribePcrRequest,
        ExtendPcrRequest,
        LockPcrRequest,
        LockPcrsRequest,
        AttestationRequest,
    )
}
RESPONSES: dict[str, type[Response]] = {
    kind.WIRE: kind
    for kind in (
        DescribeNsmResponse,
        GetRandomResponse,
        DescribePcrResponse,
        ExtendPcrResponse,
        LockPcrResponse,
        LockPcrsResponse,
        AttestationResponse,
    )
}
