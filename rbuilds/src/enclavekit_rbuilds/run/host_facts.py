# SPDX-License-Identifier: Apache-2.0
"""What a host is like, as far as running enclaves goes: read from files below a root, so that a test can bring its own.

Nothing is judged here; that is `diagnosis`. What cannot be read is None or empty.
"""

from __future__ import annotations

import grp
import os
import platform
import pwd
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from enclavekit_core.errors import EnclavekitError

from enclavekit_rbuilds.base.command import run
from enclavekit_rbuilds.run.programs import find_program

MAX_FILE_BYTES = 1 << 20
PROBE_TIMEOUT_S = 20.0  # a docker daemon that hangs is found out after that
# what is run to see whether a program works here, not only whether it is installed
PROBES: dict[str, tuple[str, ...]] = {
    "nitro-cli": ("--version",),
    "nitro-emu": (),
    "pf-proxy": (),
    "docker": ("info", "--format", "{{.ServerVersion}}"),
    "podman": ("--version",),
    "buildah": ("--version",),
    "mmdebstrap": ("--version",),
    "nft": ("--version",),
    "newuidmap": (),
}


@dataclass(frozen=True, slots=True)
class Program:
    path: str
    answer: str = ""
    """First line of what the probe printed."""
    fault: str = ""
    """Why the probe failed; empty if it did not."""


@dataclass(frozen=True, slots=True)
class Device:
    group: str
    """Name of its group, or the number."""
    accessible: bool
    """Whether this user may read and write it."""


@dataclass(frozen=True, slots=True)
class Service:
    state: str
    """systemd's ActiveState, such as active, failed, inactive."""
    result: str = ""


@dataclass(frozen=True, slots=True)
class HostFacts:
    user: str
    uid: int
    groups: tuple[str, ...]
    arch: str
    nitro_device: Device | None
    nitro_module: bool
    ne_cpus: str | None
    """The pool as the driver has it, e.g. `1-3,7`; None without the module."""
    instance_id: str | None
    """Of an EC2 instance, from DMI."""
    product: str
    """DMI's product name; on EC2 the instance type."""
    allocator: str | None
    """Text of allocator.yaml."""
    allocator_service: Service | None
    memory_total_mib: int
    memory_available_mib: int
    pages: Mapping[int, Mapping[int, tuple[int, int]]]
    """NUMA node -> page size in KiB -> (all, free)."""
    cpus_online: frozenset[int]
    cpus_offline: frozenset[int]
    cpu_nodes: Mapping[int, int]
    """CPU -> NUMA node, where sysfs tells."""
    siblings: Mapping[int, frozenset[int]]
    """Online CPU -> the threads of its core, itself included."""
    vsock_device: bool
    vsock_module: bool
    vhost_vsock: bool
    max_user_namespaces: int | None
    userns_refused_by: str
    """The sysctl that keeps ordinary users from user namespaces; empty if none does."""
    subuids: int
    """How many subordinate ids this user has; the lesser of uids and gids."""
    cgroup: str
    """`v2`, `v1`, or empty."""
    cgroup_writable: bool
    sockets_directory: bool
    log_writable: bool
    """Whether nitro-cli could write its log, which every command of it needs."""
    programs: Mapping[str, Program] = field(default_factory=dict)


