# SPDX-License-Identifier: Apache-2.0
"""Decoder, table, tracker and queue, without a file system."""

import struct

import pytest
from enclavekit_core.errors import LocalProtocolError, RemoteProtocolError
from enclavekit_fs_monitor import inotify_events as kernel
from enclavekit_fs_monitor.file_state import TRANSITIONS, Deed, Happening, State, next_state
from enclavekit_fs_monitor.hash_queue import HashQueue
from enclavekit_fs_monitor.inotify_events import Event, decode_events, drop_repeats
from enclavekit_fs_monitor.tracker import MAX_WAIT_S, QUIET_S, Tracker
from hypothesis import given
from hypothesis import strategies as st

SIGNATURE = bytes(40)
DIGEST = b"d" * 64
FILE_SYSTEM = (Happening.CREATE, Happening.WRITE, Happening.SETTLE, Happening.VANISH)


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
    done = {"digest": DIGEST, "signature": SIGNATURE}
    assert tracker.finish(b"/f", first.generation, Happening.HASHED, 2, **done) == []
    (published,) = tracker.finish(b"/f", second.generation, Happening.HASHED, 3, **done)
    assert (published.deed, published.digest) == (Deed.PUBLISH, DIGEST)


def test_result_for_a_file_that_was_deleted_and_made_again():
    tracker = Tracker()
    (first,) = tracker.observe(b"/f", Happening.SETTLE, 0)
    assert [action.deed for action in tracker.observe(b"/f", Happening.VANISH, 1)] == [Deed.WITHDRAW]
    tracker.observe(b"/f", Happening.CREATE, 2)
    assert tracker.finish(b"/f", first.generation, Happening.HASHED, 3, digest=DIGEST, signature=SIGNATURE) == []


def test_quiet_file_is_hashed_and_failures_wait_longer_each_time():
    tracker = Tracker()
    assert tracker.observe(b"/f", Happening.CREATE, 0) == []
    assert tracker.take_due(QUIET_S / 2) == []
    now_s, pauses = QUIET_S, []
    for _ in range(10):
        (again,) = tracker.take_due(now_s)
        assert again.deed is Deed.HASH
        tracker.finish(b"/f", again.generation, Happening.UNSTABLE, now_s)
        pauses.append(tracker.next_due_s() - now_s)
        now_s = tracker.next_due_s()
    assert pauses == sorted(pauses)
    assert pauses[-1] == MAX_WAIT_S


def test_unreadable_file_loses_its_hash():
    tracker = Tracker()
    (action,) = tracker.observe(b"/f", Happening.SETTLE, 0)
    tracker.finish(b"/f", action.generation, Happening.HASHED, 0, digest=DIGEST, signature=SIGNATURE)
    (action,) = tracker.observe(b"/f", Happening.SETTLE, 1)
    (withdrawn,) = tracker.finish(b"/f", action.generation, Happening.UNREADABLE, 2)
    assert withdrawn.deed is Deed.WITHDRAW
    assert list(tracker.closed()) == []
    assert tracker.next_due_s() is not None


def test_scan_leaves_unchanged_files_alone():
    tracker = Tracker()
    (action,) = tracker.find(b"/f", SIGNATURE, 0)
    tracker.finish(b"/f", action.generation, Happening.HASHED, 0, digest=DIGEST, signature=SIGNATURE)
    assert tracker.find(b"/f", SIGNATURE, 1) == []
    assert [action.deed for action in tracker.find(b"/f", b"\1" * 40, 2)] == [Deed.HASH]


@given(st.lists(st.tuples(st.sampled_from([b"/a", b"/b"]), st.sampled_from(list(Happening)), st.integers(0, 3))))
def test_model_published_hash_is_of_the_last_settled_content(steps):
    """Against the simplest model: contents are numbers, and what is published is never of an older content."""
    tracker, content, published, running, now_s = Tracker(), {}, {}, [], 0.0
    bump = iter(range(1, 10_000))

    def perform(actions):
        for action in actions:
            if action.deed is Deed.HASH:
                running.append((action.path, action.generation, content.get(action.path)))
            elif action.deed is Deed.PUBLISH:
                published[action.path] = int.from_bytes(action.digest, "big")
            else:
                published.pop(action.path, None)

    def finish(index):
        path, generation, seen = running.pop(index)
        if seen is None:
            perform(tracker.finish(path, generation, Happening.VANISH, now_s))
        else:
            done = {"digest": seen.to_bytes(64, "big"), "signature": seen.to_bytes(40, "big")}
            perform(tracker.finish(path, generation, Happening.HASHED, now_s, **done))

    for path, happening, index in steps:
        now_s += 0.1
        if happening in FILE_SYSTEM:
            content[path] = None if happening is Happening.VANISH else next(bump)
            perform(tracker.observe(path, happening, now_s))
        elif running:
            finish(index % len(running))
    perform(tracker.take_due(now_s + MAX_WAIT_S))
    while running:
        finish(0)
        perform(tracker.take_due(now_s + MAX_WAIT_S))
    assert published == {path: seen for path, seen in content.items() if seen is not None}


def test_queue_gives_each_path_to_one_worker():
    queue = HashQueue()
    for path, generation in ((b"/a", 1), (b"/b", 2), (b"/a", 3)):
        queue.put(path, generation)
    assert queue.take() == (b"/a", 3)
    queue.put(b"/a", 4)
    assert queue.take() == (b"/b", 2)
    assert queue.take() is None
    queue.done(b"/a")
    assert queue.take() == (b"/a", 4)
