# SPDX-License-Identifier: Apache-2.0
"""Where `vsock` goes on machines without a vsock device: the fabric directory and the emulator's registry.

Layout below the runtime directory, the same seen from the host and from inside an emulated enclave:

    registry/self.json     {"cid": N}: who this side is; 3 on the host
    registry/CID.json      {"cid": N, "transport": "fabric" | "hybrid", "path": "..."}: how to reach that CID
    fabric/CID/PORT.sock   what CID listens on
    fabric/CID/parent/PORT.sock   inside CID's view, goes before fabric/3/PORT.sock: the emulator's own ports

    fabric/CID/parent/siblings.sock   asks the parent for a connection to another enclave; see `streams`

A `hybrid` CID is reached over one Unix socket with the `CONNECT port` handshake of Firecracker, Cloud Hypervisor and
vhost-device-vsock. An enclave can write into its own fabric/CID directory, so nothing in there is trusted: sockets are
opened without following links before they are connected to.
"""

from __future__ import annotations

import enum
import json
import os
import stat
from dataclasses import dataclass

from enclavekit_core.address import CID_ANY, CID_HOST, CID_LOCAL, CID_PARENT
from enclavekit_core.errors import ConfigError, InputError

RUNTIME_DIR_VARIABLE = "ENCLAVEKIT_RUNTIME_DIR"
SIBLINGS_SOCKET = "siblings.sock"
TRANSPORT_VARIABLE = "ENCLAVEKIT_TRANSPORT"  # "fabric" or "vsock": overrides the lookup, for tests and odd machines
MAX_RECORD_BYTES = 4096


class Transport(enum.Enum):
    KERNEL = "vsock"
    FABRIC = "fabric"
    HYBRID = "hybrid"
    SIBLING = "sibling"
    """By way of the parent: the kernel lets no enclave see another's sockets."""


@dataclass(frozen=True, slots=True)
class Route:
    """How to reach one CID."""

    cid: int
    transport: Transport
    path: str = ""
    """Unix socket of a hybrid or sibling route; directory of a fabric route; empty for the kernel's."""
    private_path: str = ""
    """Of the parent as an enclave sees it: the directory of its ports for this enclave alone, which go first."""


def runtime_dir() -> str:
    """Return the directory of registry and fabric; it need not exist."""
    if named := os.environ.get(RUNTIME_DIR_VARIABLE):
        return named
    if os.geteuid() == 0:
        return "/run/enclavekit"
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(session, "enclavekit")
    return f"/tmp/enclavekit-{os.geteuid()}"  # noqa: S108 - ownership and mode are checked before use


def ensure_runtime_dir() -> str:
    """Create the host's runtime directory, private to this user, and return it.

    Raises: InputError if it exists and belongs to somebody else or is open to others.
    """
    top = runtime_dir()
    try:
        os.makedirs(top, mode=0o700, exist_ok=True)
        info = os.lstat(top)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.geteuid() or info.st_mode & 0o022:
            raise InputError("use", f"runtime directory {top}", "it is not a directory that only this user can write")
        for sub in ("registry", "fabric", f"fabric/{CID_PARENT}"):
            os.makedirs(os.path.join(top, sub), mode=0o755, exist_ok=True)
        self_record = os.path.join(top, "registry", "self.json")
        if not os.path.exists(self_record):
            write_record(self_record, {"cid": CID_PARENT})
    except OSError as exc:
        raise InputError("use", f"runtime directory {top}", exc.strerror or str(exc)) from exc
    return top


def write_record(path: str, record: dict[str, object]) -> None:
    """Write one registry record so that readers see all of it or nothing."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as out:
        json.dump(record, out, sort_keys=True)
    os.replace(temporary, path)


def read_record(path: str) -> dict[str, object] | None:
    """Return the record, or None where there is none. Raises ConfigError if it is not one."""
    try:
        with open(path, encoding="utf-8") as source:
            value = json.loads(source.read(MAX_RECORD_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise ConfigError(path, "", str(exc)) from exc
    if not isinstance(value, dict):
        raise ConfigError(path, "", "it is not a JSON object")
    return value


def is_active() -> bool:
    """Say whether addresses are looked up in a fabric on this machine."""
    forced = os.environ.get(TRANSPORT_VARIABLE)
    if forced:
        return forced == Transport.FABRIC.value
    return os.path.exists(os.path.join(runtime_dir(), "registry", "self.json"))


def local_cid() -> int | None:
    """Return this side's CID in the fabric; None where there is no fabric."""
    if not is_active():
        return None
    record = read_record(os.path.join(runtime_dir(), "registry", "self.json"))
    cid = record.get("cid") if record else None
    return cid if isinstance(cid, int) else CID_PARENT


def find_route(cid: int) -> Route:
    """Return how to reach `cid`; the kernel's AF_VSOCK is the answer when the registry knows nothing."""
    top, own = runtime_dir(), local_cid()
    if own is None:
        return Route(cid, Transport.KERNEL)
    if cid == CID_LOCAL:
        cid = own
    if cid == CID_HOST:
        cid = CID_PARENT
    if cid in (own, CID_PARENT):
        private = os.path.join(top, "fabric", str(own), "parent") if cid != own else ""
        return Route(cid, Transport.FABRIC, os.path.join(top, "fabric", str(cid)), private)
    if own != CID_PARENT:
        siblings = os.path.join(top, "fabric", str(own), "parent", SIBLINGS_SOCKET)
        return Route(cid, Transport.SIBLING, siblings) if os.path.exists(siblings) else Route(cid, Transport.KERNEL)
    record = read_record(os.path.join(top, "registry", f"{cid}.json"))
    if record is None:
        return Route(cid, Transport.KERNEL)
    if record.get("transport") == Transport.HYBRID.value:
        return Route(cid, Transport.HYBRID, str(record.get("path", "")))
    return Route(cid, Transport.FABRIC, os.path.join(top, "fabric", str(cid)))


def find_listen_directory(cid: int) -> str | None:
    """Return the fabric directory in which to listen for `cid`; None means the kernel's AF_VSOCK.

    A parent with the real device listens there: an emulated enclave beside real ones needs ENCLAVEKIT_TRANSPORT.
    """
    own = local_cid()
    if own is None:
        return None
    forced = os.environ.get(TRANSPORT_VARIABLE) == Transport.FABRIC.value
    if own == CID_PARENT and os.path.exists("/dev/nitro_enclaves") and not forced:
        return None
    if cid in (CID_ANY, CID_LOCAL, own) or (own == CID_PARENT and cid == CID_HOST):
        return os.path.join(runtime_dir(), "fabric", str(own))
    return os.path.join(runtime_dir(), "fabric", str(cid))


def socket_candidates(route: Route, port: int) -> list[str]:
    """Return the paths at which `port` of a fabric route may listen, in the order to try them."""
    return [os.path.join(directory, f"{port}.sock") for directory in (route.private_path, route.path) if directory]
