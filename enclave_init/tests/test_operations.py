# SPDX-License-Identifier: Apache-2.0
import pytest
from enclavekit_core.errors import ConfigError, InputError
from enclavekit_enclave_init.supervision import events as ev
from enclavekit_enclave_init.supervision.operations import Operations, UnitChanges
from enclavekit_enclave_init.supervision.state import ACTIVE, State
from enclavekit_enclave_init.supervision.supervisor import Supervisor
from enclavekit_enclave_init.units.commands import Command
from enclavekit_enclave_init.units.ordering import plan_start
from enclavekit_enclave_init.units.unit import Unit
from hypothesis import given, settings
from hypothesis import strategies as st

OK, BAD, TERMED = ev.Ending(exit_status=0), ev.Ending(exit_status=3), ev.Ending(signal=15)
CHECK = Command(("check",))


def unit(name, **keys):
    return Unit(name=name, argv=("x",), **keys)


class Shell:
    """Keeps the promises of the event loop: what runs, which timers are set, what has been decided."""

    def __init__(self, *units):
        self.supervisor = Supervisor(units, plan_start(units))
        self.operations = Operations(self.supervisor)
        self.now = 0.0
        self.mains, self.executing = set(), set()
        self.commands, self.timers, self.signals, self.ends = {}, {}, [], []
        self.order = []
        self.perform(self.supervisor.start(self.now))

    def perform(self, actions):
        for action in actions:
            assert not self.ends, f"{action} after the end"
            match action:
                case ev.Spawn(name):
                    assert name not in self.mains
                    self.mains.add(name)
                    self.executing.add(name)
                    self.order.append(f"+{name}")
                case ev.SpawnCommand(name, slot, argv):
                    assert (name, slot) not in self.commands
                    self.commands[name, slot] = argv
                case ev.DropCommand(name, slot):
                    self.commands.pop((name, slot), None)
                case ev.Signal(name, number):
                    self.signals.append((name, number))
                    self.order.append(f"-{name}")
                case ev.SetTimer(name, _, timer):
                    self.timers[name, timer] = action.delay_s
                case ev.CancelTimer(name, timer):
                    del self.timers[name, timer]
                case ev.PowerOff():
                    self.ends.append(action.outcome)

    def handle(self, event):
        self.perform(self.supervisor.handle(event, self.now))

    def up(self, *names):
        for name in names:
            self.executing.discard(name)
            self.handle(ev.Started(name))

    def end(self, name, ending=OK):
        self.mains.remove(name)
        self.executing.discard(name)
        self.handle(ev.Exited(name, ending))

    def command_ends(self, name, ending=OK, slot=ev.Slot.COMMAND):
        del self.commands[name, slot]
        self.handle(ev.CommandExited(name, slot, ending))

    def fire(self, name, timer=ev.Timer.STATE):
        del self.timers[name, timer]
        self.handle(ev.TimerFired(name, timer))

    def ask(self, verb, *arguments):
        self.perform(getattr(self.operations, verb)(*arguments, self.now))

    def state(self, name):
        return self.supervisor.states[name]


def test_stop_takes_dependents_first_and_nothing_restarts():
    shell = Shell(unit("a", restart="always"), unit("b", requires=("a",), restart="always"), unit("c"))
    shell.up("a", "b", "c")
    shell.ask("stop", "a")
    assert shell.signals == [("b", 15)]
    shell.end("b", TERMED)
    shell.end("a", TERMED)
    assert [shell.state(name) for name in "abc"] == [State.STOPPED, State.STOPPED, State.RUNNING]
    assert not shell.timers


def test_start_brings_what_it_requires():
    shell = Shell(unit("a"), unit("b", requires=("a",)))
    shell.up("a", "b")
    shell.ask("stop", "a")
    shell.end("b", TERMED)
    shell.end("a", TERMED)
    shell.ask("start", "b")
    shell.up("a", "b")
    assert shell.order == ["+a", "+b", "-b", "-a", "+a", "+b"]


def test_restart_stops_backwards_starts_forwards_and_never_runs_two():
    shell = Shell(unit("a"), unit("b", requires=("a",)))
    shell.up("a", "b")
    shell.ask("restart", "a")
    shell.end("b", TERMED)
    shell.end("a", TERMED)
    shell.up("a", "b")
    assert shell.order == ["+a", "+b", "-b", "-a", "+a", "+b"]
    assert shell.state("b") is State.RUNNING


