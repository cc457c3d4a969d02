# SPDX-License-Identifier: Apache-2.0
"""TCP over vsock in both directions."""

from enclavekit_pf_proxy.limits import Limits
from enclavekit_pf_proxy.server import ProxyServer

__all__ = ["Limits", "ProxyServer"]
