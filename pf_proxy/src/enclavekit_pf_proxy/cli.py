# SPDX-License-Identifier: Apache-2.0
"""`pf-proxy ip-to-vsock` and `pf-proxy vsock-to-ip`, also under the names `ip-to-vsock` and `vsock-to-ip`."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from enclavekit_core.address import CID_ANY, Address, TcpAddress, VsockAddress, parse_address, parse_cid
from enclavekit_core.cli import run_command
from enclavekit_core.errors import ConfigError

from enclavekit_pf_proxy.limits import Limits, connections_for, descriptors_for

if TYPE_CHECKING:
    from enclavekit_pf_proxy.server import ProxyServer

DEFAULTS = Limits()
MODES = {
    "ip-to-vsock": "accept TCP connections and relay them to a vsock address",
    "vsock-to-ip": "accept vsock connections and relay them to a TCP address",
}
EPILOG = """\
CID is a number or any, parent, hypervisor, local. SIGTERM stops accepting and lets relays end; a second one ends them.

exit codes:
  0  stopped by a signal
  2  the command line cannot be used
  3  cannot listen
"""


def add_options(parser: argparse.ArgumentParser, mode: str) -> None:
    roles = ("listen on", "connect to") if mode == "ip-to-vsock" else ("connect to", "listen on")
    parser.add_argument("-i", "--ip-addr", metavar="HOST:PORT", required=True, help=f"TCP address to {roles[0]}")
    parser.add_argument(
        "-v",
        "--vsock-addr",
        metavar="CID:PORT",
        required=True,
        help=f"vsock address to {roles[1]}, also vsock://CID:PORT",
    )
    if mode == "vsock-to-ip":
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
        "--print-address", action="store_true", help="print the address that is listened on, once it is (for port 0)"
    )
    parser.add_argument(
        "--max-connections",
        type=int,
        metavar="N",
        default=DEFAULTS.max_connections,
        help="connections at a time, further ones wait (default %(default)s)",
    )
    for flag, default, text in (
        ("connect", DEFAULTS.connect_timeout_s, "how long the upstream may take to accept"),
        ("idle", DEFAULTS.idle_timeout_s, "end a connection after this long without a byte, 0 never"),
        ("drain", DEFAULTS.drain_timeout_s, "how long connections may go on after SIGTERM"),
    ):
        parser.add_argument(
            f"--{flag}-timeout", type=float, metavar="S", default=default, help=f"{text} (default %(default)s)"
        )
    parser.set_defaults(mode=mode)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pf-proxy", description="Relay TCP over vsock and back.")
    modes = parser.add_subparsers(required=True, metavar="MODE")
    for mode, text in MODES.items():
        layout = argparse.RawDescriptionHelpFormatter
        add_options(modes.add_parser(mode, help=text, description=text, epilog=EPILOG, formatter_class=layout), mode)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("pf-proxy", lambda: serve(args))


def ip_to_vsock_main(argv: list[str] | None = None) -> int:
    return _main_of("ip-to-vsock", argv)


def vsock_to_ip_main(argv: list[str] | None = None) -> int:
    return _main_of("vsock-to-ip", argv)


def _main_of(mode: str, argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog=mode, description=MODES[mode], epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser, mode)
    args = parser.parse_args(argv)
    return run_command(mode, lambda: serve(args))


def serve(args: argparse.Namespace) -> int:
    """Listen and relay until a signal. Raises ConfigError, TransportError."""
    tcp, vsock = parse_address(args.ip_addr, "tcp"), parse_address(args.vsock_addr, "vsock")
    if not isinstance(tcp, TcpAddress):
        raise ConfigError(f"--ip-addr {args.ip_addr!r}", "", "it is not a TCP address")
    if not isinstance(vsock, VsockAddress):
        raise ConfigError(f"--vsock-addr {args.vsock_addr!r}", "", "it is not a vsock address")
    listen, upstream = (tcp, vsock) if args.mode == "ip-to-vsock" else (vsock, tcp)
    _check_upstream(upstream)
    allowed_cids = _allowed_cids(args)
    limits = _limits_of(args)

    from enclavekit_core.logs import configure, get_logger
    from enclavekit_core.streams import Listener

    from enclavekit_pf_proxy.server import ProxyServer

    listener = Listener(listen)
    configure()
    server = ProxyServer(listener, upstream, limits, allowed_cids=allowed_cids)
    restore = _stop_on_signals(server)
    try:
        get_logger("pf-proxy").info(
            "listening",
            listen=str(listener.bound_address),
            upstream=str(upstream),
            max_connections=limits.max_connections,
        )
        if args.print_address:
            print(listener.bound_address, flush=True)
        server.run()
    finally:
        restore()
    return 0


def _allowed_cids(args: argparse.Namespace) -> Collection[int] | None:
    if (path := getattr(args, "allow_cids_from", None)) is not None:
        from enclavekit_pf_proxy.cid_list import CidList

        return CidList(path)
    allowed = getattr(args, "allow_cid", None)
    return None if allowed is None else {parse_cid(text) for text in allowed}


def _check_upstream(upstream: Address) -> None:
    if isinstance(upstream, VsockAddress) and upstream.cid == CID_ANY:
        raise ConfigError(f"address {str(upstream)!r}", "", "`any` is for listening, not for connecting")
    if isinstance(upstream, TcpAddress) and upstream.port == 0:
        raise ConfigError(f"address {str(upstream)!r}", "", "port 0 is for listening, not for connecting")


def _limits_of(args: argparse.Namespace) -> Limits:
    import math

    if args.max_connections < 1:
        raise ConfigError("--max-connections", "", "it is less than 1")
    for flag in ("connect_timeout", "idle_timeout", "drain_timeout"):
        value = getattr(args, flag)
        if not math.isfinite(value) or value < 0 or (value == 0 and flag == "connect_timeout"):
            raise ConfigError(f"--{flag.replace('_', '-')}", "", "it is not a usable number of seconds")
    return Limits(
        max_connections=connections_for(args.max_connections, _raise_descriptor_limit(args.max_connections)),
        connect_timeout_s=args.connect_timeout,
        idle_timeout_s=args.idle_timeout,
        drain_timeout_s=args.drain_timeout,
    )


def _raise_descriptor_limit(connections: int) -> int:
    """Raise the soft limit to what `connections` need, as far as the hard one allows; return what there is then."""
    import resource

    wanted = descriptors_for(connections)
    soft, hard = (
        sys.maxsize if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    if soft >= wanted:
        return soft
    soft = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return soft


def _stop_on_signals(server: ProxyServer) -> Callable[[], None]:
    """Stop `server` on SIGTERM and SIGINT; return what restores the handlers."""
    before = {number: signal.signal(number, lambda *_: server.stop()) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore
