# SPDX-License-Identifier: Apache-2.0
"""Configuration of ra-web-srv: YAML file, then flags over it."""

from __future__ import annotations

import re

from enclavekit_core.bus import BUCKET_HASHES
from enclavekit_core.config import StrictConfig
from enclavekit_core.errors import ConfigError

from enclavekit_ra_web_srv.networks import parse_networks

HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9a-fA-F:]{2,45}\])(?::[0-9]{1,5})?")


class Config(StrictConfig, frozen=True):
    """Every key is optional."""

    listen: str = "tcp://127.0.0.1:8443"
    """Where to serve HTTPS: tcp:// or unix://. From outside the enclave it is reached through pf-proxy."""
    http_listen: str | None = None
    """Where to send plain HTTP away to `public_host`, with 308; default nowhere."""
    public_host: str | None = None
    """Host, and port if it is not 443, at which clients reach `listen`."""
    proxied_listen: str | None = None
    """A second place to serve HTTPS, for a proxy that says by the PROXY protocol (version 2) who its clients are."""
    proxied_from: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """Addresses and networks of proxies: other connections to `proxied_listen` are refused."""
    client_ca: str | None = None
    """PEM file: clients of routes about files need a certificate issued by one of these; default none is asked for."""
    roots: tuple[str, ...] = ("/data",)
    """Trees whose files may be hashed and attested; every other path is refused."""
    nsm: str | None = None
    """The NSM: a character device, or the emulator's Unix socket; default $ENCLAVEKIT_NSM, else /dev/nsm."""
    vrf_cipher_suite: str = "ECVRF-EDWARDS25519-SHA512-TAI"
    """Of the VRF proofs; its library is in constant time. Those of the other curves: see libs/ecvrf."""
    bus: bool = True
    """Whether to serve the files that fs-monitor found, too."""
    nats_url: str = "nats://127.0.0.1:4222"
    credentials: str | None = None
    """Our account on the bus; default /run/nats/ra-web-srv.yaml if it is there, else none."""
    hash_bucket_name: str = BUCKET_HASHES
    insecure_dev_root: str | None = None
    """Root (PEM) that the /verify_* routes trust instead of AWS's: in an emulated enclave."""

    def check(self) -> None:
        """Raise ConfigError for keys that cannot go together."""
        if self.http_listen is not None and self.public_host is None:
            raise ConfigError("http_listen", "", "it needs public_host: where clients are sent")
        if self.public_host is not None and not HOST.fullmatch(self.public_host):
            raise ConfigError("public_host", "", f"{self.public_host!r:.100} is not a host, or host:port")
        parse_networks(self.proxied_from)
