# SPDX-License-Identifier: Apache-2.0
"""The sockets that a supervisor holds open for its workers: a reload opens what is new and closes what is not wanted.

No listening socket that stays is closed for a moment, so nobody who connects meanwhile is turned away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from enclavekit_core.address import Address, TcpAddress, UnixAddress
from enclavekit_core.errors import EnclavekitError

from enclavekit_pf_proxy.listeners import AnyListener, describe_listener, fit_listener, open_listener, takes_datagrams
from enclavekit_pf_proxy.plan import Plan
from enclavekit_pf_proxy.service import Service

if TYPE_CHECKING:
    from enclavekit_pf_proxy.resolver.service import DnsSockets

BACKLOG = 1024  # for a whole range of clients that connect at once; the kernel's somaxconn may be less

Key = tuple[str, int]
"""Address as asked for (port 0 numbered by its place), worker; sockets that workers share have worker 0."""


class HeldSockets:
    """Those of all services, and the resolver's."""

    def __init__(self) -> None:
        self._listeners: dict[Key, AnyListener] = {}
        self.dns: DnsSockets | None = None
        self._dns_listen: TcpAddress | None = None

    def open_missing(self, plan: Plan) -> dict[Key, AnyListener]:
        """Open what `plan` needs and is not there, and fit all to it; `adopt` takes them in.

        Raises: EnclavekitError; then what was open before stays, and nothing else.
        """
        opened: dict[Key, AnyListener] = {}
        try:
            for key, service, address in _keys_of(plan):
                if key not in self._listeners:
                    # a second worker's socket is bound to the port that the kernel chose for the first
                    first = opened.get((key[0], 0)) or self._listeners.get((key[0], 0))
                    where = first.bound_address if first is not None else address
                    if first is None and isinstance(address, TcpAddress):
                        # with SO_REUSEPORT alone, another supervisor would share it unseen
                        open_listener(service, address).close()
                    opened[key] = open_listener(service, where, backlog=BACKLOG, reuse_port=True)
            for key, service, _ in _keys_of(plan):
                fit_listener(opened.get(key) or self._listeners[key], service, plan.mark)
        except EnclavekitError:
            for listener in opened.values():
                listener.close()
            raise
        return opened

    def adopt(self, plan: Plan, opened: dict[Key, AnyListener]) -> list[str]:
        """Hold what was opened for `plan`, and close what it does not need; return the addresses that are new."""
        # sockets of an address that stays are kept even if workers become fewer: clients may wait in their queues
        wanted = {key[0] for key, _, _ in _keys_of(plan)}
        for key in [key for key in self._listeners if key[0] not in wanted]:
            self._listeners.pop(key).close()
        self._listeners.update(opened)
        return [describe_listener(listener) for key, listener in opened.items() if key[1] == 0]

    def open_dns(self, plan: Plan) -> None:
        """Have the resolver's sockets as `plan` wants them. Raises TransportError."""
        wanted = plan.dns.listen if plan.dns is not None else None
        if wanted == self._dns_listen:
            return
        fresh = None
        if wanted is not None:
            from enclavekit_pf_proxy.resolver.service import open_sockets

            fresh = open_sockets(wanted)
        if self.dns is not None:
            self.dns.close()
        self.dns, self._dns_listen = fresh, wanted

    def keep_mine(self, plan: Plan, index: int) -> list[list[tuple[int, AnyListener]]]:
        """In worker `index`: close what it does not serve; return for each service its ports' places and sockets."""
        mine: set[Key] = set()
        found = []
        for number, service in enumerate(plan.services):
            offsets = {_key_of(number, service, offset, 0)[0]: offset for offset in range(service.listen.ports)}
            keys = [key for key in self._listeners if key[0] in offsets and _serves(plan, index, service, key)]
            mine.update(keys)
            found.append([(offsets[key[0]], self._listeners[key]) for key in keys])
        for key, listener in self._listeners.items():
            listener.leave_file()
            if key not in mine:
                listener.close()
        return found

    def close(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        if self.dns is not None:
            self.dns.close()


def _serves(plan: Plan, index: int, service: Service, key: Key) -> bool:
    """Say whether worker `index` accepts from the socket: all do from one that is shared."""
    if takes_datagrams(service):
        return index == 0  # sessions of one socket are one process's
    return not isinstance(service.listen.first, TcpAddress) or key[1] % plan.workers == index


def _keys_of(plan: Plan) -> list[tuple[Key, Service, Address]]:
    found: dict[Key, tuple[Service, Address]] = {}
    for worker in range(plan.workers):
        for number, service in enumerate(plan.services):
            for offset in range(service.listen.ports):
                found[_key_of(number, service, offset, worker)] = (service, service.listen.at(offset))
    return [(key, *value) for key, value in found.items()]


def _key_of(number: int, service: Service, offset: int, worker: int) -> Key:
    address = service.listen.at(offset)
    text = f"{'udp ' if takes_datagrams(service) else ''}{address}"
    if isinstance(address, UnixAddress):
        return text, 0
    if not address.port:
        text = f"{text} of {service.name or number}"
    # only TCP has SO_REUSEPORT; other sockets are shared
    return text, worker if isinstance(address, TcpAddress) and not takes_datagrams(service) else 0
