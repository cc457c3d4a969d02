# SPDX-License-Identifier: Apache-2.0
"""Decoder, table, tracker, queue and waiting, without a file system."""

import struct
import tracemalloc

import pytest
from enclavekit_core.bus import HASH_BYTES
from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError
from enclavekit_core.file_hash import FileHash
from enclavekit_fs_monitor import inotify_events as kernel
from enclavekit_fs_monitor.file_state import TRANSITIONS, Deed, Happening, State, next_state
from enclavekit_fs_monitor.hash_queue import HashQueue
from enclavekit_fs_monitor.inotify_events import Event, decode_events, drop_repeats
from enclavekit_fs_monitor.tracker import Tracker, record_of
from enclavekit_fs_monitor.waiting import MAX_PAUSE_S, MAX_PUT_OFF_S, Patience, Waiting
from hypothesis import given
from hypothesis import strategies as st

SIGNATURE = bytes(40)
DIGEST = b"d" * 64
FILE_SYSTEM = (Happening.CREATE, Happening.WRITE, Happening.CLOSE, Happening.SETTLE, Happening.VANISH)
PATIENCE = Patience(quiet_s=0.1, settle_s=0.5)


def hashed(number, *, links=1, inode=0, was_still=True):
    """What a worker makes of a content that is a number: each has its own digest and signature."""
    device_and_inode = bytes(8) + inode.to_bytes(8, "little")
    size_and_mtime = bytes(16)
    signature = device_and_inode + size_and_mtime + number.to_bytes(8, "little")
    return FileHash(number.to_bytes(HASH_BYTES, "big"), 0, signature, links, was_still)


def record(wd, mask, name, padding):
    padded = name + bytes(padding)
    return struct.pack("=iIII", wd, mask, 0, len(padded)) + padded


WIRE = record(1, kernel.IN_CLOSE_WRITE, b"f", 15) + record(-1, kernel.IN_Q_OVERFLOW, b"", 0) + record(2, 8, b"gg", 30)
EVENTS = [Event(1, kernel.IN_CLOSE_WRITE, b"f"), Event(-1, kernel.IN_Q_OVERFLOW, b""), Event(2, 8, b"gg")]


def test_decode_events():
    assert decode_events(WIRE) == EVENTS
    assert decode_events(b"") == []


def test_decode_refuses_every_truncation():
    whole = {0, 32, 48, len(WIRE)}
    for length in range(len(WIRE) + 1):
        if length in whole:
            decode_events(WIRE[:length])
        else:
            with pytest.raises(RemoteProtocolError):
                decode_events(WIRE[:length])


@given(st.binary(max_size=200))
def test_decode_fails_in_one_way_only(data):
    try:
        decode_events(data)
    except RemoteProtocolError:
        return


def test_drop_repeats_keeps_the_last_and_all_that_is_no_write():
    write, close, other = Event(1, kernel.IN_MODIFY, b"f"), Event(1, 8, b"f"), Event(1, kernel.IN_MODIFY, b"g")
    assert drop_repeats([write, write, other, close, write, write]) == [other, close, write]
    assert drop_repeats([close, close]) == [close, close]


def test_table_is_complete_for_the_file_system_and_strict_for_results():
    for state in State:
        for happening in FILE_SYSTEM:
            assert (state, happening) in TRANSITIONS
    for state in State:
        for happening in (Happening.HASHED, Happening.UNSTABLE, Happening.UNREADABLE):
            if state is State.HASHING:
                next_state(state, happening)
            else:
                with pytest.raises(LocalProtocolError):
                    next_state(state, happening)


def test_older_result_never_wins():
    tracker = Tracker()
    (first,) = tracker.observe(b"/f", Happening.SETTLE, 0)
    (second,) = tracker.observe(b"/f", Happening.SETTLE, 1)
    assert second.generation > first.generation
    assert tracker.finish(b"/f", first.generation, Happening.HASHED, 2, hashed(1)) == []
    (published,) = tracker.finish(b"/f", second.generation, Happening.HASHED, 3, hashed(2))
    assert (published.deed, published.value[:HASH_BYTES]) == (Deed.PUBLISH, hashed(2).digest)
    assert record_of(published.value, published.generation).generation == second.generation


def test_result_for_a_file_that_was_deleted_and_made_again():
    tracker = Tracker()
    (first,) = tracker.observe(b"/f", Happening.SETTLE, 0)
    tracker.observe(b"/f", Happening.VANISH, 1)
    tracker.observe(b"/f", Happening.CREATE, 2)
    assert tracker.finish(b"/f", first.generation, Happening.HASHED, 3, hashed(1)) == []


