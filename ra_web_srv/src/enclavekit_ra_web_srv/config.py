# SPDX-License-Identifier: Apache-2.0
"""Configuration of ra-web-srv: YAML file, then flags over it."""

from __future__ import annotations

from enclavekit_core.bus import BUCKET_HASHES
from enclavekit_core.config import StrictConfig


class Config(StrictConfig, frozen=True):
    """Every key is optional."""

    listen: str = "tcp://127.0.0.1:8443"
    """Where to serve HTTPS: tcp:// or unix://. From outside the enclave it is reached through pf-proxy."""
    roots: tuple[str, ...] = ("/data",)
    """Trees whose files may be hashed and attested; every other path is refused."""
    nsm: str | None = None
    """The NSM: a character device, or the emulator's Unix socket; default $ENCLAVEKIT_NSM, else /dev/nsm."""
    bus: bool = True
    """Whether to serve the files that fs-monitor found, too."""
    nats_url: str = "nats://127.0.0.1:4222"
    credentials: str | None = None
    """Our account on the bus; default /run/nats/ra-web-srv.yaml if it is there, else none."""
    hash_bucket_name: str = BUCKET_HASHES
