# SPDX-License-Identifier: Apache-2.0
"""PID 1 of a PID namespace of its own: units of every temper, thousands of random requests and misfortunes, a model.

    chaos_enclave.py DIRECTORY SEED STEPS FLOOD_LINES STORM_FORKS

Prints the step and the difference and ends with 1 where the enclave and the model disagree for longer than PATIENCE_S.
The model says what each unit must come to; besides, nothing may live that belongs to no unit, no descriptor may be
left over, and who ran out of memory must be known to have. The console is a pipe that nobody reads, the log a file
system that is full most of the time; callers of the control socket follow it and do not read, or stop in a word.
"""

import collections
import contextlib
import os
import random
import signal
import socket
import sys
import time

from enclavekit_core.errors import ConfigError, InputError
from enclavekit_core.processes import catches_signal
from enclavekit_enclave_init.boot.kernel_features import find_abilities
from enclavekit_enclave_init.config import InitConfig
from enclavekit_enclave_init.initctl.access import ControlConfig
from enclavekit_enclave_init.initctl.boot_times import BootTimes
from enclavekit_enclave_init.initctl.framing import encode_frame
from enclavekit_enclave_init.interfaces import Interfaces
from enclavekit_enclave_init.logs.console import Console
from enclavekit_enclave_init.logs.hub import LogHub
from enclavekit_enclave_init.logs.journal import Journal
from enclavekit_enclave_init.runtime import syscalls
from enclavekit_enclave_init.runtime.cgroups import Cgroups
from enclavekit_enclave_init.runtime.control import Control
from enclavekit_enclave_init.runtime.event_loop import EventLoop
from enclavekit_enclave_init.supervision.supervisor import Supervisor
from enclavekit_enclave_init.units.files import read_units
from enclavekit_enclave_init.units.ordering import plan_start

PATIENCE_S = 120.0
SLEEP = "exec sleep 100000"
FOREVER = "Restart = 'always'\nRestartSec = 0\nRestartMaxDelaySec = 0\nStartLimitBurst = 0\n"
LOOP = "while :; do sleep 100000 & wait; done"
FOLLOW = encode_frame(b'{"Logs":{"units":[],"lines":50,"follow":true}}')
MAX_STALLED = 6
ACTIONS = (
    "start", "stop", "restart", "kill", "signal", "edit", "enable", "disable", "jump", "stall", "disk", "starve",
)  # fmt: skip


def units(flood_lines, storm_forks, has_memory_groups):
    def sh(script):
        return f"ExecStart = ['sh', '-c', '''{script}''']\n"

    orphans = "(setsid true & setsid true & setsid true &)"
    storm = f'trap "for i in $(echo $(seq {storm_forks // 3})); do {orphans}; done" USR1;'
    flood = f'trap "yes 0123456789abcdef | head -n {flood_lines}" USR1;'
    found = {
        "plain": sh(SLEEP),
        "leaner": sh(SLEEP) + "Requires = ['plain']\n",
        "lean-again": sh(SLEEP) + "Requires = ['leaner']\n",
        "steady": sh(SLEEP) + FOREVER,
        "bound": sh(SLEEP) + "BindsTo = ['steady']\n",
        "stubborn": sh(f"trap \"\" TERM; {LOOP}") + "TimeoutStopSec = 0.05\n" + FOREVER,
        "storm": sh(f"{storm} {LOOP}") + FOREVER,
        "flood": sh(f"{flood} {LOOP}") + FOREVER,
        "polite": sh(SLEEP)
        + "ExecStartPre = 'true'\nExecStartPost = 'true'\nExecStop = ['true', '-false']\n"
        + FOREVER,
        "once": sh("exit 0") + "Type = 'oneshot'\n",
        "watched": sh(SLEEP) + "HealthCheck = 'true'\nHealthIntervalSec = 0.02\n" + FOREVER,
        "spare": sh(SLEEP) + "ServiceEnable = false\nConflicts = ['rival']\n",
        "rival": sh(SLEEP),
        # left alone: not a line of its flood may be missing in the end, whatever happens to the others
        "torrent": sh(f"yes 0123456789abcdef | head -n {flood_lines}; {SLEEP}"),
    }  # fmt: skip
    if has_memory_groups:
        found["greedy"] = sh(f'trap "exec tail /dev/zero" USR1; {LOOP}') + "MemoryMax = '16M'\n" + FOREVER
    return found


REQUIRES = {"leaner": ["plain"], "lean-again": ["leaner"], "bound": ["steady"]}
CONFLICTS = {"spare": "rival", "rival": "spare"}
UP = {"once": "done"}


