# SPDX-License-Identifier: Apache-2.0
"""Keep-alive and the numbers of streams, as tables: time is an argument, so nothing here waits."""

import pytest
from enclavekit_core.errors import LocalProtocolError
from enclavekit_pipeline.wire.liveness import INTERVAL_S, PATIENCE_S, Liveness, Verdict
from enclavekit_pipeline.wire.numbering import StreamNumbers
from hypothesis import given
from hypothesis import strategies as st


def run(liveness, until, step=1.0, answer=False, begin=0.0):
    """Check every `step` seconds; return [(time, verdict)] of all that is not WAIT."""
    now, said = begin, []
    while now < until:
        now += step
        verdict = liveness.check(now)
        if verdict is not Verdict.WAIT:
            said.append((now, verdict))
        if verdict is Verdict.SEND_PING and answer:
            assert liveness.pong(liveness.token, now)
    return said


def test_peer_that_answers_is_asked_again_and_again():
    asked = [verdict for _, verdict in run(Liveness(0.0), 10 * INTERVAL_S, answer=True)]
    assert asked == [Verdict.SEND_PING] * 10


def test_peer_that_is_silent_is_given_up_after_the_patience():
    said = run(Liveness(0.0), INTERVAL_S + PATIENCE_S)
    assert said == [(INTERVAL_S, Verdict.SEND_PING), (INTERVAL_S + PATIENCE_S, Verdict.DEAD)]


def test_wrong_answer_is_none():
    liveness = Liveness(0.0)
    assert liveness.check(INTERVAL_S) is Verdict.SEND_PING
    assert not liveness.pong(b"else", INTERVAL_S + 1)
    token = liveness.token
    assert liveness.pong(token, INTERVAL_S + 1)
    assert not liveness.pong(token, INTERVAL_S + 2)  # the same again


def test_own_sleep_is_not_the_peer_s_fault():
    liveness = Liveness(0.0)
    assert liveness.check(INTERVAL_S) is Verdict.SEND_PING
    woken = INTERVAL_S + 100 * PATIENCE_S  # we were stopped; the answer lies unread in the socket
    assert liveness.check(woken) is Verdict.WAIT
    assert liveness.pong(liveness.token, woken + 0.001)
    assert liveness.check(woken + 0.002) is Verdict.WAIT


@given(st.lists(st.floats(0.1, INTERVAL_S), max_size=60), st.booleans())
def test_whoever_checks_when_asked_to_never_spins_and_always_decides(delays, answers):
    liveness, now = Liveness(0.0), 0.0
    for delay in delays:
        due = liveness.next_check
        assert due >= now or due <= now < due + INTERVAL_S + delay
        now = max(due, now) if answers else now + delay
        verdict = liveness.check(now)
        assert liveness.next_check > now or verdict is Verdict.DEAD
        if verdict is Verdict.SEND_PING and answers:
            liveness.pong(liveness.token, now)
        if verdict is Verdict.DEAD:
            assert not answers
            assert now >= PATIENCE_S
            return


def test_numbers_come_in_turn_and_return_last():
    numbers = StreamNumbers(range(1, 5), most=3)
    assert [numbers.take() for _ in range(3)] == [1, 2, 3]
    assert numbers.is_full
    with pytest.raises(LocalProtocolError):
        numbers.take()
    numbers.release(1)
    assert numbers.take() == 4
    numbers.release(3)
    assert numbers.take() == 1
    numbers.release(4)
    assert numbers.take() == 3


@given(st.lists(st.integers(-1, 9), max_size=100))
def test_number_is_never_out_twice(steps):
    numbers, out = StreamNumbers(range(10, 16), most=5), set()
    for step in steps:
        if step >= 0 and out:
            gone = sorted(out)[step % len(out)]
            out.discard(gone)
            numbers.release(gone)
        elif not numbers.is_full:
            taken = numbers.take()
            assert taken in range(10, 16)
            assert taken not in out
            out.add(taken)
        assert numbers.is_full == (len(out) == 5)
