# SPDX-License-Identifier: Apache-2.0
"""The flags of the modes: upstream's, and ours."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection

from enclavekit_core.address import TcpAddress, VsockAddress, parse_cid
from enclavekit_core.errors import ConfigError

from enclavekit_pf_proxy.limits import Limits
from enclavekit_pf_proxy.plan import MAX_WORKERS, Plan, parse_status
from enclavekit_pf_proxy.service import (
    DIVERTED,
    LISTENS_ON_VSOCK,
    Endpoint,
    Header,
    Mode,
    Service,
    check_service,
    parse_endpoint,
)
from enclavekit_pf_proxy.wire.request import Protocol

DEFAULTS = Limits()
MODES = {
    Mode.IP_TO_VSOCK: "accept TCP connections and relay them to a vsock address",
    Mode.VSOCK_TO_IP: "accept vsock connections and relay them to a TCP address",
    Mode.IP_TO_VSOCK_TRANSPARENT: "accept diverted TCP connections, tell a vsock peer where they were going",
    Mode.VSOCK_TO_IP_TRANSPARENT: "accept vsock connections and relay each to where its header says",
    Mode.TRANSPARENT_PORT_TO_VSOCK: "accept diverted TCP connections, relay each to the vsock port of the same number",
}
TIMEOUTS = (
    ("connect", DEFAULTS.connect_timeout_s, "how long the upstream may take to accept"),
    ("header", DEFAULTS.header_timeout_s, "how long a peer may take for its header"),
    ("idle", DEFAULTS.idle_timeout_s, "end a connection after this long without a byte, 0 never"),
    ("udp-idle", DEFAULTS.udp_idle_timeout_s, "end a UDP session after this long without a datagram, 0 never"),
    ("half-close", DEFAULTS.half_close_timeout_s, "the same once one direction has ended, 0 never"),
    ("drain", DEFAULTS.drain_timeout_s, "how long connections may go on after SIGTERM"),
)
POSITIVE = ("connect", "header")


def add_options(parser: argparse.ArgumentParser, mode: Mode) -> None:
    """Add the flags of `mode`."""
    _add_addresses(parser, mode)
    if mode in LISTENS_ON_VSOCK:
        _add_peers(parser)
    if mode is not Mode.VSOCK_TO_IP_TRANSPARENT:
        parser.add_argument("--udp", action="store_true", help="carry datagrams instead of streams")
    if mode in DIVERTED:
        parser.add_argument("--tproxy", action="store_true", help="it is TPROXY rules that lead here, not REDIRECT")
    if mode is Mode.IP_TO_VSOCK_TRANSPARENT:
        parser.add_argument(
            "--header",
            choices=[header.value for header in Header],
            default=Header.AUTO.value,
            help="how the peer is told of the destination: v2 is answered, v1 is the Rust framework's "
            "(default auto: v2, v1 for a peer that does not know it)",
        )
    else:
        parser.add_argument(
            "--send-proxy", choices=("v1", "v2"), help="send the upstream a PROXY header with the source address"
        )
    if mode is Mode.VSOCK_TO_IP_TRANSPARENT:
        _add_destinations(parser)
    if mode not in LISTENS_ON_VSOCK:
        parser.add_argument(
            "--max-per-source",
            type=int,
            metavar="N",
            default=DEFAULTS.max_per_source,
            help="with --udp: sessions of one source address at a time, 0: no such limit (default %(default)s)",
        )
    parser.add_argument("--accept-proxy", action="store_true", help="clients begin with a PROXY header, of v1 or v2")
    _add_limits(parser)
    parser.set_defaults(mode=mode)


def _add_addresses(parser: argparse.ArgumentParser, mode: Mode) -> None:
    listens_on_vsock = mode in LISTENS_ON_VSOCK
    if mode is not Mode.VSOCK_TO_IP_TRANSPARENT:
        role = "connect to" if listens_on_vsock else "listen on"
        parser.add_argument(
            "-i", "--ip-addr", metavar="HOST:PORT", required=True, help=f"TCP address to {role}; PORT may be a range"
        )
    if mode is Mode.TRANSPARENT_PORT_TO_VSOCK:
        parser.add_argument("-v", "--vsock", metavar="CID", required=True, help="vsock CID to connect to")
        return
    parser.add_argument(
        "-v",
        "--vsock-addr",
        metavar="CID:PORT",
        required=True,
        help=f"vsock address to {'listen on' if listens_on_vsock else 'connect to'}, also vsock://CID:PORT; "
        "PORT may be a range",
    )


def _add_peers(parser: argparse.ArgumentParser) -> None:
    allowed = parser.add_mutually_exclusive_group()
    allowed.add_argument(
        "--allow-cid", metavar="CID", action="append", help="accept only connections from this CID; repeatable"
    )
    allowed.add_argument(
        "--allow-cids-from",
        metavar="FILE",
        help="accept only connections from the CIDs in FILE, one a line; read again when it changes",
    )
    parser.add_argument(
        "--max-per-cid",
        type=int,
        metavar="N",
        default=DEFAULTS.max_per_cid,
        help="connections of one CID at a time, further ones are refused, 0: no such limit (default %(default)s)",
    )


def _add_destinations(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow-destination",
        metavar="NETWORK[:PORT[-LAST]]",
        action="append",
        default=[],
        help="connect there although it is loopback, link-local or the like; repeatable",
    )
    parser.add_argument(
        "--only-destinations", action="store_true", help="connect to what --allow-destination names and nowhere else"
    )


def _add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--print-address", action="store_true", help="print the address that is listened on, once it is (for port 0)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        default=1,
        help="processes that share the listener and the limits (default %(default)s)",
    )
    parser.add_argument(
        "--max-connections",
        type=int,
        metavar="N",
        default=DEFAULTS.max_connections,
        help="connections at a time, further ones wait (default %(default)s)",
    )
    parser.add_argument("--socket", metavar="PATH", default="", help="answer `pf-proxy status --socket PATH` (none)")
    parser.add_argument(
        "--metrics-listen", metavar="HOST:PORT", default="", help="serve metrics and health over HTTP there (none)"
    )
    for flag, default, text in TIMEOUTS:
        parser.add_argument(
            f"--{flag}-timeout", type=float, metavar="S", default=default, help=f"{text} (default %(default)s)"
        )


def plan_of(args: argparse.Namespace) -> Plan:
    """Return what the flags ask for. Raises ConfigError, InputError."""
    from enclavekit_pf_proxy.destinations import DestinationRules, parse_range

    mode: Mode = args.mode
    listen, upstream = _endpoints_of(args)
    send_proxy = getattr(args, "send_proxy", None)
    ranges = tuple(map(parse_range, getattr(args, "allow_destination", ())))
    service = Service(
        mode,
        listen,
        upstream,
        limits=_limits_of(args),
        allowed_cids=_allowed_cids(args),
        header=Header(getattr(args, "header", Header.AUTO.value)),
        accept_proxy=args.accept_proxy,
        send_proxy=int(send_proxy[1]) if send_proxy else 0,
        destinations=DestinationRules(ranges, getattr(args, "only_destinations", False)),
        protocol=Protocol.UDP if getattr(args, "udp", False) else Protocol.TCP,
        tproxy=getattr(args, "tproxy", False),
    )
    check_service(service, mode.value)
    if not 1 <= args.workers <= MAX_WORKERS:
        raise ConfigError("--workers", "", f"it is not from 1 to {MAX_WORKERS}")
    status = parse_status(args.socket, args.metrics_listen, mode.value, by_default=False)
    plan = Plan([service], args.workers, args.drain_timeout, status=status)
    plan.check(mode.value)
    return plan


def _endpoints_of(args: argparse.Namespace) -> tuple[Endpoint, Endpoint | None]:
    tcp = parse_endpoint(args.ip_addr, "tcp") if hasattr(args, "ip_addr") else None
    if tcp is not None and not isinstance(tcp.first, TcpAddress):
        raise ConfigError(f"--ip-addr {args.ip_addr!r}", "", "it is not a TCP address")
    if args.mode is Mode.TRANSPARENT_PORT_TO_VSOCK:
        assert tcp is not None
        return tcp, Endpoint(VsockAddress(parse_cid(args.vsock), 0))
    vsock = parse_endpoint(args.vsock_addr, "vsock")
    if not isinstance(vsock.first, VsockAddress):
        raise ConfigError(f"--vsock-addr {args.vsock_addr!r}", "", "it is not a vsock address")
    if args.mode in LISTENS_ON_VSOCK:
        return vsock, tcp
    assert tcp is not None
    return tcp, vsock


def _allowed_cids(args: argparse.Namespace) -> Collection[int] | None:
    if (path := getattr(args, "allow_cids_from", None)) is not None:
        from enclavekit_pf_proxy.cid_list import CidList

        return CidList(path)
    allowed = getattr(args, "allow_cid", None)
    return None if allowed is None else {parse_cid(text) for text in allowed}


def _limits_of(args: argparse.Namespace) -> Limits:
    if args.max_connections < 1:
        raise ConfigError("--max-connections", "", "it is less than 1")
    max_per_cid = getattr(args, "max_per_cid", DEFAULTS.max_per_cid)
    if max_per_cid < 0:
        raise ConfigError("--max-per-cid", "", "it is less than 0")
    max_per_source = getattr(args, "max_per_source", DEFAULTS.max_per_source)
    if max_per_source < 0:
        raise ConfigError("--max-per-source", "", "it is less than 0")
    for flag, _, _ in TIMEOUTS:
        value = getattr(args, f"{flag.replace('-', '_')}_timeout")
        if not math.isfinite(value) or value < 0 or (value == 0 and flag in POSITIVE):
            raise ConfigError(f"--{flag}-timeout", "", "it is not a usable number of seconds")
    return Limits(
        max_connections=args.max_connections,
        max_per_cid=max_per_cid,
        connect_timeout_s=args.connect_timeout,
        header_timeout_s=args.header_timeout,
        idle_timeout_s=args.idle_timeout,
        udp_idle_timeout_s=args.udp_idle_timeout,
        max_per_source=max_per_source,
        half_close_timeout_s=args.half_close_timeout,
        drain_timeout_s=args.drain_timeout,
    )
