# SPDX-License-Identifier: Apache-2.0
"""Commands, copies and forwards into an enclave over an attested, encrypted channel; for programs: `Enclave`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enclavekit_pipeline.host.copy_client import CopyOptions
    from enclavekit_pipeline.host.library import Enclave, Process, Result

__version__ = "0.1.0"
__all__ = ["CopyOptions", "Enclave", "Process", "Result", "__version__"]


def __getattr__(name: str) -> object:
    # when asked for: the listener in the enclave has no use for the host's side
    if name in ("CopyOptions", "Enclave", "Process", "Result"):
        from enclavekit_pipeline.host import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
