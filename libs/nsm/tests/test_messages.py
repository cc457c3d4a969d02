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


def test_limits():
    with pytest.raises(LocalProtocolError):
        nsm.encode_request(nsm.ExtendPcrRequest(16, bytes(nsm.MAX_REQUEST_BYTES)))
    with pytest.raises(RemoteProtocolError):
        nsm.decode_request(bytes(nsm.MAX_REQUEST_BYTES + 1))
    with pytest.raises(RemoteProtocolError):
        nsm.decode_response(bytes(nsm.MAX_RESPONSE_BYTES + 1))


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data):
    for decode, encode in ((nsm.decode_request, nsm.encode_request), (nsm.decode_response, nsm.encode_response)):
        try:
            message = decode(data)
        except RemoteProtocolError:
            continue
        assert decode(encode(message)) == message
