# SPDX-License-Identifier: Apache-2.0
"""The decision: what agrees is allowed, what does not is not, and nothing is allowed that no rule names."""

import ipaddress
import json

import pytest
from enclavekit_core.egress_policy import Policy, parse_policy, render_policy
from enclavekit_core.errors import ConfigError
from enclavekit_core.host_names import matches, normalise_name, normalise_pattern
from enclavekit_pf_proxy.policy.answers import GRACE_S, MAX_ADDRESSES, MAX_NAMES, AnswerTable
from enclavekit_pf_proxy.policy.decision import Attempt, Reason, Verdict, decide, may_answer, may_pass, may_resolve
from enclavekit_pf_proxy.policy.first_bytes import MALFORMED, NOTHING, Shown
from enclavekit_pf_proxy.policy.learning import Learner
from enclavekit_pf_proxy.policy.log_events import describe_decision, read_events
from hypothesis import given
from hypothesis import strategies as st

POLICY = parse_policy(
    """
allow:
- {name: api.example.com, ports: [443, 8000-8010]}
- {name: "*.cdn.example.com", ports: [443]}
- {name: db.example.com, ports: [5432], absent_name: true, private_address: true}
- {name: ech.example.com, ports: [443], encrypted_name: true}
- {name: "*.corp.example.com", ports: [443]}
- {network: 198.51.100.0/24, ports: [9000]}
- {network: 10.9.0.0/16, ports: [9000]}
- {name: ntp.example.com, ports: [123], protocol: udp, absent_name: true}
deny:
- {name: bad.cdn.example.com}
- {name: "*.corp.example.com", ports: [443], protocol: udp}
- {name: secret.corp.example.com, ports: [443]}
- {network: 10.9.9.0/24}
""",
    "policy",
)
PUBLIC, OTHER, PRIVATE = "93.184.216.34", "1.1.1.1", "10.0.0.5"
ALLOWED, DENIED, INSPECT = Verdict.ALLOWED, Verdict.DENIED, Verdict.INSPECT
API = ("api.example.com",)

