# SPDX-License-Identifier: Apache-2.0
"""Records of copies: table both ways, any split, every truncation, every limit, any bytes."""

import re
import sys
from pathlib import Path

import pytest
from enclavekit_core.errors import InputError, LocalProtocolError, RemoteProtocolError
from enclavekit_pipeline.wire import digest
from enclavekit_pipeline.wire import tree_records as records
from enclavekit_pipeline.wire.digest import digest_of
from enclavekit_pipeline.wire.tree_content import MAX_CHUNKS, MIN_CHUNK_BYTES, ContentHash, chunk_bytes
from enclavekit_pipeline.wire.tree_filter import Selection
from enclavekit_pipeline.wire.tree_order import EntryOrder, shown, stays_inside
from enclavekit_pipeline.wire.tree_records import (
    FROM_RECEIVER,
    FROM_SENDER,
    Count,
    Data,
    Digests,
    End,
    Entry,
    EntryType,
    LeftOut,
    Plain,
    RecordDecoder,
    RecordKind,
    Why,
    encode_record,
)
from hypothesis import given
from hypothesis import strategies as st

REFERENCE = Path(__file__).resolve().parents[2] / "docs/reference/pipeline-wire.md"
OWNED = "00000000ffffffff"
TABLE = {
    f"010000001f01 01 01a4 {OWNED} 0000000000000001 0000000000800000 0001 61": Entry(
        EntryType.FILE, b"a", 0o644, 0, 0xFFFFFFFF, 1, 8 * 1024 * 1024, ask=True
    ),
    "0100000024 03 00 01ff ffffffffffffffff ffffffffffffffff 0000000000000000 0003 612f62 2e2e2f": Entry(
        EntryType.SYMLINK, b"a/b", 0o777, mtime_ns=-1, target=b"../"
    ),
    "0200000003 616263": Data(b"abc"),
    "0300000008 0000000000100000": Count(RecordKind.HOLE, 1024 * 1024),
    "0400000008 0000000000000002": Count(RecordKind.KEEP, 2),
    "0500000028 0000000000000003" + "ab" * 32: End(3, b"\xab" * 32),
    "0600000000": Plain(RecordKind.GONE),
    "0700000002 03 61": LeftOut(b"a", Why.LEADS_OUT),
    "1000000000": Plain(RecordKind.NOTHING),
    "1100000020" + "cd" * 32: Digests((b"\xcd" * 32,)),
    "1200000008 0000000000100001": Count(RecordKind.HAVE, 1024 * 1024 + 1),
}
TABLE = {wire.replace(" ", ""): record for wire, record in TABLE.items()}
SAMPLES = list(TABLE.values())
WIRE = b"".join(map(encode_record, SAMPLES))


def decoder(allowed=FROM_SENDER | FROM_RECEIVER):
    return RecordDecoder(allowed)


def entry(body):
    return f"01{len(body) // 2:08x}{body}"


def joined(found):
    """Content that comes in parts is content all the same."""
    whole = []
    for record in found:
        if isinstance(record, Data) and whole and isinstance(whole[-1], Data):
            whole[-1] = Data(bytes(whole[-1].data) + bytes(record.data))
        else:
            whole.append(record)
    return whole


@pytest.mark.parametrize(("wire", "record"), TABLE.items())
def test_table_both_ways(wire, record):
    assert encode_record(record).hex() == wire
    assert decoder().feed(bytes.fromhex(wire)) == [record]


def test_reference_shows_the_same_bytes():
    shown_rows = re.findall(r"^\| record `([0-9a-f …]+)` \|", REFERENCE.read_text(), re.MULTILINE)
    assert len(shown_rows) >= 5
    for text in shown_rows:
        begin, _, _ = text.replace(" ", "").partition("…")
        assert any(wire == begin or ("…" in text and wire.startswith(begin)) for wire in TABLE), text


@pytest.mark.parametrize("step", [1, 2, 3, 7, 4096])
def test_any_split(step):
    taken = decoder()
    found = [record for i in range(0, len(WIRE), step) for record in taken.feed(WIRE[i : i + step])]
    taken.feed_eof()
    assert joined(found) == SAMPLES


@pytest.mark.parametrize("length", range(len(WIRE)))
def test_truncated_anywhere(length):
    taken = decoder()
    found = joined(taken.feed(WIRE[:length]))
    if b"".join(map(encode_record, found)) == WIRE[:length]:
        taken.feed_eof()
    else:
        with pytest.raises(RemoteProtocolError):
            taken.feed_eof()


