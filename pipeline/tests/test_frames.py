# SPDX-License-Identifier: Apache-2.0
"""The wire: table both ways, any split, every truncation, every limit, any bytes. The table stands in the reference."""

import re
from pathlib import Path

import pytest
from enclavekit_core.errors import InputError, LocalProtocolError, ProtocolError, RemoteProtocolError
from enclavekit_pipeline.wire import frames
from enclavekit_pipeline.wire.exec_messages import ExecRequest, Exit, WindowSize
from enclavekit_pipeline.wire.flow import GRANT_BYTES, MIN_FRAME_COST, WINDOW_BYTES, ReceiveCredit, SendCredit
from enclavekit_pipeline.wire.frames import Frame, FrameDecoder, Kind, decode_credit, encode, encode_credit
from enclavekit_pipeline.wire.job_messages import Gap
from enclavekit_pipeline.wire.messages import Failure, decode_payload, encode_payload
from enclavekit_pipeline.wire.requests import decode_request
from hypothesis import given
from hypothesis import strategies as st

REFERENCE = Path(__file__).resolve().parents[2] / "docs/reference/pipeline-wire.md"
TABLE = {
    "01000000000000027b7d": Frame(Kind.HELLO, b"{}"),
    "05000000000000080000000000000001": Frame(Kind.PING, b"\0\0\0\0\0\0\0\1"),
    "1a00000100000000": Frame(Kind.CLOSE, b"", 1),
    "1200000100000003616263": Frame(Kind.STDIN, b"abc", 1),
    "1301ffff00000000": Frame(Kind.STDOUT, b"", 65535, end=True),
    "15000001000000051300040000": Frame(Kind.CREDIT, frames.CREDIT.pack(Kind.STDOUT, 0x40000), 1),
    "16000001000000010f": Frame(Kind.SIGNAL, b"\x0f", 1),
    "100080000000000e7b226c697374656e6572223a317d": Frame(Kind.OPEN, b'{"listener":1}', 0x8000),
    "38000001000000187b22726f7773223a32342c22636f6c756d6e73223a38307d": Frame(
        Kind.RESIZE, encode_payload(WindowSize(rows=24, columns=80)), 1
    ),
    "3c0000030000000b7b22636f756e74223a377d": Frame(Kind.GAP, encode_payload(Gap(count=7)), 3),
    "3d00000100000000": Frame(Kind.SIGNALLED, b"", 1),
}
SAMPLES = list(TABLE.values())
WIRE = b"".join(map(encode, SAMPLES))


@pytest.mark.parametrize(("wire", "frame"), TABLE.items())
def test_table_both_ways(wire, frame):
    assert encode(frame).hex() == wire
    assert FrameDecoder().feed(bytes.fromhex(wire)) == [frame]


def test_reference_shows_the_same_bytes():
    shown = re.findall(r"^\| `([0-9a-f ]+)` \|", REFERENCE.read_text(), re.MULTILINE)
    assert [text.replace(" ", "") for text in shown] == list(TABLE)


@pytest.mark.parametrize("step", [1, 3, 4096])
def test_any_split(step):
    decoder = FrameDecoder()
    got = [frame for i in range(0, len(WIRE), step) for frame in decoder.feed(WIRE[i : i + step])]
    decoder.feed_eof()
    assert got == SAMPLES


@pytest.mark.parametrize("length", range(len(WIRE)))
def test_truncated_anywhere(length):
    decoder = FrameDecoder()
    whole = decoder.feed(WIRE[:length])
    assert whole == SAMPLES[: len(whole)]
    if b"".join(map(encode, whole)) == WIRE[:length]:
        decoder.feed_eof()
    else:
        with pytest.raises(RemoteProtocolError):
            decoder.feed_eof()


@pytest.mark.parametrize(
    "wire",
    [
        "0000000000000000",  # no kind 0
        "ff00000000000000",
        "1200000100010001",  # one byte more than fits
        "12000001ffffffff",
        "1202000100000000",  # unknown flag
        "0101000000000000",  # HELLO has no end
    ],
)
def test_what_breaks_the_format_is_refused_at_its_header(wire):
    with pytest.raises(RemoteProtocolError):
        FrameDecoder().feed(bytes.fromhex(wire))


