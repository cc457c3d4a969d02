# SPDX-License-Identifier: Apache-2.0
"""What is known of a kernel: a file, and what its configuration says of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.kernel.config import Config, read_config_of
from enclavekit_rbuilds.kernel.image import read_version
from enclavekit_rbuilds.kernel.rules import is_nitro_capable

COMPRESSION_OPTIONS = {"gzip": "CONFIG_RD_GZIP", "zstd": "CONFIG_RD_ZSTD"}
NSM_MODULE = "nsm"
MAX_CMDLINE_BYTES = 2047  # COMMAND_LINE_SIZE of x86 and arm64, less the NUL


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel image on disk and what is known about it."""

    path: str
    name: str
    version: str
    nitro_capable: bool | None
    """Whether it finds Nitro's devices; None if its configuration is not known."""
    modules: tuple[str, ...] = ()
    """Module files to pack, in load order."""
    egress_modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Module files to pack after these, for images that divert what their apps send: nft or iptables -> files."""
    cmdline: str | None = None
    """The command line that belongs to it; None: the default."""
    compressions: frozenset[str] | None = None
    """The compressions of ramdisks that it reads; None if nobody knows."""
    config: Config | None = field(default=None, repr=False)
    """None if nobody knows."""


def describe_kernel(
    path: str,
    name: str,
    *,
    version: str = "",
    config: Config | None = None,
    modules: tuple[str, ...] = (),
    egress_modules: Mapping[str, tuple[str, ...]] | None = None,
    cmdline: str | None = None,
) -> Kernel:
    """Return a kernel with what its configuration says; the one inside the image if `config` is None."""
    config = read_config_of(path) if config is None else config
    return Kernel(
        path=path,
        name=name,
        version=version or read_version(path) or (config.version if config else "") or "unknown",
        nitro_capable=None if config is None else is_nitro_capable(config, module_names(modules)),
        modules=modules,
        egress_modules=egress_modules or {},
        cmdline=cmdline,
        compressions=None if config is None else compressions_of(config),
        config=config,
    )


def module_names(paths: tuple[str, ...]) -> frozenset[str]:
    """Return what the kernel calls these module files."""
    return frozenset(path.rpartition("/")[2].removesuffix(".ko").replace("-", "_") for path in paths)


def compressions_of(config: Config) -> frozenset[str]:
    """Return the compressions of ramdisks that a kernel with this configuration unpacks."""
    return frozenset(name for name, option in COMPRESSION_OPTIONS.items() if config.has(option)) | {"none"}


def read_cmdline(path: str) -> str:
    """Return the command line in a file, without the newline at its end. Raises InputError."""
    try:
        with open(path, "rb") as source:
            text = source.read(MAX_CMDLINE_BYTES + 2).strip()
    except OSError as exc:
        raise InputError("read kernel command line", path, describe_cause(exc)) from exc
    if not text or len(text) > MAX_CMDLINE_BYTES or re.search(rb"[^\x20-\x7e]", text):
        raise InputError("use kernel command line", path, "it is not one line of text")
    return text.decode("ascii")
