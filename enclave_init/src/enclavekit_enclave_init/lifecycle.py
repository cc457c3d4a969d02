# SPDX-License-Identifier: Apache-2.0
"""An enclave from PID 1's first instruction to its last: boot, supervise, report, power off.

A boot that fails ends the enclave: one last line says why, on the console and to the parent.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Iterable
from dataclasses import replace
from typing import NoReturn

from enclavekit_core.errors import EnclavekitError

from enclavekit_enclave_init.boot import plan as boot_plan
from enclavekit_enclave_init.boot.execute import run_operations
from enclavekit_enclave_init.boot.heartbeat import send_heartbeat
from enclavekit_enclave_init.boot.join import read_file_list
from enclavekit_enclave_init.boot.kernel_features import describe_missing, find_abilities
from enclavekit_enclave_init.boot.nsm_relay import read_nsm_port
from enclavekit_enclave_init.boot.ready import ReadyHeartbeat
from enclavekit_enclave_init.boot.steps import MakeDirectory
from enclavekit_enclave_init.config import APP_CONFIG_PATH, CONFIG_PATH, InitConfig
from enclavekit_enclave_init.initctl.boot_times import BootTimes
from enclavekit_enclave_init.interfaces import Interfaces
from enclavekit_enclave_init.logs.console import Console
from enclavekit_enclave_init.logs.hub import LogHub
from enclavekit_enclave_init.logs.journal import Journal
from enclavekit_enclave_init.report import BOOT, BUG, lines_for_parent, make_report, send_report
from enclavekit_enclave_init.runtime import syscalls
from enclavekit_enclave_init.runtime.cgroups import Cgroups
from enclavekit_enclave_init.runtime.control import Control
from enclavekit_enclave_init.runtime.event_loop import EventLoop
from enclavekit_enclave_init.runtime.mount_table import read_mounted
from enclavekit_enclave_init.supervision.events import Outcome
from enclavekit_enclave_init.supervision.supervisor import Supervisor
from enclavekit_enclave_init.units.files import read_app_config, read_config, read_units
from enclavekit_enclave_init.units.ordering import plan_start
from enclavekit_enclave_init.units.unit import Unit

LAST_WORDS_S = 2.0  # how long the end waits for a slow console and for the parent to take the report
CONSOLE_FD = 2
REAP_POLL_S = 0.005
EXIT_BUG = 70  # EX_SOFTWARE
MAX_INHERITED_FD = 1024


class Enclave:
    """The state of the boot, so that its end knows how far it came."""

    def __init__(self) -> None:
        self.console = Console(CONSOLE_FD)
        self.hub = LogHub(self.console)
        self.journal = Journal(self.hub)
        self.config = InitConfig()
        self.times = BootTimes(time.monotonic())
        self.cgroups = Cgroups({})
        self.owns_machine = False

    def boot_and_run(self) -> Outcome:
        """Boot, then supervise. Raises EnclavekitError for a boot that must not go on."""
        mounted = read_mounted()
        if not mounted:
            run_operations(boot_plan.MOUNT_PROC, self.journal, lambda: None, self.times.add_step)
            mounted = read_mounted()
        self.owns_machine = boot_plan.owns_machine(mounted)
        machine = boot_plan.plan_machine(mounted)
        run_operations(machine, self.journal, lambda: self.console.attach(CONSOLE_FD), self.times.add_step)
        self.config = read_app_config(read_config(CONFIG_PATH, required=False), APP_CONFIG_PATH)
        units = read_units(self.config.service_dir, self.journal)
        supervisor = prepare_supervisor(units, self.journal)
        system = boot_plan.plan_system(
            self.config,
            owns_machine=self.owns_machine,
            has_nsm=os.path.exists("/dev/nsm"),
            nsm_port=read_nsm_port() if self.owns_machine else 0,
            files=read_file_list(),
            needs_cgroups=any(unit.has_cgroup_limits for unit in units),
            heartbeat_waits=heartbeat_waits(units),
        )
        run_operations(system, self.journal, lambda: None, self.times.add_step)
        for line in describe_missing(own_kernel=self.owns_machine):
            self.journal(line)
        self.journal(f"booted in {(time.monotonic() - self.times.began) * 1000:.0f} ms")
        # where the kernel is shared, so are its cgroups
        self.cgroups = Cgroups.find("" if self.owns_machine else f"enclave-{os.stat('/proc/self/ns/pid').st_ino}")
        return supervise(
            supervisor,
            self.config,
            self.console,
            self.journal,
            self.times,
            cgroups=self.cgroups,
            as_pid1=True,
            own_kernel=self.owns_machine,
        )

    def report(self, outcome: Outcome, failed: str = "") -> None:
        """Tell the parent, if it listens; `failed` as in `make_report`."""
        parent = self.config.vsock
        if parent.enabled:
            lines = lines_for_parent(self.hub, self.config.logs)
            uptime_s = time.monotonic() - self.times.began
            report = make_report(outcome, oom=outcome.out_of_memory, uptime_s=uptime_s, lines=lines, failed=failed)
            try:
                send_report(report, parent.cid, parent.report_port, min(parent.timeout_s, LAST_WORDS_S))
            except EnclavekitError as exc:
                self.journal(f"{exc} (the end is not reported)")

    def power_off(self, status: int, kind: str = "poweroff") -> NoReturn:
        """End the machine; if that cannot be, PID 1, which comes to the same."""
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if self.cgroups.outlive_us:
            reap_all(LAST_WORDS_S)  # a zombie keeps its group
            self.cgroups.close()
        self.console.flush_for(LAST_WORDS_S)
        os.sync()
        try:
            # Nitro has no power switch: there RB_POWER_OFF halts the kernel and the enclave stays, while a reboot
            # ends it, as in AWS's init. In a PID namespace either kills its init, and power-off says what is meant.
            syscalls.reboot(syscalls.RB_AUTOBOOT if self.owns_machine or kind == "reboot" else syscalls.RB_POWER_OFF)
        except OSError as exc:
            self.journal(f"cannot power off: {exc.strerror}")
            self.console.flush_for(LAST_WORDS_S)
        os._exit(status)


def prepare_supervisor(units: list[Unit], journal: Journal) -> Supervisor:
    """Order the units. Raises ConfigError for what cannot be ordered."""
    plan = plan_start(units)
    for note in plan.notes:
        journal(note)
    if not plan.order:
        journal("there is no unit to start")
    return Supervisor(units, plan)


def supervise(
    supervisor: Supervisor,
    config: InitConfig,
    console: Console,
    journal: Journal,
    times: BootTimes,
    *,
    cgroups: Cgroups,
    as_pid1: bool,
    own_kernel: bool,
) -> Outcome:
    """Run the units until everything has stopped.

    Args:
        cgroups: where units get groups of their own.
        as_pid1: may mount, and talks to the parent.
        own_kernel: the kernel's log is the enclave's.
    """
    journal.hub.configure(config.logs)
    journal.hub.keep_files(config.log_dir, config.max_log_size, config.max_log_files)
    loop = EventLoop(
        supervisor,
        base_environment=config.environment,
        hub=journal.hub,
        console=console,
        journal=journal,
        may_mount=as_pid1,
        cgroups=cgroups,
        abilities=find_abilities(cgroups.controllers, may_unshare=as_pid1),
    )
    loop.on_hangup = Control(loop, config.service_dir).reload_units
    parent = config.vsock
    with_parent = as_pid1 and parent.enabled
    if with_parent and heartbeat_waits(record.unit for record in supervisor.records.values()):
        ReadyHeartbeat(
            loop,
            send=lambda: send_heartbeat(parent.cid, parent.port, parent.timeout_s),
            fail=lambda why: loop.perform(supervisor.stop_all(f"the boot has failed: {why}", time.monotonic())),
        )
    with Interfaces(loop, config, journal, times, with_parent=with_parent, own_kernel=own_kernel):
        return loop.run()


def heartbeat_waits(units: Iterable[Unit]) -> bool:
    """Say whether a unit decides when the heartbeat is due."""
    return any(unit.heartbeat_waits and unit.enabled for unit in units)


def run_as_pid1() -> NoReturn:
    """Be the enclave's init. Never returns; whatever happens, the enclave ends in an orderly way and says why."""
    own_descriptors()
    enclave, failed = Enclave(), ""
    try:
        outcome = enclave.boot_and_run()
        status = outcome.process_status
    except EnclavekitError as exc:
        enclave.journal(f"the boot has failed: {exc}")
        outcome, status, failed = Outcome(f"the boot has failed: {exc}"), exc.exit_code, BOOT
    except BaseException as exc:
        # a bug of ours, or no memory: PID 1 must not just vanish, the kernel would panic without a word
        enclave.journal("".join(traceback.format_exception(exc)).rstrip())
        outcome, status, failed = Outcome(f"PID 1 has failed: {type(exc).__name__}: {exc}"), EXIT_BUG, BUG
    enclave.report(outcome, failed)
    enclave.journal(f"the enclave ends: {outcome.reason}")
    enclave.power_off(status, outcome.kind)


