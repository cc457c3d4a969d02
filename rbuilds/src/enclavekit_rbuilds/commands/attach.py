# SPDX-License-Identifier: Apache-2.0
"""`rbuilds attach`: the console of an enclave in debug mode, until it ends."""

from __future__ import annotations

import argparse

from enclavekit_rbuilds.commands.enclave_arguments import add_selection

HELP = "show the console of an enclave in debug mode"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser, with_all=False)


def run(args: argparse.Namespace) -> int:
    from enclavekit_core.errors import InputError

    from enclavekit_rbuilds.run.housekeeping import keep_house
    from enclavekit_rbuilds.run.selection import select

    keep_house()
    backend, enclave = select(args.backend, args.enclave, recent=args.recent)
    if not enclave.debug:
        reason = "it is not in debug mode, and only there is a console; start it with --debug"
        raise InputError("attach to enclave", enclave.name, reason)
    return backend.console(enclave)
