# SPDX-License-Identifier: Apache-2.0
"""What is decided before anything runs: backend, CID, memory, names, rules, nitro-cli's errors."""

import pytest
from enclavekit_core.errors import EnclavekitError, InputError
from enclavekit_core.nitro_errors import NITRO_ERRORS, parse_error_code
from enclavekit_rbuilds.run.backend import decide_backend
from enclavekit_rbuilds.run.cids import choose_cid
from enclavekit_rbuilds.run.failure import parse_error_log, parse_failure
from enclavekit_rbuilds.run.image import parse_image
from enclavekit_rbuilds.run.launch_plan import Wishes, plan_launch
from enclavekit_rbuilds.run.model import Publish, RunningEnclave
from enclavekit_rbuilds.run.nitro_commands import LaunchOutput, launch_arguments, parse_launch, parse_list
from enclavekit_rbuilds.run.proxies import plan_proxies
from enclavekit_rbuilds.run.resolvers import host_resolvers, parse_resolv_conf, parse_resolver
from enclavekit_rbuilds.run.rules import overlaps, parse_listeners, parse_publish, render_rules
from enclavekit_rbuilds.run.selection import match
from enclavekit_rbuilds.run.sizing import allocate_pages, describe_pages, pages_mib

from .conftest import sized

LAUNCHED = b"""{
  "EnclaveName": "nginx",
  "EnclaveID": "i-085fa5ca0e3bda2cb-enc199a65df9f4c82b",
  "ProcessID": 81699,
  "EnclaveCID": 17,
  "NumberOfCPUs": 2,
  "CPUIDs": [
    1,
    3
  ],
  "MemoryMiB": 1024
}
"""


@pytest.mark.parametrize(
    ("named", "device", "cli", "emulator", "expected"),
    [
        (None, True, True, True, "nitro-cli"),
        (None, True, True, False, "nitro-cli"),
        (None, True, False, True, None),  # a confidential host never falls back to emulation by itself
        (None, False, True, True, "nitro-emu"),
        (None, False, False, True, "nitro-emu"),
        (None, False, True, False, None),
        ("nitro-emu", True, True, True, "nitro-emu"),
        ("nitro-emu", True, True, False, None),
        ("nitro-cli", False, True, True, "nitro-cli"),
        ("nitro-cli", True, False, True, None),
        ("qemu", True, True, True, None),
    ],
)
def test_backend(named, device, cli, emulator, expected):
    def decide():
        return decide_backend(named, has_device=device, has_cli=cli, has_emulator=emulator)

    if expected is None:
        with pytest.raises(InputError):
            decide()
    else:
        assert decide() == expected


@pytest.mark.parametrize(
    ("asked", "first", "taken", "expected"),
    [
        (0, 0, set(), 127),
        (0, 0, {127, 128}, 129),
        (0, 16, set(), 16),
        (0, 3, set(), 127),
        (20, 16, {16}, 20),
    ],
)
def test_cid(asked, first, taken, expected):
    assert choose_cid(asked, first, taken) == expected


def test_cid_asked_for_is_never_replaced():
    with pytest.raises(InputError):
        choose_cid(20, 0, {20})


def image(size_mib=10, **custom):
    return parse_image("/i/app.eif", sized(size_mib), "x86_64", {"ImageName": "app", "CustomMetadata": custom or None})


@pytest.mark.parametrize(
    ("custom", "wishes", "expected"),
    [
        ({}, Wishes(), (144, 2, 0, 0, "app")),
        ({"services": ["files", "pipeline"]}, Wishes(), (224, 2, 0, 0, "app")),
        ({"resources": {"memory_mib": 512, "cpus": 4, "cid": 9}}, Wishes(), (512, 4, 0, 9, "app")),
        (
            {"resources": {"memory_mib": 512}},
            Wishes(memory_mib=100, cpus=1, cid=50, name="x"),
            (100, 1, 50, 0, "x"),
        ),
    ],
)
def test_plan_takes_flags_then_the_image_then_what_is_needed(custom, wishes, expected):
    plan = plan_launch(image(**custom), "nitro-emu", wishes)
    assert (plan.memory_mib, plan.cpus, plan.cid, plan.first_cid, plan.name) == expected


def test_the_emulators_machine_is_passed_on():
    words = launch_arguments(plan_launch(image(), "nitro-emu", Wishes(machine="qemu")), 16)
    assert words[-2:] == ["--machine", "qemu"]
    assert "--machine" not in launch_arguments(plan_launch(image(), "nitro-emu", Wishes()), 16)


