# SPDX-License-Identifier: Apache-2.0
"""`initctl`: asks a running PID 1, inside the enclave by its socket, from the parent by an attested channel."""

from __future__ import annotations

import argparse
import os

from enclavekit_core.cli import run_command
from enclavekit_core.errors import ConfigError

from enclavekit_enclave_init.initctl.access import SOCKET_PATH
from enclavekit_enclave_init.initctl.client import Client
from enclavekit_enclave_init.initctl.commands import COMMANDS, PS_COMMANDS, Command, print_answer

PROGRAM = "initctl"
SOCKET_VARIABLE = "INIT_SOCKET"
CONNECT_TIMEOUT_S = 10.0
DEFAULT_PORT = 9001  # as in channel


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Control a running enclave-init.")
    where = parser.add_argument_group("where PID 1 is asked")
    where.add_argument("-s", "--socket", metavar="PATH", help=f"its socket (default: $INIT_SOCKET, {SOCKET_PATH})")
    where.add_argument("--enclave", metavar="NAME", help="from the parent: name, id or CID of the enclave")
    where.add_argument("--cid", "--vsock-cid", type=int, metavar="N", help="the same, by CID")
    where.add_argument("--port", "--vsock-port", type=int, metavar="N", help="vsock port (default: 9001)")
    where.add_argument("-p", "--protocol", choices=("unix", "vsock"), help="implied by the others")
    remote = parser.add_argument_group("from the parent: what the enclave must prove, and who we are")
    remote.add_argument("--eif", metavar="FILE", help="that it runs this image (or $PIPELINE_EIF)")
    remote.add_argument("--policy", metavar="FILE", help="that it meets this policy (or $PIPELINE_POLICY)")
    remote.add_argument("--pcr", action="append", default=[], metavar="N=HEX", help="that PCR N is this; repeatable")
    remote.add_argument("--identity", metavar="PREFIX", help="PREFIX.key and PREFIX.crt (or $PIPELINE_IDENTITY)")
    remote.add_argument("--allow-debug", action="store_true", help="accept an enclave in debug mode")
    remote.add_argument(
        "--insecure-dev-root",
        metavar="PEM",
        help="trust this root instead of AWS's: emulated enclaves (or $PIPELINE_INSECURE_DEV_ROOT)",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    commands = parser.add_subparsers(dest="name_of_command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        _add(commands, name, command)
    ps = commands.add_parser("ps", help="list, start and signal processes", description="Processes of the enclave.")
    ps.set_defaults(command_object=PS_COMMANDS["list"])
    _add_json(ps)
    under = ps.add_subparsers(metavar="COMMAND")
    for name, command in PS_COMMANDS.items():
        _add(under, name, command)
    return parser


def _add(commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, command: Command) -> None:
    parser = commands.add_parser(
        name, aliases=list(command.aliases), help=command.help, description=command.help.capitalize() + "."
    )
    for argument in command.arguments:
        parser.add_argument(*argument.names, **argument.settings)
    _add_json(parser)
    parser.set_defaults(command_object=command)


def _add_json(parser: argparse.ArgumentParser) -> None:
    # after the command as well; without SUPPRESS its default would undo what stood before it
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print the answer as JSON")


def make_client(args: argparse.Namespace) -> Client:
    """Return the client for what the flags say. Raises ConfigError, and what `make_demands` raises."""
    if args.enclave is not None or args.cid is not None or args.protocol == "vsock":
        return _remote_client(args)
    path = args.socket or os.environ.get(SOCKET_VARIABLE) or SOCKET_PATH
    if not path.startswith("/"):
        path = os.path.abspath(path)
    if "\0" in path:
        raise ConfigError("--socket", "", "it holds a NUL byte")
    return Client.local(path, CONNECT_TIMEOUT_S)


def _remote_client(args: argparse.Namespace) -> Client:
    from enclavekit_core.address import VsockAddress
    from enclavekit_core.enclaves import find_cid

    if args.socket or args.protocol == "unix":
        raise ConfigError("--socket", "", "it is for PID 1 of this machine, --enclave and --cid for another")
    if (args.enclave is None) == (args.cid is None):
        raise ConfigError("an enclave", "", "give --enclave or --cid")
    address = VsockAddress(find_cid(str(args.cid) if args.enclave is None else args.enclave), args.port or DEFAULT_PORT)
    from enclavekit_enclave_init.initctl.remote import make_demands, open_attested

    demands = make_demands(
        eif=args.eif,
        policy=args.policy,
        pcrs=args.pcr,
        identity=args.identity,
        insecure_dev_root=args.insecure_dev_root,
        allow_debug=args.allow_debug,
        environment=os.environ,
    )
    return Client(lambda: open_attested(address, demands, CONNECT_TIMEOUT_S), str(address))


def run(args: argparse.Namespace) -> int:
    client = make_client(args)
    command: Command = args.command_object
    if command.run is not None:
        return command.run(client, args)
    fields = {name: getattr(args, name) for name in ("name", "pid", "signal") if hasattr(args, name)}
    assert command.show is not None
    print_answer(client.request(command.verb, **fields), args, command.show)
    return 0


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(PROGRAM, lambda: run(args))
