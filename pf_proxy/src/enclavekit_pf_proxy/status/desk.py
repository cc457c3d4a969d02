# SPDX-License-Identifier: Apache-2.0
"""The sockets where one process answers for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from enclavekit_core.address import Address
from enclavekit_core.errors import EnclavekitError, InputError
from enclavekit_core.logs import get_logger

from enclavekit_pf_proxy.status.http_server import Ask, StatusServer
from enclavekit_pf_proxy.status.places import default_socket

if TYPE_CHECKING:
    from enclavekit_pf_proxy.loop import Loop
    from enclavekit_pf_proxy.plan import StatusPlan


class Desk:
    """Opens what a plan asks for; what stays from one plan to the next is not closed in between."""

    def __init__(self, loop: Loop, ask: Ask) -> None:
        self._loop, self._ask = loop, ask
        self._servers: dict[Address, StatusServer] = {}
        self._log = get_logger("pf-proxy")

    def open(self, plan: StatusPlan) -> None:
        """Have exactly what `plan` asks for open. Raises TransportError; then all is as before.

        The default socket is a convenience: where it cannot be had the proxy runs without.
        """
        wanted: list[Address] = [address for address in (plan.socket, plan.metrics_listen) if address is not None]
        by_default: Address | None = None
        if plan.by_default:
            try:
                by_default = default_socket()
                wanted.append(by_default)
            except InputError as exc:
                self._log.warning("no status socket", cause=str(exc))
        fresh: dict[Address, StatusServer] = {}
        try:
            for address in wanted:
                if address not in self._servers:
                    try:
                        fresh[address] = StatusServer(self._loop, address, self._ask)
                    except EnclavekitError as exc:
                        if address != by_default:
                            raise
                        self._log.warning("no status socket", cause=str(exc))
        except EnclavekitError:
            for server in fresh.values():
                server.close()
            raise
        for address in [address for address in self._servers if address not in wanted]:
            self._servers.pop(address).close()
        self._servers.update(fresh)
        for server in fresh.values():
            self._log.info("answering", status=str(server.bound_address))

    def close(self) -> None:
        for server in self._servers.values():
            server.close()
        self._servers.clear()

    def give_up(self) -> None:
        """In a forked child: close its copies."""
        for server in self._servers.values():
            server.give_up()
