# SPDX-License-Identifier: Apache-2.0
"""The wire, byte for byte: the vectors are those of AWS's library."""

import cbor2
import pytest
from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError
from enclavekit_nsm import messages as nsm
from hypothesis import given
from hypothesis import strategies as st

REQUESTS = {
    "6b44657363726962654e534d": nsm.DescribeNsmRequest(),
    "6947657452616e646f6d": nsm.GetRandomRequest(),
    "a16b4465736372696265504352a165696e64657800": nsm.DescribePcrRequest(0),
    "a169457874656e64504352a265696e64657810646461746143010203": nsm.ExtendPcrRequest(16, b"\1\2\3"),
    "a1674c6f636b504352a165696e64657810": nsm.LockPcrRequest(16),
    "a1684c6f636b50435273a16572616e67651820": nsm.LockPcrsRequest(32),
    "a16b4174746573746174696f6ea369757365725f64617461f6656e6f6e6365f66a7075626c69635f6b6579f6": (
        nsm.AttestationRequest()
    ),
    "a16b4174746573746174696f6ea369757365725f64617461426869656e6f6e63654200016a7075626c69635f6b6579f6": (
        nsm.AttestationRequest(b"hi", b"\0\1")
    ),
}
PCR = bytes(range(48))
RESPONSES = {
    "a16b4465736372696265504352a2646c6f636bf564646174615830" + PCR.hex(): nsm.DescribePcrResponse(True, PCR),
    "a169457874656e64504352a164646174615830" + PCR.hex(): nsm.ExtendPcrResponse(PCR),
    "674c6f636b504352": nsm.LockPcrResponse(),
    "684c6f636b50435273": nsm.LockPcrsResponse(),
    "a16b4174746573746174696f6ea168646f63756d656e7443010203": nsm.AttestationResponse(b"\1\2\3"),
    "a16947657452616e646f6da16672616e646f6d590100" + bytes(256).hex(): nsm.GetRandomResponse(bytes(256)),
    "a1654572726f726f496e76616c6964417267756d656e74": nsm.ErrorResponse(nsm.ErrorCode.INVALID_ARGUMENT),
}
DESCRIBE = nsm.DescribeNsmResponse(1, 0, 0, "i-1-enc2", 32, (0, 1, 2), "SHA384")


@pytest.mark.parametrize(("wire", "message"), REQUESTS.items())
def test_request_vectors(wire, message):
    assert nsm.encode_request(message).hex() == wire
    assert nsm.decode_request(bytes.fromhex(wire)) == message


@pytest.mark.parametrize(("wire", "message"), RESPONSES.items())
def test_response_vectors(wire, message):
    assert nsm.encode_response(message).hex() == wire
    assert nsm.decode_response(bytes.fromhex(wire)) == message


def test_describe_nsm_is_read_by_key_in_any_order():
    body = cbor2.loads(nsm.encode_response(DESCRIBE))["DescribeNSM"]
    shuffled = cbor2.dumps({"DescribeNSM": dict(reversed(body.items()))})
    assert nsm.decode_response(shuffled) == DESCRIBE


@pytest.mark.parametrize("code", list(nsm.ErrorCode))
def test_every_error_round_trips(code):
    response = nsm.ErrorResponse(code)
    assert nsm.decode_response(nsm.encode_response(response)) == response


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"Attestation": {}}, nsm.AttestationRequest()),
        ({"Attestation": {"nonce": b"n", "user_data": None}}, nsm.AttestationRequest(nonce=b"n")),
        ({"Attestation": {"user_data": "text"}}, nsm.AttestationRequest(b"text")),
        ({"ExtendPCR": {"data": b"d", "index": 17}}, nsm.ExtendPcrRequest(17, b"d")),
        ({"DescribeNSM": {}}, nsm.DescribeNsmRequest()),
    ],
)
def test_requests_are_read_as_leniently_as_the_device_does(value, message):
    assert nsm.decode_request(cbor2.dumps(value)) == message


@pytest.mark.parametrize("wire", [*REQUESTS, *RESPONSES])
def test_truncated_anywhere_or_followed_by_bytes_is_refused(wire):
    data = bytes.fromhex(wire)
    decode = nsm.decode_request if wire in REQUESTS else nsm.decode_response
    for cut in [*(data[:length] for length in range(len(data))), data + b"\0"]:
        with pytest.raises(RemoteProtocolError):
            decode(cut)


