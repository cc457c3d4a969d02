# SPDX-License-Identifier: Apache-2.0
"""Who may ask for what on the control socket, and the table `control` of `/etc/init.toml`. Pure.

The kernel says who is at the other end of a Unix socket (SO_PEERCRED, at connect). Root may do everything: it could do
all of it without us. Whoever is not listed may do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from enclavekit_core.errors import ConfigError

from enclavekit_enclave_init.initctl.requests import ALL, PERMISSIONS, Request

SOCKET_PATH = "/run/init.sock"
MAX_ID = (1 << 32) - 2  # (uid_t)-1 is nobody


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever made a connection."""

    pid: int
    uid: int
    gid: int

    def __str__(self) -> str:
        return f"pid {self.pid} uid {self.uid}"


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """Who may ask, and where."""

    socket: str = SOCKET_PATH
    """Empty: there is no control socket."""
    allow: tuple[tuple[int, frozenset[str]], ...] = ()
    """(uid, permissions): users besides root."""

    @property
    def socket_mode(self) -> int:
        """Whom the file itself lets in; the credentials are looked at in any case."""
        return 0o666 if self.allow else 0o600


def permissions_of(config: ControlConfig, caller: Caller) -> frozenset[str]:
    """Return what `caller` may do."""
    if caller.uid == 0:
        return frozenset(PERMISSIONS)
    return next((granted for uid, granted in config.allow if uid == caller.uid), frozenset())


def explain_refusal(config: ControlConfig, caller: Caller, request: Request) -> str:
    """Return why `caller` may not make `request`; empty if it may."""
    if request.permission in permissions_of(config, caller):
        return ""
    return f"uid {caller.uid} may not {PERMISSIONS[request.permission]}"


def parse_control_config(values: object, source: str) -> ControlConfig:
    """Return the table. Raises ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(source, "control", "it must be a table")
    if unknown := values.keys() - {"socket", "allow"}:
        raise ConfigError(source, f"control.{min(unknown)}", "unknown key")
    path = values.get("socket", SOCKET_PATH)
    if not isinstance(path, str) or (path and not path.startswith("/")) or "\0" in path or len(path.encode()) > 100:
        raise ConfigError(source, "control.socket", "it must be an absolute path of at most 100 bytes, or empty")
    entries = values.get("allow", [])
    if not isinstance(entries, list):
        raise ConfigError(source, "control.allow", "it must be a list of tables: [[control.allow]]")
    allow: dict[int, frozenset[str]] = {}
    for entry in entries:
        if not isinstance(entry, Mapping) or entry.keys() != {"uid", "permissions"}:
            raise ConfigError(source, "control.allow", "each has uid and permissions, and nothing else")
        uid = entry["uid"]
        if isinstance(uid, bool) or not isinstance(uid, int) or not 0 < uid <= MAX_ID:
            raise ConfigError(source, "control.allow.uid", "it must be the number of a user, not root's")
        if uid in allow:
            raise ConfigError(source, "control.allow.uid", f"{uid} is there twice")
        allow[uid] = parse_permissions(entry["permissions"], source, "control.allow.permissions")
    return ControlConfig(path, tuple(allow.items()))


def parse_permissions(value: object, source: str, key: str) -> frozenset[str]:
    """Return a list of permissions, `all` spelled out. Raises ConfigError."""
    if not isinstance(value, list) or not value:
        raise ConfigError(source, key, "it must be a list")
    for item in value:
        if item not in (*PERMISSIONS, ALL):
            raise ConfigError(source, key, f"{item!r} is none of {', '.join((*PERMISSIONS, ALL))}")
    return frozenset(PERMISSIONS if ALL in value else value)
