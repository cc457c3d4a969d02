# SPDX-License-Identifier: Apache-2.0
from enclavekit_pf_proxy.timers import NEVER, TICK_S, Timers
from hypothesis import given
from hypothesis import strategies as st

moments = st.floats(0, 100)


def test_an_earlier_deadline_moves_a_later_one_does_not():
    timers = Timers()
    timers.set("a", 10.0)
    timers.set("a", 20.0)
    assert 10.0 <= timers.next_due() <= 10.0 + TICK_S
    timers.set("a", 5.0)
    assert timers.take_due(4.9) == []
    assert timers.take_due(5.0 + TICK_S) == ["a"]
    assert timers.next_due() is None
    assert len(timers) == 0


@given(st.lists(st.tuples(st.integers(0, 9), moments | st.none())), moments)
def test_due_is_what_a_plain_map_says(steps, now):
    """Against a model: earlier wins, None drops; nothing is due before its time, all within a tick after it."""
    timers, model = Timers(), {}
    for key, deadline in steps:
        if deadline is None:
            timers.drop(key)
            model.pop(key, None)
        else:
            timers.set(key, deadline)
            model[key] = min(deadline, model.get(key, deadline))
    earliest = timers.earliest
    due = timers.take_due(now)
    assert now >= earliest or not due
    assert timers.earliest == (NEVER if (first := timers.next_due()) is None else first)
    assert len(due) == len(set(due))
    assert {key for key, deadline in model.items() if deadline + 2 * TICK_S <= now} <= set(due)
    assert all(model[key] <= now for key in due)
    assert len(timers) == len(model) - len(due)
