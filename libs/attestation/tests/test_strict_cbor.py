# SPDX-License-Identifier: Apache-2.0
import cbor2
import pytest
from enclavekit_attestation.strict_cbor import MAX_DEPTH, CborError, Reader, decode
from hypothesis import given
from hypothesis import strategies as st

GOOD = {
    "00": 0,
    "17": 23,
    "1818": 24,
    "1800": 0,  # longer than needed, but inside signed bytes
    "1b0000018384b6a26e": 0x18384B6A26E,
    "20": -1,
    "3822": -35,
    "40": b"",
    "43010203": b"\1\2\3",
    "60": "",
    "62c3bc": "ü",
    "80": [],
    "820102": [1, 2],
    "a10140": {1: b""},
    "f6": None,
    "bfff": {},
    "bf6161f6ff": {"a": None},
}
BAD = {
    "": "ends",
    "18": "ends",
    "4301": "ends",
    "1c": "unexpected",
    "5f4101ff": "unexpected",  # string in pieces
    "9f01ff": "unexpected",  # array of indefinite length
    "ff": "unexpected",
    "bf01": "ends",
    "bf01ff": "unexpected",  # break in place of a value
    "0000": "after its end",
    "c000": "tag",
    "d24101": "tag",
    "f5": "tag, float or simple",
    "f90000": "tag, float or simple",
    "62ff00": "UTF-8",
    "a201010102": "twice",
    "a2010118010f": "twice",  # 1 and the longer form of 1
    "a26161016161f6": "twice",
    "bf0101010201ff": "twice",
    "a14101f6": "map key",
    "a180f6": "map key",
    "a1f6f6": "map key",
    "a1bfff00": "unexpected",  # indefinite length below the outermost map
    "9affffffff": "announces",
    "bbffffffffffffffff": "announces",
    "5bffffffffffffffff": "ends",
    "818181f6": "nested",
}


@pytest.mark.parametrize("text", GOOD)
def test_decode_returns_the_value(text):
    assert decode(bytes.fromhex(text)) == GOOD[text]


@pytest.mark.parametrize("text", BAD)
def test_decode_refuses(text):
    with pytest.raises(CborError, match=BAD[text]):
        decode(bytes.fromhex(text))


@pytest.mark.parametrize("text", ["1817", "1900ff", "1a0000ffff", "1b00000000ffffffff", "580140"])
def test_reader_refuses_longer_forms_when_asked(text):
    with pytest.raises(CborError, match="longer form"):
        Reader(bytes.fromhex(text), require_minimal=True).take_head()
    Reader(bytes.fromhex(text), require_minimal=False).take_head()


@pytest.mark.parametrize("opening", [b"\x81", b"\xa1\x00", b"\xa1", b"\xbf\x00"])
def test_decode_refuses_deep_nesting(opening):
    with pytest.raises(CborError):
        decode(opening * 100_000)


leaves = st.integers(-(2**64), 2**64 - 1) | st.binary(max_size=300) | st.text(max_size=40) | st.none()
keys = st.integers(-(2**64), 2**64 - 1) | st.text(max_size=20)
flat = leaves | st.lists(leaves, max_size=30) | st.dictionaries(keys, leaves, max_size=30)


@given(st.dictionaries(keys, flat, max_size=12), st.booleans())
def test_decode_agrees_with_cbor2(value, indefinite):
    encoded = cbor2.dumps(value)
    if indefinite:
        pairs = b"".join(cbor2.dumps(key) + cbor2.dumps(item) for key, item in value.items())
        encoded = b"\xbf" + pairs + b"\xff"
    assert decode(encoded) == value
    assert MAX_DEPTH == 3


@given(st.binary(max_size=200))
def test_decode_of_anything_is_a_value_or_an_error(data):
    try:
        value = decode(data)
    except CborError:
        return
    assert cbor2.loads(data) == value
