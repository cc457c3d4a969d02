# SPDX-License-Identifier: Apache-2.0
"""Whether KVM runs this kernel here: tried, not assumed. Nested KVM in clouds often opens and then runs nothing.

What counts is the kernel's own first line: its start-up code says something before that, in a mode of the processor
that some hypervisors interpret, and never gets further.
"""

from __future__ import annotations

import os
import select
import subprocess
import time

from enclavekit_emulator.qemu_command import CONSOLES

KVM_DEVICE = "/dev/kvm"
TRIAL_S = 4.0  # a kernel under KVM prints its first line after a tenth of a second; under TCG it takes one second
TRIAL_MEMORY_MIB = 256
MACHINES = {"x86_64": "microvm", "aarch64": "virt,gic-version=max"}
EARLY_CONSOLES = {"x86_64": "earlyprintk=serial", "aarch64": "earlycon"}
SIGN_OF_LIFE = b"Linux version "
MAX_OUTPUT_BYTES = 64 * 1024


def choose_accelerator(binary: str, arch: str, kernel: str, kernel_fd: int) -> tuple[str, str]:
    """Return kvm or tcg, and what to tell the user.

    Args:
        kernel: a path that is good in a child that inherits `kernel_fd`.
    """
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return "tcg", "KVM cannot be used here: QEMU translates every instruction, which is several times slower"
    if _lives(binary, arch, kernel, kernel_fd):
        return "kvm", ""
    return "tcg", "KVM is there but does not run this kernel: QEMU translates every instruction instead"


def _lives(binary: str, arch: str, kernel: str, kernel_fd: int) -> bool:
    """Boot `kernel` without a root for a moment and see whether it says what it is."""
    cmdline = f"console={CONSOLES[arch]} {EARLY_CONSOLES[arch]} panic=-1 reboot=t"
    argv = [
        *(binary, "-M", MACHINES[arch], "-accel", "kvm", "-cpu", "host"),
        *("-m", f"{TRIAL_MEMORY_MIB}M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", "stdio", "-kernel", kernel, "-append", cmdline),
    ]
    with subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=[kernel_fd],
    ) as trial:
        assert trial.stdout is not None
        try:
            return _says(trial.stdout.fileno(), SIGN_OF_LIFE, time.monotonic() + TRIAL_S)
        finally:
            trial.kill()


def _says(output: int, words: bytes, deadline: float) -> bool:
    seen = b""
    while words not in seen:
        ready, _, _ = select.select([output], [], [], max(deadline - time.monotonic(), 0))
        chunk = os.read(output, MAX_OUTPUT_BYTES) if ready else b""
        if not chunk or len(seen) > MAX_OUTPUT_BYTES:
            return False
        seen += chunk
    return True
