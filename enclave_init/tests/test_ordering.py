# SPDX-License-Identifier: Apache-2.0
import itertools

import pytest
from enclavekit_core.errors import ConfigError
from enclavekit_enclave_init.units.ordering import plan_start
from enclavekit_enclave_init.units.unit import Unit
from hypothesis import given
from hypothesis import strategies as st


def unit(name, **keys):
    return Unit(name=name, argv=("x",), **keys)


@pytest.mark.parametrize(
    ("units", "order"),
    [
        ([unit("c"), unit("a"), unit("b")], "abc"),
        ([unit("a", after=("b",)), unit("b", after=("c",)), unit("c")], "cba"),
        ([unit("a"), unit("b", before=("a",))], "ba"),
        ([unit("a", requires=("b",)), unit("b")], "ba"),
        ([unit("a"), unit("b", required_by=("a",))], "ba"),
        ([unit("a", after=("ghost",)), unit("b", before=("ghost",))], "ab"),
        ([unit("a", after=("b",)), unit("b", enabled=False, after=("a",))], "a"),
    ],
)
def test_plan_start_orders(units, order):
    plan = plan_start(units)
    assert "".join(plan.order) == order
    assert plan_start(reversed(units)).order == plan.order


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ([unit("a"), unit("a")], ["a", "twice"]),
        ([unit("a", requires=("ghost",))], ["a", "ghost does not exist"]),
        ([unit("a", requires=("b",)), unit("b", enabled=False)], ["a", "b is disabled"]),
        ([unit("a"), unit("b", enabled=False, required_by=("a",))], ["a", "b is disabled"]),
        ([unit("a", after=("b",)), unit("b", after=("a",)), unit("z", after=("a",))], ["a after b after a"]),
        ([unit("a", requires=("a",))], ["a after a"]),
    ],
)
def test_plan_start_refuses_by_name(units, words):
    with pytest.raises(ConfigError) as caught:
        plan_start(units)
    assert all(word in str(caught.value) for word in words)


def test_names_that_do_not_exist_are_noted():
    notes = plan_start([unit("a", after=("ghost",), required_by=("spirit",))]).notes
    assert len(notes) == 2 and "ghost" in notes[0] and "spirit" in notes[1]


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.sets(st.sampled_from("abcdefgh")), min_size=1))
def test_order_respects_every_edge_or_names_a_real_cycle(edges):
    units = [unit(name, after=tuple(sorted(after))) for name, after in edges.items()]
    try:
        order = plan_start(units).order
    except ConfigError as exc:
        cycle = exc.reason.removeprefix("they wait for each other: ").split(" after ")
        assert cycle[0] == cycle[-1] and len(cycle) > 1
        assert all(earlier in edges[later] for later, earlier in itertools.pairwise(cycle))
        return
    assert sorted(order) == sorted(edges)
    for name, after in edges.items():
        assert all(order.index(earlier) < order.index(name) for earlier in after & edges.keys())
