# SPDX-License-Identifier: Apache-2.0
"""The root file system of an emulated enclave: the image's ramdisks in a tmpfs, and the mounts a kernel would offer.

`build_root` runs in what becomes PID 1, in its new namespaces, and must import nothing on its way: once the process has
the enclave's ids it may not read the host's Python any more, and after the pivot there is none.

The order matters. Sources on the host are opened while the process still has the host's ids (the runtime directory is
private), the tmpfs becomes the root before any path of the image is walked (its links then lead nowhere else), and the
host's root goes last, because the kernel lets a namespace mount proc only while it can see a whole one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from enclavekit_emulator import namespaces as ns

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
MAX_TMPFS_INODES = 1_000_000  # about 1 GiB of kernel memory at most, and that counts against the cgroup
DEV_SIZE = "size=1m"  # device nodes and links only
NO_PROGRAMS = ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC
MS_REMOUNT = 0x20
CONSOLE = "/dev/console"


@dataclass(frozen=True, slots=True)
class RootPlan:
    mount_point: str
    """Empty directory on the host."""
    size_bytes: int
    """Of the tmpfs root, and of each other tmpfs; the cgroup bounds the sum."""
    cid: int
    fabric_directory: str
    """The enclave's own, on the host; it may write there."""
    parent_fabric_directory: str
    """The host's, which it may only connect into."""
    nsm_socket: str
    single_user: bool
    """Only one id is mapped: everything belongs to it."""
    extract: Callable[[str], None]
    """Unpacks all ramdisks, in order, below a directory; open and imported before it gets here."""


class RootError(Exception):
    """The root cannot be built; the text is the cause."""


def build_root(plan: RootPlan) -> int:
    """Build the root, make it the process's own and return an open, non-blocking descriptor of its console.

    Raises: OSError or RootError; the process is good for nothing but exiting then.
    """
    ns.mount("none", "/", "", ns.MS_REC | ns.MS_PRIVATE)
    sources = _open_sources(plan)
    size = f"size={plan.size_bytes}"
    root_options = f"mode=0755,uid=0,gid=0,{size},nr_inodes={MAX_TMPFS_INODES}"
    ns.mount("enclave", plan.mount_point, "tmpfs", ns.MS_NODEV, root_options)
    os.chdir(plan.mount_point)
    _become_root(plan)
    os.umask(0)
    plan.extract(".")
    old_root = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    ns.pivot_root(".", ".")
    os.chdir("/")

    _directory("/proc", 0o555)
    ns.mount("proc", "/proc", "proc", NO_PROGRAMS)
    _mount_sys()
    for path, mode, room in (("/dev", 0o755, DEV_SIZE), ("/run", 0o755, size), ("/tmp", 0o1777, size)):  # noqa: S108
        _directory(path, mode)
        ns.mount("tmpfs", path, "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, f"mode={mode:o},{room}")
    _fill_dev(sources, size)
    _fill_runtime_dir(plan, sources)
    for handle in sources.values():
        os.close(handle)

    os.fchdir(old_root)
    ns.detach(".")
    os.close(old_root)
    os.chdir("/")
    os.umask(0o022)
    ns.set_host_name("enclave")
    return os.open(CONSOLE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)


def _open_sources(plan: RootPlan) -> dict[str, int]:
    """Open, without following links, what is going to be bind-mounted: {target in the enclave: O_PATH descriptor}."""
    paths = {f"/dev/{name}": f"/dev/{name}" for name in DEVICES}
    paths["/dev/nsm"] = plan.nsm_socket
    paths[f"/run/enclavekit/fabric/{plan.cid}"] = plan.fabric_directory
    paths["/run/enclavekit/fabric/3"] = plan.parent_fabric_directory
    return {target: os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC) for target, path in paths.items()}


def _become_root(plan: RootPlan) -> None:
    """Take uid and gid 0 of the new user namespace."""
    if not plan.single_user:  # the kernel forbids setgroups there, and there is no group to leave
        os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _directory(path: str, mode: int) -> None:
    """Make sure that the image has a real directory there. Raises RootError."""
    try:
        os.mkdir(path, mode)
        os.chmod(path, mode)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise RootError(f"{path} of the image is not a directory") from None


def _mount_sys() -> None:
    _directory("/sys", 0o555)
    try:
        ns.mount("sysfs", "/sys", "sysfs", NO_PROGRAMS | ns.MS_RDONLY)
    except PermissionError:
        # a container hides parts of it, and the kernel then refuses a whole one: programs find it empty
        ns.mount("tmpfs", "/sys", "tmpfs", NO_PROGRAMS | ns.MS_RDONLY, "mode=0555")


def _fill_dev(sources: dict[str, int], size: str) -> None:
    for target, handle in sources.items():
        if target.startswith("/dev/"):
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            ns.bind(f"/proc/self/fd/{handle}", target)
    for name, link in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{link}", f"/dev/{name}")
    os.mkdir("/dev/pts", 0o755)
    ns.mount("devpts", "/dev/pts", "devpts", ns.MS_NOSUID | ns.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
    os.symlink("pts/ptmx", "/dev/ptmx")
    os.mkdir("/dev/shm", 0o1777)  # noqa: S108 - the enclave's own
    ns.mount("tmpfs", "/dev/shm", "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, f"mode=1777,{size}")  # noqa: S108
    os.mkfifo(CONSOLE, 0o600)


def _fill_runtime_dir(plan: RootPlan, sources: dict[str, int]) -> None:
    top = "/run/enclavekit"
    for path in (top, f"{top}/registry", f"{top}/fabric", f"{top}/fabric/{plan.cid}", f"{top}/fabric/3"):
        os.mkdir(path, 0o755)
    for name, text in (
        ("self", f'{{"cid": {plan.cid}}}'),
        ("3", '{"cid": 3, "transport": "fabric"}'),
    ):
        with open(f"{top}/registry/{name}.json", "w", encoding="ascii", opener=_open_644) as out:
            out.write(text)
    for target, handle in sources.items():
        if target.startswith(top):
            ns.bind(f"/proc/self/fd/{handle}", target)
            read_only = ns.MS_RDONLY if target.endswith("/3") else 0
            ns.mount("none", target, "", MS_REMOUNT | ns.MS_BIND | NO_PROGRAMS | read_only)


def _open_644(path: str, flags: int) -> int:
    return os.open(path, flags, 0o644)
