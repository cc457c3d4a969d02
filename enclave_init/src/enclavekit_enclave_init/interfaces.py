# SPDX-License-Identifier: Apache-2.0
"""What the outside reaches of a running PID 1: the control socket, log streams to the parent; and the kernel's log.

None of it is needed for the app to run: what cannot be opened is named, and the enclave goes on without.
"""

from __future__ import annotations

import time
from types import TracebackType

from enclavekit_core.errors import EnclavekitError, describe_cause

from enclavekit_enclave_init.config import InitConfig
from enclavekit_enclave_init.initctl.boot_times import BootTimes
from enclavekit_enclave_init.initctl.server import ControlServer
from enclavekit_enclave_init.initctl.service import ControlService
from enclavekit_enclave_init.logs.journal import Journal
from enclavekit_enclave_init.logs.kernel_reader import KernelReader
from enclavekit_enclave_init.logs.parent_streams import ParentStreams
from enclavekit_enclave_init.runtime.control import Control
from enclavekit_enclave_init.runtime.event_loop import EventLoop


class Interfaces:
    """Open while the loop runs."""

    def __init__(
        self,
        loop: EventLoop,
        config: InitConfig,
        journal: Journal,
        times: BootTimes,
        *,
        with_parent: bool,
        own_kernel: bool,
    ) -> None:
        """`with_parent`: there is one, reached by vsock. `own_kernel`: its log is the enclave's."""
        self._loop, self._config, self._journal, self._times = loop, config, journal, times
        self._with_parent, self._own_kernel = with_parent, own_kernel
        hub = journal.hub
        operations = Control(loop, config.service_dir)
        operations.observe(lambda unit, state: times.note_state(unit, state, time.monotonic(), time.process_time()))
        self._streams = ParentStreams(loop.reactor, hub, config.logs, config.vsock.cid)
        directories = (config.log_dir, config.service_dir)
        service = ControlService(loop, operations, hub, times, self._streams, directories)
        self._server = ControlServer(loop.reactor, service, config.control, journal)
        self._kernel: KernelReader | None = None

    def __enter__(self) -> Interfaces:
        self._times.finish_boot(time.monotonic())
        if self._config.control.socket:
            try:
                self._server.listen()
            except EnclavekitError as exc:
                self._journal(f"{exc} (initctl cannot be used)")
        if self._with_parent:
            try:
                self._streams.listen()
            except EnclavekitError as exc:
                self._journal(f"{exc} (the parent cannot follow the logs)")
        if self._own_kernel and self._config.logs.kernel:
            try:
                self._kernel = KernelReader(self._loop.reactor, self._journal.hub)
            except OSError as exc:
                self._journal(f"cannot read the kernel's log: {describe_cause(exc)}")
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._server.close()
        self._streams.close()
        if self._kernel is not None:
            self._kernel.close()
