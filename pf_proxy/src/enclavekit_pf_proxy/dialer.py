# SPDX-License-Identifier: Apache-2.0
"""Connects to the upstream off the event loop, because name resolution and handshakes block.

One thread per connection being made, so that none waits for another; the server's connection limit bounds them.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from enclavekit_core.address import Address
from enclavekit_core.errors import TransportError
from enclavekit_core.streams import connect


@dataclass(frozen=True, slots=True)
class Dialled:
    """An attempt that has ended: `upstream` is connected, or `error` says why not."""

    client: socket.socket
    upstream: socket.socket | None
    error: TransportError | None


class Dialer:
    """Makes upstream connections; results are collected with `take`."""

    def __init__(self, upstream: Address, timeout_s: float, wake: Callable[[], None]) -> None:
        """`wake` is called from other threads whenever a result is ready."""
        self._upstream, self._timeout_s, self._wake = upstream, timeout_s, wake
        self._results: deque[Dialled] = deque()
        self.pending: set[socket.socket] = set()
        """Clients whose upstream is being connected to."""
        self._lock = threading.Lock()
        self._closed = False

    def start(self, client: socket.socket) -> None:
        """Connect for `client`. Raises RuntimeError if no thread can be started."""
        # daemon: a stopping proxy does not wait for a connect timeout
        threading.Thread(target=self._dial, args=(client,), daemon=True, name="dial").start()
        self.pending.add(client)

    def take(self) -> list[Dialled]:
        """Return the attempts that have ended since the last call."""
        done = []
        while self._results:
            result = self._results.popleft()
            self.pending.discard(result.client)
            done.append(result)
        return done

    def close(self) -> None:
        """Let attempts under way end unheard; `wake` is not called any more. The clients are the caller's."""
        with self._lock:
            self._closed = True
        for result in self.take():
            if result.upstream is not None:
                result.upstream.close()

    def _dial(self, client: socket.socket) -> None:
        try:
            result = Dialled(client, connect(self._upstream, self._timeout_s), None)
        except TransportError as exc:
            result = Dialled(client, None, exc)
        except Exception as exc:  # whatever it is, the loop must hear of it or the client would wait for ever
            result = Dialled(client, None, TransportError("connect to", self._upstream, exc))
        with self._lock:
            if not self._closed:
                self._results.append(result)
                self._wake()
            elif result.upstream is not None:
                result.upstream.close()
