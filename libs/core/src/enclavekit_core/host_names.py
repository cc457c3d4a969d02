# SPDX-License-Identifier: Apache-2.0
"""Host names as policies and packets have them, and patterns over them. Pure."""

from __future__ import annotations

import re

MAX_NAME = 253  # RFC 1035 without the root's dot
LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
WILDCARD = "*."


def normalise_name(text: str) -> str | None:
    """Return the name in lower case without the root's dot; None if it is no host name, or an address.

    Internationalised names have to be in the form that packets have, xn--: anything beyond ASCII is no name.
    """
    if not text.isascii():
        return None  # before `lower`, which makes a k of the Kelvin sign
    name = text.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > MAX_NAME or not all(map(LABEL.fullmatch, labels)) or labels[-1].isdigit():
        return None
    return name


def normalise_pattern(text: str) -> str | None:
    """Return an exact name or `*.name` in normal form; None if it is neither."""
    wild = text.startswith(WILDCARD)
    name = normalise_name(text.removeprefix(WILDCARD) if wild else text)
    return None if name is None else (WILDCARD + name if wild else name)


def matches(pattern: str, name: str) -> bool:
    """Say whether `name` is the pattern's, both in normal form. `*.a.b` is every name below a.b, not a.b itself."""
    if pattern.startswith(WILDCARD):
        return name.endswith(pattern[1:]) and len(name) > len(pattern) - 1
    return name == pattern
