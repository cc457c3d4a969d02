# SPDX-License-Identifier: Apache-2.0
"""Flags before the subcommand: the Rust framework's configuration file, and its protocol."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from enclavekit_core.errors import ConfigError

from enclavekit_pipeline import __version__

CONFIG_FLAGS = ("-c", "--config")
LEGACY_FLAG = "--insecure-legacy-slc"
ENCLAVE_ARGUMENTS = ("cid", "enclave")  # what subcommands call whom they enter


@dataclass(frozen=True)
class General:
    """What was given; the words after it are the subcommand's."""

    config: str | None = None
    legacy: bool = False


def add_general_flags(parser: argparse.ArgumentParser) -> None:
    """Put them into the help; `take_general` is what reads them."""
    parser.add_argument("-V", "--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(*CONFIG_FLAGS, metavar="FILE", help="YAML of the Rust framework: its cid and port are defaults")
    parser.add_argument(
        LEGACY_FLAG,
        action="store_true",
        help="speak the Rust framework's protocol: run, send-file, recv-file, send-dir, recv-dir; proves nothing",
    )


def take_general(words: list[str]) -> tuple[General, list[str]]:
    """Return the flags in front of the subcommand, and the rest. Raises ConfigError."""
    config, legacy, rest = None, False, list(words)
    while rest and rest[0].startswith("-"):
        flag, equals, value = rest[0].partition("=")
        if flag == LEGACY_FLAG and not equals:
            legacy = True
        elif flag in CONFIG_FLAGS:
            if not equals:
                rest.pop(0)
                value = rest[0] if rest else ""
            if not value or config is not None:
                raise ConfigError(flag, "", "it needs a file" if not value else "it is given twice")
            config = value
        else:
            break  # the parser's to judge, --help for one
        rest.pop(0)
    return General(config, legacy), rest


def short_usage(parser: argparse.ArgumentParser) -> str:
    """Return a usage of one line: what has to be given. The flags, of which there are many, are listed below it."""
    words = [parser.prog, "[flags]"]
    for action in parser._actions:  # argparse has no public way to look at them
        if action.required and action.metavar is not None:
            words += [*action.option_strings[:1], str(action.metavar)]
    return " ".join(words)


def apply_config(parser: argparse.ArgumentParser, *, cid: int | None, port: int | None) -> None:
    """Make what the configuration file says the default of a subcommand's arguments."""
    for action in parser._actions:  # argparse has no public way to make an argument optional afterwards
        if action.dest in ENCLAVE_ARGUMENTS and cid is not None:
            action.default, action.required = str(cid), False
            if not action.option_strings:
                action.nargs = "?"
        elif action.dest == "port" and port is not None:
            action.default, action.required = port, False
