# SPDX-License-Identifier: Apache-2.0
"""The pf-proxy processes of this user: started with their first enclave, stopped with their last.

They are nobody's children for long: records name them by pid and start time, so that any supervisor can restart or
stop them and none ever signals a process that is not ours.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from enclavekit_core.processes import boot_id, identify, is_alive, kill_and_wait, signal_and_wait

from enclavekit_rbuilds.run import exit_reports
from enclavekit_rbuilds.run.model import LaunchError
from enclavekit_rbuilds.run.programs import need_program
from enclavekit_rbuilds.run.proxies import DRAIN_TIMEOUT_S, ProxyRule
from enclavekit_rbuilds.run.store import ProxyRecord, Store

START_TIMEOUT_S = 30.0  # it listens within a tenth of a second; a loaded machine takes longer
STOP_TIMEOUT_S = DRAIN_TIMEOUT_S + 3.0
KILL_TIMEOUT_S = 5.0
MAX_LOG_TAIL_BYTES = 4096


@dataclass
class ProxyPool:
    """What one supervisor does with the proxies that its enclave uses."""

    store: Store
    environment: Mapping[str, str] = field(default_factory=dict)
    """For the proxies, beside our own."""
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def acquire(self, rule: ProxyRule, cid: int) -> None:
        """Use the proxy of a rule, which is started if it does not run. Raises LaunchError, InputError."""
        with self.store.locked():
            record = self.store.read_proxy(rule.key)
            users: tuple[int, ...] = ()
            if record is not None and record.boot_id == boot_id():
                users = tuple(user for user in record.users if user != cid)
                if users and record.text != rule.text and not rule.follows_host:
                    owners = ", ".join(map(str, users))
                    raise LaunchError("start proxy", rule.text, f"its port has: {record.text} (enclave CID {owners})")
                if is_alive(record.process) and record.text == rule.text:
                    self.store.write_proxy(rule.key, msgspec.structs.replace(record, users=(*users, cid)))
                    return
                self._stop(record)
            self._start(rule.key, self._argv(rule), rule.text, (*users, cid))

    def restart_if_dead(self, key: str, cid: int) -> None:
        """Start a proxy again that has ended although `cid` uses it. Raises LaunchError."""
        with self.store.locked():
            record = self.store.read_proxy(key)
            if record is not None and cid in record.users and not is_alive(record.process):
                self._start(key, record.argv, record.text, record.users)

    def release(self, key: str, cid: int) -> None:
        """Stop using a proxy; without users it ends."""
        with self.store.locked():
            self._release(key, {cid})

    def release_dead(self, live: set[int]) -> None:
        """End the use of all proxies by enclaves that are not in `live`; call it under the store's lock."""
        for key in self.store.proxy_keys():
            record = self.store.read_proxy(key)
            self._release(key, set(record.users) - live if record is not None else set())

    def _release(self, key: str, gone: set[int]) -> None:
        record = self.store.read_proxy(key)
        if record is None:
            self.store.remove_proxy(key)
            return
        users = tuple(user for user in record.users if user not in gone)
        if users and record.boot_id == boot_id():
            self.store.write_proxy(key, msgspec.structs.replace(record, users=users))
            return
        if record.boot_id == boot_id():
            self._stop(record)
        self.store.remove_proxy(key)

    def _argv(self, rule: ProxyRule) -> tuple[str, ...]:
        listed = ("--allow-cids-from", self.store.path(f"proxy-{rule.key}.cids")) if rule.listed else ()
        if not rule.is_network:
            return (sys.executable, "-P", "-m", exit_reports.MODULE, "--directory", self.store.directory, *listed)
        program = need_program("pf-proxy", "it carries the enclave's network on the host; or --no-proxies")
        return (program, *rule.arguments, *listed, "--drain-timeout", str(DRAIN_TIMEOUT_S), "--print-address")

    def _start(self, key: str, argv: tuple[str, ...], text: str, users: tuple[int, ...]) -> None:
        """Start a process and wait until it listens; nothing is left of one that cannot."""
        log_path = self.store.path(f"proxy-{key}.log")
        self.store.write_users(key, users)
        environment = {**os.environ, "ENCLAVEKIT_LOG": "error", **self.environment}
        with open(log_path, "wb") as log:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        self._children.append(child)
        process = identify(child.pid)
        if process is not None:
            self.store.write_proxy(key, ProxyRecord(boot_id(), argv, text, process, users))
        assert child.stdout is not None
        ready, _, _ = select.select([child.stdout], [], [], START_TIMEOUT_S)
        line = child.stdout.readline() if ready else b""
        child.stdout.close()
        if line.strip():
            return
        child.kill()
        child.wait()
        cause = _last_line(log_path) if ready else f"it did not listen within {START_TIMEOUT_S:.0f} s"
        self.store.remove_proxy(key)
        raise LaunchError("start proxy", text, cause)

    def _stop(self, record: ProxyRecord) -> None:
        if not signal_and_wait(record.process, signal.SIGTERM, STOP_TIMEOUT_S):
            kill_and_wait(record.process, KILL_TIMEOUT_S)
        self.reap()

    def reap(self) -> None:
        """Take note of our children that have ended."""
        self._children = [child for child in self._children if child.poll() is None]


def _last_line(path: str) -> str:
    try:
        with open(path, "rb") as source:
            text = source.read(MAX_LOG_TAIL_BYTES).decode(errors="replace")
    except OSError:
        text = ""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("pf-proxy: ") if lines else "it ended without a word"