def test_what_we_must_not_send_is_refused():
    for frame in (
        Frame(Kind.STDIN, bytes(frames.MAX_PAYLOAD_BYTES + 1)),
        Frame(Kind.STDIN, b"", 65536),
        Frame(Kind.HELLO, b"", end=True),
    ):
        with pytest.raises(LocalProtocolError):
            encode(frame)


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_any_bytes_decode_or_are_refused(chunks):
    decoder = FrameDecoder()
    got = []
    try:
        for chunk in chunks:
            got += decoder.feed(chunk)
    except RemoteProtocolError:
        return
    assert b"".join(chunks).startswith(b"".join(map(encode, got)))


LARGE = Frame(Kind.RECORDS, bytes(range(256)) * 1024, 1)  # as much as one may have
LARGE_WIRE = encode(SAMPLES[2]) + encode(LARGE) + encode(Frame(Kind.RECORDS, b"x" * 65537, 1)) + WIRE


def known():
    decoder = FrameDecoder()
    decoder.large_bytes = frames.MAX_RECORDS_BYTES
    return decoder


def plain(found):
    return [Frame(frame.kind, bytes(frame.content), frame.stream, frame.end) for frame in found]


@pytest.mark.parametrize("step", [1, 7, 8, 9, 16384, 65536, 262136, 262144, 300000, len(LARGE_WIRE)])
@pytest.mark.parametrize("direct", [False, True])
def test_large_payloads_at_any_split(step, direct):
    """Fed like all others, or read where they stay."""
    decoder, got, view = known(), [], memoryview(LARGE_WIRE)
    while view:
        part = view[:step]
        if direct and (room := decoder.room) is not None:
            part = view[: min(step, len(room))]
            room[: len(part)] = part
            found = decoder.filled(len(part))
        else:
            found = decoder.feed(part)
        got += plain(found)
        for frame in found:
            assert (frame.large is None) == (frame.size <= frames.MAX_PAYLOAD_BYTES)
            decoder.recycle(frame)
        view = view[len(part) :]
    decoder.feed_eof()
    assert got == [SAMPLES[2], LARGE, Frame(Kind.RECORDS, b"x" * 65537, 1), *SAMPLES]


def test_large_payload_that_is_cut():
    decoder = known()
    assert decoder.feed(encode(LARGE)[:-1]) == []
    assert decoder.room is not None and len(decoder.room) == 1
    with pytest.raises(RemoteProtocolError):
        decoder.feed_eof()
    with pytest.raises(LocalProtocolError):
        decoder.filled(2)
    decoder.room[0] = LARGE.payload[-1]
    assert plain(decoder.filled(1)) == [LARGE]
    with pytest.raises(LocalProtocolError):
        decoder.filled(0)


def test_memory_of_large_payloads_is_used_again_once_it_is_given_back():
    decoder, wire = known(), encode(LARGE)
    first, second = (decoder.feed(wire)[0] for _ in range(2))
    assert first.large.obj is not second.large.obj
    for _ in range(2):
        decoder.recycle(first)
    third, fourth = (decoder.feed(wire)[0] for _ in range(2))
    assert third.large.obj is first.large.obj
    assert fourth.large.obj not in (first.large.obj, second.large.obj) or fourth.large.obj is not third.large.obj
    held = [decoder.feed(wire)[0] for _ in range(3 * frames.MAX_SPARE)]
    for frame in held:
        decoder.recycle(frame)
    assert len(decoder._spare) == frames.MAX_SPARE


@pytest.mark.parametrize("kind", Kind)
def test_large_payloads_are_of_copies_and_of_who_is_known(kind):
    wire = frames.HEADER.pack(kind, 0, 1, frames.MAX_RECORDS_BYTES)
    with pytest.raises(RemoteProtocolError):
        FrameDecoder().feed(wire)
    if kind is Kind.RECORDS:
        assert known().feed(wire) == []
        wire = frames.HEADER.pack(kind, 0, 1, frames.MAX_RECORDS_BYTES + 1)
    with pytest.raises(RemoteProtocolError):
        known().feed(wire)


