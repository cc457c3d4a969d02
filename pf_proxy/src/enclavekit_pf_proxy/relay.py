# SPDX-License-Identifier: Apache-2.0
"""Two connected sockets and the flows between them: lets them move, passes ends on as `HalfClose` says, ends idle ones.

Made for an edge-triggered event loop: a turn moves until neither flow can go on, or until its share is used up.
"""

from __future__ import annotations

import select
import socket
from typing import TYPE_CHECKING, Protocol

from enclavekit_pf_proxy.flow import Flow, NotAllowed, Shared
from enclavekit_pf_proxy.half_close import Action, Event, HalfClose, State
from enclavekit_pf_proxy.limits import Limits
from enclavekit_pf_proxy.sockets import close_socket

if TYPE_CHECKING:
    from enclavekit_pf_proxy.loop import Loop

MAX_ROUNDS = 8  # moves of one flow before others get their turn
TURN_BYTES = 1024 * 1024  # after so many too: a fraction of a millisecond
EPOLLIN, EPOLLOUT = select.EPOLLIN, select.EPOLLOUT
READABLE = EPOLLIN | select.EPOLLPRI | select.EPOLLRDHUP | select.EPOLLET
BOTH = READABLE | EPOLLOUT
PENDING = ((), (0,), (1,), (0, 1))  # flows by bits
ENDING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
RARE = ENDING | select.EPOLLPRI


class Owner(Protocol):
    """Whose relay it is."""

    def relay_expired(self, idle_s: float) -> None:
        """It has been idle for `idle_s` seconds, which is too long, and will end."""

    def relay_ended(self) -> None:
        """It has closed its sockets."""


