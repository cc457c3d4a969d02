# SPDX-License-Identifier: Apache-2.0
"""`nitro-emu console`: the console of an enclave in debug mode, from its beginning to its end."""

from __future__ import annotations

import argparse
import os
import sys
import time

from enclavekit_emulator.commands.selection import add_selection, open_store, select_enclave
from enclavekit_emulator.nitro_errors import NitroError
from enclavekit_emulator.state import EnclaveRecord, EnclaveStore

ANSWER_TIMEOUT_S = 20.0  # nitro-cli's connect timeout for the console


def add_parser(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subcommands.add_parser("console", help="show the console of an enclave in debug mode")
    add_selection(parser)
    parser.add_argument("--disconnect-timeout", type=float, metavar="SECONDS", help="leave after this long")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command. Raises NitroError 44 if the enclave is not in debug mode."""
    store = open_store()
    show_console(store, select_enclave(store, args), args.disconnect_timeout)
    return 0


def show_console(store: EnclaveStore, record: EnclaveRecord, timeout_s: float | None) -> None:
    """Copy the console to stdout until the enclave ends, or `timeout_s` has passed. Raises NitroError."""
    from enclavekit_emulator.control import ControlClient

    if not record.debug_mode:
        raise NitroError(44, f"cannot show the console of enclave {record.name}: it is not in debug mode")
    print(f"Connecting to the console for enclave {record.cid}...", flush=True)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    client = ControlClient(store, record, "console")
    try:
        client.read_answer(ANSWER_TIMEOUT_S)
        print("Successfully connected to the console.", flush=True)
        while deadline is None or time.monotonic() < deadline:
            left_s = None if deadline is None else max(deadline - time.monotonic(), 0.001)
            chunk = client.read_stream(left_s)
            if not chunk:
                break
            _write_all(sys.stdout.fileno(), chunk)
    except TimeoutError:
        pass  # the time that the user gave it is over
    finally:
        client.close()


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
