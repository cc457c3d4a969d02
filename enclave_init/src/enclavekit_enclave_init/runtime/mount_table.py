# SPDX-License-Identifier: Apache-2.0
"""What is mounted, as /proc/self/mountinfo tells it."""

from __future__ import annotations

from enclavekit_core.errors import InputError, describe_cause


def parse_mountinfo(text: str) -> frozenset[str]:
    """Return the mount points in /proc/PID/mountinfo, with its octal escapes undone. Source: proc(5)."""
    return frozenset(_unescape(words[4]) for line in text.splitlines() if len(words := line.split(" ")) > 4)


def _unescape(field: str) -> str:
    head, *rest = field.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def read_mounted() -> frozenset[str]:
    """Return the mount points of this process; none if there is no /proc yet."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as source:
            return parse_mountinfo(source.read())
    except FileNotFoundError:
        return frozenset()
    except OSError as exc:
        raise InputError("read", "/proc/self/mountinfo", describe_cause(exc)) from exc
