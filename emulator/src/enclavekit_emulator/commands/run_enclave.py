# SPDX-License-Identifier: Apache-2.0
"""`nitro-emu run-enclave`: flags or --config to a request, launch, print what nitro-cli prints."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from enclavekit_core.fabric import ensure_runtime_dir

from enclavekit_emulator.commands.lifecycle import describe_launch
from enclavekit_emulator.nitro_errors import NitroError
from enclavekit_emulator.run_request import (
    RunRequest,
    check_cid,
    check_name,
    choose_cpu_ids,
    default_name,
    parse_config,
    parse_cpu_ids,
    parse_memory_mib,
)

MAX_CONFIG_BYTES = 64 * 1024  # seven short keys
WARNING = (
    "WARNING: this enclave is EMULATED and NOT CONFIDENTIAL: whoever controls this machine can read and change "
    "everything in it, and its attestation documents are signed by a development root that proves nothing."
)
CONFIG_CONFLICTS = ("cpu_count", "cpu_ids", "memory", "eif_path", "enclave_cid", "enclave_name")


def add_parser(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subcommands.add_parser("run-enclave", help="boot an enclave image")
    parser.add_argument("--eif-path", metavar="FILE", help="the image")
    parser.add_argument("--memory", metavar="MIB", help="or with a suffix m, g, t; four times the image or more")
    cpus = parser.add_mutually_exclusive_group()
    cpus.add_argument("--cpu-count", type=int, metavar="N")
    cpus.add_argument("--cpu-ids", nargs="+", metavar="ID")
    parser.add_argument("--enclave-cid", type=int, metavar="N", help="default: the lowest free from 16 up")
    parser.add_argument("--enclave-name", metavar="NAME", help="default: the image's file name without .eif")
    parser.add_argument("--debug-mode", action="store_true", help="give it a console, and zero PCR0, PCR1 and PCR2")
    parser.add_argument("--attach-console", action="store_true", help="--debug-mode, and show the console at once")
    parser.add_argument("--config", metavar="FILE", help="JSON with the same settings; excludes the other flags")
    parser.add_argument(
        "--machine",
        choices=("process", "qemu", "qemu-nitro", "auto"),
        default="process",
        help="namespaces on this kernel, or a virtual machine with the image's own; qemu-nitro: QEMU's own machine of "
        "that kind; auto: qemu if there is one, else process; not in nitro-cli",
    )
    parser.add_argument(
        "--announce-devices",
        choices=("cmdline", "acpi"),
        help="with --machine qemu: on the kernel command line as Nitro does, or by ACPI (default: what the image's "
        "kernel needs)",
    )
    parser.add_argument(
        "--insecure-nsm-fault",
        action="append",
        default=[],
        metavar="NAME",
        help="let the emulated NSM misbehave, for tests; not in nitro-cli",
    )
    parser.set_defaults(run=lambda args: run(parser, args))


def run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    """Run the command. Raises NitroError."""
    request = dataclasses.replace(_request(parser, args), machine=args.machine, announcement=args.announce_devices)
    if args.insecure_nsm_fault:
        from enclavekit_emulator.faults import parse_faults

        parse_faults(tuple(args.insecure_nsm_fault))
    print(f"nitro-emu: {WARNING}", file=sys.stderr, flush=True)
    print("Start allocating memory...", file=sys.stderr, flush=True)
    from enclavekit_emulator.launch import launch
    from enclavekit_emulator.state import EnclaveStore

    store = EnclaveStore(ensure_runtime_dir())
    record, notes = launch(store, request, tuple(args.insecure_nsm_fault))
    for note in notes:
        print(f"nitro-emu: note: {note}", file=sys.stderr)
    print(
        f"Started enclave with enclave-cid: {record.cid}, memory: {record.memory_mib} MiB, "
        f"cpu-ids: {list(record.cpu_ids)}",
        file=sys.stderr,
        flush=True,
    )
    print(json.dumps(describe_launch(record), indent=2), flush=True)
    if request.attach_console:
        from enclavekit_emulator.commands.console import show_console

        show_console(store, record, None)
    return 0


def _request(parser: argparse.ArgumentParser, args: argparse.Namespace) -> RunRequest:
    if args.config is not None:
        for name in CONFIG_CONFLICTS:
            if getattr(args, name) is not None:
                parser.error(f"argument --config: not allowed with argument --{name.replace('_', '-')}")
        if args.debug_mode:
            parser.error("argument --config: not allowed with argument --debug-mode")
        return _read_config(args.config)
    missing = [flag for flag, value in (("--eif-path", args.eif_path), ("--memory", args.memory)) if value is None]
    if args.cpu_count is None and args.cpu_ids is None:
        missing.append("--cpu-count or --cpu-ids")
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return RunRequest(
        eif_path=args.eif_path,
        memory_mib=parse_memory_mib(args.memory),
        cpu_ids=choose_cpu_ids(args.cpu_count) if args.cpu_count is not None else parse_cpu_ids(args.cpu_ids),
        cid=check_cid(args.enclave_cid or 0),
        debug_mode=args.debug_mode or args.attach_console,
        attach_console=args.attach_console,
        name=check_name(default_name(args.eif_path) if args.enclave_name is None else args.enclave_name),
    )


def _read_config(path: str) -> RunRequest:
    try:
        with open(path, "rb") as source:
            text = source.read(MAX_CONFIG_BYTES + 1)
    except OSError as exc:
        raise NitroError(19, f"cannot open {path}: {(exc.strerror or str(exc)).lower()}") from exc
    if len(text) > MAX_CONFIG_BYTES:
        raise NitroError(17, f"cannot parse {path}: it is larger than {MAX_CONFIG_BYTES} bytes")
    return parse_config(text, path)
