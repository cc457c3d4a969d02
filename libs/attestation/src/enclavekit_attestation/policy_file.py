# SPDX-License-Identifier: Apache-2.0
"""Policy files: their shape, and what they mean; apart from `policy`, so that verifying does not import YAML."""

from __future__ import annotations

import datetime
import os
from typing import Annotated

import msgspec
from enclavekit_core.config import StrictConfig, load_config
from enclavekit_core.errors import ConfigError, InputError

from enclavekit_attestation.document import SIGNING_PCR
from enclavekit_attestation.measurement import (
    INSTANCE_PCR,
    ROLE_PCR,
    MeasurementSet,
    merge_expected,
    parse_pcrs,
    pcr_of_certificate,
    pcr_of_text,
)
from enclavekit_attestation.policy import DEFAULT_CLOCK_SKEW_S, Policy
from enclavekit_attestation.roots import (
    AWS,
    TrustedRoot,
    parse_certificate,
    partition_root,
    pinned_root,
    read_certificate_file,
)
from enclavekit_attestation.user_data import FieldDemand, UserDataDemand

PINNED = "pinned"
PEM_BEGIN = "-----BEGIN CERTIFICATE-----"
Moment = Annotated[datetime.datetime, msgspec.Meta(tz=True)]


class SetFile(StrictConfig, frozen=True):
    name: str
    """What reports call it, e.g. the release."""
    pcrs: dict[int | str, str]
    """Expected values: index (`0` or `PCR0`) to 96 hex digits."""
    not_before: Moment | None = None
    """First moment at which the set counts, with a time zone: `2026-01-31T00:00:00Z`."""
    not_after: Moment | None = None
    """Last moment."""


class FieldFile(StrictConfig, frozen=True):
    equals: str | int | bool | None = None
    """The one value."""
    matches: str | None = None
    """A regular expression for the whole string."""
    type: str | None = None
    """`string`, `integer`, `boolean`, `object` or `array`."""
    optional: bool = False
    """The field may be missing."""


class UserDataFile(StrictConfig, frozen=True):
    exactly: str | None = None
    """The one value, in hex; instead of `fields`."""
    fields: dict[str, FieldFile] = {}
    """Of a JSON object, each with what it must be."""
    other_fields: bool = False
    """The object may have fields that are not named."""


class PolicyFile(StrictConfig, frozen=True):
    pcrs: dict[int | str, str] | msgspec.UnsetType = msgspec.UNSET
    """Values that every document must have: index (`0` or `PCR0`) to 96 hex digits."""
    measurements: list[SetFile] | msgspec.UnsetType = msgspec.UNSET
    """Sets of which one must be met, e.g. the present release and the next."""
    iam_role: str | None = None
    """ARN of the parent's role: PCR3."""
    instance_id: str | None = None
    """Of the parent: PCR4."""
    signing_certificate: str | None = None
    """Whose key signed the image: PCR8. PEM, or a file beside the policy."""
    allow_debug: bool = False
    """Accept debug mode, in which PCR0..2 are zero."""
    max_age_s: float | None = None
    """Oldest document accepted; default 300 for live checks, no limit for archival ones."""
    clock_skew_s: float | None = None
    """How far ahead the document's clock may be; default 60."""
    require_nonce: bool = False
    """Refuse live checks without a nonce."""
    roots: dict[str, str] | None = None
    """AWS partition to root: `aws: pinned` (default), `aws-us-gov:` PEM or a file beside the policy."""
    user_data: UserDataFile | None = None
    """What the enclave must have put into the document."""


