# SPDX-License-Identifier: Apache-2.0
"""`rbuilds wait`: wait until an enclave has ended, say how, and exit as its app did. Also for one that has ended."""

from __future__ import annotations

import argparse
import json
import sys

from enclavekit_rbuilds.commands.enclave_arguments import add_backend_argument

HELP = "wait for an enclave to end, and exit as its app did"
STATUS_UNKNOWN = 255  # as nitro-emu wait has it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("enclave", metavar="NAME|ID|CID", help="which enclave, also one of those that ended last")
    parser.add_argument("--json", action="store_true", help="print how it ended as JSON")
    add_backend_argument(parser)


def run(args: argparse.Namespace) -> int:
    from enclavekit_core.errors import InputError

    from enclavekit_rbuilds.commands.list import describe_ended
    from enclavekit_rbuilds.run.housekeeping import keep_house, wait_for_enclave
    from enclavekit_rbuilds.run.selection import list_running, match

    store = keep_house()
    # what its supervisor has not let go of yet has ended a moment ago, and how is about to be known
    held = [record.enclave for record in store.records() if record.enclave is not None]
    running = list({each.id: each for each in (*held, *(each for _, each in list_running(args.backend)))}.values())
    known = [ended.enclave for ended in store.ended()]
    try:
        enclave = running[match(running, args.enclave)]
    except InputError:
        # of several that had one name, the last one is meant
        keys = (args.enclave,)
        named = [each for each in known if each.id in keys or each.name in keys or str(each.cid) in keys]
        if not named:
            raise
        enclave = named[-1]
    else:
        wait_for_enclave(store, enclave)
    ended = next((each for each in store.ended() if each.enclave.id == enclave.id), None)
    if ended is None:
        raise InputError("tell how", f"enclave {enclave.name} ended", "it was not started by rbuilds run")
    if args.json:
        json.dump(describe_ended(ended), sys.stdout, indent=2)
        print()
    else:
        for line in ended.words:
            print(line)
    return STATUS_UNKNOWN if ended.status is None else ended.status
