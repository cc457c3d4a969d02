# SPDX-License-Identifier: Apache-2.0
"""Messages of detached commands (jobs) and of what else runs: lists, output, signals. Pure."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from enclavekit_pipeline.wire.exec_messages import Exit, WindowSize
from enclavekit_pipeline.wire.messages import Message, Size, malformed

MAX_SIGNAL = 64  # SIGRTMAX
MAX_PID = 2**22  # PID_MAX_LIMIT
MAX_NAME_CHARS = 256  # of a command in a list; far more is no name
JOB_ID = re.compile(r"^j[1-9][0-9]{0,8}\Z")  # not $, which a newline may follow
JobId = Annotated[str, msgspec.Meta(pattern=JOB_ID.pattern)]
Pid = Annotated[int, msgspec.Meta(ge=1, le=MAX_PID)]
SignalNumber = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIGNAL)]
Name = Annotated[str, msgspec.Meta(max_length=MAX_NAME_CHARS)]


class JobsRequest(Message, frozen=True, tag="jobs", tag_field="verb"):
    system: bool = False
    """Those of all clients, not only the caller's."""

    def check(self) -> None:
        """Nothing can be wrong with it."""


class LogsRequest(Message, frozen=True, tag="logs", tag_field="verb"):
    job: JobId
    follow: bool = False
    """Until the job ends."""
    system: bool = False

    def check(self) -> None:
        """The types say it all."""


class AttachRequest(Message, frozen=True, tag="attach", tag_field="verb"):
    """What the job writes from now on, and input for it if it takes any."""

    job: JobId
    window: WindowSize | None = None
    system: bool = False

    def check(self) -> None:
        """The types say it all."""


class KillRequest(Message, frozen=True, kw_only=True, tag="kill", tag_field="verb"):
    """Exactly one of `job` and `pid`."""

    job: JobId | None = None
    pid: Pid | None = None
    signal: SignalNumber
    system: bool = False

    def check(self) -> None:
        """Raises RemoteProtocolError."""
        if (self.job is None) == (self.pid is None):
            raise malformed("a job or a process, not both")


class PsRequest(Message, frozen=True, tag="ps", tag_field="verb"):
    system: bool = False
    """All processes, not only those in the app's root."""

    def check(self) -> None:
        """Nothing can be wrong with it."""


class JobInfo(Message, frozen=True):
    job: JobId
    client: Name
    command: Name
    """argv[0]: what follows may be a secret."""
    age_s: Size
    """Since it was started."""
    pid: Pid
    terminal: bool
    stdin: bool
    """It takes input from who attaches."""
    written: Size
    """Bytes of output so far; the last of them are kept."""
    ended: Exit | None = None
    """None: it runs."""


class JobList(Message, frozen=True):
    jobs: list[JobInfo]


class Gap(Message, frozen=True):
    """So many bytes of output are missing here: newer ones have taken their place."""

    count: Size


class ProcessInfo(Message, frozen=True, kw_only=True):
    pid: Pid
    parent: Annotated[int, msgspec.Meta(ge=0, le=MAX_PID)]
    uid: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
    state: Annotated[str, msgspec.Meta(max_length=1)]
    """As in proc(5)."""
    age_s: Size
    cpu_ms: Size
    resident_kib: Size
    job: JobId | None = None
    command: Name


class Processes(Message, frozen=True):
    """Some of them; `last` says that no more follow."""

    processes: list[ProcessInfo]
    last: bool = False
    omitted: Size = 0
    """How many there are beyond what is sent."""