def read_host_facts(
    root: str = "/",
    *,
    programs: Callable[[str], Program | None] | None = None,
    service: Callable[[str], Service | None] | None = None,
    uid: int | None = None,
) -> HostFacts:
    """Read the facts of the host whose file system is at `root`.

    Args:
        programs, service: how to ask for a program and for a systemd unit; default: this machine's.
        uid: of the user concerned; default: ours.
    """
    reader = _Reader(root)
    me = os.geteuid() if uid is None else uid
    user, groups = _identity(me)
    allocator = reader.text("etc/nitro_enclaves/allocator.yaml")
    online, offline = (parse_cpu_list(reader.text(f"sys/devices/system/cpu/{name}")) for name in ("online", "offline"))
    asset = reader.text("sys/devices/virtual/dmi/id/board_asset_tag") or ""
    meminfo = parse_meminfo(reader.text("proc/meminfo") or "")
    probe = programs or probe_program
    found = {name: program for name in PROBES if (program := probe(name)) is not None}
    return HostFacts(
        user=user,
        uid=me,
        groups=groups,
        arch=platform.machine(),
        nitro_device=reader.device("dev/nitro_enclaves", me, groups),
        nitro_module=reader.exists("sys/module/nitro_enclaves"),
        ne_cpus=reader.text("sys/module/nitro_enclaves/parameters/ne_cpus"),
        instance_id=asset if asset.startswith("i-") else None,
        product=reader.text("sys/devices/virtual/dmi/id/product_name") or "",
        allocator=allocator,
        allocator_service=(service or probe_service)("nitro-enclaves-allocator.service"),
        memory_total_mib=meminfo.get("MemTotal", 0) // 1024,
        memory_available_mib=meminfo.get("MemAvailable", 0) // 1024,
        pages=reader.pages(),
        cpus_online=online,
        cpus_offline=offline,
        cpu_nodes=reader.cpu_nodes(),
        siblings={
            cpu: parse_cpu_list(reader.text(f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")) | {cpu}
            for cpu in online
        },
        vsock_device=reader.exists("dev/vsock"),
        vsock_module=reader.exists("sys/module/vsock"),
        vhost_vsock=reader.exists("dev/vhost-vsock"),
        max_user_namespaces=reader.number("proc/sys/user/max_user_namespaces"),
        userns_refused_by=_userns_refusal(reader),
        subuids=min(_count_ids(reader.text(f"etc/{name}"), user, me) for name in ("subuid", "subgid")),
        cgroup=reader.cgroup(),
        cgroup_writable=os.access(reader.path("sys/fs/cgroup"), os.W_OK),
        sockets_directory=reader.exists("run/nitro_enclaves"),
        log_writable=os.access(reader.path("var/log/nitro_enclaves"), os.W_OK),
        programs=found,
    )


class _Reader:
    """Files below a root."""

    def __init__(self, root: str) -> None:
        self.root = root

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def exists(self, name: str) -> bool:
        return os.path.exists(self.path(name))

    def names(self, name: str, pattern: str) -> list[re.Match[str]]:
        try:
            found = os.listdir(self.path(name))
        except OSError:
            return []
        return [match for entry in sorted(found) if (match := re.fullmatch(pattern, entry))]

    def text(self, name: str) -> str | None:
        try:
            with open(self.path(name), encoding="utf-8", errors="replace") as source:
                return source.read(MAX_FILE_BYTES).strip()
        except OSError:
            return None

    def number(self, name: str) -> int | None:
        text = self.text(name)
        return int(text) if text is not None and text.isdigit() else None

    def device(self, name: str, uid: int, groups: tuple[str, ...]) -> Device | None:
        try:
            info = os.stat(self.path(name))
        except OSError:
            return None
        try:
            group = grp.getgrgid(info.st_gid).gr_name
        except KeyError:
            group = str(info.st_gid)
        mode = stat.S_IMODE(info.st_mode)
        may = uid == 0 or mode & 0o006 == 0o006 or (uid == info.st_uid and mode & 0o600 == 0o600)
        return Device(group, may or (group in groups and mode & 0o060 == 0o060))

    def pages(self) -> dict[int, dict[int, tuple[int, int]]]:
        nodes: dict[int, dict[int, tuple[int, int]]] = {}
        for node in self.names("sys/devices/system/node", r"node(\d+)"):
            nodes[int(node[1])] = self._pages_in(f"sys/devices/system/node/{node[0]}/hugepages")
        if not nodes:
            nodes[0] = self._pages_in("sys/kernel/mm/hugepages")
        return nodes

    def _pages_in(self, top: str) -> dict[int, tuple[int, int]]:
        return {
            int(match[1]): (
                self.number(f"{top}/{match[0]}/nr_hugepages") or 0,
                self.number(f"{top}/{match[0]}/free_hugepages") or 0,
            )
            for match in self.names(top, r"hugepages-(\d+)kB")
        }

    def cpu_nodes(self) -> dict[int, int]:
        found = {}
        for node in self.names("sys/devices/system/node", r"node(\d+)"):
            # an offline CPU is missing from cpulist, but its link stays
            for cpu in self.names(f"sys/devices/system/node/{node[0]}", r"cpu(\d+)"):
                found[int(cpu[1])] = int(node[1])
            for number in parse_cpu_list(self.text(f"sys/devices/system/node/{node[0]}/cpulist")):
                found[number] = int(node[1])
        return found

    def cgroup(self) -> str:
        if self.exists("sys/fs/cgroup/cgroup.controllers"):
            return "v2"
        return "v1" if self.exists("sys/fs/cgroup/memory") else ""


def probe_program(name: str) -> Program | None:
    """Look for a program and try it."""
    path = find_program(name)
    if path is None:
        return None
    arguments = PROBES[name]
    if not arguments:
        return Program(path)
    try:
        text = run([path, *arguments], f"run {name}", timeout_s=PROBE_TIMEOUT_S).decode(errors="replace")
    except EnclavekitError as exc:
        return Program(path, fault=str(exc).rpartition(": ")[2])
    return Program(path, next((line.strip() for line in text.splitlines() if line.strip()), ""))


def probe_service(name: str) -> Service | None:
    """Ask systemd for a unit; None where there is no systemd or no such unit."""
    program = find_program("systemctl")
    if program is None:
        return None
    try:
        argv = [program, "show", "--property", "LoadState,ActiveState,Result", name]
        text = run(argv, f"ask for {name}", timeout_s=PROBE_TIMEOUT_S).decode(errors="replace")
    except EnclavekitError:
        return None
    values = dict(line.partition("=")[::2] for line in text.splitlines())
    if values.get("LoadState") != "loaded":
        return None
    return Service(values.get("ActiveState", ""), values.get("Result", ""))


def parse_cpu_list(text: str | None) -> frozenset[int]:
    """Parse `1-3,7`; what is not a list is empty."""
    found: set[int] = set()
    for part in (text or "").split(","):
        first, dash, last = part.strip().partition("-")
        if first.isdigit() and (last.isdigit() or not dash):
            found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def parse_meminfo(text: str) -> dict[str, int]:
    """Return name -> KiB. Source: proc(5)."""
    matches = (re.match(r"(\S+):\s+(\d+)", line) for line in text.splitlines())
    return {match[1]: int(match[2]) for match in matches if match}


def _identity(uid: int) -> tuple[str, tuple[str, ...]]:
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        return str(uid), ()
    numbers = os.getgroups() if uid == os.geteuid() else os.getgrouplist(account.pw_name, account.pw_gid)
    names = []
    for number in numbers:
        try:
            names.append(grp.getgrgid(number).gr_name)
        except KeyError:
            names.append(str(number))
    return account.pw_name, tuple(names)


def _userns_refusal(reader: _Reader) -> str:
    if reader.number("proc/sys/kernel/unprivileged_userns_clone") == 0:
        return "kernel.unprivileged_userns_clone"
    if reader.number("proc/sys/kernel/apparmor_restrict_unprivileged_userns") == 1:
        return "kernel.apparmor_restrict_unprivileged_userns"
    return ""


def _count_ids(text: str | None, user: str, uid: int) -> int:
    total = 0
    for line in (text or "").splitlines():
        fields = line.split(":")
        if len(fields) == 3 and fields[0] in (user, str(uid)) and fields[2].strip().isdigit():
            total += int(fields[2])
    return total
