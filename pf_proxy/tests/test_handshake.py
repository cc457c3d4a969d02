# SPDX-License-Identifier: Apache-2.0
"""Which step follows which event before a connection is relayed; no socket is near."""

import pytest
from enclavekit_core.address import CID_ANY, CID_PARENT, TcpAddress, VsockAddress
from enclavekit_core.errors import LocalProtocolError
from enclavekit_core.proxy_protocol import Proxied, decode_proxied, encode_v1, encode_v2
from enclavekit_pf_proxy.announcement import NO_ENDS, Ends
from enclavekit_pf_proxy.handshake import (
    DIAL,
    REDIAL,
    Ask,
    BeginRelay,
    Decide,
    Handshake,
    Locate,
    Phase,
    Read,
    Refuse,
)
from enclavekit_pf_proxy.policy.decision import Decision, Reason, Verdict
from enclavekit_pf_proxy.policy.first_bytes import MALFORMED, NOTHING, FirstBytes, Shown
from enclavekit_pf_proxy.service import Endpoint, Header, Mode, Service
from enclavekit_pf_proxy.wire.destination import encode_destination
from enclavekit_pf_proxy.wire.opening import Opening
from enclavekit_pf_proxy.wire.request import Request, Status, encode_reply, encode_request

TCP = Endpoint(TcpAddress("127.0.0.1", 80))
VSOCK = Endpoint(VsockAddress(CID_PARENT, 8888))
WEB = TcpAddress("192.0.2.1", 443)
APP = TcpAddress("10.0.0.9", 50000)
NUMBER = 0x0102030405060708
OK = encode_reply(Status.CONNECTED)
ALLOWED = Decision(Verdict.ALLOWED, Reason.RULE)
DENIED = Decision(Verdict.DENIED, Reason.NO_RULE)
INSPECT = Decision(Verdict.INSPECT, Reason.RULE)
A_GATE = object()  # whether there is one is all that is asked


def plain(**options):
    return Handshake(Service(Mode.IP_TO_VSOCK, TCP, VSOCK, **options), NUMBER)


def enclave_end(header=Header.AUTO, **options):
    return Handshake(Service(Mode.IP_TO_VSOCK_TRANSPARENT, TCP, VSOCK, header=header, **options), NUMBER)


def host_end(**options):
    listen = Endpoint(VsockAddress(CID_ANY, 8888))
    return Handshake(Service(Mode.VSOCK_TO_IP_TRANSPARENT, listen, None, **options), NUMBER)


def test_without_headers_it_dials_and_relays():
    handshake = plain()
    assert handshake.begin() == Locate(Opening())
    assert handshake.located(VSOCK.first, None) is DIAL
    assert handshake.connected(Header.AUTO, NO_ENDS) == BeginRelay(b"", b"", 0)
    assert handshake.phase is Phase.RELAYING


def request_bytes():
    return encode_request(Request(7, WEB, APP))


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_a_request_in_any_pieces_is_located_dialled_and_answered(step):
    handshake = host_end()
    assert handshake.begin() == Read(10.0)
    wire = request_bytes()
    found = [handshake.client_sent(wire[at : at + step]) for at in range(0, len(wire), step)]
    assert found[:-1] == [None] * (len(found) - 1)
    assert found[-1] == Locate(Opening(None, WEB, APP, 7, True))
    assert handshake.number == 7 and handshake.wants_reply
    assert handshake.located(WEB, WEB) is DIAL
    assert handshake.connected(Header.AUTO, NO_ENDS) == BeginRelay(b"", OK, 0)


def test_the_stream_behind_a_header_goes_first():
    handshake = host_end()
    handshake.begin()
    handshake.client_sent(encode_destination(WEB) + b"hello")
    handshake.located(WEB, WEB)
    assert handshake.connected(Header.AUTO, NO_ENDS) == BeginRelay(b"hello", b"", 5)


@pytest.mark.parametrize(
    ("data", "status"), [(b"GET", Status.MALFORMED), (b"\xe5\x07\0\x08", Status.MALFORMED), (b"", Status.MALFORMED)]
)
def test_what_is_no_header_is_refused(data, status):
    handshake = host_end()
    handshake.begin()
    step = handshake.client_sent(data)
    assert isinstance(step, Refuse) and step.status is status


def test_the_upstream_is_asked_and_its_answer_read_in_any_pieces():
    handshake = enclave_end()
    assert isinstance(handshake.begin(), Locate)
    assert handshake.located(VSOCK.first, WEB) is DIAL
    ends = Ends(APP, WEB)
    assert handshake.connected(Header.V2, ends) == Ask(encode_request(Request(NUMBER, WEB, APP)), 20.0)
    for byte in OK[:-1]:
        assert handshake.upstream_sent(bytes([byte])) is None
    assert handshake.wanted == 1
    assert handshake.upstream_sent(OK[-1:]) == BeginRelay(b"", b"", 0)


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.CONNECTED])
def test_a_refusal_of_the_other_end_is_passed_on(status):
    handshake = enclave_end()
    handshake.begin()
    handshake.located(VSOCK.first, WEB)
    handshake.connected(Header.V2, NO_ENDS)
    step = handshake.upstream_sent(encode_reply(status))
    assert isinstance(step, Refuse) and step.status is status


