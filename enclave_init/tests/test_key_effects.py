# SPDX-License-Identifier: Apache-2.0
"""Every key of a unit file has a test that sees, in a real enclave, what it does; this table says which."""

import ast
from pathlib import Path

import pytest
from enclavekit_enclave_init.units.keys import KEYS
from enclavekit_enclave_init.units.place_keys import LIMITS

HERE = Path(__file__).parent
EFFECTS_FILE, CONDUCT, PID1, LIMITS_FILE = (
    "test_unit_effects.py", "test_unit_conduct.py", "test_pid1.py", "test_limits.py",
)  # fmt: skip
LIMIT_TESTS = {
    "AS": "test_memory", "CORE": "test_core", "CPU": "test_processor_time", "DATA": "test_memory",
    "FSIZE": "test_file_size", "NICE": "test_priorities_are_denied", "NOFILE": "test_descriptors",
    "RTPRIO": "test_priorities_are_denied", "RTTIME": "test_realtime_without_sleep",
}  # fmt: skip
EFFECTS = {
    "ExecStart": (PID1, "test_boot_sends_heartbeat_and_reports_exit_status"),
    "Type": (EFFECTS_FILE, "test_notify_socket"),
    "ExecStartPre": (EFFECTS_FILE, "test_start_commands_run_in_order_and_may_fail_if_they_say_so"),
    "ExecStartPost": (EFFECTS_FILE, "test_commands_after_the_start_and_before_the_stop"),
    "ExecStop": (EFFECTS_FILE, "test_commands_after_the_start_and_before_the_stop"),
    "ExecReload": (EFFECTS_FILE, "test_keys_that_answer_to_requests"),
    "TimeoutStartSec": (EFFECTS_FILE, "test_start_that_takes_too_long_fails"),
    "Environment": (PID1, "test_child_gets_a_clean_process"),
    "EnvironmentFile": (CONDUCT, "test_environment_files_in_their_order_above_the_unit_s_own"),
    "WorkingDirectory": (PID1, "test_root_directory_user_and_bind_paths"),
    "User": (PID1, "test_unit_gets_the_groups_that_it_names_and_no_others"),
    "Group": (PID1, "test_unit_gets_the_groups_that_it_names_and_no_others"),
    "SupplementaryGroups": (PID1, "test_unit_gets_the_groups_that_it_names_and_no_others"),
    "RootDirectory": (PID1, "test_root_directory_user_and_bind_paths"),
    "MountAPIVFS": (CONDUCT, "test_api_file_systems_are_in_the_root_unless_the_unit_wants_none"),
    "BindPaths": (PID1, "test_root_directory_user_and_bind_paths"),
    "Restart": (CONDUCT, "test_restarts"),
    "RestartSec": (EFFECTS_FILE, "test_back_off_grows_up_to_its_limit"),
    "RestartMaxDelaySec": (EFFECTS_FILE, "test_back_off_grows_up_to_its_limit"),
    "SuccessExitStatus": (EFFECTS_FILE, "test_success_exit_status"),
    "StartLimitBurst": (PID1, "test_crash_loop_ends_at_the_start_limit"),
    "StartLimitIntervalSec": (CONDUCT, "test_start_limit_counts_within_its_interval"),
    "StopSignal": (CONDUCT, "test_stop_signal"),
    "KillMode": (EFFECTS_FILE, "test_keys_that_answer_to_requests"),
    "TimeoutStopSec": (PID1, "test_stubborn_unit_is_killed_with_its_whole_session"),
    "ServiceEnable": (EFFECTS_FILE, "test_keys_that_answer_to_requests"),
    "After": (CONDUCT, "test_order"),
    "Before": (CONDUCT, "test_order"),
    "Requires": (PID1, "test_failed_requirement_stops_the_enclave_with_its_name"),
    "RequiredBy": (CONDUCT, "test_reverse_requirement"),
    "Wants": (EFFECTS_FILE, "test_keys_that_answer_to_requests"),
    "BindsTo": (EFFECTS_FILE, "test_bound_unit_stops_with_the_other"),
    "Conflicts": (EFFECTS_FILE, "test_keys_that_answer_to_requests"),
    "OnExit": (PID1, "test_boot_sends_heartbeat_and_reports_exit_status"),
    "HeartbeatWaits": (EFFECTS_FILE, "test_heartbeat_waits_for_its_units"),
    "WatchdogSec": (EFFECTS_FILE, "test_watchdog"),
    "HealthCheck": (EFFECTS_FILE, "test_health_checks"),
    "HealthIntervalSec": (EFFECTS_FILE, "test_health_checks"),
    "HealthTimeoutSec": (EFFECTS_FILE, "test_health_checks"),
    "HealthRetries": (EFFECTS_FILE, "test_health_checks"),
    **{
        f"Limit{name}": (
            LIMITS_FILE, LIMIT_TESTS.get(name, "test_limit_is_run_into_where_it_is_and_nowhere_else"),
        )
        for name in LIMITS
    },
    "MemoryMax": (EFFECTS_FILE, "test_cgroups_bound_what_a_unit_uses"),
    "CPUQuota": (EFFECTS_FILE, "test_cgroups_bound_what_a_unit_uses"),
    "TasksMax": (EFFECTS_FILE, "test_cgroups_bound_what_a_unit_uses"),
    "OOMScoreAdjust": ("test_unit_privileges.py", "test_who_has_the_highest_oom_score_is_killed_first"),
    "NoNewPrivileges": (
        "test_unit_privileges.py", "test_setuid_program_gives_nothing_to_who_has_no_new_privileges",
    ),
    "CapabilityBoundingSet": (EFFECTS_FILE, "test_cgroups_bound_what_a_unit_uses"),
    "SeccompProfile": (EFFECTS_FILE, "test_seccomp_profiles_deny"),
    "LandlockRead": (EFFECTS_FILE, "test_landlock_denies_what_is_not_listed"),
    "LandlockWrite": (EFFECTS_FILE, "test_landlock_denies_what_is_not_listed"),
    "PrivateNetwork": (EFFECTS_FILE, "test_private_network_has_loopback_only"),
    "PrivateTmp": (EFFECTS_FILE, "test_private_tmp_is_empty_and_stays_private"),
    "InsecureMayLack": (
        "test_old_kernel.py",
        "test_units_run_and_protections_that_are_missing_are_named_and_not_passed_over",
    ),
}  # fmt: skip


def test_every_key_is_in_the_table():
    assert EFFECTS.keys() == KEYS.keys()


@pytest.mark.parametrize("key", EFFECTS)
def test_key_has_a_test_that_exists_and_speaks_of_it(key):
    file, test = EFFECTS[key]
    text = (HERE / file).read_text()
    assert test in {node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    assert key in text