@pytest.mark.parametrize(
    "wire",
    [
        "0000000000",  # no kind 0
        "0800000000",
        "ff00000000",
        "0200000000",  # no content
        "02ffffffff",
        "0100002041",  # one byte more than fits
        "0100000003" + "000000",
        "0300000008" + "00" * 8,  # a hole of nothing
        "0300000008" + "ff" * 8,
        "0400000007" + "00" * 7,
        "050000000100",
        "060000000100",
        "0700000000",
        "07000000010961",
        "110000001f" + "00" * 31,
        "1100000000",
        entry("05" + "00" * 29),  # no such type
        entry("0102" + "00" * 28),  # unknown flag
        entry("0100ffff" + "00" * 26),  # mode
        entry("0100" + "00" * 26 + "0001"),  # path is cut
        entry("0100" + "00" * 26 + "000100"),  # NUL in a path
        entry("0100" + "00" * 26 + "000061"),  # a file with a target
        entry("0100" + "00" * 18 + "ff" * 8 + "0000"),  # too large a file
        entry("0300" + "00" * 28),  # a link without a target
        entry("0201" + "00" * 28),  # what do you have of this directory?
        entry("00" * 29),
    ],
)
def test_what_breaks_the_format_is_refused(wire):
    with pytest.raises(RemoteProtocolError):
        taken = decoder()
        taken.feed(bytes.fromhex(wire))
        taken.feed_eof()


def test_plain_entry_is_no_error():
    assert decoder().feed(bytes.fromhex(entry("0100" + "00" * 26 + "000161")))[0].path == b"a"


def test_records_come_from_their_side():
    for allowed, number in ((FROM_RECEIVER, 1), (FROM_RECEIVER, 2), (FROM_SENDER, 16), (FROM_SENDER, 18)):
        with pytest.raises(RemoteProtocolError):
            decoder(allowed).feed(bytes([number]) + bytes(4))


def test_what_we_must_not_send_is_refused():
    for record in (Entry(EntryType.FILE, b"x" * 5000), Data(b""), Digests((bytes(32),) * 300)):
        with pytest.raises(LocalProtocolError):
            encode_record(record)


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_any_bytes_decode_or_are_refused(chunks):
    taken, found = decoder(), []
    try:
        for chunk in chunks:
            found += taken.feed(chunk)
    except RemoteProtocolError:
        return
    begin = b"".join(encode_record(record) for record in found if not isinstance(record, Data))
    assert len(begin) <= sum(map(len, chunks))


def test_decoder_holds_one_record_at_most():
    taken = decoder()
    taken.feed(records.HEADER.pack(RecordKind.DATA, 2**31) + bytes(1_000_000))
    assert len(taken._buffer) == 0
    taken = decoder()
    taken.feed(records.HEADER.pack(RecordKind.ENTRY, records.MAX_BODY_BYTES) + bytes(100))
    assert len(taken._buffer) == 105


def plain_digest(data, chunk):
    parts = [digest_of(data[i : i + chunk]) for i in range(0, len(data), chunk)]
    return digest_of(b"".join(parts))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 300)), max_size=12), st.integers(1, 100))
def test_content_hash_is_that_of_the_chunks_however_it_comes(parts, chunk):
    content, data = ContentHash(chunk), b""
    for is_hole, count in parts:
        piece = bytes(count) if is_hole else bytes(i % 251 + 1 for i in range(count))
        content.zeros(count) if is_hole else content.update(piece)
        data += piece
        assert content.at_boundary == (len(data) % chunk == 0)
    assert (content.size, content.digest()) == (len(data), plain_digest(data, chunk))


def test_kept_chunks_count_like_sent_ones():
    data = bytes(range(250))
    content = ContentHash(100)
    content.keep([digest_of(data[:100])], 100)
    content.update(data[100:])
    assert content.digest() == plain_digest(data, 100)
    content = ContentHash(100)
    content.update(data[:200])
    content.keep([digest_of(data[200:])], 50)
    assert (content.size, content.digest()) == (250, plain_digest(data, 100))


