# SPDX-License-Identifier: Apache-2.0
"""Find out what this machine can change between two builds; each answer is tried, not guessed."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from enclavekit_rbuilds.evidence.surroundings import OTHER_UID, UserChange

FAKETIME_LIBRARIES = (
    "/usr/lib/*/faketime/libfaketime.so.1",  # Debian
    "/usr/lib64/faketime/libfaketime.so.1",  # Fedora, Amazon Linux
    "/usr/lib/faketime/libfaketime.so.1",
)
PROBE_TIMEOUT_S = 30.0
# runs as the other user: can it load us, read the inputs and write its directory?
READER = "import enclavekit_rbuilds.cli, os, sys; bad = [p for p in sys.argv[2:] if not os.access(p, os.R_OK)]; \
sys.exit(f'it cannot read {bad[0]}' if bad else 0 if os.access(sys.argv[1], os.W_OK) else 'it cannot reach our files')"


def find_faketime() -> str | None:
    """Return libfaketime if there is one and it shifts Python's clock."""
    for pattern in FAKETIME_LIBRARIES:
        for path in sorted(glob.glob(pattern)):
            env = {**os.environ, "LD_PRELOAD": path, "FAKETIME": "+100h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
            done = _try([sys.executable, "-S", "-c", "import time; print(time.time())"], env)
            if done is not None and done.returncode == 0 and float(done.stdout) > time.time() + 90 * 3600:
                return path
    return None


def current_umask() -> int:
    """Return the umask without changing it. Source: proc_pid_status(5)."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        for line in status:
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    return 0o022  # Linux before 4.7


def current_locale() -> str:
    """Return the locale that programs see."""
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        if value := os.environ.get(name):
            return value
    return "C"


def installed_locales() -> tuple[str, ...]:
    """Return the names that `locale -a` prints; without it, the one that always is."""
    done = _try(["locale", "-a"])
    names = done.stdout.decode(errors="replace").split() if done is not None and done.returncode == 0 else []
    return tuple(names) or ("C",)


def find_user_change(work: str, inputs: Sequence[str]) -> tuple[UserChange | None, str]:
    """Return how to become another user who can still build, or None and why there is no way.

    Args:
        work: directory that the other user gets; given to them if they turn out to be able to build.
        inputs: files that they must be able to read.
    """
    check = [sys.executable, "-P", "-c", READER, work, *inputs]
    launch = [sys.executable, "-P", "-m", "enclavekit_rbuilds.evidence.launch"]
    obstacle = "we are not root"
    if os.geteuid() == 0:
        os.chown(work, OTHER_UID, OTHER_UID)
        done = _try([*launch, "--user", str(OTHER_UID), "--", *check])
        if done is not None and done.returncode == 0:
            return "account", ""
        os.chown(work, os.geteuid(), os.getegid())
        obstacle = f"user {OTHER_UID} cannot build: {_last_line(done)}"
    namespace = ["unshare", "--user", f"--map-user={OTHER_UID}", f"--map-group={OTHER_UID}"]
    if shutil.which("unshare") is None:
        return None, f"{obstacle}, and unshare is not installed"
    done = _try([*namespace, *launch, "--", *check])
    if done is not None and done.returncode == 0:
        return "namespace", ""
    return None, f"{obstacle}; in a user namespace: {_last_line(done)}"


def mount_disordered(source: str, mountpoint: str, *, for_others: bool) -> str:
    """Mount `source` with shuffled directories at `mountpoint`; return an empty text, or why it does not work."""
    if shutil.which("disorderfs") is None:
        return "disorderfs is not installed"
    words = ["disorderfs", f"--multi-user={'yes' if for_others else 'no'}", "--shuffle-dirents=yes"]
    done = _try([*words, source, mountpoint])
    if done is None or done.returncode or not os.path.ismount(mountpoint):
        return _last_line(done)
    return ""


def unmount(mountpoint: str) -> None:
    """Undo `mount_disordered`."""
    if os.path.ismount(mountpoint):
        _try(["umount" if os.geteuid() == 0 else "fusermount", *(() if os.geteuid() == 0 else ("-u",)), mountpoint])


def _try(argv: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes] | None:
    """Run a probe; None if it cannot be run at all. A failed probe is an answer, not an error."""
    try:
        return subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, env=env, timeout=PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def _last_line(done: subprocess.CompletedProcess[bytes] | None) -> str:
    if done is None:
        return "it does not start"
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else f"it ended with {done.returncode}"
