# SPDX-License-Identifier: Apache-2.0
"""Write the NATS server's configuration and each service's credentials, with passwords that live for one boot.

Run once before nats-server: `python3 -m enclavekit_core.bus_setup`. Run again it changes nothing but what its flags
say, unless `--rotate` asks for new passwords.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import secrets
import sys
import tempfile

from enclavekit_core import bus_config
from enclavekit_core.address import TcpAddress, parse_address
from enclavekit_core.cli import run_command
from enclavekit_core.errors import ConfigError, InputError, describe_cause

PROGRAM = "bus-setup"
DEFAULT_DIRECTORY = "/run/nats"
DEFAULT_LISTEN = "tcp://127.0.0.1:4222"
CONFIG_NAME = "nats.conf"
SERVER_ACCOUNT = "nats"
PASSWORD_BYTES = 32
_PASSWORD_CHARS = 2 * PASSWORD_BYTES


def credentials_path(service: str, directory: str = DEFAULT_DIRECTORY) -> str:
    """Return where the credentials of `service` are."""
    return os.path.join(directory, f"{service}.yaml")


def set_up(directory: str, server: bus_config.Server, *, rotate: bool = False) -> None:
    """Write `nats.conf` and the credential files into `directory`, each mode 0600 and each whole or not at all.

    As root, the files go to the system account of their reader (`nats`, `fs-monitor`, `ra-web-srv`) where there is one.
    Raises: InputError.
    """
    try:
        # services pass through to their own file; the files themselves are closed to others
        os.makedirs(directory, mode=0o755, exist_ok=True)
        os.makedirs(server.store_directory, mode=0o700, exist_ok=True)
        _give_to(server.store_directory, SERVER_ACCOUNT)
        passwords = {
            service: (None if rotate else _read_password(service, directory)) or secrets.token_hex(PASSWORD_BYTES)
            for service in bus_config.SERVICES
        }
        for service, password in passwords.items():
            text = f"user: {service}\npassword: {password}\n"
            _write_private(credentials_path(service, directory), text, service)
        # last: a nats.conf is never there before the credentials that it expects
        _write_private(
            os.path.join(directory, CONFIG_NAME), bus_config.render_config(server, passwords), SERVER_ACCOUNT
        )
    except OSError as exc:
        raise InputError("set up the bus in", directory, describe_cause(exc)) from exc


def _read_password(service: str, directory: str) -> str | None:
    """Return the password of an earlier run, None if there is none that we wrote."""
    try:
        with open(credentials_path(service, directory), encoding="ascii") as source:
            text = source.read(1024)
    except (OSError, UnicodeDecodeError):
        return None
    head, _, password = text.rstrip("\n").partition("\npassword: ")
    well_formed = len(password) == _PASSWORD_CHARS and set(password) <= set("0123456789abcdef")
    return password if head == f"user: {service}" and well_formed else None


def _write_private(path: str, text: str, account: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".new-")  # mode 0600
    try:
        with open(handle, "w", encoding="utf-8") as out:
            out.write(text)
        _give_to(temporary, account)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _give_to(path: str, account: str) -> None:
    if os.geteuid() != 0:
        return
    try:
        entry = pwd.getpwnam(account)
        os.chown(path, entry.pw_uid, entry.pw_gid)
    except (KeyError, OSError):
        # no such account, or not mapped in this user namespace: it stays root's, and closed to everybody else
        return


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Write nats.conf and the credentials of each service.")
    parser.add_argument("--directory", default=DEFAULT_DIRECTORY, help="where to write (default: %(default)s)")
    parser.add_argument("--store", help="JetStream's directory (default: DIRECTORY/store)")
    parser.add_argument("--listen", default=DEFAULT_LISTEN, help="address of the server (default: %(default)s)")
    parser.add_argument(
        "--max-store-bytes",
        type=int,
        default=bus_config.DEFAULT_MAX_STORE_BYTES,
        help="limit of the store (default: %(default)s)",
    )
    parser.add_argument("--rotate", action="store_true", help="make new passwords; the server has to be restarted")
    return parser


def _run(args: argparse.Namespace) -> None:
    address = parse_address(args.listen, "tcp")
    if not isinstance(address, TcpAddress) or address.port == 0:
        raise ConfigError("--listen", "", "NATS listens on a tcp:// address with a port")
    if args.max_store_bytes <= 0:
        raise ConfigError("--max-store-bytes", "", "it is not a positive number")
    directory = os.path.abspath(args.directory)
    store = os.path.abspath(args.store) if args.store else os.path.join(directory, "store")
    server = bus_config.Server(address.host, address.port, store, args.max_store_bytes)
    set_up(directory, server, rotate=args.rotate)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command(PROGRAM, lambda: _run(args))


if __name__ == "__main__":
    sys.exit(main())
