# SPDX-License-Identifier: Apache-2.0
"""The Rust framework's configuration file, read for what it means here: which enclave, and which port."""

from __future__ import annotations

import sys
from typing import Annotated

import msgspec
from enclavekit_core.address import MAX_U32, MIN_ENCLAVE_CID
from enclavekit_core.config import StrictConfig, load_config

Count = Annotated[int, msgspec.Meta(ge=0)]


class Buffers(StrictConfig, frozen=True):
    """Sizes that nobody has to choose here: frames, credit and retries have fixed limits."""

    buf_max_len_file_io: Count | None = None
    buf_max_len_file_path: Count | None = None
    buf_max_len_cmd: Count | None = None
    buf_max_len_cmd_io: Count | None = None
    backlog: Count | None = None
    max_connection_attempts: Count | None = None


class UpstreamConfig(StrictConfig, frozen=True):
    """`pipeline.config.yaml`; unlike there, every key may be left out."""

    cid: Annotated[int, msgspec.Meta(ge=MIN_ENCLAVE_CID, lt=MAX_U32)] | None = None
    """Default of every CID on the command line."""
    port: Annotated[int, msgspec.Meta(ge=0, le=MAX_U32)] | None = None
    """Default of --port, of `listen` too."""
    buffers: Buffers = Buffers()


def load_upstream_config(path: str) -> UpstreamConfig:
    """Read the file; what is in it and means nothing here is named on stderr. Raises ConfigError."""
    config = load_config(UpstreamConfig, path)
    unused = [name for name in Buffers.__struct_fields__ if getattr(config.buffers, name) is not None]
    if unused:
        print(f"pipeline: {path}: without meaning here: buffers.{', buffers.'.join(unused)}", file=sys.stderr)
    return config
