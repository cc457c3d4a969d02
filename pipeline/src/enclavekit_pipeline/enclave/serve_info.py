# SPDX-License-Identifier: Apache-2.0
"""Answers `info`: the caller's rights, the limits, and the facts of the boot."""

from __future__ import annotations

import contextlib
import os
import platform
import time

from enclavekit_pipeline import __version__
from enclavekit_pipeline.channel.mux import Stream
from enclavekit_pipeline.enclave.clients import Grant
from enclavekit_pipeline.enclave.workplace import MAX_COMMANDS, Workplace
from enclavekit_pipeline.wire.flow import WINDOW_BYTES
from enclavekit_pipeline.wire.frames import MAX_PAYLOAD_BYTES, PROTOCOL_VERSION, Kind
from enclavekit_pipeline.wire.info_messages import Info
from enclavekit_pipeline.wire.messages import encode_payload
from enclavekit_pipeline.wire.numbering import MAX_STREAMS

STARTED_AT = time.monotonic()
MAX_FACT_CHARS = 200


async def serve_info(grant: Grant, stream: Stream, place: Workplace, max_sessions: int) -> str:
    """Send the facts, return the outcome for the log."""
    info = Info(
        version=__version__,
        protocol=PROTOCOL_VERSION,
        client=grant.name,
        allow=grant.allow,
        system=grant.system,
        restricted_commands=grant.commands is not None,
        limits={
            "sessions": max_sessions,
            "sessions_of_client": grant.sessions or 0,
            "memory_bytes_of_client": grant.limits.memory_max,
            "tasks_of_client": grant.limits.tasks_max,
            "cpu_percent_of_client": round(100 * grant.limits.cpu_quota),
            "streams": MAX_STREAMS,
            "commands": MAX_COMMANDS,
            "payload_bytes": MAX_PAYLOAD_BYTES,
            "window_bytes": WINDOW_BYTES,
        },
        app_root=place.app_root.path,
        uptime_s=round(time.monotonic() - STARTED_AT, 3),
        boot=read_boot_facts(),
    )
    await stream.send(Kind.INFO, encode_payload(info))
    return "told"


def read_boot_facts() -> dict[str, str]:
    """Return what this machine says of itself; what cannot be read is left out."""
    facts = {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "memory_mib": str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20),
    }
    for name, path in (("uptime_s", "/proc/uptime"), ("init", "/proc/1/comm")):
        with contextlib.suppress(OSError, IndexError), open(path, encoding="utf-8", errors="replace") as source:
            facts[name] = source.read(MAX_FACT_CHARS).split()[0]
    return facts
