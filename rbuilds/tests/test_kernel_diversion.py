# SPDX-License-Identifier: Apache-2.0
"""What a kernel can lead to a proxy, and what an image for it holds therefore."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from enclavekit_core.errors import InputError
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.kernel.config import parse_config
from enclavekit_rbuilds.kernel.debian import EGRESS
from enclavekit_rbuilds.kernel.diversion import NEEDS, Traffic, choose_language
from enclavekit_rbuilds.kernel.fragment import our_fragment
from enclavekit_rbuilds.kernel.model import Kernel
from enclavekit_rbuilds.manifest.model import EgressRule, KernelChoice, Network
from enclavekit_rbuilds.manifest.network import plan_network
from enclavekit_rbuilds.plan.framework import framework_services

from .test_kernel_config import AWS_4_14, bzimage

# what AWS's stock kernel has of all that could divert
STOCK = """CONFIG_IP_MULTIPLE_TABLES=y
CONFIG_IPV6_MULTIPLE_TABLES=y
CONFIG_NETFILTER_XTABLES=y
# CONFIG_NF_TABLES is not set
# CONFIG_NETFILTER_XT_MARK is not set
# CONFIG_NETFILTER_XT_TARGET_TPROXY is not set
CONFIG_NETFILTER_XT_TARGET_REDIRECT=y
CONFIG_IP_NF_IPTABLES=y
CONFIG_IP_NF_NAT=y
CONFIG_IP_NF_MANGLE=y
CONFIG_IP6_NF_IPTABLES=y
CONFIG_IP6_NF_NAT=y
CONFIG_IP6_NF_MANGLE=y
"""
BOTH = "".join(f"{need.option}=y\n" for needs in NEEDS.values() for need in needs)
MODULES = (
    BOTH.replace("=y", "=m").replace("MULTIPLE_TABLES=m", "MULTIPLE_TABLES=y").replace("TABLES_IPV4=m", "TABLES_IPV4=y")
)
NOTHING = "CONFIG_NET=y\n"


def kernel(text: str | None, modules: dict[str, tuple[str, ...]] | None = None) -> Kernel:
    config = None if text is None else parse_config(text)
    return Kernel("vmlinuz", "a kernel", "1", None, config=config, egress_modules=modules or {})


@pytest.mark.parametrize(
    ("text", "traffic", "wanted", "language"),
    [
        (STOCK, Traffic(), None, "iptables"),
        (STOCK, Traffic(ipv6=True), None, "iptables"),
        (STOCK, Traffic(), "iptables", "iptables"),
        (our_fragment("x86_64"), Traffic(udp=True, ipv6=True), None, "nft"),
        (BOTH, Traffic(udp=True, ipv6=True), None, "nft"),
        (BOTH, Traffic(udp=True, ipv6=True), "iptables", "iptables"),
        (None, Traffic(udp=True), None, "nft"),
        (None, Traffic(udp=True), "iptables", "iptables"),
    ],
)
def test_the_language_is_one_that_the_kernel_has(text, traffic, wanted, language) -> None:
    assert choose_language(kernel(text), traffic, wanted) == language


@pytest.mark.parametrize(
    ("text", "traffic", "wanted", "named"),
    [
        (STOCK, Traffic(udp=True), None, "UDP.*NETFILTER_XT_MARK, CONFIG_NETFILTER_XT_TARGET_TPROXY"),
        (STOCK, Traffic(), "nft", "for nft it has no CONFIG_NF_TABLES"),
        (our_fragment("x86_64"), Traffic(), "iptables", "CONFIG_IP_NF_IPTABLES"),
        (NOTHING, Traffic(), None, "for nft it has no .*; for iptables it has no "),
        (MODULES, Traffic(), None, "NF_TABLES"),  # nobody loads them
    ],
)
def test_a_kernel_that_could_not_keep_the_rules_is_refused_before_anything_is_made(
    text, traffic, wanted, named
) -> None:
    with pytest.raises(InputError, match=named) as caught:
        choose_language(kernel(text), traffic, wanted)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("language", list(EGRESS))
def test_modules_that_an_image_loads_do_as_well(language) -> None:
    """Debian's: of what is a module there, all that the rules need is on the list, with what that needs itself."""
    needed = {"nft": ("nf_tables",), "iptables": ("ip_tables", "ip6_tables", "x_tables")}[language]
    loaded = {language: tuple(f"/{name}.ko" for name in (*EGRESS[language], *needed))}
    text = MODULES.replace("TABLES_IPV6=m", "TABLES_IPV6=y")
    assert choose_language(kernel(text, loaded), Traffic(udp=True, ipv6=True)) == language


UDP = EgressRule(host="time.test", port=123, protocol="udp", absent_name=True)


def services(directory: Path, *egress: EgressRule, source: str = "blobs") -> tuple[frozenset[str], str]:
    """Return what an image with this kernel holds something for, and what its builder is told."""
    network = plan_network(Network(egress=list(egress)), frozenset(), "enclave.yaml")
    path = directory if source == "blobs" else directory / "bzImage"
    said = io.StringIO()
    choice = KernelChoice("debian") if source == "debian" else KernelChoice(source, str(path))
    found = framework_services(frozenset({"pipeline"}), network, None, choice, "x86_64", Progress(said))
    return found, said.getvalue()


def test_an_image_holds_what_its_kernel_takes_rules_from(tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(bzimage(b"packed"))
    (tmp_path / "cmdline").write_text("reboot=k\n")
    tcp = EgressRule(host="api.test", port=443)
    assert services(tmp_path, tcp, source="debian") == ({"pipeline", "egress"}, "")
    assert services(tmp_path, source="debian") == ({"pipeline"}, "")
    found, said = services(tmp_path, tcp, source="file")  # of which nothing is known
    assert found == {"pipeline", "egress"} and "rules: iptables" in said
    (tmp_path / "bzImage.config").write_text(AWS_4_14 + STOCK)
    assert services(tmp_path, tcp) == ({"pipeline", "egress-iptables"}, "")
    assert services(tmp_path) == ({"pipeline"}, "")
    with pytest.raises(InputError, match="UDP"):
        services(tmp_path, tcp, UDP)
