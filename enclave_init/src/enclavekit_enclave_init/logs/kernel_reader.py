# SPDX-License-Identifier: Apache-2.0
"""Reads the kernel's log into ours. Only where the kernel is the enclave's own: the host's is not ours to tell."""

from __future__ import annotations

import errno
import os

from enclavekit_enclave_init.logs.hub import LogHub
from enclavekit_enclave_init.logs.kernel_log import DEVICE, MAX_RECORD_BYTES, parse_kernel_record
from enclavekit_enclave_init.logs.records import KERNEL, KERNEL_NAME
from enclavekit_enclave_init.runtime.reactor import READ, Reactor

MAX_RECORDS_PER_TURN = 256  # then others get their turn


class KernelReader:
    def __init__(self, reactor: Reactor, hub: LogHub, path: str = DEVICE) -> None:
        """Raises OSError if there is no kernel log."""
        self._reactor, self._hub = reactor, hub
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        reactor.watch(self._fd, READ, self._read)

    def _read(self) -> None:
        lines: list[bytes] = []
        for _ in range(MAX_RECORDS_PER_TURN):
            try:
                record = os.read(self._fd, MAX_RECORD_BYTES)
            except BlockingIOError:
                break
            except OSError as exc:
                if exc.errno != errno.EPIPE:
                    self.close()
                    break
                lines.append(b"records lost: the kernel has overwritten them")
                continue
            if not record:
                self.close()
                break
            lines += parse_kernel_record(record)
        # on the console it is already, by the kernel itself
        self._hub.write(KERNEL_NAME, KERNEL, lines, on_console=False)

    def close(self) -> None:
        if self._fd >= 0:
            self._reactor.close_fd(self._fd)
            self._fd = -1
