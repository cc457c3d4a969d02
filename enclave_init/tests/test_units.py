# SPDX-License-Identifier: Apache-2.0
import re
import signal
from pathlib import Path

import pytest
from enclavekit_core.errors import ConfigError
from enclavekit_enclave_init.units.commands import Command, EnvironmentFile, parse_environment_lines, split_command
from enclavekit_enclave_init.units.keys import KEYS, format_reference
from enclavekit_enclave_init.units.place_keys import LIMITS
from enclavekit_enclave_init.units.unit import Unit, enable_text, find_key_line, parse_unit
from enclavekit_enclave_init.units.values import BindPath, normalize_name, parse_signal
from hypothesis import given
from hypothesis import strategies as st

REFERENCE = Path(__file__).parents[2] / "docs/reference/units.md"


@pytest.mark.parametrize(
    ("text", "argv"),
    [
        ("a b\tc\nd", ("a", "b", "c", "d")),
        ('a "b c" d', ("a", "b c", "d")),
        ("a 'b \\ c' d", ("a", "b \\ c", "d")),
        ('a "" b', ("a", "", "b")),
        (r"a b\ c \"d", ("a", "b c", '"d')),
        ('a="b c"d', ("a=b cd",)),
        ("  ", ()),
    ],
)
def test_split_command_table(text, argv):
    assert split_command(text) == argv


@pytest.mark.parametrize("text", ['a "b', "a 'b", "a\\"])
def test_split_command_refuses_what_is_open(text):
    with pytest.raises(ValueError):
        split_command(text)


@pytest.mark.parametrize(
    ("value", "number"),
    [(15, 15), ("15", 15), ("TERM", 15), ("SIGTERM", 15), ("SIGRTMIN+3", signal.SIGRTMIN + 3), ("quit", 3)],
)
def test_parse_signal_table(value, number):
    assert parse_signal(value) == number


@pytest.mark.parametrize("value", [0, 65, "SIGNOT", "SIGTERM+1", True, 1.5, "", "SIGRTMIN+x", "SIGRTMIN+99"])
def test_parse_signal_refuses(value):
    with pytest.raises(ValueError):
        parse_signal(value)


def test_environment_lines_are_taken_as_they_stand():
    text = "A=1\n# note\n\nB=x = y \nC=\n"
    assert parse_environment_lines(text) == (("A", "1"), ("B", "x = y "), ("C", ""))


@pytest.mark.parametrize("text", ["A", "=1", "A=1\nB", " A=1", "A=\0"])
def test_environment_lines_that_are_refused(text):
    with pytest.raises(ValueError):
        parse_environment_lines(text)


