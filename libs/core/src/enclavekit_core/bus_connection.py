# SPDX-License-Identifier: Apache-2.0
"""A connection to the bus that outlives the server: retries for ever, and tells its owner when it was away.

Whoever uses it reads or writes state, not events: after each outage it compares its whole state with the bucket's, so
that nothing that happened meanwhile is missed. Needs nats-py, which the services on the bus depend on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from enclavekit_core.bus_config import inbox_prefix
from enclavekit_core.config import StrictConfig, load_config
from enclavekit_core.errors import ConfigError
from enclavekit_core.logs import get_logger

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js.client import JetStreamContext
    from nats.js.kv import KeyValue

CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 5.0
MIN_RETRY_S = 0.1  # at boot the server is a fraction of a second away
MAX_RETRY_S = 5.0
RETRY_GROWTH = 1.5  # of the pause, with each attempt that fails
PING_INTERVAL_S = 20  # a connection that hangs is noticed after two of these
LISTING_QUIET_S = 1.0  # a listing that hears nothing for so long asks whether anything is left
DELETED = ("DEL", "PURGE")

log = get_logger("bus")


class Credentials(StrictConfig, frozen=True):
    """The account of one service; the file that `bus_setup` writes."""

    user: str
    password: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One change of a bucket, or the end of what was there at the start."""

    key: str
    value: bytes | None
    """None: the key was deleted."""
    revision: int = 0
    """Rises with every change of the bucket, while it is the same bucket."""


def load_credentials(path: str | None) -> Credentials | None:
    """Read a credentials file; None is a server without accounts. Raises ConfigError."""
    return None if path is None else load_config(Credentials, path)


class Bus:
    """One service's connection. `changed` is set whenever a connection was made: at first, and after each outage."""

    def __init__(self, url: str, service: str, credentials: Credentials | None) -> None:
        """`url` may be several, with commas between them: the servers of a cluster."""
        self.url, self.service, self.credentials = url, service, credentials
        self.changed = asyncio.Event()
        self._client: Client | None = None
        self._closing = self._complained = False

    @property
    def is_connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    async def connect(self) -> None:
        """Connect, however long it takes. Raises ConfigError for a URL that can never work."""
        from nats.aio.client import Client

        self._client = Client()
        try:
            # with endless attempts it comes back only when it is connected
            await self._client.connect(
                self.url.split(","),
                name=self.service,
                user=self.credentials.user if self.credentials else None,
                password=self.credentials.password if self.credentials else None,
                inbox_prefix=inbox_prefix(self.service),
                connect_timeout=CONNECT_TIMEOUT_S,
                ping_interval=PING_INTERVAL_S,
                max_reconnect_attempts=-1,
                reconnect_time_wait=MIN_RETRY_S,  # type: ignore[arg-type]  # seconds; a float is fine
                allow_reconnect=True,
                error_cb=self._report,
                disconnected_cb=self._note_outage,
                reconnected_cb=self._note_return,
            )
        except ValueError as exc:
            raise ConfigError(f"bus address {self.url!r}", "", str(exc)) from exc
        self._note_connection()

    def jetstream(self) -> JetStreamContext:
        """Return a context for JetStream on this connection; `connect` comes first."""
        assert self._client is not None
        return self._client.jetstream(timeout=REQUEST_TIMEOUT_S)

    async def bucket(self, name: str, *, create: bool, replicas: int = 1, max_bytes: int | None = None) -> KeyValue:
        """Return a bucket. Raises nats.errors.Error, NotFoundError among them if it is not there and not to be made.

        Args:
            replicas: of a bucket that is made: servers of the cluster that keep a copy, 1..5. One that is there and
                has fewer is used as it is, with a warning.
            max_bytes: of a bucket that is made: what it may take of the store; writes beyond fail.
        """
        from nats.js.api import KeyValueConfig, StorageType
        from nats.js.errors import NotFoundError

        jetstream = self.jetstream()
        try:
            bucket = await jetstream.key_value(name)
        except NotFoundError:
            if not create:
                raise
        else:
            if create and replicas > 1:
                await _warn_of_fewer_copies(bucket, name, replicas)
            return bucket
        # one revision of each key: the history of a file's hashes is of no use, and the store is in memory
        config = KeyValueConfig(
            bucket=name, history=1, storage=StorageType.FILE, replicas=replicas, max_bytes=max_bytes
        )
        return await jetstream.create_key_value(config)

    async def close(self) -> None:
        """Disconnect; what was published is flushed before."""
        self._closing = True
        if self._client is not None:
            try:
                await self._client.close()
            except OSError:
                pass  # the server went before we did: there is nothing left to close

    async def _report(self, exc: Exception) -> None:
        cause = str(exc) or repr(exc)
        if self.is_connected:
            (log.warning if "violation" in cause else log.debug)("bus error", cause=cause)
            return
        assert self._client is not None
        if not self._complained:  # nats-py reports every attempt
            log.warning("cannot reach the bus, trying again", url=self.url, cause=cause)
            self._complained = True
        # nats-py waits as long each time: ten attempts a second for as long as the bus is away
        options = self._client.options
        options["reconnect_time_wait"] = min(RETRY_GROWTH * options["reconnect_time_wait"], MAX_RETRY_S)

    async def _note_outage(self) -> None:
        if not self._closing:
            log.warning("lost the bus", url=self.url)

    async def _note_return(self) -> None:
        log.info("found the bus again", url=self.url)
        self._note_connection()

    def _note_connection(self) -> None:
        assert self._client is not None
        self._client.options["reconnect_time_wait"] = MIN_RETRY_S
        self._complained = False
        self.changed.set()


