"""The ZeroMQ shell of `sequence`: a subscription and, when asked for, a replay socket for each data-parallel rank.

The sockets are polled, not awaited: an awaited ZeroMQ socket costs 30-50 us a frame, a polled one 3. Whoever polls is woken by
the first frame after a pause (`on_arrival`) and then polls in ticks, so that one event is on its way at once and a flood
costs one wake-up a tick. ZeroMQ's descriptors stay readable until the socket is polled: one that has woken is not watched
again before that, or it would wake the event loop without a pause for as long as the tick lasts.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import cast

import zmq

from worker_agent.engine_info import EventEndpoint
from worker_agent.sequence import AskReplay, Begin, Deliver, Hole, RankSequence, Step

log = logging.getLogger(__name__)

FRAMES_PER_POLL_MAX = 256
"""Frames read from one socket per poll; the rest waits for the next, so that a flood cannot hold the event loop."""
ASKED_FIRST = 2
"""Messages of a look before which a socket is asked whether it has one."""
SUBSCRIPTION_FRAMES_MAX = 100_000
REPLAY_FRAMES_MAX = 100_000
RECONNECT_MS = 50
RECONNECT_MS_MAX = 1_000
END_OF_REPLAY = -1
_EVENTS, _FD, _POLLIN, _NOBLOCK = int(zmq.EVENTS), int(zmq.FD), int(zmq.POLLIN), int(zmq.NOBLOCK)
"""Plain numbers: pyzmq's enumerations cost more than what they ask for."""


class EventSourceError(RuntimeError):
    """An endpoint that ZeroMQ does not accept."""


@dataclass(frozen=True, slots=True)
class RankEvent:
    """One thing to apply, in order, to the block set of a rank; payloads that follow one another are one."""

    rank: int
    what: list[bytes] | Begin | Hole


