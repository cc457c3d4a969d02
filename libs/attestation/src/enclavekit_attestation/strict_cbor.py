# SPDX-License-Identifier: Apache-2.0
"""The part of CBOR that attestation documents use, decoded strictly. Pure.

General decoders take what a verifier must not: cbor2 lets the last of duplicate keys win (before 6.0 without a way to
refuse), ignores trailing bytes, runs tag hooks and nests hundreds deep. A document needs integers, strings, arrays,
maps and null, three levels deep, so anything else is an error here.

Source: RFC 8949; the shapes are those of attestation_process.md of aws-nitro-enclaves-nsm-api.
"""

from __future__ import annotations

MAX_DEPTH = 3  # payload map -> cabundle or pcrs -> their items
NULL = 0xF6
BREAK = 0xFF
INDEFINITE_MAP = 0xBF

UINT, NEGATIVE, BYTES, TEXT, ARRAY, MAP = range(6)  # major types

Value = int | bytes | str | list["Value"] | dict["int | str", "Value"] | None


class CborError(ValueError):
    """Bytes that are not the CBOR expected; the message completes "the document ..."."""


class Reader:
    """A position in a byte string, from which items are taken one after the other."""

    def __init__(self, data: bytes, *, require_minimal: bool) -> None:
        """`require_minimal` refuses numbers and lengths in longer forms than needed (for bytes that nobody signs)."""
        self.data = data
        self.position = 0
        self.require_minimal = require_minimal

    def expect_end(self) -> None:
        """Raise CborError unless all bytes are taken."""
        if self.position != len(self.data):
            raise CborError(f"has {len(self.data) - self.position} bytes after its end")

    def take_byte(self) -> int:
        """Take one byte."""
        return self.take(1)[0]

    def take(self, count: int) -> bytes:
        """Take `count` bytes. Raises CborError if there are fewer."""
        end = self.position + count
        if end > len(self.data):
            raise CborError(f"ends at byte {len(self.data)} in the middle of an item")
        chunk = self.data[self.position : end]
        self.position = end
        return chunk

    def take_head(self) -> tuple[int, int]:
        """Take an item's head of definite length; return (major type, argument)."""
        at = self.position
        initial = self.take_byte()
        major, info = initial >> 5, initial & 0x1F
        if info < 24:
            return major, info
        if info > 27:
            raise CborError(f"has an unexpected item 0x{initial:02x} at byte {at}")
        argument = int.from_bytes(self.take(1 << (info - 24)), "big")
        least = 24 if info == 24 else 1 << (4 << (info - 24))  # 24, 2**8, 2**16, 2**32
        if self.require_minimal and argument < least:
            raise CborError(f"has a number in a longer form than needed at byte {at}")
        return major, argument

    def take_bytes(self) -> bytes:
        """Take a byte string."""
        at = self.position
        major, length = self.take_head()
        if major != BYTES:
            raise CborError(f"has something else than a byte string at byte {at}")
        return self.take(length)

    def take_value(self, depth: int = MAX_DEPTH) -> Value:
        """Take one item with at most `depth` levels of nesting; only an outermost map may be of indefinite length."""
        if depth == 0:
            raise CborError(f"is nested more than {MAX_DEPTH} levels deep")
        at = self.position
        if self.data[at : at + 1] == bytes([NULL]):
            self.position += 1
            return None
        if self.data[at : at + 1] == bytes([INDEFINITE_MAP]) and depth == MAX_DEPTH:
            self.position += 1
            return self._take_pairs(None, depth)
        major, argument = self.take_head()
        match major:
            case 0:
                return argument
            case 1:
                return -1 - argument
            case 2:
                return self.take(argument)
            case 3:
                return _decode_text(self.take(argument), at)
            case 4:
                self._refuse_impossible(argument)
                return [self.take_value(depth - 1) for _ in range(argument)]
            case 5:
                self._refuse_impossible(2 * argument)
                return self._take_pairs(argument, depth)
            case _:
                raise CborError(f"has a tag, float or simple value at byte {at}")

    def _take_pairs(self, count: int | None, depth: int) -> dict[int | str, Value]:
        """Take `count` pairs, or up to a break if None."""
        pairs: dict[int | str, Value] = {}
        while count is None or count > 0:
            if count is None and self.data[self.position : self.position + 1] == bytes([BREAK]):
                self.position += 1
                break
            key = self.take_value(depth - 1)
            if not isinstance(key, int | str):
                raise CborError("has a map key that is neither a number nor text")
            if key in pairs:
                raise CborError(f"has the key {key!r} twice")
            pairs[key] = self.take_value(depth - 1)
            count = None if count is None else count - 1
        return pairs

    def _refuse_impossible(self, items: int) -> None:
        """Every item takes a byte at least: refuse a count that cannot be met before working on it."""
        if items > len(self.data) - self.position:
            raise CborError(f"announces {items} items where it has {len(self.data) - self.position} bytes left")


def decode(data: bytes) -> Value:
    """Decode `data`, which is one item and nothing else, in any of the integer forms. Raises CborError."""
    reader = Reader(data, require_minimal=False)
    value = reader.take_value()
    reader.expect_end()
    return value


def _decode_text(raw: bytes, at: int) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as exc:
        raise CborError(f"has text that is not UTF-8 at byte {at}") from exc
