# SPDX-License-Identifier: Apache-2.0
"""The measured list of who may enter and what each may do; every decision about a request is made here. Pure but for
reading the file.

    clients:
      - name: alice
        certificate: |            # or spki_sha256: HEX
          -----BEGIN CERTIFICATE-----
          ...
        allow: [exec, cp-in, cp-out]            # []: with control it is here for that and does not enter
        commands: [[ls, ...], [cat, "/data/*"]] # absent: any; word by word, shell patterns; `...` last: any more words
        read: [/data]                           # absent: any path
        write: [/data/in]                       # absent: any path
        user: app                               # commands and copies are its, and nobody else's
        environment: [LANG, "APP_*"]            # names that -e may set; absent: any
        landlock: {read: [/], write: [/data]}   # what commands may read and run, and what they may write
        seccomp: default                        # or no-network: system calls that commands may not make
        forward: ["tcp://127.0.0.1:8443"]       # of dial; absent: any address, with `user` any TCP
        reverse: ["unix:///run/in.sock"]        # of listen-remote; absent: the same
        system: false                           # may act on the framework's root as well
        sessions: 4                             # connections at once; absent: as many as there is room for
        memory_max: 512M                        # of all that it runs together, in all its sessions, jobs too; with user
        tasks_max: 100                          # processes and threads of those
        cpu_quota: 50%                          # of one processor, for those
        control: [status, logs]                 # of initctl, whose gateway reads it; nothing to us
"""

from __future__ import annotations

import fnmatch
import hmac
import posixpath

from enclavekit_attestation.caller import check_proof, key_of_client
from enclavekit_core.address import TcpAddress, UnixAddress, parse_listed_address
from enclavekit_core.cgroups import Limits
from enclavekit_core.config import StrictConfig, load_config
from enclavekit_core.errors import ConfigError, VerificationError
from enclavekit_core.seccomp import PROFILES

from enclavekit_pipeline.wire.copy_messages import CopyInRequest
from enclavekit_pipeline.wire.exec_messages import ExecRequest, ShellRequest
from enclavekit_pipeline.wire.forward_messages import DialRequest, ForwardAddress, ListenRequest
from enclavekit_pipeline.wire.job_messages import AttachRequest, JobsRequest, KillRequest, LogsRequest
from enclavekit_pipeline.wire.requests import Request, verb_of

VERBS = ("exec", "cp-in", "cp-out", "shell", "ps", "kill", "dial", "listen-remote")
FREE_VERBS = ("info",)  # for whoever is let in: what it tells is the caller's own
ANY_MORE = "..."
LIMIT_KEYS = {"memory": "memory_max", "pids": "tasks_max", "cpu": "cpu_quota"}  # by controller of cgroups(7)


class Fence(StrictConfig, frozen=True):
    """Paths in the root that a command acts on; what is not listed is out of its reach."""

    read: list[str] = []
    """To read and to run."""
    write: list[str] = []
    """To read, run, write, make and remove."""


class Grant(StrictConfig, frozen=True):
    """One client."""

    name: str
    allow: list[str]
    certificate: str | None = None
    """PEM; exactly one of this and `spki_sha256`."""
    spki_sha256: str | None = None
    """Hex."""
    commands: list[list[str]] | None = None
    read: list[str] | None = None
    write: list[str] | None = None
    user: str | None = None
    """Whom commands and copies run as, `name` or `uid[:gid]`."""
    environment: list[str] | None = None
    landlock: Fence | None = None
    seccomp: str | None = None
    """Of seccomp.PROFILES."""
    forward: list[str] | None = None
    reverse: list[str] | None = None
    system: bool = False
    sessions: int | None = None
    """Connections at once; None: as many as the listener takes."""
    memory_max: int | str | None = None
    """Of all that it runs, together: bytes, or a number with K, M, G or T."""
    tasks_max: int | None = None
    """Processes and threads of those."""
    cpu_quota: str | None = None
    """Of one processor, for those: "50%"."""
    control: list[str] = []
    """What it may ask PID 1: for initctl's gateway, which reads this list as well."""

    @property
    def limits(self) -> Limits:
        """Raises ValueError for what cannot be one; not of an entry of Clients, which has looked."""
        return Limits.parse(self.memory_max, self.tasks_max, self.cpu_quota)