def test_credit_frames():
    frame = FrameDecoder().feed(encode_credit(3, Kind.STDERR, 70000))[0]
    assert decode_credit(frame.payload) == (Kind.STDERR, 70000)
    for payload in (b"", b"\x13", frames.CREDIT.pack(Kind.HELLO, 1), frames.CREDIT.pack(99, 1)):
        with pytest.raises(RemoteProtocolError):
            decode_credit(payload)


def test_window_bounds_what_is_under_way():
    sender, receiver = SendCredit(), ReceiveCredit()
    sender.spend(WINDOW_BYTES)
    receiver.receive(WINDOW_BYTES)
    assert sender.room(1) == 0
    with pytest.raises(LocalProtocolError):
        sender.spend(1)
    with pytest.raises(RemoteProtocolError):
        receiver.receive(1)
    assert receiver.consume(GRANT_BYTES - MIN_FRAME_COST) == 0
    granted = receiver.consume(1)
    assert granted == GRANT_BYTES
    sender.grant(granted)
    sender.spend(granted)
    receiver.receive(granted)
    with pytest.raises(RemoteProtocolError):
        sender.grant(2**32)


def test_small_frames_cost_what_they_take():
    sender, receiver = SendCredit(), ReceiveCredit()
    for _ in range(WINDOW_BYTES // MIN_FRAME_COST):
        sender.spend(sender.room(1))
        receiver.receive(1)
    assert sender.room(1) == 0


@given(st.lists(st.integers(1, WINDOW_BYTES), max_size=50))
def test_credit_is_never_lost(sizes):
    sender, receiver = SendCredit(), ReceiveCredit()
    for size in sizes:
        part = sender.room(size)
        assert 0 < part <= size  # all that was taken has been granted again, but for less than one grant
        sender.spend(part)
        receiver.receive(part)
        if granted := receiver.consume(part):
            sender.grant(granted)
    assert sender.room(WINDOW_BYTES) > WINDOW_BYTES - GRANT_BYTES


def test_requests_round_trip():
    request = ExecRequest(argv=["ls", "-l"], environment={"A": "b"}, timeout_s=1.5)
    assert decode_request(encode_payload(request)) == request


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        b'{"verb":"fly"}',
        b'{"verb":"exec","argv":[]}',
        b'{"verb":"exec","argv":[""]}',
        b'{"verb":"exec","argv":["a\\u0000b"]}',
        b'{"verb":"exec","argv":["a"],"environment":{"A=B":"c"}}',
        b'{"verb":"exec","argv":["a"],"timeout_s":-1}',
        b'{"verb":"exec","argv":["a"],"shell":true}',
        b'{"verb":"cp-in","path":"/x","name":"../y","resume":true}',
        b'{"verb":"cp-in","path":"/x","name":"y","encoding":"hex"}',
        b'{"verb":"cp-in","path":"","name":"y","resume":true}',
        b'{"verb":"cp-out","path":"' + b"x" * 5000 + b'"}',
    ],
)
def test_requests_that_are_refused(payload):
    with pytest.raises(RemoteProtocolError):
        decode_request(payload)


@given(st.binary(max_size=200))
def test_any_request_payload_decodes_or_is_refused(payload):
    try:
        decode_request(payload)
    except ProtocolError:
        pass


@pytest.mark.parametrize("argv", [["a\udcff"], ["x" * 70_000]], ids=["not UTF-8", "too long"])
def test_words_that_cannot_be_sent_are_the_users_error(argv):
    with pytest.raises(InputError, match="cannot send"):
        encode_payload(ExecRequest(argv=argv))


@pytest.mark.parametrize("status", [-1, 256])
def test_exit_status_of_a_liar(status):
    with pytest.raises(RemoteProtocolError):
        decode_payload(Exit, b'{"status":%d}' % status)


def test_messages_of_a_liar_are_harmless_to_a_terminal():
    assert Failure(code="x", message="\x1b[2Jcannot\n\r").text == "?[2Jcannot??"
