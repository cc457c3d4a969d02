# SPDX-License-Identifier: Apache-2.0
"""Opens what a service listens on: a stream's socket or one for datagrams, made ready for TPROXY where it is to be."""

from __future__ import annotations

from enclavekit_core.address import Address, TcpAddress
from enclavekit_core.errors import TransportError
from enclavekit_core.streams import DEFAULT_BACKLOG, Listener

from enclavekit_pf_proxy.original_destination import make_transparent, mark_socket
from enclavekit_pf_proxy.service import LISTENS_ON_VSOCK, Service
from enclavekit_pf_proxy.udp.listener import DatagramListener
from enclavekit_pf_proxy.wire.request import Protocol

AnyListener = Listener | DatagramListener


def describe_listener(listener: AnyListener) -> str:
    """Return where it listens, for people and logs: a TCP and a UDP socket may be at one address."""
    if isinstance(listener, DatagramListener):
        return str(listener.bound_address).replace("tcp://", "udp://", 1)
    return str(listener.bound_address)


def takes_datagrams(service: Service) -> bool:
    """Say whether UDP comes in; a service that listens on vsock gets streams of datagrams."""
    return service.protocol is Protocol.UDP and service.mode not in LISTENS_ON_VSOCK


def open_listener(
    service: Service, address: Address, *, backlog: int = DEFAULT_BACKLOG, reuse_port: bool = False
) -> AnyListener:
    """Listen on `address` for `service`; `reuse_port` is for TCP. Raises TransportError."""
    if takes_datagrams(service):
        assert isinstance(address, TcpAddress)  # check_service says so
        return DatagramListener(address)
    return Listener(address, backlog=backlog, reuse_port=reuse_port and isinstance(address, TcpAddress))


def fit_listener(listener: AnyListener, service: Service, mark: int = 0) -> None:
    """Make a socket, which an earlier plan may have opened, what `service` needs. Raises TransportError.

    Args: mark: SO_MARK of everything that answers clients; 0 for none.
    """
    if not isinstance(listener.address, TcpAddress):
        return
    try:
        if service.tproxy:
            make_transparent(listener.socket)
        if mark:
            mark_socket(listener.socket, mark)
    except OSError as exc:
        raise TransportError("listen on", listener.address, exc) from exc
    if isinstance(listener, DatagramListener):
        listener.session_options = (service.tproxy, mark)