class Relay:
    """A task of the loop. Owns two connected, non-blocking sockets and closes them."""

    __slots__ = ("_hung", "_limits", "_linger_until", "_loop", "_owner", "_pending", "_rules", "_writable", "closed",
                 "flows", "last_activity", "sockets")  # fmt: skip

    def __init__(
        self,
        client: socket.socket,
        upstream: socket.socket,
        loop: Loop,
        shared: Shared,
        limits: Limits,
        owner: Owner,
        held: tuple[bytes, bytes] = (b"", b""),
    ) -> None:
        """`held`: bytes that go first, to the upstream and to the client."""
        self.sockets = (client, upstream)
        self._loop, self._limits, self._owner = loop, limits, owner
        self._rules = HalfClose()
        self.last_activity = 0.0
        """When bytes moved last, in the loop's clock."""
        self._linger_until = 0.0
        self._pending = 0b11  # the flows that may go on, as bits
        self._hung = 0  # the sides that are closed both ways, as bits
        self._writable = 0  # the sides watched for room, as bits
        self.closed = False
        self.flows = (Flow(client, upstream, shared, held[0]), Flow(upstream, client, shared, held[1]))

    def start(self, now: float) -> None:
        """Begin: the sockets' events are the relay's from now on."""
        self.last_activity = now
        for side in (0, 1):
            self._loop.watch(self.sockets[side].fileno(), self, side, READABLE)
        self._plan_idle()
        self._loop.enqueue(self)

    # the loop's side

    def notice(self, side: int, mask: int) -> bool:
        """Take epoll's word about one side: what it sends is flow `side`, what it takes is the other one."""
        if mask & EPOLLIN:
            self._pending |= 1 << side
        if mask & EPOLLOUT:
            self._pending |= 2 >> side
        if mask & RARE:
            self._notice_rare(side, mask)
        flows = self.flows
        return flows[0].is_bulk or flows[1].is_bulk

    def run(self, now: float) -> bool:
        """Move what can be moved; return whether more could be moved at once."""
        if self._hung:
            self._hang_up()
        pending, self._pending = self._pending, 0
        states = self._rules.states
        for number in PENDING[pending]:
            if self.closed:
                return False
            flow = self.flows[number]
            try:
                outcome = flow.move(states[number])
                message = outcome is False and not flow.sink_full  # as a rule
                if not message and self._go_on_moving(number, flow, outcome):
                    self._pending |= 1 << number
            except NotAllowed:
                self.close(reset=True)
                return False
            if flow.moved:
                flow.moved, self.last_activity = False, now
        if self._linger_until < 0.0 and not self.closed:
            self._linger_until = now + self._limits.linger_s
            self._loop.timers.set(self, self._linger_until)
        return self._pending != 0 and not self.closed

    def expire(self, now: float) -> float | None:
        if self._linger_until:
            if now < self._linger_until:
                return self._linger_until
            self.close(reset=False)
            return None
        idle_s = self._idle_s()
        if not idle_s:
            return None
        due = self.last_activity + idle_s
        if now < due:
            return due
        self._owner.relay_expired(idle_s)
        self.close(reset=True)
        return None

    def close(self, *, reset: bool) -> None:
        """Close everything. `reset` tells TCP peers that this is no regular end."""
        if self.closed:
            return
        self.closed = True
        self._loop.drop(self)
        for sock in self.sockets:
            self._loop.release(sock.fileno())
            close_socket(sock, reset=reset)
        for flow in self.flows:
            flow.give_up_pipe()
        self._owner.relay_ended()

    # flows

    def _notice_rare(self, side: int, mask: int) -> None:
        if mask & select.EPOLLPRI:
            self.flows[side].expect_urgent()
        if mask & ENDING:
            self.flows[side].expect_end()
            self._pending = 0b11
            if mask & select.EPOLLHUP:
                self._hung |= 1 << side

    def _go_on_moving(self, number: int, flow: Flow, outcome: Event | bool) -> bool:
        """Let one flow move for as long as it can, or its share lasts; return whether it could go on.

        Args: outcome: of its first move.
        Raises: NotAllowed.
        """
        states = self._rules.states
        more, rounds, enough = True, 0, flow.total + TURN_BYTES
        while True:
            if outcome is False:
                more = False
                break
            if outcome is not True:
                self._apply(number, outcome)
                if self.closed:
                    return False
            elif (rounds := rounds + 1) >= MAX_ROUNDS or flow.total >= enough:
                break
            outcome = flow.move(states[number])
        if flow.sink_full:
            flow.sink_full = False
            self._want_write(1 - number)
        return more

    def _want_write(self, side: int) -> None:
        """Have EPOLLOUT reported: from now on each time that the side has room again."""
        if not self._writable >> side & 1:
            self._writable |= 1 << side
            self._loop.watch(self.sockets[side].fileno(), self, side, BOTH)

    def _hang_up(self) -> None:
        """What is closed both ways (EPOLLHUP) takes nothing: the flow towards it has lost its sink."""
        for side in (0, 1):
            towards = 1 - side
            takes = self._rules.states[towards] in (State.OPEN, State.DRAINING)
            if self._hung >> side & 1 and takes and not self.closed:
                self._apply(towards, Event.SINK_FAILED)
        self._hung = 0

    def _apply(self, number: int, event: Event) -> None:
        for flow, action in self._rules.receive(number, event):
            match action:
                case Action.SHUT_DOWN_SINK:
                    try:
                        self.flows[flow].sink.shutdown(socket.SHUT_WR)
                    except OSError:
                        pass  # the sink has gone meanwhile; its own flow notices
                case Action.LINGER:
                    self._linger_until = -1.0  # from the end of this turn on
                case Action.CLOSE:
                    self.close(reset=False)
                    return
        if event is Event.SOURCE_FAILED:
            self._pending |= 0b11  # the other flow has lost its sink
        self._plan_idle()

    # idleness

    def _plan_idle(self) -> None:
        if idle_s := self._idle_s():
            self._loop.timers.set(self, self.last_activity + idle_s)

    def _idle_s(self) -> float:
        """Return how long it may be silent now; 0: for ever."""
        limits, states = self._limits, self._rules.states
        if (states[0] is State.OPEN) == (states[1] is State.OPEN):
            return limits.idle_timeout_s
        return min(filter(None, (limits.half_close_timeout_s, limits.idle_timeout_s)), default=0.0)