def test_only_what_may_be_on_the_bus_is_withdrawn():
    tracker = Tracker()
    tracker.observe(b"/f", Happening.CREATE, 0)
    assert tracker.observe(b"/f", Happening.VANISH, 1) == []
    close(tracker, b"/f", hashed(1))
    assert [action.deed for action in tracker.observe(b"/f", Happening.VANISH, 2)] == [Deed.WITHDRAW]
    tracker.observe(b"/g", Happening.CREATE, 3)
    tracker.note_on_bus(b"/g")
    assert [action.deed for action in tracker.observe(b"/g", Happening.VANISH, 4)] == [Deed.WITHDRAW]


def close(tracker, path, result, now_s=0.0):
    (action,) = tracker.observe(path, Happening.SETTLE, now_s)
    return tracker.finish(path, action.generation, Happening.HASHED, now_s, result)


def test_closed_file_waits_for_its_quiet_time_and_others_longer():
    tracker = Tracker(PATIENCE)
    tracker.observe(b"/closed", Happening.CLOSE, 0)
    tracker.observe(b"/made", Happening.CREATE, 0)
    assert tracker.next_due_s() == PATIENCE.quiet_s
    assert [action.path for action in tracker.take_due(PATIENCE.quiet_s)] == [b"/closed"]
    assert tracker.next_due_s() == PATIENCE.settle_s
    tracker.observe(b"/made", Happening.WRITE, 0.4)
    assert tracker.take_due(0.5) == []
    assert [action.path for action in tracker.take_due(0.9)] == [b"/made"]


def test_file_that_never_rests_is_looked_at_all_the_same():
    waiting, now_s, taken = Waiting(PATIENCE), 0.0, []
    while now_s < 3 * MAX_PUT_OFF_S:
        waiting.put(b"/log", Happening.CLOSE, 0, now_s)
        now_s += PATIENCE.quiet_s / 2
        taken += [now_s for _ in waiting.take(now_s)]
    assert len(taken) >= 2
    assert taken[0] <= MAX_PUT_OFF_S + PATIENCE.quiet_s


@given(st.lists(st.tuples(st.sampled_from([b"/a", b"/b", b"/c"]), st.integers(0, 2), st.integers(0, 12))))
def test_waiting_gives_each_path_once_at_its_time(steps):
    waiting, due, now_s = Waiting(PATIENCE), {}, 0.0
    for path, what, attempts in steps:
        now_s += 0.3
        if what == 0:
            waiting.drop(path)
            due.pop(path, None)
        elif what == 1:
            waiting.put(path, Happening.WRITE, attempts, now_s)
            due[path] = True
        else:
            for taken in waiting.take(now_s):
                del due[taken]  # KeyError: given twice, or after it was dropped
        assert len(waiting) == len(due)
    assert set(waiting.take(now_s + MAX_PAUSE_S)) == set(due)
    assert waiting.next_due_s() is None


def test_failed_attempts_wait_longer_each_time():
    tracker, now_s, pauses = Tracker(PATIENCE), 0.0, []
    tracker.observe(b"/f", Happening.CREATE, 0)
    now_s = tracker.next_due_s()
    for _ in range(10):
        (again,) = tracker.take_due(now_s)
        assert again.deed is Deed.HASH
        tracker.finish(b"/f", again.generation, Happening.UNSTABLE, now_s)
        pauses.append(tracker.next_due_s() - now_s)
        now_s = tracker.next_due_s()
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_PAUSE_S
    tracker.observe(b"/f", Happening.CLOSE, now_s)
    assert tracker.next_due_s() == pytest.approx(now_s + PATIENCE.quiet_s)  # a close ends the punishment


@pytest.mark.parametrize("outcome", [Happening.UNREADABLE, Happening.UNSTABLE])
def test_file_that_cannot_be_hashed_loses_its_hash(outcome):
    tracker = Tracker()
    close(tracker, b"/f", hashed(1))
    (action,) = tracker.observe(b"/f", Happening.SETTLE, 1)
    (withdrawn,) = tracker.finish(b"/f", action.generation, outcome, 2)
    assert withdrawn.deed is Deed.WITHDRAW
    assert list(tracker.closed()) == []
    assert tracker.next_due_s() is not None


def test_scan_leaves_alone_only_what_was_still_and_is_unchanged():
    tracker = Tracker()
    close(tracker, b"/f", hashed(1))
    close(tracker, b"/racy", hashed(1, was_still=False))
    assert tracker.find(b"/f", hashed(1).signature, 1) == []
    assert [action.deed for action in tracker.find(b"/f", hashed(2).signature, 2)] == [Deed.HASH]
    assert [action.deed for action in tracker.find(b"/racy", hashed(1).signature, 2)] == [Deed.HASH]


