# SPDX-License-Identifier: Apache-2.0
"""Verify an image step by step: its bytes, its signature, whose it is, and the PCRs that somebody expects.

A signature alone proves that *some* key signed. Whose, the caller says by a certificate or by PCR8.
"""

from __future__ import annotations

import datetime
import enum
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from enclavekit_core.errors import InputError, VerificationError, describe_cause

from enclavekit_eif.measure import PCR_BYTES, Measurements, measure, pcr_of
from enclavekit_eif.reader import Eif, arch_name

MAX_PCR_FILE_BYTES = 1 << 20
FILE_REGISTERS = (0, 1, 2, 8)  # what a file alone decides; 3 and 4 are those of a running enclave


class Result(enum.StrEnum):
    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    """Stable, for machines."""
    result: Result
    detail: str


def verify_eif(
    eif: Eif,
    *,
    certificate_der: bytes | None = None,
    pcrs: Mapping[int, bytes] | None = None,
    at: datetime.datetime,
) -> list[Step]:
    """Return what was checked, in order. The image holds only if no step failed. Every byte is read.

    Args:
        certificate_der: the certificate that must have signed.
        pcrs: register -> value that it must have; 8 stands for the signer.
        at: the time at which the signing certificate has to be valid.

    Raises: InputError if the file cannot be read or its signature section is malformed.
    """
    expected = dict(pcrs or {})
    measured = measure(eif)
    steps = [
        Step("structure", Result.OK, f"version {eif.version}, {arch_name(eif)}, {len(eif.sections)} sections"),
        _step(
            "crc", measured.crc_ok, f"{eif.crc32:08x}", "the stored CRC is not that of the bytes: the file is damaged"
        ),
    ]
    must_be_signed = certificate_der is not None or 8 in expected
    if eif.signature is None:
        detail = "the image is not signed"
        steps.append(Step("signature", Result.FAILED if must_be_signed else Result.SKIPPED, detail))
    else:
        steps += _signature_steps(eif, measured, certificate_der, 8 in expected, at)
    steps += [_register_step(number, value, measured) for number, value in sorted(expected.items())]
    return steps


def _signature_steps(
    eif: Eif, measured: Measurements, certificate_der: bytes | None, signer_by_pcr8: bool, at: datetime.datetime
) -> list[Step]:
    from enclavekit_eif.moment import expiry_warning, validity_problem
    from enclavekit_eif.signature import read_signature, verify_signature

    signature = read_signature(eif)
    certificate = signature.certificate()
    try:
        verify_signature(signature, measured.pcr0)
        steps = [Step("signature", Result.OK, "made over PCR0 by the key of the certificate in the image")]
    except VerificationError as exc:
        steps = [Step("signature", Result.FAILED, exc.reason)]
    problem = validity_problem(certificate, at)
    valid = expiry_warning(certificate, at) or f"until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"
    steps.append(_step("validity", not problem, valid, f"{problem} (E59 on Nitro)"))
    if certificate_der is not None:
        same = hmac.compare_digest(signature.certificate_der(), certificate_der)
        steps.append(_step("signer", same, "the certificate is the one given", "the certificate is another one"))
    elif not signer_by_pcr8:
        steps.append(Step("signer", Result.SKIPPED, "nobody said whose it has to be (--certificate or --pcr8)"))
    return steps


def _register_step(number: int, value: bytes, measured: Measurements) -> Step:
    found = measured.registers().get(number)
    shown = found.hex() if found else "zero, as the image is not signed"
    same = found is not None and hmac.compare_digest(found, value)
    return _step(f"pcr{number}", same, shown, f"expected {value.hex()}, it is {shown}")


def _step(name: str, good: bool, detail: str, failure: str) -> Step:
    return Step(name, Result.OK, detail) if good else Step(name, Result.FAILED, failure)


def certificate_pcr8(certificate_der: bytes) -> bytes:
    """Return PCR8 of images that this certificate's key signs."""
    return pcr_of([certificate_der])


def parse_register(text: str) -> bytes:
    """Return the bytes of a PCR in hex. Raises ValueError."""
    value = bytes.fromhex(text)
    if len(value) != PCR_BYTES:
        raise ValueError(f"{len(value)} bytes are not {PCR_BYTES}")
    return value


def load_pcrs(path: str | os.PathLike[str]) -> dict[int, bytes]:
    """Return register -> value of a JSON file: the output of `eif build`, of `nitro-cli`, or a plain {"PCR0": hex}.

    Raises: InputError; also for a file that names no register that an image decides.
    """
    name = os.fspath(path)
    try:
        with open(name, "rb") as source:
            data = source.read(MAX_PCR_FILE_BYTES + 1)
        if len(data) > MAX_PCR_FILE_BYTES:
            raise ValueError(f"more than {MAX_PCR_FILE_BYTES} bytes")
        return pcrs_of(json.loads(data))
    except (OSError, ValueError, RecursionError) as exc:
        raise InputError("read PCRs", name, describe_cause(exc)) from exc


def pcrs_of(document: Any) -> dict[int, bytes]:
    """Return the registers of a document, or of its `Measurements`. Raises ValueError."""
    if isinstance(document, dict) and "Measurements" in document:
        document = document["Measurements"]
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    found = {}
    for number in FILE_REGISTERS:
        for key in (f"PCR{number}", f"pcr{number}"):
            if key in document:
                if not isinstance(document[key], str):
                    raise ValueError(f"{key} is not a string")
                try:
                    found[number] = parse_register(document[key])
                except ValueError as exc:
                    raise ValueError(f"{key}: {exc}") from exc
    if not found:
        raise ValueError("it names none of PCR0, PCR1, PCR2 and PCR8")
    return found
