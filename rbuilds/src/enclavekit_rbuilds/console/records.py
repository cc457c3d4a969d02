# SPDX-License-Identifier: Apache-2.0
"""The files that the console itself writes and removes: an image's records, and what make_clear takes away."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.console.plan import RECORD_SUFFIXES


def remove_files(paths: Iterable[str]) -> None:
    """Remove those of `paths` that are there. Raises InputError."""
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise InputError("remove", path, describe_cause(exc)) from exc


def remove_records(image: str) -> None:
    remove_files(image + suffix for suffix in RECORD_SUFFIXES)


def write_records(image: str, description: bytes) -> None:
    """Write NAME.eif.pcr, the measurements alone, and NAME.eif.desc, the whole description. Raises InputError.

    Args:
        description: what `eif describe`, or `nitro-cli describe-eif`, prints.
    """
    try:
        measurements = json.loads(description)["Measurements"]
    except (ValueError, KeyError, TypeError) as exc:
        raise InputError("record", f"measurements of {image}", "its description has none") from exc
    contents = (json.dumps({"Measurements": measurements}, indent=2).encode() + b"\n", description)
    for suffix, content in zip(RECORD_SUFFIXES, contents, strict=True):
        path = image + suffix
        temporary = f"{path}.{os.getpid()}"
        try:
            with open(temporary, "wb") as out:
                out.write(content)
            os.replace(temporary, path)
        except OSError as exc:
            raise InputError("write", path, describe_cause(exc)) from exc