def test_change_under_one_name_is_looked_for_under_the_others():
    tracker = Tracker()
    close(tracker, b"/one", hashed(1, inode=7))
    close(tracker, b"/other-file", hashed(1, inode=8))
    # the second name comes, with a change: the first one is found though it was hashed when it was the only one
    close(tracker, b"/two", hashed(2, inode=7, links=2))
    assert [action.path for action in tracker.take_due(1)] == [b"/one"]
    close(tracker, b"/one", hashed(2, inode=7, links=2))
    # from now on at once, and without an echo
    assert [(a.deed, a.path) for a in close(tracker, b"/two", hashed(3, inode=7, links=2))] == [
        (Deed.PUBLISH, b"/two"),
        (Deed.HASH, b"/one"),
    ]
    assert [a.deed for a in close(tracker, b"/one", hashed(3, inode=7, links=2))] == [Deed.PUBLISH]


@given(st.lists(st.tuples(st.sampled_from([b"/a", b"/b"]), st.sampled_from(list(Happening)), st.integers(0, 3))))
def test_model_published_hash_is_of_the_last_settled_content(steps):
    """Against the simplest model: contents are numbers, and what is published is never of an older content.

    A step is something that the file system does, or the end of one of the attempts that are under way, of the file as
    it was when that began.
    """
    tracker, content, published, running, now_s = Tracker(), {}, {}, [], 0.0
    bump = iter(range(1, 10_000))

    def perform(actions):
        for action in actions:
            if action.deed is Deed.HASH:
                running.append((action.path, action.generation, content.get(action.path)))
            elif action.deed is Deed.PUBLISH:
                published[action.path] = int.from_bytes(action.value[:HASH_BYTES], "big")
            else:
                published.pop(action.path, None)

    def finish(index, outcome):
        path, generation, seen = running.pop(index)
        outcome = Happening.VANISH if seen is None else outcome
        result = hashed(seen) if outcome is Happening.HASHED else None
        perform(tracker.finish(path, generation, outcome, now_s, result))

    def check():
        for path, seen in content.items():
            record = tracker.get(path)
            if record is not None and record.state is State.CLOSED:
                assert published[path] == seen
            elif record is None or record.attempts:
                assert path not in published  # gone, or changed and without a hash: nothing is said about it

    for path, happening, index in steps:
        now_s += 0.1
        if happening in FILE_SYSTEM:
            content[path] = None if happening is Happening.VANISH else next(bump)
            perform(tracker.observe(path, happening, now_s))
        elif running:
            finish(index % len(running), happening)
        check()
        if index == 0:
            perform(tracker.take_due(now_s))
    while running or tracker.next_due_s() is not None:
        now_s += MAX_PAUSE_S
        perform(tracker.take_due(now_s))
        while running:
            finish(0, Happening.HASHED)
            check()
    assert published == {path: seen for path, seen in content.items() if seen is not None}


def test_memory_does_not_grow_with_changes():
    """A file that is written ten thousand times costs what one costs that was written a thousand times."""
    tracker, queue, sizes = Tracker(PATIENCE), HashQueue(), []
    tracemalloc.start()
    try:
        for change in range(10_000):
            for path, outcome in ((b"/log", Happening.HASHED), (b"/gone", Happening.VANISH)):
                tracker.observe(path, Happening.WRITE, change)
                for action in tracker.observe(path, Happening.SETTLE, change):
                    queue.put(path, action.generation)
                    ((_, generation),) = queue.take(1)
                    result = hashed(change, links=1 + change % 2) if outcome is Happening.HASHED else None
                    tracker.finish(path, generation, outcome, change, result)
                    queue.done(path)
            tracker.take_due(change)
            if change in (999, 9_999):
                sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 10_000  # less than one byte for a change
    assert (len(tracker), len(queue)) == (1, 0)


def test_queue_gives_each_path_to_one_worker():
    queue = HashQueue()
    for path, generation in ((b"/a", 1), (b"/b", 2), (b"/a", 3)):
        queue.put(path, generation)
    assert queue.take(1) == [(b"/a", 3)]
    queue.put(b"/a", 4)
    assert queue.take(9) == [(b"/b", 2)]
    assert queue.take(9) == []
    queue.done(b"/a")
    assert queue.take(9) == [(b"/a", 4)]


def test_large_files_have_a_lane_of_their_own():
    queue = HashQueue()
    for number in range(3):
        queue.put(b"/large%d" % number, number)
    for path, generation in queue.take(3):
        queue.defer(path, generation)
    queue.put(b"/small", 9)
    assert queue.take(9) == [(b"/small", 9)]
    queue.put(b"/large1", 10)  # keeps its lane, with the later generation
    assert queue.take(9) == []
    assert [queue.take_large(), queue.take_large()] == [[(b"/large0", 0)], [(b"/large1", 10)]]
    assert (queue.waiting, queue.running, len(queue)) == (1, 3, 4)


def test_newer_generation_wins_while_its_file_is_found_to_be_large():
    queue = HashQueue()
    queue.put(b"/f", 1)
    assert queue.take(1) == [(b"/f", 1)]
    queue.put(b"/f", 2)
    queue.defer(b"/f", 1)
    assert queue.take_large() == [(b"/f", 2)]
    assert queue.waiting == 0