def test_start_during_a_stop_starts_again():
    shell = Shell(unit("a"))
    shell.up("a")
    shell.ask("stop", "a")
    shell.ask("start", "a")
    shell.end("a", TERMED)
    assert shell.order == ["+a", "-a", "+a"]


def test_stop_during_a_restart_holds():
    shell = Shell(unit("a"))
    shell.up("a")
    shell.ask("restart", "a")
    shell.ask("stop", "a")
    shell.end("a", TERMED)
    assert shell.state("a") is State.STOPPED


def test_disabled_units_are_known_and_can_be_started():
    shell = Shell(unit("a", enabled=False), unit("b"))
    assert shell.state("a") is State.STOPPED
    shell.ask("start", "a")
    assert shell.mains == {"a", "b"}


def test_enable_and_disable_touch_no_other():
    shell = Shell(unit("a", enabled=False), unit("b"))
    shell.up("b")
    shell.ask("enable", "a")
    assert shell.state("a") is State.STOPPED and shell.order == ["+b"]
    shell.ask("disable", "b")
    shell.end("b", TERMED)
    assert shell.state("b") is State.STOPPED
    assert [status.enabled for status in shell.supervisor.snapshot(0.0)] == [True, False]


def test_what_others_require_cannot_be_disabled():
    shell = Shell(unit("a"), unit("b", requires=("a",)))
    with pytest.raises(InputError, match="b requires it"):
        shell.ask("disable", "a")
    assert shell.order == ["+a"]


def test_conflicting_unit_is_stopped_before_the_start():
    shell = Shell(unit("a"), unit("b", enabled=False, conflicts=("a",)))
    shell.up("a")
    shell.ask("start", "b")
    assert shell.order == ["+a", "-a"]
    shell.end("a", TERMED)
    assert shell.order == ["+a", "-a", "+b"]


def test_enabled_units_that_conflict_are_refused():
    with pytest.raises(ConfigError, match="enabled too"):
        Shell(unit("a"), unit("b", conflicts=("a",)))


@pytest.mark.parametrize(("restart", "again"), [("always", True), ("no", False)])
def test_bound_unit_goes_with_the_one_it_is_bound_to(restart, again):
    shell = Shell(unit("a", restart=restart), unit("b", binds_to=("a",)))
    shell.up("a", "b")
    shell.end("a", OK)
    assert shell.signals == [("b", 15)]
    shell.end("b", TERMED)
    if again:
        shell.fire("a")
        shell.up("a")
    assert shell.state("b") is (State.STARTING if again else State.STOPPED)


def test_commands_run_around_the_main_process():
    commands = {
        "start_pre": (Command(("p1",), ignores_failure=True), Command(("p2",))),
        "start_post": (Command(("q",)),),
        "stop_commands": (Command(("s",)),),
        "reload_commands": (Command(("r",)),),
    }
    shell = Shell(unit("a", **commands), unit("z", after=("a",)))
    slot = ("a", ev.Slot.COMMAND)
    assert shell.commands[slot] == ("p1",) and not shell.mains
    shell.command_ends("a", BAD)
    assert shell.commands[slot] == ("p2",)
    shell.command_ends("a")
    shell.up("a")
    assert shell.commands[slot] == ("q",) and shell.mains == {"a"}
    shell.command_ends("a")
    assert shell.mains == {"a", "z"} and not shell.timers
    shell.ask("reload", "a")
    assert shell.commands[slot] == ("r",)
    with pytest.raises(InputError, match="already"):
        shell.ask("reload", "a")
    shell.command_ends("a")
    shell.up("z")
    shell.ask("stop", "a")
    assert shell.commands[slot] == ("s",) and not shell.signals
    shell.command_ends("a")
    assert shell.signals == [("a", 15)]


def test_failed_preparation_fails_the_unit():
    shell = Shell(unit("a", start_pre=(CHECK,)), unit("b", requires=("a",)))
    shell.command_ends("a", BAD)
    assert [shell.state(name) for name in "ab"] == [State.FAILED, State.FAILED]
    assert "ExecStartPre" in shell.supervisor.snapshot(0.0)[0].reason


