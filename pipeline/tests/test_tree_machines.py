# SPDX-License-Identifier: Apache-2.0
"""Sender and receiver of copies, without a wire: whole copies in memory, and liars on either side."""

import errno
import os
import random
import secrets
import stat

import pytest
from enclavekit_core.errors import InputError, LocalProtocolError, ProtocolError, RemoteProtocolError
from enclavekit_pipeline.channel import partial_file, tree_source
from enclavekit_pipeline.channel.partial_file import partial_name
from enclavekit_pipeline.channel.tree_directories import Directories
from enclavekit_pipeline.channel.tree_sink import TreeSink, WriteOptions
from enclavekit_pipeline.channel.tree_source import ReadOptions, TreeSource
from enclavekit_pipeline.wire import tree_sender
from enclavekit_pipeline.wire.tree_content import MIN_CHUNK_BYTES, ContentHash
from enclavekit_pipeline.wire.tree_receiver import TreeReceiver
from enclavekit_pipeline.wire.tree_records import (
    FROM_SENDER,
    Count,
    Data,
    Digests,
    End,
    Entry,
    EntryType,
    Plain,
    RecordDecoder,
    RecordKind,
    Why,
    encode_record,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from .test_trees import leftovers, make_tree, picture

NOTHING = encode_record(Plain(RecordKind.NOTHING))


def directory(path):
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def open_pair(source, target, name="copy", **options):
    reading = TreeSource(os.open(source, os.O_RDONLY), "source", ReadOptions(**options))
    writing = TreeSink(directory(target), os.fsencode(name), "target", WriteOptions(0o777, **options))
    return reading, writing


def carry(reading, writing, *, stop_after=None):
    """Move records and answers; return how many bytes of records it took. Stops without an end after so many."""
    answers, moved = [], 0
    while True:
        batch = reading.next_batch(answers)
        moved += len(batch.data)
        answers = [writing.take([batch.data])]
        if stop_after is not None and moved >= stop_after:
            return moved
        assert answers != [b""] or not batch.waits, "both wait for each other"
        if batch.finished:
            writing.finish()
            assert writing.receiver.done == reading.sender.done
            return moved


def copy(source, target, **options):
    reading, writing = open_pair(source, target, **options)
    try:
        return carry(reading, writing)
    finally:
        reading.close()
        writing.close()


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("options", [{}, {"delta": True}, {"resume": True}, {"delta": True, "resume": True}])
def test_copy_is_the_same_whatever_is_there(tmp_path, monkeypatch, options):
    monkeypatch.setattr(tree_sender, "LARGE_BYTES", 2 * MIN_CHUNK_BYTES)
    monkeypatch.setattr(tree_sender, "MAX_ASKED", 5)
    make_tree(tmp_path / "tree")
    (tmp_path / "tree/deep/er").chmod(0o700)
    (tmp_path / "tree/deep/large").write_bytes(secrets.token_bytes(3 * MIN_CHUNK_BYTES + 5))
    (tmp_path / "tree/deep/larger").write_bytes(secrets.token_bytes(5 * MIN_CHUNK_BYTES))
    before = open_descriptors()
    first = copy(tmp_path / "tree", tmp_path, archive=True, **options)
    assert picture(tmp_path / "copy") == picture(tmp_path / "tree")
    # some of it is another now
    for name in ("larger", "large"):
        with open(tmp_path / "copy/deep" / name, "r+b") as file:
            file.seek(MIN_CHUNK_BYTES + 7)
            file.write(b"other")
    (tmp_path / "copy/a").write_bytes(b"another length")
    (tmp_path / "copy/deep/er/b").unlink()
    os.truncate(tmp_path / "tree/deep/large", 2 * MIN_CHUNK_BYTES + 9)
    second = copy(tmp_path / "tree", tmp_path, archive=True, **options)
    assert picture(tmp_path / "copy") == picture(tmp_path / "tree")
    assert not leftovers(tmp_path)
    assert open_descriptors() == before
    if options.get("delta"):
        assert second < first / 2


def test_batch_is_good_until_the_one_after_the_next(tmp_path):
    """It is still being sent while the next one is put together."""
    (tmp_path / "big").write_bytes(secrets.token_bytes(5_000_000))
    source = TreeSource(os.open(tmp_path / "big", os.O_RDONLY), "source", ReadOptions())
    batch, wire = source.next_batch([]), b""
    while not batch.finished:
        before = bytes(batch.data)
        following = source.next_batch([])
        assert batch.data == before
        wire += before
        batch = following
    wire += batch.data
    source.close()
    content = b"".join(record.data for record in RecordDecoder(FROM_SENDER).feed(wire) if isinstance(record, Data))
    assert content == (tmp_path / "big").read_bytes()


@pytest.mark.parametrize("delta", [False, True])
def test_cut_copy_goes_on_from_the_last_whole_chunk(tmp_path, delta):
    data = secrets.token_bytes(12 * MIN_CHUNK_BYTES + 100)
    (tmp_path / "big").write_bytes(data)
    state = tmp_path / os.fsdecode(partial_name(b"copy"))
    reading, writing = open_pair(tmp_path / "big", tmp_path, resume=True, delta=delta)
    carry(reading, writing, stop_after=8 * MIN_CHUNK_BYTES)
    reading.close()
    writing.close()
    assert state.exists()
    assert not (tmp_path / "copy").exists()
    # what was written is believed by its digest only
    with open(state, "r+b") as file:
        file.seek(2 * MIN_CHUNK_BYTES)
        file.write(b"rot")
    moved = copy(tmp_path / "big", tmp_path, resume=True, delta=delta)
    assert (tmp_path / "copy").read_bytes() == data
    assert 5 * MIN_CHUNK_BYTES < moved < 7 * MIN_CHUNK_BYTES
    assert not leftovers(tmp_path)


def test_cut_copy_of_another_content_is_not_gone_on_from(tmp_path):
    (tmp_path / "big").write_bytes(secrets.token_bytes(20 * MIN_CHUNK_BYTES))
    reading, writing = open_pair(tmp_path / "big", tmp_path, resume=True)
    carry(reading, writing, stop_after=18 * MIN_CHUNK_BYTES)
    reading.close()
    writing.close()
    with open(tmp_path / "big", "wb") as file:  # shorter, other, and a hole where there was data
        file.truncate(9 * MIN_CHUNK_BYTES + 3)
        file.write(secrets.token_bytes(MIN_CHUNK_BYTES))
    copy(tmp_path / "big", tmp_path, resume=True)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "big").read_bytes()
    assert not leftovers(tmp_path)


