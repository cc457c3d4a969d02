# SPDX-License-Identifier: Apache-2.0
"""How a kernel can lead what an app sends to a proxy: by nftables, by iptables, or not at all. Pure.

AWS's stock kernel has iptables only, and of that what redirects TCP and DNS, but neither marks nor TPROXY.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from enclavekit_core.errors import InputError

from enclavekit_rbuilds.kernel.model import Kernel, module_names

Language = Literal["nft", "iptables"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
"""The one that is taken if a kernel has both is first."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is to be diverted beside TCP and DNS over IPv4."""

    udp: bool = False
    ipv6: bool = False


@dataclass(frozen=True, slots=True)
class Need:
    """One option."""

    option: str
    module: str = ""
    """That does as well, if the image loads it."""
    udp: bool = False
    """For UDP other than DNS only."""
    ipv6: bool = False
    """For IPv6 only."""

    def concerns(self, traffic: Traffic) -> bool:
        return (traffic.udp or not self.udp) and (traffic.ipv6 or not self.ipv6)


ROUTING = (
    Need("CONFIG_IP_MULTIPLE_TABLES", udp=True),
    Need("CONFIG_IPV6_MULTIPLE_TABLES", udp=True, ipv6=True),
)
NEEDS: dict[Language, tuple[Need, ...]] = {
    "nft": (
        Need("CONFIG_NF_TABLES", "nf_tables"),
        Need("CONFIG_NF_TABLES_IPV4"),
        Need("CONFIG_NF_TABLES_IPV6", ipv6=True),
        Need("CONFIG_NFT_NAT", "nft_chain_nat"),
        Need("CONFIG_NFT_REDIR", "nft_redir"),
        Need("CONFIG_NFT_TPROXY", "nft_tproxy", udp=True),
        *ROUTING,
    ),
    "iptables": (
        Need("CONFIG_IP_NF_IPTABLES", "ip_tables"),
        Need("CONFIG_IP6_NF_IPTABLES", "ip6_tables", ipv6=True),
        Need("CONFIG_NETFILTER_XTABLES", "xt_tcpudp"),
        Need("CONFIG_IP_NF_NAT", "iptable_nat"),
        Need("CONFIG_IP6_NF_NAT", "ip6table_nat", ipv6=True),
        Need("CONFIG_NETFILTER_XT_TARGET_REDIRECT", "xt_REDIRECT"),
        Need("CONFIG_IP_NF_MANGLE", "iptable_mangle", udp=True),
        Need("CONFIG_IP6_NF_MANGLE", "ip6table_mangle", udp=True, ipv6=True),
        Need("CONFIG_NETFILTER_XT_MARK", "xt_mark", udp=True),
        Need("CONFIG_NETFILTER_XT_TARGET_TPROXY", "xt_TPROXY", udp=True),
        *ROUTING,
    ),
}


def choose_language(kernel: Kernel, traffic: Traffic, wanted: Language | None = None) -> Language:
    """Return which language the kernel's rules are to be in; for a kernel that nobody knows, `wanted`, else nft.

    Raises: InputError if this kernel cannot divert that, which is known before anything boots.
    """
    if kernel.config is None:
        return wanted or LANGUAGES[0]
    tried = LANGUAGES if wanted is None else (wanted,)
    lacks = {language: lacks_of(kernel, language, traffic) for language in tried}
    for language in tried:
        if not lacks[language]:
            return language
    what = "UDP, which the egress rules ask for" if traffic.udp else "what the app sends, which egress rules need"
    listed = "; ".join(f"for {language} it has no {', '.join(options)}" for language, options in lacks.items())
    raise InputError("use kernel", kernel.path, f"it cannot lead {what}, to the proxy: {listed}")


def lacks_of(kernel: Kernel, language: Language, traffic: Traffic) -> list[str]:
    """Return the options that a kernel, whose configuration is known, would need and has not."""
    assert kernel.config is not None
    loaded = module_names((*kernel.modules, *kernel.egress_modules.get(language, ())))
    return [
        need.option
        for need in NEEDS[language]
        if need.concerns(traffic) and not kernel.config.has(need.option) and need.module not in loaded
    ]
