# SPDX-License-Identifier: Apache-2.0
"""Reads the unit files of a directory and PID 1's own configuration."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from enclavekit_core.errors import ConfigError, InputError, describe_cause

from enclavekit_enclave_init.config import (
    MAX_CONFIG_BYTES,
    UPSTREAM_CONFIG_PATH,
    InitConfig,
    add_app_config,
    parse_config,
)
from enclavekit_enclave_init.units.unit import MAX_UNIT_BYTES, Unit, enable_text, parse_unit
from enclavekit_enclave_init.units.values import normalize_name

SUFFIX = ".service"
DISABLED = ".disabled"
MAX_UNITS = 1000  # ten times what any image needs


def read_units(directory: str, note: Callable[[str], None] = lambda text: None) -> list[Unit]:
    """Return the units of `directory`, by name; those of `NAME.service.disabled` are disabled.

    Args: note: told about a disabled file that cannot be read as a unit: it is as if it were not there.
    Raises: ConfigError naming the file, and the line where one is to blame.
    """
    try:
        names = sorted(name for name in os.listdir(directory) if name.endswith((SUFFIX, SUFFIX + DISABLED)))
    except OSError as exc:
        raise ConfigError(directory, "", describe_cause(exc)) from exc
    if len(names) > MAX_UNITS:
        raise ConfigError(directory, "", f"it has more than {MAX_UNITS} units")
    units = []
    for name in names:
        path = os.path.join(directory, name)
        if name.endswith(SUFFIX):
            units.append(parse_unit(name.removesuffix(SUFFIX), _read_text(path, MAX_UNIT_BYTES), path))
        elif name.removesuffix(DISABLED) in names:
            note(f"{path} is not looked at: there is one that is not disabled")
        else:
            try:
                unit = parse_unit(name.removesuffix(SUFFIX + DISABLED), _read_text(path, MAX_UNIT_BYTES), path)
            except ConfigError as exc:
                note(f"{exc} (it is disabled)")
            else:
                units.append(replace(unit, enabled=False))
    return units


def write_enabled(directory: str, name: str, *, enabled: bool) -> None:
    """Enable or disable a unit for good: its file gets or loses `.disabled`; ServiceEnable = false is turned.

    Nothing happens if it is so already. Raises: InputError, ConfigError.
    """
    verb = "enable" if enabled else "disable"
    try:
        name = normalize_name(name)
    except ValueError as exc:
        raise InputError(verb, repr(name), str(exc)) from exc
    path = os.path.join(directory, name + SUFFIX)
    try:
        if enabled:
            if not os.path.exists(path):
                os.rename(path + DISABLED, path)
            text = _read_text(path, MAX_UNIT_BYTES)
            if not parse_unit(name, text, path).enabled:
                _replace_text(path, enable_text(text))
        elif os.path.exists(path):
            os.rename(path, path + DISABLED)
    except OSError as exc:
        raise InputError(verb, name, describe_cause(exc)) from exc


def _replace_text(path: str, text: str) -> None:
    new = path + ".new"
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    with open(fd, "w", encoding="utf-8") as out:
        out.write(text)
    os.replace(new, path)


def read_config(path: str, *, required: bool) -> InitConfig:
    """Return the configuration in `path`, or the defaults if there is no such file and none is required.

    Raises: ConfigError; also for an `/etc/init.yaml` alone, which must not be passed over as if it said nothing.
    """
    if not required and not os.path.lexists(path):
        if os.path.lexists(UPSTREAM_CONFIG_PATH):
            raise ConfigError(UPSTREAM_CONFIG_PATH, "", f"this version reads {path}, in TOML, with the same key names")
        return InitConfig()
    return parse_config(_read_text(path, MAX_CONFIG_BYTES), path)


def read_app_config(config: InitConfig, path: str) -> InitConfig:
    """Return `config` with what the file in the app's part of the image adds, if there is one. Raises ConfigError."""
    return add_app_config(config, _read_text(path, MAX_CONFIG_BYTES), path) if os.path.lexists(path) else config


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