def test_notify_unit_is_up_when_it_says_so():
    shell = Shell(unit("a", notify=True, start_timeout_s=5.0), unit("b", requires=("a",)))
    shell.up("a")
    assert shell.mains == {"a"} and shell.timers == {("a", ev.Timer.STATE): 5.0}
    shell.handle(ev.Notified("a", {"READY": "1", "STATUS": "serving"}))
    assert shell.mains == {"a", "b"} and not shell.timers
    assert shell.supervisor.snapshot(0.0)[0].status == "serving"


def test_notify_unit_that_ends_before_it_is_ready_has_failed():
    shell = Shell(unit("a", notify=True))
    shell.up("a")
    shell.end("a", OK)
    assert shell.state("a") is State.FAILED


def test_start_that_takes_too_long_is_ended():
    shell = Shell(unit("a", notify=True, start_timeout_s=5.0, restart="on-failure"))
    shell.up("a")
    shell.fire("a")
    assert shell.signals == [("a", 15)]
    shell.end("a", TERMED)
    assert shell.state("a") is State.BACKOFF


def test_watchdog_that_is_not_fed_bites():
    shell = Shell(unit("a", watchdog_s=2.0, restart="on-failure"))
    shell.up("a")
    shell.handle(ev.Notified("a", {"WATCHDOG": "1"}))
    shell.fire("a", ev.Timer.WATCHDOG)
    assert shell.signals == [("a", 6)]
    shell.end("a", OK)
    assert shell.state("a") is State.BACKOFF


def test_health_check_counts_failures_in_a_row():
    shell = Shell(unit("a", health_check=CHECK, health_retries=2, health_interval_s=7.0, health_timeout_s=1.0))
    shell.up("a")
    for ending in (BAD, OK, BAD):
        shell.fire("a", ev.Timer.HEALTH)
        assert shell.timers["a", ev.Timer.HEALTH] == 1.0
        shell.command_ends("a", ending, ev.Slot.HEALTH)
        assert shell.timers["a", ev.Timer.HEALTH] == 7.0
    shell.fire("a", ev.Timer.HEALTH)
    shell.fire("a", ev.Timer.HEALTH)  # the check hangs
    assert not shell.commands and shell.signals == [("a", 15)]
    shell.end("a", OK)
    assert shell.state("a") is State.FAILED


def test_success_statuses_and_signals():
    shell = Shell(unit("a", success_statuses=(3,)), unit("b", success_signals=(15,)))
    shell.up("a", "b")
    shell.end("a", BAD)
    shell.end("b", TERMED)
    assert [shell.state(name) for name in "ab"] == [State.DONE, State.DONE]


def test_pauses_grow_and_the_limit_counts_without_them():
    shell = Shell(unit("a", restart="always", restart_delay_s=1.0, restart_max_delay_s=5.0, start_limit_burst=6))
    pauses = []
    for _ in range(5):
        shell.up("a")
        shell.end("a", BAD)
        pauses.append(shell.timers["a", ev.Timer.STATE])
        shell.now += pauses[-1]
        shell.fire("a")
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0]
    shell.now += 100.0  # it was up long enough: all is forgiven
    shell.end("a", BAD)
    assert shell.timers["a", ev.Timer.STATE] == 1.0


def test_replaced_units_go_on_running_and_the_changes_are_told():
    shell = Shell(unit("a"), unit("b"), unit("c"))
    shell.up("a", "b", "c")
    new = [unit("a", restart_delay_s=9.0), unit("b"), unit("d")]
    actions, changes = shell.operations.replace_units(new, 0.0)
    shell.perform(actions)
    assert changes == UnitChanges(added=("d",), removed=("c",), changed=("a",), needs_restart=("a",))
    assert shell.order == ["+a", "+b", "+c", "+d"]
    shell.end("c", OK)
    assert set(shell.supervisor.states) == set("abd")
    with pytest.raises(ConfigError):
        shell.operations.replace_units([unit("a", requires=("ghost",))], 0.0)
    assert set(shell.supervisor.states) == set("abd")


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "reload", "enable", "disable"])
def test_unknown_unit_is_refused(verb):
    with pytest.raises(InputError, match=f"cannot {verb} ghost"):
        Shell(unit("a")).ask(verb, "ghost")


