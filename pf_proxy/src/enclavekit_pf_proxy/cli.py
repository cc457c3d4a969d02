# SPDX-License-Identifier: Apache-2.0
"""`pf-proxy MODE`, each also under its own name, and `pf-proxy run CONFIG`."""

from __future__ import annotations

import argparse
import gc
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from enclavekit_core.cli import run_command

from enclavekit_pf_proxy.learn_command import add_learn_command
from enclavekit_pf_proxy.options import MODES, add_options, plan_of
from enclavekit_pf_proxy.rules_command import add_rules_parser
from enclavekit_pf_proxy.service import Mode

if TYPE_CHECKING:
    from enclavekit_pf_proxy.plan import Plan
    from enclavekit_pf_proxy.server import Server

EPILOG = """\
CID is a number or any, parent, hypervisor, local. SIGTERM stops accepting and lets relays end; a second one ends them.

exit codes:
  0  stopped by a signal
  2  the command line cannot be used
  3  cannot listen
"""
RUN_EPILOG = """\
SIGHUP reads CONFIG again: connections go on, listeners that stay are not closed. SIGTERM stops accepting and lets
relays end; a second one ends them.

exit codes:
  0  stopped by a signal
  2  CONFIG cannot be used
  3  cannot listen, or a route cannot be made
  5  the kernel refused the rules, or another pf-proxy has them
"""
ASK_EPILOG = """\
exit codes:
  0  asked and answered
  2  the command line cannot be used
  3  nobody answers
"""
MAX_INTERVAL_S = 86400.0
LAYOUT = argparse.RawDescriptionHelpFormatter


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pf-proxy", description="Relay TCP and UDP over vsock and back.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for mode, text in MODES.items():
        command = commands.add_parser(mode.value, help=text, description=text, epilog=EPILOG, formatter_class=LAYOUT)
        add_options(command, mode)
        command.set_defaults(command=serve)
    text = "run any number of listeners from a file"
    run = commands.add_parser("run", help=text, description=text, epilog=RUN_EPILOG, formatter_class=LAYOUT)
    run.add_argument("config", metavar="CONFIG", help="YAML; see docs/reference/pf-proxy-config.md")
    run.add_argument("--check", action="store_true", help="only say whether CONFIG can be used")
    run.add_argument(
        "--insecure-learn",
        metavar="FILE",
        default="",
        help="allow every connection, and write the policy that this run needed to FILE",
    )
    run.add_argument(
        "--print-address", action="store_true", help="print the addresses that are listened on, once they are"
    )
    run.set_defaults(command=run_config)
    add_learn_command(commands)
    add_rules_parser(commands)
    _add_status(commands)
    return parser


