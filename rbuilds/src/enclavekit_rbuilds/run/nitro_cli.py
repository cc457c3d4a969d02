# SPDX-License-Identifier: Apache-2.0
"""Enclaves of this Nitro host, through nitro-cli."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import replace

from enclavekit_core.errors import CommandError, describe_cause
from enclavekit_core.exit_report import REQUESTED

from enclavekit_rbuilds.base.command import run
from enclavekit_rbuilds.run import nitro_commands
from enclavekit_rbuilds.run.backend import END_PATIENCE_S
from enclavekit_rbuilds.run.exit_reports import read_report
from enclavekit_rbuilds.run.failure import NitroFailure, parse_error_log, parse_failure
from enclavekit_rbuilds.run.model import AppEnd, BackendName, LaunchError, LaunchPlan, RunningEnclave
from enclavekit_rbuilds.run.programs import need_program
from enclavekit_rbuilds.run.store import private_directory

SOCKETS_DIRECTORY = "/run/nitro_enclaves"
MAX_LOG_BYTES = 64 * 1024  # an error log has some ten lines
REPORT_POLL_S = 0.05
STATUS_UNKNOWN = 255  # as nitro-emu wait has it
COMMAND_TIMEOUT_S = 60.0  # describe and terminate answer at once; the enclave process has 3 s to be heard


class NitroCli:
    """See `backend.Backend`."""

    name: BackendName = "nitro-cli"
    meaning = "nitro-cli: a Nitro enclave of this host, confidential unless it runs in debug mode"

    def _program(self) -> str:
        return need_program(self.name, f"{self.name} runs the enclaves")

    def launch_argv(self, plan: LaunchPlan, cid: int) -> list[str]:
        return [self._program(), *nitro_commands.launch_arguments(plan, cid)]

    def proxy_environment(self) -> dict[str, str]:
        return {}

    def lock_path(self) -> str:
        # every user of the host meets here, because the heartbeat's port is one for the host; a directory can be
        # locked by whoever may read it
        sockets = os.environ.get("NITRO_CLI_SOCKETS_PATH", SOCKETS_DIRECTORY)
        return sockets if os.path.isdir(sockets) and os.access(sockets, os.R_OK) else private_directory()

    def failure(self, stderr: str, status: int) -> NitroFailure:
        failure = parse_failure(stderr, status)
        if failure.log_path is None:
            return failure
        try:
            with open(failure.log_path, encoding="utf-8", errors="replace") as source:
                return replace(failure, details=parse_error_log(source.read(MAX_LOG_BYTES)))
        except OSError:
            return failure  # what stderr said is the cause all the same

    def running(self) -> list[RunningEnclave]:
        return nitro_commands.parse_list(self._run(nitro_commands.LIST_ARGUMENTS, "list", "enclaves"), self.name)

    def terminate(self, enclave: RunningEnclave) -> None:
        self._run(nitro_commands.terminate_arguments(enclave.id), "end enclave", enclave.name)

    def console(self, enclave: RunningEnclave) -> int:
        argv = [self._program(), *nitro_commands.console_arguments(enclave.id)]
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
        except OSError as exc:
            raise LaunchError("attach to enclave", enclave.name, describe_cause(exc)) from exc
        if done.returncode:
            failure = self.failure(done.stderr.decode(errors="replace"), done.returncode)
            raise LaunchError("attach to enclave", enclave.name, failure.describe(), failure.code)
        return 0

    def end_of(self, enclave: RunningEnclave, patience_s: float = END_PATIENCE_S) -> AppEnd | None:
        # the hypervisor does not tell; PID 1 of our images reported it before it powered off
        deadline = time.monotonic() + patience_s
        while (report := read_report(private_directory(), enclave.cid)) is None and time.monotonic() < deadline:
            time.sleep(REPORT_POLL_S)
        if report is None:
            return None
        status = report.command_status()
        if status is None and report.cause:  # no app of its own has ended: what has is a success only if asked for
            status = 0 if report.cause == REQUESTED else STATUS_UNKNOWN
        return AppEnd(status=status, words=report.describe())

    def _run(self, arguments: list[str], verb: str, what: str) -> bytes:
        argv = [self._program(), *arguments]
        try:
            return run(argv, f"{verb} {what}", timeout_s=COMMAND_TIMEOUT_S)
        except CommandError as exc:
            failure = self.failure(exc.stderr_tail, exc.returncode)
            raise LaunchError(verb, what, failure.describe(), failure.code) from exc
