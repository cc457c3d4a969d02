# SPDX-License-Identifier: Apache-2.0
"""Framings, requests and permissions, byte by byte."""

import itertools

import pytest
from enclavekit_core.errors import ConfigError, EnclavekitError, InputError, LocalProtocolError, RemoteProtocolError
from enclavekit_enclave_init.initctl.access import Caller, ControlConfig, explain_refusal, parse_control_config
from enclavekit_enclave_init.initctl.framing import (
    MAX_HTTP_BYTES,
    MAX_REQUEST_BYTES,
    AnswerDecoder,
    Framing,
    RequestDecoder,
    encode_frame,
)
from enclavekit_enclave_init.initctl.requests import (
    PERMISSIONS,
    VERBS,
    Request,
    decode_request,
    encode_request,
    make_request,
)
from hypothesis import given
from hypothesis import strategies as st

# the wire of the Rust initctl, as its serde writes it
UPSTREAM = [
    (b'"Ping"', Request("Ping", {})),
    (b'"ListServices"', Request("ListServices", {})),
    (b'{"ServiceStatus":{"name":"app"}}', Request("ServiceStatus", {"name": "app"})),
    (b'{"ServiceStart":{"name":"app.service"}}', Request("ServiceStart", {"name": "app"})),
    (b'{"ServiceLogs":{"name":"app","lines":7}}', Request("ServiceLogs", {"name": "app", "lines": 7})),
    (
        b'{"ServiceLogsStream":{"name":"app","vsock_cid":3,"vsock_port":9100}}',
        Request("ServiceLogsStream", {"name": "app", "vsock_cid": 3, "vsock_port": 9100}),
    ),
    (b'{"ProcessKill":{"pid":7,"signal":9}}', Request("ProcessKill", {"pid": 7, "signal": 9})),
    (
        b'{"ProcessStart":{"command":"/bin/true","args":["a b"],"env":["A=1"]}}',
        Request("ProcessStart", {"command": "/bin/true", "args": ("a b",), "env": ("A=1",)}),
    ),
    (b'"SystemReload"', Request("SystemReload", {})),
]
WIRES = [
    (b'{"a":"}\\"{"}', b'{"a":"}\\"{"}', Framing.BARE),
    (b' "Ping" \n', b'"Ping"', Framing.BARE),
    (encode_frame(b'"Ping"'), b'"Ping"', Framing.FRAMED),
    (encode_frame(b""), b"", Framing.FRAMED),
    (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /metrics HTTP/1.1", Framing.HTTP),
    (b"GET / HTTP/1.0\n\n", b"GET / HTTP/1.0", Framing.HTTP),
]


@pytest.mark.parametrize(("wire", "request_bytes", "framing"), WIRES)
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_request_decoder_accepts_any_split(wire, request_bytes, framing, step):
    decoder = RequestDecoder()
    got = [decoder.feed(wire[at : at + step]) for at in range(0, len(wire), step)]
    assert [one for one in got if one is not None] == [request_bytes]
    assert decoder.framing is framing


@pytest.mark.parametrize(("wire", "request_bytes", "framing"), WIRES)
def test_truncated_request_is_no_request(wire, request_bytes, framing):
    whole = wire.rstrip(b" ") if framing is not Framing.BARE else wire.strip()
    for end in range(len(whole)):
        assert RequestDecoder().feed(whole[:end]) is None


@pytest.mark.parametrize(
    "wire",
    [
        b"X", b"\x01", b"[1]"[:1], b'"a" "b"', b'{"a":1}{', b"}", b"\x00\xff\xff\xff", encode_frame(b"a") + b"b",
        b'"' + b"a" * MAX_REQUEST_BYTES, b"GET /" + b"a" * MAX_HTTP_BYTES, b"  true",
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(wire):
    decoder = RequestDecoder()
    with pytest.raises(RemoteProtocolError):
        decoder.feed(wire)
    with pytest.raises(RemoteProtocolError):
        decoder.feed(b"more")


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)))
def test_request_decoder_survives_anything_and_does_not_mind_splits(data, cuts):
    def run(pieces):
        decoder = RequestDecoder()
        try:
            got = [request for piece in pieces if (request := decoder.feed(piece)) is not None]
        except RemoteProtocolError:
            return "refused"
        return got

    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    whole, split = run([data]), run(pieces)
    assert split == whole


@given(st.lists(st.binary(max_size=50)), st.integers(1, 60))
def test_answers_come_out_as_they_went_in(answers, step):
    wire = b"".join(map(encode_frame, answers))
    decoder = AnswerDecoder()
    got = [one for at in range(0, len(wire), step) for one in decoder.feed(wire[at : at + step])]
    assert got == answers
    decoder.feed_eof()
    if wire:
        cut = AnswerDecoder()
        cut.feed(wire[:-1])
        with pytest.raises(RemoteProtocolError):
            cut.feed_eof()


def test_frames_are_bounded():
    with pytest.raises(LocalProtocolError):
        encode_frame(b"abc", max_bytes=2)
    with pytest.raises(RemoteProtocolError):
        AnswerDecoder(max_bytes=2).feed(encode_frame(b"abc"))


