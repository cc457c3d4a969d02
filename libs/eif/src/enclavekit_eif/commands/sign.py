# SPDX-License-Identifier: Apache-2.0
"""`eif sign`: with a key file, with a key in KMS, or in two steps with a key that is elsewhere."""

from __future__ import annotations

import argparse
import datetime
import os
import sys

from enclavekit_core.errors import ConfigError, InputError, describe_cause

from enclavekit_eif.commands.output import print_json

HELP = "sign an image, or sign it anew; print its measurements with PCR8"
CURVES = {"P-256": "secp256r1", "P-384": "secp384r1", "P-521": "secp521r1"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--key", metavar="PEM", help="private key, EC on P-256, P-384 or P-521")
    how.add_argument("--kms-key", metavar="ARN", help="key in AWS KMS; needs enclavekit-eif[kms]")
    how.add_argument(
        "--attach", metavar="FILE", help="put in a signature made elsewhere (DER, r || s, or their base64)"
    )
    how.add_argument(
        "--detached-request",
        metavar="FILE",
        help="sign nothing: write what is to be signed to FILE, and its hash to FILE.digest",
    )
    parser.add_argument("--certificate", metavar="PEM", help="of the signing key; its DER is PCR8")
    parser.add_argument(
        "--curve", choices=sorted(CURVES), help="of a --detached-request without --certificate (default: P-384)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="default: IMAGE itself, replaced as a whole")
    parser.add_argument(
        "--at", metavar="TIME", help="the certificate has to be valid at this time (RFC 3339; default: now)"
    )


def run(args: argparse.Namespace) -> int:
    if args.detached_request:
        return _write_request(args)
    if not args.certificate:
        raise ConfigError("command line", "", "a signature needs --certificate")
    if args.curve:
        raise ConfigError("command line", "", "--curve is for --detached-request; else the certificate's key tells it")
    from enclavekit_eif.moment import expiry_warning, parse_moment
    from enclavekit_eif.sign import Signer, sign_eif
    from enclavekit_eif.signature import load_certificate, load_signer, read_small, verify_validity

    at = parse_moment(args.at) if args.at else datetime.datetime.now(datetime.UTC)
    certificate = load_certificate(args.certificate)
    verify_validity(certificate, at)  # before a key is touched or a service asked
    signer: Signer
    if args.key:
        signer = load_signer(args.certificate, args.key)
    elif args.kms_key:
        from enclavekit_eif.kms import kms_signer

        signer = kms_signer(args.kms_key, certificate.certificate_pem)
    else:
        from enclavekit_eif.detached import DetachedSigner

        signer = DetachedSigner(certificate.certificate_pem, read_small(args.attach))
    target = args.output or args.image
    measured = sign_eif(args.image, target, signer, at=at)
    if warning := expiry_warning(certificate.certificate(), at):
        print(
            f"eif: warning: the signing certificate {warning}; the image cannot be started after that", file=sys.stderr
        )
    print(f"Output file: {target}", file=sys.stderr)
    print_json({"Measurements": measured.to_json()})
    return 0


def _write_request(args: argparse.Namespace) -> int:
    from enclavekit_eif.detached import signing_request
    from enclavekit_eif.reader import read_eif
    from enclavekit_eif.sign import measure_undamaged
    from enclavekit_eif.signature import ALGORITHMS, DEFAULT_CURVE, algorithm_of, load_certificate

    if args.output:
        raise ConfigError("command line", "", "--detached-request writes no image, so it takes no --output")
    if args.certificate and args.curve:
        raise ConfigError("command line", "", "--curve and --certificate exclude each other: the certificate tells it")
    if args.certificate:
        algorithm = algorithm_of(load_certificate(args.certificate).certificate())
    else:
        algorithm = ALGORITHMS[CURVES[args.curve] if args.curve else DEFAULT_CURVE]
    with read_eif(args.image) as eif:
        pcr0 = measure_undamaged(eif).pcr0
    request = signing_request(algorithm, pcr0)
    digest_path = f"{args.detached_request}.digest"
    _write_whole(args.detached_request, request.message)
    _write_whole(digest_path, request.digest)
    print_json(
        {
            "PCR0": pcr0.hex(),
            "Algorithm": algorithm.name,
            "Hash": algorithm.hash.name,
            "Digest": request.digest.hex(),
            "ToBeSigned": args.detached_request,
            "DigestFile": digest_path,
        }
    )
    return 0


def _write_whole(path: str, data: bytes) -> None:
    from enclavekit_eif.writer import replaced_file

    try:
        with replaced_file(os.path.realpath(path)) as fd, open(fd, "wb", closefd=False) as out:
            out.write(data)
    except OSError as exc:
        raise InputError("write", path, describe_cause(exc)) from exc
