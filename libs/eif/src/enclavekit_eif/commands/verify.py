# SPDX-License-Identifier: Apache-2.0
"""`eif verify`: every step with its result; exit 6 if one failed."""

from __future__ import annotations

import argparse
import datetime

from enclavekit_core.errors import ConfigError

from enclavekit_eif.commands.output import print_columns, print_json

HELP = "check an image's bytes, its signature, whose it is, and its PCRs"
EXIT_FAILED = 6  # as VerificationError has it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--certificate", metavar="PEM", help="the image must be signed, and by this certificate's key")
    parser.add_argument("--pcr8", metavar="HEX", help="the image must be signed, and by the certificate of this PCR8")
    parser.add_argument("--pcr", action="append", default=[], metavar="N=HEX", help="a register and its value; repeat")
    parser.add_argument("--pcrs", metavar="FILE", help="JSON with PCR0, PCR1, PCR2, PCR8, as `eif build` prints it")
    parser.add_argument("--at", metavar="TIME", help="judge the certificate at this time (RFC 3339; default: now)")
    parser.add_argument("--json", action="store_true", help="for machines")


def run(args: argparse.Namespace) -> int:
    from enclavekit_eif.moment import parse_moment
    from enclavekit_eif.reader import read_eif
    from enclavekit_eif.verify import Result, verify_eif

    at = parse_moment(args.at) if args.at else datetime.datetime.now(datetime.UTC)
    expected = _expected(args)
    der = None
    if args.certificate:
        from enclavekit_eif.signature import load_certificate

        der = load_certificate(args.certificate).certificate_der()
    with read_eif(args.image) as eif:
        steps = verify_eif(eif, certificate_der=der, pcrs=expected, at=at)
    good = all(step.result is not Result.FAILED for step in steps)
    if args.json:
        shown = [{"name": step.name, "result": step.result, "detail": step.detail} for step in steps]
        print_json({"Verified": good, "Steps": shown})
    else:
        print_columns([(step.name, step.result, step.detail) for step in steps])
    return 0 if good else EXIT_FAILED


def _expected(args: argparse.Namespace) -> dict[int, bytes]:
    from enclavekit_eif.verify import FILE_REGISTERS, load_pcrs, parse_register

    expected = load_pcrs(args.pcrs) if args.pcrs else {}
    words = [*args.pcr, f"8={args.pcr8}"] if args.pcr8 is not None else args.pcr
    for word in words:
        number, _, text = word.partition("=")
        try:
            register, value = int(number), parse_register(text)
        except ValueError as exc:
            raise ConfigError("--pcr", word, f"not N=HEX: {exc}") from exc
        if register not in FILE_REGISTERS:
            raise ConfigError("--pcr", word, f"an image decides {', '.join(map(str, FILE_REGISTERS))} and no other")
        if expected.get(register, value) != value:
            raise ConfigError("command line", "", f"two different values for PCR{register}")
        expected[register] = value
    return expected
