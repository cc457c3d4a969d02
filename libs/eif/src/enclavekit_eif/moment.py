# SPDX-License-Identifier: Apache-2.0
"""Read a time from a command line, and judge a certificate's validity at it. Pure; now is an argument."""

from __future__ import annotations

import datetime

from cryptography import x509
from enclavekit_core.errors import ConfigError

SOON = datetime.timedelta(days=30)
"""A certificate that ends sooner gets a warning: an image that cannot be started any more is noticed late."""


def parse_moment(text: str) -> datetime.datetime:
    """Return an RFC 3339 time as an aware datetime; without an offset it is UTC. Raises ConfigError."""
    try:
        moment = datetime.datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
        return moment.astimezone(datetime.UTC)
    except (ValueError, OverflowError) as exc:
        raise ConfigError("--at", "", f"{text!r} is not a time like 2026-01-31T12:00:00Z") from exc


def validity_problem(certificate: x509.Certificate, at: datetime.datetime) -> str:
    """Return why the certificate is not valid at `at`; empty if it is."""
    if at < certificate.not_valid_before_utc:
        return f"not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC"
    if at > certificate.not_valid_after_utc:
        return f"expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"
    return ""


def expiry_warning(certificate: x509.Certificate, at: datetime.datetime) -> str:
    """Return a warning for a valid certificate that will not be valid for long; empty if there is none to give."""
    left = certificate.not_valid_after_utc - at
    if left >= SOON:
        return ""
    return f"expires in {left.days} days, at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC"
