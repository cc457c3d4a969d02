# SPDX-License-Identifier: Apache-2.0
"""AWS's own kernel: the blobs that nitro-cli packs into every image it builds, as its package installs them."""

from __future__ import annotations

import os

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.kernel.config import load_config
from enclavekit_rbuilds.kernel.model import Kernel, describe_kernel, read_cmdline

VARIABLE = "NITRO_CLI_BLOBS"  # nitro-cli's own
DEFAULT_DIRECTORY = "/usr/share/nitro_enclaves/blobs"
KERNELS = {"x86_64": "bzImage", "aarch64": "Image"}
NAME = "AWS blobs"


def blobs_kernel(path: str | None, arch: str) -> Kernel:
    """Return the kernel of the blobs in `path`, else where nitro-cli looks. Raises InputError."""
    directory = path or os.environ.get(VARIABLE) or DEFAULT_DIRECTORY
    if not os.path.isdir(directory):
        reason = "there is no such directory; nitro-cli's package (aws-nitro-enclaves-cli-devel) brings it, or name it "
        raise InputError("find AWS's blobs in", directory, f"{reason}with --kernel DIR or {VARIABLE}")
    kernel = os.path.join(directory, KERNELS[arch])
    if not os.path.isfile(kernel):
        others = [name for name in KERNELS.values() if os.path.isfile(os.path.join(directory, name))]
        reason = f"it has {others[0]}, for another architecture" if others else f"there is no {KERNELS[arch]} in it"
        raise InputError("use AWS's blobs in", directory, reason)
    beside = f"{kernel}.config"
    module = os.path.join(directory, "nsm.ko")
    return describe_kernel(
        kernel,
        NAME,
        config=load_config(beside) if os.path.isfile(beside) else None,
        modules=(module,) if os.path.isfile(module) else (),
        cmdline=read_cmdline(os.path.join(directory, "cmdline")),
    )
