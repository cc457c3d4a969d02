# SPDX-License-Identifier: Apache-2.0
"""What runs in the enclave, from /proc. Source: proc(5). A process may end while it is read: it is left out then."""

from __future__ import annotations

import os

from enclavekit_pipeline.channel.mux import Stream
from enclavekit_pipeline.enclave.clients import Grant
from enclavekit_pipeline.enclave.jobs import Jobs
from enclavekit_pipeline.enclave.root import Root
from enclavekit_pipeline.enclave.workplace import Workplace
from enclavekit_pipeline.wire.frames import Kind
from enclavekit_pipeline.wire.job_messages import MAX_NAME_CHARS, Processes, ProcessInfo, PsRequest
from enclavekit_pipeline.wire.messages import encode_payload

MAX_PROCESSES = 4096  # sent; an app that forks without end is seen by the first of them
PROCESSES_PER_FRAME = 32  # each is under 1.7 KiB of JSON, whatever its command is called
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
MAX_COMMAND_BYTES = 1024


async def serve_ps(request: PsRequest, grant: Grant, stream: Stream, place: Workplace, jobs: Jobs) -> str:
    """Send the processes in the app's root, or all; the client's own jobs are marked."""
    sessions = {job.pid: job.id for job in jobs.visible(grant, system=request.system) if job.ended is None}
    root = None if request.system else place.app_root
    found, omitted = await place.in_thread(list_processes, root, sessions)
    for start in range(0, len(found) or 1, PROCESSES_PER_FRAME):
        part = found[start : start + PROCESSES_PER_FRAME]
        last = start + PROCESSES_PER_FRAME >= len(found)
        await stream.send(Kind.PROCESSES, encode_payload(Processes(processes=part, last=last, omitted=omitted)))
    return f"{len(found)} processes"


def list_processes(root: Root | None, jobs: dict[int, str]) -> tuple[list[ProcessInfo], int]:
    """Return the processes in `root`, or all, and how many more there are.

    Args:
        jobs: session -> job.
    """
    found: list[ProcessInfo] = []
    omitted = 0
    uptime_s = float(_read("/proc/uptime").split()[0])
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            if root is not None and not works_in(root, pid):
                continue
            if len(found) < MAX_PROCESSES:
                found.append(read_process(pid, uptime_s, jobs))
            else:
                omitted += 1
        except OSError:
            continue
    return found, omitted


def read_process(pid: int, uptime_s: float, jobs: dict[int, str]) -> ProcessInfo:
    """Raises OSError once the process is gone."""
    stat = _read(f"/proc/{pid}/stat")
    name, _, rest = stat.partition("(")[2].rpartition(")")  # a name may hold spaces and parentheses
    fields = rest.split()  # from field 3 of proc(5) on
    words = _read(f"/proc/{pid}/cmdline").rstrip("\0").replace("\0", " ")
    return ProcessInfo(
        pid=pid,
        parent=int(fields[1]),
        uid=uid_of(pid),
        state=fields[0],
        age_s=max(0, int(uptime_s - int(fields[19]) / TICKS_PER_S)),
        cpu_ms=(int(fields[11]) + int(fields[12])) * 1000 // TICKS_PER_S,
        resident_kib=int(fields[21]) * PAGE_KIB,
        job=jobs.get(int(fields[3])),
        command=(words or f"[{name}]")[:MAX_NAME_CHARS],
    )


def works_in(root: Root, pid: int) -> bool:
    """Say whether the process has `root` for its root. Raises OSError if it is gone, or not ours to look at."""
    its, wanted = os.stat(f"/proc/{pid}/root"), os.fstat(root.descriptor)
    return (its.st_dev, its.st_ino) == (wanted.st_dev, wanted.st_ino)


def uid_of(pid: int) -> int:
    """Raises OSError if it is gone."""
    return os.stat(f"/proc/{pid}").st_uid


def _read(path: str) -> str:
    with open(path, "rb") as source:
        return source.read(MAX_COMMAND_BYTES).decode(errors="replace")
