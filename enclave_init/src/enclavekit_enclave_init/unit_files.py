# SPDX-License-Identifier: Apache-2.0
"""Reads the unit files of a directory and PID 1's own configuration."""

from __future__ import annotations

import os

from enclavekit_core.errors import ConfigError, describe_cause

from enclavekit_enclave_init.config import MAX_CONFIG_BYTES, UPSTREAM_CONFIG_PATH, InitConfig, parse_config
from enclavekit_enclave_init.units import MAX_UNIT_BYTES, Unit, parse_unit

SUFFIX = ".service"
MAX_UNITS = 1000  # ten times what any image needs


def read_units(directory: str) -> list[Unit]:
    """Return the units of `directory`, by name; other files, `.service.disabled` among them, are not looked at.

    Raises: ConfigError naming the file, and the line where one is to blame.
    """
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith(SUFFIX))
    except OSError as exc:
        raise ConfigError(directory, "", describe_cause(exc)) from exc
    if len(names) > MAX_UNITS:
        raise ConfigError(directory, "", f"it has more than {MAX_UNITS} units")
    units = []
    for name in names:
        path = os.path.join(directory, name)
        units.append(parse_unit(name.removesuffix(SUFFIX), _read_text(path, MAX_UNIT_BYTES), path))
    return units


def read_config(path: str, *, required: bool) -> InitConfig:
    """Return the configuration in `path`, or the defaults if there is no such file and none is required.

    Raises: ConfigError; also for an `/etc/init.yaml` alone, which must not be passed over as if it said nothing.
    """
    if not required and not os.path.lexists(path):
        if os.path.lexists(UPSTREAM_CONFIG_PATH):
            raise ConfigError(UPSTREAM_CONFIG_PATH, "", f"this version reads {path}, in TOML, with the same key names")
        return InitConfig()
    return parse_config(_read_text(path, MAX_CONFIG_BYTES), path)


def _read_text(path: str, limit: int) -> str:
    try:
        with open(path, "rb") as source:
            data = source.read(limit + 1)
        if len(data) > limit:
            raise ConfigError(path, "", f"it is longer than {limit} bytes")
        return data.decode()
    except (OSError, UnicodeDecodeError) as exc:
        reason = "it is not UTF-8" if isinstance(exc, UnicodeDecodeError) else describe_cause(exc)
        raise ConfigError(path, "", reason) from exc
