# SPDX-License-Identifier: Apache-2.0
"""`attest policy new` and `attest policy check`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator

from enclavekit_core.errors import ConfigError, InputError, VerificationError

from enclavekit_attestation.policy import DEFAULT_MAX_AGE_S, Policy, load_measurements, load_policy
from enclavekit_attestation.roots import AWS

TEMPLATE = """\
# Accepts enclaves that run this image. Add a set for the next release before it is rolled out, and give the old one
# a `not_after`. `attest policy check` says what a policy leaves open.
measurements:
  - name: {name}
    pcrs:
{pcrs}
max_age_s: {max_age_s:.0f}
"""
MEANINGS = {0: "the whole image", 1: "kernel and framework", 2: "the app", 8: "who signed it"}


def run_policy(args: argparse.Namespace) -> int:
    return _new(args) if args.verb == "new" else _check(args)


def _new(args: argparse.Namespace) -> int:
    source = args.eif or args.measurements
    pcrs = measure_image(args.eif) if args.eif else load_measurements(args.measurements).pcrs
    text = format_policy(args.name or os.path.basename(source), pcrs)
    if args.output is None:
        print(text, end="")
        return 0
    try:
        with open(args.output, "x", encoding="utf-8") as out:
            out.write(text)
    except OSError as exc:
        raise InputError("write", args.output, (exc.strerror or str(exc)).lower()) from exc
    return 0


def measure_image(path: str) -> dict[int, bytes]:
    """Return the PCRs of an image: 0, 1, 2, and 8 if it is signed. Raises InputError, VerificationError."""
    try:
        from enclavekit_eif.measure import measure
        from enclavekit_eif.reader import read_eif
    except ImportError as exc:  # an image's framework leaves it out
        raise InputError("measure", path, "enclavekit-eif is not installed; take --measurements") from exc
    with read_eif(path) as image:
        measured = measure(image)
    if not measured.crc_ok:
        raise VerificationError(f"EIF {path}", "its CRC does not match: the file is damaged")
    return measured.registers()


def format_policy(name: str, pcrs: dict[int, bytes]) -> str:
    """Return the text of a policy with one measurement set."""
    if not name.isprintable() or not name.strip():
        raise ConfigError("--name", "", "it cannot be printed")
    lines = []
    for index, value in sorted(pcrs.items()):
        meaning = MEANINGS.get(index)
        lines.append(f'      {index}: "{value.hex()}"' + (f"  # {meaning}" if meaning else ""))
    quoted = json.dumps(name, ensure_ascii=False)  # which is YAML, too; unquoted, 1.0 would be a number
    return TEMPLATE.format(name=quoted, pcrs="\n".join(lines), max_age_s=DEFAULT_MAX_AGE_S)


def _check(args: argparse.Namespace) -> int:
    policy = load_policy(args.file)
    open_ends = list(open_ends_of(policy))
    if args.json:
        table = {
            "usable": True,
            "identifies_code": policy.identifies_code,
            "measurement_sets": [one.name for one in policy.measurements],
            "pcrs": sorted(policy.pcrs),
            "partitions": [root.partition for root in policy.roots] or [AWS],
            "notes": open_ends,
        }
        print(json.dumps(table, indent=2))
        return 0
    for one in policy.measurements:
        print(f"set {one.name}: {', '.join(f'PCR{index}' for index in sorted(one.pcrs))}")
    if policy.pcrs:
        print(f"always: {', '.join(f'PCR{index}' for index in sorted(policy.pcrs))}")
    for note in open_ends:
        print(f"note: {note}")
    print("usable")
    return 0


def open_ends_of(policy: Policy) -> Iterator[str]:
    """Yield what a policy leaves open, for people."""
    import time

    if not policy.identifies_code:
        yield "it does not pin the image: PCR0, or PCR1 and PCR2, have no expected value"
    if policy.allow_debug:
        yield "it accepts debug mode: the parent can read such an enclave's memory"
    now_ms = time.time() * 1000
    for one in policy.measurements:
        begin, end = one.window
        if now_ms > end:
            yield f"the set {one.name} has expired"
        elif now_ms < begin:
            yield f"the set {one.name} does not count yet"
    for root in policy.roots:
        if root.partition != AWS:
            yield f"the root of {root.partition} is the policy's own; only that of {AWS} is embedded here"
