# SPDX-License-Identifier: Apache-2.0
"""What a boot does before the first unit, as a list of operations. Pure.

Two kinds of machine boot the same image. A machine of its own (Nitro, QEMU) hands PID 1 an empty /dev and nothing
mounted: everything is ours to set up. The process machine has mounted what it wants seen; what is there is left alone.
Source for the mounts and their flags: AWS's init (sdk-bootstrap), the Rust enclave-init.
"""

from __future__ import annotations

from collections.abc import Collection

from enclavekit_core.split_files import PARTS_DIR, FileList

from enclavekit_enclave_init.boot.steps import (
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    BringLoopbackUp,
    CheckClock,
    Heartbeat,
    JoinFile,
    LoadModule,
    MakeDirectory,
    MakeLink,
    Mount,
    OpenConsole,
    Operation,
    RemoveDirectories,
    SeedEntropy,
    SetCapability,
    SetHostname,
    SetUpCgroups,
    StartNsmRelay,
    WriteFile,
)
from enclavekit_enclave_init.config import InitConfig

# /proc comes first and outside this table: what is mounted is read from it
MOUNT_PROC: tuple[Operation, ...] = (
    MakeDirectory("/proc", 0o555),
    Mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC),
)
MOUNTS = (
    Mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID | MS_NOEXEC, "mode=0755"),
    # required=False: nothing in the framework reads it, and a namespace without its own network may not mount it
    Mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, required=False),
    Mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0755"),
    Mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777"),  # noqa: S108 - a mount point
    Mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620"),
    Mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777"),  # noqa: S108 - a mount point
)
NO_FILES = FileList()
NSM_PARAMETER = "enclavekit.nsm_port"  # on the kernel command line of the emulator's virtual machines
LINKS = (
    MakeLink("/dev/fd", "/proc/self/fd"),
    MakeLink("/dev/stdin", "/proc/self/fd/0"),
    MakeLink("/dev/stdout", "/proc/self/fd/1"),
    MakeLink("/dev/stderr", "/proc/self/fd/2"),
    MakeLink("/dev/ptmx", "pts/ptmx"),
)


def holds_mount(target: str, mounted: Collection[str]) -> bool:
    """Say whether something is mounted at `target` or below it: a mount over it would hide that."""
    return any(point == target or point.startswith(target + "/") for point in mounted)


def owns_machine(mounted: Collection[str]) -> bool:
    """Say whether kernel and devices are this image's own: then nobody has filled /dev before PID 1 ran."""
    return not holds_mount("/dev", mounted)


def plan_machine(mounted: Collection[str]) -> list[Operation]:
    """Plan what a kernel leaves to init: file systems that are not there yet, links, the console.

    Args:
        mounted: the mount points, /proc among them.
    """
    plan: list[Operation] = []
    for mount in MOUNTS:
        if not holds_mount(mount.target, mounted):
            plan += [MakeDirectory(mount.target, 0o755, required=mount.required), mount]
    plan += LINKS
    if owns_machine(mounted):
        plan.append(OpenConsole())
    return plan


def plan_files(files: FileList) -> list[Operation]:
    """Plan what makes the app's files whole: what their archive could not hold."""
    plan: list[Operation] = [JoinFile(file) for file in files.split]
    if files.split:
        folders = {part.rpartition("/")[0] for file in files.split for part in file.parts} - {PARTS_DIR}
        plan.append(RemoveDirectories((*sorted(folders), PARTS_DIR)))
    plan += [SetCapability(item) for item in files.capabilities]
    return plan


def parse_nsm_port(cmdline: str) -> int:
    """Return the vsock port that the emulator's boot parameter names; 0 without one, as on Nitro."""
    values = [word.partition("=")[2] for word in cmdline.split() if word.startswith(f"{NSM_PARAMETER}=")]
    port = values[-1] if values else ""
    return int(port) if port.isascii() and port.isdigit() and len(port) <= 10 else 0


def plan_names(config: InitConfig) -> list[Operation]:
    """Plan how names are found: /etc/hosts always, /etc/resolv.conf if the configuration names a server."""
    names = " ".join(dict.fromkeys(("localhost", config.hostname))).strip()
    plan: list[Operation] = [
        MakeDirectory("/etc", 0o755, required=False),
        WriteFile("/etc/hosts", f"127.0.0.1 {names}\n::1 localhost\n"),
    ]
    if config.nameserver:
        plan.append(WriteFile("/etc/resolv.conf", f"nameserver {config.nameserver}\n"))
    return plan


def plan_system(
    config: InitConfig,
    *,
    owns_machine: bool,
    has_nsm: bool,
    nsm_port: int = 0,
    files: FileList = NO_FILES,
    needs_cgroups: bool = False,
    heartbeat_waits: bool = False,
) -> list[Operation]:
    """Plan what the configuration decides, up to the heartbeat, which says that all of it has worked.

    Args:
        has_nsm: /dev/nsm is there already, because the driver is built in or the machine is emulated.
        nsm_port: where an emulator answers for the NSM that this machine has not; 0: it is no such machine.
        files: what the image's archive could not hold as it is.
        needs_cgroups: a unit has limits; on a machine whose kernel is shared nothing is mounted without need.
        heartbeat_waits: a unit decides when the heartbeat is due, so it is no part of this plan.
    """
    plan: list[Operation] = []
    if owns_machine or needs_cgroups:
        plan.append(SetUpCgroups())
    if owns_machine:
        if config.nsm_driver_path and not has_nsm:
            plan.append(LoadModule(config.nsm_driver_path, optional=True, unlink=True))
        # the kernel of a process machine is the host's: it loads nothing for an enclave
        plan += [LoadModule(path) for path in config.kernel_modules]
    if config.hostname:
        plan.append(SetHostname(config.hostname))
    plan += [BringLoopbackUp(), MakeDirectory(config.log_dir, 0o755), *plan_names(config)]
    plan += plan_files(files)
    if owns_machine and nsm_port and not has_nsm:
        plan.append(StartNsmRelay(nsm_port))
    if owns_machine:  # else generator and clock are the host's
        plan += [SeedEntropy(), CheckClock()]
    if config.vsock.enabled and not heartbeat_waits:
        plan.append(Heartbeat(config.vsock.cid, config.vsock.port, config.vsock.timeout_s))
    return plan