@pytest.mark.parametrize(
    "value",
    [
        "Nonsense",
        7,
        {},
        {"DescribePCR": {}},
        {"DescribePCR": {"index": "0"}},
        {"DescribePCR": {"index": -1}},
        {"DescribePCR": {"index": True}},
        {"DescribePCR": {"index": 65536}},
        {"DescribePCR": 3},
        {"LockPCR": {"index": 1}, "LockPCRs": {"range": 1}},
    ],
)
def test_what_is_no_request_is_refused(value):
    with pytest.raises(RemoteProtocolError):
        nsm.decode_request(cbor2.dumps(value))


@pytest.mark.parametrize("decode", [nsm.decode_request, nsm.decode_response])
def test_tags_are_refused_before_anything_is_made_of_them(decode):
    for tag in (*range(300), 1004, 43000, 55799, 65535):
        for content in (b"\x69GetRandom", b"\x41\1", b"\x82\1\1"):
            with pytest.raises(RemoteProtocolError, match=f"tag {tag}$"):
                decode(b"\xd9" + tag.to_bytes(2, "big") + content)


@pytest.mark.parametrize(
    "wire",
    [
        "7f6947657452616e646f6dff",  # indefinite text
        "bf674c6f636b504352a165696e64657810ff",  # indefinite map
        "a1674c6f636b504352a265696e6465781065696e64657811",  # a key twice
        "a1674c6f636b504352a165696e646578818181" + "81" * 3000 + "00",  # deep
        "a1674c6f636b504352a165696e6465789affffffff",  # longer than it is
        "a1674c6f636b504352a165696e646578fb4030000000000000",  # 16.0
        "a1674c6f636b504352a165696e646578f7",  # undefined
        "a1674c6f636b504352a165696e6465781b00000001" + "00000010",  # no u16
        "a14101a0",  # a name that is bytes
    ],
)
def test_what_no_client_writes_is_refused(wire):
    with pytest.raises(RemoteProtocolError):
        nsm.decode_request(bytes.fromhex(wire))


def test_integers_of_any_width_are_read():
    for number in ("10", "1810", "190010", "1a00000010", "1b0000000000000010"):
        assert nsm.decode_request(bytes.fromhex("a1674c6f636b504352a165696e646578" + number)) == nsm.LockPcrRequest(16)


@pytest.mark.parametrize(
    "value",
    [
        {"LockPCR": {}},
        {"LockPCR": {"index": 1}},
        {"GetRandom": {"random": "text"}},
        {"GetRandom": {"random": None}},
        {"GetRandom": {"random": b"", "more": 1}},
        {"DescribePCR": {"lock": 1, "data": b""}},
        {"Attestation": {}},
        {"Attestation": None},
        {"Error": "Unheard"},
        {"Error": ["InvalidIndex"]},
        {"Error": 2},
    ],
)
def test_responses_are_read_strictly(value):
    with pytest.raises(RemoteProtocolError):
        nsm.decode_response(cbor2.dumps(value))


def test_messages_show_little_of_what_the_peer_sent():
    with pytest.raises(RemoteProtocolError) as caught:
        nsm.decode_request(cbor2.dumps("x" * 4000))
    assert len(str(caught.value)) < 120


NAMES = st.sampled_from([*nsm.REQUESTS, "Error", "index", "data", "range", "nonce", "user_data", "random", "lock"])
WIRE_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 70000) | st.floats() | st.binary(max_size=60) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(st.one_of(NAMES, st.dictionaries(NAMES, WIRE_VALUES, max_size=2)))
def test_any_value_decodes_or_is_refused(value):
    check_decoders(cbor2.dumps(value))


def test_limits():
    with pytest.raises(LocalProtocolError):
        nsm.encode_request(nsm.ExtendPcrRequest(16, bytes(nsm.MAX_REQUEST_BYTES)))
    with pytest.raises(RemoteProtocolError):
        nsm.decode_request(bytes(nsm.MAX_REQUEST_BYTES + 1))
    with pytest.raises(RemoteProtocolError):
        nsm.decode_response(bytes(nsm.MAX_RESPONSE_BYTES + 1))


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data):
    check_decoders(data)


def check_decoders(data):
    for decode, encode in ((nsm.decode_request, nsm.encode_request), (nsm.decode_response, nsm.encode_response)):
        try:
            message = decode(data)
        except RemoteProtocolError:
            continue
        assert decode(encode(message)) == message
