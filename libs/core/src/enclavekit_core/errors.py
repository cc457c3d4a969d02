# SPDX-License-Identifier: Apache-2.0
"""The errors that cross part boundaries, each with its exit code.

A message reads `cannot <verb> <object>: <cause>`. Fields hold the values, so that a caller acts on them without
parsing text. Libraries raise; only `enclavekit_core.cli` prints and exits.
"""

from __future__ import annotations

import os


class EnclavekitError(Exception):
    """Base of all errors that users see as one line."""

    exit_code = 1


class ConfigError(EnclavekitError):
    """Configuration or command line that cannot be used (exit 2)."""

    exit_code = 2

    def __init__(self, source: str, key: str, reason: str) -> None:
        """`source` is a file or flag, `key` the offending key or empty, `reason` the cause without a full stop."""
        self.source, self.key, self.reason = source, key, reason
        where = f"{key}: " if key else ""
        super().__init__(f"cannot use {source}: {where}{reason}")


class InputError(EnclavekitError):
    """A file or value given by the user that cannot be used: missing, malformed, refused (exit 2)."""

    exit_code = 2

    def __init__(self, verb: str, what: str, reason: str) -> None:
        self.verb, self.what, self.reason = verb, what, reason
        super().__init__(f"cannot {verb} {what}: {reason}")


class TransportError(EnclavekitError):
    """A connection that could not be made, kept or listened for (exit 3)."""

    exit_code = 3

    def __init__(self, op: str, endpoint: object, cause: BaseException | str) -> None:
        """`op` is the verb ("connect to", "listen on"), `endpoint` what it was applied to."""
        self.op, self.endpoint = op, endpoint
        self.errno = cause.errno if isinstance(cause, OSError) else None
        super().__init__(f"cannot {op} {endpoint}: {describe_cause(cause)}")


class ProtocolError(EnclavekitError):
    """Base of the two kinds of protocol violation."""


class LocalProtocolError(ProtocolError):
    """We tried to send what the protocol forbids: our bug (exit 70, EX_SOFTWARE)."""

    exit_code = 70


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol forbids (exit 3)."""

    exit_code = 3


class DeviceError(EnclavekitError):
    """A device answered with an error (exit 4). `status` is the device's own word for it."""

    exit_code = 4

    def __init__(self, op: str, device: str, status: str) -> None:
        self.op, self.device, self.status = op, device, status
        super().__init__(f"cannot {op} {device}: {status}")


class CommandError(EnclavekitError):
    """A program that we ran failed (exit 5)."""

    exit_code = 5

    def __init__(self, what: str, argv: list[str], returncode: int, stderr_tail: str) -> None:
        """`what` completes "cannot ...", e.g. "build image app:1"; `stderr_tail` are its last lines."""
        self.argv, self.returncode, self.stderr_tail = argv, returncode, stderr_tail
        last = next((line.strip() for line in reversed(stderr_tail.splitlines()) if line.strip()), "no message")
        super().__init__(f"cannot {what}: {argv[0]} exited with {returncode}: {last}")


class VerificationError(EnclavekitError):
    """Evidence that does not prove what it should (exit 6). Never continue after it."""

    exit_code = 6

    def __init__(self, what: str, reason: str, expected: object = None, actual: object = None) -> None:
        """`what` was to be verified; `expected` and `actual` are for machines and may be None."""
        self.what, self.reason, self.expected, self.actual = what, reason, expected, actual
        super().__init__(f"cannot verify {what}: {reason}")


def describe_cause(cause: BaseException | str) -> str:
    """Return the cause in words: strerror in lower case for OSError, the text otherwise."""
    if hasattr(cause, "library") and isinstance(reason := getattr(cause, "reason", None), str):
        return f"TLS: {reason.lower().replace('_', ' ')}"  # ssl.SSLError, whose errno is not the system's
    if isinstance(cause, OSError) and cause.errno and cause.strerror is not None:
        return os.strerror(cause.errno).lower() if cause.errno > 0 else str(cause.strerror)
    if isinstance(cause, TimeoutError):
        return "timed out"
    return str(cause) or type(cause).__name__
