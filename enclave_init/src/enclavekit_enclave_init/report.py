# SPDX-License-Identifier: Apache-2.0
"""The last word to the parent, on vsock parent:9002: how the enclave ended, see `enclavekit_core.exit_report`.

The parent is not trusted with what the app has printed: `logs.to_parent` says which of the last lines go with it.
"""

from __future__ import annotations

from collections.abc import Iterable

from enclavekit_core.address import VsockAddress
from enclavekit_core.errors import TransportError
from enclavekit_core.exit_report import (
    BOOT_FAILED,
    EXITED,
    FAILED,
    INIT_FAILED,
    KILLED,
    MAX_LINE_CHARS,
    OUT_OF_MEMORY,
    REQUESTED,
    ExitReport,
    LastLine,
    encode_exit_report,
)
from enclavekit_core.streams import connect

from enclavekit_enclave_init.logs.config import ALL_LINES, INIT_LINES, LogConfig
from enclavekit_enclave_init.logs.hub import LogHub
from enclavekit_enclave_init.logs.records import INIT_NAME, KERNEL_NAME, Line
from enclavekit_enclave_init.supervision.events import Outcome

SIGKILL = 9
BOOT, BUG = BOOT_FAILED, INIT_FAILED


def make_report(outcome: Outcome, *, oom: bool, uptime_s: float, lines: Iterable[Line], failed: str = "") -> ExitReport:
    """Return what is reported.

    Args:
        oom: the kernel has killed something for want of memory.
        failed: BOOT or BUG if no supervisor decided about this end.
    """
    return ExitReport(
        unit=outcome.unit,
        exit_status=outcome.exit_status,
        signal=outcome.signal,
        reason=outcome.reason,
        cause=failed or _cause_of(outcome, oom),
        oom=oom,
        uptime_s=round(max(0.0, uptime_s), 3),
        last_lines=tuple(
            LastLine(line.unit, line.stream, line.text[: 4 * MAX_LINE_CHARS].decode(errors="replace")) for line in lines
        ),
    )


def _cause_of(outcome: Outcome, oom: bool) -> str:
    if outcome.unit is None:
        return REQUESTED
    if outcome.signal is not None:
        return OUT_OF_MEMORY if oom and outcome.signal == SIGKILL else KILLED
    return FAILED if outcome.exit_status is None else EXITED


def lines_for_parent(hub: LogHub, config: LogConfig) -> list[Line]:
    """Return the last lines that the parent may see."""
    if config.to_parent == ALL_LINES:
        return hub.tail(None, config.last_lines)
    return hub.tail((INIT_NAME, KERNEL_NAME), config.last_lines) if config.to_parent == INIT_LINES else []


def send_report(report: ExitReport, cid: int, port: int, timeout_s: float) -> None:
    """Send the line. Raises TransportError, also when nobody listens, which is no fault."""
    address = VsockAddress(cid, port)
    with connect(address, timeout_s) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.sendall(encode_exit_report(report))
        except OSError as exc:
            raise TransportError("report to", address, exc) from exc
