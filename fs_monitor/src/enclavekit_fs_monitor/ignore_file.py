# SPDX-License-Identifier: Apache-2.0
"""The ignore file as it is now, and a sign when it changes."""

from __future__ import annotations

import os

from enclavekit_core.errors import ConfigError, describe_cause

from enclavekit_fs_monitor import inotify_events as kernel
from enclavekit_fs_monitor.ignore_rules import MAX_FILE_BYTES
from enclavekit_fs_monitor.inotify import Inotify

# not IN_MODIFY: whoever writes it anew begins by emptying it
COMPLETE = (
    kernel.IN_CLOSE_WRITE
    | kernel.IN_CREATE
    | kernel.IN_DELETE
    | kernel.IN_MOVED_FROM
    | kernel.IN_MOVED_TO
    | kernel.IN_Q_OVERFLOW
)


class IgnoreFile:
    """`fd` is readable after something happened in the file's directory; then `has_changed` tells."""

    def __init__(self, path: str) -> None:
        """Raises ConfigError if it is there and cannot be read, DeviceError without inotify."""
        self.path = os.path.abspath(path)
        self._name = os.fsencode(os.path.basename(self.path))
        self._inotify = Inotify()
        self.fd = self._inotify.fd
        self._watch()
        self.text = self._read()
        """Its content; nothing where there is no such file."""

    def has_changed(self) -> bool:
        """Read what happened, and the file again; return whether `text` is another now. Raises ConfigError."""
        events = self._inotify.read()
        if any(event.mask & (kernel.SELF | kernel.IN_IGNORED) for event in events):
            self._watch()
        # of everything else in its directory our own log may be a part
        elif not any(event.mask & COMPLETE and event.name in (self._name, b"") for event in events):
            return False
        before, self.text = self.text, self._read()
        return self.text != before

    def close(self) -> None:
        self._inotify.close()

    def _watch(self) -> None:
        try:
            handle = os.open(os.path.dirname(self.path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return  # no directory, no file; it is looked for again when we start
        try:
            self._inotify.add(handle, kernel.WATCH_DIRECTORY)
        except OSError as exc:
            raise ConfigError(self.path, "", f"it cannot be watched: {describe_cause(exc)}") from exc
        finally:
            os.close(handle)

    def _read(self) -> bytes:
        try:
            with open(self.path, "rb") as source:
                return source.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return b""
        except OSError as exc:
            raise ConfigError(self.path, "", describe_cause(exc)) from exc
