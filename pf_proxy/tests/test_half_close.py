# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
from enclavekit_core.errors import LocalProtocolError
from enclavekit_pf_proxy.half_close import TRANSITIONS, Action, Event, HalfClose, State
from hypothesis import given
from hypothesis import strategies as st

ENDED, FAILED, SINK, EMPTIED = Event.SOURCE_ENDED, Event.SOURCE_FAILED, Event.SINK_FAILED, Event.EMPTIED
SHUT, LINGER, CLOSE = Action.SHUT_DOWN_SINK, Action.LINGER, Action.CLOSE

STORIES = {
    "request ends, then the answer": [
        ((0, ENDED), []),
        ((0, EMPTIED), [(0, SHUT)]),
        ((1, ENDED), []),
        ((1, EMPTIED), [(1, SHUT), (1, CLOSE)]),
    ],
    "both end before either is emptied": [
        ((0, ENDED), []),
        ((1, ENDED), []),
        ((1, EMPTIED), [(1, SHUT)]),
        ((0, EMPTIED), [(0, SHUT), (0, CLOSE)]),
    ],
    "client dies: what it sent still goes up, what comes down is dropped": [
        ((0, FAILED), []),
        ((0, EMPTIED), [(0, SHUT), (0, LINGER)]),
        ((1, ENDED), [(1, CLOSE)]),
    ],
    "upstream takes no more, its answer still comes down": [
        ((0, SINK), []),
        ((1, ENDED), []),
        ((1, EMPTIED), [(1, SHUT), (1, LINGER)]),
        ((0, ENDED), [(0, CLOSE)]),
    ],
    "both sinks fail": [((0, SINK), []), ((1, SINK), [(1, LINGER)]), ((0, ENDED), []), ((1, ENDED), [(1, CLOSE)])],
    "draining into a sink that fails": [
        ((0, ENDED), []),
        ((0, SINK), []),
        ((1, FAILED), []),
        ((1, EMPTIED), [(1, SHUT), (1, CLOSE)]),
    ],
}


@pytest.mark.parametrize("name", STORIES)
def test_stories(name):
    rules = HalfClose()
    for (flow, event), expected in STORIES[name]:
        assert rules.receive(flow, event) == expected


def test_every_pair_is_in_the_table_or_an_error():
    for state, event in itertools.product(State, Event):
        rules = HalfClose()
        rules.states[0] = state
        if (state, event) in TRANSITIONS:
            rules.receive(0, event)
            assert rules.states[0] is TRANSITIONS[state, event]
        else:
            with pytest.raises(LocalProtocolError, match="cannot relay"):
                rules.receive(0, event)


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(Event)), max_size=40))
def test_any_order_of_events_shuts_down_once_and_closes_once(events):
    rules, actions = HalfClose(), []
    for flow, event in events:
        if (rules.states[flow], event) in TRANSITIONS:
            actions += rules.receive(flow, event)
    for flow in (0, 1):
        assert actions.count((flow, SHUT)) <= 1
    assert sum(action is CLOSE for _, action in actions) == (rules.states == [State.ENDED] * 2)


@given(st.lists(st.tuples(st.integers(0, 1), st.sampled_from(Event)), max_size=40))
def test_every_relay_can_end(events):
    """From wherever it got to, the ends of both sources close it: no state is a trap."""
    rules = HalfClose()
    for flow, event in events:
        if (rules.states[flow], event) in TRANSITIONS:
            rules.receive(flow, event)
    for flow in (0, 1):
        for event in (ENDED, EMPTIED):
            if (rules.states[flow], event) in TRANSITIONS:
                rules.receive(flow, event)
    assert rules.states == [State.ENDED] * 2
