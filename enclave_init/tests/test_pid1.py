# SPDX-License-Identifier: Apache-2.0
"""enclave_init as a real PID 1 with real processes."""

import os
import signal
import sys
from pathlib import Path

import pytest

MAX_RSS_KB = 25 * 1024
PYTHON = os.path.realpath(sys.executable)
OVER = 'OnExit = "poweroff"\n'


def sh(script):
    return f"ExecStart = ['sh', '-c', '''{script}''']\n"


def py(script):
    return f"ExecStart = ['{PYTHON}', '-IS', '-c', '''{script}''']\n"


def test_boot_sends_heartbeat_and_reports_exit_status(machine):
    machine.unit("app", sh("echo out; echo err >&2; exit 7") + OVER)
    report = machine.boot().wait()
    assert machine.heartbeat.received == [b"\xb7"]
    uptime_s, last_lines = report.pop("uptime_s"), report.pop("last_lines")
    assert report == {
        "version": 2,
        "unit": "app",
        "exit_status": 7,
        "signal": None,
        "reason": "app exited with 7",
        "cause": "exited",
        "oom": False,
    }
    # what the app says is its own affair unless the image lets the parent have it
    assert uptime_s > 0 and {line["unit"] for line in last_lines} == {"enclave-init"}
    assert "everything stops: app exited with 7" in [line["text"] for line in last_lines]
    # reboot(2) in a PID namespace ends its init with SIGINT; unshare hands that on
    assert machine.process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert sorted(machine.log("app")) == ["err", "out"]
    assert {"app: out", "app: err"} <= set(machine.console)


def test_boot_makes_the_machine_usable(machine):
    machine.unit(
        "app",
        py(
            "import os, socket\n"
            "assert os.getpid() != 1 and os.getsid(0) == os.getpid()\n"
            "socket.create_server(('127.0.0.1', 0)).close()\n"
            "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()).close()\n"
            "assert os.path.ismount('/dev/shm') and os.path.ismount('/dev/pts') and os.path.ismount('/tmp')\n"
            "assert not os.path.ismount('/run') and os.path.exists('/run/enclavekit/registry/self.json')\n"
            "assert os.stat('/tmp').st_mode & 0o7777 == 0o1777\n"
            "os.openpty()\n"
            "print(socket.gethostname())\n"
        )
        + OVER,
    )
    machine.boot().wait()
    assert machine.log("app") == ["enclave"]


def test_death_by_signal_is_reported_as_that(machine):
    machine.unit("app", sh("kill -SEGV $$") + OVER)
    report = machine.boot().wait()
    assert (report["exit_status"], report["signal"]) == (None, signal.SIGSEGV)


def test_missing_program_is_reported_with_its_reason(machine):
    machine.unit("app", "ExecStart = 'no-such-program'\n" + OVER)
    report = machine.boot().wait()
    assert (report["exit_status"], report["signal"]) == (127, None)
    assert "no-such-program" in report["reason"] and "no such file" in report["reason"]


def test_missing_working_directory_stops_the_unit(machine):
    machine.unit("app", sh("touch /out/ran") + "WorkingDirectory = '/nowhere'\n" + OVER)
    assert "/nowhere" in machine.boot().wait()["reason"]
    assert not (machine.out / "ran").exists()


def test_child_gets_a_clean_process(machine):
    machine.unit(
        "app",
        py(
            "import os, signal\n"
            "assert sorted(os.listdir('/proc/self/fd')) == ['0', '1', '2', '3'], os.listdir('/proc/self/fd')\n"
            "assert os.path.samefile('/proc/self/fd/0', '/dev/null')\n"
            "status = dict(l.split(':', 1) for l in open('/proc/self/status'))\n"
            "assert int(status['SigBlk'], 16) == 0, status['SigBlk']\n"
            "print(status['SigIgn'].strip(), status['Groups'].strip() or 'none', sorted(os.environ.items()))\n"
        )
        + "Environment = ['B=2', 'LC_ALL=C']\n"
        + OVER,
    )
    machine.file("/etc/init.toml", "[environment]\nA = '1'\nB = '1'\n")
    assert machine.boot().wait()["exit_status"] == 0, machine.console
    # python itself ignores SIGPIPE (13) and SIGXFSZ (25); a child that inherited more would show it here
    [line] = machine.log("app")
    ignored, groups, environment = line.split(" ", 2)
    assert int(ignored, 16) & ~(1 << 12 | 1 << 24) == 0
    assert environment == str([("A", "1"), ("B", "2"), ("LC_ALL", "C"), ("PATH", "/sbin:/usr/sbin:/bin:/usr/bin")])
    if os.geteuid() == 0:
        assert groups == "none"


