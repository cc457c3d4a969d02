# SPDX-License-Identifier: Apache-2.0
"""How an app wants to be run: the part of a container image's configuration that an enclave honours. Pure.

Source: OCI image specification, config.md; docker-save writes the same keys.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from enclavekit_core.errors import InputError

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # what container engines set
MAX_LIST = 4096


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """ENTRYPOINT, CMD, ENV, WORKDIR, USER and STOPSIGNAL of an image."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    user: str = ""
    """`user`, `uid`, `user:group` or `uid:gid`; empty is root."""
    working_directory: str = "/"
    stop_signal: str = "SIGTERM"
    volumes: tuple[str, ...] = ()
    """VOLUME directories: made if they are missing, as engines do."""
    notes: tuple[str, ...] = ()
    """What of the image's configuration does nothing in an enclave, in words."""

    @property
    def argv(self) -> tuple[str, ...]:
        return self.entrypoint + self.cmd


@dataclass(frozen=True, slots=True)
class Overrides:
    """What flags or `enclave.yaml` say instead; None leaves the image's value."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    environment: dict[str, str] | None = None
    user: str | None = None
    working_directory: str | None = None
    stop_signal: str | None = None

    def apply(self, config: ImageConfig) -> ImageConfig:
        """Return `config` with these values; variables are added one by one, an entrypoint discards the image's CMD."""
        if self.entrypoint is not None:
            config = replace(config, entrypoint=self.entrypoint, cmd=())  # as `docker run --entrypoint`
        if self.cmd is not None:
            config = replace(config, cmd=self.cmd)
        if self.environment:
            config = replace(config, environment={**config.environment, **self.environment})
        if self.user is not None:
            config = replace(config, user=self.user)
        if self.working_directory is not None:
            config = replace(config, working_directory=self.working_directory)
        if self.stop_signal is not None:
            config = replace(config, stop_signal=self.stop_signal)
        return config


def parse_image_config(document: Any, what: str) -> ImageConfig:
    """Return the run configuration inside an image configuration document. Raises InputError."""
    run = document.get("config") if isinstance(document, dict) else None
    if run is None and isinstance(document, dict):
        run = {}
    if not isinstance(run, dict):
        raise InputError("read", what, "its image configuration is not an object")

    def strings(key: str) -> tuple[str, ...]:
        value = run.get(key) or []
        if not isinstance(value, list) or len(value) > MAX_LIST or not all(isinstance(word, str) for word in value):
            raise InputError("read", what, f"{key} in its image configuration is not a list of strings")
        return tuple(value)

    def text(key: str, default: str) -> str:
        value = run.get(key) or default
        if not isinstance(value, str):
            raise InputError("read", what, f"{key} in its image configuration is not a string")
        return value

    def keys(name: str) -> tuple[str, ...]:
        value = run.get(name) or {}
        if not isinstance(value, dict) or len(value) > MAX_LIST:
            raise InputError("read", what, f"{name} in its image configuration is not an object")
        return tuple(sorted(value))

    return ImageConfig(
        entrypoint=strings("Entrypoint"),
        cmd=strings("Cmd"),
        environment=parse_environment(strings("Env"), what),
        user=text("User", ""),
        working_directory=text("WorkingDir", "/"),
        stop_signal=text("StopSignal", "SIGTERM"),
        volumes=keys("Volumes"),
        notes=_describe_ignored(keys("ExposedPorts"), keys("Volumes"), run.get("Healthcheck")),
    )


def _describe_ignored(ports: tuple[str, ...], volumes: tuple[str, ...], healthcheck: Any) -> tuple[str, ...]:
    """Say what an engine would have done and an enclave does not."""
    notes = []
    if ports:
        notes.append(f"EXPOSE {' '.join(ports)}: no port is reachable unless the network rules let it in")
    if volumes:
        notes.append(f"VOLUME {' '.join(volumes)}: a directory in the enclave's memory, empty again at each start")
    if isinstance(healthcheck, dict) and healthcheck.get("Test") not in (None, [], ["NONE"]):
        notes.append("HEALTHCHECK: nothing runs it in an enclave")
    return tuple(notes)


def parse_environment(items: tuple[str, ...], what: str) -> dict[str, str]:
    """Return NAME=value items as a dict, in their order. Raises InputError."""
    environment = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not name or not equals:
            raise InputError("use", what, f"the variable {item!r} is not NAME=value")
        environment[name] = value
    return environment
