# SPDX-License-Identifier: Apache-2.0
"""`/etc/init.toml`: what PID 1 itself needs to know. Pure.

TOML, because the standard library reads it: a YAML parser costs PID 1 memory and the image a dependency. The keys have
the names of the Rust enclave-init's `init.yaml`, so that one can be turned into the other line by line.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from enclavekit_core.address import CID_PARENT, MAX_U32
from enclavekit_core.errors import ConfigError

from enclavekit_enclave_init.initctl.access import ControlConfig, parse_control_config
from enclavekit_enclave_init.logs.config import LogConfig, parse_log_config

CONFIG_PATH = "/etc/init.toml"
APP_CONFIG_PATH = "/etc/enclavekit/init.toml"  # of the app's part of the image, which is measured with it
UPSTREAM_CONFIG_PATH = "/etc/init.yaml"
MAX_CONFIG_BYTES = 256 * 1024
MAX_TIMEOUT_S = 3600.0
_ADDRESS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")
_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class ParentConfig:
    """Table `vsock`: how PID 1 talks to the parent."""

    enabled: bool = True
    """Send the heartbeat and the exit report; without the heartbeat nitro-cli takes the enclave for dead (E36)."""
    cid: int = CID_PARENT
    port: int = 9000
    """Of the heartbeat, fixed by nitro-cli."""
    report_port: int = 9002
    """Of the exit report; nobody need listen there."""
    timeout_s: float = 10.0
    """For each of the two; the parent listens before it starts the enclave, so an answer takes milliseconds."""


@dataclass(frozen=True, slots=True)
class InitConfig:
    """The whole file; every key may be left out."""

    service_dir: str = "/service"
    log_dir: str = "/log"
    max_log_size: int = 1024 * 1024
    """Bytes of one log file before it is rotated; small, because an enclave's files are in its memory."""
    max_log_files: int = 4
    """Files per unit, the current one included."""
    hostname: str = "enclave"
    """Empty: left as it is."""
    nsm_driver_path: str = "/nsm.ko"
    """Loaded first if it is there and /dev/nsm is not; empty: never."""
    kernel_modules: tuple[str, ...] = ()
    """Module files, loaded in this order; a missing one stops the boot."""
    environment: tuple[tuple[str, str], ...] = ()
    """Table: given to every unit, below its own Environment."""
    vsock: ParentConfig = field(default_factory=ParentConfig)
    logs: LogConfig = field(default_factory=LogConfig)
    control: ControlConfig = field(default_factory=ControlConfig)
    nameserver: str = ""
    """Address for /etc/resolv.conf, where the image has none; empty: no such file is made."""


def parse_config(text: str, source: str) -> InitConfig:
    """Return the configuration in `text`. Raises ConfigError for what it does not know or cannot use."""
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        # RecursionError: brackets nested thousands deep
        raise ConfigError(source, "", str(exc).lower()) from exc
    values = dict(document)
    _refuse_unknown(values, InitConfig, source, "")
    parent = values.pop("vsock", {})
    environment = values.pop("environment", {})
    logs = values.pop("logs", {})
    control = values.pop("control", {})
    if not isinstance(parent, dict):
        raise ConfigError(source, "vsock", "it must be a table")
    if not isinstance(environment, dict):
        raise ConfigError(source, "environment", "it must be a table")
    _refuse_unknown(parent, ParentConfig, source, "vsock.")
    for key, value in environment.items():
        if not isinstance(value, str) or "\0" in value or not key or "=" in key:
            raise ConfigError(source, f"environment.{key}", "it must be a string, under a name without =")
    checked = {key: _check(key, value, source) for key, value in values.items()}
    checked_parent = {key: _check(f"vsock.{key}", value, source) for key, value in parent.items()}
    return InitConfig(
        environment=tuple(environment.items()),
        vsock=ParentConfig(**checked_parent),  # type: ignore[arg-type]  # _check knows each key's type
        logs=parse_log_config(logs, source),
        control=parse_control_config(control, source),
        **checked,  # type: ignore[arg-type]
    )


def add_app_config(config: InitConfig, text: str, source: str) -> InitConfig:
    """Return `config` with what the app's part of the image says, in place of the framework's: its table `logs`, and
    who of its users may ask for what (`control.allow`).

    Raises: ConfigError.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(source, "", str(exc).lower()) from exc
    if unknown := document.keys() - {"logs", "control"}:
        raise ConfigError(source, min(unknown), "unknown key: only logs and control.allow are the app's to say")
    if "logs" in document:
        config = replace(config, logs=parse_log_config(document["logs"], source))
    if "control" in document:
        control = parse_control_config(document["control"], source)
        if "socket" in document["control"]:
            raise ConfigError(source, "control.socket", "of control, only allow is the app's to say")
        config = replace(config, control=replace(config.control, allow=control.allow))
    return config


def _refuse_unknown(values: Mapping[str, object], shape: type, source: str, prefix: str) -> None:
    known = {item.name for item in fields(shape)}
    for key in values:
        if key not in known:
            raise ConfigError(source, prefix + key, "unknown key")


def _check(key: str, value: object, source: str) -> object:
    match key:
        case "vsock.enabled":
            if isinstance(value, bool):
                return value
            reason = "it must be true or false"
        case "vsock.cid" | "vsock.port" | "vsock.report_port":
            if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_U32:
                return value
            reason = f"it must be a number from 0 to {MAX_U32}"
        case "vsock.timeout_s":
            if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= MAX_TIMEOUT_S:
                return float(value)
            reason = f"it must be a number of seconds above 0, at most {MAX_TIMEOUT_S:.0f}"
        case "max_log_size" | "max_log_files":
            low, high = (4096, 1 << 32) if key == "max_log_size" else (1, 100)
            if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
                return value
            reason = f"it must be a number from {low} to {high}"
        case "hostname":
            if isinstance(value, str) and (not value or _HOSTNAME.fullmatch(value)):
                return value
            reason = "it is not a host name"
        case "nameserver":
            if isinstance(value, str) and (not value or _ADDRESS.fullmatch(value)):
                return value
            reason = "it must be an IP address"
        case "kernel_modules":
            if isinstance(value, list) and all(_is_path(item) for item in value):
                return tuple(value)
            reason = "it must be a list of absolute paths"
        case _:
            if _is_path(value) or (key == "nsm_driver_path" and value == ""):
                return value
            reason = "it must be an absolute path"
    raise ConfigError(source, key, reason)


def _is_path(value: object) -> bool:
    return isinstance(value, str) and value.startswith("/") and "\0" not in value
