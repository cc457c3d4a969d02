# SPDX-License-Identifier: Apache-2.0
"""Routes and rules around a running proxy: there before it serves, gone after it.

What a killed proxy left is replaced at the next start. Two proxies of one network namespace cannot have rules of one
name: a socket in the abstract namespace, which is the network namespace's, says who has them and ends with them.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator

from enclavekit_core.errors import EnclavekitError
from enclavekit_core.logs import get_logger

from enclavekit_pf_proxy.network.routing import remove_default_routes, set_default_routes, set_up_loopback
from enclavekit_pf_proxy.plan import NetworkPlan, Plan
from enclavekit_pf_proxy.rules import kernel
from enclavekit_pf_proxy.rules.divert import Backend, RuleSet


class RuleLock:
    """The right to the rules of one name in this network namespace."""

    def __init__(self, name: str) -> None:
        """Raises RulesError if a running proxy has it."""
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(f"\0enclavekit-pf-proxy-rules:{name}")
        except OSError as exc:
            self._socket.close()
            if exc.errno != errno.EADDRINUSE:
                raise
            raise kernel.RulesError("change", name, "a running pf-proxy has rules of this name") from exc

    def release(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def around_rules(network: NetworkPlan | None) -> Iterator[None]:
    """Set up what `network` asks for; whoever enters puts the rules in. Raises TransportError.

    The routes come last: before the rules are in, a program is to be refused.
    """
    if network is not None:
        set_up_loopback()  # a routing table of TPROXY leads there
    yield
    if network is not None and network.default_route:
        set_default_routes(network.default_route, network.versions)


class Surroundings:
    """Those of one supervisor, from one plan to the next."""

    def __init__(self) -> None:
        self._rules: tuple[RuleSet, Backend] | None = None
        self._lock: RuleLock | None = None
        self._route = ""
        self._log = get_logger("pf-proxy")

    def establish(self, plan: Plan) -> None:
        """Have what `plan` wants, and no more of what an earlier one wanted. Raises EnclavekitError."""
        network = plan.network if plan.applies_rules else None
        with around_rules(network):
            self._apply(plan)
        wanted = network.default_route if network is not None else ""
        if self._route not in ("", wanted):
            self._try("remove default route", lambda: remove_default_routes(self._route))
        self._route = wanted

    def _apply(self, plan: Plan) -> None:
        if plan.rules is None or not plan.applies_rules:
            self._remove_rules()
            return
        if self._lock is None or self._lock.name != plan.rules.name:
            lock = RuleLock(plan.rules.name)
            self._remove_rules()
            self._lock = lock
        backend = kernel.choose_backend(plan.rules_backend)
        kernel.apply(plan.rules, backend)
        self._rules = (plan.rules, backend)
        self._log.info("rules applied", rules=plan.rules.name, backend=backend.value, diverts=len(plan.rules.diverts))

    def remove(self) -> None:
        """Take everything out that `establish` put in. What cannot be is logged."""
        self._remove_rules()
        if self._route:
            self._try("remove default route", lambda: remove_default_routes(self._route))
            self._route = ""

    def leave(self) -> None:
        """Of a process that was forked off: nothing here is its own."""
        if self._lock is not None:
            self._lock.release()

    def _remove_rules(self) -> None:
        if self._rules is not None:
            rules, backend = self._rules
            self._try("remove rules", lambda: kernel.remove(rules.name, backend))
            self._rules = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _try(self, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        except EnclavekitError as exc:
            self._log.error(f"cannot {what}", cause=str(exc))
