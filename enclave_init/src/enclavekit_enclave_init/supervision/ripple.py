# SPDX-License-Identifier: Apache-2.0
"""What the end of one unit means for others: who requires it fails, who is bound to it goes with it, and the one with
OnExit takes everything along. Pure.
"""

from __future__ import annotations

from enclavekit_enclave_init.supervision.book import Book
from enclavekit_enclave_init.supervision.events import Ending, Outcome
from enclavekit_enclave_init.supervision.state import ACTIVE, Record, State, Stop, Why


def mark_stop(record: Record, stop: Stop) -> None:
    """Note that an active unit is to stop, as soon as those that lean on it have: `settle` begins it.

    The first reason holds, except against the end.
    """
    if record.stop is None or (stop.why is Why.END and record.stop.why is not Why.END):
        record.stop = stop


def end_for_good(book: Book, record: Record, state: State, why: str) -> None:
    """Let a unit be DONE or FAILED, with all that follows from it."""
    book.enter(record, state, why)
    name = record.unit.name
    book.note(f"{name} {why}")
    if state is State.FAILED:
        for dependent in book.dependents_of(name):
            _lose_requirement(book, dependent, name)
    elif not record.unit.oneshot:
        release_bound(book, name, Stop(Why.REQUEST, f"is bound to {name}, which has ended"))
    if record.unit.powers_off:
        ending = record.ending or Ending()
        stop_everything(book, Outcome(f"{name} {why}", name, ending.exit_status, ending.signal, ending.out_of_memory))
    forget_if_removed(book, record)


def _lose_requirement(book: Book, dependent: Record, name: str) -> None:
    reason = f"requires {name}, which has failed"
    if dependent.stop is not None:
        if dependent.stop.why is Why.AGAIN:
            dependent.stop = Stop(Why.LOST, reason)
    elif dependent.state in ACTIVE:
        mark_stop(dependent, Stop(Why.LOST, reason))
        # those behind it stop first, hence they must know now
        for further in book.dependents_of(dependent.unit.name):
            _lose_requirement(book, further, dependent.unit.name)
    elif dependent.state in (State.WAITING, State.BACKOFF):
        book.cancel_timer(dependent)
        end_for_good(book, dependent, State.FAILED, reason)


def release_bound(book: Book, name: str, stop: Stop) -> None:
    """Have those that are bound to the unit stop with it."""
    for bound, to in book.plan.binds_to.items():
        record = book.records.get(bound)
        if name not in to or record is None:
            continue
        if record.state in ACTIVE:
            for further in book.dependents_of(bound):
                if further.state in ACTIVE and further.stop is None:
                    mark_stop(further, Stop(stop.why, f"requires {bound}"))
            mark_stop(record, stop)
        elif record.state in (State.WAITING, State.BACKOFF) and stop.why is not Why.AGAIN:
            cancel_start(book, record, stop.reason)


def stop_everything(book: Book, outcome: Outcome) -> None:
    """Have everything stop, then end the enclave so. Only the first outcome counts."""
    if book.outcome is not None:
        return
    book.outcome = outcome
    book.note(f"everything stops: {outcome.reason}")
    for record in book.records.values():
        if record.state in ACTIVE:
            mark_stop(record, Stop(Why.END, outcome.reason))
        elif record.state in (State.BACKOFF, State.WAITING):
            cancel_start(book, record, outcome.reason)


def cancel_start(book: Book, record: Record, reason: str) -> None:
    """Have a unit without a process not start."""
    book.cancel_timer(record)
    book.enter(record, State.STOPPED, reason)


def forget_if_removed(book: Book, record: Record) -> None:
    """Drop a unit that has no process and no file any more."""
    if record.removed and record.state not in ACTIVE and not record.left_behind:
        book.records.pop(record.unit.name, None)