def test_kill_is_for_units_that_run_and_for_signals_that_exist():
    shell = Shell(unit("a"), unit("b", enabled=False))
    shell.ask("kill", "a", 10)
    assert shell.signals == [("a", 10)]
    for name, number in (("a", 0), ("a", 65), ("a", -1), ("b", 15)):
        with pytest.raises(InputError):
            shell.ask("kill", name, number)


def test_shutdown_says_what_was_asked():
    shell = Shell()
    shell.ask("shutdown", "reboot")
    assert shell.ends[0].kind == "reboot"
    with pytest.raises(InputError):
        shell.ask("shutdown", "explode")


NAMES = "abcdef"


@st.composite
def unit_sets(draw):
    units = []
    for index, name in enumerate(NAMES[: draw(st.integers(1, 6))]):
        earlier = st.lists(st.sampled_from(NAMES[:index]), unique=True, max_size=2) if index else st.just([])
        oneshot = draw(st.booleans())
        some = st.sampled_from([(), (CHECK,), (CHECK, CHECK)])
        units.append(
            unit(
                name,
                after=tuple(draw(earlier)),
                requires=tuple(draw(earlier)),
                binds_to=tuple(draw(earlier)),
                wants=tuple(draw(earlier)),
                oneshot=oneshot,
                notify=not oneshot and draw(st.booleans()),
                restart=draw(st.sampled_from(["no", "on-failure"] if oneshot else ["no", "always", "on-failure"])),
                start_limit_burst=draw(st.integers(0, 3)),
                start_pre=draw(some),
                start_post=draw(some),
                stop_commands=draw(some),
                reload_commands=draw(some),
                watchdog_s=draw(st.sampled_from([0.0, 1.0])),
                health_check=draw(st.sampled_from([None, CHECK])),
                health_retries=draw(st.integers(1, 2)),
            )
        )
    return units


VERBS = ("start", "stop", "restart", "reload", "enable", "disable", "kill", "replace")


def check(shell):
    for name, state in shell.supervisor.states.items():
        if not shell.supervisor.records[name].left_behind:
            assert state in ACTIVE or name not in shell.mains
        assert (state in ACTIVE) or (name, ev.Slot.HEALTH) not in shell.commands
        if state is State.RUNNING:
            assert name in shell.mains
        else:
            assert (name, ev.Timer.HEALTH) not in shell.timers and (name, ev.Timer.WATCHDOG) not in shell.timers


@settings(max_examples=120, deadline=None)
@given(unit_sets(), unit_sets(), st.data())
def test_any_course_of_events_and_requests_keeps_the_invariants(units, others, data):
    """A shell that behaves never meets an impossible event, and the enclave always comes to its one end."""
    shell = Shell(*units)
    for _ in range(50):
        shell.now += data.draw(st.sampled_from([0.0, 1.0, 70.0]))
        if data.draw(st.integers(0, 3)) == 0:
            verb, name = data.draw(st.sampled_from(VERBS)), data.draw(st.sampled_from(NAMES))
            try:
                if verb == "replace":
                    shell.perform(shell.operations.replace_units(others, shell.now)[0])
                elif verb == "kill":
                    shell.ask("kill", name, 10)
                else:
                    shell.ask(verb, name)
            except (InputError, ConfigError):
                pass
        choices = [lambda n=n, e=e: shell.end(n, e) for n in sorted(shell.mains) for e in (OK, BAD)]
        choices += [lambda n=n: shell.up(n) for n in sorted(shell.executing)]
        choices += [lambda k=k: shell.fire(*k) for k in list(shell.timers)]
        choices += [lambda k=k, e=e: shell.command_ends(k[0], e, k[1]) for k in list(shell.commands) for e in (OK, BAD)]
        choices += [
            lambda n=n: shell.handle(ev.Notified(n, {"READY": "1", "WATCHDOG": "1"})) for n in sorted(shell.mains)
        ]
        if choices:
            data.draw(st.sampled_from(choices))()
        check(shell)
        if shell.ends:
            break
    if not shell.ends:
        shell.perform(shell.supervisor.stop_all("enough", shell.now))
    for _ in range(200):
        if shell.ends:
            break
        if shell.commands:
            name, slot = next(iter(shell.commands))
            shell.command_ends(name, TERMED, slot)
        else:
            shell.end(sorted(shell.mains)[-1], TERMED)
    assert len(shell.ends) == 1
    assert not any(state in ACTIVE for state in shell.supervisor.states.values())
