# SPDX-License-Identifier: Apache-2.0
"""`enclave.yaml`: what a builder says about an app beside its files. Strict; flags override it.

Paths in it are relative to the file, so that an app's folder can be moved as a whole.
"""

from __future__ import annotations

from enclavekit_core.config import StrictConfig, load_config

from enclavekit_rbuilds.app.image_config import Overrides


class AppConfig(StrictConfig, frozen=True):
    """The whole file; every key may be left out."""

    name: str | None = None
    """ImageName in the image's metadata; default: the output file's name."""
    version: str | None = None
    """ImageVersion in the image's metadata."""
    entrypoint: list[str] | None = None
    """Replaces the image's ENTRYPOINT and discards its CMD."""
    cmd: list[str] | None = None
    """Replaces the image's CMD."""
    env: dict[str, str] = {}
    """Added to the image's ENV."""
    user: str | None = None
    """`name`, `uid`, `name:group` or `uid:gid`; replaces the image's USER."""
    workdir: str | None = None
    """Replaces the image's WORKDIR."""
    stop_signal: str | None = None
    """Replaces the image's STOPSIGNAL."""

    def overrides(self) -> Overrides:
        """Return what of it concerns how the app is run."""
        return Overrides(
            entrypoint=None if self.entrypoint is None else tuple(self.entrypoint),
            cmd=None if self.cmd is None else tuple(self.cmd),
            environment=dict(self.env),
            user=self.user,
            working_directory=self.workdir,
            stop_signal=self.stop_signal,
        )


def load_app_config(path: str | None) -> AppConfig:
    """Return the file's content, or the defaults without one. Raises ConfigError."""
    return AppConfig() if path is None else load_config(AppConfig, path)
