# SPDX-License-Identifier: Apache-2.0
"""The keys of a unit file that are about its life: what it runs, when it starts, how it ends and what comes then."""

from __future__ import annotations

from enclavekit_enclave_init.units.commands import parse_command, parse_command_list, parse_one_command
from enclavekit_enclave_init.units.key import Key
from enclavekit_enclave_init.units.values import (
    accept_one_of,
    parse_count,
    parse_flag,
    parse_names,
    parse_positive_count,
    parse_seconds,
    parse_signal,
    parse_success,
)

_RESTARTS = ("no", "always", "on-failure", "on-success")
_TYPES = ("simple", "oneshot", "notify")
_KILL_MODES = ("control-group", "mixed", "process")

LIFE_KEYS: dict[str, Key] = {
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
}  # fmt: skip - one key a line reads as the table that it is
