# SPDX-License-Identifier: Apache-2.0
"""The keys of a unit file: how each is read, and what it means. Pure.

House rule: everything that knows a unit key lives here; the reference page of the unit files is made from `KEYS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from enclavekit_core.seccomp import PROFILES

from enclavekit_enclave_init.unit_values import (
    accept_one_of,
    parse_account,
    parse_accounts,
    parse_bind_paths,
    parse_capabilities,
    parse_command,
    parse_command_list,
    parse_count,
    parse_environment,
    parse_environment_files,
    parse_flag,
    parse_limit,
    parse_names,
    parse_one_command,
    parse_path,
    parse_paths,
    parse_percent,
    parse_positive_count,
    parse_score,
    parse_seconds,
    parse_signal,
    parse_size,
    parse_strings,
    parse_success,
    parse_tasks,
)

_RESTARTS = ("no", "always", "on-failure", "on-success")
_TYPES = ("simple", "oneshot", "notify")
_KILL_MODES = ("control-group", "mixed", "process")
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


@dataclass(frozen=True, slots=True)
class Key:
    """What one key of a unit file means."""

    attribute: str
    parse: Callable[[object], object]
    kind: str
    default: str
    meaning: str
    many: bool = False
    """Other keys give values of the same attribute: they are joined."""


KEYS: dict[str, Key] = {
    "ExecStart": Key("argv", parse_command, "string or list", "required", "the program; a list is the exact argv"),
    "Type": Key(
        "type",
        accept_one_of(*_TYPES),
        "simple, oneshot, notify",
        "simple",
        "simple is up once the program runs, oneshot once it has ended with 0, notify once it has sent READY=1 to "
        "NOTIFY_SOCKET",
    ),
    "ExecStartPre": Key(
        "start_pre",
        parse_command_list,
        "command or list of commands",
        "[]",
        "run one after the other before ExecStart, as the unit; one that fails is a failed start; `-` before it: "
        "it may fail",
    ),
    "ExecStartPost": Key(
        "start_post",
        parse_command_list,
        "command or list of commands",
        "[]",
        "run when the program is up; the unit is up when they have ended",
    ),
    "ExecStop": Key(
        "stop_commands",
        parse_command_list,
        "command or list of commands",
        "[]",
        "run to stop a unit that is up, before StopSignal",
    ),
    "ExecReload": Key(
        "reload_commands", parse_command_list, "command or list of commands", "[]", "run by a reload of this unit"
    ),
    "TimeoutStartSec": Key(
        "start_timeout_s",
        parse_seconds,
        "seconds",
        "90; 0 for oneshot",
        "from the start until it is up, ExecStartPre and ExecStartPost included; then it is stopped, which is a "
        "failure; 0: no limit",
    ),
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
    "Restart": Key(
        "restart",
        accept_one_of(*_RESTARTS),
        "no, always, on-failure, on-success",
        "no",
        "death by signal is failure",
    ),
    "RestartSec": Key(
        "restart_delay_s",
        parse_seconds,
        "seconds",
        "5",
        "pause from the end to the next start; twice as long after each restart that did not last "
        "StartLimitIntervalSec",
    ),
    "RestartMaxDelaySec": Key("restart_max_delay_s", parse_seconds, "seconds", "60", "the longest pause"),
    "SuccessExitStatus": Key(
        "success",
        parse_success,
        "list of statuses and signals",
        "[]",
        "ends that are no failure, besides 0",
    ),
    "StartLimitBurst": Key(
        "start_limit_burst",
        parse_count,
        "number",
        "10",
        "so many starts in StartLimitIntervalSec, pauses beyond RestartSec not counted, then the unit has failed "
        "for good; 0: no limit",
    ),
    "StartLimitIntervalSec": Key("start_limit_interval_s", parse_seconds, "seconds", "60", "see StartLimitBurst"),
    "StopSignal": Key("stop_signal", parse_signal, "signal", "SIGTERM", "see KillMode"),
    "KillMode": Key(
        "kill_mode",
        accept_one_of(*_KILL_MODES),
        "control-group, mixed, process",
        "control-group",
        "who gets StopSignal: the process group, or with mixed and process the main process only; with process what "
        "it leaves behind lives on",
    ),
    "TimeoutStopSec": Key("stop_timeout_s", parse_seconds, "seconds", "10", "then the whole session gets SIGKILL"),
    "ServiceEnable": Key("enabled", parse_flag, "true, false", "true", "false: not started"),
    "After": Key("after", parse_names, "list of units", "[]", "start once these have started or failed; stop first"),
    "Before": Key("before", parse_names, "list of units", "[]", "the reverse of After"),
    "Requires": Key(
        "requires",
        parse_names,
        "list of units",
        "[]",
        "After, and these must be up: one that fails for good takes this unit with it",
    ),
    "RequiredBy": Key("required_by", parse_names, "list of units", "[]", "the reverse of Requires"),
    "Wants": Key("wants", parse_names, "list of units", "[]", "a start that is asked for starts these too, if enabled"),
    "BindsTo": Key(
        "binds_to",
        parse_names,
        "list of units",
        "[]",
        "Requires, and it runs only while these do: if one ends it stops, if one restarts so does this",
    ),
    "Conflicts": Key(
        "conflicts", parse_names, "list of units", "[]", "stopped before this starts; both enabled is an error"
    ),
    "OnExit": Key(
        "powers_off",
        lambda v: bool(accept_one_of("poweroff")(v)),
        "poweroff",
        "nothing",
        "when the unit has ended for good, the enclave ends and reports the unit's status",
    ),
    "HeartbeatWaits": Key(
        "heartbeat_waits",
        parse_flag,
        "true, false",
        "false",
        "the parent gets the heartbeat when all such units are up; if one fails for good the boot has failed",
    ),
    "WatchdogSec": Key(
        "watchdog_s",
        parse_seconds,
        "seconds",
        "0",
        "the unit sends WATCHDOG=1 to NOTIFY_SOCKET at least so often, or gets SIGABRT, which is a failure; 0: none",
    ),
    "HealthCheck": Key(
        "health_check", parse_one_command, "command", "nothing", "run as the unit while it is up; 0 is healthy"
    ),
    "HealthIntervalSec": Key("health_interval_s", parse_seconds, "seconds", "30", "from one check to the next"),
    "HealthTimeoutSec": Key("health_timeout_s", parse_seconds, "seconds", "10", "a longer check is a failed one"),
    "HealthRetries": Key(
        "health_retries",
        parse_positive_count,
        "number",
        "3",
        "so many failed checks in a row stop the unit, which is a failure",
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


def format_reference() -> str:
    """Return the table of the reference page, Markdown."""
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    rows += [f"| `{name}` | {key.kind} | {key.default} | {key.meaning} |" for name, key in KEYS.items()]
    return "".join(row + "\n" for row in rows)
