# SPDX-License-Identifier: Apache-2.0
"""What an NSM answers: request bytes in, response bytes out. No I/O but the clock and randomness it is given."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
from collections.abc import Callable

from enclavekit_core.errors import RemoteProtocolError
from enclavekit_nsm import messages as nsm

from enclavekit_emulator.faults import Fault, parse_faults
from enclavekit_emulator.nsm_authority import (
    LEAF_LIFETIME,
    NO_AGE,
    Issuer,
    Leaf,
    ensure_dev_root,
    issue_leaf,
    make_root,
)
from enclavekit_emulator.nsm_documents import DocumentFields, encode_payload, sign_document
from enclavekit_emulator.pcr_bank import LOCKED_AT_BOOT, ZERO_PCR, PcrBank, PcrError

RANDOM_BYTES = 256  # the kernel's parser of GetRandom needs 24 or more
VERSION = (1, 0, 0)
RENEWAL_MARGIN = datetime.timedelta(minutes=5)  # a document should outlive the trip to its verifier
EXPIRED_AGE = LEAF_LIFETIME + datetime.timedelta(hours=1)  # the leaf is over, all above it still good
MODULE_ID = re.compile(r"i-[0-9a-z]{1,20}-enc[0-9a-f]{1,16}")

Clock = Callable[[], datetime.datetime]


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class NsmService:
    """One enclave's NSM. Not thread-safe: `serve_nsm` calls it under a lock, as the driver's mutex does."""

    def __init__(
        self,
        bank: PcrBank,
        root: Issuer,
        module_id: str,
        *,
        clock: Clock = utc_now,
        random: Callable[[int], bytes] = os.urandom,
        faults: frozenset[Fault] = frozenset(),
    ) -> None:
        """Raises ValueError if `module_id` is not `i-<instance>-enc<hex>`."""
        if not MODULE_ID.fullmatch(module_id):
            raise ValueError(f"module id {module_id!r}")
        self.bank, self.module_id, self.faults = bank, module_id, faults
        # of the same name: only its key gives it away
        self._root = make_root(clock()) if Fault.WRONG_ROOT in faults else root
        self._clock, self._random = clock, random
        self._leaf: Leaf | None = None

    @classmethod
    def for_enclave(
        cls, pcrs: dict[int, bytes], module_id: str, state_dir: str, faults: tuple[str, ...] = ()
    ) -> NsmService:
        """Return the NSM of an enclave that boots with `pcrs`, under this machine's development root.

        Raises: InputError if the root cannot be used; ConfigError for an unknown fault.
        """
        return cls(PcrBank(pcrs), ensure_dev_root(state_dir), module_id, faults=parse_faults(faults))

    def handle(self, request: bytes) -> bytes:
        """Return the response to any bytes at all."""
        if len(request) > nsm.MAX_REQUEST_BYTES:
            return nsm.encode_response(nsm.ErrorResponse(nsm.ErrorCode.INPUT_TOO_LARGE))
        try:
            decoded = nsm.decode_request(request)
        except RemoteProtocolError:
            return nsm.encode_response(nsm.ErrorResponse(nsm.ErrorCode.INVALID_OPERATION))
        if Fault.FAILING in self.faults:
            return nsm.encode_response(nsm.ErrorResponse(nsm.ErrorCode.INTERNAL_ERROR))
        try:
            return nsm.encode_response(self._answer(decoded))
        except PcrError as exc:
            return nsm.encode_response(nsm.ErrorResponse(exc.code))

    def _answer(self, request: nsm.Request) -> nsm.Response:
        match request:
            case nsm.DescribeNsmRequest():
                locked = tuple(self.bank.locked_values())
                return nsm.DescribeNsmResponse(*VERSION, self.module_id, nsm.PCR_COUNT, locked, "SHA384")
            case nsm.GetRandomRequest():
                return nsm.GetRandomResponse(self._random(RANDOM_BYTES))
            case nsm.DescribePcrRequest(index):
                return nsm.DescribePcrResponse(*self.bank.describe(index))
            case nsm.ExtendPcrRequest(index, data):
                return nsm.ExtendPcrResponse(self.bank.extend(index, data))
            case nsm.LockPcrRequest(index):
                self.bank.lock(index)
                return nsm.LockPcrResponse()
            case nsm.LockPcrsRequest(count):
                self.bank.lock_range(count)
                return nsm.LockPcrsResponse()
            case nsm.AttestationRequest():
                return self._attest(request)

    def _attest(self, request: nsm.AttestationRequest) -> nsm.Response:
        inputs = (request.user_data, request.nonce, request.public_key)
        if any(value is not None and len(value) > nsm.MAX_INPUT_BYTES for value in inputs):
            return nsm.ErrorResponse(nsm.ErrorCode.INPUT_TOO_LARGE)
        leaf, now = self._current_leaf(), self._clock()
        pcrs = self.bank.locked_values()
        if Fault.ZERO_PCRS in self.faults:
            pcrs |= dict.fromkeys(range(LOCKED_AT_BOOT), ZERO_PCR)
        fields = DocumentFields(
            module_id=self.module_id,
            timestamp_ms=int(now.timestamp() * 1000),
            pcrs=pcrs,
            certificate_der=leaf.certificate_der,
            bundle_der=leaf.bundle_der,
            public_key=request.public_key,
            user_data=request.user_data,
            nonce=request.nonce,
        )
        return nsm.AttestationResponse(sign_document(encode_payload(fields), leaf.key))

    def _current_leaf(self) -> Leaf:
        """Return the leaf that signs now; one leaf serves many documents until shortly before it expires."""
        now = self._clock()
        # a clock that was set back makes the leaf one of the future
        if self._leaf is None or not self._leaf.not_before <= now <= self._leaf.not_after - RENEWAL_MARGIN:
            age = EXPIRED_AGE if Fault.EXPIRED_LEAF in self.faults else NO_AGE
            leaf = issue_leaf(self._root, self.module_id, now, age=age)
            if Fault.REORDERED_BUNDLE in self.faults:
                leaf = dataclasses.replace(leaf, bundle_der=leaf.bundle_der[::-1])
            self._leaf = leaf
        return self._leaf
