# SPDX-License-Identifier: Apache-2.0
"""The keys of a unit file that are about the place it has: who it is, what it sees, what it may use and may do."""

from __future__ import annotations

from enclavekit_core.amounts import parse_percent, parse_size, parse_tasks
from enclavekit_core.seccomp import PROFILES

from enclavekit_enclave_init.units.bounds import (
    parse_capabilities,
    parse_limit,
    parse_score,
)
from enclavekit_enclave_init.units.commands import parse_environment, parse_environment_files
from enclavekit_enclave_init.units.key import Key
from enclavekit_enclave_init.units.values import (
    accept_one_of,
    parse_account,
    parse_accounts,
    parse_bind_paths,
    parse_flag,
    parse_path,
    parse_paths,
    parse_strings,
)

# what a kernel, or a machine that is not its own, may be unable to give
PROTECTIONS = (
    "MemoryMax", "CPUQuota", "TasksMax", "LandlockRead", "LandlockWrite", "SeccompProfile", "PrivateNetwork",
    "PrivateTmp", "CapabilityBoundingSet", "OOMScoreAdjust",
)  # fmt: skip
# setrlimit(2), less those that Linux ignores
LIMITS = (
    "AS", "CORE", "CPU", "DATA", "FSIZE", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE", "NPROC", "RTPRIO", "RTTIME",
    "SIGPENDING", "STACK",
)  # fmt: skip


def _parse_lacks(value: object) -> tuple[str, ...]:
    names = parse_strings(value)
    for name in names:
        if name not in PROTECTIONS:
            raise ValueError(f"{name!r} is none of {', '.join(PROTECTIONS)}")
    return names


PLACE_KEYS: dict[str, Key] = {
    "Environment": Key(
        "environment",
        parse_environment,
        "list of NAME=value",
        "[]",
        "the whole environment besides init.toml's; PATH is added if neither has it",
    ),
    "EnvironmentFile": Key(
        "environment_files",
        parse_environment_files,
        "path or list of paths",
        "[]",
        "files of NAME=value lines, read at each start, above Environment; `-` before the path: skip if it is missing",
    ),
    "WorkingDirectory": Key("working_directory", parse_path, "path", "/", "inside RootDirectory; must exist"),
    "User": Key("user", parse_account, "name or number", "root", "a name is looked up in the unit root's /etc/passwd"),
    "Group": Key(
        "group", parse_account, "name or number", "the user's", "a name is looked up in the unit root's /etc/group"
    ),
    "SupplementaryGroups": Key(
        "supplementary_groups",
        parse_accounts,
        "list of names or numbers",
        "[]",
        "groups besides Group; a name is looked up in the unit root's /etc/group",
    ),
    "RootDirectory": Key("root_directory", parse_path, "path", "/", "the unit is chrooted there"),
    "MountAPIVFS": Key(
        "mount_api_vfs", parse_flag, "true, false", "true", "with RootDirectory: /proc, /sys and /dev are bound into it"
    ),
    "BindPaths": Key(
        "bind_paths",
        parse_bind_paths,
        "list of source:destination",
        "[]",
        "bound before the start; the destination is seen from inside RootDirectory; `-` before the "
        "source: skip if it is missing",
    ),
    **{
        f"Limit{name}": Key(
            "limits",
            lambda v, name=name: ((name, *parse_limit(v)),),  # type: ignore[misc]
            "size, infinity, SOFT:HARD",
            "PID 1's",
            f"setrlimit(2), RLIMIT_{name}",
            many=True,
        )
        for name in LIMITS
    },
    "MemoryMax": Key("memory_max", parse_size, "size", "none", "of all its processes; above, the kernel kills one"),
    "CPUQuota": Key("cpu_quota", parse_percent, "percentage", "none", "of one processor, for all its processes"),
    "TasksMax": Key("tasks_max", parse_tasks, "number", "none", "processes and threads"),
    "OOMScoreAdjust": Key(
        "oom_score_adjust", parse_score, "number", "PID 1's", "-1000 to 1000; who is killed first when memory is short"
    ),
    "NoNewPrivileges": Key(
        "no_new_privileges", parse_flag, "true, false", "false", "setuid files and file capabilities give it nothing"
    ),
    "CapabilityBoundingSet": Key(
        "capabilities", parse_capabilities, "list of capabilities", "all", "it can have no others, even as root"
    ),
    "SeccompProfile": Key(
        "seccomp",
        accept_one_of(*PROFILES),
        ", ".join(PROFILES),
        "none",
        "default denies what leads to other roots, processes and the kernel; no-network also all sockets but Unix "
        "ones; implies NoNewPrivileges",
    ),
    "LandlockRead": Key(
        "landlock_read",
        parse_paths,
        "list of paths",
        "none",
        "it may read and run what is below these and LandlockWrite, nothing else; seen from inside RootDirectory; "
        "implies NoNewPrivileges",
    ),
    "LandlockWrite": Key(
        "landlock_write", parse_paths, "list of paths", "none", "it may do anything below these; see LandlockRead"
    ),
    "PrivateNetwork": Key(
        "private_network", parse_flag, "true, false", "false", "a network of its own, with nothing but loopback"
    ),
    "PrivateTmp": Key("private_tmp", parse_flag, "true, false", "false", "an empty /tmp of its own at each start"),
    "InsecureMayLack": Key(
        "insecure_may_lack",
        _parse_lacks,
        "list of keys",
        "[]",
        "protections that it starts without where the kernel cannot give them; else it does not start",
    ),
}  # fmt: skip - one key a line reads as the table that it is