CASES = {
    "all agree": ((PUBLIC, 443, API, Shown("api.example.com")), ALLOWED, Reason.RULE),
    "the first bytes are still to be seen": ((PUBLIC, 443, API, None), INSPECT, Reason.RULE),
    "a range of ports": ((PUBLIC, 8005, API, Shown("api.example.com")), ALLOWED, Reason.RULE),
    "another port": ((PUBLIC, 8011, API, None), DENIED, Reason.PORT),
    "another protocol": ((PUBLIC, 443, API, None, "udp"), DENIED, Reason.PORT),
    "raw address": ((PUBLIC, 443, (), Shown("api.example.com")), DENIED, Reason.RAW_ADDRESS),
    "raw address, before anybody looks": ((PUBLIC, 443, (), None), DENIED, Reason.RAW_ADDRESS),
    "another name's address": ((OTHER, 443, ("other.example",), None), DENIED, Reason.NO_RULE),
    "domain fronting": ((PUBLIC, 443, API, Shown("other.example")), DENIED, Reason.MISMATCH),
    "another allowed name that did not lead there": (
        (PUBLIC, 443, API, Shown("a.cdn.example.com")),
        DENIED,
        Reason.MISMATCH,
    ),
    "no name shown": ((PUBLIC, 443, API, NOTHING), DENIED, Reason.ABSENT),
    "malformed": ((PUBLIC, 443, API, MALFORMED), DENIED, Reason.MALFORMED),
    "encrypted": ((PUBLIC, 443, API, Shown("api.example.com", encrypted=True)), DENIED, Reason.ENCRYPTED),
    "encrypted where that may be": (
        (PUBLIC, 443, ("ech.example.com",), Shown("outer.example", encrypted=True)),
        ALLOWED,
        Reason.RULE,
    ),
    "rebinding": ((PRIVATE, 443, API, Shown("api.example.com")), DENIED, Reason.PRIVATE),
    "rebinding, written as IPv6": (("::ffff:10.0.0.5", 443, API, Shown("api.example.com")), DENIED, Reason.PRIVATE),
    "rebinding through NAT64": (("64:ff9b::a00:5", 443, API, Shown("api.example.com")), DENIED, Reason.PRIVATE),
    "private where that may be": ((PRIVATE, 5432, ("db.example.com",), None), ALLOWED, Reason.RULE),
    "loopback, where private may be": (("127.0.0.1", 5432, ("db.example.com",), None), DENIED, Reason.PRIVATE),
    "metadata, where private may be": (("169.254.169.254", 5432, ("db.example.com",), None), DENIED, Reason.PRIVATE),
    "a wildcard": ((PUBLIC, 443, ("a.b.cdn.example.com",), Shown("a.b.cdn.example.com")), ALLOWED, Reason.RULE),
    "a wildcard is not its own name": ((PUBLIC, 443, ("cdn.example.com",), None), DENIED, Reason.NO_RULE),
    "deny wins": ((PUBLIC, 443, ("bad.cdn.example.com",), None), DENIED, Reason.DENY_RULE),
    "deny wins over what is shown": (
        (PUBLIC, 443, ("a.cdn.example.com", "bad.cdn.example.com"), Shown("bad.cdn.example.com")),
        DENIED,
        Reason.DENY_RULE,
    ),
    "a denied neighbour on the same address": (
        (PUBLIC, 443, ("a.cdn.example.com", "bad.cdn.example.com"), Shown("a.cdn.example.com")),
        ALLOWED,
        Reason.RULE,
    ),
    "one of several names": (
        (PUBLIC, 443, ("a.cdn.example.com", "api.example.com"), Shown("api.example.com")),
        ALLOWED,
        Reason.RULE,
    ),
    "a network": (("198.51.100.7", 9000, (), None), ALLOWED, Reason.RULE),
    "a network's other port": (("198.51.100.7", 443, (), None), DENIED, Reason.RAW_ADDRESS),
    "a denied part of a network": (("10.9.9.1", 9000, (), None), DENIED, Reason.DENY_RULE),
    "a denied part of a network, written as IPv6": (("::ffff:10.9.9.1", 9000, (), None), DENIED, Reason.DENY_RULE),
    "datagrams": ((PUBLIC, 123, ("ntp.example.com",), None, "udp"), ALLOWED, Reason.RULE),
    "datagrams as TCP": ((PUBLIC, 123, ("ntp.example.com",), None), DENIED, Reason.PORT),
}


def attempt(address, port, names, shown, protocol="tcp"):
    return Attempt(protocol, ipaddress.ip_address(address), port, tuple(names), shown)


@pytest.mark.parametrize("case", CASES)
def test_decisions(case):
    given_attempt, verdict, reason = CASES[case]
    decision = decide(POLICY, attempt(*given_attempt))
    assert (decision.verdict, decision.reason) == (verdict, reason)


@pytest.mark.parametrize("case", CASES)
def test_an_empty_policy_allows_nothing(case):
    assert decide(Policy(), attempt(*CASES[case][0])).verdict is DENIED


shown_values = st.none() | st.builds(
    Shown, st.none() | st.sampled_from(["api.example.com", "bad.cdn.example.com", "x.example"]), st.booleans()
)
attempts = st.builds(
    lambda protocol, address, port, names, shown: Attempt(
        protocol, address, port, names, shown if protocol == "tcp" else None
    ),
    st.sampled_from(["tcp", "udp"]),
    st.ip_addresses() | st.sampled_from([ipaddress.ip_address(text) for text in (PUBLIC, PRIVATE, "10.9.9.1")]),
    st.sampled_from([443, 5432, 9000, 123, 1]),
    st.lists(st.sampled_from(["api.example.com", "bad.cdn.example.com", "db.example.com", "x.example"]), unique=True),
    shown_values,
)


@given(attempts)
def test_whatever_is_allowed_has_a_rule_that_fits(tried):
    decision = decide(POLICY, tried)
    if decision.verdict is DENIED:
        return
    rule = decision.rule
    assert rule is not None and rule.covers(tried.protocol, tried.port)
    if rule.pattern is not None:
        assert decision.name in tried.names and rule.names(decision.name)
        assert decision.name != "bad.cdn.example.com"
        if decision.verdict is ALLOWED and not (rule.absent_name or rule.encrypted_name):
            assert tried.shown is not None and tried.shown.name == decision.name


