# SPDX-License-Identifier: Apache-2.0
"""`nitro-emu describe-enclaves`, `terminate-enclave` and `wait`: what runs, end it, wait for its end."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import Any

from enclavekit_emulator.commands.selection import add_selection, open_store, select_enclave
from enclavekit_emulator.nitro_errors import NitroError
from enclavekit_emulator.state import EnclaveRecord, EnclaveStore, EndRecord

TERMINATE_TIMEOUT_S = 40.0  # the supervisor's grace for an orderly stop, and as much again
GONE_TIMEOUT_S = 10.0


def add_parsers(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    describe = subcommands.add_parser("describe-enclaves", help="list the running enclaves")
    describe.add_argument("--metadata", action="store_true", help="with the metadata of their images")
    describe.set_defaults(run=run_describe)
    terminate = subcommands.add_parser("terminate-enclave", help="stop one enclave or all")
    add_selection(terminate, with_all=True)
    terminate.set_defaults(run=run_terminate)
    wait = subcommands.add_parser("wait", help="wait for an enclave to end, and exit as its app did; not in nitro-cli")
    add_selection(wait)
    wait.set_defaults(run=run_wait)


def run_describe(args: argparse.Namespace) -> int:
    """Print an array, empty if nothing runs."""
    store = open_store()
    print(json.dumps([describe_record(record, metadata=args.metadata) for record in store.running()], indent=2))
    return 0


def describe_launch(record: EnclaveRecord) -> dict[str, Any]:
    """Return what run-enclave prints, keys in nitro-cli's order. Pure."""
    return {
        "EnclaveName": record.name,
        "EnclaveID": record.enclave_id,
        "ProcessID": record.supervisor.pid,
        "EnclaveCID": record.cid,
        "NumberOfCPUs": len(record.cpu_ids),
        "CPUIDs": list(record.cpu_ids),
        "MemoryMiB": record.memory_mib,
    }


def describe_record(record: EnclaveRecord, *, metadata: bool) -> dict[str, Any]:
    """Return one element of describe-enclaves: a launch and how it goes, keys in nitro-cli's order. Pure."""
    described: dict[str, Any] = {
        **describe_launch(record),
        "State": record.state,
        "Flags": "DEBUG_MODE" if record.debug_mode else "NONE",
    }
    if record.measurements is not None:
        described["Measurements"] = record.measurements
    if metadata:
        described.update(record.image)
    return described


def run_terminate(args: argparse.Namespace) -> int:
    """Print what was terminated: an object, or an array with --all. Raises NitroError."""
    store = open_store()
    if not args.all:
        print(json.dumps(_terminate(store, select_enclave(store, args)), indent=2))
        return 0
    print(json.dumps([_terminate(store, record) for record in store.running()], indent=2))
    return 0


def _terminate(store: EnclaveStore, record: EnclaveRecord) -> dict[str, Any]:
    """End an enclave; when this returns its process, too, has ended."""
    from enclavekit_core.processes import is_alive, kill_and_wait, wait_for_end

    from enclavekit_emulator.control import ControlClient

    try:
        handle = os.pidfd_open(record.supervisor.pid)
    except ProcessLookupError:
        handle = -1
    try:
        if handle >= 0 and is_alive(record.supervisor):
            try:
                client = ControlClient(store, record, "terminate")
                try:
                    client.read_answer(TERMINATE_TIMEOUT_S)
                finally:
                    client.close()
            except (NitroError, TimeoutError):
                # it ended meanwhile, or hangs: either way what is left goes the way of a killed supervisor's
                kill_and_wait(record.supervisor, GONE_TIMEOUT_S)
            wait_for_end(handle, GONE_TIMEOUT_S)
    finally:
        if handle >= 0:
            os.close(handle)
    open_store()
    print(f"Successfully terminated enclave {record.enclave_id}.", file=sys.stderr, flush=True)
    return {"EnclaveName": record.name, "EnclaveID": record.enclave_id, "Terminated": True}


def run_wait(args: argparse.Namespace) -> int:
    """Print how the enclave ended and return its app's exit status. Raises NitroError."""
    from enclavekit_emulator.control import ControlClient

    store = open_store()
    try:
        record = select_enclave(store, args)
    except NitroError:
        end = store.find_end(enclave_id=args.enclave_id or "", name=args.enclave_name or "")
        if end is None:
            raise
        return _print_end(end.to_json(), end.command_status())
    try:
        client = ControlClient(store, record, "wait")
        try:
            answer = client.read_answer()
        finally:
            client.close()
    except NitroError:
        from enclavekit_core.processes import wait_for_process

        # it ended between our look and our question: how, is known once its process has cleaned up
        wait_for_process(record.supervisor, GONE_TIMEOUT_S)
        ended: EndRecord | None = store.find_end(enclave_id=record.enclave_id)
        if ended is None:
            raise
        return _print_end(ended.to_json(), ended.command_status())
    return _print_end(answer["end"], int(answer["status"]))


def _print_end(end: dict[str, Any], status: int) -> int:
    print(json.dumps(end, indent=2))
    return status
