# SPDX-License-Identifier: Apache-2.0
"""Configuration of fs-monitor: YAML file, then flags over it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence

from enclavekit_core.bus import BUCKET_HASHES, BUCKET_RECORDS
from enclavekit_core.config import StrictConfig
from enclavekit_core.errors import ConfigError

from enclavekit_fs_monitor.waiting import Patience

DEFAULT_SOCKET = "unix:///run/fs-monitor.sock"
MAX_REPLICAS = 5  # of JetStream


class Config(StrictConfig, frozen=True):
    """Every key is optional."""

    roots: tuple[str, ...] = (".",)
    """Trees to watch; resolved once, at the start. None may lie in another."""
    ignore_file: str = ".fsignore"
    """What not to hash, in gitignore syntax; relative to the working directory. Read again when it changes."""
    excluded: tuple[str, ...] = ("/dev", "/log", "/proc", "/run", "/sys")
    """Absolute paths that are left out of a root that holds them: the enclave's own logs, and the bus's store."""
    nats_url: str = "nats://127.0.0.1:4222"
    """The bus; several servers of a cluster with commas between them."""
    credentials: str | None = None
    """Our account on the bus (YAML: user, password); default /run/nats/fs-monitor.yaml if it is there, else none."""
    kv_bucket_name: str = BUCKET_HASHES
    """Bucket for the hashes. Enclaves that share a cluster need one each."""
    records_bucket_name: str = BUCKET_RECORDS
    """Bucket for size, time and generation; empty: none."""
    replicas: int = 1
    """Copies of a bucket that we make, 1..5: at most as many as the cluster has servers."""
    quiet_s: float = Patience().quiet_s
    """Pause between the last close of a file and its hash."""
    settle_s: float = Patience().settle_s
    """The same after a change without a close; also the first pause of a file that has a writer."""
    rescan_interval_s: float = 0.0
    """Scan everything this often, whether or not something happened; 0: never."""
    socket: str = DEFAULT_SOCKET
    """Where `status` and `hash` are answered: unix://, for its owner only."""
    metrics_listen: str = ""
    """Where metrics and health are served over HTTP, e.g. tcp://127.0.0.1:9464; empty: on the socket only."""


def check(config: Config) -> Config:
    """Return the configuration if its values make sense together. Raises ConfigError."""
    if not 1 <= config.replicas <= MAX_REPLICAS:
        raise ConfigError("configuration", "replicas", f"{config.replicas} is not 1 to {MAX_REPLICAS}")
    for name in ("quiet_s", "settle_s", "rescan_interval_s"):
        if getattr(config, name) < 0:
            raise ConfigError("configuration", name, "it is negative")
    if not config.roots:
        raise ConfigError("configuration", "roots", "there is none")
    check_apart([os.fsencode(os.path.realpath(root)) for root in config.roots])
    return config


def check_apart(roots: Sequence[bytes]) -> None:
    """Raise ConfigError if one of `roots` is, or lies in, another: a file has one path."""
    ordered = sorted(root.rstrip(b"/") + b"/" for root in roots)
    for one, other in itertools.pairwise(ordered):
        if other.startswith(one):
            raise ConfigError("configuration", "roots", f"{os.fsdecode(other[:-1])} lies in {os.fsdecode(one)}")
