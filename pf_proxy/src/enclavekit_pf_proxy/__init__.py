# SPDX-License-Identifier: Apache-2.0
"""TCP over vsock in both directions."""

from typing import TYPE_CHECKING

from enclavekit_pf_proxy.limits import Limits

if TYPE_CHECKING:
    from enclavekit_pf_proxy.server import ProxyServer

__all__ = ["Limits", "ProxyServer"]


def __getattr__(name: str) -> object:
    """Commands that serve nothing, of which a boot waits for two, do not load what serves."""
    if name == "ProxyServer":
        from enclavekit_pf_proxy.server import ProxyServer

        return ProxyServer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
