# SPDX-License-Identifier: Apache-2.0
"""Flags that every subcommand has which enters an enclave: whom, on what conditions, and as whom."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from enclavekit_core.address import MAX_U32, VsockAddress
from enclavekit_core.errors import ConfigError, describe_cause

if TYPE_CHECKING:
    from enclavekit_pipeline.host.client import Target

DEFAULT_PORT = 53000  # as in host.client, which the help does not load
DEFAULT_CONNECT_TIMEOUT_S = 10.0
MAX_TIMEOUT_S = 10**9
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def add_target_flags(parser: argparse.ArgumentParser) -> None:
    expect = parser.add_argument_group("what the enclave must prove first (one of the three)")
    expect.add_argument("--eif", metavar="FILE", help="that it runs this image (or $PIPELINE_EIF)")
    expect.add_argument("--policy", metavar="FILE", help="that it meets this policy (or $PIPELINE_POLICY)")
    expect.add_argument("--pcr", action="append", default=[], metavar="N=HEX", help="that PCR N is this; repeatable")
    expect.add_argument(
        "--max-age", type=seconds, metavar="S", help="accept evidence up to S seconds old (default: 300)"
    )
    caller = parser.add_argument_group("who you are")
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
    where = parser.add_argument_group("where")
    where.add_argument("--port", type=port_number, default=DEFAULT_PORT, help="vsock port (default: %(default)s)")
    where.add_argument(
        "--connect-timeout",
        type=seconds,
        default=DEFAULT_CONNECT_TIMEOUT_S,
        metavar="S",
        help="keep trying to connect for S seconds (default: %(default)g)",
    )
    where.add_argument("--system", action="store_true", help="act on the framework's root, not the app's")


def add_surrounding_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of what runs a command: where, as whom, within what limits."""
    parser.add_argument(
        *("-e", "--env"),
        action="append",
        default=[],
        metavar="K[=V]",
        help="set in its environment, without =V to what it is in ours (nobody sees it in ps); repeatable",
    )
    parser.add_argument(
        "--env-file", action="append", default=[], metavar="FILE", help="the same from a file, one a line; repeatable"
    )
    parser.add_argument("-w", "--workdir", metavar="DIR", help="working directory (default: /)")
    parser.add_argument("-u", "--user", metavar="USER", help="name or uid, with :group if wanted (default: root)")
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=N",
        help="of each process: cpu (seconds), memory, fsize, stack, core (bytes, or 64M), nofile, nproc; repeatable",
    )


def parse_environment(settings: list[str], files: list[str], ours: Mapping[str, str]) -> dict[str, str]:
    """Return what -e and --env-file say, the former last, as with docker. Raises ConfigError.

    Args:
        ours: where a name without a value gets it from; one that is not set there is left out.
    """
    environment: dict[str, str] = {}
    for source, setting in [*_settings_in(files), *(("--env", setting) for setting in settings)]:
        name, separator, value = setting.partition("=")
        if not name:
            raise ConfigError(source, "", f"{setting!r} is neither K=V nor K")
        if separator:
            environment[name] = value
        elif name in ours:
            environment[name] = ours[name]
    return environment


def _settings_in(files: list[str]) -> Iterator[tuple[str, str]]:
    """Return (file, setting) of each line that is neither empty nor a comment."""
    for path in files:
        try:
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except UnicodeDecodeError as exc:
            raise ConfigError(path, "", "it is not UTF-8") from exc
        except OSError as exc:
            raise ConfigError(path, "", describe_cause(exc)) from exc
        for line in lines:
            if line.strip() and not line.lstrip().startswith("#"):
                yield path, line.lstrip()


def parse_limits(settings: list[str]) -> dict[str, int]:
    """Raises ConfigError."""
    from enclavekit_pipeline.wire.exec_messages import LIMITS, MAX_LIMIT

    limits = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        digits, unit = (value[:-1], UNITS[value[-1]]) if value[-1:] in UNITS else (value, 1)
        if name not in LIMITS or not digits.isascii() or not digits.isdigit() or int(digits) * unit > MAX_LIMIT:
            raise ConfigError("--limit", "", f"{setting!r} is not NAME=N with a name of {', '.join(LIMITS)}")
        limits[name] = int(digits) * unit
    return limits


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


def count(text: str) -> int:
    if text.isascii() and text.isdigit() and 0 < int(text) <= MAX_U32:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")


def split_place(text: str) -> tuple[str, str] | None:
    """Return (enclave, path) for ENCLAVE:/path; None for a path of ours, which `./` in front makes of anything.

    Raises: ConfigError for a path in an enclave that is not absolute.
    """
    enclave, colon, path = text.partition(":")
    if not colon or not enclave or "/" in enclave or enclave == ".":
        return None
    if path.startswith("/"):
        return enclave, path
    if enclave.isascii() and enclave.isdigit():
        raise ConfigError(text, "", "the path in an enclave must be absolute")
    return None  # a file of ours whose name has a colon


def make_target(args: argparse.Namespace, enclave: str) -> Target:
    """Return whom to enter and on what conditions. Raises EnclavekitError before anything is sent.

    Args: enclave: a CID, name or id.
    """
    from enclavekit_core.enclaves import find_cid

    cid = find_cid(enclave)
    from enclavekit_attestation.caller import Identity

    from enclavekit_pipeline.host.client import Target
    from enclavekit_pipeline.host.trust import VARIABLES, build_trust

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
