# SPDX-License-Identifier: Apache-2.0
"""Which kernel modules have to be loaded, and in which order: what each module says it depends on. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

# .modinfo holds NUL-terminated `key=value` strings (include/linux/moduleinfo.h)
DEPENDS = re.compile(rb"(?:\A|\0)depends=([^\0]*)\0")


def depends_of(module: bytes) -> tuple[str, ...]:
    """Return the names of the modules that this module file needs. Raises ValueError if it is no module."""
    match = DEPENDS.search(module) if module.startswith(b"\x7fELF") else None
    if match is None:
        raise ValueError("it is no kernel module")
    return tuple(module_name(name) for name in match[1].decode("ascii", "replace").split(",") if name)


def module_name(file_name: str) -> str:
    """Return what the kernel calls the module in this file: `-` and `_` are one to it."""
    return file_name.rpartition("/")[2].removesuffix(".ko").replace("-", "_")


def load_order(wanted: Iterable[str], depends: Callable[[str], Iterable[str] | None]) -> list[str]:
    """Return `wanted` and all they need, each after what it needs.

    Args: depends: module -> what it needs; None if there is no such module: it is built in, or not there.
    Raises: ValueError if modules need each other.
    """
    order: list[str] = []
    under_way: list[str] = []

    def visit(name: str) -> None:
        if name in order:
            return
        if name in under_way:
            raise ValueError(f"modules need each other: {', '.join(under_way)}")
        needed = depends(name)
        if needed is None:
            return
        under_way.append(name)
        for other in needed:
            visit(other)
        under_way.remove(name)
        order.append(name)

    for name in wanted:
        visit(name)
    return order
