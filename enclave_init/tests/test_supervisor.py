# SPDX-License-Identifier: Apache-2.0
import pytest
from enclavekit_core.errors import LocalProtocolError
from enclavekit_enclave_init.supervision.ending import KILL_GRACE_S
from enclavekit_enclave_init.supervision.events import (
    CancelTimer,
    Changed,
    Ending,
    Exited,
    KillSession,
    Note,
    Outcome,
    PowerOff,
    SetTimer,
    Signal,
    Spawn,
    Started,
    TimerFired,
)
from enclavekit_enclave_init.supervision.state import ACTIVE, State
from enclavekit_enclave_init.supervision.supervisor import Supervisor
from enclavekit_enclave_init.units.ordering import plan_start
from enclavekit_enclave_init.units.unit import Unit
from hypothesis import given, settings
from hypothesis import strategies as st

OK, BAD, TERMED = Ending(exit_status=0), Ending(exit_status=3), Ending(signal=15)


def unit(name, **keys):
    return Unit(name=name, argv=("x",), **keys)


class Run:
    """A supervisor and its actions without the notes."""

    def __init__(self, *units):
        self.now = 0.0
        self.supervisor = Supervisor(units, plan_start(units))

    def _keep(self, actions):
        return [action for action in actions if not isinstance(action, (Note, Changed))]

    def start(self):
        return self._keep(self.supervisor.start(self.now))

    def started(self, name):
        return self._keep(self.supervisor.handle(Started(name), self.now))

    def exited(self, name, ending=OK):
        return self._keep(self.supervisor.handle(Exited(name, ending), self.now))

    def fired(self, name):
        return self._keep(self.supervisor.handle(TimerFired(name), self.now))

    def stop(self):
        return self._keep(self.supervisor.stop_all("enough", self.now))

    def state(self, name):
        return self.supervisor.states[name]


@pytest.mark.parametrize(
    ("restart", "ending", "again", "state"),
    [
        ("no", OK, False, State.DONE),
        ("no", BAD, False, State.FAILED),
        ("no", TERMED, False, State.FAILED),
        ("always", OK, True, State.BACKOFF),
        ("always", TERMED, True, State.BACKOFF),
        ("on-failure", OK, False, State.DONE),
        ("on-failure", BAD, True, State.BACKOFF),
        ("on-failure", TERMED, True, State.BACKOFF),
        ("on-success", OK, True, State.BACKOFF),
        ("on-success", BAD, False, State.FAILED),
    ],
)
def test_restart_policy(restart, ending, again, state):
    run = Run(unit("a", restart=restart, restart_delay_s=2.0))
    assert run.start() == [Spawn("a")]
    run.started("a")
    assert run.exited("a", ending) == ([SetTimer("a", 2.0)] if again else [])
    assert run.state("a") is state
    if again:
        assert run.fired("a") == [Spawn("a")]


def test_start_limit_counts_starts_in_its_interval_only():
    run = Run(unit("a", restart="always", restart_delay_s=0, start_limit_burst=3, start_limit_interval_s=10))
    run.start()
    for _ in range(5):
        # slower than the limit: goes on
        run.now += 6
        assert run.exited("a", BAD) == [SetTimer("a", 0)]
        assert run.fired("a") == [Spawn("a")]
    run.now += 1
    assert run.exited("a", BAD) == [SetTimer("a", 0)]
    assert run.fired("a") == [Spawn("a")]
    assert run.exited("a", BAD) == []
    assert run.state("a") is State.FAILED


def test_after_waits_for_the_start_of_simple_and_the_end_of_oneshot():
    run = Run(unit("a"), unit("b", oneshot=True), unit("c", after=("a", "b")))
    assert run.start() == [Spawn("a"), Spawn("b")]
    assert run.started("a") == []
    assert run.started("b") == []
    assert run.exited("b") == [Spawn("c")]


def test_after_goes_on_after_a_failure_requires_does_not():
    run = Run(unit("a"), unit("b", after=("a",)), unit("c", requires=("a",)), unit("d", requires=("c",)))
    run.start()
    assert run.exited("a", Ending(exit_status=127, failure="cannot run x")) == [Spawn("b")]
    assert (run.state("c"), run.state("d")) == (State.FAILED, State.FAILED)


def test_requirement_that_fails_later_takes_its_dependents_along_in_order():
    run = Run(unit("a"), unit("b", requires=("a",), restart="always"), unit("c", requires=("b",)), unit("d"))
    run.start()
    for name in "adbc":
        run.started(name)
    assert run.exited("a", BAD) == [Signal("c", 15), SetTimer("c", 10.0)]
    assert run.exited("c", TERMED) == [CancelTimer("c"), Signal("b", 15), SetTimer("b", 10.0)]
    assert run.exited("b", OK) == [CancelTimer("b")]
    assert run.supervisor.states == {"a": State.FAILED, "b": State.FAILED, "c": State.FAILED, "d": State.RUNNING}


def test_requirement_that_restarts_keeps_its_dependents():
    run = Run(unit("a", restart="always"), unit("b", requires=("a",)))
    run.start()
    run.started("a")
    run.started("b")
    assert run.exited("a", BAD) == [SetTimer("a", 5.0)]
    assert run.state("b") is State.RUNNING


