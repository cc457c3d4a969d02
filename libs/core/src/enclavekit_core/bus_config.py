# SPDX-License-Identifier: Apache-2.0
"""The configuration of the enclave's NATS server: one account per service, each with the least it needs. Pure.

    fs-monitor   creates the buckets fs_hashes and fs_records, writes, lists and purges them
    ra-web-srv   reads both; creates fs_att_docs, writes and reads it

A service's inbox has a prefix of its own (`inbox_prefix`), so that no service can listen to another's replies.
Source: NATS documentation, "Authorization"; subjects of the JetStream API as of nats-server 2.9.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from enclavekit_core.bus import (
    BUCKET_DOCUMENTS,
    BUCKET_HASHES,
    BUCKET_RECORDS,
    MAX_KEY_CHARS,
    SERVICE_FS_MONITOR,
    SERVICE_RA,
)

SERVICES = (SERVICE_FS_MONITOR, SERVICE_RA)
DEFAULT_MAX_STORE_BYTES = 256 * 1024 * 1024  # on a tmpfs: half a million files with their hashes and records fit
MAX_PAYLOAD_BYTES = 64 * 1024  # a hash is 64 bytes, a listing arrives entry by entry
MAX_CONTROL_LINE_BYTES = 4 * MAX_KEY_CHARS  # a subject holds a whole key; NATS's own 4096 is less than a long path
MAX_CONNECTIONS = 32  # two services, a reconnect of each, and somebody who looks


@dataclass(frozen=True, slots=True)
class Server:
    """What of the server's configuration differs between installations."""

    host: str
    port: int
    """1..65535."""
    store_directory: str
    max_store_bytes: int = DEFAULT_MAX_STORE_BYTES


def inbox_prefix(service: str) -> str:
    """Return the prefix of the subjects on which `service` gets replies."""
    return f"_INBOX_{service}"


def permissions(service: str) -> dict[str, list[str]]:
    """Return the subjects that `service` may publish and subscribe to."""
    hashes = (BUCKET_HASHES, BUCKET_RECORDS)
    owned = hashes if service == SERVICE_FS_MONITOR else (BUCKET_DOCUMENTS,)
    readable = hashes if service == SERVICE_FS_MONITOR else (*hashes, BUCKET_DOCUMENTS)
    publish = [subject for bucket in readable for subject in _reading(f"KV_{bucket}")]
    for bucket in owned:
        # purging takes away what a deletion leaves, which would else stay for ever
        stream = f"KV_{bucket}"
        publish += [f"$JS.API.STREAM.CREATE.{stream}", f"$JS.API.STREAM.PURGE.{stream}", f"$KV.{bucket}.>"]
    return {"publish": publish, "subscribe": [f"{inbox_prefix(service)}.>"]}


def _reading(stream: str) -> list[str]:
    return [
        f"$JS.API.STREAM.INFO.{stream}",
        f"$JS.API.STREAM.MSG.GET.{stream}",
        f"$JS.API.CONSUMER.CREATE.{stream}",
        f"$JS.API.CONSUMER.CREATE.{stream}.>",
        f"$JS.API.CONSUMER.INFO.{stream}.*",
        f"$JS.API.CONSUMER.DELETE.{stream}.*",
        f"$JS.FC.{stream}.>",
    ]


def render_config(server: Server, passwords: dict[str, str]) -> str:
    """Return the text of nats.conf.

    Args:
        passwords: service -> password, for each of SERVICES.
    """
    users = ",\n    ".join(
        json.dumps({"user": service, "password": passwords[service], "permissions": permissions(service)})
        for service in SERVICES
    )
    # JSON strings are NATS configuration strings; there is no http port: monitoring would show every subject
    return f"""# Written by enclavekit_core.bus_setup; holds the passwords of this boot.
server_name: "enclave"
host: {json.dumps(server.host)}
port: {server.port}
max_connections: {MAX_CONNECTIONS}
max_payload: {MAX_PAYLOAD_BYTES}
max_control_line: {MAX_CONTROL_LINE_BYTES}
jetstream {{
  store_dir: {json.dumps(server.store_directory)}
  max_memory_store: 0
  max_file_store: {server.max_store_bytes}
}}
authorization {{
  users: [
    {users}
  ]
}}
"""