def test_names_are_asked_for_only_if_some_rule_could_allow_them():
    for name in ("api.example.com", "x.cdn.example.com", "secret.corp.example.com"):
        assert may_resolve(POLICY, name)  # the last one is denied on one port only
    for name in ("example.com", "bad.cdn.example.com", "cdn.example.com", "exfiltrated-data.attacker.example"):
        assert not may_resolve(POLICY, name)
    assert not may_pass(POLICY, "bad.cdn.example.com")
    assert may_pass(POLICY, "any.other.example")


def test_answers_are_believed_only_where_they_could_be_connected_to():
    def believed(name, address):
        return may_answer(POLICY, name, ipaddress.ip_address(address))

    assert believed("api.example.com", PUBLIC)
    assert believed("db.example.com", PRIVATE)
    for address in (
        PRIVATE,
        "127.0.0.1",
        "169.254.169.254",
        "::1",
        "::ffff:10.0.0.1",
        "fd00::1",
        "0.0.0.0",
        "224.0.0.1",
    ):
        assert not believed("api.example.com", address)
    assert not believed("db.example.com", "127.0.0.1")
    assert not believed("other.example", PUBLIC)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("allow: [{ports: [1]}]", r"allow\[0\]"),
        ("allow: [{name: a.b, network: 10.0.0.0/8, ports: [1]}]", r"allow\[0\]"),
        ("allow: [{name: a.b}]", "ports"),
        ("allow: [{name: a.b, ports: []}]", "ports"),
        ("allow: [{name: a.b, ports: [0]}]", "ports"),
        ("allow: [{name: a.b, ports: [5-3]}]", "ports"),
        ("allow: [{name: a.b, ports: ['1-']}]", "ports"),
        ("allow: [{name: a.b, ports: [70000]}]", "ports"),
        ("allow: [{name: 'a.*', ports: [1]}]", "name"),
        ("allow: [{name: '*', ports: [1]}]", "name"),
        ("allow: [{name: '*.*.b', ports: [1]}]", "name"),
        ("allow: [{name: 1.2.3.4, ports: [1]}]", "name"),
        ("allow: [{network: 10.0.0.1/8, ports: [1]}]", "network"),
        ("allow: [{network: '::ffff:10.0.0.0/104', ports: [1]}]", "network"),
        ("allow: [{network: 10.0.0.0/8, ports: [1], absent_name: true}]", r"allow\[0\]"),
        ("allow: [{name: a.b, ports: [1], protocol: icmp}]", "protocol"),
        ("allow: [{name: a.b, ports: [1], surprise: 1}]", "surprise"),
        ("allow: []\nallow: []", "duplicate"),
        ("deny: [{ports: [1]}]", r"deny\[0\]"),
    ],
)
def test_unusable_policies_say_where(text, where):
    with pytest.raises(ConfigError, match=where):
        parse_policy(text, "policy.yaml")


def test_names_and_patterns():
    assert normalise_name("API.Example.COM.") == "api.example.com"
    assert normalise_pattern("*.Example.com") == "*.example.com"
    for text in ("", ".", "a..b", "1.2.3.4", "a b", "ä.example", "-a.b", "a" * 64 + ".b", "a." * 130 + "b", "::1"):
        assert normalise_name(text) is None, text
    assert matches("*.a.b", "x.a.b") and matches("*.a.b", "y.x.a.b")
    assert not matches("*.a.b", "a.b") and not matches("*.a.b", "xa.b") and not matches("a.b", "x.a.b")


def test_answers_have_their_time_and_their_bounds():
    table, address = AnswerTable(), ipaddress.ip_address(PUBLIC)
    table.record("a.example", address, 10, 0)
    table.record("b.example", ipaddress.ip_address("::ffff:" + PUBLIC), 100, 0)
    assert table.names_of(address, 10 + GRACE_S) == ("a.example", "b.example")
    assert table.names_of(address, 11 + GRACE_S) == ("b.example",)
    assert table.names_of(address, 101 + GRACE_S) == ()
    assert len(table) == 0
    for number in range(MAX_NAMES + 5):
        table.record(f"n{number}.example", address, 10, 0)
    assert len(table.names_of(address, 1)) == MAX_NAMES
    for number in range(MAX_ADDRESSES + 5):
        table.record("a.example", ipaddress.ip_address(number + 2**24), 10, 0)
    assert len(table) == MAX_ADDRESSES