def _add_status(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "what running proxies say: listeners, connections, bytes, decisions"
    status = commands.add_parser("status", help=text, description=text, epilog=ASK_EPILOG, formatter_class=LAYOUT)
    status.add_argument("--connections", action="store_true", help="list the live ones")
    status.add_argument("--json", action="store_true", help="as one line of JSON")
    status.add_argument(
        "--watch", metavar="S", type=float, nargs="?", const=2.0, default=0.0, help="again every S seconds (2)"
    )
    status.set_defaults(command=show_status)
    text = "metrics of a running proxy in Prometheus's text format"
    metrics = commands.add_parser("metrics", help=text, description=text, epilog=ASK_EPILOG, formatter_class=LAYOUT)
    metrics.set_defaults(command=show_metrics)
    for command in (status, metrics):
        command.add_argument(
            "--socket", metavar="PATH", default="", help="of the proxy to ask (all that `run` started for this user)"
        )


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("pf-proxy", lambda: args.command(args))


def ip_to_vsock_main(argv: list[str] | None = None) -> int:
    return _main_of(Mode.IP_TO_VSOCK, argv)


def vsock_to_ip_main(argv: list[str] | None = None) -> int:
    return _main_of(Mode.VSOCK_TO_IP, argv)


def ip_to_vsock_transparent_main(argv: list[str] | None = None) -> int:
    return _main_of(Mode.IP_TO_VSOCK_TRANSPARENT, argv)


def vsock_to_ip_transparent_main(argv: list[str] | None = None) -> int:
    return _main_of(Mode.VSOCK_TO_IP_TRANSPARENT, argv)


def transparent_port_to_vsock_main(argv: list[str] | None = None) -> int:
    return _main_of(Mode.TRANSPARENT_PORT_TO_VSOCK, argv)


def _main_of(mode: Mode, argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog=mode.value, description=MODES[mode], epilog=EPILOG, formatter_class=LAYOUT)
    add_options(parser, mode)
    args = parser.parse_args(argv)
    return run_command(mode.value, lambda: serve(args))


def show_status(args: argparse.Namespace) -> int:
    """Raises ConfigError, TransportError."""
    from enclavekit_core.errors import ConfigError

    from enclavekit_pf_proxy.status import client

    if not 0.0 <= args.watch <= MAX_INTERVAL_S:
        raise ConfigError("--watch", "", "it is not a usable number of seconds")
    client.show_status(args.socket, as_json=args.json, with_connections=args.connections, interval_s=args.watch)
    return 0


def show_metrics(args: argparse.Namespace) -> int:
    """Raises ConfigError, TransportError."""
    from enclavekit_pf_proxy.status import client

    client.show_metrics(args.socket)
    return 0


def serve(args: argparse.Namespace) -> int:
    """Listen and relay until a signal. Raises ConfigError, TransportError."""
    plan = plan_of(args)
    announce = _printer(args.print_address)
    if plan.workers > 1:
        return _supervise(lambda: plan, announce)
    return _serve_alone(fit_descriptors(plan), announce)


def run_config(args: argparse.Namespace) -> int:
    """Supervise what the file says. Raises ConfigError, InputError, TransportError."""
    from enclavekit_pf_proxy.config import load_plan

    if args.check:
        load_plan(args.config)
        return 0
    if args.insecure_learn:
        print("pf-proxy: warning: --insecure-learn allows every connection", file=sys.stderr)
    return _supervise(lambda: load_plan(args.config, args.insecure_learn), _printer(args.print_address))


def _supervise(load: Callable[[], Plan], announce: Callable[[str], None]) -> int:
    from enclavekit_core.logs import configure

    from enclavekit_pf_proxy.supervisor import Supervisor

    supervisor = Supervisor(load, fit_descriptors, announce)
    configure()
    return supervisor.run()


def _serve_alone(plan: Plan, announce: Callable[[str], None]) -> int:
    from enclavekit_core.logs import configure, get_logger

    from enclavekit_pf_proxy.listeners import AnyListener, describe_listener, fit_listener, open_listener
    from enclavekit_pf_proxy.server import Server

    service = plan.services[0]
    listeners: list[AnyListener] = []
    try:
        for offset in range(service.listen.ports):
            listeners.append(open_listener(service, service.listen.at(offset)))
            fit_listener(listeners[-1], service)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    configure()
    server = Server([(service, list(enumerate(listeners)))], plan.drain_timeout_s)
    restore = _stop_on_signals(server)
    try:
        if plan.status.is_wanted:
            _answer_for(server, plan)
        for address in map(describe_listener, listeners):
            get_logger("pf-proxy").info(
                "listening",
                listen=address,
                upstream=str(service.upstream or "as asked"),
                max_connections=service.limits.max_connections,
            )
            announce(address)
        gc.freeze()  # what is there now stays: looking through it again and again costs 8 % of a short connection
        server.run()
    finally:
        restore()
    return 0


def _answer_for(server: Server, plan: Plan) -> None:
    """Raises TransportError."""
    from enclavekit_pf_proxy.status.describe import describe
    from enclavekit_pf_proxy.status.desk import Desk

    desk = Desk(server.loop, lambda listed, answer: answer(describe(server, with_connections=listed)))
    server.when_closing.append(desk.close)
    try:
        desk.open(plan.status)
    except BaseException:
        server.stop()
        server.run()  # which closes everything
        raise


def _printer(wanted: bool) -> Callable[[str], None]:
    def announce(address: str) -> None:
        if wanted:
            print(address, flush=True)

    return announce


def fit_descriptors(plan: Plan) -> Plan:
    """Raise the soft descriptor limit to what `plan` needs; if the hard one is less, lower its connection limits."""
    import resource
    from dataclasses import replace

    from enclavekit_pf_proxy.limits import connections_for

    soft, hard = (
        sys.maxsize if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    if soft >= plan.descriptors:
        return plan
    allowed = min(plan.descriptors, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    if allowed >= plan.descriptors:
        return plan
    wanted = sum(service.limits.max_connections for service in plan.services)
    ports = sum(service.listen.ports for service in plan.services)
    possible = connections_for(wanted, allowed - ports) * plan.workers
    fitted = [
        replace(
            service,
            limits=replace(
                service.limits, max_connections=max(1, min(service.limits.max_connections * possible // wanted,
                                                           service.limits.max_connections)),
            ),
        )
        for service in plan.services
    ]  # fmt: skip
    return replace(plan, services=fitted)


def _stop_on_signals(server: Server) -> Callable[[], None]:
    """Stop `server` on SIGTERM and SIGINT; return what restores the handlers."""
    before = {number: signal.signal(number, lambda *_: server.stop()) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore
