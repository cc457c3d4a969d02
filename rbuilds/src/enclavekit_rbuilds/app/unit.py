# SPDX-License-Identifier: Apache-2.0
"""Turn an image's run configuration into the app's service unit. Pure.

What would only fail at boot, where nobody sees it, fails here: a program that is not in the image, an unknown user, a
working directory that is a file.
"""

from __future__ import annotations

import json
import signal
import stat

from enclavekit_core.errors import InputError
from enclavekit_core.runtime_config import ENVIRONMENT_PATH

from enclavekit_rbuilds.app.accounts import Account
from enclavekit_rbuilds.app.image_config import DEFAULT_PATH, ImageConfig
from enclavekit_rbuilds.app.inodes import Inode, TreeError, directory
from enclavekit_rbuilds.app.tree import AppTree, Node, split_path
from enclavekit_rbuilds.manifest.control import SOCKET

APP_ROOT = "/rootfs"
SHARED = "/data"
MOUNT_POINTS = {"data": 0o755, "dev": 0o755, "proc": 0o755, "run": 0o755, "sys": 0o755, "tmp": 0o1777}


def prepare_tree(tree: AppTree, config: ImageConfig, account: Account) -> None:
    """Add what every app root needs: mount points, and the working directory, which engines make as well."""
    for name, permissions in MOUNT_POINTS.items():
        node = tree.resolve((name.encode(),))
        if node is None:
            tree.place((name.encode(),), directory(permissions))
        elif not node.is_directory:
            raise InputError("pack", f"/{name} of the app", "it is not a directory, and something is mounted there")
    for volume in config.volumes:
        if volume.startswith("/"):
            _make_directory(tree, volume, "volume", directory())
    made = directory()
    made.uid, made.gid = account.uid, account.gid
    _make_directory(tree, config.working_directory, "working directory", made)


def _make_directory(tree: AppTree, path: str, what: str, inode: Inode) -> None:
    where = _split(path, what)
    if tree.resolve(where) is None:
        try:
            tree.place(where, inode)
        except TreeError as exc:
            raise InputError("make", f"{what} {path}", str(exc)) from exc


def make_unit(
    tree: AppTree, config: ImageConfig, account: Account, *, takes_values: bool = False, has_control: bool = False
) -> str:
    """Return `app.service`. Raises InputError for what could not start.

    Args:
        takes_values: it waits for this deployment's. has_control: some user of it may ask PID 1.
    """
    if not config.argv or not config.argv[0]:
        raise InputError("build", "the app", "it has no ENTRYPOINT and no CMD: give --entrypoint or --cmd")
    node = tree.resolve(_split(config.working_directory, "working directory"))
    if node is None or not node.is_directory:
        raise InputError("use working directory", config.working_directory, "it is not a directory in the image")
    environment = {"PATH": DEFAULT_PATH, "HOME": account.home, **config.environment}
    program = find_program(tree, config, environment["PATH"])
    lines: dict[str, str | list[str]] = {
        "ExecStart": [program, *config.argv[1:]],
        "Environment": [f"{name}={value}" for name, value in environment.items()],
        "WorkingDirectory": config.working_directory,
        "RootDirectory": APP_ROOT,
        # the socket need not be there: the app runs without
        "BindPaths": [f"{SHARED}:{SHARED}", *([f"-{SOCKET}:{SOCKET}"] if has_control else [])],
        "User": str(account.uid),
        "Group": str(account.gid),
        "SupplementaryGroups": [str(group) for group in account.groups],
        "StopSignal": _signal(config.stop_signal),
        "After": ["fs-monitor", "pipeline"],
        "OnExit": "poweroff",
        # not before the values of this deployment are measured
        "Requires": ["runtime-config"] if takes_values else [],
        "EnvironmentFile": [ENVIRONMENT_PATH] if takes_values else [],
    }
    return "".join(f"{key} = {_toml(value)}\n" for key, value in lines.items() if value != [])


def find_program(tree: AppTree, config: ImageConfig, search_path: str) -> str:
    """Return argv[0] as a path in the image, looked up in `search_path` as execvp would. Raises InputError."""
    name = config.argv[0]
    if "/" in name:
        absolute = name if name.startswith("/") else f"{config.working_directory.rstrip('/')}/{name}"
        candidates = [absolute]
    else:
        candidates = [f"{part.rstrip('/')}/{name}" for part in search_path.split(":") if part.startswith("/")]
    for candidate in candidates:
        node = tree.resolve(_split(candidate, "program"))
        if _is_executable(node):
            return candidate
    reason = "it is not in the image, or not executable"
    raise InputError("find program", name, reason if "/" in name else f"{reason} (PATH={search_path})")


def _is_executable(node: Node | None) -> bool:
    return node is not None and stat.S_ISREG(node.mode) and bool(node.mode & 0o111)


def _split(path: str, what: str) -> tuple[bytes, ...]:
    """Components of an absolute path of the configuration; `..` is left to the tree, which stays inside its root."""
    if not path.startswith("/"):
        raise InputError(f"use {what}", path, "it is not an absolute path")
    try:
        return split_path(path.encode())
    except (TreeError, UnicodeEncodeError) as exc:
        raise InputError(f"use {what}", path, str(exc)) from exc


def _signal(text: str) -> str:
    """Return the name of a stop signal, given as `SIGTERM`, `TERM`, `15` or `SIGRTMIN+3`. Raises InputError."""
    name = text.upper()
    base, plus, offset = name.partition("+")
    full = base if base.startswith("SIG") else f"SIG{base}"
    if name.isdigit() and 1 <= int(name) <= signal.SIGRTMAX:
        return name
    if full in signal.Signals.__members__ and (not plus or (full == "SIGRTMIN" and offset.isdigit())):
        return full + plus + offset
    raise InputError("use stop signal", text, "there is no such signal")


def _toml(value: str | list[str]) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if "\0" in value:
        raise InputError("use", repr(value), "it holds a NUL byte")
    # TOML's basic strings are JSON's, but for DEL, which has to be escaped, and surrogates, which cannot be written
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise InputError("use", repr(value), "it is not valid Unicode") from exc
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