def run_insecure_not_pid1(
    config_path: str | None, service_dir: str | None, log_dir: str | None, control_socket: str | None = None
) -> int:
    """Run units as an ordinary process: no mounts, no heartbeat, no report, no reboot. Returns the exit code."""
    times = BootTimes(time.monotonic())
    config = InitConfig() if config_path is None else read_config(config_path, required=True)
    console = Console(CONSOLE_FD)
    journal = Journal(LogHub(console))
    own_descriptors()
    units = read_units(service_dir or config.service_dir)
    supervisor = prepare_supervisor(units, journal)
    config = replace(
        config,
        service_dir=service_dir or config.service_dir,
        log_dir=log_dir or config.log_dir,
        # the default is PID 1's, which may be somebody else's here
        control=replace(config.control, socket=os.path.abspath(control_socket) if control_socket else ""),
    )
    run_operations([MakeDirectory(config.log_dir, 0o755)], journal, lambda: None)
    syscalls.become_subreaper()
    outcome = supervise(
        supervisor, config, console, journal, times, cgroups=Cgroups({}), as_pid1=False, own_kernel=False
    )
    journal(f"ends: {outcome.reason}")
    console.flush_for(LAST_WORDS_S)
    return outcome.process_status


def reap_all(timeout_s: float) -> None:
    """Wait until nothing is left of what was killed; not for ever, should the kernel be stuck."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(REAP_POLL_S)
        except ChildProcessError:
            return


def own_descriptors() -> None:
    """Make sure that 0, 1 and 2 exist, and that whatever else was inherited does not reach a unit."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            # a kernel without a console starts init without them; the next open() would take the number
            os.open("/", os.O_RDONLY)
            os.set_inheritable(fd, True)
    for fd in range(3, MAX_INHERITED_FD):
        try:
            os.set_inheritable(fd, False)
        except OSError:
            continue
