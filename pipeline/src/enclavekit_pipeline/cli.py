# SPDX-License-Identifier: Apache-2.0
"""Command `pipeline`: exec and cp into an enclave over an attested, encrypted channel."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

from enclavekit_core.address import MAX_U32, MIN_ENCLAVE_CID, VsockAddress, parse_cid
from enclavekit_core.cli import run_command
from enclavekit_core.errors import ConfigError, EnclavekitError, TransportError

if TYPE_CHECKING:
    from enclavekit_pipeline.client import Target

DEFAULT_PORT = 53000
DEFAULT_CONNECT_TIMEOUT_S = 10.0
EXEC_FAILURE = 255  # as ssh: 0..254 belong to the command in the enclave
USAGE_ERROR = 2  # argparse
TERMINATED = 128 + signal.SIGTERM
MAX_TIMEOUT_S = 10**9
EXEC_EPILOG = """\
Everything after -- is the command, word by word; no shell is involved unless you name one.
exit codes: the command's own; 128+n if signal n ended it; 255 if it could not be run at all.
With --timeout: 143 if it had to be ended, 137 if that took KILL, 124 if it then claimed to be done.
"""


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    try:
        args = parse_words(words)
    except SystemExit as exc:
        # 2 would be the command's own, say grep's
        return EXEC_FAILURE if exc.code == USAGE_ERROR and words[:1] == ["exec"] else int(exc.code or 0)
    if args.command == "exec":
        return run_command("pipeline", lambda: as_exec_failure(args))
    return run_command("pipeline", lambda: int(args.run(args)))


def parse_words(words: list[str]) -> argparse.Namespace:
    """Parse the command line; for exec everything after the first -- is the command, whatever it looks like."""
    command: list[str] = []
    if words[:1] == ["exec"] and "--" in words:
        middle = words.index("--")
        words, command = words[:middle], words[middle + 1 :]
    args = build_parser().parse_args(words)
    args.argv = command
    return args


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pipeline", description="Run commands in an enclave and copy files, over an attested channel."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser(
        "exec",
        help="run a command in an enclave",
        usage="pipeline exec [flags] CID [flags] -- COMMAND [ARG ...]",
        epilog=EXEC_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_target_flags(run)
    run.add_argument("-i", "--interactive", action="store_true", help="send our standard input; else /dev/null")
    run.add_argument("-e", "--env", action="append", default=[], metavar="K=V", help="environment; repeatable")
    run.add_argument("-w", "--workdir", metavar="DIR", help="working directory (default: /)")
    run.add_argument("-u", "--user", metavar="USER", help="name or uid, with :group if wanted (default: root)")
    run.add_argument("--timeout", type=seconds, metavar="S", help="end the command after S seconds")
    run.add_argument("cid", metavar="CID", help="of the enclave")
    run.set_defaults(run=run_exec)

    copy = commands.add_parser("cp", help="copy a file into or out of an enclave")
    add_target_flags(copy)
    copy.add_argument("source", metavar="SRC", help="PATH, CID:PATH, or - for standard input")
    copy.add_argument("target", metavar="DST", help="CID:PATH, PATH, or - for standard output")
    copy.set_defaults(run=run_copy)

    keygen = commands.add_parser("keygen", help="make a key, and the certificate that goes into an image")
    keygen.add_argument("--name", required=True, help="what the enclave's list and logs call the holder")
    keygen.add_argument("-o", "--output", default=".", metavar="DIR", help="directory for NAME.key and NAME.crt")
    keygen.set_defaults(run=run_keygen)

    listen = commands.add_parser("listen", help="serve exec and cp (in the enclave)")
    listen.add_argument("--port", type=port_number, default=DEFAULT_PORT, help="vsock port (default: %(default)s)")
    listen.add_argument(
        "--clients", default="/etc/enclavekit/clients.yaml", metavar="FILE", help="who may enter (default: %(default)s)"
    )
    listen.add_argument(
        "--root",
        default="/rootfs",
        metavar="DIR",
        help="the app's root; / where it does not exist (default: %(default)s)",
    )
    listen.add_argument("--nsm", metavar="PATH", help="default: $ENCLAVEKIT_NSM, else /dev/nsm")
    listen.set_defaults(run=run_listen)
    return parser


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    expect = parser.add_argument_group("what the enclave must prove first (one of the three)")
    expect.add_argument("--eif", metavar="FILE", help="that it runs this image (or $PIPELINE_EIF)")
    expect.add_argument("--policy", metavar="FILE", help="that it meets this policy (or $PIPELINE_POLICY)")
    expect.add_argument("--pcr", action="append", default=[], metavar="N=HEX", help="that PCR N is this; repeatable")
    expect.add_argument("--max-age", type=seconds, metavar="S", help="oldest evidence accepted, seconds")
    caller = parser.add_argument_group("who we are")
    caller.add_argument(
        "--identity", metavar="PREFIX", help="PREFIX.key and PREFIX.crt of keygen (or $PIPELINE_IDENTITY)"
    )
    weaken = parser.add_argument_group("what weakens the guarantee")
    weaken.add_argument("--allow-debug", action="store_true", help="accept an enclave in debug mode")
    weaken.add_argument(
        "--insecure-dev-root",
        metavar="PEM",
        help="trust this root instead of AWS's: emulated enclaves (or $PIPELINE_INSECURE_DEV_ROOT)",
    )
    parser.add_argument("--port", type=port_number, default=DEFAULT_PORT, help="vsock port (default: %(default)s)")
    parser.add_argument(
        "--connect-timeout",
        type=seconds,
        default=DEFAULT_CONNECT_TIMEOUT_S,
        metavar="S",
        help="keep trying to connect for S seconds (default: %(default)s)",
    )
    parser.add_argument("--system", action="store_true", help="act on the framework's root, not the app's")


def port_number(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= MAX_U32:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to {MAX_U32}")


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < MAX_TIMEOUT_S:  # nan is not either
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def as_exec_failure(args: argparse.Namespace) -> int:
    """Run exec; our own failures end with 255, whatever their kind."""
    try:
        return int(args.run(args))
    except EnclavekitError as exc:
        print(f"pipeline: {exc}", file=sys.stderr)
        return EXEC_FAILURE


def run_exec(args: argparse.Namespace) -> int:
    if not args.argv:
        raise ConfigError("exec", "", "it names no command after --")
    environment = {}
    for setting in args.env:
        name, separator, value = setting.partition("=")
        if not name or not separator:
            raise ConfigError("--env", "", f"{setting!r} is not K=V")
        environment[name] = value
    from enclavekit_pipeline.exec_client import run_exec as run
    from enclavekit_pipeline.requests import ExecRequest

    request = ExecRequest(
        argv=args.argv,
        stdin=args.interactive,
        environment=environment,
        directory=args.workdir,
        user=args.user,
        timeout_s=args.timeout,
        system=args.system,
    )
    return asyncio.run(run(make_target(args, args.cid), request))


def run_copy(args: argparse.Namespace) -> int:
    source, target = split_place(args.source), split_place(args.target)
    if (source is None) == (target is None):
        raise ConfigError("cp", "", "exactly one side must be CID:PATH")
    from enclavekit_pipeline.copy_client import copy_in, copy_out

    # an exception, so that what is half-made is removed on the way out
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    if target is not None:
        cid, path = target
        asyncio.run(copy_in(make_target(args, cid), args.source, path, system=args.system))
    elif source is not None:
        cid, path = source
        asyncio.run(copy_out(make_target(args, cid), path, args.target, system=args.system))
    return 0


def split_place(text: str) -> tuple[str, str] | None:
    """Return (CID, path) for CID:PATH; None for a path of ours, which `./` in front makes of anything."""
    cid, colon, path = text.partition(":")
    if not colon or not cid.isascii() or not cid.isdigit():
        return None
    if not path.startswith("/"):
        raise ConfigError(text, "", "the path in an enclave must be absolute")
    return cid, path


def make_target(args: argparse.Namespace, cid_text: str) -> Target:
    """Return whom to enter and on what conditions. Raises EnclavekitError before anything is sent."""
    cid = parse_cid(cid_text)
    if cid < MIN_ENCLAVE_CID:
        raise TransportError("enter", f"CID {cid_text}", "it is not an enclave's")
    from enclavekit_pipeline.client import Target
    from enclavekit_pipeline.identity import Identity
    from enclavekit_pipeline.trust import VARIABLES, build_trust

    prefix = args.identity or os.environ.get(VARIABLES["identity"])
    if not prefix:
        raise ConfigError("an enclave", "", "nothing says who we are: give --identity PREFIX (see pipeline keygen)")
    trust = build_trust(
        eif=args.eif,
        policy=args.policy,
        pcrs=args.pcr,
        insecure_dev_root=args.insecure_dev_root,
        allow_debug=args.allow_debug,
        max_age_s=args.max_age,
        environment=os.environ,
    )
    return Target(VsockAddress(cid, args.port), trust, Identity.load(prefix), args.connect_timeout)


def run_keygen(args: argparse.Namespace) -> int:
    from enclavekit_pipeline.identity import generate

    key, certificate = generate(args.name, args.output)
    print(f"key          {key}  (keep it)\ncertificate  {certificate}  (goes into images: rbuilds build --authorize)")
    return 0


def run_listen(args: argparse.Namespace) -> int:
    from enclavekit_pipeline.server import listen

    return listen(port=args.port, clients_path=args.clients, root=args.root, nsm_path=args.nsm)