async def _warn_of_fewer_copies(bucket: KeyValue, name: str, wanted: int) -> None:
    """Say that what was made with less cannot lose as many servers as its user has reckoned with."""
    config = (await bucket.status()).stream_info.config
    if (config.num_replicas or 1) < wanted:
        log.warning("the bucket keeps fewer copies than asked for", bucket=name, asked=wanted, has=config.num_replicas)


async def follow(bucket: KeyValue) -> AsyncGenerator[Entry | None]:
    """Yield each entry of a bucket, None when all that was there has been seen, then every change, without a gap.

    What was there ends with the newest message at the time of asking, or with one that replaced it. Neither nats-py's
    own end marker nor the counts in the messages say so: the marker comes too early when the server's answer overtakes
    the messages, and the counts never reach zero when a message that was counted is replaced before it is delivered.
    """
    watcher = await bucket.watchall()
    try:
        state = (await bucket.status()).stream_info.state
        seen, count, newest = 0, 0, state.last_seq if state.messages else 0
        listed = newest == 0
        if listed:
            yield None
        while True:
            try:
                if watcher._updates.empty():
                    entry = await watcher.updates(None if listed else LISTING_QUIET_S)  # type: ignore[no-untyped-call]
                else:  # a timer for each of a hundred thousand entries would take longer than the entries
                    entry = watcher._updates.get_nowait()
            except TimeoutError:
                if await _is_delivered(watcher, count):
                    newest = seen
            else:
                if entry is not None:
                    seen, count = entry.revision or seen, count + 1
                    value = None if entry.operation in DELETED else entry.value or b""
                    yield Entry(entry.key, value, entry.revision or 0)
            if not listed and seen >= newest:
                listed = True
                yield None
    finally:
        await watcher.stop()  # type: ignore[no-untyped-call]  # nats-py left it without annotations


async def _is_delivered(watcher: KeyValue.KeyWatcher, count: int) -> bool:
    """Whether the server has nothing left after `count` entries: the newest message was removed, not replaced."""
    assert watcher._sub is not None  # watchall made it
    consumer = await watcher._sub.consumer_info()
    # its stream sequence also counts what it skipped; its own sequence starts again if nats-py had to make it anew
    return consumer.num_pending == 0 and (consumer.delivered is None or consumer.delivered.consumer_seq <= count)


async def list_entries(bucket: KeyValue) -> dict[str, bytes]:
    """Return the whole content of a bucket."""
    entries: dict[str, bytes] = {}
    changes = follow(bucket)
    try:
        async for entry in changes:
            if entry is None:
                break
            if entry.value is None:
                entries.pop(entry.key, None)
            else:
                entries[entry.key] = entry.value
    finally:
        await changes.aclose()
    return entries
