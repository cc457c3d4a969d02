# SPDX-License-Identifier: Apache-2.0
"""The command's end of a supervisor: start one, tell it what to do, hear how it went.

Lines of JSON from the supervisor: {"note": text}, {"started": RunningEnclave, "network": [text]}, or {"error": text,
"exit_code": n, "code": "E26"}; with --attach then {"console": base64} until {"ended": {"status": n or null, "words":
[text], "failure": text}}.
"""

from __future__ import annotations

import base64
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from enclavekit_rbuilds.run.model import LaunchError, LaunchPlan, RunningEnclave
from enclavekit_rbuilds.run.store import Store

MODULE = "enclavekit_rbuilds.run.supervise"
LOG_FILE = "supervisor.log"  # empty unless a supervisor itself failed


class LaunchRefused(LaunchError):
    """The supervisor's refusal, word for word, with its exit code."""

    def __init__(self, text: str, exit_code: int, code: str) -> None:
        super().__init__("", "", "", code)
        self.args = (text,)
        self.exit_code = exit_code


def start_supervisor(order: dict[str, Any], store: Store) -> socket.socket:
    """Start a supervisor in a session of its own and return the socket to it."""
    ours, theirs = socket.socketpair()
    with theirs, open(store.path(LOG_FILE), "ab") as log:
        subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],  # a module in the working directory is not ours
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    ours.sendall(msgspec.json.encode(order) + b"\n")
    return ours


class Launch:
    """One launch in progress; a context manager that leaves the supervisor alone at its end."""

    def __init__(self, plan: LaunchPlan, note: Callable[[str], None]) -> None:
        self._note = note
        self._eif = plan.eif
        self._socket = start_supervisor({"launch": msgspec.to_builtins(plan)}, Store())
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> Launch:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._lines.close()
        self._socket.close()

    def wait(self) -> tuple[RunningEnclave, list[str]]:
        """Wait until the enclave is up; return it and its rules in words. Raises LaunchError."""
        for message in self._messages():
            if "started" in message:
                return msgspec.convert(message["started"], RunningEnclave), message["network"]
        raise LaunchError("run", self._eif, "its supervisor ended without a word")

    def console(self) -> Iterator[bytes]:
        """Yield the console's bytes until the enclave has ended. Raises LaunchError if the console was lost."""
        self.app_status: int | None = None
        self.end_words: list[str] = []
        for message in self._messages():
            if "console" in message:
                yield base64.b64decode(message["console"])
            elif "ended" in message:
                self.app_status = message["ended"]["status"]
                self.end_words = message["ended"]["words"]
                if failure := message["ended"]["failure"]:
                    raise LaunchError("attach to", self._eif, failure)
                return

    def _messages(self) -> Iterator[dict[str, Any]]:
        for line in self._lines:
            message = msgspec.json.decode(line)
            if "note" in message:
                self._note(message["note"])
            elif "error" in message:
                raise LaunchRefused(message["error"], message["exit_code"], message["code"])
            else:
                yield message
