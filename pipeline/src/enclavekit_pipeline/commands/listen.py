# SPDX-License-Identifier: Apache-2.0
"""`pipeline listen`: the side in the enclave."""

from __future__ import annotations

import argparse

from enclavekit_core import runtime_config as rules

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
    parser.add_argument(
        "--runtime-schema",
        default=rules.SCHEMA_PATH,
        metavar="FILE",
        help="if it has PIPELINE_REVOKED, nobody enters without that list (default: %(default)s)",
    )
    parser.add_argument(
        "--runtime-values", default=rules.VALUES_PATH, metavar="FILE", help="where it is (default: %(default)s)"
    )
    parser.add_argument(
        "--insecure-legacy-slc",
        type=port_number,
        metavar="PORT",
        help="serve the Rust framework's protocol there as well, to anybody: debug mode only",
    )


def run(args: argparse.Namespace) -> int:
    from enclavekit_attestation.revocation import Revocations

    from enclavekit_pipeline.enclave.server import listen

    return listen(
        port=args.port,
        clients_path=args.clients,
        root=args.root,
        nsm_path=args.nsm,
        revocations=Revocations(args.runtime_schema, args.runtime_values),
        insecure_legacy_port=args.insecure_legacy_slc,
    )
