# SPDX-License-Identifier: Apache-2.0
"""Who may enter the enclave: `/etc/enclavekit/clients.yaml` from certificates given at build time.

The file is in ramdisk 1, hence measured: PCR2 says who may do what.
"""

from __future__ import annotations

import os
import posixpath
import ssl
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import yaml
from enclavekit_core.cgroups import Limits
from enclavekit_core.config import StrictConfig
from enclavekit_core.errors import ConfigError, InputError, describe_cause
from msgspec import Meta

VERBS = ("exec", "cp-in", "cp-out", "shell", "ps", "kill", "dial", "listen-remote")
USUAL_VERBS = ("exec", "cp-in", "cp-out", "shell", "ps", "kill")  # of whom nothing else is said
ALL = "all"
# what initctl's gateway may be asked; the reference of initctl says what each is
Control = Literal[
    "status", "logs", "logs-clear", "logs-stream", "control", "enable", "processes", "reload", "reboot", "shutdown",
    "all",
]  # fmt: skip
CONTROL = "control"  # in --authorize: everything of that
PROFILES = ("default", "no-network")
MAX_CERTIFICATE_BYTES = 64 * 1024  # a P-256 certificate is under 1 KiB
MAX_CLIENTS = 256


class Fence(StrictConfig, frozen=True):
    """What a client's commands reach; nothing else."""

    read: Annotated[list[str], Meta(description="Paths to read and run below.")] = []
    write: Annotated[list[str], Meta(description="Paths to read, run, write, make and remove below.")] = []


class Client(msgspec.Struct, frozen=True, omit_defaults=True):
    """One entry of the file."""

    name: str
    certificate: str
    """PEM."""
    allow: list[str]
    system: bool = False
    """May act on the framework's root as well."""
    sessions: int | None = None
    """Connections at once; None: as many as the listener takes."""
    memory_max: int | str | None = None
    """Of all that it runs, together: bytes, or a number with K, M, G or T; None: no limit, as for the next two."""
    tasks_max: int | None = None
    """Processes and threads of those."""
    cpu_quota: str | None = None
    """Of one processor, for those: "50%"."""
    commands: list[list[str]] | None = None
    """Word by word, shell patterns; None: any."""
    read: list[str] | None = None
    """Of cp; None: any path."""
    write: list[str] | None = None
    user: str | None = None
    """Whom commands run as."""
    environment: list[str] | None = None
    """Variables that -e may set; None: any."""
    landlock: Fence | None = None
    seccomp: str | None = None
    """Of PROFILES."""
    forward: list[str] | None = None
    """Addresses that dial may connect to; None: any."""
    reverse: list[str] | None = None
    """Addresses that listen-remote may listen on; None: any."""
    control: list[str] = []
    """Of Control: what it may ask PID 1 by initctl."""


def parse_authorization(text: str) -> Client:
    """Return the client that `CERTIFICATE_FILE[:verbs]` admits.

    Verbs are comma-separated, of VERBS; without any the client gets USUAL_VERBS, inside the app's root. `all` is every
    verb, in the framework's own root as well (`pipeline exec --system`); `control` is everything that initctl can ask,
    which no other word includes, and alone it is no more than that. The name is the file's, without its suffix.
    Raises: InputError.
    """
    path, colon, verbs = text.rpartition(":")
    if not colon or os.path.exists(text):
        path, verbs = text, ",".join(USUAL_VERBS)
    allow = [verb.strip() for verb in verbs.split(",") if verb.strip()]
    control = [ALL] if CONTROL in allow else []
    allow = [verb for verb in allow if verb != CONTROL]
    unknown = [verb for verb in allow if verb not in (*VERBS, ALL)]
    if unknown or not (allow or control):
        wrong = unknown[0] if unknown else verbs
        raise InputError("authorize", text, f"{wrong!r} is none of {', '.join(VERBS)}, {CONTROL}, {ALL}")
    return msgspec.structs.replace(load_client(path, allow), control=control)


def load_client(path: str, allow: Sequence[str], name: str | None = None) -> Client:
    """Return the client with the certificate at `path`; `allow` has verbs, or ALL, or nothing, for `control` alone.

    Raises: InputError.
    """
    system = ALL in allow
    verbs = VERBS if system else sorted(set(allow), key=VERBS.index)
    if name is None:
        name = os.path.splitext(os.path.basename(path))[0]
    return Client(name, _read_certificate(path), list(verbs), system)


def check_client(client: Client, source: str) -> Client:
    """Return it. Raises ConfigError for what the listener in the enclave would refuse, when nobody can mend it."""
    fence = client.landlock or Fence()
    for path in (*(client.read or ()), *(client.write or ()), *fence.read, *fence.write):
        if not path.startswith("/") or posixpath.normpath(path) != (path.rstrip("/") or "/"):
            raise ConfigError(source, f"clients: {client.name}", f"path {path!r} is not absolute and plain")
    try:
        if Limits.parse(client.memory_max, client.tasks_max, client.cpu_quota) and client.user is None:
            raise ValueError("limits need a user: root can leave its control group")
    except ValueError as exc:
        raise ConfigError(source, f"clients: {client.name}", str(exc)) from exc
    if client.seccomp is not None and client.seccomp not in PROFILES:
        raise ConfigError(source, f"clients: {client.name}", f"seccomp: it is one of {', '.join(PROFILES)}")
    return client


def render_clients(clients: Sequence[Client]) -> bytes:
    """Return the file. Raises InputError if two clients have one name."""
    names = [client.name for client in clients]
    for name in names:
        if names.count(name) > 1:
            raise InputError("authorize", name, "two certificates have this name")
    certificates = [client.certificate for client in clients]
    if len(set(certificates)) != len(certificates):
        raise InputError("authorize", ", ".join(names), "one certificate is there twice")
    if len(clients) > MAX_CLIENTS:
        raise InputError("authorize", f"{len(clients)} clients", f"there can be {MAX_CLIENTS}")
    document = {"clients": msgspec.to_builtins(list(clients))}
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=False, width=1000).encode()


def _read_certificate(path: str) -> str:
    try:
        with open(path, "rb") as source:
            raw = source.read(MAX_CERTIFICATE_BYTES + 1)
    except OSError as exc:
        raise InputError("read certificate", path, describe_cause(exc)) from exc
    if b"PRIVATE KEY" in raw:
        raise InputError("use certificate", path, "it holds a private key, which must not go into an image")
    if raw.count(b"-----BEGIN ") != 1:
        raise InputError("use certificate", path, "it is not one certificate in PEM form")
    try:
        der = ssl.PEM_cert_to_DER_cert(raw.decode("ascii").strip())
    except (ValueError, UnicodeDecodeError) as exc:
        raise InputError("use certificate", path, "it is not one certificate in PEM form") from exc
    _check_der(der, path)
    return ssl.DER_cert_to_PEM_cert(der)


def _check_der(der: bytes, path: str) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except (ValueError, TypeError) as exc:
        raise InputError("use certificate", path, "it is damaged") from exc
    if not isinstance(key, (ec.EllipticCurvePublicKey, ed25519.Ed25519PublicKey)):
        raise InputError("use certificate", path, "its key is neither EC nor Ed25519")