class ClientList(StrictConfig, frozen=True):
    clients: list[Grant]


class Refused(Exception):
    """The list says no; the text completes "cannot <verb> <object>: "."""


class Clients:
    """The list, ready for look-ups."""

    def __init__(self, entries: ClientList, source: str) -> None:
        self._by_key: dict[bytes, Grant] = {}
        if not entries.clients:
            raise ConfigError(source, "clients", "it names nobody")
        for grant in entries.clients:
            if [other.name for other in entries.clients].count(grant.name) > 1:
                raise ConfigError(source, grant.name, "two clients have this name")
            if unknown := set(grant.allow) - set(VERBS):
                raise ConfigError(source, grant.name, f"allow: {min(unknown)!r} is none of {', '.join(VERBS)}")
            if grant.seccomp is not None and grant.seccomp not in PROFILES:
                raise ConfigError(source, grant.name, f"seccomp: {grant.seccomp!r} is none of {', '.join(PROFILES)}")
            fence = grant.landlock or Fence()
            for prefix in (*(grant.read or ()), *(grant.write or ()), *fence.read, *fence.write):
                if not prefix.startswith("/") or posixpath.normpath(prefix) != (prefix.rstrip("/") or "/"):
                    raise ConfigError(source, grant.name, f"path {prefix!r} is not absolute and plain")
            if grant.sessions is not None and grant.sessions < 1:
                raise ConfigError(source, grant.name, "sessions: nobody enters with fewer than one")
            for text in (*(grant.forward or ()), *(grant.reverse or ())):
                parse_listed_address(text, f"{source}: {grant.name}")
            try:
                if grant.limits and grant.user is None:
                    raise ValueError("limits need a user: root can leave its control group")
                key = key_of_client(grant.certificate, grant.spki_sha256)
            except ValueError as exc:
                raise ConfigError(source, grant.name, str(exc)) from exc
            if key in self._by_key:
                raise ConfigError(source, grant.name, f"it has the key of {self._by_key[key].name}")
            self._by_key[key] = grant

    @classmethod
    def load(cls, path: str) -> Clients:
        """Raises ConfigError: no list, no listener."""
        return cls(load_config(ClientList, path), path)

    @property
    def grants(self) -> list[Grant]:
        return list(self._by_key.values())

    def key_of(self, grant: Grant) -> bytes:
        """Return the SHA-256 of the client's SPKI."""
        return next(key for key, known in self._by_key.items() if known is grant)

    def authenticate(self, certificate_der: bytes, signature: bytes, signed: bytes) -> Grant:
        """Return the grant of whoever made `signature` over `signed`.

        Raises: VerificationError if the proof is wrong or its maker is not in the list.
        """
        caller = check_proof(certificate_der, signature, signed)
        for known, grant in self._by_key.items():
            if hmac.compare_digest(known, caller.spki_sha256):
                if not grant.allow and grant.control:  # there for initctl's gateway only
                    raise VerificationError("the caller", f"{grant.name} may do nothing here")
                return grant
        raise VerificationError("the caller", f"the enclave's list has no client {caller.claimed_name!r} with this key")


def check_request(grant: Grant, request: Request) -> None:
    """Raises Refused if the grant does not cover the request; paths are checked by the two below, once resolved."""
    verb = _needed_verb(request)
    if verb not in grant.allow and verb not in FREE_VERBS:
        raise Refused(f"{grant.name} may not {verb}")
    if request.system and not grant.system:
        raise Refused(f"{grant.name} may not act on the system")
    if isinstance(request, ExecRequest | ShellRequest):
        _check_surroundings(grant, request)
    if grant.commands is not None:
        if isinstance(request, ShellRequest):
            raise Refused(f"{grant.name} may run its commands only, and no shell")
        if isinstance(request, ExecRequest):
            _check_command(grant, request, grant.commands)
    if isinstance(request, CopyInRequest) and request.unsafe_links and grant.write is not None:
        # whoever follows such a link later may be allowed more than this client
        raise Refused(f"{grant.name} may not make links that lead out of what it copies")
    if isinstance(request, CopyInRequest) and request.archive and grant.user is not None:
        raise Refused(f"{grant.name} copies as {grant.user}, who gives no files away: not with --archive")
    if isinstance(request, DialRequest | ListenRequest) and isinstance(request.address, TcpAddress):
        check_forward(grant, request, request.address)


