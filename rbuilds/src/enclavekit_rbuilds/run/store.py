# SPDX-License-Identifier: Apache-2.0
"""What rbuilds knows about the enclaves that it watches, on disk. Layout below the runtime directory:

rbuilds/.lock            flock(2): held while proxies are taken or released and leftovers are looked for
rbuilds/CID.json         Record of an enclave; written whole or not at all, by its supervisor
rbuilds/CID.lock         flock(2): held by the supervisor as long as it lives, so kill -9 releases it, too
rbuilds/CID.nft          the nftables rules that are in
rbuilds/CID.end          how its app ended, as it reported it (nitro-cli)
rbuilds/ended/ID.json    EndedEnclave, of the last MAX_ENDED of this user
rbuilds/proxy-KEY.json   ProxyRecord; KEY says what it listens on
rbuilds/proxy-KEY.cids   who may use it (egress): one CID a line
rbuilds/proxy-KEY.log    its standard error
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from typing import TypeVar

import msgspec
from enclavekit_core.errors import InputError, describe_cause
from enclavekit_core.fabric import runtime_dir
from enclavekit_core.processes import ProcessId

from enclavekit_rbuilds.run.model import LaunchPlan, RunningEnclave

T = TypeVar("T")
ENDED = "ended"
MAX_ENDED = 32  # as nitro-emu keeps; enough for whoever asks the next day


class Record(msgspec.Struct, frozen=True):
    """One enclave and its supervisor."""

    boot_id: str
    supervisor: ProcessId
    plan: LaunchPlan
    cid: int
    enclave: RunningEnclave | None = None
    """None until it runs."""
    holder: ProcessId | None = None
    """The process that holds it, by more than its pid; None if it could not be told."""
    proxies: tuple[str, ...] = ()
    """Keys of its ProxyRecords."""
    has_rules: bool = False
    """Whether nftables rules are in."""


class EndedEnclave(msgspec.Struct, frozen=True):
    """How one of this user's enclaves ended; kept when nothing else of it is."""

    enclave: RunningEnclave
    ended_at: float
    """Unix time, of this host."""
    status: int | None
    """Of its app; None if nobody knows."""
    words: tuple[str, ...]
    """Why, in what circumstances, and what it said last; a line each."""


class ProxyRecord(msgspec.Struct, frozen=True):
    """One pf-proxy process, shared by all enclaves whose rule is the same."""

    boot_id: str
    argv: tuple[str, ...]
    text: str
    """The rule in words."""
    process: ProcessId
    users: tuple[int, ...] = ()
    """CIDs."""


def private_directory() -> str:
    """Create our directory below the runtime directory, private to this user, and return it.

    The fabric is left alone: where it has no record of itself, addresses mean the kernel's vsock.
    Raises: InputError if it belongs to somebody else or is open to others.
    """
    top = runtime_dir()
    own = os.path.join(top, "rbuilds")
    try:
        os.makedirs(top, mode=0o700, exist_ok=True)
        os.makedirs(own, mode=0o700, exist_ok=True)
        for path in (top, own):
            info = os.lstat(path)
            if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
                raise InputError("use", f"runtime directory {path}", "others than this user can write there")
    except OSError as exc:
        raise InputError("use", f"runtime directory {own}", describe_cause(exc)) from exc
    return own


class Store:
    """The records of one user."""

    def __init__(self, directory: str | None = None) -> None:
        self.directory = directory or private_directory()

    def path(self, name: str) -> str:
        return os.path.join(self.directory, name)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock of all records."""
        handle = os.open(self.path(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    # enclaves

    def claim(self, cid: int) -> int | None:
        """Take the lock of a CID and return its descriptor; None if a live supervisor has it."""
        handle = os.open(self.path(f"{cid}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        return handle

    def is_supervised(self, cid: int) -> bool:
        handle = self.claim(cid)
        if handle is None:
            return True
        os.close(handle)
        return False

    def cids(self) -> list[int]:
        names = (name.partition(".") for name in os.listdir(self.directory))
        return sorted({int(stem) for stem, _, kind in names if kind == "json" and stem.isdigit()})

    def read(self, cid: int) -> Record | None:
        return _read(self.path(f"{cid}.json"), Record)

    def records(self) -> list[Record]:
        return [record for cid in self.cids() if (record := self.read(cid)) is not None]

    def write(self, record: Record) -> None:
        _write(self.path(f"{record.cid}.json"), record)

    def remove(self, cid: int) -> None:
        """Forget an enclave; its lock file stays, whoever waits for it must meet the same file."""
        for kind in ("nft", "end", "json"):
            self.unlink(f"{cid}.{kind}")

    # enclaves that are no more

    def write_ended(self, ended: EndedEnclave) -> None:
        """Keep how an enclave ended, and forget the oldest beyond MAX_ENDED."""
        os.makedirs(self.path(ENDED), mode=0o700, exist_ok=True)
        _write(self.path(f"{ENDED}/{ended.enclave.id}.json"), ended)
        for old in self.ended()[:-MAX_ENDED]:
            self.unlink(f"{ENDED}/{old.enclave.id}.json")

    def ended(self) -> list[EndedEnclave]:
        """Return those that have ended, the last one last."""
        try:
            names = [name for name in os.listdir(self.path(ENDED)) if name.endswith(".json")]
        except FileNotFoundError:
            return []
        found = [_read(self.path(f"{ENDED}/{name}"), EndedEnclave) for name in names]
        return sorted((each for each in found if each is not None), key=lambda each: each.ended_at)

    # proxies

    def proxy_keys(self) -> list[str]:
        found = (name for name in os.listdir(self.directory) if name.startswith("proxy-") and name.endswith(".json"))
        return sorted(name.removeprefix("proxy-").removesuffix(".json") for name in found)

    def read_proxy(self, key: str) -> ProxyRecord | None:
        return _read(self.path(f"proxy-{key}.json"), ProxyRecord)

    def write_users(self, key: str, users: Iterable[int]) -> None:
        """Write who may use a proxy; it reads that itself."""
        allowed = self.path(f"proxy-{key}.cids")
        with open(f"{allowed}.new", "w", encoding="ascii") as out:
            out.write("".join(f"{cid}\n" for cid in users))
        os.replace(f"{allowed}.new", allowed)

    def write_proxy(self, key: str, record: ProxyRecord) -> None:
        self.write_users(key, record.users)
        _write(self.path(f"proxy-{key}.json"), record)

    def remove_proxy(self, key: str) -> None:
        for kind in ("cids", "log", "json"):
            self.unlink(f"proxy-{key}.{kind}")

    def unlink(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path(name))


def _read(path: str, kind: type[T]) -> T | None:
    try:
        with open(path, "rb") as source:
            return msgspec.json.decode(source.read(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError, msgspec.ValidationError):
        return None


def _write(path: str, value: msgspec.Struct) -> None:
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as out:
        out.write(msgspec.json.encode(value))
    os.replace(temporary, path)
