# SPDX-License-Identifier: Apache-2.0
"""Unit files: TOML text in, `Unit` values out. Pure.

The keys are those of the Rust enclave-init, flat at the top level of `NAME.service`, plus what running an image's
USER, WORKDIR and STOPSIGNAL needs. A file that says something this program does not know is refused with the line:
a key that is silently ignored is a protection that silently does not exist.
"""

from __future__ import annotations

import re
import signal
import tomllib
from dataclasses import dataclass, field

from enclavekit_core.errors import ConfigError

from enclavekit_enclave_init.units.commands import Command, EnvironmentFile
from enclavekit_enclave_init.units.keys import KEYS
from enclavekit_enclave_init.units.values import BindPath, normalize_name

MAX_UNIT_BYTES = 64 * 1024  # the longest unit file seen is 2 KiB; a bound keeps a wrong file from filling memory
DEFAULT_PATH = "/sbin:/usr/sbin:/bin:/usr/bin"


@dataclass(frozen=True, slots=True)
class Unit:
    """One service as its file describes it; field by field the keys in `KEYS`."""

    name: str
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    environment_files: tuple[EnvironmentFile, ...] = ()
    restart: str = "no"
    restart_delay_s: float = 5.0
    working_directory: str = "/"
    enabled: bool = True
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    required_by: tuple[str, ...] = ()
    user: str = ""
    group: str = ""
    supplementary_groups: tuple[str, ...] = ()
    root_directory: str = ""
    mount_api_vfs: bool = True
    stop_signal: int = signal.SIGTERM
    stop_timeout_s: float = 10.0
    oneshot: bool = False
    bind_paths: tuple[BindPath, ...] = field(default=())
    powers_off: bool = False
    start_limit_burst: int = 10
    start_limit_interval_s: float = 60.0
    notify: bool = False
    wants: tuple[str, ...] = ()
    binds_to: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    start_pre: tuple[Command, ...] = ()
    start_post: tuple[Command, ...] = ()
    stop_commands: tuple[Command, ...] = ()
    reload_commands: tuple[Command, ...] = ()
    start_timeout_s: float | None = None
    """None: 90 s; no limit for oneshot."""
    restart_max_delay_s: float = 60.0
    success_statuses: tuple[int, ...] = ()
    success_signals: tuple[int, ...] = ()
    kill_mode: str = "control-group"
    watchdog_s: float = 0.0
    health_check: Command | None = None
    health_interval_s: float = 30.0
    health_timeout_s: float = 10.0
    health_retries: int = 3
    limits: tuple[tuple[str, int, int], ...] = ()
    """(name in LIMITS, soft, hard)."""
    memory_max: int = 0
    cpu_quota: float = 0.0
    """Processors."""
    tasks_max: int = 0
    oom_score_adjust: int | None = None
    no_new_privileges: bool = False
    capabilities: tuple[int, ...] | None = None
    """None: all that PID 1 has."""
    seccomp: str = ""
    landlock_read: tuple[str, ...] | None = None
    landlock_write: tuple[str, ...] | None = None
    private_network: bool = False
    private_tmp: bool = False
    heartbeat_waits: bool = False
    insecure_may_lack: tuple[str, ...] = ()

    @property
    def has_cgroup_limits(self) -> bool:
        return bool(self.memory_max or self.cpu_quota or self.tasks_max)


def find_key_line(text: str, key: str) -> int:
    """Return the line, from 1, on which the top-level `key` or `[key]` stands; 0 if it cannot be found.

    A line counts only if what is above it parses on its own: inside a multi-line string or list it does not.
    """
    spelled = rf"(?:{re.escape(key)}|\"{re.escape(key)}\"|'{re.escape(key)}')"
    statement = re.compile(rf"\s*(?:{spelled}\s*[.=]|\[\[?\s*{spelled}\s*[.\]])")
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if statement.match(line):
            try:
                tomllib.loads("\n".join(lines[: number - 1]))
            except (ValueError, RecursionError):
                continue
            return number
    return 0


def enable_text(text: str) -> str:
    """Return a unit file's text with ServiceEnable set to true; unchanged if it does not say it."""
    line = find_key_line(text, "ServiceEnable")
    if not line:
        return text
    lines = text.splitlines(keepends=True)
    ending = "\n" if lines[line - 1].endswith("\n") else ""
    lines[line - 1] = f"ServiceEnable = true{ending}"
    return "".join(lines)


def split_toml_error(exc: Exception, text: str) -> tuple[str, int]:
    """Return tomllib's reason and line, 0 if it names none; besides its own errors those of int() and of nesting."""
    if isinstance(exc, RecursionError):
        return "it is nested too deeply", 0
    reason, _, place = str(exc).partition(" (at ")
    if place.startswith("end of document"):
        return reason.lower(), len(text.splitlines())
    line = place.removeprefix("line ").partition(",")[0]
    return reason.lower(), int(line) if line.isdigit() else 0


def parse_unit(name: str, text: str, source: str) -> Unit:
    """Return the unit that `text` describes.

    Args:
        name: without `.service`. source: the path, for messages.
    Raises:
        ConfigError, whose source is `path:line` wherever one line is to blame.
    """

    def refuse(key: str, reason: str) -> ConfigError:
        line = find_key_line(text, key) if key else 0
        return ConfigError(f"{source}:{line}" if line else source, key, reason)

    try:
        name = normalize_name(name)
    except ValueError as exc:
        raise ConfigError(source, "", str(exc)) from exc
    if len(text) > MAX_UNIT_BYTES:
        raise refuse("", f"it is longer than {MAX_UNIT_BYTES} bytes")
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        reason, line = split_toml_error(exc, text)
        raise ConfigError(f"{source}:{line}" if line else source, "", reason) from exc
    values: dict[str, object] = {}
    for key, value in document.items():
        known = KEYS.get(key)
        if known is None:
            table = isinstance(value, dict)
            raise refuse(key, "a unit file has no tables: leave that line out" if table else "unknown key")
        try:
            parsed = known.parse(value)
        except ValueError as exc:
            raise refuse(key, str(exc)) from exc
        if known.many:
            parsed = (*values.get(known.attribute, ()), *parsed)  # type: ignore[misc]
        values[known.attribute] = parsed
    if "argv" not in values:
        raise refuse("", "it has no ExecStart")
    kind = values.pop("type", "simple")
    values |= {"oneshot": kind == "oneshot", "notify": kind == "notify"}
    if "success" in values:
        values["success_statuses"], values["success_signals"] = values.pop("success")  # type: ignore[misc]
    unit = Unit(name=name, **values)  # type: ignore[arg-type]  # KEYS pairs each attribute with its parser
    if unit.oneshot and unit.restart in ("always", "on-success"):
        raise refuse("Restart", f"a oneshot unit cannot have {unit.restart}: it would never be done")
    for key, has in (("WatchdogSec", unit.watchdog_s), ("HealthCheck", unit.health_check)):
        if unit.oneshot and has:
            raise refuse(key, "a oneshot unit is never up with a process")
    for key, seconds in (("HealthIntervalSec", unit.health_interval_s), ("HealthTimeoutSec", unit.health_timeout_s)):
        if unit.health_check and seconds <= 0:
            raise refuse(key, "it must be above 0")
    if unit.root_directory.rstrip("/"):
        inside = unit.root_directory.rstrip("/") + "/"
        for bind in unit.bind_paths:
            if bind.destination.startswith(inside):
                seen = bind.destination[len(inside) - 1 :]
                raise refuse("BindPaths", f"{bind.destination} is seen from inside RootDirectory: write {seen}")
    return unit
