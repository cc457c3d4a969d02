# SPDX-License-Identifier: Apache-2.0
"""The vectors of docs/reference/verification.md are what our verifier finds."""

import hashlib
import re
from pathlib import Path

import pytest
from enclavekit_attestation import Policy, parse_document, verify

from .conftest import read_data

PAGE = Path(__file__).resolve().parents[3] / "docs/reference/verification.md"
ROWS = re.findall(r"^\| (attdoc\S+) \| ([^`|]+) \| (\w+) \|$", PAGE.read_text(), re.MULTILINE)
FILES = re.findall(r"^\| (attdoc\S+) \| `(\w{64})` \| (\d+) \|$", PAGE.read_text(), re.MULTILINE)


def test_page_has_vectors():
    assert len(ROWS) > 15
    assert len(FILES) == 4


@pytest.mark.parametrize(("name", "digest", "timestamp"), FILES)
def test_files(name, digest, timestamp):
    raw = read_data(name)
    assert hashlib.sha256(raw).hexdigest() == digest
    assert parse_document(raw).timestamp_ms == int(timestamp)


def vector(name, change):
    """Return the bytes that a row of the page is about, and the moment."""
    raw = read_data(name)
    at = parse_document(raw).timestamp_ms
    if change.startswith("flip "):
        position = int(change[5:])
        raw = raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]
    elif change.startswith("t"):
        at += int(change[1:])
    elif change.startswith("+"):
        raw += bytes.fromhex(change[1:])
    elif change.endswith("+"):
        raw = bytes.fromhex(change[:-1]) + raw
    elif change == "-1":
        raw = raw[:-1]
    else:
        assert change == "none"
    return raw, at


@pytest.mark.parametrize(("name", "change", "result"), ROWS)
def test_vector(name, change, result):
    raw, at = vector(name, change)
    report = verify(raw, Policy(), at=at, whole_report=True)
    assert (report.first_failure.name if report.first_failure else "passes") == result
