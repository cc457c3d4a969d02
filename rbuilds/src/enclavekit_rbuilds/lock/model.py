# SPDX-License-Identifier: Apache-2.0
"""The lock file: what it holds, how it is written, and how two lists of inputs differ. Pure but for reading the file.

YAML with one input per line, sorted, so that a review shows which input changed and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated, Literal

import msgspec
from enclavekit_core.config import StrictConfig, load_config
from enclavekit_core.errors import ConfigError
from msgspec import Meta

from enclavekit_rbuilds.base.inputs import Input

FILE_NAME = "rbuilds.lock"
VERSION = 1
HEADER = """\
# What an image is made of. Written by `rbuilds lock`, held to by `rbuilds build --locked`.
"""

Service = Literal["attestation", "egress", "egress-iptables", "files", "network", "pipeline", "quic"]
Text = Annotated[str, Meta(min_length=1, max_length=4096)]


class LockedInput(StrictConfig, frozen=True):
    """One input; the fields are those of Input."""

    kind: Literal["debian", "wheel", "kernel", "app", "own", "file"]
    name: Text
    version: Annotated[str, Meta(max_length=4096)]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    size: Annotated[int, Meta(ge=0)] = 0
    source: Annotated[str, Meta(max_length=4096)] = ""


class Lock(StrictConfig, frozen=True):
    """A lock file."""

    version: Literal[1]
    arch: Literal["x86_64", "aarch64"]
    services: list[Service]
    inputs: list[LockedInput]

    def by_key(self) -> dict[tuple[str, str, str], Input]:
        """Return the inputs by what they are."""
        return {key_of(one): one for one in (Input(**msgspec.structs.asdict(item)) for item in self.inputs)}

    def debian(self) -> dict[str, Input]:
        """Return the Debian packages by name: what the framework is to be made of."""
        return {one.name: one for one in self.by_key().values() if one.kind == "debian"}


def key_of(one: Input | LockedInput) -> tuple[str, str, str]:
    """Return what an input is, whichever version; an app has one role only, whatever it is called."""
    return (one.kind, "" if one.kind == "kernel" else one.name, one.source if one.kind in ("app", "file") else "")


def lock_of(arch: str, services: Collection[str], inputs: Iterable[Input]) -> Lock:
    """Return the lock for a build that took `inputs`. Raises ValueError if two of them are the same thing: our bug."""
    items = sorted(inputs, key=lambda one: (one.kind, one.name, one.source))
    if len({key_of(one) for one in items}) != len(items):
        raise ValueError("two inputs of a build have one name")
    locked = [LockedInput(**msgspec.structs.asdict(one)) for one in items]
    return msgspec.convert(
        {"version": VERSION, "arch": arch, "services": sorted(services), "inputs": msgspec.to_builtins(locked)}, Lock
    )


def render_lock(lock: Lock) -> str:
    """Return the file's text: the same for the same lock."""
    lines = [f"version: {lock.version}", f"arch: {lock.arch}", f"services: [{', '.join(sorted(lock.services))}]"]
    lines.append("inputs:" if lock.inputs else "inputs: []")
    for one in sorted(lock.inputs, key=lambda one: (one.kind, one.name, one.source)):
        fields = {name: value for name, value in msgspec.structs.asdict(one).items() if value or name == "version"}
        words = [f"{name}: {_quote(value) if isinstance(value, str) else value}" for name, value in fields.items()]
        lines.append(f"- {{{', '.join(words)}}}")
    return HEADER + "\n".join(lines) + "\n"


def _quote(text: str) -> str:
    """Return `text` as YAML has it in double quotes, in ASCII."""
    return '"' + "".join(_escape(char) for char in text) + '"'


def _escape(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    return char if " " <= char <= "~" else f"\\U{ord(char):08x}"


def load_lock(path: str) -> Lock:
    """Read a lock file. Raises ConfigError."""
    lock = load_config(Lock, path)
    seen: set[tuple[str, str, str]] = set()
    for number, one in enumerate(lock.inputs):
        if key_of(one) in seen:
            raise ConfigError(path, f"inputs[{number}]", f"{one.kind} {one.name} is there twice")
        seen.add(key_of(one))
    return lock


def compare_inputs(locked: Iterable[Input], found: Iterable[Input]) -> list[str]:
    """Return how `found` differs from `locked`, a sentence each; empty if they are the same. Pure."""
    here, there = {key_of(one): one for one in found}, {key_of(one): one for one in locked}
    differences = []
    for key in sorted(here.keys() | there.keys()):
        one, pin = here.get(key), there.get(key)
        if one is None:
            assert pin is not None
            differences.append(f"{_say(pin)} is in {FILE_NAME}, this build does not have it")
        elif pin is None:
            differences.append(f"{_say(one)} is not in {FILE_NAME}")
        elif one.version != pin.version or one.name != pin.name:
            was = pin.version if one.name == pin.name else f"{pin.name} {pin.version}".strip()
            now = one.version if one.name == pin.name else f"{one.name} {one.version}".strip()
            differences.append(f"{_say(one)} is {was} in {FILE_NAME}, {now} here")
        elif one.sha256 != pin.sha256:
            version = f" {one.version}" if one.version else ""
            differences.append(f"{_say(one)}{version} has SHA-256 {pin.sha256} in {FILE_NAME}, {one.sha256} here")
    return differences


def _say(one: Input) -> str:
    if one.source in ("context", "Dockerfile"):
        return "the Dockerfile" if one.source == "Dockerfile" else "the Dockerfile's context"
    words = {"kernel": "the kernel", "app": f"the app's {one.source or 'source'} {one.name}"}
    return words.get(one.kind, one.name)
