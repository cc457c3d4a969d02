# SPDX-License-Identifier: Apache-2.0
"""PID 1 as init of a kernel of its own: initctl both ways, the kernel's log, the values of a deployment, how it ends,
and what it does on a kernel that lacks something. Takes minutes."""

import json

import pytest
from enclavekit_core.runtime_config import expected_pcr16

from .conftest import need

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("enclave")]

# ends with 7 when somebody has asked for it
MANIFEST = """
name: {name}
app: {{rootfs: notes.rootfs}}
entrypoint: [/bin/sh, -c, 'echo "level $LEVEL"; while ! [ -e /data/go ]; do sleep 1; done; echo bye; exit 7']
services: [pipeline]
clients: [{{certificate: keys/alice.crt, allow: all, control: [all]}}]
logs: {{to_parent: all}}
runtime_config: {{LEVEL: {{type: string, default: info}}}}
resources: {{memory_mib: 1024, cpus: 2}}
"""
# Landlock is left out of the security modules, and the memory controller is off, as on a small kernel
POOR = "reboot=k panic=30 pci=off console=ttyS0 random.trust_cpu=on lsm=capability cgroup_disable=memory"
VALUES = {"LEVEL": "debug"}


class Guest:
    """A running virtual machine, started by rbuilds with VALUES, and the two ways to its PID 1."""

    def __init__(self, shell, name, *flags):
        need("qemu-system-x86_64")
        self.shell, self.image = shell, shell.directory / f"{name}.eif"
        (shell.directory / f"{name}.yaml").write_text(MANIFEST.format(name=name))
        (shell.directory / "values.json").write_text(json.dumps(VALUES))
        shell.run("rbuilds", "build", "--config", f"{name}.yaml", "--output", self.image, *flags)
        run = ("rbuilds", "run", self.image, "--backend", "nitro-emu", "--machine", "qemu", "--json")
        self.running = shell.json(*run, "--runtime-config", "values.json")
        self.name, self.id = self.running["name"], self.running["id"]
        root = shell.output("nitro-emu", "dev-root").strip()
        self.trust = ("--eif", self.image, "--identity", "keys/alice", "--insecure-dev-root", root)

    def run(self, *argv, stdin=None, expect=0):
        """Run a command in the framework's root."""
        words = ("pipeline", "exec", "--system", "--connect-timeout", 120, *self.trust)
        flags = ("-i",) if stdin is not None else ()
        return self.shell.output(*words, *flags, self.running["cid"], "--", *argv, stdin=stdin, expect=expect)

    def initctl(self, *argv, expect=0):
        """Ask PID 1 from outside, by its gateway."""
        return self.shell.output("initctl", "--enclave", self.name, *self.trust, *argv, expect=expect)

    def unit(self, name, text, expect=0):
        """Add a unit and start it; return what its start says."""
        self.run("sh", "-c", f"cat >/service/{name}.service", stdin=text.encode())
        self.initctl("reload")
        done = self.shell.run("initctl", "--enclave", self.name, *self.trust, "start", name, expect=expect)
        return (done.stdout + done.stderr).decode()

    def end(self):
        self.shell.run("nitro-emu", "terminate-enclave", "--enclave-id", self.id, expect=None)


@pytest.fixture(scope="module")
def guest(shell, notes):
    made = Guest(shell, "vm-init")
    yield made
    made.end()


def test_initctl_inside_and_outside_say_the_same(guest):
    inside = json.loads(guest.run("initctl", "--json", "status"))["units"]
    outside = json.loads(guest.initctl("--json", "status"))["units"]
    assert {unit["name"] for unit in inside} == {unit["name"] for unit in outside}
    assert {"app", "pipeline", "initctl-gateway", "runtime-config"} <= {unit["name"] for unit in inside}
    states = {unit["name"]: unit["state"] for unit in outside}
    assert (states["app"], states["runtime-config"]) == ("running", "done")
    for ask in (guest.initctl, lambda *words: guest.run("initctl", *words)):
        assert ": level debug" in ask("logs", "app")
        assert any(line.startswith("app ") for line in ask("status").splitlines())
        times = json.loads(ask("--json", "analyze"))
        assert times["boot_ms"] > 0 and times["own_ms"] > 0
        steps = {step["what"] for step in times["steps"]}
        assert {"seed the kernel's random generator", "check the clock", "set up cgroups in /sys/fs/cgroup"} <= steps


def test_kernel_s_log_is_among_the_others(guest):
    entries = [json.loads(line) for line in guest.initctl("--json", "logs", "kernel", "-n", "100000").splitlines()]
    assert entries and {(entry["unit"], entry["stream"]) for entry in entries} == {("kernel", "kernel")}
    assert any("Run /init as init process" in entry["text"] for entry in entries)
    # what the kernel says now comes as well; what others write there is nobody's word
    guest.run("sh", "-c", "echo forged by a test >/dev/kmsg; echo h >/proc/sysrq-trigger")
    said = guest.run("initctl", "logs", "kernel", "-n", "100000")
    assert "sysrq: HELP" in said and "forged" not in said


