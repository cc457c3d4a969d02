# SPDX-License-Identifier: Apache-2.0
"""A kernel's configuration: parsed from a file, or found inside the kernel that was built with CONFIG_IKCONFIG."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.kernel.image import read_image, unpack_payload

SET = re.compile(r"(CONFIG_[A-Za-z0-9_]+)=(.*)")
UNSET = re.compile(r"# (CONFIG_[A-Za-z0-9_]+) is not set")
TITLE = re.compile(r"# Linux/(\S+) (\S+) Kernel Configuration")
START, END = b"IKCFG_ST", b"IKCFG_ED"  # kernel/configs.c: a gzip file between these two
MAX_CONFIG_BYTES = 4 * 1024 * 1024  # a distribution's has 0.3


@dataclass(frozen=True, slots=True)
class Config:
    """Options and their values as written; an option that is not set has no entry, or `n` where it is said."""

    options: Mapping[str, str] = field(default_factory=dict)
    arch: str = ""
    """As the kernel calls it: x86, arm64."""
    version: str = ""

    def get(self, option: str) -> str:
        """Return the option's value; `n` if it is not set."""
        return self.options.get(option, "n")

    def has(self, option: str, *, module: bool = False) -> bool:
        """Whether it is built in, or with `module` at least a module."""
        return self.get(option) == "y" or (module and self.get(option) == "m")


def parse_config(text: str) -> Config:
    """Return what a `.config` or a fragment of one says; of two lines for one option the later counts. Pure.

    Raises: ValueError for a line that is neither an option nor a comment.
    """
    options: dict[str, str] = {}
    title = TITLE.search(text)
    for number, line in enumerate(text.splitlines(), 1):
        if match := SET.fullmatch(line.strip()):
            options[match[1]] = match[2]
        elif match := UNSET.fullmatch(line.strip()):
            options[match[1]] = "n"
        elif line.strip() and not line.lstrip().startswith("#"):
            raise ValueError(f"line {number} is no option and no comment")
    return Config(options, title[1].partition("_")[0] if title else "", title[2] if title else "")


def load_config(path: str) -> Config:
    """Return the configuration in a file. Raises InputError."""
    try:
        with open(path, "rb") as source:
            raw = source.read(MAX_CONFIG_BYTES + 1)
        if len(raw) > MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {MAX_CONFIG_BYTES} bytes")
        config = parse_config(raw.decode("utf-8"))
    except (OSError, ValueError) as exc:
        raise InputError("read kernel configuration", path, describe_cause(exc)) from exc
    if not config.options:
        raise InputError("read kernel configuration", path, "it sets no option")
    return config


def read_config_of(kernel: str) -> Config | None:
    """Return the configuration of a kernel image: the one inside, else the file beside it; None if there is neither.

    What is inside was built with the kernel; a file beside it is somebody's word. Raises InputError.
    """
    raw = find_ikconfig(kernel)
    if raw is not None:
        try:
            return parse_config(raw.decode("utf-8"))
        except ValueError as exc:
            raise InputError("read the configuration inside", kernel, describe_cause(exc)) from exc
    folder, name = os.path.split(kernel)
    for beside in (f"{name}.config", ".config"):
        path = os.path.join(folder, beside)
        # a bare `.config` belongs to the kernel only where the kernel has its usual name
        if os.path.isfile(path) and (beside != ".config" or name in ("bzImage", "Image", "vmlinux")):
            return load_config(path)
    return None


def find_ikconfig(kernel: str) -> bytes | None:
    """Return the text of the configuration inside a kernel image, None if there is none. Raises InputError."""
    image = read_image(kernel)
    for content in (image, unpack_payload(image)):
        if content is None:
            continue
        start = content.find(START)
        while start >= 0:
            end = content.find(END, start)
            if end < 0:
                break
            if (text := _gunzip(content[start + len(START) : end])) is not None:
                return text
            start = content.find(START, start + 1)
    return None


def _gunzip(data: bytes) -> bytes | None:
    try:
        return zlib.decompressobj(31).decompress(data, MAX_CONFIG_BYTES)
    except zlib.error:
        return None
