# SPDX-License-Identifier: Apache-2.0
"""What every set of nftables rules of ours has in common: a table of its own that goes in and out as a whole.

One script is one transaction of the kernel: all of it is in, or nothing has changed. Source: nft(8).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from enclavekit_core.ip_addresses import IpAddress

PLACE = re.compile(r"^\S*?:\d+:\d+-\d+: ")  # file, line and columns


def render_removal(families: Iterable[str], name: str) -> str:
    """Return the lines that take table `name` out of each family; they succeed, too, where there is none."""
    return "\n".join(f"table {family} {name}\ndelete table {family} {name}" for family in families)


def render_target(address: IpAddress, port: int) -> str:
    """Return the statement that leads a connection to a listener on `address`."""
    if address.is_unspecified or str(address) in ("127.0.0.1", "::1"):
        return f"redirect to :{port}"
    # redirect would choose the interface's first address, which need not be the one that is listened on
    return f"dnat to [{address}]:{port}" if address.version == 6 else f"dnat to {address}:{port}"


def cause_of(stderr: str) -> str:
    """Return why nft failed: its first line, without the place in a script that nobody wrote."""
    first = next((line for line in stderr.splitlines() if line.strip()), "no message")
    return PLACE.sub("", first.strip()).removeprefix("Error: ").rstrip(";")