def test_boot_names_nothing_that_this_kernel_has(guest):
    said = guest.initctl("logs", "enclave-init", "-n", "100000")
    assert "booted in" in said and "this kernel has no" not in said


def test_values_are_in_pcr16_which_is_locked(shell, guest):
    expected = expected_pcr16(VALUES).hex()
    assert guest.running["pcr16"] == expected
    pcr0 = shell.json("eif", "describe", guest.image)["Measurements"]["PCR0"]

    def enter(pcr16, expect):
        pins = ("--pcr", f"0={pcr0}", "--pcr", f"16={pcr16}", *guest.trust[2:])
        argv = ("pipeline", "exec", "--connect-timeout", 120, *pins, guest.running["cid"], "--", "sh", "-c", ":")
        return shell.run(*argv, expect=expect)

    enter(expected, 0)
    assert b"PCR16" in enter("11" * 48, 255).stderr
    extend = (
        "from enclavekit_nsm.client import NsmClient\n"
        "with NsmClient.open() as nsm:\n"
        "    try: nsm.extend_pcr(16, bytes(48))\n"
        "    except Exception as exc: print(type(exc).__name__)\n"
    )
    assert guest.run("python3", "-I", "-c", extend).strip() == "DeviceError"


def test_limits_of_units_hold_on_a_kernel_of_its_own(guest):
    hog = "exec tail /dev/zero"
    text = f"ExecStart = ['sh', '-c', '{hog}']\nType = 'oneshot'\nMemoryMax = '24M'\nServiceEnable = false\n"
    assert "out of memory" in guest.unit("hog", text, expect=1)
    # this root may raise limits, and give real time
    spin = "import os\nos.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))\nos.nice(-3)\nwhile True: pass"
    words = json.dumps(["python3", "-IS", "-c", spin])
    given = "User = 1234\nLimitRTPRIO = 1\nLimitNICE = 30\nLimitRTTIME = '200000:infinity'\nServiceEnable = false\n"
    said = guest.unit("spin", f"ExecStart = {words}\nType = 'oneshot'\n{given}", expect=1)
    assert "killed by signal 24" in said  # SIGXCPU


def test_app_s_end_is_told_with_its_status_and_last_words(shell, guest):
    """The last one: the machine ends here."""
    guest.run("sh", "-c", "touch /data/go")
    ended = shell.run("nitro-emu", "wait", "--enclave-id", guest.id, expect=7)
    end = json.loads(ended.stdout)
    assert (end["unit"], end["exit_status"], end["cause"], end["oom"]) == ("app", 7, "exited", False)
    assert end["uptime_s"] > 0
    assert {"unit": "app", "stream": "stdout", "text": "bye"} in end["last_lines"]


def test_rbuilds_run_exits_as_the_app_did(shell, notes):
    need("qemu-system-x86_64")
    (shell.directory / "short.yaml").write_text(
        "name: short\napp: {rootfs: notes.rootfs}\nentrypoint: [/bin/sh, -c, 'echo short; exit 9']\nservices: []\n"
        "resources: {memory_mib: 1024, cpus: 1}\n"
    )
    shell.run("rbuilds", "build", "--config", "short.yaml", "--output", "short.eif")
    argv = ("rbuilds", "run", "short.eif", "--backend", "nitro-emu", "--machine", "qemu", "--attach")
    done = shell.run(*argv, expect=9)
    assert b"app: short" in done.stdout and b"app exited with 9" in done.stderr


def test_what_a_kernel_lacks_is_named_at_boot_and_not_passed_over(shell, notes):
    guest = Guest(shell, "vm-poor", "--cmdline", POOR)
    try:
        said = guest.initctl("logs", "enclave-init", "-n", "100000")
        assert "this kernel has no Landlock (Linux 5.13): units with LandlockRead or LandlockWrite do not start" in said
        once = "ExecStart = ['sh', '-c', 'echo runs']\nType = 'oneshot'\nServiceEnable = false\n"
        for key, value in (("LandlockRead", "['/usr']"), ("MemoryMax", "'64M'")):
            name = key.lower()
            asked = f"{once}{key} = {value}\n"
            assert f"{key} cannot be kept" in guest.unit(name, asked, expect=1)
            guest.unit(f"{name}-lenient", f"{asked}InsecureMayLack = ['{key}']\n")
            assert ": runs" in guest.initctl("logs", f"{name}-lenient")
            assert f"{name}-lenient runs without {key} (insecure" in guest.initctl("logs", "enclave-init")
        assert ": runs" not in guest.initctl("logs", "landlockread")
        # what it has, it keeps
        guest.unit("bounded", f"{once}TasksMax = 20\nSeccompProfile = 'default'\n")
    finally:
        guest.end()