@pytest.mark.skipif(os.geteuid() != 0, reason="a namespace made without root may not set groups")
def test_unit_gets_the_groups_that_it_names_and_no_others(machine):
    machine.unit(
        "app",
        sh("grep -E '^(Uid|Gid|Groups)' /proc/self/status | tr '\\t' ' '")
        + "User = 33\nGroup = 44\nSupplementaryGroups = [8, 'mail', 'two']\n"
        + OVER,
    )
    machine.file("/etc/group", "mail:x:8:\ntwo:x:9:\n")
    assert machine.boot().wait()["exit_status"] == 0, machine.console
    assert [line.split() for line in machine.log("app")] == [
        ["Uid:", *["33"] * 4],
        ["Gid:", *["44"] * 4],
        ["Groups:", "8", "8", "9"],
    ]


def test_signals_ignored_by_pid1_are_default_in_children(machine):
    machine.unit("app", sh("grep SigIgn /proc/self/status") + OVER)
    machine.boot().wait()
    assert int(machine.log("app")[0].split()[1], 16) == 0


def test_zombie_storm_is_reaped_and_disturbs_nothing(machine):
    # 500 orphans that end after their parent: all become PID 1's to reap
    machine.unit(
        "app",
        py(
            "import os, sys\n"
            "r, w = os.pipe()\n"
            "for _ in range(500):\n"
            "    if os.fork() == 0:\n"
            "        if os.fork() == 0:\n"
            "            os.setsid(); os.close(w); os.read(r, 1); os._exit(0)\n"
            "        os._exit(0)\n"
            "    os.wait()\n"
            "os.close(w)\n"
            "def left():\n"
            "    mine = (1, os.getpid())\n"
            "    return [p for p in os.listdir('/proc') if p.isdigit() and int(p) not in mine]\n"
            "while left(): pass\n"
            "print('all reaped')\n"
        )
        + OVER,
    )
    assert machine.boot().wait()["exit_status"] == 0
    assert machine.log("app") == ["all reaped"]


def test_resident_memory_of_pid1_is_bounded(machine):
    machine.unit("app", sh("grep VmRSS /proc/1/status") + OVER)
    for number in range(5):
        machine.unit(f"side{number}", "ExecStart = 'sleep 1000'\n" + "Before = ['app']\n")
    machine.boot().wait()
    [line] = machine.log("app")
    print(line)
    assert int(line.split()[1]) < MAX_RSS_KB


def test_stubborn_unit_is_killed_with_its_whole_session(machine):
    machine.unit(
        "stubborn",
        sh("trap '' TERM; (trap '' TERM; echo $$ >/out/child; while :; do sleep 1000; done) & while :; do wait; done")
        + "TimeoutStopSec = 0.2\nBefore = ['app']\n",
    )
    machine.unit("app", sh("while ! [ -s /out/child ]; do :; done; exit 3") + OVER)
    assert machine.boot().wait()["exit_status"] == 3
    assert any("is killed" in line for line in machine.console)


def test_units_stop_in_reverse_order_of_their_start(machine):
    stop = (
        "trap 'echo stop-{0} >>/out/order; exit 0' TERM; echo start-{0} >>/out/order; {1} while :; do sleep 0.01; done"
    )
    machine.unit("a", sh(stop.format("a", "touch /tmp/a;")))
    machine.unit("b", sh(stop.format("b", "touch /tmp/b;")) + "After = ['a']\n")
    wait = "while ! [ -e /tmp/a -a -e /tmp/b ]; do sleep 0.01; done;"
    machine.unit("c", sh(stop.format("c", wait + "echo ready;")) + "Requires = ['b']\n")
    machine.boot().wait_line("c: ready")
    os.kill(machine.pid1, signal.SIGTERM)
    report = machine.wait()
    assert (report["unit"], report["exit_status"]) == (None, None) and "SIGTERM" in report["reason"]
    order = (machine.out / "order").read_text().split()
    assert order[3:] == ["stop-c", "stop-b", "stop-a"]


def test_sigterm_reports_how_the_app_went(machine):
    machine.unit("app", sh("trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done") + OVER)
    machine.boot().wait_line("app: ready")
    os.kill(machine.pid1, signal.SIGTERM)
    report = machine.wait()
    assert (report["unit"], report["exit_status"]) == ("app", 5)


def test_crash_loop_ends_at_the_start_limit(machine):
    machine.unit(
        "app",
        sh("echo x >>/out/starts; exit 9") + "Restart = 'always'\nRestartSec = 0\nStartLimitBurst = 4\n" + OVER,
    )
    report = machine.boot().wait()
    assert report["exit_status"] == 9 and "4 starts" in report["reason"]
    assert (machine.out / "starts").read_text().split() == ["x"] * 4


def test_failed_requirement_stops_the_enclave_with_its_name(machine):
    machine.unit("db", "ExecStart = '/no/db'\n")
    machine.unit("app", sh("touch /out/ran") + "Requires = ['db']\n" + OVER)
    report = machine.boot().wait()
    assert report["unit"] == "app" and "requires db" in report["reason"]
    assert not (machine.out / "ran").exists()


def test_oneshot_is_awaited(machine):
    machine.unit("setup", sh("sleep 0.1; echo done >/out/setup") + "Type = 'oneshot'\n")
    machine.unit("app", sh("cat /out/setup") + "Requires = ['setup']\n" + OVER)
    assert machine.boot().wait()["exit_status"] == 0
    assert machine.log("app") == ["done"]