OUTBOUND = {"outbound": {"vsock_port": 8888, "dns_ports": [8053, 8054, 8055]}}


def test_the_hosts_end_of_a_policy_is_one_way_out_and_one_port_per_resolver():
    wishes = Wishes(resolvers=(("127.0.0.53", 53), ("fe80::1", 5353)), allow_destinations=("127.0.0.1:8080",))
    plan = plan_launch(image(network=OUTBOUND), "nitro-emu", wishes)
    rules = plan_proxies(plan, 16)
    assert [rule.arguments for rule in rules] == [
        ("vsock-to-ip-transparent", "-v", "vsock://any:8888", "--allow-destination", "127.0.0.1:8080"),
        ("vsock-to-ip", "-v", "vsock://any:8053", "-i", "127.0.0.53:53"),
        ("vsock-to-ip", "-v", "vsock://any:8054", "-i", "[fe80::1]:5353"),
    ]
    assert all(rule.listed and rule.is_network for rule in rules)  # nobody but these enclaves
    assert [rule.follows_host for rule in rules] == [False, True, True]
    assert not plan_proxies(plan_launch(image(network=OUTBOUND), "nitro-emu", Wishes(proxies=False)), 16)
    with pytest.raises(InputError, match="no egress rules"):
        plan_launch(image(), "nitro-emu", wishes)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("nameserver 127.0.0.53\noptions edns0\n", [("127.0.0.53", 53)]),
        ("# nameserver 1.1.1.1\nnameserver\tfe80::1%eth0 \nnameserver x\n", [("fe80::1%eth0", 53)]),
        ("".join(f"nameserver 192.0.2.{n}\n" for n in (1, 1, 2, 3, 4)), [(f"192.0.2.{n}", 53) for n in (1, 2, 3)]),
        ("search a.test\n", [("127.0.0.1", 53)]),
    ],
)
def test_resolvers_are_those_of_the_host(text, found, tmp_path):
    assert list(parse_resolv_conf(text)) == found
    (tmp_path / "resolv.conf").write_text(text)
    assert list(host_resolvers(str(tmp_path / "resolv.conf"))) == found
    assert host_resolvers(str(tmp_path / "missing")) == ()


@pytest.mark.parametrize("text", ["", "dns.test", "1.2.3.4:0", "1.2.3.4:x", "[::1", "[::1]:70000"])
def test_resolvers_that_are_none_are_refused(text):
    with pytest.raises(InputError):
        parse_resolver(text)


def test_resolvers_may_have_ports():
    texts = ("1.2.3.4", "1.2.3.4:5353", "::1", "[::1]:5353")
    assert list(map(parse_resolver, texts)) == [("1.2.3.4", 53), ("1.2.3.4", 5353), ("::1", 53), ("::1", 5353)]


@pytest.mark.parametrize(
    ("made", "wishes", "backend"),
    [
        (image(100), Wishes(memory_mib=399), "nitro-emu"),
        (image(100, resources={"memory_mib": 399}), Wishes(), "nitro-emu"),
        (image(kernel={"nitro-capable": False}), Wishes(), "nitro-cli"),
        (image(), Wishes(publish=(Publish(80, 80, 8080),)), "nitro-emu"),
        (image(), Wishes(machine="qemu"), "nitro-cli"),
        (
            image(network={"ingress": [{"port": 8080, "vsock_port": 1}]}),
            Wishes(publish=(Publish(80, 80, 8080), Publish(70, 90, 8080))),
            "nitro-emu",
        ),
    ],
)
def test_plan_refuses_what_cannot_work(made, wishes, backend):
    with pytest.raises(InputError):
        plan_launch(made, backend, wishes)


@pytest.mark.parametrize(
    "custom",
    [
        {"network": {"egress": [{"host": "a", "port": 0, "vsock_port": 1}]}},
        {"network": {"egress": [{"host": "a b", "port": 1, "vsock_port": 1}]}},
        {"network": {"egress": [{"host": "", "port": 1, "vsock_port": 1}]}},
        {"network": {"egress": [{"host": "a", "port": 1}]}},
        {"network": {"outbound": {"vsock_port": 0}}},
        {"network": {"outbound": {"vsock_port": 8888, "dns_ports": [8888]}}},
        {"network": {"outbound": {"vsock_port": 8888, "dns_ports": [1, 2, 3, 4]}}},
        {"network": {"outbound": {"vsock_port": 1}, "egress": [{"host": "a", "port": 1, "vsock_port": 1}]}},
        {"network": {"ingress": [{"port": 70000, "vsock_port": 1}]}},
        {"network": {"ingress": [{"port": 80, "vsock_port": 1}, {"port": 80, "vsock_port": 2}]}},
        {"network": ["x"]},
        {"resources": {"cid": -1}},
        {"resources": {"memory_mib": "much"}},
    ],
)
def test_metadata_of_a_wrong_form_is_refused(custom):
    with pytest.raises(InputError):
        image(**custom)