@pytest.mark.parametrize("end", ["end", "failure"])
def test_an_upstream_that_does_not_know_the_header_gets_the_first(end):
    handshake = enclave_end()
    handshake.begin()
    handshake.located(VSOCK.first, WEB)
    handshake.connected(Header.V2, NO_ENDS)
    assert (handshake.upstream_sent(b"") if end == "end" else handshake.upstream_failed("reset")) is REDIAL
    # the second time around too, whatever the driver would send
    assert handshake.connected(Header.V2, NO_ENDS) == BeginRelay(encode_destination(WEB), b"", 0)


@pytest.mark.parametrize(("header", "before"), [(Header.V2, b""), (Header.AUTO, OK[:3])])
def test_an_end_is_no_reason_to_try_the_first_header(header, before):
    """Where only the second will do, or after it was clearly understood."""
    handshake = enclave_end(header)
    handshake.begin()
    handshake.located(VSOCK.first, WEB)
    handshake.connected(header, NO_ENDS)
    if before:
        assert handshake.upstream_sent(before) is None
    assert isinstance(handshake.upstream_sent(b""), Refuse)


def gated():
    handshake = enclave_end(Header.V1, gate=A_GATE)
    handshake.begin()
    assert handshake.located(VSOCK.first, WEB) == Decide(None)
    return handshake


def test_a_decision_that_needs_no_bytes():
    assert gated().decided(ALLOWED, FirstBytes()) is DIAL
    step = gated().decided(DENIED, FirstBytes())
    assert isinstance(step, Refuse) and (step.status, step.logged) == (Status.DENIED, True)


def test_a_decision_on_first_bytes_which_the_upstream_gets_unchanged():
    handshake = gated()
    assert handshake.decided(INSPECT, FirstBytes()) == Read(5.0)
    assert handshake.client_sent(b"GET / HTTP/1.1\r\nHost: ap") is None
    assert handshake.client_sent(b"i.example\r\n\r\n") == Decide(Shown("api.example"))
    assert handshake.decided(ALLOWED, FirstBytes()) is DIAL
    expected = encode_destination(WEB) + b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n"
    assert handshake.connected(Header.V1, NO_ENDS).to_upstream == expected


def test_first_bytes_that_came_with_a_header_are_inspected_at_once():
    handshake = enclave_end(accept_proxy=True, gate=A_GATE)
    handshake.begin()
    handshake.client_sent(encode_v1(Proxied(APP, WEB)) + b"GET / HTTP/1.1\r\nHost: api.example\r\n\r\n")
    assert handshake.located(VSOCK.first, WEB) == Decide(None)
    assert handshake.decided(INSPECT, FirstBytes()) == Decide(Shown("api.example"))


@pytest.mark.parametrize(("sent", "shown"), [(b"", NOTHING), (b"GE", MALFORMED)])
@pytest.mark.parametrize("how", ["end", "timeout"])
def test_first_bytes_that_do_not_come(sent, shown, how):
    handshake = gated()
    handshake.decided(INSPECT, FirstBytes())
    if sent:
        assert handshake.client_sent(sent) is None
    assert (handshake.client_sent(b"") if how == "end" else handshake.expired()) == Decide(shown)
    assert handshake.phase is Phase.INSPECTING
    assert isinstance(handshake.decided(DENIED, FirstBytes()), Refuse)


@pytest.mark.parametrize("phase", ["header", "connection", "answer"])
def test_timeouts(phase):
    handshake = host_end() if phase == "header" else enclave_end()
    handshake.begin()
    if phase != "header":
        handshake.located(VSOCK.first, WEB)
    if phase == "answer":
        handshake.connected(Header.V2, NO_ENDS)
    step = handshake.expired()
    assert isinstance(step, Refuse) and step.status is Status.TIMED_OUT


def test_events_that_cannot_be():
    with pytest.raises(LocalProtocolError):
        plain().connected(Header.AUTO, NO_ENDS)
    with pytest.raises(LocalProtocolError):
        plain().upstream_sent(b"x")
    handshake = plain()
    handshake.begin()
    handshake.located(VSOCK.first, None)
    with pytest.raises(LocalProtocolError):
        handshake.client_sent(b"x")


@pytest.mark.parametrize("ends", [Ends(APP, TCP.first), NO_ENDS])
def test_the_id_goes_on_in_a_proxy_header(ends):
    """From a proxy that sends the header to one that accepts it, and through it."""
    first = plain(send_proxy=2)
    first.begin()
    first.located(VSOCK.first, None)
    said = first.connected(Header.AUTO, ends).to_upstream
    second = plain(accept_proxy=True, send_proxy=2)
    second.number = 99
    second.begin()
    assert isinstance(second.client_sent(said), Locate)
    assert second.number == NUMBER
    second.located(VSOCK.first, None)
    passed_on, _ = decode_proxied(second.connected(Header.AUTO, NO_ENDS).to_upstream)
    assert passed_on == Proxied(ends.source, ends.accepted_at, NUMBER)


def test_ids_of_other_proxies_are_let_be():
    wire = encode_v2(Proxied(APP, WEB, NUMBER)).replace(b"%016x" % NUMBER, b"haproxy:unique-1")
    handshake = plain(accept_proxy=True)
    handshake.begin()
    handshake.client_sent(wire)
    assert handshake.number == NUMBER  # its own
    assert handshake.opening.proxied == Proxied(APP, WEB)
