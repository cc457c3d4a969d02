# SPDX-License-Identifier: Apache-2.0
"""PID 1's own messages: on the console at once, in /log/enclave-init.log as soon as that can be written."""

from __future__ import annotations

from enclavekit_enclave_init.logs.hub import LogHub
from enclavekit_enclave_init.logs.output import MAX_LINE_BYTES
from enclavekit_enclave_init.logs.records import INIT_NAME

NAME = INIT_NAME


class Journal:
    """Callable as the log function of everything else."""

    def __init__(self, hub: LogHub) -> None:
        self.hub = hub

    def __call__(self, text: str) -> None:
        self.hub.say(text[:MAX_LINE_BYTES])