def test_small_copy_clears_away_what_a_cut_one_left(tmp_path):
    (tmp_path / "small").write_bytes(b"s")
    state = tmp_path / os.fsdecode(partial_name(b"copy"))
    state.write_bytes(bytes(MIN_CHUNK_BYTES))
    copy(tmp_path / "small", tmp_path)
    assert not state.exists()


@pytest.mark.parametrize("plant", ["link", "hard link", "fifo", "directory"])
def test_planted_state_is_not_written_to(tmp_path, plant):
    (tmp_path / "big").write_bytes(secrets.token_bytes(9 * MIN_CHUNK_BYTES))
    victim, state = tmp_path / "victim", tmp_path / os.fsdecode(partial_name(b"copy"))
    victim.write_bytes(bytes(9 * MIN_CHUNK_BYTES))
    match plant:
        case "link":
            state.symlink_to(victim)
        case "hard link":
            state.hardlink_to(victim)
        case "fifo":
            os.mkfifo(state)
        case "directory":
            state.mkdir()
    copy(tmp_path / "big", tmp_path, resume=True)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "big").read_bytes()
    assert victim.read_bytes() == bytes(9 * MIN_CHUNK_BYTES)


def test_two_copies_to_one_name_do_not_mix(tmp_path, monkeypatch):
    monkeypatch.setattr(partial_file, "UNWIND_S", 0.0)
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(secrets.token_bytes(10 * MIN_CHUNK_BYTES))
    reading, writing = open_pair(tmp_path / "one", tmp_path, resume=True)
    carry(reading, writing, stop_after=4 * MIN_CHUNK_BYTES)
    copy(tmp_path / "two", tmp_path, resume=True)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "two").read_bytes()
    carry(reading, writing)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "one").read_bytes()
    reading.close()
    writing.close()
    assert not leftovers(tmp_path)


