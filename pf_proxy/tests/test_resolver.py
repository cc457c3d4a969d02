# SPDX-License-Identifier: Apache-2.0
"""Questions and answers: what goes out, what of a hostile resolver's answers comes in; then over real sockets."""

import ipaddress
import socket
import threading
from contextlib import contextmanager

import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from enclavekit_core.address import CID_PARENT, TcpAddress, VsockAddress
from enclavekit_core.egress_policy import parse_policy
from enclavekit_core.streams import Listener
from enclavekit_pf_proxy.plan import DnsPlan
from enclavekit_pf_proxy.policy.gate import Gate
from enclavekit_pf_proxy.resolver.cache import AnswerCache
from enclavekit_pf_proxy.resolver.service import DnsService, open_sockets
from enclavekit_pf_proxy.resolver.vetting import (
    FAILED,
    Answer,
    encode_answer,
    encode_query,
    read_answer,
    read_question,
    udp_limit,
)
from enclavekit_pf_proxy.server import Server
from hypothesis import given
from hypothesis import strategies as st

PATIENCE_S = 20.0
PUBLIC = "93.184.216.34"
POLICY = """
allow:
- {name: api.example.com, ports: [443]}
- {name: big.example.com, ports: [443]}
- {name: db.example.com, ports: [5432], absent_name: true, private_address: true}
deny:
- {name: evil.example.net}
"""


@pytest.fixture
def gate():
    return Gate(parse_policy(POLICY, "policy"))


def ask(name, kind="A", **options):
    return dns.message.make_query(name, kind, **options).to_wire()


def answer_to(query, *records, rcode=dns.rcode.NOERROR, authority=()):
    """A resolver's message: records are (name, ttl, type, *data)."""
    message = dns.message.make_response(dns.message.from_wire(query), recursion_available=True)
    message.set_rcode(rcode)
    for section, given_records in ((message.answer, records), (message.authority, authority)):
        for name, ttl, kind, *data in given_records:
            section.append(dns.rrset.from_text(f"{name}.", ttl, "IN", kind, *data))
    return message.to_wire()


def believe(gate, *records, name="api.example.com", kind="A", **options):
    query = encode_query((name, dns.rdatatype.from_text(kind)), 7)
    return read_answer(answer_to(query, *records, **options), (name, dns.rdatatype.from_text(kind)), 7, gate)


def test_only_allowed_names_go_out_and_nothing_but_the_name(gate):
    question = read_question(ask("API.example.com.", use_edns=0, payload=4000), gate)
    assert question.key == ("api.example.com", dns.rdatatype.A)
    assert udp_limit(question) == 1232
    sent = dns.message.from_wire(encode_query(question.key, 7))
    assert (sent.id, sent.question[0].to_text(), sent.options) == (7, "api.example.com. IN A", ())


@pytest.mark.parametrize(
    ("name", "kind", "rcode"),
    [
        ("secret-data.attacker.example", "A", dns.rcode.NXDOMAIN),
        ("x.api.example.com", "A", dns.rcode.NXDOMAIN),
        ("evil.example.net", "A", dns.rcode.NXDOMAIN),
        ("34.216.184.93.in-addr.arpa", "PTR", dns.rcode.NXDOMAIN),
        (".", "NS", dns.rcode.NXDOMAIN),
        ("api.example.com", "HTTPS", dns.rcode.NOERROR),
        ("api.example.com", "SVCB", dns.rcode.NOERROR),
        ("api.example.com", "ANY", dns.rcode.NOTIMP),
    ],
)
def test_what_does_not_go_out_is_answered_here(gate, name, kind, rcode):
    reply = dns.message.from_wire(read_question(ask(name, kind), gate))
    assert (reply.rcode(), reply.answer) == (rcode, [])
    assert reply.flags & dns.flags.QR


@given(st.binary(max_size=100))
def test_noise_is_no_question(noise):
    gate = Gate(parse_policy(POLICY, "policy"))
    query = ask("api.example.com")
    for wire in (noise, query[:12] + noise, query + noise):
        found = read_question(wire, gate)
        assert found is None or not isinstance(found, bytes) or len(found) >= 12


