# SPDX-License-Identifier: Apache-2.0
"""How a unit ends, by itself or because it is to, and what becomes of it then. Pure.

A stop escalates: ExecStop, StopSignal, and after TimeoutStopSec SIGKILL to all that belongs to it.
"""

from __future__ import annotations

from enclavekit_enclave_init.supervision import events as ev
from enclavekit_enclave_init.supervision.book import Book, blame
from enclavekit_enclave_init.supervision.events import Ending, Event, Timer
from enclavekit_enclave_init.supervision.ripple import end_for_good, forget_if_removed, mark_stop, release_bound
from enclavekit_enclave_init.supervision.state import HALTING, Record, State, Stop, Why
from enclavekit_enclave_init.units.unit import Unit

KILL_GRACE_S = 5.0  # SIGKILL works at once, unless the kernel itself is stuck: do not wait for that for ever
SIGABRT = 6  # what a watchdog sends, so that the process can leave a core or a trace


def is_success(unit: Unit, ending: Ending) -> bool:
    """Say whether that end is none that Restart=on-failure would mend."""
    if ending.failure:
        return False
    return ending.succeeded or ending.exit_status in unit.success_statuses or ending.signal in unit.success_signals


def on_ended(book: Book, record: Record, event: Event) -> None:
    """Take the end of the main process of a unit that was up or on its way."""
    assert isinstance(event, ev.Exited)
    if record.queue:
        book.drop_command(record)
    off_duty(book, record)
    record.has_main, record.ending = False, event.ending
    settle_end(book, record, event.ending)


def settle_end(book: Book, record: Record, ending: Ending) -> None:
    """Decide what comes after an end: the one that was asked for, or what Restart says."""
    record.ending = ending
    book.cancel_timer(record)
    if record.stop is not None:
        # it was to stop as soon as those behind it had, and went by itself
        end_stopped(book, record, str(ending))
    else:
        after_end(book, record, ending)


def after_end(book: Book, record: Record, ending: Ending) -> None:
    """Restart it or be done with it, as Restart has it."""
    unit = record.unit
    succeeded = is_success(unit, ending)
    again = {"always": True, "on-failure": not succeeded, "on-success": succeeded}
    if not again.get(unit.restart, False) or book.is_ending:
        end_for_good(book, record, State.DONE if succeeded else State.FAILED, str(ending))
        return
    active = book.now - record.waited_s
    while record.starts and record.starts[0] <= active - unit.start_limit_interval_s:
        record.starts.popleft()
    if unit.start_limit_burst and len(record.starts) >= unit.start_limit_burst:
        limit = f"{unit.start_limit_burst} starts in {unit.start_limit_interval_s:g} s"
        end_for_good(book, record, State.FAILED, f"{ending}; it is not started again after {limit}")
        return
    if not record.starts:
        record.streak = 0
    longest = max(unit.restart_delay_s, unit.restart_max_delay_s)
    delay = min(unit.restart_delay_s * 2 ** min(record.streak, 30), longest)
    record.waited_s += delay - unit.restart_delay_s
    record.streak += 1
    record.restarts += 1
    book.enter(record, State.BACKOFF, str(ending))
    book.note(f"{unit.name} {ending}; it starts again in {delay:g} s")
    book.set_timer(record, delay)
    release_bound(book, unit.name, Stop(Why.AGAIN, f"is bound to {unit.name}, which restarts"))


def on_backoff_over(book: Book, record: Record, event: Event) -> None:
    book.enter(record, State.WAITING)


# stopping -----------------------------------------------------------------------------------------------------


def request_stop(book: Book, record: Record, stop: Stop) -> None:
    """Have an active unit stop, once those that lean on it have; one that does not do its work, at once."""
    mark_stop(record, stop)
    if stop.why is Why.FAULT and record.state not in HALTING:
        # it does not wait for those behind it: it does no work for them any more
        begin_stop(book, record)


def begin_stop(book: Book, record: Record) -> None:
    unit, state = record.unit, record.state
    if record.queue and (record.has_main or state is not State.PREPARING):
        book.drop_command(record)
    off_duty(book, record)
    if not record.has_main and not record.queue:  # a oneshot whose ExecStartPost was cut off
        book.cancel_timer(record)
        end_stopped(book, record, str(record.ending))
    elif unit.stop_commands and state is State.RUNNING and not _is_watchdog(record):
        book.enter(record, State.ENDING)
        book.set_timer(record, unit.stop_timeout_s)
        book.run_commands(record, unit.stop_commands)
    else:
        _send_stop_signal(book, record)


