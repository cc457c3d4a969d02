# SPDX-License-Identifier: Apache-2.0
"""Two questions to the NSM and how to read its answers. Pure.

PID 1 asks for random bytes and for the time before anything else runs, and holds no CBOR library for that: what it
needs of CBOR are heads of definite length. `enclavekit_nsm` is for everybody else.
Source: RFC 8949, 3; the messages as `enclavekit_nsm.messages` has them; the document of aws-nitro-enclaves-nsm-api.
"""

from __future__ import annotations

from enclavekit_core.errors import RemoteProtocolError

ASK_RANDOM = b"\x69GetRandom"
# Attestation with neither user data, nonce nor key
ASK_DOCUMENT = b"\xa1\x6bAttestation\xa3\x69user_data\xf6\x65nonce\xf6\x6apublic_key\xf6"
MAX_RESPONSE_BYTES = 0x3000  # NSM_RESPONSE_MAX_SIZE of the driver
MAX_DEPTH = 8  # a document has four
UNSIGNED, BYTES, TEXT, ARRAY, MAP, TAG = 0, 2, 3, 4, 5, 6


def parse_random(answer: bytes) -> bytes:
    """Return the random bytes. Raises RemoteProtocolError, also for an error that the NSM answers."""
    return _field(answer, "GetRandom", "random")


def parse_timestamp(answer: bytes) -> float:
    """Return the time in the document, Unix seconds. Raises RemoteProtocolError."""
    document = _Reader(_field(answer, "Attestation", "document"))
    major, count = document.head()
    if major == TAG:
        major, count = document.head()
    if (major, count) != (ARRAY, 4):
        raise _wrong("the document is no COSE_Sign1")
    document.byte_string()
    document.skip()
    payload = _Reader(document.byte_string())
    for _ in range(payload.expect(MAP)):
        if payload.text_string() == "timestamp":
            return payload.expect(UNSIGNED) / 1000
        payload.skip()
    raise _wrong("the document has no timestamp")


def _field(answer: bytes, variant: str, name: str) -> bytes:
    reader = _Reader(answer)
    if reader.expect(MAP) != 1:
        raise _wrong("it is not one variant")
    found = reader.text_string()
    if found == "Error":
        raise _wrong(f"it says {reader.text_string()[:40]!r}")
    if found != variant:
        raise _wrong(f"it answers {found[:40]!r}")
    for _ in range(reader.expect(MAP)):
        if reader.text_string() == name:
            return reader.byte_string()
        reader.skip()
    raise _wrong(f"it has no {name}")


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def head(self) -> tuple[int, int]:
        """Return major type and argument."""
        first = self._take(1)[0]
        major, argument = first >> 5, first & 31
        if argument < 24:
            return major, argument
        if argument > 27:
            raise _wrong("a length is not definite")
        return major, int.from_bytes(self._take(1 << (argument - 24)), "big")

    def expect(self, wanted: int) -> int:
        major, argument = self.head()
        if major != wanted:
            raise _wrong(f"a value is of type {major}, not {wanted}")
        return argument

    def byte_string(self) -> bytes:
        return self._take(self.expect(BYTES))

    def text_string(self) -> str:
        return self._take(self.expect(TEXT)).decode(errors="replace")

    def skip(self, depth: int = 0) -> None:
        """Pass one value, whatever it is."""
        if depth > MAX_DEPTH:
            raise _wrong("it is nested too deeply")
        major, argument = self.head()
        if major in (BYTES, TEXT):
            self._take(argument)
        for _ in range({ARRAY: argument, MAP: 2 * argument, TAG: 1}.get(major, 0)):
            self.skip(depth + 1)

    def _take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise _wrong("it ends too early")
        data, self._at = self._data[self._at : end], end
        return data


def _wrong(reason: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"cannot use the NSM's answer: {reason}")
