# SPDX-License-Identifier: Apache-2.0
"""The metadata section: what an image says about itself. Pure; the build time is an argument.

Nothing of it is measured or signed, so it is a label and no evidence.

Source: aws-nitro-enclaves-image-format, EifIdentityInfo and EifBuildInfo.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

BUILD_KEYS = ("BuildTime", "BuildTool", "BuildToolVersion", "OperatingSystem", "KernelVersion")
KEYS = ("ImageName", "ImageVersion", "BuildMetadata", "DockerInfo", "CustomMetadata")

DEFAULT_BUILD_TIME = "1970-01-01T00:00:00+00:00"
"""A build has no clock: two builds of one input are the same bytes unless the caller gives a time."""


def make_metadata(
    name: str,
    version: str,
    *,
    build_time: str = DEFAULT_BUILD_TIME,
    build_tool: str = "enclavekit",
    build_tool_version: str = "0.1.0",
    operating_system: str = "Linux",
    kernel_version: str = "Unknown",
    docker_info: object = None,
    custom: object = None,
) -> dict[str, Any]:
    """Return metadata in the reference's key order. `build_time` is RFC 3339 with an offset."""
    values = (build_time, build_tool, build_tool_version, operating_system, kernel_version)
    build = dict(zip(BUILD_KEYS, values, strict=True))
    return dict(zip(KEYS, (name, version, build, docker_info, custom), strict=True))


def build_time_of(epoch_s: int) -> str:
    """Return seconds since 1970 (SOURCE_DATE_EPOCH) as RFC 3339, UTC. Raises OverflowError out of range."""
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (epoch + datetime.timedelta(seconds=epoch_s)).isoformat()


def check_metadata(metadata: object) -> None:
    """Raise ValueError unless every key that the reference reader needs is there with its type."""
    if not isinstance(metadata, dict):
        raise ValueError("not a JSON object")
    if missing := [key for key in KEYS if key not in metadata]:
        raise ValueError(f"{missing[0]} is missing")
    build = metadata["BuildMetadata"]
    if not isinstance(build, dict):
        raise ValueError("BuildMetadata is not a JSON object")
    if missing := [key for key in BUILD_KEYS if key not in build]:
        raise ValueError(f"BuildMetadata.{missing[0]} is missing")
    for holder, key in [(metadata, "ImageName"), (metadata, "ImageVersion"), *((build, key) for key in BUILD_KEYS)]:
        if not isinstance(holder[key], str):
            raise ValueError(f"{key} is not a string")


def encode_metadata(metadata: dict[str, Any]) -> bytes:
    """Return compact JSON, keys in the order given. Raises ValueError for what JSON or the reader refuses."""
    check_metadata(metadata)
    try:
        return json.dumps(metadata, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except TypeError as exc:
        raise ValueError(str(exc)) from exc