def _is_watchdog(record: Record) -> bool:
    return record.stop is not None and record.stop.why is Why.FAULT and "watchdog" in record.stop.reason


def _send_stop_signal(book: Book, record: Record) -> None:
    unit = record.unit
    book.enter(record, State.STOPPING)
    number = SIGABRT if _is_watchdog(record) else unit.stop_signal
    book.act(ev.Signal(unit.name, number, main_only=unit.kill_mode != "control-group"))
    book.set_timer(record, unit.stop_timeout_s)


def on_stop_command_done(book: Book, record: Record, event: Event) -> None:
    if failed := book.next_command(record, event, record.unit.stop_commands, "ExecStop"):
        record.queue.clear()
        book.note(f"{record.unit.name}: {failed}")
    if record.queue:
        return
    if record.has_main:
        _send_stop_signal(book, record)
    else:
        book.cancel_timer(record)
        end_stopped(book, record, str(record.ending))


def on_main_exit_while_ending(book: Book, record: Record, event: Event) -> None:
    assert isinstance(event, ev.Exited)
    record.has_main, record.ending = False, event.ending


def on_stop_command_timeout(book: Book, record: Record, event: Event) -> None:
    book.note(f"{record.unit.name}: ExecStop took longer than {record.unit.stop_timeout_s:g} s")
    book.drop_command(record)
    if record.has_main:
        _send_stop_signal(book, record)
    else:
        end_stopped(book, record, str(record.ending))


def on_stopped(book: Book, record: Record, event: Event) -> None:
    assert isinstance(event, ev.Exited | ev.CommandExited)
    if isinstance(event, ev.Exited):
        record.has_main = False
    record.queue.clear()
    record.ending = event.ending
    book.cancel_timer(record)
    end_stopped(book, record, str(event.ending))


def on_stop_timeout(book: Book, record: Record, event: Event) -> None:
    book.enter(record, State.KILLING)
    book.note(f"{record.unit.name} did not stop within {record.unit.stop_timeout_s:g} s: it is killed")
    book.act(ev.KillSession(record.unit.name))
    book.set_timer(record, KILL_GRACE_S)


def on_unkillable(book: Book, record: Record, event: Event) -> None:
    record.left_behind = True
    if not book.is_ending:
        record.stop = Stop(Why.LOST, "it does not die of SIGKILL: it is left behind")
    end_stopped(book, record, "does not die of SIGKILL: it is left behind")


def on_late_exit(book: Book, record: Record, event: Event) -> None:
    """It was left behind by on_unkillable, and yet it ended."""
    record.has_main = record.left_behind = False
    record.queue.clear()


def end_stopped(book: Book, record: Record, how: str) -> None:
    """Let a unit be what the reason of its stop makes of it."""
    stop = record.stop
    assert stop is not None
    name = record.unit.name
    if book.is_ending:
        book.enter(record, State.STOPPED, stop.reason)
        book.note(f"{name} stopped: {how}")
        return
    record.stop = None
    match stop.why:
        case Why.LOST:
            end_for_good(book, record, State.FAILED, stop.reason)
        case Why.FAULT:
            record.ending = blame(record.ending or Ending(), stop.reason)
            after_end(book, record, record.ending)
        case Why.AGAIN:
            book.note(f"{name} stopped: {how}; it starts again")
            book.enter(record, State.WAITING, stop.reason)
        case _:
            book.note(f"{name} stopped: {how}")
            book.enter(record, State.STOPPED, stop.reason)
            release_bound(book, name, Stop(Why.REQUEST, f"is bound to {name}, which was stopped"))
            forget_if_removed(book, record)


def off_duty(book: Book, record: Record) -> None:
    """End what only a running unit has: watchdog and health checks."""
    if record.state is not State.RUNNING:
        return
    book.cancel_timer(record, Timer.WATCHDOG)
    book.cancel_timer(record, Timer.HEALTH)
    if record.checking:
        record.checking = False
        book.act(ev.DropCommand(record.unit.name, ev.Slot.HEALTH))
