# SPDX-License-Identifier: Apache-2.0
"""What keys of a unit file do to its life in a real enclave: its environment, order, restarts and stop; one boot."""

import pytest

from .test_unit_effects import ONCE, Booted, sh

pytestmark = pytest.mark.usefixtures("_namespaces")
# after so many starts the fourth is the last; what it ends with then is the other kind of end
COUNTED = "echo x >>/tmp/{0}; [ $(wc -l </tmp/{0}) -lt 4 ] && exit {1}; exit {2}"


@pytest.fixture(scope="module")
def booted(_namespaces, tmp_path_factory):
    from .conftest import Machine

    machine = Machine(tmp_path_factory.mktemp("m"))
    machine.file("/etc/one.env", '# values\nA=one\nB=from the file\n\nQUOTED="as it stands"\n')
    machine.file("/etc/two.env", "A=two\n")
    machine.file("/etc/bad.env", "A=1\nnonsense\n")
    (machine.image / "rootfs").mkdir()
    binds = "BindPaths = ['/usr', '/usr/bin:/bin', '/usr/lib:/lib', '/usr/lib64:/lib64']\nRootDirectory = '/rootfs{}'\n"
    (machine.image / "rootfs-bare").mkdir()
    again = "RestartSec = 0.01\nRestartMaxDelaySec = 0.01\n"
    units = {
        "reads-files": sh("echo $A; echo $B; echo $QUOTED; echo $C")
        + "Environment = ['B=from the unit', 'C=kept']\n"
        + "EnvironmentFile = ['/etc/one.env', '-/etc/none.env', '/etc/two.env']\n" + ONCE,
        "reads-none": sh("echo never") + "EnvironmentFile = '/etc/none.env'\n" + ONCE,
        "reads-bad": sh("echo never") + "EnvironmentFile = '/etc/bad.env'\n" + ONCE,
        "has-api": sh("[ -e /proc/self/status ] && [ -e /dev/null ] && echo there") + binds.format("") + ONCE,
        "has-no-api": sh("ls /proc /dev /sys") + "MountAPIVFS = false\n" + binds.format("-bare") + ONCE,
        # order: what is Before or After another is there, or not yet, when the other looks
        "later": sh("ls /tmp/earlier && echo it was there") + ONCE,
        "earlier": sh("[ -e /tmp/latest ] || touch /tmp/earlier") + "Before = ['later']\n" + ONCE,
        "latest": sh("ls /tmp/earlier && touch /tmp/latest") + "After = ['later']\n" + ONCE,
        "needed": sh("exit 3") + "RequiredBy = ['needing']\n" + ONCE,
        "needing": sh("echo never"),
        "restarts-on-success": sh(COUNTED.format("s", 0, 5)) + "Restart = 'on-success'\n" + again,
        "restarts-on-failure": sh(COUNTED.format("f", 5, 0)) + "Restart = 'on-failure'\n" + again,
        "restarts-never": sh("echo once; exit 5") + "Restart = 'no'\n" + again,
        # two starts in a tenth of a second are too many; these are further apart than that
        "slow-loop": sh(COUNTED.format("l", 5, 0)) + "Restart = 'on-failure'\nRestartSec = 0.2\n"
        "RestartMaxDelaySec = 0.2\nStartLimitBurst = 2\nStartLimitIntervalSec = 0.1\n",
        "fast-loop": sh("echo x; exit 5") + "Restart = 'on-failure'\nStartLimitBurst = 2\nStartLimitIntervalSec = 60\n"
        + again,
        "stopped": sh("trap 'echo got USR2; exit 0' USR2; trap 'echo got TERM' TERM; touch /tmp/s-ready; "
                      "while :; do sleep 0.01; done")
        + "StopSignal = 'SIGUSR2'\nBefore = ['zz']\n",
        "settled": sh("while ! [ -e /tmp/s-ready ] || [ $(cat /tmp/s /tmp/f /tmp/l | wc -l) -lt 12 ]; do true; done")
        + ONCE,
    }  # fmt: skip
    try:
        yield Booted(machine, units)
    finally:
        machine.close()


def test_environment_files_in_their_order_above_the_unit_s_own(booted):
    assert booted.lines("reads-files") == ["two", "from the file", '"as it stands"', "kept"]


@pytest.mark.parametrize(("name", "words"), [("reads-none", "no such file"), ("reads-bad", "line 2 is not NAME=value")])
def test_environment_file_that_cannot_be_used_stops_the_unit(booted, name, words):
    assert booted.lines(name) == [] and booted.ended(name, f"failed: .*{words}")


def test_api_file_systems_are_in_the_root_unless_the_unit_wants_none(booted):
    assert booted.lines("has-api") == ["there"]
    assert all("no such" in line.lower() for line in booted.lines("has-no-api")), booted.lines("has-no-api")


def test_order(booted):
    assert "it was there" in booted.lines("later")
    assert booted.ended("latest", "exited with 0")


def test_reverse_requirement(booted):
    assert booted.lines("needing") == [] and booted.ended("needing", "requires needed, which has failed")


@pytest.mark.parametrize(
    ("name", "restarts", "end"),
    [("restarts-on-success", 3, 5), ("restarts-on-failure", 3, 0), ("restarts-never", 0, 5), ("slow-loop", 3, 0)],
)
def test_restarts(booted, name, restarts, end):
    assert booted.console.count(f"enclave-init: {name} starts as pid") == restarts + 1
    assert booted.ended(name, f"exited with {end}$")


def test_start_limit_counts_within_its_interval(booted):
    assert booted.lines("fast-loop") == ["x", "x"]
    assert booted.ended("fast-loop", "exited with 5; it is not started again after 2 starts in 60 s")


def test_stop_signal(booted):
    assert "got USR2" in booted.lines("stopped") and "got TERM" not in booted.lines("stopped")
