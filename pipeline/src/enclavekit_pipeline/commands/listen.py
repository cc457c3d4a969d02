# SPDX-License-Identifier: Apache-2.0
"""`pipeline listen`: the side in the enclave."""

from __future__ import annotations

import argparse

from enclavekit_pipeline.commands.target import DEFAULT_PORT, port_number

HELP = "serve callers (in the enclave)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=port_number, default=DEFAULT_PORT, help="vsock port (default: %(default)s)")
    parser.add_argument(
        "--clients", default="/etc/enclavekit/clients.yaml", metavar="FILE", help="who may enter (default: %(default)s)"
    )
    parser.add_argument(
        "--root",
        default="/rootfs",
        metavar="DIR",
        help="the app's root; / where it does not exist (default: %(default)s)",
    )
    parser.add_argument("--nsm", metavar="PATH", help="default: $ENCLAVEKIT_NSM, else /dev/nsm")


def run(args: argparse.Namespace) -> int:
    from enclavekit_pipeline.enclave.server import listen

    return listen(port=args.port, clients_path=args.clients, root=args.root, nsm_path=args.nsm)