@pytest.mark.parametrize(("wire", "request_"), UPSTREAM)
def test_requests_of_the_rust_initctl(wire, request_):
    assert decode_request(wire) == request_
    assert decode_request(encode_request(request_)) == request_


def test_envelope_names_the_client():
    request = decode_request(b'{"request":"Ping","client":"alice"}')
    assert request == Request("Ping", {}, "alice") and decode_request(encode_request(request)) == request


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (b"7", "neither"),
        (b'{"Ping":{},"Pong":{}}', "neither"),
        (b'"Explode"', "no such request"),
        (b'{"Ping":[]}', "not an object"),
        (b'{"Ping":{"x":1}}', "unknown field 'x'"),
        (b'"ServiceStart"', "needs name"),
        (b'{"ServiceStart":{"name":"../x"}}', "not a unit name"),
        (b'{"ServiceDisable":{"name":"../../etc/passwd"}}', "not a unit name"),
        (b'{"ServiceStart":{"name":"enclave-init"}}', "taken by PID 1"),
        (b'{"ServiceStart":{"name":7}}', "a string"),
        (b'{"ServiceLogs":{"name":"a","lines":-1}}', "lines"),
        (b'{"ProcessKill":{"pid":-1,"signal":9}}', "pid"),
        (b'{"ProcessKill":{"pid":0}}', "pid"),
        (b'{"ProcessKill":{"pid":1}}', "pid"),
        (b'{"ProcessKill":{"pid":true}}', "pid"),
        (b'{"ProcessKill":{"pid":2,"signal":65}}', "signal"),
        (b'{"ProcessKill":{"pid":2,"signal":0}}', "signal"),
        (b'{"ProcessStart":{"command":"a","args":"b"}}', "args"),
        (b'{"ProcessStart":{"command":"a","env":["=1"]}}', "env"),
        (b'{"ProcessStart":{"command":"a\\u0000"}}', "command"),
        (b'{"Logs":{"since":-1}}', "since"),
        (b'{"Logs":{"follow":1}}', "follow"),
        (b'{"request":"Ping","clients":"a"}', "unknown key"),
        (b'{"request":"Ping","client":""}', "not a name"),
    ],
)
def test_wrong_requests_are_refused_with_the_reason(wire, words):
    with pytest.raises(InputError) as caught:
        decode_request(wire)
    assert words in str(caught.value)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(sorted(VERBS)), st.data())
def test_whatever_the_fields_hold_is_taken_or_refused(verb, data):
    fields = {name: data.draw(JSON_VALUES) for name in VERBS[verb].fields}
    try:
        request = make_request(verb, fields)
    except InputError:
        return
    assert decode_request(encode_request(request)) == request


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_request_or_an_input_error(data):
    try:
        decode_request(data)
    except EnclavekitError as exc:
        assert isinstance(exc, InputError)


def test_every_verb_needs_a_known_permission():
    assert {verb.permission for verb in VERBS.values()} == set(PERMISSIONS)


def test_who_is_not_listed_may_do_nothing():
    config = parse_control_config({"allow": [{"uid": 33, "permissions": ["status", "logs"]}]}, "f")
    root, web, other = Caller(5, 0, 0), Caller(6, 33, 33), Caller(7, 34, 33)
    for verb, known in VERBS.items():
        fields = {"name": "a", "pid": 2, "command": "c", "vsock_cid": 3, "vsock_port": 1}
        request = make_request(verb, {name: fields[name] for name, one in known.fields.items() if one.required})
        assert explain_refusal(config, root, request) == ""
        assert (explain_refusal(config, web, request) == "") == (known.permission in ("status", "logs"))
        assert str(other.uid) in explain_refusal(config, other, request)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        (1, "control"),
        ({"port": 1}, "control.port"),
        ({"socket": "run/x"}, "control.socket"),
        ({"socket": "/" + "x" * 200}, "control.socket"),
        ({"allow": {}}, "control.allow"),
        ({"allow": [{"uid": 1}]}, "control.allow"),
        ({"allow": [{"uid": 0, "permissions": ["all"]}]}, "control.allow.uid"),
        ({"allow": [{"uid": "web", "permissions": ["all"]}]}, "control.allow.uid"),
        ({"allow": [{"uid": 1, "permissions": ["fly"]}]}, "control.allow.permissions"),
        ({"allow": [{"uid": 1, "permissions": []}]}, "control.allow.permissions"),
        ({"allow": [{"uid": 1, "permissions": ["all"]}] * 2}, "control.allow.uid"),
    ],
)
def test_wrong_control_configuration_is_refused_by_name(values, key):
    with pytest.raises(ConfigError) as caught:
        parse_control_config(values, "init.toml")
    assert caught.value.key == key


def test_control_configuration():
    assert parse_control_config({}, "f") == ControlConfig("/run/init.sock", ())
    everything = parse_control_config({"socket": "", "allow": [{"uid": 9, "permissions": ["all"]}]}, "f")
    assert everything == ControlConfig("", ((9, frozenset(PERMISSIONS)),))
