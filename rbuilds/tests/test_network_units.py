# SPDX-License-Identifier: Apache-2.0
"""The network of an image: what is refused, which units and files follow, and what of it is in the ramdisk."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from enclavekit_core.egress_policy import parse_policy
from enclavekit_core.errors import ConfigError
from enclavekit_eif.cpio import iter_cpio
from enclavekit_eif.measure import measure
from enclavekit_eif.reader import read_eif
from enclavekit_rbuilds.cli import main
from enclavekit_rbuilds.manifest.egress import POLICY_PATH
from enclavekit_rbuilds.manifest.model import DenyRule, EgressRule, IngressRule, Network
from enclavekit_rbuilds.manifest.network import PROXY_PATH, NetworkPlan, plan_network

ALL = frozenset({"attestation", "files", "pipeline"})


def plan(*egress, ingress=(), mode=None, deny=(), **settings) -> NetworkPlan:
    rules = [rule if isinstance(rule, EgressRule) else EgressRule(host=rule[0], port=rule[1]) for rule in egress]
    others = [IngressRule(port=port, vsock_port=vsock) for port, vsock in ingress]
    network = Network(mode=mode, egress=rules, deny=list(deny), ingress=others, **settings)
    return plan_network(network, ALL, "enclave.yaml")


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("10.0.0.1/8", "range"),
        ("udp://dns", "range"),
        ("a b", "neither"),
        ("-x.test", "neither"),
        ("a..b", "neither"),
        ("a.*", "neither"),
        ("*", "neither"),
        ("bücher.test", "xn--"),
        ("1.2.3", "neither"),
        ("x" * 64, "neither"),
        ("localhost", "the enclave itself"),
        ("a.localhost.", "the enclave itself"),
        ("127.0.0.1", "no address of another"),
        ("127.0.0.0/8", "no address of another"),
        ("0.0.0.0", "no address of another"),
        ("224.0.0.1", "no address of another"),
        ("2001:db8::1", "IPv6"),
    ],
)
def test_hosts_that_name_no_other_machine_are_refused(host: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        plan(("ok.test", 1), (host, 443))
    assert caught.value.key.startswith("network.egress[1]")


@pytest.mark.parametrize("port", [0, "0-5", "5-3", "1-70000", "-5", "5-", "http", [80, "x"]])
def test_ports_that_are_none_are_refused(port) -> None:
    with pytest.raises(ConfigError, match="port") as caught:
        plan(("ok.test", port))
    assert caught.value.key.startswith("network.egress[0]")


def test_udp_by_a_name_that_has_to_be_shown_brings_what_reads_quic() -> None:
    by_name = EgressRule(host="api.test", port=443, protocol="udp")
    for made, services in (
        (plan(by_name), {"egress", "quic"}),
        (plan(insecure_learn=True), {"egress", "quic"}),
        (plan(TIME, EgressRule(host="192.0.2.1", port=443, protocol="udp")), {"egress"}),
    ):
        assert made.services == services
    rule = '- {name: "api.test", ports: [443], protocol: udp}'
    assert rule in plan(by_name).files[POLICY_PATH].decode().splitlines()


TIME = EgressRule(host="time.test", port=123, protocol="udp", absent_name=True)


def test_what_udp_needs_is_there_if_a_rule_asks_for_it() -> None:
    with_udp, without, learning = plan(("a.test", 1), TIME), plan(("a.test", 1)), plan(insecure_learn=True)
    assert (
        '- {name: "time.test", ports: [123], protocol: udp, absent_name: true}'
        in with_udp.files[POLICY_PATH].decode().splitlines()
    )
    for made, has_udp in ((with_udp, True), (without, False), (learning, True)):
        assert ("CAP_NET_RAW" in made.units["network.service"]) is has_udp
        assert (b"protocol: udp" in made.files[PROXY_PATH]) is has_udp


@pytest.mark.parametrize("again", ["API.test.", "api.test"])
def test_one_target_is_one_rule(again: str) -> None:
    with pytest.raises(ConfigError, match="twice"):
        plan(("api.test", 443), (again, 443))


def test_deny_without_anything_allowed_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing is allowed"):
        plan(deny=[DenyRule(host="a.test")])


def test_settings_of_names_do_not_go_with_networks() -> None:
    with pytest.raises(ConfigError, match="settings of names") as caught:
        plan(EgressRule(host="192.0.2.0/24", port=1, absent_name=True))
    assert caught.value.key == "network.egress[0]"


@pytest.mark.parametrize(
    ("egress", "ingress", "mode", "follows"),
    [
        ([], (), None, "none"),
        ([], (), "none", "none"),
        ([("a.test", 1)], (), "forward", "forward"),
        ([], ((1, None),), None, "reverse"),
        ([("a.test", 1)], ((1, None),), None, "both"),
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


WHOLE = plan(
    ("API.test.", 443),
    ("*.b.test", [443, "8000-8010"]),
    ("192.0.2.7", 1),
    ("198.51.100.0/24", "1-65535"),
    EgressRule(host="db.test", port=5432, absent_name=True, private_address=True),
    EgressRule(host="[2001:db8::7]", port=2),
    deny=[DenyRule(host="x.b.test"), DenyRule(host="198.51.100.9", port=[22, "80-90"], protocol="tcp")],
    ingress=((8080, None), (80, 8081)),
    ipv6=True,
)


def test_the_policy_file_is_what_the_proxy_reads_and_says_what_the_manifest_says() -> None:
    text = WHOLE.files[POLICY_PATH].decode()
    policy = parse_policy(text, "policy")
    assert policy == WHOLE.egress.policy
    assert text.splitlines() == [
        "allow:",
        '- {name: "api.test", ports: [443]}',
        '- {name: "*.b.test", ports: [443, 8000-8010]}',
        '- {network: "192.0.2.7", ports: [1]}',
        '- {network: "198.51.100.0/24", ports: [1-65535]}',
        '- {name: "db.test", ports: [5432], private_address: true, absent_name: true}',
        '- {network: "2001:db8::7", ports: [2]}',
        "deny:",
        '- {name: "x.b.test"}',
        '- {network: "198.51.100.9", ports: [22, 80-90], protocol: tcp}',
    ]
    assert WHOLE.files[b"etc/resolv.conf"] == WHOLE.app_files[b"etc/resolv.conf"] == b"nameserver 127.0.0.1\n"


@pytest.mark.parametrize(
    "made", [WHOLE, plan(("a.test", 1)), plan(TIME), plan(ingress=((8080, None),)), plan(insecure_learn=True)]
)
def test_units_and_files_are_what_their_programs_accept(made, tmp_path) -> None:
    cli = pytest.importorskip("enclavekit_pf_proxy.cli", reason="pf_proxy is not installed")
    config = pytest.importorskip("enclavekit_pf_proxy.config", reason="pf_proxy is not installed")
    units = pytest.importorskip("enclavekit_enclave_init.units.unit", reason="enclave_init is not installed")
    ordering = pytest.importorskip("enclavekit_enclave_init.units.ordering", reason="enclave_init is not installed")
    parsed = [units.parse_unit(name.removesuffix(".service"), text, name) for name, text in made.units.items()]
    started = ordering.plan_start([*parsed, units.Unit("app", ("/bin/app",))])
    assert started.notes == () and started.order[-1] == "app"
    assert [unit.name for unit in parsed] == (["network-rules"] if made.egress else []) + ["network"]
    args = cli.build_parser().parse_args(list(parsed[-1].argv[1:]))
    for path, content in made.files.items():
        target = tmp_path / path.decode()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    assert args.config == f"/{PROXY_PATH.decode()}"
    loaded = config.load_plan(str(tmp_path / PROXY_PATH.decode()))
    outward = 0 if made.egress is None else 1 + made.egress.has_udp
    assert len(loaded.services) == len(made.ingress) + outward
    assert (loaded.gate is None) is (made.egress is None)
    assert bool(args.insecure_learn) is bool(made.egress and made.egress.insecure_learn)


@pytest.mark.parametrize("ipv6", [False, True])
def test_rules_and_routes_are_the_proxys_and_made_apart_from_what_serves(ipv6, tmp_path) -> None:
    config = pytest.importorskip("enclavekit_pf_proxy.config", reason="pf_proxy is not installed")
    made = plan(("a.test", 1), TIME, ipv6=ipv6)
    apply, serve = (made.units[f"{name}.service"] for name in ("network-rules", "network"))
    path = f"/{PROXY_PATH.decode()}"
    assert f'ExecStart = ["/usr/bin/pf-proxy", "rules", "apply", "{path}"]' in apply.splitlines()
    assert "CAP_NET_ADMIN" in apply and "CAP_NET_ADMIN" not in serve
    for name, content in made.files.items():
        target = tmp_path / name.decode()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    loaded = config.load_plan(str(tmp_path / PROXY_PATH.decode()))
    assert not loaded.applies_rules and loaded.mark == 0
    assert loaded.network.default_route == "lo" and loaded.network.versions == ((4, 6) if ipv6 else (4,))
    assert [divert.listen.port for divert in loaded.rules.diverts] == [15001, 15001]
    assert loaded.rules.dns.port == 53


def test_an_app_does_not_start_without_its_rules() -> None:
    apply, serve = (plan(("a.test", 1)).units[f"{name}.service"] for name in ("network-rules", "network"))
    assert 'RequiredBy = ["app"]' in apply.splitlines() and 'RequiredBy = ["app"]' in serve.splitlines()


def test_the_parent_is_told_what_to_offer_and_people_what_is_allowed() -> None:
    table = json.loads(WHOLE.files[b"etc/enclavekit/network.json"])
    assert table == WHOLE.table()
    assert table["outbound"] == {"vsock_port": 8888, "dns_ports": [8053, 8054, 8055]}
    assert table["ingress"] == [{"port": 8080, "vsock_port": 8080}, {"port": 80, "vsock_port": 8081}]
    assert table["policy"]["allow"][1] == 'host: "*.b.test", port: [443, 8000-8010]'
    assert "insecure_learn" not in table and plan(insecure_learn=True).table()["insecure_learn"] is True
    assert plan().files == {} and plan().units == {}


def test_what_is_printed_can_be_pasted() -> None:
    from enclavekit_core.config import parse_config

    lines = WHOLE.egress.describe()
    text = "".join(
        f"{key}:\n" + "".join(f"- {{{line}}}\n" for line in lines[listed])
        for key, listed in (("egress", "allow"), ("deny", "deny"))
    )
    again = parse_config(Network, f"{text}ipv6: true\n", "pasted")
    assert plan_network(again, ALL, "x").egress == WHOLE.egress
    assert msgspec.to_builtins(again)["egress"][0] == msgspec.to_builtins(EgressRule(host="api.test", port=[443]))


def test_an_image_holds_units_files_and_a_table_and_its_metadata_too(
    app: Path, framework: Path, kernel: Path, tmp_path: Path, capsys
) -> None:
    (app / "etc/resolv.conf").symlink_to("/run/elsewhere")
    common = ["build", "-q", "--rootfs", app, "--framework-rootfs", framework, "--kernel", kernel, "--cmd", "serve"]

    def build(output: str, *words: object) -> Path:
        assert main([str(word) for word in (*common, "-o", tmp_path / output, *words)]) == 0
        return tmp_path / output

    path = build("net.eif", "--egress", "*.api.test:443-444", "--ingress", "80:8080", "--memory", "512", "--json")
    printed = json.loads(capsys.readouterr().out)
    eif = read_eif(str(path))
    inside = {e.name: e.data.read() for e in iter_cpio(eif.open_section(eif.ramdisks[1]))}
    assert inside[b"rootfs/etc/resolv.conf"] == inside[b"etc/resolv.conf"] == b"nameserver 127.0.0.1\n"
    assert inside[POLICY_PATH] == b'allow:\n- {name: "*.api.test", ports: [443-444]}\ndeny: []\n'
    assert {b"service/network.service", b"service/network-rules.service", PROXY_PATH} <= set(inside)
    table = json.loads(inside[b"etc/enclavekit/network.json"])
    custom = eif.metadata["CustomMetadata"]
    assert custom["network"] == printed["network"] == table and custom["resources"] == {"memory_mib": 512}

    other = build("other.eif", "--egress", "*.api.test:443", "--ingress", "80:8080")
    one, two = measure(eif), measure(read_eif(str(other)))
    assert one.pcr1 == two.pcr1 and one.pcr2 != two.pcr2  # what may be reached is measured with the app
    plain = read_eif(str(build("plain.eif")))
    names = {e.name for e in iter_cpio(plain.open_section(plain.ramdisks[1]))}
    assert not {name for name in names if b"egress" in name or b"network" in name}