@given(st.binary(max_size=100), st.integers(0, 80))
def test_noise_is_no_answer(noise, cut):
    gate = Gate(parse_policy(POLICY, "policy"))
    key = ("api.example.com", 1)
    wire = answer_to(encode_query(key, 7), ("api.example.com", 60, "A", PUBLIC))
    for data in (noise, wire[:cut] + noise):
        found = read_answer(data, key, 7, gate)
        assert found is None or all(str(address) != "10.0.0.1" for address in found.addresses)


def addresses(answer):
    return sorted(map(str, answer.addresses))


def test_addresses_are_believed_with_the_least_time_to_live(gate):
    found = believe(
        gate, ("api.example.com", 600, "CNAME", "edge.example.net."), ("edge.example.net", 60, "A", PUBLIC, "1.1.1.1")
    )
    assert (addresses(found), found.ttl_s) == (["1.1.1.1", PUBLIC], 60)
    assert [rrset.rdtype for rrset in found.rrsets] == [dns.rdatatype.CNAME, dns.rdatatype.A]


@pytest.mark.parametrize("bad", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "0.0.0.0", "100.64.0.1"])
def test_rebinding_is_not_believed_alone_or_among_others(gate, bad):
    found = believe(gate, ("api.example.com", 60, "A", bad))
    assert (addresses(found), found.rrsets, found.dropped) == ([], (), (bad,))
    found = believe(gate, ("api.example.com", 60, "A", bad, PUBLIC))
    assert (addresses(found), found.dropped) == ([PUBLIC], (bad,))


