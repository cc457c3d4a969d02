# SPDX-License-Identifier: Apache-2.0
"""What each key of a unit file does to a real process in a real enclave; many units share one boot."""

import os
import platform
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
from enclavekit_core import landlock, seccomp

OVER = 'OnExit = "poweroff"\n'
ONCE = 'Type = "oneshot"\n'
PYTHON = os.path.realpath(sys.executable)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces made without root have no cgroups")


def sh(script):
    return f"ExecStart = ['sh', '-c', '''{script}''']\n"


def py(script):
    return f"ExecStart = ['{PYTHON}', '-IS', '-c', '''{script}''']\n"


class Booted:
    """Units that have run in one enclave: what they printed, and what the console says of them."""

    def __init__(self, machine, units, last=""):
        for name, text in units.items():
            machine.unit(name, text)
        machine.unit("zz", sh("exit 0") + ONCE + OVER + f"After = {sorted(units)}\n" + last)
        self.report = machine.boot().wait()
        self.machine, self.console = machine, "\n".join(machine.console)

    def lines(self, name):
        try:
            return self.machine.log(name)
        except FileNotFoundError:
            return []

    def status(self, name):
        return dict(line.split(":", 1) for line in self.lines(name) if ":" in line)

    def ended(self, name, words):
        return re.search(rf"^enclave-init: {name} {words}", self.console, re.MULTILINE)


