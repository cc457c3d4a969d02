# SPDX-License-Identifier: Apache-2.0
"""Keeps the buckets equal to what the tracker knows, over any outage of the bus.

Changes are collected per path, the last one wins, and are written in batches; a batch is over before the next begins,
so that two writes of one key never overtake each other. After every new connection both buckets are compared whole.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enclavekit_core.bus import HASH_BYTES, key_of_path, path_of_key
from enclavekit_core.bus_connection import MAX_RETRY_S, MIN_RETRY_S, REQUEST_TIMEOUT_S, Bus, follow
from enclavekit_core.errors import RemoteProtocolError
from enclavekit_core.file_record import decode_record, encode_record
from enclavekit_core.logs import get_logger

from enclavekit_fs_monitor.file_state import State
from enclavekit_fs_monitor.metrics import Counters
from enclavekit_fs_monitor.tombstones import Tombstones
from enclavekit_fs_monitor.tracker import Record, Tracker, record_of

if TYPE_CHECKING:
    from nats.js.api import PubAck
    from nats.js.client import JetStreamContext

MAX_BATCH = 256  # paths in flight: hides the round trip, and is lost and repeated whole when the bus goes away
DELETION = {"KV-Operation": "DEL"}  # what makes a message a deletion: NATS ADR-8

log = get_logger("fs-monitor")


@dataclass(frozen=True, slots=True)
class Buckets:
    hashes: str
    records: str
    """Empty: none."""
    replicas: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        return (self.records, self.hashes) if self.records else (self.hashes,)


class Publisher:
    """Writes what the tracker knows below known roots."""

    def __init__(
        self,
        bus: Bus,
        buckets: Buckets,
        tracker: Tracker,
        counters: Counters,
        *,
        is_known: Callable[[bytes], bool],
        acknowledge: Callable[[bytes], None],
    ) -> None:
        """
        Args:
            is_known: whether a path lies below a root that has been scanned: if the tracker does not have it, it has
                gone, and what the bus says about it is left over.
            acknowledge: told each path whose last state is on the bus.
        """
        self._bus, self._buckets, self._tracker, self._counters = bus, buckets, tracker, counters
        self._is_known, self._acknowledge = is_known, acknowledge
        self._wanted: dict[bytes, tuple[bytes, int] | None] = {}
        self._work = asyncio.Event()
        self.idle = asyncio.Event()
        """Set while all that was asked for is on the bus."""
        self._found: dict[bytes, dict[str, bytes]] = {}
        """What an earlier run left on the bus about files that are still to be scanned, or hashed."""
        self._is_comparing = self._has_written = False
        self._stream: JetStreamContext | None = None
        self._tombstones = Tombstones()
        self.last_error = ""
        """Why the bus does not take our writes now; empty while it does."""

    def __len__(self) -> int:
        return len(self._wanted)

    def put(self, path: bytes, value: bytes, generation: int) -> None:
        record = self._tracker.get(path)
        assert record is not None  # its hash has just been found
        if self._is_comparing or path in self._wanted or not self._is_there(record, self._found.pop(path, {})):
            self._want(path, (value, generation))
        else:
            self._acknowledge(path)

    def withdraw(self, path: bytes) -> None:
        self._found.pop(path, None)
        self._want(path, None)

    def settle_found(self) -> None:
        """A root has been scanned: the tracker knows its files, so that what the bus says of others is left over."""
        for path in [path for path in self._found if self._is_known(path)]:
            if self._tracker.get(path) is None:
                del self._found[path]
                self._want(path, None)
            else:
                # its first hash is on the way; what fails before it comes shall take the old one away
                self._tracker.note_on_bus(path)
                self._withdraw_if_failed(path)

    def _want(self, path: bytes, state: tuple[bytes, int] | None) -> None:
        self._wanted[path] = state
        self.idle.clear()
        self._work.set()

    async def run(self) -> None:
        """Publish until cancelled."""
        from nats.errors import Error

        await self._bus.connect()
        self._stream = self._bus.jetstream()
        delay_s, compared = MIN_RETRY_S, False
        while True:
            try:
                if not compared or self._bus.changed.is_set():
                    self._bus.changed.clear()
                    await self._compare()
                    compared = True
                if self._wanted:
                    await self._write_batch()
                else:
                    self._work.clear()
                    self.idle.set()
                    await self._wait_for_work()
                delay_s, self.last_error = MIN_RETRY_S, ""
            except (Error, TimeoutError, OSError) as exc:
                cause = str(exc) or repr(exc)
                if not self.last_error:
                    log.warning("cannot write to the bus, trying again", cause=cause)
                self.last_error = cause
                self._counters.bus_errors += 1
                compared = False  # the server may have lost it, and what it did with the last batch is not known
                self.idle.clear()
                if self._bus.is_connected:
                    await asyncio.sleep(delay_s)
                    delay_s = min(2 * delay_s, MAX_RETRY_S)
                else:
                    await self._bus.changed.wait()

    async def _wait_for_work(self) -> None:
        due_s = self._tombstones.next_due_s()
        waits = [asyncio.ensure_future(self._work.wait()), asyncio.ensure_future(self._bus.changed.wait())]
        try:
            timeout_s = None if due_s is None else max(0.0, due_s - time.monotonic())
            done, _ = await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if not done:
            assert self._stream is not None
            await self._tombstones.purge_due(self._stream, time.monotonic())

    async def _compare(self) -> None:
        """Ask for whatever differs between the buckets and what is known."""
        self._found.clear()
        self._is_comparing = True
        try:
            for name in self._buckets.names:
                await self._compare_bucket(name)
        finally:
            self._is_comparing = False
        self._drop_what_is_there()
        self.settle_found()

    async def _compare_bucket(self, name: str) -> None:
        bucket = await self._bus.bucket(name, create=True, replicas=self._buckets.replicas)
        seen: set[bytes] = set()
        changes = follow(bucket)
        try:
            async for entry in changes:
                if entry is None:
                    break
                try:
                    path = path_of_key(entry.key)
                except RemoteProtocolError:
                    log.warning("the bus holds a key that is not ours", bucket=name, key=entry.key[:100])
                    continue
                if entry.value is None:
                    self._tombstones.add(name, entry.key, entry.revision, time.monotonic())
                    seen.discard(path)
                    self._found.get(path, {}).pop(name, None)
                elif self._compare_one(name, path, entry.value):
                    seen.add(path)
        finally:
            await changes.aclose()
        for path, record in self._tracker.closed():
            if path not in seen and path not in self._wanted:
                assert record.value is not None
                self._want(path, (record.value, record.generation))

    def _drop_what_is_there(self) -> None:
        """Of what was hashed while an earlier run's hashes were listed, much is on the bus already."""
        for path, state in list(self._wanted.items()):
            record, found = self._tracker.get(path), self._found.pop(path, {})
            if self._has_written or record is None or state != (record.value, record.generation):
                continue
            if self._is_there(record, found):
                del self._wanted[path]
                self._acknowledge(path)

    def _compare_one(self, bucket: str, path: bytes, value: bytes) -> bool:
        """Return whether the bus has the state of `path`; ask for its deletion if it should not have any."""
        record = self._tracker.get(path)
        if not self._has_written or not self._is_known(path):
            self._found.setdefault(path, {})[bucket] = value  # judged when both buckets have been listed
        elif record is None and path not in self._wanted:
            self._want(path, None)
        if record is None:
            return False
        self._tracker.note_on_bus(path)
        self._withdraw_if_failed(path)
        return record.state is State.CLOSED and self._agrees(bucket, record, value)

    def _withdraw_if_failed(self, path: bytes) -> None:
        """Ask for the deletion of a hash that is not true any more, and that no other is about to replace."""
        record = self._tracker.get(path)
        if record is not None and record.value is None and record.attempts:
            self._found.pop(path, None)
            self._want(path, None)

    def _is_there(self, record: Record, found: dict[str, bytes]) -> bool:
        """Whether all buckets say of a file what they should."""
        return found.keys() == set(self._buckets.names) and all(
            self._agrees(name, record, said) for name, said in found.items()
        )

    def _agrees(self, bucket: str, record: Record, said: bytes) -> bool:
        """Whether a bucket says of a file what it should."""
        if bucket == self._buckets.hashes:
            return record.digest == said
        assert record.value is not None
        try:
            found = decode_record(said)
        except RemoteProtocolError:
            return False
        return found == record_of(record.value, found.generation)  # an earlier run's generation: it only must not fall

    async def _write_batch(self) -> None:
        self._has_written = True
        batch = {path: self._wanted[path] for path in list(self._wanted)[:MAX_BATCH]}
        acks: list[asyncio.Future[PubAck]] = []
        places: list[tuple[str, str]] = []
        try:
            for path, state in batch.items():
                key = key_of_path(path)
                for name in self._buckets.names:
                    acks.append(await self._send(name, key, state))
                    places.append((name, key))
            _, unanswered = await asyncio.wait(acks, timeout=REQUEST_TIMEOUT_S)
            if unanswered:
                raise TimeoutError("the bus does not answer")
            answers = [ack.result() for ack in acks]
        finally:
            for ack in acks:
                ack.cancel()  # done ones do not mind
        now_s = time.monotonic()
        per_path = len(self._buckets.names)
        for index, (path, state) in enumerate(batch.items()):
            if state is None:
                for place, answer in zip(
                    places[index * per_path : (index + 1) * per_path], answers[index * per_path :], strict=False
                ):
                    self._tombstones.add(*place, answer.seq, now_s)
                self._counters.withdrawn += 1
            else:
                self._counters.published += 1
            if self._wanted.get(path, b"") == state:  # b"": no longer wanted at all, which no state equals
                del self._wanted[path]
                self._acknowledge(path)

    async def _send(self, bucket: str, key: str, state: tuple[bytes, int] | None) -> asyncio.Future[PubAck]:
        assert self._stream is not None
        subject = f"$KV.{bucket}.{key}"
        if state is None:
            return await self._stream.publish_async(subject, headers=dict(DELETION))
        value, generation = state
        is_record = bucket == self._buckets.records
        payload = encode_record(record_of(value, generation)) if is_record else value[:HASH_BYTES]
        return await self._stream.publish_async(subject, payload)
