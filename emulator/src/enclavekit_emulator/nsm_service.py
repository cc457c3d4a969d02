# SPDX-License-Identifier: Apache-2.0
"""What an NSM answers: request bytes in, response bytes out. No I/O but the clock and randomness it is given."""

from __future__ import annotations

import dataclasses
import datetime
import os
from collections.abc import Callable

from enclavekit_core.errors import RemoteProtocolError
from enclavekit_nsm import messages as nsm

from enclavekit_emulator.faults import Fault, parse_faults
from enclavekit_emulator.nsm_authority import Issuer, Leaf, ensure_dev_root, issue_leaf, make_root
from enclavekit_emulator.nsm_documents import DocumentFields, encode_payload, sign_document
from enclavekit_emulator.pcr_bank import LOCKED_AT_BOOT, ZERO_PCR, PcrBank, PcrError

RANDOM_BYTES = 256  # the kernel's parser of GetRandom needs 24 or more
VERSION = (1, 0, 0)
RENEWAL_MARGIN = datetime.timedelta(minutes=5)  # a document should outlive the trip to its verifier
FAULT_AGE = datetime.timedelta(days=2)  # past every certificate below the zonal one

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
        self.bank, self.module_id, self.faults = bank, module_id, faults
        self._root = make_root(clock(), "enclavekit-dev-wrong-root") if Fault.WRONG_ROOT in faults else root
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
        if self._leaf is None or now + RENEWAL_MARGIN > self._leaf.not_after:
            issued = now - FAULT_AGE if Fault.EXPIRED_LEAF in self.faults else now
            leaf = issue_leaf(self._root, self.module_id, issued)
            if Fault.REORDERED_BUNDLE in self.faults:
                leaf = dataclasses.replace(leaf, bundle_der=leaf.bundle_der[::-1])
            self._leaf = leaf
        return self._leaf