def test_parse_unit_takes_every_key():
    text = """
ExecStart = ["/bin/app", "two words", ""]
Type = "simple"
Environment = ["A=1=2", "B="]
EnvironmentFile = ["/run/a.env", "-/run/b.env"]
Restart = "on-failure"
RestartSec = 0.5
StartLimitBurst = 3
StartLimitIntervalSec = 30
WorkingDirectory = "/srv"
ServiceEnable = false
Before = ["x.service"]
After = ["y"]
Requires = ["db"]
RequiredBy = ["z"]
User = 1000
Group = "www"
SupplementaryGroups = [8, "mail"]
RootDirectory = "/rootfs"
MountAPIVFS = false
StopSignal = "SIGQUIT"
TimeoutStopSec = 3
BindPaths = ["/data", "-/a:/b"]
OnExit = "poweroff"
ExecStartPre = ["one 'a b'", "-two"]
ExecStartPost = "three"
ExecStop = "four"
ExecReload = "five"
TimeoutStartSec = 7
RestartMaxDelaySec = 8
SuccessExitStatus = [3, "SIGUSR1"]
KillMode = "mixed"
Wants = ["w"]
BindsTo = ["bt"]
Conflicts = ["c"]
HeartbeatWaits = true
WatchdogSec = 9
HealthCheck = "six x"
HealthIntervalSec = 10
HealthTimeoutSec = 11
HealthRetries = 12
MemoryMax = "32M"
CPUQuota = "150%"
TasksMax = 13
OOMScoreAdjust = -5
NoNewPrivileges = true
CapabilityBoundingSet = ["CAP_KILL", "CHOWN"]
SeccompProfile = "default"
LandlockRead = ["/r"]
LandlockWrite = []
PrivateNetwork = true
PrivateTmp = true
InsecureMayLack = ["MemoryMax"]
"""
    text += "".join(f"Limit{name} = '{number}:2K'\n" for number, name in enumerate(LIMITS))
    assert set(re.findall(r"^(\w+) =", text, re.M)) == set(KEYS)
    assert parse_unit("app", text, "f") == Unit(
        name="app",
        argv=("/bin/app", "two words", ""),
        environment=(("A", "1=2"), ("B", "")),
        environment_files=(EnvironmentFile("/run/a.env"), EnvironmentFile("/run/b.env", optional=True)),
        restart="on-failure",
        restart_delay_s=0.5,
        start_limit_burst=3,
        start_limit_interval_s=30.0,
        working_directory="/srv",
        enabled=False,
        before=("x",),
        after=("y",),
        requires=("db",),
        required_by=("z",),
        user="1000",
        group="www",
        supplementary_groups=("8", "mail"),
        root_directory="/rootfs",
        mount_api_vfs=False,
        stop_signal=signal.SIGQUIT,
        stop_timeout_s=3.0,
        oneshot=False,
        bind_paths=(BindPath("/data", "/data"), BindPath("/a", "/b", optional=True)),
        powers_off=True,
        start_pre=(Command(("one", "a b")), Command(("two",), ignores_failure=True)),
        start_post=(Command(("three",)),),
        stop_commands=(Command(("four",)),),
        reload_commands=(Command(("five",)),),
        start_timeout_s=7.0,
        restart_max_delay_s=8.0,
        success_statuses=(3,),
        success_signals=(signal.SIGUSR1,),
        kill_mode="mixed",
        wants=("w",),
        binds_to=("bt",),
        conflicts=("c",),
        heartbeat_waits=True,
        watchdog_s=9.0,
        health_check=Command(("six", "x")),
        health_interval_s=10.0,
        health_timeout_s=11.0,
        health_retries=12,
        memory_max=32 << 20,
        cpu_quota=1.5,
        tasks_max=13,
        oom_score_adjust=-5,
        no_new_privileges=True,
        capabilities=(0, 5),
        seccomp="default",
        landlock_read=("/r",),
        landlock_write=(),
        private_network=True,
        private_tmp=True,
        insecure_may_lack=("MemoryMax",),
        limits=tuple((name, number, 2048) for number, name in enumerate(LIMITS)),
    )


