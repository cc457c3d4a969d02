# SPDX-License-Identifier: Apache-2.0
"""Why an enclave ended, from what PID 1 left behind and what it had reported. Pure.

A reboot call in a PID namespace ends its PID 1 with a signal: SIGINT for power off and halt, SIGHUP for restart;
on Nitro either ends the enclave. Source: reboot(2), "Behavior inside PID namespaces".
"""

from __future__ import annotations

import os
import signal

from enclavekit_core.exit_report import ExitReport

from enclavekit_emulator.state import EnclaveRecord, EndRecord


def describe_init_end(status: int) -> str:
    """Return how PID 1 ended, in words.

    Args:
        status: wait status as of waitpid(2).
    """
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        words = {int(signal.SIGINT): "it powered off", int(signal.SIGHUP): "it restarted"}
        return words.get(number) or f"its PID 1 was killed by signal {number}"
    return f"its PID 1 exited with status {os.WEXITSTATUS(status)}"


def is_orderly(status: int) -> bool:
    """Say whether PID 1 ended the way that a machine is switched off."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGINT, signal.SIGHUP)


def make_end_record(
    record: EnclaveRecord,
    reason: str,
    report: ExitReport | None,
    *,
    orderly: bool,
    terminated: bool,
    out_of_memory: bool,
) -> EndRecord:
    """Return how the enclave ended.

    Args:
        reason: what its first process or its machine left behind, in words.
        orderly: it ended the way that one is switched off when its app is done.
        report: what PID 1 said about the app; it is the enclave's word, and a hostile one may lie.
        terminated: a user asked for the end.
    """
    if report is not None and report.reason:
        reason = report.reason
    if out_of_memory:
        reason = f"it ran out of its {record.memory_mib} MiB: {reason}"
    elif terminated:
        reason = f"terminated: {reason}"
    exit_status, number, unit = None, None, None
    if report is not None:
        exit_status, number, unit = report.exit_status, report.signal, report.unit
    if exit_status is None and number is None and (report is None or terminated):
        # nobody said how the app ended: a machine that was switched off in order is a success, anything else is not
        exit_status = 0 if orderly and not out_of_memory else None
    return EndRecord(
        enclave_id=record.enclave_id,
        name=record.name,
        cid=record.cid,
        reason=reason,
        exit_status=exit_status,
        signal=number,
        unit=unit,
        cause="" if report is None else report.cause,
        oom=out_of_memory or (report is not None and report.oom),
        uptime_s=None if report is None else report.uptime_s,
        last_lines=[] if report is None else report.to_json()["last_lines"],
    )
