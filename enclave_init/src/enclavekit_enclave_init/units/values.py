# SPDX-License-Identifier: Apache-2.0
"""What the values in unit files may be. Pure; every function raises ValueError with the rule that was broken."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import dataclass

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


def normalize_name(text: str) -> str:
    """Return a unit's name without `.service`. Raises ValueError if it cannot be one."""
    name = text.removesuffix(".service")
    if not _NAME.fullmatch(name):
        raise ValueError(f"{text!r} is not a unit name (letters, digits and _ . @ -, at most 64)")
    if name in RESERVED_NAMES:
        raise ValueError(f"the name {name!r} is taken by PID 1 itself")
    return name


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


def parse_positive_count(value: object) -> int:
    if (number := parse_count(value)) == 0:
        raise ValueError("it must be at least 1")
    return number


def parse_paths(value: object) -> tuple[str, ...]:
    return tuple(parse_path(item) for item in parse_strings(value))


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
