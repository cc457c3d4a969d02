# SPDX-License-Identifier: Apache-2.0
"""What a unit may use and may do, as its file says it: sizes, limits, shares, scores, capabilities. Pure; every
function raises ValueError with the rule that was broken."""

from __future__ import annotations

from enclavekit_core.amounts import parse_size

from enclavekit_enclave_init.units.values import parse_strings

INFINITY = -1  # RLIM_INFINITY


def parse_limit(value: object) -> tuple[int, int]:
    """Return soft and hard: a size, "infinity", or both as SOFT:HARD."""
    if isinstance(value, str) and ":" in value:
        soft, _, hard = value.partition(":")
        pair = _parse_one_limit(soft), _parse_one_limit(hard)
    else:
        pair = (_parse_one_limit(value),) * 2
    if pair[1] != INFINITY and not 0 <= pair[0] <= pair[1]:
        raise ValueError("the first must not be above the second")
    return pair


def _parse_one_limit(value: object) -> int:
    return INFINITY if value == "infinity" else parse_size(value)


def parse_score(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -1000 <= value <= 1000:
        raise ValueError("it must be a whole number from -1000 to 1000")
    return value


# capabilities(7), in the order of their numbers
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip


def parse_capabilities(value: object) -> tuple[int, ...]:
    """Return the numbers of those in a list of names, `CAP_` before them or not."""
    numbers = []
    for item in parse_strings(value):
        name = item.upper().removeprefix("CAP_")
        if name not in CAPABILITIES:
            raise ValueError(f"there is no capability {item!r}")
        numbers.append(CAPABILITIES.index(name))
    return tuple(sorted(set(numbers)))
