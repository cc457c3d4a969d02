# SPDX-License-Identifier: Apache-2.0
"""What an enclave's kernel has to have, as a table: each option with what its absence costs. Pure.

nitro      without it, an image cannot boot on Nitro, or cannot prove there what it is
service    without it, one of our services or a part of what apps expect does not work
hardening  without it everything works, and somebody who has got in has it easier
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from enclavekit_rbuilds.kernel.config import Config

Grade = Literal["nitro", "service", "hardening"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One option."""

    grade: Grade
    option: str
    cost: str
    """What it means if the option is not as wanted, to stand after `no OPTION: `."""
    wanted: str = "y"
    """`y`, or `n` for what must not be there."""
    module: str = ""
    """The kernel module that does as well, if the image packs and loads it."""
    arch: str = ""
    """The only architecture that it concerns, as the kernel calls it."""
    instead: tuple[str, ...] = ()
    """Options any of which does as well."""


@dataclass(frozen=True, slots=True)
class Lack:
    """A rule that a configuration does not meet."""

    rule: Rule
    value: str
    """What the configuration has."""

    @property
    def text(self) -> str:
        """In a line, for people."""
        if self.rule.wanted == "n":
            return f"{self.rule.option}={self.value}: {self.rule.cost}"
        found = " (a module)" if self.value == "m" else ""
        return f"no {self.rule.option}{found}: {self.rule.cost}"


def _rules(grade: Grade, *rows: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(grade, f"CONFIG_{name}", cost) for name, cost in rows)


