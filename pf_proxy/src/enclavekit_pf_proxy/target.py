# SPDX-License-Identifier: Apache-2.0
"""Where an accepted connection is to go, by its service's mode."""

from __future__ import annotations

import socket

from enclavekit_core.address import Address, TcpAddress, VsockAddress
from enclavekit_core.errors import TransportError

from enclavekit_pf_proxy.original_destination import is_own_address, plain_address, read_original
from enclavekit_pf_proxy.service import Mode, Service
from enclavekit_pf_proxy.wire.opening import Opening


def find_target(
    service: Service, client: socket.socket, port: int, offset: int, opening: Opening
) -> tuple[Address, TcpAddress | None]:
    """Return what to connect to, and what the client asked for where that is another question.

    Args: port: where it was accepted, for loops. offset: the place of that in the service's range.
    Raises: OSError if the client is gone, TransportError for a connection to the proxy itself.
    """
    upstream, destination = service.upstream, None
    match service.mode:
        case Mode.VSOCK_TO_IP_TRANSPARENT:
            assert opening.destination is not None
            return opening.destination, opening.destination
        case Mode.TRANSPARENT_PORT_TO_VSOCK:
            assert upstream is not None and isinstance(upstream.first, VsockAddress)
            return VsockAddress(upstream.first.cid, read_original(client).port), None
        case Mode.IP_TO_VSOCK_TRANSPARENT:
            destination = read_original(client)
            host, own_port = client.getsockname()[:2]
            same = destination.port == own_port == port and destination.host == plain_address(host)
            # TPROXY leaves the packet as it was: another machine's address is no sign of a loop
            if same and (not service.tproxy or is_own_address(destination.host)):
                reason = "the connection was made to the proxy itself, nothing diverted it"
                raise TransportError("connect to", destination, reason)
    assert upstream is not None
    return upstream.at(offset if upstream.ports > 1 else 0), destination
