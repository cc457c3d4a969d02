# SPDX-License-Identifier: Apache-2.0
"""`/init` of an enclave image, and `enclave-init` for checking unit files and for tests."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from enclavekit_core.cli import run_command
from enclavekit_core.errors import InputError

PROGRAM = "enclave-init"


def pid1() -> NoReturn:
    """What `/init` runs (see `init_stub`): argument-free, because the kernel passes words of its command line."""
    if os.getpid() != 1:
        sys.exit(run_command(PROGRAM, _refuse))
    from enclavekit_enclave_init.lifecycle import run_as_pid1

    run_as_pid1()


def main(argv: list[str] | None = None) -> int:
    """Entry point of `enclave-init`."""
    import argparse  # not for PID 1, which takes no arguments

    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="PID 1 of an enclave. Without options it must be PID 1 and boots the enclave."
    )
    parser.add_argument("--check-units", metavar="DIR", help="check the unit files in DIR and print the start order")
    parser.add_argument(
        "--insecure-not-pid1", action="store_true", help="run units as an ordinary process: no mounts, no power-off"
    )
    parser.add_argument("--config", metavar="FILE", help="with --insecure-not-pid1: an init.toml")
    parser.add_argument("--service-dir", metavar="DIR", help="with --insecure-not-pid1: the unit files")
    parser.add_argument("--log-dir", metavar="DIR", help="with --insecure-not-pid1: the logs")
    parser.add_argument("--control-socket", metavar="PATH", help="with --insecure-not-pid1: where initctl finds it")
    args = parser.parse_args(argv)
    if not args.insecure_not_pid1 and (args.config or args.service_dir or args.log_dir or args.control_socket):
        parser.error("--config, --service-dir, --log-dir and --control-socket need --insecure-not-pid1")

    def command() -> int:
        if args.check_units:
            return _check_units(args.check_units)
        if args.insecure_not_pid1:
            from enclavekit_enclave_init.lifecycle import run_insecure_not_pid1

            return run_insecure_not_pid1(args.config, args.service_dir, args.log_dir, args.control_socket)
        if os.getpid() == 1:
            pid1()
        return _refuse()

    return run_command(PROGRAM, command)


def _refuse() -> int:
    raise InputError(
        "start", "as an init", f"this is PID {os.getpid()}, not 1; it would mount over and power off this machine"
    )


def _check_units(directory: str) -> int:
    from enclavekit_enclave_init.units.files import read_units
    from enclavekit_enclave_init.units.ordering import plan_start

    units = read_units(directory)
    plan = plan_start(units)
    for note in plan.notes:
        print(f"note: {note}")
    for name in plan.order:
        print(f"{name}: after {', '.join(sorted(plan.after[name])) or 'nothing'}")
    for unit in units:
        if not unit.enabled:
            print(f"{unit.name}: disabled")
    return 0