def test_metadata_of_others_is_no_error():
    assert parse_image("a.eif", sized(1), "x86_64", {"CustomMetadata": [1, 2]}).resources.cid is None
    assert image(kernel="mine", else_={}).nitro_capable is None
    assert parse_image("/i/b.eif", sized(1), "x86_64", {}).name == "b"


def enclave(name, ident, cid):
    return RunningEnclave("nitro-emu", name, ident, cid, 1, 64, 2, False, "RUNNING")


def test_selection_prefers_id_then_name_then_cid():
    running = [enclave("127", "i-a", 16), enclave("b", "i-b", 127), enclave("b", "i-c", 128), enclave("i-a", "i-d", 9)]
    assert [match(running, wanted) for wanted in ("i-a", "127", "128", "i-c")] == [0, 0, 2, 2]
    for wanted in ("b", "nobody", "12"):
        with pytest.raises(InputError):
            match(running, wanted)


# nitro-cli's answers


def test_launch_and_list_are_parsed():
    started = parse_launch(LAUNCHED, "nitro-cli", False)
    assert (started.name, started.cid, started.pid, started.memory_mib) == ("nginx", 17, 81699, 1024)
    listed = LAUNCHED.decode().replace(
        '"MemoryMiB": 1024', '"MemoryMiB": 1024, "State": "RUNNING", "Flags": "DEBUG_MODE"'
    )
    assert parse_list(f"[{listed}]".encode(), "nitro-cli")[0].debug
    # a nitro-cli from before enclaves had names
    assert parse_launch(LAUNCHED.replace(b'"EnclaveName": "nginx",', b""), "nitro-cli", False).name.startswith("i-")


@pytest.mark.parametrize(
    "text", [b"", b"{}", b"[1]", b"[{}]", b'{"a":', b"[" * 100_000, LAUNCHED.replace(b"17", b'"x"')]
)
def test_answers_that_are_none_are_one_error(text):
    for parse in (lambda: parse_launch(text, "nitro-cli", False), lambda: parse_list(text, "nitro-cli")):
        if text == LAUNCHED:
            continue
        with pytest.raises(EnclavekitError) as caught:
            parse()
        assert caught.value.exit_code == 5


BANNER = b"Connecting to the console for enclave 17...\nSuccessfully connected to the console.\n"


@pytest.mark.parametrize("step", [1, 2, 7, 4096])
@pytest.mark.parametrize("console", [b"", b"hello\nworld\n", b"no newline", b'{\n  "a": 1\n}\n'])
@pytest.mark.parametrize("banner", [BANNER, b""])
def test_launch_output_is_split_wherever_it_is_cut(step, console, banner):
    output, got = LaunchOutput(), b""
    text = LAUNCHED + banner + console
    for start in range(0, len(text), step):
        got += output.feed(text[start : start + step])
    got += output.feed_eof()
    assert (output.json + b"\n", got) == (LAUNCHED, console)


# errors

NESTED = """Start allocating memory...
[ E22 ] Insufficient CPUs available. User provided `cpu-count` is 8.
Failed connections: 1
[ E39 ] Enclave process connection failure.

For more details, please visit https://docs.aws.amazon.com/enclaves/latest/user/cli-errors.html#E39

If you open a support ticket, please provide the error log found at "/var/log/nitro_enclaves/err2026.log"
"""
LOG = """  Action: Run Enclave
  Subactions:
    Failed to bind the heartbeat socket: Address already in use (os error 98)
    Failed to run
  Root error file: src/enclave_proc_comm.rs
"""


def test_first_error_is_the_true_one():
    failure = parse_failure(NESTED, 39)
    assert (failure.number, failure.log_path) == (22, "/var/log/nitro_enclaves/err2026.log")
    assert failure.text.startswith("Insufficient CPUs") and not failure.is_transient
    assert "cure: " in failure.describe() and "\n" not in failure.describe()


