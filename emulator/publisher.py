"""The sockets of KV events: PUB for live batches, ROUTER for replays."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import zmq
import zmq.asyncio

from emulator.block_pool import Event
from emulator.kv_events import END_SEQUENCE, TOPIC, EventEncoder, ReplayBuffer, frames

log = logging.getLogger(__name__)

_EVERYWHERE = ("0.0.0.0", "::", "*")
HIGH_WATER_MARK = 100_000
"""Messages that may wait for one slow subscriber before they are dropped."""


class Publisher:
    """Publishes batches and answers replay requests. `open` first, `close` last."""

    def __init__(self, encoder: EventEncoder, *, host: str, port: int, replay_port: int, buffer: ReplayBuffer) -> None:
        """port, replay_port: 0 takes a free one."""
        self._encoder = encoder
        self._host = host
        self._ports = (port, replay_port)
        self._buffer = buffer
        self._topic = TOPIC.encode()
        self._pub: zmq.Socket[bytes] | None = None
        self._router: zmq.asyncio.Socket | None = None
        self.endpoint = ""
        self.replay_endpoint = ""
        self.drop_batches = 0
        """Batches still to be lost on the way: numbered and kept for replay, but not sent."""

    def open(self) -> None:
        """Bind. OSError: a port is taken; nothing stays open then."""
        # The process's own contexts, never ended: one of ours, forgotten with a socket open, would hang the garbage collector.
        self._pub = zmq.Context.instance().socket(zmq.PUB)
        self._pub.set_hwm(HIGH_WATER_MARK)
        self._router = zmq.asyncio.Context.instance().socket(zmq.ROUTER)
        try:
            self.endpoint = _bind(self._pub, self._host, self._ports[0])
            self.replay_endpoint = _bind(self._router, self._host, self._ports[1])
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        for socket in (self._pub, self._router):
            if socket is not None:
                socket.close(linger=0)
        self._pub = self._router = None

    def publish(self, events: Sequence[Event], unix_s: float) -> None:
        """One batch; nothing for no events."""
        if not events or self._pub is None:
            return
        payload = self._encoder.encode(events, unix_s)
        sequence = self._buffer.append(payload)
        if self.drop_batches > 0:
            self.drop_batches -= 1
            return
        self._pub.send_multipart(frames(self._topic, sequence, payload), flags=zmq.NOBLOCK, copy=True)

    async def serve_replays(self) -> None:
        """Answer replay requests until cancelled."""
        router = self._router
        assert router is not None, "open() comes first"
        while True:
            message = await router.recv_multipart()
            if len(message) != 3 or len(message[2]) != 8:
                log.warning("a replay request of %d frames was ignored", len(message))
                continue
            client, start = message[0], int.from_bytes(message[2], "big")
            for sequence, payload in list(self._buffer.since(start)):
                await router.send_multipart([client, b"", *frames(self._topic, sequence, payload)])
            await router.send_multipart([client, b"", b"", END_SEQUENCE, b""])


def _bind(socket: zmq.Socket[bytes] | zmq.asyncio.Socket, host: str, port: int) -> str:
    try:
        socket.bind(f"tcp://{host}:{port or '*'}")
    except zmq.ZMQError as error:
        raise OSError(error.errno, f"KV events on {host}:{port}: {error.strerror}") from error
    endpoint = socket.last_endpoint
    assert isinstance(endpoint, bytes)
    # An address that stands for all is reported with a star; whoever reads it puts in the host that it knows.
    _, _, bound = endpoint.decode().rpartition(":")
    return f"tcp://{'*' if host in _EVERYWHERE else host}:{bound}"