@pytest.fixture(scope="module")
def booted(make_machine):
    show = "cat /proc/self/status"
    return Booted(
        make_machine(),
        {
            "limits": sh("ulimit -n; ulimit -Hn; ulimit -c; ulimit -t")
            + "LimitNOFILE = '100:200'\nLimitCORE = 0\nLimitCPU = 'infinity'\n"
            + ONCE,
            "allowance": sh("cat /proc/self/limits")
            + "LimitAS = '1G'\nLimitDATA = '900M'\nLimitFSIZE = '7M'\nLimitMEMLOCK = 8192\nLimitMSGQUEUE = 4096\n"
            + "LimitNPROC = 77\nLimitSIGPENDING = 55\nLimitSTACK = '4M'\nLimitRTTIME = 999999\nLimitNICE = 0\n"
            + "LimitRTPRIO = 0\n"
            + ONCE,
            "file-size": sh("head -c 20000 /dev/zero >/tmp/big") + "LimitFSIZE = 8192\n" + ONCE,
            "privileges": sh(show) + "NoNewPrivileges = true\n" + ONCE,
            "score": sh("cat /proc/self/oom_score_adj") + "OOMScoreAdjust = 321\n" + ONCE,
            "tmp": sh("ls -A /tmp | wc -l; touch /tmp/mine; stat -c %a /tmp")
            + "PrivateTmp = true\nAfter = ['tmp-maker']\n" + ONCE,
            "tmp-maker": sh("touch /tmp/shared") + ONCE,
            "tmp-looker": sh("ls /tmp") + "After = ['tmp']\n" + ONCE,
            "network": py(
                "import os, socket\n"
                "print(sorted(os.listdir('/proc/self/net')) != [], open('/proc/self/net/dev').read().count(':'))\n"
                "print(os.readlink('/proc/self/ns/net') != os.readlink('/proc/1/ns/net'))\n"
                "s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()).close()\n"
                "print('loopback')\n"
            )
            + "PrivateNetwork = true\n"
            + ONCE,
            "calls": py(
                "import os, socket, ctypes\n"
                "def tried(what):\n"
                "    try: what()\n"
                "    except OSError as exc: return exc.errno\n"
                "libc = ctypes.CDLL(None, use_errno=True)\n"
                "print(libc.unshare(0x10000000), ctypes.get_errno())\n"
                "print(tried(lambda: socket.socket(socket.AF_INET)), tried(lambda: socket.socket(socket.AF_UNIX)))\n"
            )
            + "SeccompProfile = 'no-network'\n"
            + ONCE,
            "calls-default": py("import socket; socket.socket(socket.AF_INET); print('a socket')")
            + "SeccompProfile = 'default'\n"
            + ONCE,
            "fence": sh("cat /etc/open; cat /etc/shut; echo x >/out/written; echo x >/etc/denied; ls /out >/dev/null")
            + "LandlockRead = ['/usr', '/bin', '/lib', '/lib64', '/proc', '/etc/open']\n"
            + "LandlockWrite = ['/out', '/dev/null']\n"
            + ONCE,
            "pre": sh("cat /tmp/pre-ran") + "ExecStartPre = [\"sh -c 'echo one >>/tmp/pre-ran'\", '-false', "
            "\"sh -c 'echo two >>/tmp/pre-ran'\"]\n" + ONCE,
            "post": sh("echo main; exec sleep 1000") + "ExecStartPost = \"sh -c 'echo after the start'\"\n"
            "ExecStop = [\"sh -c 'echo asked to stop'\"]\n",
            "pre-fails": sh("echo never") + "ExecStartPre = 'false'\n",
            "slow": sh("exec sleep 1000") + "ExecStartPre = 'sleep 1000'\nTimeoutStartSec = 0.2\n",
            "notify": py(
                "import os, socket, time\n"
                "s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect(os.environ['NOTIFY_SOCKET'])\n"
                "open('/tmp/notified', 'x').close(); s.send(b'STATUS=fine\\nREADY=1'); time.sleep(1000)\n"
            )
            + "Type = 'notify'\n",
            "notified": sh("cat /tmp/notified && echo was ready") + "Requires = ['notify']\n" + ONCE,
            "notify-mute": sh("exec sleep 1000") + "Type = 'notify'\nTimeoutStartSec = 0.3\n",
            "notify-other": py(
                "import os, socket, time\n"
                "for _ in range(3000):\n"
                "    try:\n"
                "        s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); s.connect('/run/notify.notify-mute')\n"
                "        s.send(b'READY=1'); print('sent'); break\n"
                "    except OSError: time.sleep(0.01)\n"
            )
            + ONCE,
            "watchdog": sh("echo $WATCHDOG_USEC; exec sleep 1000") + "WatchdogSec = 0.2\n",
            "sick": sh("exec sleep 1000")
            + "HealthCheck = \"sh -c 'echo checked; exit 1'\"\nHealthIntervalSec = 0.05\nHealthRetries = 2\n",
            "hanging-check": sh("exec sleep 1000")
            + "HealthCheck = 'sleep 1000'\nHealthIntervalSec = 0.05\nHealthTimeoutSec = 0.05\nHealthRetries = 1\n",
            "success": sh("exit 42") + "SuccessExitStatus = [42, 'SIGUSR1']\nRestart = 'on-failure'\n",
            "success-signal": sh("kill -USR1 $$") + "SuccessExitStatus = [42, 'SIGUSR1']\nRestart = 'on-failure'\n",
            "bound": sh("exec sleep 1000") + "BindsTo = ['briefly']\n",
            "briefly": sh("sleep 0.2"),
            "backoff": sh("exit 1")
            + "Restart = 'on-failure'\nRestartSec = 0.01\nRestartMaxDelaySec = 0.03\nStartLimitBurst = 4\n",
            "insecure": sh("echo runs bare") + "Wants = ['nobody']\n" + ONCE,
            "late": sh("exit 0") + "After = ['watchdog', 'sick', 'hanging-check', 'bound']\n"
            "ExecStartPre = \"sh -c 'while ! [ -e /tmp/all-done ]; do sleep 0.02; done'\"\n" + ONCE,
            "waiter": py(
                "import time\n"
                "wanted = ('watchdog failed: it has not', 'sick failed: its health', 'hanging-check failed: its', "
                "'bound stopped', 'backoff exited with 1; it is not', 'slow failed: it was not up', "
                "'notify-mute failed: it was')\n"
                "while not all(word in open('/log/enclave-init.log').read() for word in wanted): time.sleep(0.02)\n"
                "open('/tmp/all-done', 'x').close()\n"
            )
            + ONCE,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def make_machine(_namespaces, tmp_path_factory):
    from .conftest import Machine

    made = []

    def make():
        machine = Machine(tmp_path_factory.mktemp("m"))
        machine.file("/etc/open", "open\n")
        machine.file("/etc/shut", "shut\n")
        machine.file("/etc/init.toml", "hostname = 'effects'\n")
        made.append(machine)
        return machine

    yield make
    for machine in made:
        machine.close()


def test_limits(booted):
    assert booted.lines("limits") == ["100", "200", "0", "unlimited"]
    found = {line[:26].strip(): line[26:].split()[:2] for line in booted.lines("allowance")}
    expected = {
        "Max address space": 1 << 30, "Max data size": 900 << 20, "Max file size": 7 << 20,
        "Max locked memory": 8192, "Max msgqueue size": 4096, "Max processes": 77, "Max pending signals": 55,
        "Max stack size": 4 << 20, "Max realtime timeout": 999999, "Max nice priority": 0, "Max realtime priority": 0,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == {name: [str(value)] * 2 for name, value in expected.items()}


def test_file_size_limit_bites(booted):
    assert booted.ended("file-size", "(killed by signal 25|exited with [1-9])")


def test_no_new_privileges(booted):
    assert booted.status("privileges")["NoNewPrivs"].strip() == "1"


def test_oom_score(booted):
    assert booted.lines("score") == ["321"]


def test_private_tmp_is_empty_and_stays_private(booted):
    assert booted.lines("tmp") == ["0", "1777"]
    assert booted.lines("tmp-looker").count("shared") == 1 and "mine" not in booted.lines("tmp-looker")


def test_private_network_has_loopback_only(booted):
    assert booted.lines("network") == ["True 1", "True", "loopback"]


@pytest.mark.skipif(platform.machine() not in seccomp.ARCHITECTURES, reason="no profile for this architecture")
def test_seccomp_profiles_deny(booted):
    assert booted.lines("calls") == ["-1 1", "97 None"]
    assert booted.lines("calls-default") == ["a socket"]


@pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")
def test_landlock_denies_what_is_not_listed(booted):
    text = "\n".join(booted.lines("fence"))
    assert "open" in booted.lines("fence") and "shut" not in booted.lines("fence")
    assert "/etc/shut" in text and "/etc/denied" in text and "/out" not in text
    assert (booted.machine.out / "written").exists()


def test_start_commands_run_in_order_and_may_fail_if_they_say_so(booted):
    assert booted.lines("pre") == ["one", "two"]
    assert booted.lines("pre-fails") == []
    assert booted.ended("pre-fails", "failed: ExecStartPre")


def test_commands_after_the_start_and_before_the_stop(booted):
    assert sorted(booted.lines("post")) == ["after the start", "asked to stop", "main"]


def test_start_that_takes_too_long_fails(booted):
    assert booted.ended("slow", "failed: it was not up in time")


def test_notify_socket(booted):
    assert booted.lines("notified") == ["was ready"]


def test_others_cannot_notify_in_a_unit_s_name(booted):
    assert booted.lines("notify-other") == ["sent"]
    assert "notify-mute failed: it was not up in time" in booted.console


def test_watchdog(booted):
    assert booted.lines("watchdog") == ["200000"]
    assert booted.ended("watchdog", ".*has not fed its watchdog")


def test_health_checks(booted):
    assert booted.lines("sick")[:2] == ["checked", "checked"]
    assert booted.ended("sick", "failed: its health check has failed 2 times")
    assert booted.ended("hanging-check", "failed: its health check has failed 1 times")


def test_success_exit_status(booted):
    assert booted.ended("success", "exited with 42$") and booted.ended("success-signal", "killed by signal 10$")
    assert "success exited with 42; it starts again" not in booted.console


def test_bound_unit_stops_with_the_other(booted):
    assert booted.ended("briefly", "exited with 0") and booted.ended("bound", "stopped")


def test_back_off_grows_up_to_its_limit(booted):
    assert re.findall(r"backoff exited with 1; it starts again in ([0-9.]+) s", booted.console) == [
        "0.01",
        "0.02",
        "0.03",
    ]


@needs_root
def test_cgroups_bound_what_a_unit_uses(make_machine):
    if not shutil.which("unshare") or not os.path.exists("/proc/cgroups"):
        pytest.skip("this kernel has no cgroups")
    hog = "x = []\nwhile True: x.append(bytearray(1 << 20))\n"
    machine = make_machine()
    booted = Booted(
        machine,
        {
            "hog": py(hog) + "MemoryMax = '32M'\n" + ONCE,
            "crowd": py(
                "import os\n"
                "made = 0\n"
                "try:\n"
                "    while True:\n"
                "        if os.fork() == 0: os.read(os.pipe()[0], 1)\n"
                "        made += 1\n"
                "except OSError as exc: print(made, exc.errno)\n"
            )
            + "TasksMax = 10\n"
            + ONCE,
            "slow": py(
                "import time\n"
                "wall, used = time.monotonic(), time.process_time()\n"
                "while time.process_time() - used < 0.3: pass\n"
                "print((time.process_time() - used) / (time.monotonic() - wall))\n"
            )
            + "CPUQuota = '20%'\n"
            + ONCE,
            "escapes": sh("setsid sh -c 'echo $$ >/tmp/escaped; exec sleep 1000' & "
                          "while ! [ -s /tmp/escaped ]; do sleep 0.01; done")
            + "TasksMax = 100\n"
            + ONCE,
            # a process that was killed is there until PID 1 has reaped it; one that was not is there for ever
            "hunter": sh("while kill -0 $(cat /tmp/escaped); do sleep 0.01; done; echo gone")
            + "After = ['escapes']\n"
            + ONCE,
            "leaver": sh("sleep 1000 & echo $! >/tmp/left") + "KillMode = 'process'\n" + ONCE,
            "finder": sh("kill -0 $(cat /tmp/left) && echo lives; readlink /proc/self/ns/pid")
            + "After = ['leaver']\n"
            + ONCE,
            "capable": sh("cat /proc/self/status; chroot / true; chown 5 /tmp/escaped && echo chowned")
            + "CapabilityBoundingSet = ['CAP_CHOWN', 'KILL']\nAfter = ['escapes']\n"
            + ONCE,
        },
    )  # fmt: skip
    assert booted.ended("hog", "killed by signal 9, out of memory"), booted.console
    # the hierarchies are this machine's: nothing of the enclave is left in them
    [namespace] = [line.strip("pid:[]") for line in booted.lines("finder") if line.startswith("pid:[")]
    with open("/proc/self/mountinfo") as source:
        points = [line.split()[4] for line in source if " - cgroup" in line]
    assert points and not [path for point in points for path in Path(point).glob(f"**/enclave-{namespace}")]
    assert booted.lines("crowd") == ["9 11"]
    assert float(booted.lines("slow")[0]) < 0.6
    assert "gone" in booted.lines("hunter") and "lives" in booted.lines("finder")
    assert int(booted.status("capable")["CapEff"], 16) == 1 << 0 | 1 << 5
    assert "chowned" in booted.lines("capable") and any("chroot" in line for line in booted.lines("capable"))


def test_heartbeat_waits_for_its_units(make_machine):
    machine = make_machine()
    came_after = []

    def answer(data):
        came_after.append((machine.out / "up").exists())
        return data

    machine.listen(answer)
    machine.unit("ready", sh("sleep 0.2; touch /out/up") + ONCE + "HeartbeatWaits = true\n")
    machine.unit("app", sh("exec sleep 1000"))
    machine.boot()
    assert machine.heartbeat.wait() == b"\xb7" and came_after == [True]
    os.kill(machine.pid1, signal.SIGTERM)
    assert "SIGTERM" in machine.wait()["reason"]


def test_unit_that_the_heartbeat_waits_for_and_that_fails_ends_the_boot(make_machine):
    machine = make_machine()
    machine.unit("ready", sh("exit 3") + ONCE + "HeartbeatWaits = true\n")
    machine.unit("app", sh("exec sleep 1000") + OVER)
    report = machine.boot().wait()
    assert "the boot has failed" in report["reason"] and "ready" in report["reason"]
    assert machine.heartbeat.received == []


def test_keys_that_answer_to_requests(make_machine):
    """ExecReload, KillMode, Wants, Conflicts and ServiceEnable, asked for through initctl."""
    machine = make_machine()
    child = 'sh -c "trap \\"echo child got TERM\\" TERM; {ready} {loop}"'
    parent = 'trap "echo main got TERM; exit 0" TERM; ' + child + " & {loop}"
    loop = "while :; do sleep 0.01; done"
    kill_modes = {"control-group": "cg", "mixed": "mx"}
    for mode, name in kill_modes.items():
        script = parent.format(ready=f"touch /tmp/{name};", loop=loop)
        machine.unit(name, sh(script) + f"KillMode = '{mode}'\nTimeoutStopSec = 5\n")
    machine.unit("reloads", sh("exec sleep 1000") + "ExecReload = \"sh -c 'echo reloaded'\"\n")
    machine.unit("fails", sh("exec sleep 1000") + "ExecReload = 'false'\n")
    machine.unit("wanted", sh("exec sleep 1000"))
    machine.unit("wanting", sh("exec sleep 1000") + "Wants = ['wanted']\n")
    machine.unit("rival", sh("exec sleep 1000") + "Conflicts = ['wanted']\nServiceEnable = false\n")
    machine.boot()
    machine.wait_for(lambda: all(os.path.exists(f"/proc/{machine.pid1}/root/tmp/{n}") for n in kill_modes.values()))

    def state(name):
        return machine.initctl_json("status", name)["status"]["state"]

    before = machine.initctl_json("status", "reloads")["status"]["pid"]
    machine.initctl("reload", "reloads")
    machine.wait_for(lambda: "reloaded" in machine.log("reloads"))
    assert machine.initctl_json("status", "reloads")["status"]["pid"] == before
    machine.initctl("reload", "fails")
    machine.wait_for(lambda: any("ExecReload exited with 1" in line for line in machine.console))
    assert state("fails") == "running"

    for name in kill_modes.values():
        machine.initctl("stop", name)
    machine.wait_for(lambda: "main got TERM" in machine.log("cg") and "main got TERM" in machine.log("mx"))
    assert "child got TERM" not in machine.log("mx")

    machine.initctl("stop", "wanted")
    machine.initctl("stop", "wanting")
    machine.initctl("start", "wanting")
    machine.wait_for(lambda: state("wanted") == "running")
    machine.initctl("start", "rival")
    assert (state("rival"), state("wanted"), state("wanting")) == ("running", "stopped", "running")
    machine.initctl("start", "wanted")
    assert (state("rival"), state("wanted")) == ("stopped", "running")

    services = f"/proc/{machine.pid1}/root/service"
    machine.initctl("disable", "wanted")
    assert sorted(name for name in os.listdir(services) if "wanted" in name) == ["wanted.service.disabled"]
    machine.initctl("enable", "rival")
    with open(f"{services}/rival.service") as source:
        assert "ServiceEnable = true" in source.read()


def test_sighup_reads_the_unit_files_and_keeps_what_runs(make_machine):
    machine = make_machine()
    machine.unit("old", sh("echo old runs; exec sleep 1000"))
    machine.boot().wait_line("old: old runs")
    service = f"/proc/{machine.pid1}/root/service/"
    for name, text in (("bad", "Nope = 1"), ("new", sh("echo new runs; exec sleep 1000"))):
        with open(f"{service}{name}.service", "w") as out:
            out.write(text)
        os.kill(machine.pid1, signal.SIGHUP)
        if name == "bad":
            machine.wait_for(lambda: any("bad.service:1" in line for line in machine.console))
            os.unlink(f"{service}bad.service")
    machine.wait_line("new: new runs")
    assert machine.console.count("old: old runs") == 1
