# SPDX-License-Identifier: Apache-2.0
"""Starts what stands for the NSM in the emulator's virtual machines, and waits until /dev/nsm is there.

It is no unit: the first of them may need the NSM, and it goes only with the machine.
"""

from __future__ import annotations

import os
import select
import signal

from enclavekit_core.errors import DeviceError

from enclavekit_enclave_init.boot.plan import parse_nsm_port

ARGUMENTS = ("-I", "-m", "enclavekit_nsm.relay", "--port")
READY = b"ready\n"
READY_TIMEOUT_S = 30.0  # a Python under a QEMU that translates takes one
PYTHON = "/usr/bin/python3"


def read_nsm_port() -> int:
    """Return the port that this kernel's command line names; 0 if it names none."""
    try:
        with open("/proc/cmdline", encoding="utf-8", errors="replace") as source:
            return parse_nsm_port(source.read())
    except OSError:
        return 0


def start_nsm_relay(port: int, argv: tuple[str, ...] = (PYTHON, *ARGUMENTS)) -> None:
    """Run the relay in a session of its own. Raises DeviceError if it does not get ready, OSError if it cannot run."""
    output, child_output = os.pipe()
    try:
        actions = [(os.POSIX_SPAWN_DUP2, child_output, 1)]
        command = [*argv, str(port)]
        pid = os.posix_spawn(command[0], command, {}, file_actions=actions, setsid=True, setsigmask=())
    finally:
        os.close(child_output)
    try:
        answer = _read_line(output)
    finally:
        os.close(output)
    if answer != READY:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise DeviceError("start", "the NSM relay", "it ended" if not answer else "it did not get ready in time")


def _read_line(fd: int) -> bytes:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    line = b""
    while not line.endswith(b"\n"):
        if not poller.poll(READY_TIMEOUT_S * 1000):
            return b"?"
        byte = os.read(fd, 1)
        if not byte:
            return b""
        line += byte
    return line
