# SPDX-License-Identifier: Apache-2.0
"""What the values in unit files may be. Pure; every function raises ValueError with the rule that was broken."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

INFINITY = -1  # RLIM_INFINITY
MAX_BYTES = 1 << 62
MAX_SECONDS = 86400.0 * 365
MAX_ARGUMENTS = 4096
MAX_GROUPS = 1024  # far above any image; the kernel's NGROUPS_MAX is 65536
RESERVED_NAMES = frozenset({"enclave-init"})  # the log of PID 1 itself

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}")


@dataclass(frozen=True, slots=True)
class BindPath:
    """One bind mount made before a unit starts."""

    source: str
    """Absolute path in the framework's root."""
    destination: str
    """Absolute path as the unit sees it, that is, inside its RootDirectory."""
    optional: bool = False
    """A missing source is then no error."""


@dataclass(frozen=True, slots=True)
class EnvironmentFile:
    """A file of `NAME=value` lines, read when a unit starts."""

    path: str
    """Absolute, in the framework's root."""
    optional: bool = False
    """A missing file is then no error."""


@dataclass(frozen=True, slots=True)
class Command:
    """A command besides ExecStart."""

    argv: tuple[str, ...]
    ignores_failure: bool = False


def normalize_name(text: str) -> str:
    """Return a unit's name without `.service`. Raises ValueError if it cannot be one."""
    name = text.removesuffix(".service")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{text!r} is not a unit name (letters, digits and _ . @ -, at most 64)")
    if name in RESERVED_NAMES:
        raise ValueError(f"the name {name!r} is taken by PID 1 itself")
    return name


def split_command(text: str) -> tuple[str, ...]:
    """Split a command line into arguments.

    Blanks and newlines separate; "..." and '...' group, also to an empty argument; a backslash outside '...' takes
    the next character as it is. Nothing else is special: no variables, no globs, no shell.

    Raises: ValueError for an unterminated quote or a trailing backslash.
    Source: the Rust enclave-init, less its losses (empty arguments vanished, open quotes were accepted).
    """
    arguments: list[str] = []
    current: list[str] = []
    quote, started, escaped = "", False, False
    for char in text:
        if escaped:
            current.append(char)
            escaped = False
        elif char == "\\" and quote != "'":
            escaped = started = True
        elif quote:
            if char == quote:
                quote = ""
            else:
                current.append(char)
        elif char in "\"'":
            quote, started = char, True
        elif char in " \t\r\n":
            if started:
                arguments.append("".join(current))
            current, started = [], False
        else:
            current.append(char)
            started = True
    if quote or escaped:
        raise ValueError("a quote is not closed" if quote else "it ends with a backslash")
    if started:
        arguments.append("".join(current))
    return tuple(arguments)


def parse_signal(value: object) -> int:
    """Return the number of a signal given as 15, "15", "TERM", "SIGTERM" or "SIGRTMIN+3". Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("it must be a signal's name or number")
    name = str(value).upper()
    if name.isascii() and name.isdigit():
        number = int(name)
    else:
        base, plus, offset = name.removeprefix("SIG").partition("+")
        if plus and not (base == "RTMIN" and offset.isascii() and offset.isdigit()):
            raise ValueError(f"there is no signal {value!r}")
        try:
            number = int(signal.Signals[f"SIG{base}"]) + (int(offset) if plus else 0)
        except KeyError:
            raise ValueError(f"there is no signal {value!r}") from None
    if not 1 <= number <= int(signal.SIGRTMAX):
        raise ValueError(f"there is no signal {value!r}")
    return number


def parse_text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("it must be a string")
    return value


def parse_path(value: object) -> str:
    path = parse_text(value)
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError("it must be an absolute path without ..")
    return path


def parse_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")
    return value


def parse_seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_SECONDS:
        raise ValueError(f"it must be a number of seconds from 0 to {MAX_SECONDS:.0f}")
    return float(value)


def parse_count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 10000:
        raise ValueError("it must be a whole number from 0 to 10000")
    return value


def parse_strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_ARGUMENTS:
        raise ValueError("it must be a list of strings")
    return tuple(parse_text(item) for item in value)


def parse_names(value: object) -> tuple[str, ...]:
    return tuple(normalize_name(item) for item in parse_strings(value))


def parse_command(value: object) -> tuple[str, ...]:
    argv = split_command(parse_text(value)) if isinstance(value, str) else parse_strings(value)
    if not argv or not argv[0]:
        raise ValueError("it names no program")
    return argv


def parse_environment(value: object) -> tuple[tuple[str, str], ...]:
    pairs = []
    for item in parse_strings(value):
        key, equals, text = item.partition("=")
        if not key or not equals:
            raise ValueError(f"{item!r} is not NAME=value")
        pairs.append((key, text))
    return tuple(pairs)


def parse_environment_files(value: object) -> tuple[EnvironmentFile, ...]:
    items = (value,) if isinstance(value, str) else parse_strings(value)
    return tuple(EnvironmentFile(parse_path(item.removeprefix("-")), item.startswith("-")) for item in items)


def parse_environment_lines(text: str) -> tuple[tuple[str, str], ...]:
    """Return the pairs of an environment file: NAME=value, the value as it stands; blank and # lines are skipped.

    Raises: ValueError with the number of the line that is none of these.
    """
    pairs = []
    for number, line in enumerate(text.split("\n"), 1):
        name, equals, value = line.partition("=")
        if not line.strip() or line.startswith("#"):
            continue
        if not equals or not name or name != name.strip() or "\0" in line:
            raise ValueError(f"line {number} is not NAME=value")
        pairs.append((name, value))
    return tuple(pairs)


def parse_account(value: object) -> str:
    """A user or group: a name, or a number as string or integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    name = parse_text(value)
    if not name or ":" in name or name.startswith("-") or (name.isdigit() and int(name) >= 0xFFFFFFFF):
        raise ValueError(f"{name!r} is neither a name nor a number below 4294967295")
    return name


