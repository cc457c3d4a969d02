# SPDX-License-Identifier: Apache-2.0
"""`attest`: verify attestation documents, anywhere, offline; show them; make policies."""

from __future__ import annotations

import argparse

from enclavekit_core.cli import run_command

from enclavekit_attestation.exit_codes import help_text
from enclavekit_attestation.verify import DOCUMENT_TIME


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="attest", description="Verify attestation documents of Nitro Enclaves.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_verify(commands)
    _add_file(commands)
    show = commands.add_parser("show", help="what a document says, verified by nobody")
    show.add_argument("file", metavar="FILE", help="the document: raw CBOR, hex or base64; - is standard input")
    show.add_argument("--ra-tls", action="store_true", help="FILE is a TLS certificate (PEM or DER) that holds it")
    show.add_argument("--json", action="store_true")
    policy = commands.add_parser("policy", help="make and check policy files")
    verbs = policy.add_subparsers(dest="verb", required=True, metavar="VERB")
    new = verbs.add_parser("new", help="a policy that accepts one image")
    source = new.add_mutually_exclusive_group(required=True)
    source.add_argument("--eif", metavar="FILE", help="measure this image")
    source.add_argument("--measurements", metavar="FILE", help="JSON of `eif describe` or nitro-cli")
    new.add_argument("--name", help="what reports call it (default: the name of the file)")
    new.add_argument("-o", "--output", metavar="FILE", help="write here instead of to standard output; must not exist")
    check = verbs.add_parser("check", help="read a policy as a verifier does, and say what it leaves open")
    check.add_argument("file", metavar="FILE")
    check.add_argument("--json", action="store_true")
    return parser


def _add_verify(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verify = commands.add_parser(
        "verify",
        help="verify a document against the AWS root and a policy",
        epilog=help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verify.add_argument(
        "file", metavar="FILE", nargs="?", help="the document: raw CBOR, hex or base64; - is standard input"
    )
    verify.add_argument(
        "--url",
        metavar="URL",
        help="fetch the document from https://HOST[:PORT][/PATH] with a nonce of our own, and expect that it binds the "
        "TLS key of that very connection (to service ra-web-srv, or --service)",
    )
    verify.add_argument(
        "--ra-tls",
        action="store_true",
        help="the document is inside a TLS certificate, and must bind the key of that very certificate: FILE is the "
        "certificate (PEM or DER), or it is that of the connection to --url; without a nonce, as old as it is",
    )
    verify.add_argument(
        "--at",
        metavar="MS",
        help="archival check: verify as of this moment, milliseconds since 1970 UTC, "
        f"or `{DOCUMENT_TIME}` for the document's own (default: now, a live check)",
    )
    expect = _add_expectations(verify)
    expect.add_argument("--nonce", metavar="HEX", help="expect this nonce")
    expect.add_argument(
        "--service", metavar="NAME", help="expect a binding of this service's TLS key, and show the key's hash"
    )
    expect.add_argument(
        "--certificate", metavar="FILE", help="expect that the bound key is this certificate's (PEM or DER)"
    )
    _add_weakenings(verify)
    verify.add_argument("--all-steps", action="store_true", help="go on after a step that failed, and show them all")
    verify.add_argument("--json", action="store_true", help="print the verdict as JSON")


def _add_file(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    file = commands.add_parser(
        "file",
        help="prove that a file in a running enclave is one of ours",
        epilog=help_text(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    file.add_argument("path", metavar="PATH", help="absolute path in the enclave, below its server's roots")
    file.add_argument("--url", metavar="URL", required=True, help="its ra-web-srv: https://HOST[:PORT]")
    file.add_argument("--expect", metavar="FILE", required=True, help="the file on this machine that it should equal")
    file.add_argument("--generate", action="store_true", help="have it hashed first: for an enclave without fs-monitor")
    file.add_argument("--wait", metavar="S", type=float, default=60.0, help="for its hash (default: 60)")
    expect = _add_expectations(file)
    expect.add_argument("--service", metavar="NAME", help="whose TLS key must be bound (default: ra-web-srv)")
    _add_weakenings(file)
    file.add_argument("--json", action="store_true", help="print the verdict as JSON")


def _add_expectations(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    expect = parser.add_argument_group("what the document must say")
    expect.add_argument("--policy", metavar="FILE", help="policy file (YAML), see `attest policy`")
    expect.add_argument("--measurements", metavar="FILE", help="JSON of `eif describe` or nitro-cli: expect its PCRs")
    expect.add_argument("--pcr", metavar="N=HEX", action="append", default=[], help="expect this value; repeatable")
    expect.add_argument("--max-age", metavar="S", type=float, help="oldest document accepted, seconds (live: 300)")
    return expect


def _add_weakenings(parser: argparse.ArgumentParser) -> None:
    weaken = parser.add_argument_group("what weakens the verdict")
    weaken.add_argument("--allow-debug", action="store_true", help="accept an enclave in debug mode (zero PCRs)")
    weaken.add_argument(
        "--insecure-dev-root", metavar="FILE", help="trust this root (PEM) instead of AWS's: for emulated enclaves"
    )


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("attest", lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Do what the command line says; return the exit code."""
    match args.command:
        case "verify":
            from enclavekit_attestation.commands.verify import run_verify

            return run_verify(args)
        case "file":
            from enclavekit_attestation.commands.file import run_file

            return run_file(args)
        case "show":
            from enclavekit_attestation.commands.show import run_show

            return run_show(args)
        case _:
            from enclavekit_attestation.commands.policy import run_policy

            return run_policy(args)
