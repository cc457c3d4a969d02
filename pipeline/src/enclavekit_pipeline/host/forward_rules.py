# SPDX-License-Identifier: Apache-2.0
"""What `pipeline forward -L` and `-R` say: who listens where, and where its connections go. Pure but for the current
directory, which paths on this side are relative to.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from enclavekit_core.address import TcpAddress, UnixAddress, parse_address
from enclavekit_core.errors import ConfigError

from enclavekit_pipeline.wire.forward_messages import ForwardAddress

LOOPBACK = "127.0.0.1"
# what ssh takes: [BIND:]PORT:HOST:PORT, IPv6 in brackets
SSH_RULE = re.compile(r"(?:(\[[^]]+\]|[^][:=]+):)?(\d+):(\[[^]]+\]|[^][:=]+):(\d+)", re.ASCII)
UNIX = "unix:"


@dataclass(frozen=True)
class Forward:
    """One -L or -R."""

    listen: ForwardAddress
    target: ForwardAddress
    reverse: bool = False
    """-R: the enclave listens, and we connect."""


def parse_forward(text: str, *, reverse: bool) -> Forward:
    """Return what `[BIND:]PORT|unix:PATH=TARGET` says, or ssh's `[BIND:]PORT:HOST:PORT`. Raises ConfigError."""
    flag = "-R" if reverse else "-L"
    if found := SSH_RULE.fullmatch(text):
        bind, port, host, target_port = found.groups()
        listen, target = f"{bind}:{port}" if bind else port, f"{host}:{target_port}"
    else:
        listen, _, target = text.partition("=")
    if not listen or not target:
        raise ConfigError(flag, "", f"{text!r} is neither LISTEN=TARGET, say 8443=8443, nor PORT:HOST:PORT")
    return Forward(
        listen=parse_end(listen, flag, here=not reverse, listens=True),
        target=parse_end(target, flag, here=reverse, listens=False),
        reverse=reverse,
    )


def parse_end(text: str, flag: str, *, here: bool, listens: bool) -> ForwardAddress:
    """Return the address that `text` stands for: PORT, HOST:PORT, tcp://HOST:PORT, unix:PATH or unix:///PATH.

    Args:
        here: whether it is on this machine, where a path may be relative.
        listens: whether it is listened on; then port 0, any free one, makes sense.
    Raises:
        ConfigError.
    """
    if text.startswith(UNIX):
        path = text.removeprefix(UNIX)
        path = path.removeprefix("//") if path.startswith("///") else path
        if here and path:
            path = os.path.abspath(path)
        if not path.startswith("/") or path.startswith("//") or path.endswith("/"):
            raise ConfigError(flag, "", f"{text!r} names no socket" if here else f"{text!r} is not absolute")
        return UnixAddress(path)
    address = TcpAddress(LOOPBACK, _port(text, flag)) if text.isascii() and text.isdigit() else parse_tcp(text, flag)
    if not listens and not address.port:
        raise ConfigError(flag, "", f"{text!r} has no port to connect to")
    return address


def parse_tcp(text: str, flag: str) -> TcpAddress:
    """Raises ConfigError."""
    address = parse_address(text, "tcp")
    if not isinstance(address, TcpAddress):
        raise ConfigError(flag, "", f"{text!r} is neither TCP nor a Unix socket")
    return address


def _port(text: str, flag: str) -> int:
    return parse_tcp(f"{LOOPBACK}:{text}", flag).port
