# SPDX-License-Identifier: Apache-2.0
"""What a unit that is up is watched by: what it says itself, its watchdog, its health check; and ExecReload. Pure."""

from __future__ import annotations

from enclavekit_core.errors import LocalProtocolError

from enclavekit_enclave_init.supervision import events as ev
from enclavekit_enclave_init.supervision.book import Book
from enclavekit_enclave_init.supervision.ending import request_stop
from enclavekit_enclave_init.supervision.events import Ending, Event, Slot, Timer
from enclavekit_enclave_init.supervision.starting import on_ready
from enclavekit_enclave_init.supervision.state import Record, State, Stop, Why

MAX_STATUS_CHARS = 200  # it is shown on one line


def on_notified(book: Book, record: Record, event: ev.Notified) -> None:
    if status := event.variables.get("STATUS"):
        record.status = status[:MAX_STATUS_CHARS]
    if record.unit.notify and record.state is State.STARTING and event.variables.get("READY") == "1":
        on_ready(book, record)
    if record.unit.watchdog_s and record.state is State.RUNNING and event.variables.get("WATCHDOG") == "1":
        book.set_timer(record, record.unit.watchdog_s, Timer.WATCHDOG)


def on_duty_timer(book: Book, record: Record, timer: Timer) -> None:
    """Take a timer of WATCHDOG or HEALTH. Raises LocalProtocolError if the unit is not up."""
    if record.state is not State.RUNNING:
        raise LocalProtocolError(f"cannot take the {timer.value} timer for {record.unit.name}")
    name, check = record.unit.name, record.unit.health_check
    if timer is Timer.WATCHDOG:
        why = f"it has not fed its watchdog for {record.unit.watchdog_s:g} s"
        request_stop(book, record, Stop(Why.FAULT, why))
    elif record.checking:
        book.act(ev.DropCommand(name, Slot.HEALTH))
        on_health(book, record, Ending(failure="it took too long"))
    elif check is not None:
        record.checking = True
        book.act(ev.SpawnCommand(name, Slot.HEALTH, check.argv))
        book.set_timer(record, record.unit.health_timeout_s, Timer.HEALTH)


def on_health(book: Book, record: Record, ending: Ending) -> None:
    """Take the outcome of a health check. Raises LocalProtocolError if the unit is not up."""
    record.checking = False
    if record.state is not State.RUNNING:
        raise LocalProtocolError(f"cannot take a health check of {record.unit.name}")
    record.health_failures = 0 if ending.succeeded else record.health_failures + 1
    if not ending.succeeded:
        book.note(f"{record.unit.name}: health check {ending}")
    if record.health_failures >= record.unit.health_retries and not ending.succeeded:
        why = f"its health check has failed {record.health_failures} times"
        request_stop(book, record, Stop(Why.FAULT, why))
        return
    book.set_timer(record, record.unit.health_interval_s, Timer.HEALTH)


def on_reloaded(book: Book, record: Record, event: Event) -> None:
    if failed := book.next_command(record, event, record.unit.reload_commands, "ExecReload"):
        record.queue.clear()
        book.note(f"{record.unit.name}: {failed}")
    elif not record.queue:
        book.note(f"{record.unit.name} has reloaded")
