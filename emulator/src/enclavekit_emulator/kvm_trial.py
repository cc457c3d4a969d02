# SPDX-License-Identifier: Apache-2.0
"""Whether KVM runs this kernel here: tried, not assumed. Nested KVM in clouds often opens and then runs nothing."""

from __future__ import annotations

import os
import select
import subprocess

TRIAL_S = 4.0  # a kernel under KVM prints its first line after a tenth of a second; under TCG it takes one second
TRIAL_MEMORY_MIB = 256
TRIAL_CMDLINE = "console=ttyS0 earlyprintk=serial panic=-1 reboot=t"


def choose_accelerator(binary: str, kernel: str, kernel_fd: int) -> tuple[str, str]:
    """Return kvm or tcg, and what to tell the user.

    Args:
        kernel: a path that is good in a child that inherits `kernel_fd`.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "KVM cannot be used here: QEMU translates every instruction, which is several times slower"
    if _prints_something(binary, kernel, kernel_fd):
        return "kvm", ""
    return "tcg", "KVM is there but does not run this kernel: QEMU translates every instruction instead"


def _prints_something(binary: str, kernel: str, kernel_fd: int) -> bool:
    """Boot `kernel` without a root for a moment and see whether its console says anything."""
    argv = [
        *(binary, "-M", "microvm" if binary.endswith("x86_64") else "virt", "-accel", "kvm", "-cpu", "host"),
        *("-m", f"{TRIAL_MEMORY_MIB}M", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-serial", "stdio", "-kernel", kernel, "-append", TRIAL_CMDLINE),
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
            ready, _, _ = select.select([trial.stdout], [], [], TRIAL_S)
            return bool(ready and os.read(trial.stdout.fileno(), 1))
        finally:
            trial.kill()
