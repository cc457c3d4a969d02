# SPDX-License-Identifier: Apache-2.0
"""The operations of a boot, as values that say what they are; `plan` orders them, `execute` runs them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from enclavekit_core.split_files import FileCapability, SplitFile

MS_NOSUID, MS_NODEV, MS_NOEXEC = 2, 4, 8  # mount(2)


@dataclass(frozen=True, slots=True)
class Mount:
    source: str
    target: str
    fstype: str
    flags: int
    data: str = ""
    required: bool = True

    def __str__(self) -> str:
        return f"mount {self.fstype} on {self.target}"


@dataclass(frozen=True, slots=True)
class MakeDirectory:
    path: str
    mode: int
    required: bool = True

    def __str__(self) -> str:
        return f"make directory {self.path}"


@dataclass(frozen=True, slots=True)
class MakeLink:
    path: str
    target: str
    required: bool = False

    def __str__(self) -> str:
        return f"link {self.path} to {self.target}"


@dataclass(frozen=True, slots=True)
class OpenConsole:
    path: str = "/dev/console"
    required: bool = False  # an enclave outside debug mode has no console anybody could read

    def __str__(self) -> str:
        return f"open {self.path}"


@dataclass(frozen=True, slots=True)
class SetHostname:
    name: str
    required: bool = False

    def __str__(self) -> str:
        return f"set the host name to {self.name}"


@dataclass(frozen=True, slots=True)
class BringLoopbackUp:
    required: bool = True  # the bus and the proxies listen there

    def __str__(self) -> str:
        return "bring the loopback interface up"


@dataclass(frozen=True, slots=True)
class LoadModule:
    path: str
    optional: bool = False
    """A missing file is no error: the driver may be built in."""
    unlink: bool = False
    """Free its memory afterwards."""
    required: bool = True

    def __str__(self) -> str:
        return f"load kernel module {self.path}"


@dataclass(frozen=True, slots=True)
class JoinFile:
    file: SplitFile
    required: bool = True  # an app with half a file is another app than the measured one

    def __str__(self) -> str:
        return f"join {self.file.names[0]} from {len(self.file.parts)} parts"


@dataclass(frozen=True, slots=True)
class RemoveDirectories:
    """Empty directories, in this order."""

    paths: tuple[str, ...]
    required: bool = True

    def __str__(self) -> str:
        return f"remove {self.paths[-1]}"


@dataclass(frozen=True, slots=True)
class SetCapability:
    item: FileCapability
    required: bool = False  # a kernel may have no extended attributes; the app then has fewer rights, not more

    def __str__(self) -> str:
        return f"give {self.item.name} its file capabilities"


@dataclass(frozen=True, slots=True)
class StartNsmRelay:
    port: int
    required: bool = True  # who announces an NSM and has none is not to be waited for

    def __str__(self) -> str:
        return f"start the NSM relay to vsock port {self.port}"


@dataclass(frozen=True, slots=True)
class SeedEntropy:
    required: bool = True  # a key made of guessable bytes is worse than no enclave

    def __str__(self) -> str:
        return "seed the kernel's random generator"


@dataclass(frozen=True, slots=True)
class CheckClock:
    required: bool = True  # certificates and documents are judged by it

    def __str__(self) -> str:
        return "check the clock"


@dataclass(frozen=True, slots=True)
class WriteFile:
    """Write a file that the image has not."""

    path: str
    text: str
    required: bool = False

    def __str__(self) -> str:
        return f"write {self.path}"


@dataclass(frozen=True, slots=True)
class SetUpCgroups:
    """Mount what the kernel has of memory, pids and cpu control: version 2 if that has all three, else version 1."""

    directory: str = "/sys/fs/cgroup"
    required: bool = False  # a unit that needs them says so, and then does not start

    def __str__(self) -> str:
        return f"set up cgroups in {self.directory}"


@dataclass(frozen=True, slots=True)
class Heartbeat:
    cid: int
    port: int
    timeout_s: float
    required: bool = True

    def __str__(self) -> str:
        return f"send the heartbeat to vsock {self.cid}:{self.port}"


Operation = (
    Mount | MakeDirectory | MakeLink | OpenConsole | SetHostname | BringLoopbackUp | LoadModule | Heartbeat
    | JoinFile | RemoveDirectories | SetCapability | StartNsmRelay | SetUpCgroups
    | SeedEntropy | CheckClock | WriteFile
)  # fmt: skip