def test_root_directory_user_and_bind_paths(machine):
    if os.geteuid() != 0:
        pytest.skip("needs root: a single mapped id cannot become another")
    machine.file("/rootfs/etc/passwd", "web:x:1234:2345::/:/bin/sh\n")
    machine.file("/data/seed", "")
    machine.unit(
        "app",
        sh(
            "id -u; id -g; grep Groups /proc/self/status; ls /data; pwd; ls -d /proc/1 /dev/null; ls /service; "
            "echo own >/proc/self/fd/1"
        )
        + "RootDirectory = '/rootfs'\nUser = 'web'\nWorkingDirectory = '/etc'\n"
        + "BindPaths = ['/data', '/usr', '/usr/bin:/bin', '/usr/lib:/lib', '/usr/lib64:/lib64', '-/none:/none']\n"
        + OVER,
    )
    machine.boot().wait()
    lines = machine.log("app")
    assert [line.strip() for line in lines if "ls:" not in line] == [
        "1234", "2345", "Groups:", "seed", "/etc", "/dev/null", "/proc/1", "own",
    ]  # fmt: skip
    assert any("/service" in line for line in lines if "ls:" in line)


def test_bind_path_does_not_follow_a_link_of_the_app(machine):
    machine.file("/data/seed", "")
    (machine.image / "rootfs").mkdir()
    (machine.image / "rootfs" / "data").symlink_to("/out")
    machine.unit("app", sh("exit 0") + "RootDirectory = '/rootfs'\nBindPaths = ['/data']\n" + OVER)
    report = machine.boot().wait()
    assert "cannot bind /data" in report["reason"] and report["exit_status"] == 126
    assert not (machine.out / "seed").exists()


def test_escaped_processes_die_with_the_enclave_and_do_not_hold_it(machine):
    machine.unit("app", sh("setsid sleep 1000 & exit 0") + OVER)
    assert machine.boot().wait()["exit_status"] == 0


def test_a_reader_that_never_reads_hangs_nothing(machine):
    # the console's reader is stopped: 4 MB of output must still go to the log, and the unit must end
    reader, writer = os.pipe()
    machine.file("/etc/init.toml", "max_log_size = 16777216\n")
    machine.unit("app", sh("yes 0123456789abcdef | head -n 250000; exit 4") + OVER)
    try:
        machine.boot(console=writer)
        assert machine.wait()["exit_status"] == 4
        assert len(machine.log("app")) == 250000
    finally:
        os.close(reader)
        os.close(writer)


def test_logs_are_rotated_and_bounded(machine):
    machine.file("/etc/init.toml", "max_log_size = 65536\nmax_log_files = 3\n")
    machine.unit("app", sh("yes 0123456789abcdef | head -n 100000; echo last") + OVER)
    machine.boot().wait()
    files = sorted(path.name for path in machine.out.glob("app.log*"))
    assert files == ["app.log", "app.log.1", "app.log.2"]
    # one read of a pipe goes into one file: a file may be longer by what one read becomes with its times
    assert sum((machine.out / name).stat().st_size for name in files) < 3 * (65536 + 3 * 65536)
    assert machine.log("app")[-1] == "last"


# boots that must not go on ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("ExecStart = 'true'\n\nColour = 'red'\n", ["/service/app.service:3", "Colour", "unknown key"]),
        ("ExecStart = 'true'\nRequires = ['ghost']\n", ["app", "ghost", "does not exist"]),
        ("ExecStart = 'true'\nAfter = ['app']\n", ["app after app"]),
    ],
)
def test_wrong_units_stop_the_boot_before_the_heartbeat(machine, unit, words):
    machine.unit("app", unit)
    machine.boot()
    report = machine.wait()
    assert all(word in report["reason"] for word in words), report
    assert report["unit"] is None and machine.heartbeat.received == []


def test_wrong_heartbeat_answer_stops_the_boot(machine):
    machine.listen(lambda data: b"\x00")
    machine.unit("app", sh("touch /out/ran") + OVER)
    report = machine.boot().wait()
    assert "heartbeat" in report["reason"] and "0x00" in report["reason"]
    assert not (machine.out / "ran").exists()


def test_unanswered_heartbeat_stops_the_boot(machine):
    machine.file("/etc/init.toml", "[vsock]\ntimeout_s = 0.1\n")
    release = []
    machine.listen(lambda data: release.append(data) or b"")
    machine.unit("app", sh("touch /out/ran") + OVER)
    report = machine.boot().wait()
    assert "heartbeat" in report["reason"]
    assert not (machine.out / "ran").exists()


def test_upstream_yaml_alone_is_refused(machine):
    machine.file("/etc/init.yaml", "service_dir: /service\n")
    machine.unit("app", sh("touch /out/ran") + OVER)
    assert "/etc/init.yaml" in machine.boot().wait()["reason"]
    assert not Path(machine.out / "ran").exists()