class RankSource:
    """One rank's sockets."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: EventEndpoint, now: float, *, virgin: bool) -> None:
        self._context = context
        self._endpoint = endpoint
        self._replay: zmq.Socket[bytes] | None = None
        self._todo: deque[list[bytes] | Begin | Hole] = deque()
        self._watched: tuple[asyncio.AbstractEventLoop, list[int]] | None = None
        self._subscription = _socket(context, zmq.SUB, SUBSCRIPTION_FRAMES_MAX)
        self._subscription.setsockopt(zmq.SUBSCRIBE, endpoint.topic.encode())
        self._monitor = self._subscription.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        try:
            _connect(self._subscription, endpoint.publish)
        except EventSourceError:
            self._monitor.close(linger=0)
            raise
        self._descriptors = (_descriptor(self._subscription), _descriptor(self._monitor))
        self._left = False  # the last poll did not take everything
        self.malformed: Counter[str] = Counter()
        self.frames = 0
        self.sequence = RankSequence(now, can_replay=bool(endpoint.replay), virgin=virgin)
        self._carry_out(self.sequence.start(now))

    @property
    def rank(self) -> int:
        return self._endpoint.rank

    @property
    def has_more(self) -> bool:
        """Whether the last poll left something that does not wake anybody: more than it takes, or a replay that goes on."""
        return self._left or self.sequence.replaying

    def on_arrival(self, wake: Callable[[], None]) -> None:
        """Calls `wake` in the running event loop once there is something to poll. Poll before asking again."""
        if self._watched is not None:
            return

        def arrived() -> None:
            self._unwatch()
            wake()

        loop, descriptors = asyncio.get_running_loop(), list(self._descriptors)
        if self._replay is not None:
            descriptors.append(_descriptor(self._replay))
        self._watched = (loop, descriptors)
        for descriptor in descriptors:
            loop.add_reader(descriptor, arrived)

    def _unwatch(self) -> None:
        if self._watched is not None:
            loop, descriptors = self._watched
            self._watched = None
            if not loop.is_closed():
                for descriptor in descriptors:
                    loop.remove_reader(descriptor)

    def restart(self, now: float) -> None:
        """Another engine answers at this address now."""
        self._carry_out(self.sequence.restart(now))

    def poll(self, now: float) -> Iterator[RankEvent]:
        """Everything that has arrived, up to a bound."""
        for _ in _receive(self._monitor):
            self._carry_out(self.sequence.disconnected(now))
        taken = 0
        for frames in _receive(self._subscription):
            taken += 1
            self._live(frames, now)
        self._left = taken == FRAMES_PER_POLL_MAX
        for frames in _receive(self._replay):
            socket = self._replay
            self._answer(frames, now)
            if self._replay is not socket:
                break  # answers of a replay that was given up
        self._carry_out(self.sequence.tick(now))
        if not self.sequence.replaying:
            self._close_replay()  # one socket less to ask
        while self._todo:
            yield RankEvent(self.rank, self._todo.popleft())

    def close(self) -> None:
        self._unwatch()
        self._subscription.disable_monitor()
        self._monitor.close(linger=0)
        self._subscription.close(linger=0)
        self._close_replay()

    def _close_replay(self) -> None:
        if self._replay is not None:
            self._unwatch()  # while its descriptor is its own
            self._replay.close(linger=0)
            self._replay = None

    def _live(self, frames: list[bytes], now: float) -> None:
        if len(frames) != 3 or len(frames[1]) != 8:
            self._malformed("frame")
            return
        self.frames += 1
        number, payload = int.from_bytes(frames[1], "big"), frames[2]
        if self.sequence.follows(number, payload, now):
            self._deliver(payload)
        else:
            self._carry_out(self.sequence.live(number, payload, now))

    def _answer(self, frames: list[bytes], now: float) -> None:
        # ["", topic, sequence, payload]; up to vLLM 0.25 without the topic.
        if len(frames) < 3 or len(frames[-2]) != 8:
            self._malformed("replay frame")
            return
        number = int.from_bytes(frames[-2], "big", signed=True)
        if number == END_OF_REPLAY:
            self._carry_out(self.sequence.replay_ended(now))
        else:
            self._carry_out(self.sequence.replayed(number, frames[-1], now))

    def _carry_out(self, steps: list[Step]) -> None:
        for step in steps:
            if isinstance(step, AskReplay):
                self._ask(step.start)
            elif isinstance(step, Deliver):
                self._deliver(step.payload)
            else:
                self._todo.append(step)

    def _deliver(self, payload: bytes) -> None:
        last = self._todo[-1] if self._todo else None
        if isinstance(last, list):
            last.append(payload)
        else:
            self._todo.append([payload])

    def _ask(self, start: int) -> None:
        self._unwatch()  # to be watched with the socket that comes
        self._close_replay()
        self._replay = _socket(self._context, zmq.DEALER, REPLAY_FRAMES_MAX)
        _connect(self._replay, self._endpoint.replay)
        self._replay.send_multipart([b"", start.to_bytes(8, "big")], zmq.NOBLOCK)

    def _malformed(self, kind: str) -> None:
        self.malformed[kind] += 1
        if self.malformed[kind] == 1:
            log.warning("malformed %s from the engine's event socket", kind, extra={"f": {"rank": self.rank}})


class EventSource:
    """All ranks of one engine. virgin: the engine had computed nothing before this was built."""

    def __init__(self, endpoints: tuple[EventEndpoint, ...], now: float, *, virgin: bool = False) -> None:
        """EventSourceError: an endpoint that is none."""
        # The process's own, never ended: one of ours, forgotten with a socket open, would hang the garbage collector.
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._ranks: list[RankSource] = []
        try:
            for endpoint in endpoints:
                self._ranks.append(RankSource(self._context, endpoint, now, virgin=virgin))
        except BaseException:
            self.close()
            raise

    @property
    def ranks(self) -> tuple[int, ...]:
        return tuple(rank.rank for rank in self._ranks)

    @property
    def behind(self) -> bool:
        """Whether any rank is waiting for payloads that it missed."""
        return any(rank.sequence.behind for rank in self._ranks)

    @property
    def has_more(self) -> bool:
        """Whether there is more to poll already, or soon, without an arrival."""
        return any(rank.has_more for rank in self._ranks)

    @property
    def frames(self) -> int:
        return sum(rank.frames for rank in self._ranks)

    def on_arrival(self, wake: Callable[[], None]) -> None:
        """Calls `wake` in the running event loop once there is something to poll: frames of any rank, or a connection that
        broke. Poll before asking again."""
        for rank in self._ranks:
            rank.on_arrival(wake)

    def poll(self, now: float) -> Iterator[RankEvent]:
        """What has arrived, in order within each rank. Never waits."""
        for rank in self._ranks:
            yield from rank.poll(now)

    def restart(self, ranks: tuple[int, ...], now: float) -> None:
        """Another engine answers for these ranks now."""
        for rank in self._ranks:
            if rank.rank in ranks:
                rank.restart(now)

    def close(self) -> None:
        for rank in self._ranks:
            rank.close()


def _socket(context: zmq.Context[zmq.Socket[bytes]], kind: int, frames_max: int) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.setsockopt(zmq.RCVHWM, frames_max)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX)
    socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
    socket.setsockopt(zmq.IPV6, 1)
    return socket


def _descriptor(socket: zmq.Socket[bytes]) -> int:
    return cast("int", socket.getsockopt(_FD))


def _connect(socket: zmq.Socket[bytes], endpoint: str) -> None:
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        raise EventSourceError(f"{endpoint!r} is not an address for KV events: {error}") from error


def _receive(socket: zmq.Socket[bytes] | None) -> Iterator[list[bytes]]:
    """The messages that are there. `recv_multipart` asks after every frame whether another follows: half as much again. Whether
    there is a message is asked of the first two, for an exception would be most of an idle look; to ask would be a third of
    each that follows."""
    if socket is None:
        return
    receive = socket.recv
    for number in range(FRAMES_PER_POLL_MAX):
        if number < ASKED_FIRST and not cast("int", socket.getsockopt(_EVENTS)) & _POLLIN:
            return
        try:
            frames = [receive(_NOBLOCK, copy=False)]
            while frames[-1].more:
                frames.append(receive(_NOBLOCK, copy=False))
        except zmq.Again:
            return
        yield [frame.bytes for frame in frames]