def parse_accounts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_GROUPS:
        raise ValueError(f"it must be a list of at most {MAX_GROUPS} names or numbers")
    return tuple(parse_account(item) for item in value)


def accept_one_of(*words: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in words:
            raise ValueError(f"it must be one of {', '.join(words)}")
        return str(value)

    return parse


def parse_bind_paths(value: object) -> tuple[BindPath, ...]:
    binds = []
    for item in parse_strings(value):
        source, colon, destination = item.removeprefix("-").partition(":")
        binds.append(BindPath(parse_path(source), parse_path(destination if colon else source), item.startswith("-")))
    return tuple(binds)


def parse_command_list(value: object) -> tuple[Command, ...]:
    """A command line, or a list of such; `-` before one: its failure does not matter."""
    lines = (value,) if isinstance(value, str) else parse_strings(value)
    commands = []
    for line in lines:
        text = parse_text(line).strip()
        commands.append(Command(parse_command(text.removeprefix("-")), text.startswith("-")))
    return tuple(commands)


def parse_one_command(value: object) -> Command:
    return Command(parse_command(value))


def parse_positive_count(value: object) -> int:
    if (number := parse_count(value)) == 0:
        raise ValueError("it must be at least 1")
    return number


def parse_tasks(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 22:  # the kernel's PID_MAX_LIMIT
        raise ValueError("it must be a whole number from 1 to 4194304")
    return value


def parse_size(value: object) -> int:
    """Return bytes: a number, or one with K, M, G or T (powers of 1024)."""
    if isinstance(value, str):
        digits, unit = (value[:-1], value[-1:]) if value[-1:] in "KMGT" else (value, "")
        if digits.isascii() and digits.isdigit() and len(digits) < 20:
            value = int(digits) << (10 * (" KMGT".index(unit) if unit else 0))
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_BYTES:
        raise ValueError("it must be a number of bytes, or one with K, M, G or T")
    return value


def parse_percent(value: object) -> float:
    """Return how many processors: "50%" is 0.5."""
    text = value.removesuffix("%") if isinstance(value, str) and value.endswith("%") else ""
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text) > 0):
        raise ValueError('it must be a percentage of one processor, such as "50%" or "200%"')
    return int(text) / 100


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


def parse_paths(value: object) -> tuple[str, ...]:
    return tuple(parse_path(item) for item in parse_strings(value))


def parse_score(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -1000 <= value <= 1000:
        raise ValueError("it must be a whole number from -1000 to 1000")
    return value


def parse_success(value: object) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return exit statuses and signals: a list of numbers and of signals' names."""
    if not isinstance(value, list):
        raise ValueError("it must be a list of numbers and of signals' names")
    statuses, signals = [], []
    for item in value:
        if isinstance(item, int) and not isinstance(item, bool):
            if not 0 <= item <= 255:
                raise ValueError(f"{item} is no exit status")
            statuses.append(item)
        else:
            signals.append(parse_signal(item))
    return tuple(statuses), tuple(signals)


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
