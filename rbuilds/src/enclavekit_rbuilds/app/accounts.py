# SPDX-License-Identifier: Apache-2.0
"""Who an app runs as: the image's USER, looked up in the image's own /etc/passwd and /etc/group at build time.

The unit gets numbers, so that nothing is left to be looked up, or to be not found, at boot.
"""

from __future__ import annotations

from dataclasses import dataclass

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.app.inodes import Content
from enclavekit_rbuilds.app.tree import AppTree

MAX_ACCOUNTS_BYTES = 4 * 1024 * 1024  # of /etc/passwd and /etc/group; anything larger is no such file
MAX_ID = 0xFFFFFFFE


@dataclass(frozen=True, slots=True)
class Account:
    """Numbers and home directory of the app's user."""

    uid: int
    gid: int
    home: str
    groups: tuple[int, ...] = ()
    """Those that list the user, besides its own. None for root, whose rights no group adds to."""


def resolve_user(tree: AppTree, user: str) -> Account:
    """Return the account that `user` (`name|uid[:group|gid]`, empty for root) names. Raises InputError."""
    name, _, group = user.partition(":")
    name = name or "0"
    row = _row(tree, "passwd", name)
    if row is None and not _is_number(name):
        raise InputError("use user", repr(user), "it is not in the image's /etc/passwd")
    uid = _number(row[2] if row else name, user)
    gid = _number(row[3], user) if row else 0
    if group:
        group_row = _row(tree, "group", group)
        if group_row is None and not _is_number(group):
            raise InputError("use group", repr(user), "it is not in the image's /etc/group")
        gid = _number(group_row[2] if group_row else group, user)
    home = row[5] if row else ("/root" if uid == 0 else "/")
    groups = _groups_of(tree, row[0], user) - {gid} if row and uid and not group else set()  # as engines do
    return Account(uid, gid, home or "/", tuple(sorted(groups)))


def _groups_of(tree: AppTree, name: str, user: str) -> set[int]:
    rows = (line.split(":") for line in _read(tree, "group").splitlines() if line.count(":") == 3)
    return {_number(row[2], user) for row in rows if name in row[3].split(",")}


def _row(tree: AppTree, table: str, wanted: str) -> list[str] | None:
    """Return the fields of the first line whose name is `wanted`, else of the first whose number it is."""
    width = 7 if table == "passwd" else 4
    rows = [line.split(":") for line in _read(tree, table).splitlines() if line.count(":") == width - 1]
    by_number = (row for row in rows if _is_number(wanted) and row[2] == str(int(wanted)))
    return next((row for row in rows if row[0] == wanted), None) or next(by_number, None)


def _read(tree: AppTree, table: str) -> str:
    node = tree.resolve((b"etc", table.encode()))
    content = node.inode.content if node is not None else b""
    if not isinstance(content, Content) or not content.size:
        return ""
    what = f"/etc/{table} of the app"
    if content.size > MAX_ACCOUNTS_BYTES:
        raise InputError("read", what, f"it is larger than {MAX_ACCOUNTS_BYTES} bytes")
    try:
        with open(content.path, "rb") as source:
            source.seek(content.offset)
            text = source.read(content.size)
    except OSError as exc:
        raise InputError("read", what, describe_cause(exc)) from exc
    return text.decode("utf-8", "replace")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _number(text: str, user: str) -> int:
    if not _is_number(text) or int(text) > MAX_ID:
        raise InputError("use user", repr(user), f"{text!r} is not a number up to {MAX_ID}")
    return int(text)
