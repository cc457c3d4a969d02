# SPDX-License-Identifier: Apache-2.0
"""The enclave.yaml that `rbuilds init` writes: what there is to say about an enclave, most of it commented out."""

from __future__ import annotations

import json
import os
import re

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_rbuilds.manifest.model import FILE_NAME

TEMPLATE = """\
# The manifest of an enclave: `rbuilds build` in this directory reads it. Every key may be left out, an unknown one is
# an error, and a flag of `rbuilds build` wins over what is here. Paths are relative to this file.
# `rbuilds schema` prints its JSON schema.

name: {name}
version: "1.0"

# Where the app comes from: exactly one of dockerfile, archive and rootfs.
app:
  {source}

# How the app is run. For a container image these replace what the image says.
{entrypoint}
# cmd: [--listen, "127.0.0.1:8080"]
# env: {{LOG_LEVEL: info}}
# user: app
# workdir: /srv
# stop_signal: SIGTERM

# What the framework runs beside the app; this is the default.
#   attestation   fresh evidence over HTTPS (port 8443)
#   files         hashes of the files in /data, for the attestation server
#   pipeline      exec and cp for those listed under clients
services: [attestation, files, pipeline]

# What the app may reach over TCP, by name, *.NAME, address or range; and which of its ports the parent may reach.
# Nothing else goes in or out, and no other name is resolved.
# network:
#   egress:
#     - {{host: api.example.com, port: 443}}
#   ingress:
#     - {{port: 8080}}

# Who may enter, by certificate (`pipeline keygen` makes one). Nobody is listed: nobody may.
# clients:
#   - certificate: keys/alice.crt
#     allow: [exec, cp-in, cp-out, shell]

# What `rbuilds run` asks for.
resources:
  memory_mib: 1024
  cpus: 2

# Debian's kernel is for the emulator only. For Nitro: made (`rbuilds kernel make`), blobs (AWS's own), or a file.
# kernel:
#   source: made

# Who signs the image; PCR8 then names the certificate.
# signing:
#   key: keys/signing.key
#   certificate: keys/signing.crt
"""


def write_starter(directory: str, name: str | None = None) -> str:
    """Write the file and return its path. Raises InputError, also if there is one already."""
    path = os.path.normpath(os.path.join(directory, FILE_NAME))
    default = re.sub(r"[^a-z0-9._-]+", "-", os.path.basename(os.path.abspath(directory)).lower()).strip("-.")
    has_dockerfile = os.path.isfile(os.path.join(directory, "Dockerfile"))
    text = TEMPLATE.format(
        name=json.dumps(name or default or "app"),  # a JSON string is a YAML one
        source="dockerfile: Dockerfile\n  # context: ."
        if has_dockerfile
        else "rootfs: rootfs\n  # dockerfile: Dockerfile",
        entrypoint="# entrypoint: [/bin/serve]" if has_dockerfile else "entrypoint: [/bin/serve]",
    )
    try:
        with open(path, "x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError as exc:
        raise InputError("write", path, "it exists") from exc
    except OSError as exc:
        raise InputError("write", path, describe_cause(exc)) from exc
    return path