def test_stop_all_goes_backwards_and_escalates():
    run = Run(unit("a", stop_signal=3, stop_timeout_s=1.0), unit("b", after=("a",)))
    run.start()
    run.started("a")
    run.started("b")
    assert run.stop() == [Signal("b", 15), SetTimer("b", 10.0)]
    assert run.stop() == []
    assert run.exited("b", TERMED) == [CancelTimer("b"), Signal("a", 3), SetTimer("a", 1.0)]
    assert run.fired("a") == [KillSession("a"), SetTimer("a", KILL_GRACE_S)]
    assert run.fired("a") == [PowerOff(Outcome("enough"))]
    # what would not die does so after all
    assert run.exited("a", Ending(signal=9)) == []


def test_stop_all_ends_what_waits():
    run = Run(unit("a", restart="always"), unit("b", requires=("a",)))
    run.start()
    run.exited("a", BAD)
    assert run.stop() == [CancelTimer("a"), PowerOff(Outcome("enough"))]
    assert run.supervisor.states == {"a": State.STOPPED, "b": State.STOPPED}


def test_unit_that_ends_by_itself_while_it_is_to_stop_is_not_started_again():
    run = Run(unit("a", restart="always"), unit("b", after=("a",)))
    run.start()
    run.started("a")
    run.started("b")
    run.stop()
    assert run.exited("a", BAD) == []
    assert run.exited("b", TERMED)[-1] == PowerOff(Outcome("enough"))


@pytest.mark.parametrize("ending", [OK, BAD, TERMED])
def test_on_exit_stops_the_rest_and_reports_exactly(ending):
    run = Run(unit("app", powers_off=True), unit("db"))
    run.start()
    run.started("app")
    run.started("db")
    assert run.exited("app", ending) == [Signal("db", 15), SetTimer("db", 10.0)]
    [_, power_off] = run.exited("db", TERMED)
    assert power_off == PowerOff(Outcome(f"app {ending}", "app", ending.exit_status, ending.signal))


def test_on_exit_waits_for_the_restarts_to_be_over():
    run = Run(unit("app", powers_off=True, restart="on-failure"))
    run.start()
    assert run.exited("app", BAD) == [SetTimer("app", 5.0)]
    run.fired("app")
    assert run.exited("app", OK) == [PowerOff(Outcome("app exited with 0", "app", 0))]


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome("r"), 0),
        (Outcome("r", "a", 7), 7),
        (Outcome("r", "a", None, 9), 137),
        (Outcome("never ran", "a"), 1),
    ],
)
def test_outcome_as_process_status(outcome, status):
    assert outcome.process_status == status


@pytest.mark.parametrize("event", [Started("a"), TimerFired("a")])
def test_event_that_cannot_be_is_an_error(event):
    run = Run(unit("a"))
    run.start()
    run.exited("a")
    with pytest.raises(LocalProtocolError):
        run.supervisor.handle(event, 0.0)


@st.composite
def unit_sets(draw):
    """Up to six units, each leaning on earlier ones only."""
    units = []
    for index, name in enumerate("abcdef"[: draw(st.integers(1, 6))]):
        earlier = st.lists(st.sampled_from("abcdef"[:index]), unique=True) if index else st.just([])
        oneshot = draw(st.booleans())
        units.append(
            unit(
                name,
                after=tuple(draw(earlier)),
                requires=tuple(draw(earlier)),
                oneshot=oneshot,
                restart=draw(st.sampled_from(["no", "on-failure"] if oneshot else ["no", "always", "on-failure"])),
                powers_off=draw(st.booleans()),
                start_limit_burst=draw(st.integers(0, 3)),
            )
        )
    return units


@settings(max_examples=150, deadline=None)
@given(unit_sets(), st.data())
def test_any_course_of_events_keeps_the_invariants(units, data):
    """A shell that behaves never meets an impossible event, and the machine always comes to its one end."""
    by_name = {one.name: one for one in units}
    supervisor = Supervisor(units, plan_start(units))
    alive, executing, timers, over = set(), set(), set(), []

    def perform(actions):
        for action in actions:
            match action:
                case Spawn(name):
                    assert name not in alive and not over
                    for required in by_name[name].requires:
                        assert supervisor.states[required] in (State.RUNNING, State.DONE, *ACTIVE)
                    alive.add(name)
                    executing.add(name)
                case Signal(name, _) | KillSession(name):
                    assert name in alive
                    for later in units:
                        stopping = (*later.after, *later.requires)
                        assert (
                            name not in stopping or later.name not in alive or supervisor.states[later.name] in ACTIVE
                        )
                case SetTimer(name, _):
                    timers.add(name)
                case CancelTimer(name):
                    timers.discard(name)
                case PowerOff(_):
                    over.append(action)

    now = 0.0
    perform(supervisor.start(now))
    for step in range(60):
        now += data.draw(st.floats(0, 30))
        choices = [Exited(name, e) for name in sorted(alive) for e in (OK, BAD, TERMED)]
        choices += [Started(name) for name in sorted(executing)]
        choices += [TimerFired(name) for name in sorted(timers)]
        if step == 40 or not choices or data.draw(st.integers(0, 30)) == 0:
            perform(supervisor.stop_all("enough", now))
        if over or not choices:
            break
        event = data.draw(st.sampled_from(choices))
        if not isinstance(event, TimerFired) and event.unit not in alive:
            continue
        if isinstance(event, TimerFired) and event.unit not in timers:
            continue
        executing.discard(event.unit)
        if isinstance(event, Exited):
            alive.discard(event.unit)
        if isinstance(event, TimerFired):
            timers.discard(event.unit)
        perform(supervisor.handle(event, now))
    perform(supervisor.stop_all("enough", now))
    for name in sorted(alive) * 2:
        if name in alive:
            alive.discard(name)
            perform(supervisor.handle(Exited(name, TERMED), now))
    assert len(over) == 1
    assert not any(state in ACTIVE for state in supervisor.states.values())