@pytest.mark.parametrize("bad", ["::1", "fd00::1", "fe80::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "::ffff:127.0.0.1"])
def test_rebinding_over_ipv6_is_not_believed(gate, bad):
    found = believe(gate, ("api.example.com", 60, "AAAA", bad), kind="AAAA")
    assert (addresses(found), len(found.dropped)) == ([], 1)


def test_private_addresses_are_believed_where_the_policy_says_so(gate):
    found = believe(gate, ("db.example.com", 60, "A", "10.0.0.1", "127.0.0.1"), name="db.example.com")
    assert (addresses(found), found.dropped) == (["10.0.0.1"], ("127.0.0.1",))


def test_records_beside_the_chain_are_not_believed(gate):
    found = believe(gate, ("other.example", 60, "A", "1.1.1.1"), ("api.example.com", 60, "A", PUBLIC))
    assert addresses(found) == [PUBLIC]
    assert [rrset.name.to_text() for rrset in found.rrsets] == ["api.example.com."]
    assert addresses(believe(gate, ("other.example", 60, "A", "1.1.1.1"))) == []


def test_chains_have_an_end_and_pass_no_denied_name(gate):
    links = [(f"n{i}.example", 60, "CNAME", f"n{i + 1}.example.") for i in range(20)]
    long = [("api.example.com", 60, "CNAME", "n0.example."), *links, ("n20.example", 60, "A", PUBLIC)]
    assert addresses(believe(gate, *long)) == []
    loop = [("api.example.com", 60, "CNAME", "b.example."), ("b.example", 60, "CNAME", "api.example.com.")]
    assert addresses(believe(gate, *loop)) == []
    through = [("api.example.com", 60, "CNAME", "evil.example.net."), ("evil.example.net", 60, "A", PUBLIC)]
    found = believe(gate, *through)
    assert (found.rcode, addresses(found), found.rrsets) == (dns.rcode.NXDOMAIN, [], ())


def test_answers_to_other_questions_are_none(gate):
    key, query = ("api.example.com", 1), encode_query(("api.example.com", 1), 7)
    good = ("api.example.com", 60, "A", PUBLIC)
    assert read_answer(answer_to(query, good), key, 8, gate) is None
    assert read_answer(answer_to(query, good), ("db.example.com", 1), 7, gate) is None
    assert read_answer(answer_to(query, good), ("api.example.com", 28), 7, gate) is None
    assert read_answer(answer_to(query, good, rcode=dns.rcode.SERVFAIL), key, 7, gate) is None
    assert read_answer(query, key, 7, gate) is None


def test_absence_is_kept_as_long_as_its_zone_says(gate):
    soa = ("example.com", 3600, "SOA", "ns.example.com. h.example.com. 1 2 3 4 60")
    found = believe(gate, rcode=dns.rcode.NXDOMAIN, authority=[soa])
    assert (found.rcode, found.ttl_s) == (dns.rcode.NXDOMAIN, 60)


def test_the_cache_forgets_in_time_and_is_bounded():
    cache = AnswerCache(2)
    one = Answer(dns.rcode.NOERROR, (), 10)
    cache.store(("a", 1), one, 100.0)
    assert cache.find(("a", 1), 109.0) == (one, 9.0)
    assert cache.find(("a", 1), 110.0) is None
    for name in "abc":
        cache.store((name, 1), one, 100.0)
    assert [cache.find((name, 1), 100.0) is None for name in "abc"] == [True, False, False]
    cache.store(("b", 1), FAILED, 100.0)
    assert cache.find(("b", 1), 100.0) is None


def test_what_does_not_fit_is_cut(gate):
    question = read_question(ask("api.example.com"), gate)
    found = believe(gate, ("api.example.com", 60, "A", *[f"1.1.1.{i}" for i in range(60)]))
    cut = dns.message.from_wire(encode_answer(question, found, 0.0, udp_limit(question)))
    assert cut.flags & dns.flags.TC and not cut.answer
    whole = dns.message.from_wire(encode_answer(question, found, 20.0, 65535))
    assert len(whole.answer[0]) == 60 and whole.answer[0].ttl == 40


ZONE = {
    "api.example.com": [("api.example.com", 60, "A", PUBLIC, "10.0.0.1")],
    "big.example.com": [("big.example.com", 60, "A", *[f"1.1.1.{i}" for i in range(60)])],
}


@contextmanager
def host_resolver(port, rcode=dns.rcode.NOERROR):
    """DNS over a stream, as the host's end of a vsock port leads to; counts what it is asked."""
    asked = []
    with Listener(VsockAddress(CID_PARENT, port)) as listener:

        def serve():
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock:
                    length = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
                    query = sock.recv(length, socket.MSG_WAITALL)
                    name = dns.message.from_wire(query).question[0].name.to_text(omit_final_dot=True)
                    asked.append(name)
                    reply = answer_to(query, *ZONE.get(name, ()), rcode=rcode)
                    sock.sendall(len(reply).to_bytes(2, "big") + reply)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield asked
        finally:
            listener.socket.shutdown(socket.SHUT_RDWR)
            thread.join(PATIENCE_S)


@contextmanager
def running(gate, *ports):
    server = Server([])
    sockets = open_sockets(TcpAddress("127.0.0.1", 0))
    upstreams = [VsockAddress(CID_PARENT, port) for port in ports]
    service = DnsService(server.loop, sockets, gate, DnsPlan(TcpAddress("127.0.0.1", 0), upstreams))
    server.when_stopping.append(service.stop)
    address = sockets.datagrams.getsockname()
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield address
    finally:
        server.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def lookup(address, name, how=dns.query.udp, **options):
    return how(dns.message.make_query(name, "A"), address[0], port=address[1], timeout=PATIENCE_S, **options)


def texts(reply):
    return [record.to_text() for rrset in reply.answer for record in rrset]


def test_datagrams_and_streams_from_one_cache(gate):
    with host_resolver(8053) as asked, running(gate, 8053) as address:
        for how in (dns.query.udp, dns.query.tcp, dns.query.udp):
            assert texts(lookup(address, "api.example.com", how)) == [PUBLIC]
        assert lookup(address, "other.example").rcode() == dns.rcode.NXDOMAIN
        reply, by_stream = dns.query.udp_with_fallback(
            dns.message.make_query("big.example.com", "A", use_edns=False),
            address[0],
            port=address[1],
            timeout=PATIENCE_S,
        )
        assert by_stream and len(texts(reply)) == 60
        assert asked == ["api.example.com", "big.example.com"]
    names = gate.answers.names_of(ipaddress.ip_address(PUBLIC), 0.0)
    assert names == ("api.example.com",)
    assert not gate.answers.names_of(ipaddress.ip_address("10.0.0.1"), 0.0)


def test_the_next_upstream_is_asked_when_one_fails(gate):
    failing, working = host_resolver(8054, dns.rcode.SERVFAIL), host_resolver(8055)
    with failing as broken, working as good, running(gate, 8053, 8054, 8055) as address:
        assert texts(lookup(address, "api.example.com")) == [PUBLIC]
    assert (len(broken), len(good)) == (1, 1)


def test_no_upstream_is_a_failure_not_a_silence(gate):
    with running(gate, 8053) as address:
        assert lookup(address, "api.example.com").rcode() == dns.rcode.SERVFAIL
