# SPDX-License-Identifier: Apache-2.0
"""The network of an image: what is refused, which units, names and ports follow, and what of it is in the ramdisk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from enclavekit_core.errors import ConfigError
from enclavekit_eif.cpio import iter_cpio
from enclavekit_eif.measure import measure
from enclavekit_eif.reader import read_eif
from enclavekit_rbuilds.cli import main
from enclavekit_rbuilds.manifest.model import EgressRule, IngressRule, Network
from enclavekit_rbuilds.manifest.network import NetworkPlan, merge_hosts, plan_network

ALL = frozenset({"attestation", "files", "pipeline"})


def plan(*egress: tuple[str, int], ingress: tuple[tuple[int, int | None], ...] = (), mode=None) -> NetworkPlan:
    rules = [EgressRule(host=host, port=port) for host, port in egress]
    others = [IngressRule(port=port, vsock_port=vsock) for port, vsock in ingress]
    return plan_network(Network(mode=mode, egress=rules, ingress=others), ALL, "enclave.yaml")


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("*.example.com", "wildcard"),
        ("10.0.0.0/8", "range"),
        ("udp://dns", "range"),
        ("a b", "neither"),
        ("-x.test", "neither"),
        ("a..b", "neither"),
        ("1.2.3", "neither"),
        ("x" * 64, "neither"),
        ("localhost", "the enclave itself"),
        ("127.0.0.1", "no address of another"),
        ("::1", "no address of another"),
        ("0.0.0.0", "no address of another"),
        ("224.0.0.1", "no address of another"),
    ],
)
def test_hosts_that_name_no_one_machine_are_refused(host: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        plan(("ok.test", 1), (host, 443))
    assert caught.value.key == "network.egress[1].host"


def test_udp_is_refused() -> None:
    rule = EgressRule(host="dns.test", port=53, protocol="udp")
    with pytest.raises(ConfigError, match="udp is not there yet"):
        plan_network(Network(egress=[rule]), ALL, "enclave.yaml")


@pytest.mark.parametrize("again", ["API.test.", "api.test"])
def test_one_target_is_one_rule(again: str) -> None:
    with pytest.raises(ConfigError, match="twice"):
        plan(("api.test", 443), (again, 443))


@pytest.mark.parametrize(
    ("egress", "ingress", "mode", "follows"),
    [
        ([], (), None, "none"),
        ([], (), "none", "none"),
        ([("a.test", 1)], (), "forward", "forward"),
        ([], ((1, None),), None, "reverse"),
        ([("a.test", 1)], ((1, None),), "both", "both"),
        ([("a.test", 1)], (), "none", None),
        ([], ((1, None),), "none", None),
        ([], (), "forward", None),
        ([("a.test", 1)], ((1, None),), "forward", None),
        ([("a.test", 1)], (), "both", None),
    ],
)
def test_the_mode_must_be_what_follows_from_the_rules(egress, ingress, mode, follows) -> None:
    if follows is None:
        with pytest.raises(ConfigError, match=f"network.mode: {mode}"):
            plan(*egress, ingress=ingress, mode=mode)
    else:
        assert plan(*egress, ingress=ingress, mode=mode).mode == follows


@pytest.mark.parametrize("ingress", [((8443, None),), ((1, 53000),), ((1, 9001),), ((1, 5), (2, 5)), ((1, 5), (1, 6))])
def test_taken_ingress_ports_are_refused(ingress) -> None:
    with pytest.raises(ConfigError, match=r"taken|twice"):
        plan(ingress=ingress)


def test_ports_of_services_that_do_not_run_are_free() -> None:
    network = Network(ingress=[IngressRule(port=8443), IngressRule(port=53000)])
    assert len(plan_network(network, frozenset(), "x").ingress) == 2


def test_the_order_of_rules_does_not_count_and_a_rule_keeps_its_vsock_port() -> None:
    one = plan(("b.test", 443), ("a.test", 443), ("b.test", 80), ("192.0.2.7", 443))
    other = plan(("192.0.2.7", 443), ("b.test", 80), ("b.test", 443), ("a.test", 443))
    assert one == other
    ports = {(rule.host, rule.port): rule.vsock_port for rule in one.egress}
    alone = plan(("b.test", 443)).egress[0]
    assert ports["b.test", 443] == alone.vsock_port and len(set(ports.values())) == 4
    assert all(0x1000_0000 <= port < 0x1200_0000 for port in ports.values())


def test_one_address_per_host_and_the_units_are_what_the_init_accepts() -> None:
    made = plan(("b.test", 443), ("b.test", 80), ("a.test", 443), ("192.0.2.7", 1), ("2001:db8::7", 2),
                ingress=((8080, None),))  # fmt: skip
    assert {name: address for address, name in made.hosts} == {"a.test": "127.0.0.2", "b.test": "127.0.0.3"}
    assert {(rule.host, rule.port, rule.address) for rule in made.egress} == {
        ("a.test", 443, "127.0.0.2"), ("b.test", 443, "127.0.0.3"), ("b.test", 80, "127.0.0.3"),
        ("192.0.2.7", 1, "192.0.2.7"), ("2001:db8::7", 2, "2001:db8::7"),
    }  # fmt: skip
    units = pytest.importorskip("enclavekit_enclave_init.units.unit", reason="enclave_init is not installed")
    ordering = pytest.importorskip("enclavekit_enclave_init.units.ordering", reason="enclave_init is not installed")
    parsed = [units.parse_unit(name.removesuffix(".service"), text, name) for name, text in made.units.items()]
    started = ordering.plan_start([*parsed, units.Unit("app", ("/bin/app",))])
    assert started.notes == ()
    order = started.order
    assert order.index("egress-addresses") < order.index("egress-1") < order.index("egress-ready") < order.index("app")
    listening = {unit.argv[3]: unit.argv[5] for unit in parsed if unit.argv[1:2] == ("ip-to-vsock",)}
    ports = {(rule.host, rule.port): f"parent:{rule.vsock_port}" for rule in made.egress}
    assert listening["127.0.0.3:80"] == ports["b.test", 80]
    assert listening["[2001:db8::7]:2"] == ports["2001:db8::7", 2]
    assert any(unit.argv[1:] == ("vsock-to-ip", "-v", "any:8080", "-i", "127.0.0.1:8080") for unit in parsed)


def test_every_unit_calls_what_its_program_accepts() -> None:
    cli = pytest.importorskip("enclavekit_pf_proxy.cli", reason="pf_proxy is not installed")
    loopback = pytest.importorskip("enclavekit_pf_proxy.loopback", reason="pf_proxy is not installed")
    units = pytest.importorskip("enclavekit_enclave_init.units.unit", reason="enclave_init is not installed")
    made = plan(("b.test", 443), ("192.0.2.7", 1), ("2001:db8::7", 2), ingress=((8080, 1),))
    for name, text in made.units.items():
        argv = list(units.parse_unit("x", text, name).argv)
        proxy = argv[0] == "/usr/bin/pf-proxy"
        (cli.build_parser() if proxy else loopback.build_parser()).parse_args(argv[1:] if proxy else argv[4:])


def test_hosts_win_over_what_the_app_had_for_them() -> None:
    before = b"127.0.0.1 localhost\n10.0.0.1 API.test other # old\n10.0.0.2 api.test\n# note\n"
    merged = merge_hosts(before, [("127.0.0.2", "api.test")])
    assert merged == b"127.0.0.2\tapi.test\n127.0.0.1 localhost\n10.0.0.1\tother\n# note\n"
    assert merge_hosts(b"", []).split() == [b"127.0.0.1", b"localhost"]


def test_an_image_holds_units_names_and_a_table_and_its_metadata_too(
    app: Path, framework: Path, kernel: Path, tmp_path: Path, capsys
) -> None:
    (app / "etc/hosts").write_text("10.0.0.1 own\n")
    common = ["build", "-q", "--rootfs", app, "--framework-rootfs", framework, "--kernel", kernel, "--cmd", "serve"]

    def build(output: str, *words: object) -> Path:
        assert main([str(word) for word in (*common, "-o", tmp_path / output, *words)]) == 0
        return tmp_path / output

    path = build("net.eif", "--egress", "api.test:443", "--ingress", "80:8080", "--memory", "512", "--json")
    printed = json.loads(capsys.readouterr().out)
    eif = read_eif(str(path))
    inside = {e.name: e.data.read() for e in iter_cpio(eif.open_section(eif.ramdisks[1]))}
    assert inside[b"rootfs/etc/hosts"].endswith(b"127.0.0.2\tapi.test\n10.0.0.1 own\n")
    assert {b"service/egress-1.service", b"service/ingress-1.service"} <= set(inside)
    table = json.loads(inside[b"etc/enclavekit/network.json"])
    assert table["egress"] == [{"host": "api.test", "port": 443, "vsock_port": table["egress"][0]["vsock_port"]}]
    assert table["ingress"] == [{"port": 80, "vsock_port": 8080}]
    custom = eif.metadata["CustomMetadata"]
    assert custom["network"] == printed["network"] == table and custom["resources"] == {"memory_mib": 512}

    other = build("other.eif", "--egress", "api.test:444", "--ingress", "80:8080")
    one, two = measure(eif), measure(read_eif(str(other)))
    assert one.pcr1 == two.pcr1 and one.pcr2 != two.pcr2  # what may be reached is measured with the app
    plain = read_eif(str(build("plain.eif")))
    names = {e.name for e in iter_cpio(plain.open_section(plain.ramdisks[1]))}
    assert not {name for name in names if b"egress" in name or b"network" in name}