RULES: tuple[Rule, ...] = (
    Rule(
        "nitro",
        "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES",
        "on Nitro the enclave finds no vsock and no NSM: it cannot boot there",
    ),
    Rule("nitro", "CONFIG_VIRTIO_MMIO", "on Nitro the enclave finds no vsock and no NSM: it cannot boot there"),
    Rule("nitro", "CONFIG_VSOCKETS", "no heartbeat reaches the parent: nitro-cli ends the enclave (E36)"),
    Rule("nitro", "CONFIG_VIRTIO_VSOCKETS", "no heartbeat reaches the parent: nitro-cli ends the enclave (E36)"),
    Rule(
        "nitro",
        "CONFIG_NSM",
        "there is no /dev/nsm, so nothing can be attested (Linux has the driver since 6.8; before, AWS's nsm.ko)",
        module="nsm",
    ),
    *_rules(
        "nitro",
        ("BLK_DEV_INITRD", "the kernel does not unpack the image's ramdisks: there is no /init"),
        ("BINFMT_ELF", "no program can be run"),
        ("PROC_FS", "there is no /proc: /init stops"),
        ("TMPFS", "there is no file system to write to"),
    ),
    Rule(
        "nitro",
        "CONFIG_DEVTMPFS",
        "there is no /dev: no console, no /dev/nsm, /init stops",
    ),
    Rule(
        "nitro",
        "CONFIG_RD_GZIP",
        "packed ramdisks are not unpacked: build with --compression none",
        instead=("CONFIG_RD_ZSTD",),
    ),
    *_rules(
        "service",
        ("RD_ZSTD", "zstd ramdisks are not unpacked: build with --compression gzip, 20 percent larger"),
        ("SERIAL_8250_CONSOLE", "there is no console, even in debug mode"),
        ("BINFMT_SCRIPT", "programs that start with #! do not run, our /init among them"),
        ("NET", "no sockets at all: no service runs"),
        ("UNIX", "no Unix sockets: initctl and the services cannot talk"),
        ("INET", "no TCP: no bus, no attestation server, no proxies"),
        ("EPOLL", "no service's event loop runs"),
        ("SIGNALFD", "PID 1 does not hear of children that end"),
        ("TIMERFD", "timers of libuv and apps do not work"),
        ("EVENTFD", "no service's event loop runs"),
        ("FUTEX", "no program with threads runs"),
        ("POSIX_TIMERS", "timers of apps do not work"),
        ("FILE_LOCKING", "flock fails: the bus and most data bases do not start"),
        ("MULTIUSER", "all runs as root: the app cannot have its own user"),
        ("SYSFS", "no /sys: apps do not see processors and cgroups"),
        ("SHMEM", "no shared memory for apps"),
        ("UNIX98_PTYS", "pipeline exec --tty has no terminal"),
        ("INOTIFY_USER", "fs-monitor cannot start, files are hashed on demand only"),
        ("CGROUPS", "units have no limits, and what they leave behind is not found"),
        ("MEMCG", "units have no memory limits"),
        ("CGROUP_PIDS", "units have no process limits"),
        ("NAMESPACES", "sandboxes of apps do not start"),
        ("USER_NS", "sandboxes of apps (browsers, bubblewrap) do not start as an ordinary user"),
        ("SECCOMP_FILTER", "apps that filter their own system calls do not start, or run unfiltered"),
        ("TUN", "pf-proxy has no tun device"),
        ("OVERLAY_FS", "there are no overlay mounts"),
    ),
    *(
        Rule("service", f"CONFIG_{name}", cost, instead=(f"CONFIG_{other}",))
        for name, other, cost in (
            ("NF_TABLES", "IP_NF_IPTABLES", "what apps send cannot be led to pf-proxy: there are no egress rules"),
            ("NFT_NAT", "IP_NF_NAT", "no NAT: transparent proxies do not get what they should lead"),
            (
                "NFT_REDIR",
                "NETFILTER_XT_TARGET_REDIRECT",
                "no REDIRECT: transparent proxies do not get what they should",
            ),
            ("NFT_TPROXY", "NETFILTER_XT_TARGET_TPROXY", "no TPROXY: there are no egress rules for UDP"),
        )
    ),
    *_rules(
        "service",
        ("CUSE", "no devices in user space: the emulator's /dev/nsm cannot be a character device"),
        ("BPF_SYSCALL", "no BPF: cgroup device rules and apps' tracing do not work"),
        ("VSOCKETS_LOOPBACK", "an app cannot reach vsock services of its own enclave (CID 1)"),
        ("HW_RANDOM", "no random numbers but the processor's"),
        ("IKCONFIG", "the kernel cannot say how it was built: what is said here is a file's word"),
    ),
    *_rules(
        "hardening",
        ("CPU_MITIGATIONS", "nothing is done about Spectre, Meltdown and their kind"),
        ("RANDOMIZE_BASE", "the kernel is at the same address in every boot"),
        ("STACKPROTECTOR_STRONG", "overflows on the kernel's stack are not noticed"),
        ("STRICT_KERNEL_RWX", "the kernel's code can be written to"),
        ("VMAP_STACK", "a kernel stack that overflows runs into other memory"),
        ("FORTIFY_SOURCE", "overflows of the kernel's buffers are not noticed"),
        ("HARDENED_USERCOPY", "copies to and from programs are not checked against the object's size"),
        ("INIT_ON_ALLOC_DEFAULT_ON", "memory comes with what its last owner left in it"),
        ("INIT_ON_FREE_DEFAULT_ON", "freed memory keeps what was in it"),
        ("SLAB_FREELIST_HARDENED", "the allocator trusts pointers that an overflow can reach"),
        ("SLAB_FREELIST_RANDOM", "objects lie in memory in an order that can be foretold"),
        ("RANDOMIZE_KSTACK_OFFSET_DEFAULT", "the kernel's stack is the same in every system call"),
        ("LIST_HARDENED", "broken lists are not noticed"),
        ("PANIC_ON_OOPS", "the kernel goes on after it has met a bug of its own"),
        ("SECCOMP", "system calls cannot be filtered"),
        ("SECURITY_LANDLOCK", "programs cannot fence themselves in"),
        ("SECURITY_YAMA", "a program may trace any other of its user"),
        ("SECURITY_DMESG_RESTRICT", "everybody reads the kernel's log"),
        ("BPF_JIT_ALWAYS_ON", "BPF is interpreted, a help for Spectre"),
        ("BPF_UNPRIV_DEFAULT_OFF", "everybody may load BPF programs"),
    ),
    Rule(
        "hardening",
        "CONFIG_MITIGATION_PAGE_TABLE_ISOLATION",
        "Meltdown, on processors that have it",
        arch="x86",
        instead=("CONFIG_PAGE_TABLE_ISOLATION",),
    ),
    Rule("hardening", "CONFIG_MITIGATION_RETPOLINE", "Spectre 2", arch="x86", instead=("CONFIG_RETPOLINE",)),
    Rule("hardening", "CONFIG_MODULES", "root can load code into the kernel", wanted="n"),
    Rule("hardening", "CONFIG_KEXEC", "root can replace the kernel that was measured", wanted="n"),
    Rule("hardening", "CONFIG_KEXEC_FILE", "root can replace the kernel that was measured", wanted="n"),
    Rule("hardening", "CONFIG_HIBERNATION", "root can replace the kernel that was measured", wanted="n"),
    Rule("hardening", "CONFIG_DEVMEM", "root reads and writes physical memory", wanted="n"),
    Rule("hardening", "CONFIG_PROC_KCORE", "root reads all memory, keys included", wanted="n"),
    Rule("hardening", "CONFIG_KPROBES", "root can change what the kernel does", wanted="n"),
    Rule("hardening", "CONFIG_DEBUG_FS", "root sees and changes the kernel's insides", wanted="n"),
    Rule("hardening", "CONFIG_X86_MSR", "root writes the processor's registers", wanted="n", arch="x86"),
    Rule(
        "hardening", "CONFIG_IA32_EMULATION", "32-bit system calls, a way in that nobody needs", wanted="n", arch="x86"
    ),
    Rule("hardening", "CONFIG_USERFAULTFD", "programs can stop the kernel mid-way, a help for exploits", wanted="n"),
    Rule("hardening", "CONFIG_IO_URING", "a large way into the kernel that our services do not use", wanted="n"),
    Rule("hardening", "CONFIG_MAGIC_SYSRQ", "keys on the console reach into the kernel", wanted="n"),
)


def find_lacks(config: Config, modules: frozenset[str] = frozenset()) -> list[Lack]:
    """Return what a configuration lacks, in the table's order, which has the gravest first.

    Args: modules: what the image loads, by the kernel's names.
    """
    return [
        Lack(rule, config.get(rule.option))
        for rule in RULES
        if not (rule.arch and config.arch and rule.arch != config.arch) and not _is_met(rule, config, modules)
    ]


def _is_met(rule: Rule, config: Config, modules: frozenset[str]) -> bool:
    if rule.wanted == "n":
        return config.get(rule.option) == "n"
    return (
        config.has(rule.option)
        or any(config.has(option) for option in rule.instead)
        or bool(rule.module and rule.module in modules)
    )


def is_nitro_capable(config: Config, modules: frozenset[str] = frozenset()) -> bool:
    """Whether a kernel with this configuration boots on Nitro and can attest there."""
    return not any(lack.rule.grade == "nitro" for lack in find_lacks(config, modules))
