# SPDX-License-Identifier: Apache-2.0
"""How a unit comes up: ExecStartPre, the main process, what makes it ready, ExecStartPost. Pure."""

from __future__ import annotations

from enclavekit_enclave_init.supervision import events as ev
from enclavekit_enclave_init.supervision.book import Book, blame
from enclavekit_enclave_init.supervision.ending import is_success, on_ended, request_stop, settle_end
from enclavekit_enclave_init.supervision.events import Event, Timer
from enclavekit_enclave_init.supervision.ripple import end_for_good
from enclavekit_enclave_init.supervision.state import ACTIVE, COMING, Record, State, Stop, Why

START_TIMEOUT_S = 90.0  # as systemd has it


def start_if_ready(book: Book, record: Record) -> None:
    """Start a waiting unit if nothing that it waits for is missing."""
    name = record.unit.name
    if record.left_behind:
        return
    for earlier in sorted(book.plan.requires[name]):
        if book.records[earlier].state is State.FAILED:
            end_for_good(book, record, State.FAILED, f"requires {earlier}, which has failed")
            return
        if not book.is_up(earlier) or book.records[earlier].stop is not None:
            return
    if any(book.records[earlier].state in COMING for earlier in book.plan.after[name]):
        return
    if any(book.records[other].state in ACTIVE | {State.BACKOFF} for other in book.plan.conflicts[name]):
        return
    _begin_start(book, record)


def _begin_start(book: Book, record: Record) -> None:
    unit = record.unit
    record.starts.append(book.now - record.waited_s)
    if len(record.starts) > max(unit.start_limit_burst, 1):
        record.starts.popleft()
    record.changed, record.status = False, ""
    timeout = unit.start_timeout_s
    if timeout is None:
        timeout = 0.0 if unit.oneshot else START_TIMEOUT_S
    # a simple unit without commands is up as soon as it is executed: nothing to time
    if timeout and (unit.oneshot or unit.notify or unit.start_pre or unit.start_post):
        book.set_timer(record, timeout)
    if unit.start_pre:
        book.enter(record, State.PREPARING)
        book.run_commands(record, unit.start_pre)
    else:
        _spawn_main(book, record)


def _spawn_main(book: Book, record: Record) -> None:
    book.enter(record, State.STARTING)
    record.has_main = True
    book.act(ev.Spawn(record.unit.name))


def on_prepared(book: Book, record: Record, event: Event) -> None:
    if failed := book.next_command(record, event, record.unit.start_pre, "ExecStartPre"):
        settle_end(book, record, failed)
    elif not record.queue:
        _spawn_main(book, record)


def on_started(book: Book, record: Record, event: Event) -> None:
    if not record.unit.oneshot and not record.unit.notify:
        on_ready(book, record)


def on_ended_while_starting(book: Book, record: Record, event: Event) -> None:
    """Take the end of a main process that was not up yet; for a oneshot that is how it comes up."""
    assert isinstance(event, ev.Exited)
    ending = event.ending
    if record.stop is None and is_success(record.unit, ending):
        if record.unit.oneshot:
            record.has_main, record.ending = False, ending
            on_ready(book, record)
            return
        if record.unit.notify:
            event = ev.Exited(event.unit, blame(ending, f"it {ending} before it was ready"))
    on_ended(book, record, event)


def on_ready(book: Book, record: Record) -> None:
    """Go on from where the main process does its work, or has done it."""
    if record.unit.start_post:
        book.enter(record, State.COMPLETING)
        book.run_commands(record, record.unit.start_post)
    else:
        _on_up(book, record)


def on_completed(book: Book, record: Record, event: Event) -> None:
    if failed := book.next_command(record, event, record.unit.start_post, "ExecStartPost"):
        if record.has_main:
            request_stop(book, record, Stop(Why.FAULT, str(failed)))
        else:
            settle_end(book, record, failed)
    elif not record.queue:
        _on_up(book, record)


def _on_up(book: Book, record: Record) -> None:
    book.cancel_timer(record)
    if not record.has_main:  # a oneshot
        end_for_good(book, record, State.DONE, str(record.ending))
        return
    book.enter(record, State.RUNNING)
    record.health_failures = 0
    if record.unit.watchdog_s:
        book.set_timer(record, record.unit.watchdog_s, Timer.WATCHDOG)
    if record.unit.health_check:
        book.set_timer(record, record.unit.health_interval_s, Timer.HEALTH)


def on_start_timeout(book: Book, record: Record, event: Event) -> None:
    request_stop(book, record, Stop(Why.FAULT, "it was not up in time"))