def may_see_job(grant: Grant, owner: str, *, system: bool) -> bool:
    """Say whether the client may see, enter and end a job: its own; with --system (checked before) anybody's."""
    return owner == grant.name or system


def _needed_verb(request: Request) -> str:
    # who may run commands may also look after those that he left running
    if isinstance(request, JobsRequest | LogsRequest | AttachRequest) or (
        isinstance(request, KillRequest) and request.job is not None
    ):
        return "exec"
    return verb_of(request)


def _check_surroundings(grant: Grant, request: ExecRequest | ShellRequest) -> None:
    if grant.user is not None and request.user not in (None, grant.user):
        raise Refused(f"{grant.name} may run commands as {grant.user} only")
    if grant.environment is not None:
        for name in request.environment:
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in grant.environment):
                raise Refused(f"{grant.name} may not set that environment variable")


def _check_command(grant: Grant, request: ExecRequest, commands: list[list[str]]) -> None:
    if not any(_matches(pattern, request.argv) for pattern in commands):
        raise Refused(f"{grant.name} may not run that command")
    if request.user or request.directory or request.terminal or (request.environment and grant.environment is None):
        # each of them can turn an allowed command into another one; a terminal brings pagers, which run anything
        raise Refused(f"{grant.name} may run its commands only as they are, without -e, -u, -w or -t")


def check_path(grant: Grant, verb: str, path: str) -> None:
    """Raises Refused if `path`, absolute in the root and without links, is not below an allowed prefix."""
    prefixes = grant.write if verb == "cp-in" else grant.read
    if prefixes is None:
        return
    for prefix in prefixes:
        base = prefix.rstrip("/")
        if path == base or path.startswith(base + "/"):
            return
    raise Refused(f"{grant.name} may not {'write' if verb == 'cp-in' else 'read'} there")


def check_comparison(grant: Grant, path: str) -> None:
    """Raises Refused unless the client may read what it would copy over: --delta tells it that by digests, and of what
    is short or likely those are as good as the content.
    """
    if "cp-out" not in grant.allow:
        raise Refused(f"{grant.name} may not cp-out: not with --delta, which tells what is there")
    check_path(grant, "cp-out", path)


def check_forward(grant: Grant, request: DialRequest | ListenRequest, address: ForwardAddress) -> None:
    """Raises Refused if `address`, a path in it absolute in the root and without links, is not granted."""
    dials = isinstance(request, DialRequest)
    granted = grant.forward if dials else grant.reverse
    if granted is None and grant.user is not None and isinstance(address, UnixAddress):
        # it is the listener that connects and binds, and whoever asks its socket for its peer is told root
        raise Refused(f"{grant.name} acts as {grant.user}: a Unix socket has to be in its list")
    if granted is not None and str(address) not in granted:
        raise Refused(f"{grant.name} may not {'connect' if dials else 'listen'} there")


def _matches(pattern: list[str], argv: list[str]) -> bool:
    if pattern and pattern[-1] == ANY_MORE:
        pattern = pattern[:-1]
        argv = argv[: len(pattern)]
    return len(argv) == len(pattern) and all(map(_word_matches, argv, pattern))


def _word_matches(word: str, wanted: str) -> bool:
    # `/data/*` is meant to stay below /data: no pattern stands for `..`, which has to be in the list as it is
    return word == wanted or (".." not in word.split("/") and fnmatch.fnmatchcase(word, wanted))