class Model:
    """What every unit comes to when nothing more is asked."""

    def __init__(self, names):
        self.states = {name: UP.get(name, "running") for name in names} | {"spare": "stopped"}

    def dependents(self, name):
        direct = [unit for unit, required in REQUIRES.items() if name in required]
        return direct + [further for unit in direct for further in self.dependents(unit)]

    def is_up(self, name):
        return self.states[name] in ("running", "done")

    def start(self, name):
        for required in REQUIRES.get(name, []):
            self.start(required)
        if (rival := CONFLICTS.get(name)) and not self.is_up(name) and self.is_up(rival):
            self.stop(rival)
        self.states[name] = UP.get(name, "running")

    def stop(self, name):
        for unit in [*self.dependents(name), name]:
            if self.is_up(unit):
                self.states[unit] = "stopped"

    def kill(self, name, restarts):
        if not restarts:
            for unit in [*self.dependents(name), name]:
                if self.is_up(unit):
                    self.states[unit] = "failed"


class Chaos:
    def __init__(self, directory, seed, steps, flood_lines, storm_forks):
        self.random, self.steps, self.directory = random.Random(seed), steps, directory
        self.flood_lines = flood_lines
        self.group = f"chaos-{os.stat('/proc/self/ns/pid').st_ino}"
        self.cgroups = Cgroups.find(self.group)
        self.texts = units(flood_lines, storm_forks, "memory" in self.cgroups.controllers)
        self.services, logs = os.path.join(directory, "service"), os.path.join(directory, "log")
        for path in (self.services, logs):
            os.mkdir(path)
        syscalls.mount("log", logs, "tmpfs", 0, "size=256k")
        for name in self.texts:
            self.write(name)
        self.reader, writer = os.pipe()
        console = Console(writer)
        self.hub = LogHub(console)
        self.hub.keep_files(logs, 1 << 20, 2)
        found = read_units(self.services)
        supervisor = Supervisor(found, plan_start(found))
        self.loop = EventLoop(
            supervisor,
            base_environment=(),
            hub=self.hub,
            console=console,
            journal=Journal(self.hub),
            may_mount=True,
            cgroups=self.cgroups,
            abilities=find_abilities(self.cgroups.controllers, may_unshare=True),
        )
        self.socket = os.path.join(directory, "s")
        config = InitConfig(service_dir=self.services, log_dir=logs, control=ControlConfig(self.socket))
        journal, times = Journal(self.hub), BootTimes(time.monotonic())
        self.interfaces = Interfaces(self.loop, config, journal, times, with_parent=False, own_kernel=False)
        self.stalled, self.killed, self.starving, self.oom_kills = [], None, None, 0
        self.control, self.model = Control(self.loop, self.services), Model(self.texts)
        self.step, self.baseline = 0, None
        self.history = collections.deque(["start"], maxlen=12)
        self.deadline = time.monotonic() + PATIENCE_S
        self.restarting = {name for name, text in self.texts.items() if "always" in text}

    def write(self, name):
        # to a name that is not read, first: a unit file is never there in part
        path = os.path.join(self.services, name)
        suffix = ".service.disabled" if os.path.exists(path + ".service.disabled") else ".service"
        with open(path + ".new", "w", encoding="utf-8") as out:
            out.write(self.texts[name] + f"Environment = ['X={self.random.random()}']\n")
        os.rename(path + ".new", path + suffix)

    def run(self):
        self.loop.reactor.call_later(0.0, self.turn)
        with self.interfaces:
            outcome = self.loop.run()
        assert outcome.reason == "poweroff was asked for", outcome
        assert self.hub.lines["torrent"] == self.flood_lines, self.hub.lines
        left = [pid for pid in os.listdir("/proc") if pid.isdigit() and pid != "1"]
        os.kill(-1, signal.SIGKILL) if left else None
        assert self.oom_kills or "greedy" not in self.texts or self.steps < 1000

    def turn(self):
        if problem := self.difference():
            if time.monotonic() > self.deadline:
                print(f"step {self.step}, after {', '.join(self.history)}: {problem}", flush=True)
                os._exit(1)
            self.loop.reactor.call_later(0.005, self.turn)
            return
        self.deadline = time.monotonic() + PATIENCE_S
        if self.step >= self.steps:
            if self.hub.lines.get("torrent", 0) < self.flood_lines:
                self.loop.reactor.call_later(0.005, self.turn)
            else:
                self.control.shutdown("poweroff")
            return
        for number in range(self.random.randint(1, 4)):
            self.step += 1
            if self.act(settled=number == 0):
                break
        self.loop.reactor.call_later(0.0, self.turn)

    def act(self, *, settled):
        """Do one thing; return whether its outcome must be awaited before the next. A kill meets settled units only."""
        name = self.random.choice(sorted(self.texts.keys() - {"torrent"}))
        what = self.random.choice(
            [
                "start",
                "stop",
                "restart",
                "kill",
                "signal",
                "edit",
                "enable",
                "disable",
                "jump",
                "stall",
                "disk",
                "starve",
            ]
        )
        self.history.append(f"{what} {name}")
        match what:
            case "start" | "restart":
                getattr(self.control, what)(name)
                self.model.start(name)
            case "stop":
                self.control.stop(name)
                self.model.stop(name)
            case "kill" if settled and (pid := self.loop.pid_of(name)) is not None:
                # from outside, as the kernel would for want of memory
                os.kill(pid, signal.SIGKILL)
                self.killed = name, pid
                self.model.kill(name, name in self.restarting)
                return True
            case "signal" if name in ("storm", "flood") and self.loop.pid_of(name) is not None:
                os.kill(self.loop.pid_of(name), signal.SIGUSR1)
            case "edit":
                self.write(name)
                self.control.reload_units()
            case "enable" | "disable":
                try:
                    getattr(self.control, what)(name)
                except (InputError, ConfigError):
                    return False
                if what == "disable":
                    self.model.stop(name)
            case "stall":
                self.stall()
            case "disk":
                self.hub.clear(name)  # there is room again, for a while
            case "starve" if settled and (pid := self.loop.pid_of("greedy")) is not None:
                if catches_signal(pid, signal.SIGUSR1):
                    os.kill(pid, signal.SIGUSR1)
                    self.starving = pid
                    return True
            case "jump":
                shift, real = self.random.uniform(-1e8, 1e8), self.random.choice([True, False])
                time.time = REAL_TIME if real else lambda: REAL_TIME() + shift
        return False

    def stall(self):
        """Call the control socket and leave it at that: follow the logs and read none, or begin a request."""
        if len(self.stalled) >= MAX_STALLED:
            self.stalled.pop(self.random.randrange(MAX_STALLED)).close()
        caller = socket.socket(socket.AF_UNIX)
        caller.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            caller.connect(self.socket)
            caller.send(FOLLOW if self.random.random() < 0.7 else FOLLOW[: self.random.randrange(len(FOLLOW))])
        self.stalled.append(caller)

    def difference(self):
        if self.killed is not None:
            if self.loop.pid_of(self.killed[0]) == self.killed[1]:
                return f"the end of {self.killed[0]} is not known yet"
            self.killed = None
        if self.starving is not None:
            if self.loop.pid_of("greedy") == self.starving:
                return "greedy has not run out of memory"
            ending = self.loop.supervisor.records["greedy"].ending
            if ending is None or not ending.out_of_memory:
                return f"greedy should have run out of memory, but it {ending}"
            self.starving, self.oom_kills = None, self.oom_kills + 1
        found = {name: state.value for name, state in self.loop.supervisor.states.items()}
        wrong = [f"{name} is {found.get(name)}, not {want}" for name, want in self.model.states.items()
                 if found.get(name) != want]  # fmt: skip
        if wrong:
            return "; ".join(wrong)
        mains = {self.loop.pid_of(name) for name in found} - {None}
        if len(mains) != sum(state == "running" for state in found.values()):
            return f"main processes: {sorted(mains)}"
        strays = []
        for pid in os.listdir("/proc"):
            if pid.isdigit() and pid != "1":
                session = self.session_of(int(pid))
                # a health check has a session of its own
                if session and session not in mains and self.loop.unit_of(int(pid)) is None:
                    strays.append(pid)
        if strays:
            return f"processes that belong to no unit: {strays}"
        descriptors = len(os.listdir("/proc/self/fd")) - 2 * len(mains)
        if self.baseline is None:
            self.baseline = descriptors
        # log files open as they are needed, a health check may be running; both ends of a stalled call are here
        if descriptors > self.baseline + 8 + 2 * len(self.stalled):
            return f"{descriptors} descriptors besides those of the units, first {self.baseline}"
        return ""

    def session_of(self, pid):
        try:
            return os.getsid(pid)
        except OSError:
            return 0


REAL_TIME = time.time

if __name__ == "__main__":
    assert os.getpid() == 1
    syscalls.mount("none", "/", "", 16384 | 1 << 18)
    syscalls.mount("proc", "/proc", "proc", 0)
    Chaos(sys.argv[1], *map(int, sys.argv[2:6])).run()
    print("agreed", flush=True)
    os._exit(0)
