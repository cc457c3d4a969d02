# SPDX-License-Identifier: Apache-2.0
"""Which host ids stand behind the uids and gids of an emulated enclave, and how to tell the kernel.

An enclave's root must never be the host's root: with uid 0 mapped to itself it could write the host's sysctls and
every file of root's that it reaches. As root each enclave therefore gets 65536 ids of its own, far from any user's;
an ordinary user takes ids from /etc/subuid if the machine grants some, and only its own single id otherwise.
Source: user_namespaces(7), subuid(5), newuidmap(1).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from enclavekit_emulator.nitro_errors import BOOT_FAILURE, NitroError

FIRST_SHIFTED_ID = 0x20000000  # above what distributions hand out in /etc/subuid and systemd takes for containers
IDS_PER_ENCLAVE = 65536
MAX_SLOTS = 16384  # keeps every id below 2**31, where some file systems stop
NEWUIDMAP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Range:
    inside: int
    host: int
    count: int

    def __str__(self) -> str:
        return f"{self.inside} {self.host} {self.count}"


@dataclass(frozen=True, slots=True)
class IdMap:
    uids: tuple[Range, ...]
    gids: tuple[Range, ...]
    tool: bool = False
    """True: newuidmap and newgidmap write it, because this user may not."""
    note: str = ""
    """What does not work with it; empty if everything does."""

    @property
    def is_single(self) -> bool:
        """True if the enclave knows one user only: nothing in it can run as another, or belong to one."""
        return len(self.uids) == 1 and self.uids[0].count == 1

    @property
    def root_uid(self) -> int:
        """Host uid of the enclave's root."""
        return self.uids[0].host

    @property
    def root_gid(self) -> int:
        return self.gids[0].host


@dataclass(frozen=True, slots=True)
class Account:
    """Who runs the emulator and which ids it may hand out."""

    uid: int
    gid: int
    name: str
    mapped_ids: tuple[tuple[int, int], ...]
    """(first, count) of the uids that exist in the current user namespace."""
    subuids: tuple[int, int] | None
    subgids: tuple[int, int] | None
    has_tools: bool


def plan_id_map(account: Account, slot: int) -> IdMap:
    """Return the map for the enclave in `slot` (0..MAX_SLOTS-1, unique among running enclaves). Pure."""
    first = FIRST_SHIFTED_ID + slot * IDS_PER_ENCLAVE
    if account.uid == 0 and any(low <= first and first + IDS_PER_ENCLAVE <= low + n for low, n in account.mapped_ids):
        shifted = (Range(0, first, IDS_PER_ENCLAVE),)
        return IdMap(shifted, shifted)
    subuids, subgids = account.subuids, account.subgids
    if account.has_tools and subuids and subgids:
        return IdMap(
            (Range(0, account.uid, 1), Range(1, subuids[0], min(subuids[1], IDS_PER_ENCLAVE - 1))),
            (Range(0, account.gid, 1), Range(1, subgids[0], min(subgids[1], IDS_PER_ENCLAVE - 1))),
            tool=True,
        )
    return IdMap(
        (Range(0, account.uid, 1),),
        (Range(0, account.gid, 1),),
        note=f"user {account.name} has no ids in /etc/subuid and /etc/subgid (or newuidmap is missing): "
        "units with a User of their own cannot start",
    )


def parse_sub_ids(text: str, name: str, number: int) -> tuple[int, int] | None:
    """Return (first, count) of the first range that /etc/subuid or subgid `text` grants to a user. Pure."""
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in (name, str(number)) and fields[1].isdigit() and fields[2].isdigit():
            first, count = int(fields[1]), int(fields[2])
            if count > 0 and first > 0:
                return first, count
    return None


def read_account() -> Account:
    """Return the account that this process runs as."""
    import pwd

    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    with open("/proc/self/uid_map", encoding="ascii") as source:
        mapped = tuple((int(line.split()[0]), int(line.split()[2])) for line in source)
    return Account(
        uid=uid,
        gid=os.getegid(),
        name=name,
        mapped_ids=mapped,
        subuids=_read_sub_ids("/etc/subuid", name, uid),
        subgids=_read_sub_ids("/etc/subgid", name, uid),
        has_tools=bool(shutil.which("newuidmap") and shutil.which("newgidmap")),
    )


def _read_sub_ids(path: str, name: str, number: int) -> tuple[int, int] | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as source:
            return parse_sub_ids(source.read(), name, number)
    except OSError:
        return None


def write_id_map(pid: int, id_map: IdMap) -> None:
    """Give the new user namespace of process `pid` its ids. Raises NitroError 36."""
    try:
        if id_map.tool:
            for program, ranges in (("newuidmap", id_map.uids), ("newgidmap", id_map.gids)):
                numbers = [word for entry in ranges for word in str(entry).split()]
                subprocess.run(
                    [program, str(pid), *numbers], check=True, capture_output=True, timeout=NEWUIDMAP_TIMEOUT_S
                )
            return
        if id_map.is_single and os.geteuid() != 0:
            # the kernel's condition for a gid_map written without privilege
            _write(f"/proc/{pid}/setgroups", "deny")
        _write(f"/proc/{pid}/uid_map", "\n".join(map(str, id_map.uids)))
        _write(f"/proc/{pid}/gid_map", "\n".join(map(str, id_map.gids)))
    except subprocess.CalledProcessError as exc:
        cause = exc.stderr.decode(errors="replace").strip() or f"exit {exc.returncode}"
        raise NitroError(BOOT_FAILURE, f"cannot map the enclave's users: {exc.cmd[0]}: {cause}") from exc
    except (OSError, subprocess.SubprocessError) as exc:
        raise NitroError(BOOT_FAILURE, f"cannot map the enclave's users: {exc}") from exc


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as out:
        out.write(text)
