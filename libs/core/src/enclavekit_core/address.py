# SPDX-License-Identifier: Apache-2.0
"""Addresses in their one text form: `vsock://CID:PORT`, `unix:///path`, `tcp://host:port`. Pure.

CID is a number or `any`, `parent`, `hypervisor`, `local`. The forms of the Rust tools, `CID:PORT` and `host:port`,
are accepted where a flag says which of the two it takes (`default_scheme`).
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass

from enclavekit_core.errors import ConfigError

CID_HYPERVISOR = 0
CID_LOCAL = 1
CID_HOST = 2
CID_PARENT = 3  # the parent instance as an enclave sees it (AWS)
CID_ANY = 0xFFFFFFFF
MIN_ENCLAVE_CID = 4
PORT_ANY = 0xFFFFFFFF
MAX_U32 = 0xFFFFFFFF
MAX_TCP_PORT = 65535
PORT_RANGE = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?", re.ASCII)

CID_NAMES = {"hypervisor": CID_HYPERVISOR, "local": CID_LOCAL, "parent": CID_PARENT, "any": CID_ANY}
NAMES_OF_CIDS = {number: name for name, number in CID_NAMES.items()}


@dataclass(frozen=True, slots=True)
class VsockAddress:
    cid: int
    """0..2**32-1."""
    port: int
    """0..2**32-1."""

    def __str__(self) -> str:
        return f"vsock://{NAMES_OF_CIDS.get(self.cid, self.cid)}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    path: str

    def __str__(self) -> str:
        return f"unix://{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    host: str
    """Name or literal; IPv6 literals without brackets."""
    port: int
    """0..65535; 0 only makes sense for listening."""

    def __str__(self) -> str:
        return f"tcp://[{self.host}]:{self.port}" if ":" in self.host else f"tcp://{self.host}:{self.port}"


Address = VsockAddress | UnixAddress | TcpAddress


def parse_cid(text: str, within: str = "") -> int:
    """Return the CID named by `text`. Raises ConfigError, which quotes `within`, the address that it is part of."""
    if text in CID_NAMES:
        return CID_NAMES[text]
    return _parse_number(text, "CID", MAX_U32, within or text)


def parse_address(text: str, default_scheme: str = "") -> Address:
    """Parse an address.

    Args:
        text: one of the three forms; without a scheme, `default_scheme` ("vsock" or "tcp") says which it is.
    Raises:
        ConfigError, naming the part that is wrong.
    """
    scheme, sep, rest = text.partition("://")
    if not sep:
        scheme, rest = default_scheme, text
    match scheme:
        case "vsock":
            cid, port = _split_port(rest, text)
            return VsockAddress(parse_cid(cid, text), _parse_number(port, "port", MAX_U32, text))
        case "tcp":
            host, port = _split_port(rest, text)
            host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
            if not host:
                raise ConfigError(f"address {text!r}", "", "it names no host")
            return TcpAddress(host, _parse_number(port, "port", MAX_TCP_PORT, text))
        case "unix":
            if not rest.startswith("/"):
                raise ConfigError(f"address {text!r}", "", "a unix address needs an absolute path")
            return UnixAddress(rest)
        case _:
            raise ConfigError(f"address {text!r}", "", "it must start with vsock://, unix:// or tcp://")


def parse_listed_address(text: str, source: str) -> TcpAddress | UnixAddress:
    """Parse an address of a list that others are compared with: TCP or Unix, in its one text form and no other.

    Raises: ConfigError, naming `source`.
    """
    address = parse_address(text)
    if isinstance(address, VsockAddress) or str(address) != text:
        raise ConfigError(source, "", f"{text!r} is neither tcp://HOST:PORT nor unix:///PATH, written plainly")
    if isinstance(address, UnixAddress) and posixpath.normpath(address.path) != address.path:
        raise ConfigError(source, "", f"path {address.path!r} is not plain")
    return address


def parse_port_range(port: int | str) -> tuple[int, int]:
    """Return the first and last port of a number or `FIRST-LAST`. Raises ValueError that says what is wrong."""
    found = PORT_RANGE.fullmatch(str(port))
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last <= MAX_TCP_PORT:
        raise ValueError(f"{port!r} is neither a port nor a range FIRST-LAST of ports")
    return first, last


def _split_port(rest: str, text: str) -> tuple[str, str]:
    head, sep, port = rest.rpartition(":")
    if not sep:
        raise ConfigError(f"address {text!r}", "", "it has no port")
    return head, port


def _parse_number(digits: str, what: str, limit: int, text: str) -> int:
    # str.isdigit alone would let other scripts' digits through
    if not (digits.isascii() and digits.isdigit()) or int(digits) > limit:
        raise ConfigError(f"address {text!r}", "", f"{what} {digits!r} is not a number from 0 to {limit}")
    return int(digits)