@pytest.mark.parametrize(
    ("text", "where", "word"),
    [
        ("ExecStart = 'a'\nNope = 1", "f:2", "Nope"),
        ("[Service]\nExecStart = 'a'", "f:1", "Service"),
        ("ExecStart = '''\nNope = 1\n'''\n\nNope = 2", "f:5", "Nope"),
        ("ExecStart = 'a'\nExecStart = 'b'", "f:2", ""),
        ("ExecStart = 'a'\n\nx = = 1", "f:3", ""),
        ("ExecStart = 'a'\nx = [" + "[" * 5000, "f", "nested"),
        ("ExecStart = 'a'\nx = 1" + "0" * 5000, "f", ""),
        ("ExecStart = ''", "f:1", "ExecStart"),
        ("ExecStart = ['', 'x']", "f:1", "ExecStart"),
        ("ExecStart = 'a \"b'", "f:1", "ExecStart"),
        ("User = 1\n", "f", ""),
        ("ExecStart = 'a'\nRestart = 'sometimes'", "f:2", "Restart"),
        ("ExecStart = 'a'\nRestartSec = '5'", "f:2", "RestartSec"),
        ("ExecStart = 'a'\nRestartSec = -1", "f:2", "RestartSec"),
        ("ExecStart = 'a'\nRestartSec = nan", "f:2", "RestartSec"),
        ("ExecStart = 'a'\nServiceEnable = 'yes'", "f:2", "ServiceEnable"),
        ("ExecStart = 'a'\nEnvironment = ['A']", "f:2", "Environment"),
        ("ExecStart = 'a'\nEnvironment = ['A=\\u0000']", "f:2", "Environment"),
        ("ExecStart = 'a'\nEnvironmentFile = 'rel'", "f:2", "EnvironmentFile"),
        ("ExecStart = 'a'\nWorkingDirectory = 'rel'", "f:2", "WorkingDirectory"),
        ("ExecStart = 'a'\nRootDirectory = '/a/../b'", "f:2", "RootDirectory"),
        ("ExecStart = 'a'\nRequires = ['../x']", "f:2", "Requires"),
        ("ExecStart = 'a'\nUser = 'a:b'", "f:2", "User"),
        ("ExecStart = 'a'\nUser = 4294967295", "f:2", "User"),
        ("ExecStart = 'a'\nOnExit = 'reboot'", "f:2", "OnExit"),
        ("ExecStart = 'a'\nType = 'oneshot'\nRestart = 'always'", "f:3", "Restart"),
        ("ExecStart = 'a'\nExecStop = ['a \"b']", "f:2", "ExecStop"),
        ("ExecStart = 'a'\nMemoryMax = '5X'", "f:2", "MemoryMax"),
        ("ExecStart = 'a'\nMemoryMax = -1", "f:2", "MemoryMax"),
        ("ExecStart = 'a'\nCPUQuota = 0.5", "f:2", "CPUQuota"),
        ("ExecStart = 'a'\nCPUQuota = '0%'", "f:2", "CPUQuota"),
        ("ExecStart = 'a'\nTasksMax = 0", "f:2", "TasksMax"),
        ("ExecStart = 'a'\nLimitNOFILE = '9:8'", "f:2", "LimitNOFILE"),
        ("ExecStart = 'a'\nLimitNOFILE = 'infinity:8'", "f:2", "LimitNOFILE"),
        ("ExecStart = 'a'\nLimitTOAST = 1", "f:2", "LimitTOAST"),
        ("ExecStart = 'a'\nOOMScoreAdjust = 1001", "f:2", "OOMScoreAdjust"),
        ("ExecStart = 'a'\nCapabilityBoundingSet = ['CAP_FLY']", "f:2", "CAP_FLY"),
        ("ExecStart = 'a'\nSeccompProfile = 'none'", "f:2", "SeccompProfile"),
        ("ExecStart = 'a'\nLandlockRead = ['rel']", "f:2", "LandlockRead"),
        ("ExecStart = 'a'\nKillMode = 'none'", "f:2", "KillMode"),
        ("ExecStart = 'a'\nSuccessExitStatus = [256]", "f:2", "256"),
        ("ExecStart = 'a'\nHealthRetries = 0", "f:2", "HealthRetries"),
        ("ExecStart = 'a'\nHealthCheck = 'c'\nHealthTimeoutSec = 0", "f:3", "HealthTimeoutSec"),
        ("ExecStart = 'a'\nType = 'oneshot'\nWatchdogSec = 1", "f:3", "WatchdogSec"),
        ("ExecStart = 'a'\nInsecureMayLack = ['User']", "f:2", "User"),
        ("ExecStart = 'a'\nRootDirectory = '/r'\nBindPaths = ['/d:/r/d']", "f:3", "write /d"),
    ],
)  # fmt: skip
def test_parse_unit_refuses_with_the_line(text, where, word):
    if "u0000" in text:
        text = text.replace("'A=\\u0000'", '"A=\\u0000"')
    with pytest.raises(ConfigError) as caught:
        parse_unit("app", text, "f")
    assert caught.value.source == where
    assert word in str(caught.value)


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "-a", "a" * 65, "enclave-init", "a b", "ü"])
def test_unit_names_that_are_refused(name):
    with pytest.raises(ValueError):
        normalize_name(name)
    with pytest.raises(ConfigError):
        parse_unit(name, "ExecStart = 'a'", "f")


@given(st.text(max_size=200))
def test_parse_unit_only_raises_config_error(text):
    try:
        parse_unit("app", text, "f")
    except ConfigError:
        pass


@given(
    st.sampled_from(sorted(KEYS)), st.text(max_size=30) | st.integers() | st.booleans() | st.lists(st.text(max_size=9))
)
def test_parse_value_only_raises_value_error(key, value):
    try:
        KEYS[key].parse(value)
    except ValueError:
        pass


def test_find_key_line_of_a_key_that_is_not_there():
    assert find_key_line("a = 1", "b") == 0


def test_enable_text_turns_the_one_line():
    text = "ExecStart = 'a'\n# ServiceEnable = false\nServiceEnable = false # for now\nUser = 1"
    assert enable_text(text) == "ExecStart = 'a'\n# ServiceEnable = false\nServiceEnable = true\nUser = 1"
    assert parse_unit("a", enable_text(text), "f").enabled
    assert enable_text("ExecStart = 'a'\n") == "ExecStart = 'a'\n"


def test_reference_page_is_what_the_table_says():
    # python -c 'from enclavekit_enclave_init.units.keys import format_reference as f; print(f(), end="")'
    page = REFERENCE.read_text()
    head, _, rest = page.partition("<!-- keys -->\n")
    table, _, _ = rest.partition("<!-- /keys -->")
    assert head and table == format_reference()
