# SPDX-License-Identifier: Apache-2.0
"""`eif size`: memory and huge pages that an image needs, with the sums."""

from __future__ import annotations

import argparse

from enclavekit_core.errors import ConfigError

from enclavekit_eif.commands.output import print_columns, print_json

HELP = "say how much memory and how many huge pages an image needs, and why"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--cpus", type=int, metavar="N", help="also print an allocator.yaml for N CPUs")
    parser.add_argument("--page", choices=["2M", "1G"], default="2M", help="huge page size (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    from enclavekit_eif.size import HUGE_PAGES_MIB, size_of

    if args.cpus is not None and args.cpus < 1:
        raise ConfigError("--cpus", "", "an enclave has at least one CPU")
    page_mib = HUGE_PAGES_MIB[args.page]
    size = size_of(args.image)
    allocated = size.pages(page_mib) * page_mib
    if args.json:
        cpus = {} if args.cpus is None else {"Allocator": {"memory_mib": allocated, "cpu_count": args.cpus}}
        print_json({**size.to_json(page_mib), **cpus})
        return 0
    print_columns(
        [
            ("image", f"{size.image_bytes} bytes", f"{size.image_mib} MiB"),
            (
                "ramdisks",
                f"{size.ramdisk_bytes} bytes stored",
                f"{size.unpacked_bytes} bytes in {size.entries} entries",
            ),
        ]
    )
    print()
    print_columns([(rule, words, f"{mib} MiB") for rule, words, mib in size.arithmetic()])
    print()
    print_columns(
        [
            ("memory", f"{size.needed_mib} MiB, and what services and the app need"),
            ("huge pages", f"{size.pages(page_mib)} x {args.page} = {allocated} MiB, of one NUMA node"),
        ]
    )
    if args.cpus is not None:
        print("\n# /etc/nitro_enclaves/allocator.yaml")
        print(f"---\nmemory_mib: {allocated}\ncpu_count: {args.cpus}")
        if args.cpus % 2:
            print("# with two threads per core, an enclave takes whole cores: an odd number fails with E29")
    return 0
