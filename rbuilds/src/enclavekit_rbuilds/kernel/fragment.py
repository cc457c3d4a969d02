# SPDX-License-Identifier: Apache-2.0
"""What we ask of a kernel's configuration, and whether it came through: Kconfig drops silently what it cannot have."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.kernel.config import Config, parse_config

MAX_NAMED = 5  # options that an error names; the rest is counted


def our_fragment(arch: str) -> str:
    """Return the fragment that comes with rbuilds."""
    place = resources.files("enclavekit_rbuilds").joinpath("data", "kernel", f"enclave-{arch}.config")
    return place.read_text(encoding="utf-8")


def render_fragment(options: Mapping[str, str]) -> str:
    """Return options as lines that Kconfig reads, in a fixed order. Pure."""
    return "".join(
        f"# {name} is not set\n" if value == "n" else f"{name}={value}\n" for name, value in sorted(options.items())
    )


def merge_fragments(texts: list[str]) -> dict[str, str]:
    """Return the options of several fragments; the later one wins. Pure. Raises ValueError."""
    merged: dict[str, str] = {}
    for text in texts:
        merged.update(parse_config(text).options)
    return merged


def check_survived(wanted: Mapping[str, str], config: Config) -> None:
    """Raise InputError if the configuration is not what was asked for, naming the options."""
    lost = [(name, value) for name, value in sorted(wanted.items()) if config.get(name) != value]
    if not lost:
        return
    named = ", ".join(f"{name}={value} (it is {config.get(name)})" for name, value in lost[:MAX_NAMED])
    more = f" and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
    version = f" of Linux {config.version}" if config.version else ""
    reason = f"{named}{more} did not come through olddefconfig{version}: this source or this compiler does not have "
    raise InputError("use", "the kernel configuration", f"{reason}it, or wants another option first")
