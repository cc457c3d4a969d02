# SPDX-License-Identifier: Apache-2.0
"""The PCRs that an enclave finds when it boots. Pure.

Source: AWS documents and the spec's section on PCRs: 0..2 (and 8 of a signed image) measure the image, 3 the parent's
IAM role (an emulator has none: zero), 4 the parent's instance id, without an inner hash. Debug mode: 0..2 are zero.
"""

from __future__ import annotations

import hashlib

ZERO_PCR = bytes(48)
DEBUG_ZEROED = (0, 1, 2)
INSTANCE_PCR = 4


def boot_pcrs(measurements: dict[str, str], enclave_id: str, *, debug_mode: bool) -> dict[int, bytes]:
    """Return the registers that are not the zero of every register.

    Args:
        measurements: as `describe-eif` prints them, keys PCR0..PCR2 and perhaps PCR8, in hex.
        enclave_id: `i-<instance>-enc<slot>`.
    """
    pcrs = {int(key[3:]): bytes.fromhex(value) for key, value in measurements.items() if key.startswith("PCR")}
    if debug_mode:
        pcrs.update(dict.fromkeys(DEBUG_ZEROED, ZERO_PCR))
    instance_id = enclave_id.partition("-enc")[0]
    pcrs[INSTANCE_PCR] = hashlib.sha384(ZERO_PCR + instance_id.encode()).digest()
    return pcrs