def test_wrong_content_leaves_nothing(tmp_path):
    (tmp_path / "big").write_bytes(bytes(9 * MIN_CHUNK_BYTES))
    reading, writing = open_pair(tmp_path / "big", tmp_path, resume=True)
    writing.take([reading.next_batch([]).data])
    with pytest.raises(RemoteProtocolError, match="not what was sent"):
        writing.take([encode_record(Data(b"x" * 2 * MIN_CHUNK_BYTES)), encode_record(End(9, bytes(32)))])
    reading.close()
    writing.close()
    assert [path.name for path in tmp_path.iterdir()] == ["big"]


def test_tree_that_changes_meanwhile(tmp_path, monkeypatch):
    """Gone, another kind of thing, longer, shorter: each is left out or copied as it was read, and the rest goes on."""
    monkeypatch.setattr(tree_source, "BATCH_BYTES", 1)
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in "abcdef":
        (tree / name).write_bytes(b"old " + name.encode())
    for options in ({}, {"delta": True}):
        reading, writing = open_pair(tree, tmp_path, **options)
        writing.take([reading.next_batch([]).data])  # the root: names are not listed yet
        answers = [writing.take([(batch := reading.next_batch([])).data])]
        if options:
            while not batch.waits:
                batch = reading.next_batch([])
                answers.append(writing.take([batch.data]))
        (tree / "b").unlink()
        (tree / "c").unlink()
        (tree / "c").symlink_to("/etc/passwd")
        (tree / "d").write_bytes(b"longer than it was before")
        (tree / "e").write_bytes(b"")
        while not batch.finished:
            batch = reading.next_batch(answers)
            answers = [writing.take([batch.data])]
        writing.finish()
        made = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
        assert made["d"] == b"longer than it was before"
        assert made["e"] == b""
        assert made["f"] == b"old f"
        assert "b" not in made
        assert "c" not in made
        reading.close()
        writing.close()
        (tree / "c").unlink()
        for name in "bcde":
            (tree / name).write_bytes(b"old " + name.encode())
        for path in (tmp_path / "copy").iterdir():
            path.unlink()


