# SPDX-License-Identifier: Apache-2.0
"""What `run-enclave` was asked for, from flags or from a --config file, checked by nitro-cli's rules. Pure.

Source: spec of nitro-cli 1.4 (commands_parser.rs, run-enclave constraints). Unknown keys of the file are ignored there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass

from enclavekit_emulator.nitro_errors import NitroError

MIB = 1024 * 1024
MEMORY_UNITS_MIB = {"m": 1, "g": 1024, "t": 1024 * 1024}
MIN_MEMORY_MIB = 64  # NE_DEFAULT_MEMORY minimum of the driver
MEMORY_PER_IMAGE_SIZE = 4  # nitro-cli's EIF_MEMORY_RATIO: packed image, unpacked root, room to run
MAX_CPUS = 4096  # the driver's bound on vCPU ids
FIRST_ENCLAVE_CID = 4
CID_ANY = 0xFFFFFFFF
MAX_NAME_CHARS = 255  # a file name, which the default comes from


@dataclass(frozen=True, slots=True)
class RunRequest:
    eif_path: str
    memory_mib: int
    """At least MIN_MEMORY_MIB and MEMORY_PER_IMAGE_SIZE times the image."""
    cpu_ids: tuple[int, ...]
    """Recorded and shown; an emulated enclave is not pinned to them."""
    cid: int = 0
    """0 = chosen by the emulator."""
    debug_mode: bool = False
    attach_console: bool = False
    """Implies debug_mode."""
    name: str = ""
    """Default: the file name of the image without `.eif`."""
    machine: str = "process"
    """process, qemu, qemu-nitro or auto."""
    announcement: str | None = None
    """Of a virtual machine's devices, cmdline or acpi; None: as the image's kernel needs it."""


def parse_memory_mib(text: str) -> int:
    """Return MiB from `512`, `512m`, `2G`, `1t`. Raises NitroError 3."""
    digits, unit = (text[:-1], text[-1].lower()) if text[-1:].isalpha() else (text, "m")
    if not (digits.isascii() and digits.isdigit()) or unit not in MEMORY_UNITS_MIB:
        raise NitroError(3, f"cannot use --memory {text}: it is not a number with an optional m, g or t")
    return int(digits) * MEMORY_UNITS_MIB[unit]


def check_cid(cid: int) -> int:
    """Return `cid` if an enclave may have it (0 = choose one). Raises NitroError 3."""
    if cid == 0 or FIRST_ENCLAVE_CID <= cid < CID_ANY:
        return cid
    raise NitroError(3, f"cannot use CID {cid}: 1, 2 and 3 are taken by the machine, and {CID_ANY} is the upper bound")


def parse_cpu_ids(texts: list[str]) -> tuple[int, ...]:
    """Return the CPU ids of --cpu-ids. Raises NitroError 20 or 23."""
    ids = []
    for text in texts:
        if not (text.isascii() and text.isdigit()) or int(text) >= MAX_CPUS:
            raise NitroError(23, f"cannot use CPU id {text}: it is not a number below {MAX_CPUS}")
        if int(text) in ids:
            raise NitroError(20, f"cannot use CPU id {text}: it was given twice")
        ids.append(int(text))
    return tuple(ids)


def choose_cpu_ids(count: int) -> tuple[int, ...]:
    """Return `count` CPU ids as a parent instance would lend them: CPU 0 stays with the parent. Raises NitroError 3."""
    if not 1 <= count < MAX_CPUS:
        raise NitroError(3, f"cannot use --cpu-count {count}: it must be from 1 to {MAX_CPUS - 1}")
    return tuple(range(1, count + 1))


def default_name(eif_path: str) -> str:
    """Return the name of an enclave that was given none."""
    return os.path.basename(eif_path).removesuffix(".eif") or "enclave"


def unique_name(wanted: str, taken: set[str]) -> str:
    """Return `wanted`, or `wanted_1`, `wanted_2`, ... if that is taken."""
    if wanted not in taken:
        return wanted
    number = 1
    while f"{wanted}_{number}" in taken:
        number += 1
    return f"{wanted}_{number}"


def check_name(name: str) -> str:
    """Return `name` if it can be shown and typed. Raises NitroError 58."""
    if not name or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise NitroError(58, f"cannot use enclave name {name!r}: it must be 1..{MAX_NAME_CHARS} printable characters")
    return name


def check_memory(request: RunRequest, eif_size_bytes: int, machine_bytes: int) -> None:
    """Apply nitro-cli's memory rules. Raises NitroError 26 or 27."""
    needed_mib = max(MEMORY_PER_IMAGE_SIZE * -(-eif_size_bytes // MIB), MIN_MEMORY_MIB)
    if request.memory_mib < MIN_MEMORY_MIB or request.memory_mib * MIB < MEMORY_PER_IMAGE_SIZE * eif_size_bytes:
        raise NitroError(
            26, f"cannot run {request.eif_path} with {request.memory_mib} MiB: it needs at least {needed_mib} MiB"
        )
    if request.memory_mib * MIB > machine_bytes:
        raise NitroError(
            27,
            f"cannot run {request.eif_path} with {request.memory_mib} MiB: the machine has {machine_bytes // MIB} MiB",
        )


def boot_timeout_s(eif_size_bytes: int, memory_mib: int) -> float:
    """Return how long to wait for the heartbeat: nitro-cli's own sum, 180 s at least."""
    per_image = 90.0 * -(-eif_size_bytes // (6 << 30))
    return per_image + 90.0 * -(-memory_mib // (100 << 10))


def parse_config(text: bytes, source: str) -> RunRequest:
    """Parse a --config file. Raises NitroError 17 (not JSON) or 3 (a key that is missing or wrong)."""
    try:
        raw = json.loads(text)
    except ValueError as exc:
        raise NitroError(17, f"cannot parse {source}: {exc}") from exc
    if not isinstance(raw, dict):
        raise NitroError(17, f"cannot parse {source}: it is not a JSON object")
    config = _Keys(raw, source)
    eif_path = config.text("eif_path")
    if eif_path is None:
        raise NitroError(3, f"cannot use {source}: eif_path is missing")
    memory_mib = config.number("memory_mib")
    if memory_mib is None:
        raise NitroError(3, f"cannot use {source}: memory_mib is missing")
    count, ids = config.number("cpu_count"), raw.get("cpu_ids")
    if (count is None) == (ids is None):
        raise NitroError(3, f"cannot use {source}: it needs exactly one of cpu_count and cpu_ids")
    if ids is not None and not isinstance(ids, list):
        raise NitroError(3, f"cannot use {source}: cpu_ids is not an array")
    attach = config.flag("attach_console")
    return RunRequest(
        eif_path=eif_path,
        memory_mib=memory_mib,
        cpu_ids=choose_cpu_ids(count) if count is not None else parse_cpu_ids([str(value) for value in ids or []]),
        cid=check_cid(config.number("enclave_cid") or 0),
        debug_mode=config.flag("debug_mode") or attach,
        attach_console=attach,
        name=check_name(config.text("enclave_name") or default_name(eif_path)),
    )


@dataclass(frozen=True, slots=True)
class _Keys:
    """Typed access to the keys of a --config file."""

    raw: Mapping[str, object]
    source: str

    def text(self, key: str) -> str | None:
        value = self.raw.get(key)
        if value is not None and not isinstance(value, str):
            raise NitroError(3, f"cannot use {self.source}: {key} is not a string")
        return value

    def number(self, key: str) -> int | None:
        value = self.raw.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise NitroError(3, f"cannot use {self.source}: {key} is not a number from 0 up")
        return value

    def flag(self, key: str) -> bool:
        value = self.raw.get(key, False)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise NitroError(3, f"cannot use {self.source}: {key} is not true or false")
        return value
