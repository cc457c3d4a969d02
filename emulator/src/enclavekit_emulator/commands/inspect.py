# SPDX-License-Identifier: Apache-2.0
"""`nitro-emu describe-eif`, `pcr`, `explain` and `dev-root`: questions that need no enclave."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator

from enclavekit_core.nitro_errors import NITRO_ERRORS, parse_error_code

from enclavekit_emulator.image import check_readable
from enclavekit_emulator.nitro_errors import NitroError, explain

CHUNK_BYTES = 1024 * 1024
MAX_CERTIFICATE_BYTES = 64 * 1024


def add_parsers(subcommands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    describe = subcommands.add_parser("describe-eif", help="show what an image holds and measures")
    describe.add_argument("--eif-path", required=True, metavar="FILE")
    describe.set_defaults(run=run_describe_eif)
    pcr = subcommands.add_parser("pcr", help="compute the PCR of a file or of a signing certificate")
    source = pcr.add_mutually_exclusive_group(required=True)
    source.add_argument("--signing-certificate", metavar="FILE", help="PEM; gives PCR8")
    source.add_argument("--input", metavar="FILE", help="any file")
    pcr.set_defaults(run=run_pcr)
    meaning = subcommands.add_parser("explain", help="say what an error number means")
    meaning.add_argument("--error-code", required=True, metavar="E26")
    meaning.set_defaults(run=run_explain)
    root = subcommands.add_parser(
        "dev-root", help="print the path of the root that signs emulated documents; not in nitro-cli"
    )
    root.set_defaults(run=run_dev_root)


def run_describe_eif(args: argparse.Namespace) -> int:
    """Print the description. A wrong CRC is shown, not refused, as by nitro-cli. Raises NitroError."""
    from enclavekit_emulator.image import describe_image

    print(json.dumps(describe_image(args.eif_path), indent=2))
    return 0


def run_pcr(args: argparse.Namespace) -> int:
    """Print the PCR. Raises NitroError."""
    from enclavekit_eif.measure import pcr_of

    if args.input is not None:
        check_readable(args.input)
        print(json.dumps({"PCR": pcr_of(_read_chunks(args.input)).hex()}, indent=2))
        return 0
    print(json.dumps({"PCR8": pcr_of([_certificate_der(args.signing_certificate)]).hex()}, indent=2))
    return 0


def _read_chunks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk


def _certificate_der(path: str) -> bytes:
    import ssl

    if check_readable(path) > MAX_CERTIFICATE_BYTES:
        raise NitroError(19, f"cannot read certificate {path}: it is larger than {MAX_CERTIFICATE_BYTES} bytes")
    with open(path, "rb") as source:
        text = source.read(MAX_CERTIFICATE_BYTES)
    found = re.search(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", text, re.DOTALL)
    try:
        if found is None:
            raise ValueError("it holds no PEM certificate")
        return ssl.PEM_cert_to_DER_cert(found.group().decode("ascii"))
    except ValueError as exc:
        raise NitroError(19, f"cannot read certificate {path}: {exc}") from exc


def run_explain(args: argparse.Namespace) -> int:
    """Print the meaning on stderr, as nitro-cli does. Raises NitroError 3 for a number that nitro-cli has not."""
    number = parse_error_code(args.error_code)
    if number is None:
        raise NitroError(3, f"cannot explain {args.error_code}: the numbers are E00 to E{max(NITRO_ERRORS)}")
    print(explain(number), file=sys.stderr)
    return 0


def run_dev_root(_args: argparse.Namespace) -> int:
    """Print the path of the development root's certificate, which is made if it does not exist."""
    from enclavekit_emulator.identity import emulator_state_dir
    from enclavekit_emulator.nsm_authority import dev_root_path, ensure_dev_root

    ensure_dev_root(emulator_state_dir())
    print(dev_root_path(emulator_state_dir()))
    return 0
