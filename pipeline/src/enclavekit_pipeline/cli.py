# SPDX-License-Identifier: Apache-2.0
"""Command `pipeline`: finds the subcommand's module, parses, runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from enclavekit_core.cli import fill_standard_streams, run_command
from enclavekit_core.errors import EnclavekitError

from enclavekit_pipeline.commands.general import General, add_general_flags, apply_config, short_usage, take_general

if TYPE_CHECKING:
    from enclavekit_pipeline.host.config import UpstreamConfig

USAGE_ERROR = 2  # argparse
EPILOG = """\
pipeline COMMAND --help says what a command takes. Exit codes: 0; 2 if what was asked for cannot be; 3 if there is no
way to the enclave, or it refuses; 6 if it does not prove what you demand. exec, run, shell and attach end with the
command's own, and with 255 for all of those.
"""
# in the order of the help
COMMANDS = (
    *("exec", "shell", "cp", "forward", "jobs", "logs", "attach", "kill", "ps", "ping", "info", "keygen", "listen"),
    *("run", "send-file", "recv-file", "send-dir", "recv-dir"),  # the Rust framework's names
)


def main(argv: list[str] | None = None) -> int:
    fill_standard_streams()
    words = sys.argv[1:] if argv is None else argv
    if not words:
        build_parser().print_help(sys.stderr)
        return USAGE_ERROR
    try:
        general, words = take_general(words)
        args = parse_words(words, general)
    except SystemExit as exc:
        # 2 would be the command's own, say grep's
        return failure_status(named_module(words), USAGE_ERROR) if exc.code == USAGE_ERROR else int(exc.code or 0)
    except EnclavekitError as exc:
        print(f"pipeline: {exc}", file=sys.stderr)
        return failure_status(named_module(words), exc.exit_code)
    return run_command("pipeline", lambda: run_module(args))


def run_module(args: argparse.Namespace) -> int:
    """Run the subcommand; its own failures end with its FAILURE_STATUS, if it has one."""
    try:
        return int(args.module.run(args))
    except EnclavekitError as exc:
        if not hasattr(args.module, "FAILURE_STATUS"):
            raise
        print(f"pipeline: {exc}", file=sys.stderr)
        return failure_status(args.module, exc.exit_code)


def failure_status(module: ModuleType | None, default: int) -> int:
    return int(getattr(module, "FAILURE_STATUS", default))


def named_module(words: list[str]) -> ModuleType | None:
    return command_module(words[0]) if words and words[0] in COMMANDS else None


def parse_words(words: list[str], general: General) -> argparse.Namespace:
    """Parse the command line; the words of a command in the enclave stay as they are, in `argv`."""
    if general.legacy:
        from enclavekit_pipeline.commands import legacy

        return legacy.parse_words(words, general)
    command: list[str] | None = None
    if "--" in words and hasattr(named_module(words), "TAKES_COMMAND"):
        middle = words.index("--")
        words, command = words[:middle], words[middle + 1 :]
    config = None
    if general.config is not None:
        from enclavekit_pipeline.host.config import load_upstream_config

        config = load_upstream_config(general.config)
    named = (words[0],) if words and words[0] in COMMANDS else COMMANDS
    args, unknown = build_parser(config, named, bare_command=command is None).parse_known_args(words)
    if unknown:  # the subcommand's own words: those of the whole would not say what it takes
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    args.argv = getattr(args, "bare_command", []) if command is None else command
    return args


def build_parser(
    config: UpstreamConfig | None = None, names: tuple[str, ...] = COMMANDS, *, bare_command: bool = False
) -> argparse.ArgumentParser:
    """Return a parser of these subcommands: one that is named need not wait for the others to load.

    `bare_command`: what follows the arguments of a subcommand that takes a command is that, without `--`.
    """
    parser = argparse.ArgumentParser(
        prog="pipeline",
        description="Run commands in an enclave and copy files, over an attested channel.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_general_flags(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in names:
        module = command_module(name)
        added = commands.add_parser(
            name,
            help=module.HELP,
            description=f"{module.HELP[0].upper()}{module.HELP[1:]}.",
            epilog=getattr(module, "EPILOG", None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(added)
        added.usage = getattr(module, "USAGE", None) or short_usage(added)
        if bare_command and hasattr(module, "TAKES_COMMAND"):
            added.add_argument("bare_command", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)
        if config is not None:
            apply_config(added, cid=config.cid, port=config.port)
        added.set_defaults(module=module, parser=added)
    return parser


def command_module(name: str) -> ModuleType:
    return importlib.import_module(f"enclavekit_pipeline.commands.{name.replace('-', '_')}")