@pytest.mark.parametrize(
    ("stderr", "number", "transient"),
    [
        ("[ E39 ] Enclave process connection failure.", 39, True),
        ("[ E11 ] Socket error", 11, True),
        ("[ E36 ] Enclave boot failure", 36, False),
        ("[ E36 ] Enclave boot failure: Address already in use", 36, True),
        ("[ E26 ] Insufficient memory requested: address already in use", 26, False),
        ("[ E36 ] \nthe words are below", 36, False),
        ("[ E77 ] from a later version", 77, False),
        ("error: the following required arguments were not provided\n\n", None, False),
        ("", None, False),
        ("\x1b[31m[ E1", None, False),
    ],
)
def test_failures(stderr, number, transient):
    failure = parse_failure(stderr, 2)
    assert (failure.number, failure.is_transient) == (number, transient)
    assert failure.describe().isprintable()


def test_error_log():
    assert parse_error_log(LOG)[0].endswith("(os error 98)") and len(parse_error_log(LOG)) == 2
    assert parse_error_log("nothing of the kind") == ()


def test_every_number_has_a_cause_and_a_cure():
    assert sorted(NITRO_ERRORS) == list(range(61))
    assert all(text.title and text.cause and text.cure for text in NITRO_ERRORS.values())
    assert [parse_error_code(text) for text in ("E26", "e26", "26", "E5", "E61", "", "E-1", "x", "E²")] == [
        *(26, 26, 26, 5),
        *(None,) * 5,
    ]


# memory

GIB_KIB, TWO_MIB_KIB = 1 << 20, 2048


@pytest.mark.parametrize(
    ("wanted", "free", "taken"),
    [
        (512, {TWO_MIB_KIB: 300}, {TWO_MIB_KIB: 256}),
        (511, {TWO_MIB_KIB: 300}, {TWO_MIB_KIB: 256}),
        (1500, {GIB_KIB: 1, TWO_MIB_KIB: 300}, {GIB_KIB: 1, TWO_MIB_KIB: 238}),
        (1500, {GIB_KIB: 2}, {GIB_KIB: 2}),
        (256, {GIB_KIB: 1}, {GIB_KIB: 1}),
        (1500, {GIB_KIB: 2, TWO_MIB_KIB: 10}, {GIB_KIB: 2, TWO_MIB_KIB: 10}),
        (512, {TWO_MIB_KIB: 255}, None),
        (1, {}, None),
    ],
)
def test_pages_largest_first_then_smallest_upwards(wanted, free, taken):
    assert allocate_pages(wanted, free) == taken
    if taken:
        assert pages_mib(taken) >= wanted and describe_pages(taken)


# published ports


@pytest.mark.parametrize(
    ("text", "expected"),
    [("443:8443", (443, 443, 8443)), ("9000-10000:10001", (9000, 10000, 10001)), ("65535:1", (65535, 65535, 1))],
)
def test_publish(text, expected):
    rule = parse_publish(text)
    assert (rule.first, rule.last, rule.port) == expected and str(rule) == text


@pytest.mark.parametrize(
    "text", ["", "443", "443:", ":8443", "0:1", "1:0", "2-1:3", "70000:1", "1:70000", "a:b", "1-2-3:4"]
)
def test_publish_of_a_wrong_form(text):
    with pytest.raises(InputError):
        parse_publish(text)


def test_overlap():
    rule = Publish(10, 20, 1)
    assert [overlaps(rule, Publish(*ports, 2)) for ports in ((1, 9), (1, 10), (15, 16), (20, 30), (21, 30))] == [
        *(False, True, True, True, False)
    ]


@pytest.mark.parametrize(
    ("bind", "family", "chains"),
    [
        ("127.0.0.1", "ip", 1),
        ("::1", "ip6", 1),
        ("0.0.0.0", "ip", 2),
        ("10.0.0.5", "ip", 2),
        ("fd00::5", "ip6", 2),
    ],
)
def test_rules_of_a_loopback_proxy_are_for_this_machine_only(bind, family, chains):
    text = render_rules(127, bind, [Publish(80, 80, 8080), Publish(9000, 9100, 8080)])
    body = text[text.index("{") :]
    assert f"table {family} enclavekit_127 {{" in text
    assert body.count("type nat hook") == chains and body.count("tcp dport") == 2 * chains


def test_listeners():
    text = """  sl  local_address rem_address   st
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000
   1: 0100007F:0016 0100007F:1234 01 00000000:00000000
"""
    assert parse_listeners(text) == {8080}