def read_policy(path: str) -> Policy:
    """Read a policy file. Raises ConfigError."""
    loaded = load_config(PolicyFile, path)
    if loaded.pcrs is msgspec.UNSET and loaded.measurements is msgspec.UNSET:
        raise ConfigError(path, "", "it has neither `pcrs` nor `measurements`; `pcrs: {}` accepts any code")
    pcrs = {} if loaded.pcrs is msgspec.UNSET else parse_pcrs(loaded.pcrs, path)
    for index, value in _derived_pcrs(loaded, path):
        pcrs = merge_expected(pcrs, {index: value}, path)
    if loaded.measurements is not msgspec.UNSET and not loaded.measurements:
        raise ConfigError(path, "measurements", "it is empty, so no document could meet one")
    sets = () if loaded.measurements is msgspec.UNSET else tuple(_read_set(one, path) for one in loaded.measurements)
    try:
        return Policy(
            pcrs=pcrs,
            allow_debug=loaded.allow_debug,
            max_age_s=loaded.max_age_s,
            clock_skew_s=DEFAULT_CLOCK_SKEW_S if loaded.clock_skew_s is None else loaded.clock_skew_s,
            measurements=sets,
            user_data=None if loaded.user_data is None else _read_user_data(loaded.user_data, path),
            roots=() if loaded.roots is None else tuple(_read_roots(loaded.roots, path)),
            require_nonce=loaded.require_nonce,
        )
    except ConfigError as exc:
        raise ConfigError(path, exc.key, exc.reason) from exc


def _derived_pcrs(loaded: PolicyFile, path: str) -> list[tuple[int, bytes]]:
    derived = []
    for index, key, text in (
        (ROLE_PCR, "iam_role", loaded.iam_role),
        (INSTANCE_PCR, "instance_id", loaded.instance_id),
    ):
        if text is not None:
            if not text or text != text.strip():
                raise ConfigError(path, key, "it is empty, or has spaces around it")
            derived.append((index, pcr_of_text(text)))
    if loaded.signing_certificate is not None:
        der = _read_pem(loaded.signing_certificate, path, "signing_certificate")
        derived.append((SIGNING_PCR, pcr_of_certificate(der)))
    return derived


def _read_set(one: SetFile, path: str) -> MeasurementSet:
    if not one.name.strip() or not one.name.isprintable():
        raise ConfigError(path, "measurements", "a set has no name that can be printed")
    try:
        return MeasurementSet(one.name, parse_pcrs(one.pcrs, path), _ms(one.not_before), _ms(one.not_after))
    except ConfigError as exc:
        key = one.name if exc.key == one.name else f"{one.name}: {exc.key}"
        raise ConfigError(path, f"measurements: {key}", exc.reason) from exc


def _ms(moment: datetime.datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 1000)


def _read_user_data(loaded: UserDataFile, path: str) -> UserDataDemand:
    exactly = None
    if loaded.exactly is not None:
        if loaded.fields or loaded.other_fields:
            raise ConfigError(path, "user_data", "`exactly` leaves nothing for `fields` to say")
        try:
            exactly = bytes.fromhex(loaded.exactly)
        except ValueError as exc:
            raise ConfigError(path, "user_data.exactly", "it is not hex") from exc
    fields = {name: FieldDemand(one.equals, one.matches, one.type, one.optional) for name, one in loaded.fields.items()}
    return UserDataDemand(exactly, fields, loaded.other_fields)


def _read_roots(roots: dict[str, str], path: str) -> list[TrustedRoot]:
    if not roots:
        raise ConfigError(path, "roots", "it is empty, so no document could be verified")
    found = []
    for partition, value in roots.items():
        if partition == AWS and value == PINNED:
            found.append(pinned_root())
        else:
            found.append(partition_root(partition, _read_pem(value, path, f"roots.{partition:.40}"), path))
    return found


def _read_pem(value: str, path: str, key: str) -> bytes:
    """Return the DER of a certificate that is in the policy, or in a file that is named relative to it."""
    try:
        if value.lstrip().startswith(PEM_BEGIN):
            return parse_certificate(value.encode(), "the certificate")
        file = os.path.join(os.path.dirname(path), value)
        return read_certificate_file(file, file)
    except InputError as exc:
        raise ConfigError(path, key, f"{exc.what}: {exc.reason}") from exc
