# SPDX-License-Identifier: Apache-2.0
"""Which running enclave a command means: --enclave-id or --enclave-name."""

from __future__ import annotations

import argparse

from enclavekit_core.fabric import ensure_runtime_dir

from enclavekit_emulator.leftovers import remove_leftovers
from enclavekit_emulator.nitro_errors import NitroError
from enclavekit_emulator.state import EnclaveRecord, EnclaveStore


def add_selection(parser: argparse.ArgumentParser, *, with_all: bool = False) -> None:
    """Add the flags, exactly one of which must be given."""
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--enclave-id", metavar="ID")
    group.add_argument("--enclave-name", metavar="NAME")
    if with_all:
        group.add_argument("--all", action="store_true", help="all enclaves of this user")


def open_store() -> EnclaveStore:
    """Return the store, with what killed supervisors had left behind removed."""
    store = EnclaveStore(ensure_runtime_dir())
    with store.locked():
        remove_leftovers(store)
    return store


def select_enclave(store: EnclaveStore, args: argparse.Namespace) -> EnclaveRecord:
    """Return the record of the enclave that was named. Raises NitroError 39 (id) or 58 (name)."""
    for record in store.running():
        if record.enclave_id == args.enclave_id or record.name == args.enclave_name:
            return record
    if args.enclave_id is not None:
        raise NitroError(39, f"cannot find enclave {args.enclave_id}: no running enclave has that id")
    raise NitroError(58, f"cannot find enclave {args.enclave_name}: no running enclave has that name")