@given(st.lists(attempts, max_size=20))
def test_what_was_learned_allows_what_was_seen(tried):
    learner = Learner()
    for one in tried:
        learner.record(one)
        assert not learner.record(one)
    policy = parse_policy(learner.write_policy(), "learned")
    backwards = Learner()
    for one in reversed(tried):
        backwards.record(one)
    assert backwards.write_policy() == learner.write_policy()
    for one in tried:
        assert decide(policy, one).verdict is not DENIED, (one, learner.write_policy())


def test_a_log_tells_of_the_rules_that_its_decisions_took():
    def line(tried):
        event = {"event": "egress denied", "conn": "x", **describe_decision(tried, decide(POLICY, tried))}
        return f"[2026-01-01 00:00:00] {json.dumps(event)}\n"

    shared = ("first.example", "api.example.com")
    log = [
        line(attempt(PUBLIC, 443, ("new.example",), None)),  # refused before anybody looked: the narrower rule
        line(attempt(PUBLIC, 443, shared, NOTHING)),
        line(attempt(PRIVATE, 443, ("new.example",), Shown("new.example"))),
        line(attempt(OTHER, 22, (), None)),
        line(attempt(PUBLIC, 443, API, MALFORMED)),
        line(attempt(PUBLIC, 443, ("new.example",), None, "udp")),
        line(attempt(PUBLIC, 123, ("ntp.example.com",), NOTHING, "udp")),
        json.dumps({"event": "dns denied", "name": "Unknown.example."}) + "\n",
        *("no JSON\n", "{\n", "[1]\n", "{}\n", '{"event": "egress denied"}\n', '{"event": "dns denied"}\n'),
        '{"event": "egress denied", "reason": "x", "protocol": "tcp", "port": 0, "names": [], "address": "x"}\n',
    ]
    learner, refused = Learner(), []
    for found in read_events(log):
        if isinstance(found, str):
            refused.append(found)
        else:
            learner.record(found)
    assert refused == ["unknown.example"]
    section = learner.write_section(refused).splitlines()
    assert section[1:] == [
        "# not resolved, as no rule allows it: unknown.example",
        "network:",
        "  egress:",
        '    - {host: "1.1.1.1", port: [22]}',
        '    - {host: "api.example.com", port: [443], absent_name: true}',
        '    - {host: "new.example", port: [443]}',
        '    - {host: "new.example", port: [443], private_address: true}',
        '    - {host: "new.example", port: [443], protocol: udp}',
        '    - {host: "ntp.example.com", port: [123], protocol: udp, absent_name: true}',
    ]


@given(st.lists(attempts, max_size=10), st.text(max_size=40))
def test_a_log_is_read_back_and_noise_passed_over(tried, noise):
    lines = [json.dumps({"event": "egress allowed", **describe_decision(one, decide(POLICY, one))}) for one in tried]
    events = list(read_events(line for pair in zip(lines, [noise] * len(lines), strict=True) for line in pair))
    found = [event for event in events if not isinstance(event, str)]
    assert [(one.protocol, one.address, one.port, one.names) for one in found] == [
        (one.protocol, one.address, one.port, tuple(one.names))
        for one in tried
        if decide(POLICY, one).reason is not Reason.MALFORMED
    ]


@given(st.sampled_from([POLICY, Policy()]) | st.lists(attempts, max_size=20).map(lambda tried: learned(tried)))
def test_a_policy_is_written_as_it_is_read(policy):
    assert parse_policy(render_policy(policy), "again") == policy


def learned(tried):
    learner = Learner()
    for one in tried:
        learner.record(one)
    return parse_policy(learner.write_policy(), "learned")


@pytest.mark.parametrize(
    "address",
    [
        "64:ff9b:1::a00:1",
        "64:ff9b::a00:1",
        "::ffff:0:a00:1",
        "::a00:1",
        "2002:a00:1::",
        "2001::1",
        "fec0::1",
        "4000::1",
        "3fff::1",
    ],
)
def test_addresses_that_lead_elsewhere_by_translation_are_private(address):
    assert not may_answer(POLICY, "api.example.com", ipaddress.ip_address(address))
