# SPDX-License-Identifier: Apache-2.0
"""Which CID an enclave gets. Pure."""

from __future__ import annotations

from collections.abc import Collection

from enclavekit_core.address import CID_ANY, MIN_ENCLAVE_CID
from enclavekit_core.errors import InputError

DEFAULT_CID = 127  # what users of the Rust framework expect


def check_cid(cid: int) -> int:
    """Return `cid` if an enclave may have it. Raises InputError."""
    if MIN_ENCLAVE_CID <= cid < CID_ANY:
        return cid
    raise InputError("use CID", str(cid), f"an enclave's is from {MIN_ENCLAVE_CID} to {CID_ANY - 1}")


def first_choice(first: int) -> int:
    """Return where to look first: the image's wish if an enclave may have it, else 127."""
    return first if MIN_ENCLAVE_CID <= first < CID_ANY else DEFAULT_CID


def choose_cid(asked: int, first: int, taken: Collection[int]) -> int:
    """Return the CID asked for, or the first free one from `first` (or 127) up. Raises InputError if it is taken.

    Args:
        asked: 0 if none was.
        first: the image's wish, 0 if it has none.
    """
    if asked:
        if asked in taken:
            raise InputError("use CID", str(asked), "it is taken; rbuilds list shows by whom")
        return asked
    cid = first_choice(first)
    while cid in taken:
        cid += 1
    return cid