@pytest.mark.parametrize("delta", [False, True])
def test_file_that_cannot_be_read_to_its_end_is_named_and_the_rest_goes_on(tmp_path, monkeypatch, delta):
    def failing(descriptor, buffers, offset, preadv=os.preadv):
        if offset and os.readlink(f"/proc/self/fd/{descriptor}").endswith("/bad"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(descriptor, buffers, offset)

    (tmp_path / "tree").mkdir()
    for name in ("bad", "good"):
        (tmp_path / "tree" / name).write_bytes(secrets.token_bytes(5 * MIN_CHUNK_BYTES))
    monkeypatch.setattr(os, "preadv", failing)
    before = open_descriptors()
    reading, writing = open_pair(tmp_path / "tree", tmp_path, delta=delta)
    carry(reading, writing)
    reading.close()
    writing.close()
    assert [(record.path, record.why) for record in writing.left_out] == [(b"bad", Why.UNREADABLE)]
    assert os.listdir(tmp_path / "copy") == ["good"]
    assert (tmp_path / "copy/good").read_bytes() == (tmp_path / "tree/good").read_bytes()
    assert open_descriptors() == before
    with pytest.raises(InputError, match="input/output error"):  # a file alone
        copy(tmp_path / "tree/bad", tmp_path / "copy")


def test_app_that_swaps_a_directory_for_a_link_shows_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(tree_source, "BATCH_BYTES", 1)
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/passwd").write_bytes(b"mine")
    for options in ({}, {"delta": True}):
        reading, writing = open_pair(tmp_path / "tree", tmp_path, **options)
        for _ in range(2):
            writing.take([reading.next_batch([]).data])
        (tmp_path / "tree/sub").rename(tmp_path / "was")
        (tmp_path / "tree/sub").symlink_to("/etc")
        try:
            carry(reading, writing)
        except InputError:
            pass
        reading.close()
        writing.close()
        assert not any(path.read_bytes() != b"mine" for path in (tmp_path / "copy").rglob("passwd"))
        (tmp_path / "tree/sub").unlink()
        (tmp_path / "was").rename(tmp_path / "tree/sub")


def digest_of(data, chunk=MIN_CHUNK_BYTES):
    content = ContentHash(chunk)
    content.update(data)
    return End(len(data), content.digest())


ROOT = Entry(EntryType.DIRECTORY, b"")
FILE = Entry(EntryType.FILE, b"a", size=5)
ASKED = Entry(EntryType.FILE, b"b", size=5, ask=True)
LARGE = Entry(EntryType.FILE, b"c", size=tree_sender.LARGE_BYTES, ask=True)


@pytest.mark.parametrize(
    "records",
    [
        [Data(b"x")],
        [ROOT, Data(b"x")],
        [ROOT, End(0, bytes(32))],
        [ROOT, Plain(RecordKind.GONE)],
        [ROOT, FILE, ROOT],
        [ROOT, FILE, Entry(EntryType.FILE, b"b")],
        [ROOT, FILE, Count(RecordKind.KEEP, 1)],
        [ROOT, FILE, Count(RecordKind.HOLE, 2**44), Count(RecordKind.HOLE, 1)],
        [ROOT, FILE, digest_of(b"other")],
        [ROOT, ASKED, Entry(EntryType.FILE, b"c")],
        [ROOT, ASKED, Count(RecordKind.KEEP, 2)],
        [ROOT, LARGE, Entry(EntryType.DIRECTORY, b"d")],
        [ROOT, *(Entry(EntryType.FILE, b"%06d" % n, ask=True) for n in range(5000))],
        [ROOT, ASKED, *(Entry(EntryType.HARDLINK, b"c%06d" % n, target=b"b") for n in range(5000))],
        [ROOT, FILE],
        [ROOT, ASKED],
    ],
)
def test_sender_that_lies_is_refused(records):
    receiver = TreeReceiver(unsafe_links=False, may_ask=True)
    with pytest.raises(RemoteProtocolError):
        for record in records:
            for action in receiver.feed(encode_record(record)):
                if type(action).__name__ == "Announced":
                    receiver.answer(action.entry, 5, [bytes(32)])
        receiver.finish()


def test_questions_must_have_been_agreed_on():
    receiver = TreeReceiver(unsafe_links=False, may_ask=False)
    with pytest.raises(RemoteProtocolError):
        receiver.feed(encode_record(ROOT) + encode_record(ASKED))


def test_nothing_follows_a_short_chunk_that_was_kept():
    receiver = TreeReceiver(unsafe_links=False, may_ask=True)
    receiver.feed(encode_record(ROOT) + encode_record(ASKED))
    asked = receiver._asked[0].entry
    receiver.answer(asked, 5, [bytes(32)])
    receiver.feed(encode_record(Count(RecordKind.KEEP, 1)))
    with pytest.raises(RemoteProtocolError):
        receiver.feed(encode_record(Data(b"more")))


@pytest.mark.parametrize(
    "answer",
    [
        NOTHING * 2,
        encode_record(Digests((bytes(32),))) + NOTHING,
        encode_record(Digests((bytes(32),) * 200)),
        encode_record(Count(RecordKind.HAVE, 5)) * 2,
        bytes([RecordKind.ENTRY]) + bytes(4),
    ],
)
def test_receiver_that_lies_is_refused(answer):
    sender = tree_sender.TreeSender()
    sender.announce(ROOT)
    sender.announce(ASKED)
    with pytest.raises(RemoteProtocolError):
        sender.feed(answer)


def test_sender_announces_in_order_only():
    sender = tree_sender.TreeSender()
    sender.announce(ROOT)
    sender.announce(LARGE)
    for entry in (FILE, Entry(EntryType.DIRECTORY, b"z")):
        assert not sender.may_announce(entry)
        with pytest.raises(LocalProtocolError):
            sender.announce(entry)


# one list of names for all: collisions between records are what makes sequences interesting
names = st.sampled_from([b"", b"a", b"a/b", b"b", b"..", b"/x", b"b/c", b"c"])
entries = st.builds(
    Entry,
    st.just(EntryType.FILE) | st.just(EntryType.DIRECTORY),
    names,
    size=st.sampled_from([0, 5, tree_sender.LARGE_BYTES]),
    ask=st.booleans(),
)
links = st.builds(Entry, st.sampled_from([EntryType.SYMLINK, EntryType.HARDLINK]), names, target=names.filter(bool))
contents = st.builds(Data, st.binary(min_size=1, max_size=9)) | st.builds(
    Count, st.sampled_from([RecordKind.HOLE, RecordKind.KEEP]), st.integers(1, 3)
)
ends = st.just(Plain(RecordKind.GONE)) | st.binary(max_size=6).map(digest_of)


def fuzz_receiver(tmp_path, records):
    """Whatever comes, it is done below the target or refused in words, and nothing half-made stays."""
    home = tmp_path / secrets.token_hex(4)
    target = home / "in/target"
    target.mkdir(parents=True)
    options = WriteOptions(0o777, delta=True, resume=True)
    sink = TreeSink(directory(home / "in"), b"target", "target", options)
    try:
        for record in records:
            try:
                wire = encode_record(record)
            except LocalProtocolError:
                continue
            sink.take([wire])
        sink.finish()
    except (ProtocolError, InputError):
        pass
    finally:
        sink.close()
    assert [path.name for path in home.iterdir()] == ["in"]
    assert [path.name for path in (home / "in").iterdir()] == ["target"]
    assert not leftovers(home)


@settings(max_examples=150, deadline=None)
@given(records=st.lists(entries | links | contents | ends, max_size=14))
def test_fuzzed_records_stay_in_the_target(tmp_path_factory, records):
    fuzz_receiver(tmp_path_factory.getbasetemp(), [ROOT, *records])


@pytest.mark.long
@settings(max_examples=30_000, deadline=None)
@given(records=st.lists(entries | links | contents | ends, max_size=25))
def test_fuzzed_records_stay_in_the_target_for_long(tmp_path_factory, records):
    fuzz_receiver(tmp_path_factory.getbasetemp(), records)


@settings(max_examples=200, deadline=None)
@given(data=st.lists(st.binary(max_size=80), max_size=10))
def test_fuzzed_bytes_are_refused_in_words(data):
    receiver, sender = TreeReceiver(unsafe_links=False, may_ask=True), tree_sender.TreeSender()
    sender.announce(ROOT)
    sender.announce(ASKED)
    for machine in (receiver, sender):
        try:
            for part in data:
                machine.feed(part)
        except ProtocolError:
            pass


def mutate(wire, rng):
    wire = bytearray(wire)
    for _ in range(rng.randrange(1, 4)):
        position = rng.randrange(len(wire))
        match rng.randrange(3):
            case 0:
                wire[position] ^= 1 << rng.randrange(8)
            case 1:
                del wire[position : position + rng.randrange(1, 40)]
            case 2:
                wire[position:position] = rng.randbytes(rng.randrange(1, 9))
        if not wire:
            break
    return bytes(wire)


@pytest.mark.parametrize("rounds", [150, pytest.param(20_000, marks=pytest.mark.long)])
def test_damaged_copies_are_refused_or_right(tmp_path, rounds):
    """A copy whose bytes were changed under way never puts another content than the source's under a name."""
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    sources = {b"one" * 50: "a", b"": "b", b"two" * 30: "d/c"}
    for data, name in sources.items():
        (tree / name).write_bytes(data)
    reading = TreeSource(os.open(tree, os.O_RDONLY), "source", ReadOptions())
    wire = reading.next_batch([]).data
    reading.close()
    rng = random.Random(7)
    for number in range(rounds):
        home = tmp_path / f"t{number}"
        home.mkdir()
        sink = TreeSink(directory(home), b"copy", "target", WriteOptions(0o700))
        try:
            sink.take([mutate(wire, rng)])
            sink.finish()
        except (ProtocolError, InputError):
            pass
        finally:
            sink.close()
        assert set(os.listdir(home)) <= {"copy"}
        for path in home.rglob("*"):
            if stat.S_ISREG(path.lstat().st_mode):
                assert path.read_bytes() in sources
        assert not leftovers(home)


def test_records_of_a_source_are_well_formed(tmp_path):
    make_tree(tmp_path / "tree")
    reading = TreeSource(os.open(tmp_path / "tree", os.O_RDONLY), "source", ReadOptions())
    decoder, found = RecordDecoder(frozenset(RecordKind)), []
    while not (batch := reading.next_batch([])).finished:
        found += decoder.feed(batch.data)
    found += decoder.feed(batch.data)
    decoder.feed_eof()
    reading.close()
    assert found[0].path == b""
    assert sum(isinstance(record, Entry) for record in found) == reading.sender.done.entries


@pytest.mark.parametrize("records", [[Count(RecordKind.KEEP, 2)], [Data(b"x"), Count(RecordKind.KEEP, 1)]])
def test_only_what_is_there_can_be_kept(records):
    receiver = TreeReceiver(unsafe_links=False, may_ask=True)
    receiver.feed(encode_record(ROOT) + encode_record(ASKED))
    receiver.answer(receiver._asked[0].entry, 5, [bytes(32)])
    for record in records[:-1]:
        receiver.feed(encode_record(record))
    with pytest.raises(RemoteProtocolError, match="keeps what is not there"):
        receiver.feed(encode_record(records[-1]))


def test_directories_are_reached_through_no_link(tmp_path):
    (tmp_path / "real/inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real/out").symlink_to("/etc")
    directories = Directories(directory(tmp_path))
    try:
        assert os.listdir(directories.get(b"real")) != []
        for path in (b"link", b"link/inner", b"real/out", b"real/inner/none"):
            with pytest.raises(OSError):
                directories.get(path)
        # more than are kept open
        for number in range(40):
            (tmp_path / f"d{number}/e").mkdir(parents=True)
            directories.get(b"d%d/e" % number)
        assert os.listdir(directories.get(b"d0")) == ["e"]
    finally:
        directories.close()


def test_file_that_changes_between_answer_and_copy_is_an_error(tmp_path):
    data = secrets.token_bytes(3 * MIN_CHUNK_BYTES)
    (tmp_path / "source").write_bytes(data[: 2 * MIN_CHUNK_BYTES] + b"x" * MIN_CHUNK_BYTES)
    (tmp_path / "copy").write_bytes(data)
    reading, writing = open_pair(tmp_path / "source", tmp_path, delta=True)
    answer = writing.take([reading.next_batch([]).data])
    (tmp_path / "copy").write_bytes(b"y" * len(data))
    with pytest.raises(InputError, match="changed"):
        while not (batch := reading.next_batch([answer] if answer else [])).finished:
            answer = writing.take([batch.data])
    reading.close()
    writing.close()
    assert (tmp_path / "copy").read_bytes() == b"y" * len(data)
    assert not leftovers(tmp_path)


def test_file_that_grows_again_while_it_is_compared_is_copied_to_its_end_of_then(tmp_path):
    """What comes after its end has no place among the chunks any more, even if it is what the receiver has of one."""
    chunks = [secrets.token_bytes(MIN_CHUNK_BYTES) for _ in range(3)]
    source, shorter = tmp_path / "source", chunks[0] + b"another end"
    (tmp_path / "copy").write_bytes(b"".join(chunks))

    class Growing(TreeSource):
        def _sent(self, descriptor, content, count):
            yield from super()._sent(descriptor, content, count)
            if content.size == len(shorter):
                source.write_bytes(shorter + chunks[2])

    source.write_bytes(b"".join(chunks))
    reading, writing = open_pair(source, tmp_path, delta=True)
    reading.close()
    reading = Growing(os.open(source, os.O_RDONLY), "source", ReadOptions(delta=True))
    source.write_bytes(shorter)  # after it was listed
    carry(reading, writing)
    reading.close()
    writing.close()
    assert (tmp_path / "copy").read_bytes() == shorter
