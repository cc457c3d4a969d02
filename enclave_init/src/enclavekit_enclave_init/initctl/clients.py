# SPDX-License-Identifier: Apache-2.0
"""Who may control the enclave from outside: what of the measured list counts for initctl's gateway. Pure but for
reading the file.

The list is pipeline's, `/etc/enclavekit/clients.yaml`, and read as strictly; of each client counts here

    name, certificate or spki_sha256
    control: [status, logs]            # permissions as in docs/reference/initctl.md, or all; absent: nothing
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

import msgspec
from enclavekit_attestation.caller import check_proof, key_of_client
from enclavekit_core.config import load_config
from enclavekit_core.errors import ConfigError, VerificationError

from enclavekit_enclave_init.initctl.access import parse_permissions

CLIENTS_PATH = "/etc/enclavekit/clients.yaml"


class Entry(msgspec.Struct, frozen=True):
    """One entry; what else it has is pipeline's, which refuses what it does not know."""

    name: str
    control: list[str] = []
    certificate: str | None = None
    """PEM; exactly one of this and `spki_sha256`."""
    spki_sha256: str | None = None
    """Hex."""


class ClientFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    clients: list[Entry]


@dataclass(frozen=True, slots=True)
class Client:
    """One client who may ask for something."""

    name: str
    permissions: frozenset[str]
    spki_sha256: bytes


class Clients:
    """The list, ready for look-ups."""

    def __init__(self, file: ClientFile, source: str) -> None:
        """Raises ConfigError; also if nobody in the list may ask anything. Who may not is checked all the same."""
        names: set[str] = set()
        owners: dict[bytes, str] = {}
        self._clients: list[Client] = []
        for entry in file.clients:
            if entry.name in names:
                raise ConfigError(source, entry.name, "two clients have this name")
            names.add(entry.name)
            try:
                key = key_of_client(entry.certificate, entry.spki_sha256)
            except ValueError as exc:
                raise ConfigError(source, entry.name, str(exc)) from exc
            if key in owners:
                raise ConfigError(source, entry.name, f"it has the key of {owners[key]}")
            owners[key] = entry.name
            if entry.control:
                permissions = parse_permissions(entry.control, source, f"{entry.name}: control")
                self._clients.append(Client(entry.name, permissions, key))
        if not self._clients:
            raise ConfigError(source, "control", "nobody in it may control the enclave")

    @classmethod
    def load(cls, path: str) -> Clients:
        """Read the list. Raises ConfigError: no list, no listener."""
        return cls(load_config(ClientFile, path), path)

    def authenticate(self, certificate_der: bytes, signature: bytes, signed: bytes) -> Client:
        """Return who made `signature` over `signed`. Raises VerificationError."""
        caller = check_proof(certificate_der, signature, signed)
        for client in self._clients:
            if hmac.compare_digest(client.spki_sha256, caller.spki_sha256):
                return client
        raise VerificationError("the caller", "nobody in the enclave's list who may control it has this key")