@pytest.mark.parametrize("size", [0, 1, 2**20, 2**36, 2**36 + 1, 2**40 + 5, 2**44])
def test_chunks_of_any_file_are_few_enough(size):
    chunk = chunk_bytes(size)
    assert chunk % MIN_CHUNK_BYTES == 0
    assert -(-size // chunk) <= MAX_CHUNKS


def test_hole_of_a_terabyte_costs_nothing():
    content = ContentHash(chunk_bytes(2**40))
    content.zeros(2**40)
    assert content.size == 2**40


@pytest.mark.parametrize(
    ("path", "target", "inside"),
    [
        (b"l", b"x", True),
        (b"l", b"x/y/z", True),
        (b"l", b"./x", True),
        (b"l", b"..", False),
        (b"l", b"/", False),
        (b"l", b"/etc/passwd", False),
        (b"a/l", b"..", True),
        (b"a/l", b"../x", True),
        (b"a/l", b"../..", False),
        (b"a/b/l", b"../../x", True),
        (b"l", b"x/../y", False),  # x may be a link itself
        (b"a/l", b"../x/../..", False),
        (b"a/l", b".././../x", False),
    ],
)
def test_links_that_stay_inside(path, target, inside):
    assert stays_inside(path, target) is inside


def entries(*paths):
    for path in paths:
        kind = EntryType.DIRECTORY if path in (b"",) or path.endswith(b"/") else EntryType.FILE
        yield Entry(kind, path.rstrip(b"/"))


def test_order_says_when_directories_are_complete():
    order, left = EntryOrder(False), []
    for entry in entries(b"", b"a/", b"a/b/", b"a/b/x", b"a/c", b"d"):
        left.append([done.path for done in order.enter(entry)])
    assert left == [[], [], [], [], [b"a/b"], [b"a"]]
    assert [done.path for done in order.finish()] == [b""]


@pytest.mark.parametrize(
    "paths",
    [
        (),
        (b"a",),
        (b"", b""),
        (b"", b"/etc/passwd"),
        (b"", b".."),
        (b"", b"../x"),
        (b"", b"."),
        (b"", b"./x"),
        (b"", b"a/../x"),
        (b"", b"a//x"),
        (b"", b"x" * 256),
        (b"", b"a/x"),  # a did not come
        (b"", b"a", b"a/x"),  # a is a file
        (b"", b"a", b"a"),  # twice
        (b"", b"b", b"a"),
        (b"", b"a/", b"b", b"a/x"),  # a is complete
    ],
)
def test_names_and_orders_that_are_refused(paths):
    with pytest.raises(RemoteProtocolError):
        order = EntryOrder(False)
        for entry in entries(*paths):
            order.enter(entry)
        order.finish()


def test_links_that_are_refused():
    for entry in (
        Entry(EntryType.SYMLINK, b"l", target=b"/etc"),
        Entry(EntryType.HARDLINK, b"l", target=b"../x"),
        Entry(EntryType.HARDLINK, b"l", target=b"/etc/passwd"),
    ):
        order = EntryOrder(False)
        order.enter(Entry(EntryType.DIRECTORY, b""))
        with pytest.raises(RemoteProtocolError):
            order.enter(entry)
    order = EntryOrder(True)
    order.enter(Entry(EntryType.DIRECTORY, b""))
    order.enter(Entry(EntryType.SYMLINK, b"l", target=b"/etc"))


def test_root_is_a_file_or_a_directory():
    for kind in (EntryType.SYMLINK, EntryType.HARDLINK):
        with pytest.raises(RemoteProtocolError):
            EntryOrder(True).enter(Entry(kind, b"", target=b"x"))


def test_names_are_harmless_to_a_terminal():
    assert shown(b"\x1b[2J\xffx\n") == "?[2J\ufffdx?"


def test_patterns_without_a_slash_are_for_names():
    selection = Selection(exclude=["*.o", "/top", "build/*"])
    assert selection.excludes(b"a/b.o")
    assert selection.excludes(b"build/x")
    assert not selection.excludes(b"build")
    assert not selection.excludes(b"a/top")


def test_digest_is_blake3():
    """The vector is the first of https://github.com/BLAKE3-team/BLAKE3/blob/master/test_vectors/test_vectors.json."""
    assert digest_of(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_without_blake3_a_copy_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "blake3", None)
    digest._load.cache_clear()
    try:
        with pytest.raises(InputError, match="the Python package blake3 is not installed"):
            digest.new_digest()
    finally:
        digest._load.cache_clear()
