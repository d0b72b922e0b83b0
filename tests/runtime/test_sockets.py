"""Plain sockets read and written here do what a loop's own transports do: the same steps on both, side by side."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import struct
from collections.abc import AsyncIterator, Callable
from random import Random

import pytest

from runtime.passing import READ_BYTES
from runtime.sockets import Door, Sockets
from runtime.stream_transport import HIGH_WATER_BYTES
from tests.waiting import meanwhile, turns, until

MUCH = 8 * 1024 * 1024
"""More than two sockets hold."""
_RESET = struct.pack("ii", 1, 0)


class Noted(asyncio.Protocol):
    """Notes what it is told. keep_open: at the other end's end."""

    def __init__(self, *, keep_open: bool = False) -> None:
        self.keep_open = keep_open
        self.told: list[str] = []
        self.data = bytearray()
        self.error: Exception | None = None
        self.transport: asyncio.Transport
        self.on_data: Callable[[bytes], None] = self.data.extend

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop registers no subclass
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.on_data(data)

    def eof_received(self) -> bool:
        self.told.append("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self.told.append("pause")

    def resume_writing(self) -> None:
        self.told.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.told.append("lost")
        self.error = error


class Plant:
    """Makes connections whose one end is a protocol, the other a plain socket."""

    def __init__(self, *, ours: bool) -> None:
        self.sockets = Sockets() if ours else None
        self._others: list[socket.socket] = []

    async def connect(self, noted: Noted | None = None) -> tuple[Noted, socket.socket]:
        noted = noted or Noted()
        with socket.create_server(("127.0.0.1", 0)) as server:
            other = socket.create_connection(server.getsockname())
            accepted, peer = server.accept()
        other.setblocking(False)
        self._others.append(other)
        accepted.setblocking(False)
        if self.sockets is not None:
            self.sockets.add(accepted, noted, peer)
        else:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: noted, accepted)
        return noted, other

    def close(self) -> None:
        for other in self._others:
            other.close()
        if self.sockets is not None:
            self.sockets.close()


@pytest.fixture(params=["ours", "uvloop"])
async def plant(request: pytest.FixtureRequest) -> AsyncIterator[Plant]:
    found = Plant(ours=request.param == "ours")
    yield found
    found.close()


async def _lost(noted: Noted) -> None:
    await until(lambda: "lost" in noted.told, "connection_lost")


async def _received(other: socket.socket, size: int) -> bytes:
    """So many bytes, or as many as came before the end."""
    found = bytearray()
    while len(found) < size:
        data = await asyncio.get_running_loop().sock_recv(other, 1 << 20)
        if not data:
            break
        found += data
    return bytes(found)


async def test_bytes_go_both_ways(plant: Plant) -> None:
    noted, other = await plant.connect()
    other.send(b"here")
    await until(lambda: noted.data == b"here")
    noted.transport.write(b"th")
    noted.transport.writelines([b"e", bytearray(b"r"), memoryview(b"e")])
    assert await _received(other, 5) == b"there"
    assert noted.transport.get_extra_info("peername") == other.getsockname()
    assert noted.transport.get_extra_info("sockname") == other.getpeername()
    assert noted.transport.get_extra_info("cipher", "none") == "none"
    noted.transport.close()
    await _lost(noted)
    assert noted.told == ["made", "lost"]
    assert noted.error is None


async def test_more_than_the_kernel_takes_follows_in_order(plant: Plant) -> None:
    noted, other = await plant.connect()
    data = Random(1).randbytes(MUCH)
    for start in range(0, MUCH, 100_001):
        noted.transport.write(data[start : start + 100_001])
    assert noted.told == ["made", "pause"]
    assert await _received(other, MUCH) == data
    await until(lambda: noted.transport.get_write_buffer_size() == 0)
    assert noted.told == ["made", "pause", "resume"]
    noted.transport.write(b"after")
    assert await _received(other, 5) == b"after"


async def test_what_was_written_leaves_before_the_close(plant: Plant) -> None:
    noted, other = await plant.connect()
    data = Random(2).randbytes(MUCH)
    noted.transport.write(data)
    noted.transport.close()
    assert noted.transport.is_closing()
    if plant.sockets is not None:  # uvloop sends it
        noted.transport.write(b"not this")
    assert await _received(other, MUCH + 1) == data
    await _lost(noted)
    assert noted.error is None


async def test_abort_drops_what_waits(plant: Plant) -> None:
    noted, other = await plant.connect()
    noted.transport.write(bytes(MUCH))
    noted.transport.abort()
    await _lost(noted)
    assert len(await _received(other, MUCH)) < MUCH


async def test_a_write_end_leaves_the_read_end_open(plant: Plant) -> None:
    noted, other = await plant.connect()
    data = Random(3).randbytes(MUCH)
    assert noted.transport.can_write_eof()
    noted.transport.write(data)
    noted.transport.write_eof()
    assert await _received(other, MUCH + 1) == data  # that many, then the end
    other.send(b"still")
    await until(lambda: noted.data == b"still")
    assert "lost" not in noted.told


async def test_the_other_end_says_that_no_more_comes(plant: Plant) -> None:
    noted, other = await plant.connect()
    other.send(b"last")
    other.shutdown(socket.SHUT_WR)
    await _lost(noted)
    assert (noted.data, noted.told, noted.error) == (b"last", ["made", "eof", "lost"], None)


async def test_a_protocol_may_go_on_behind_it(plant: Plant) -> None:
    noted, other = await plant.connect(Noted(keep_open=True))
    other.shutdown(socket.SHUT_WR)
    await until(lambda: "eof" in noted.told)
    noted.transport.write(b"answer")
    assert await _received(other, 6) == b"answer"
    await meanwhile(0.05)
    assert noted.told == ["made", "eof"]


async def test_a_reset_is_an_error(plant: Plant) -> None:
    noted, other = await plant.connect()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    other.close()
    await _lost(noted)
    assert isinstance(noted.error, ConnectionResetError)


async def test_writing_to_who_is_gone_is_an_error_of_the_connection_not_of_the_writer(plant: Plant) -> None:
    noted, other = await plant.connect(Noted(keep_open=True))
    noted.transport.pause_reading()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    other.close()
    await meanwhile(0.05)
    assert noted.told == ["made"]  # nobody reads: nobody has noticed, and nothing turns meanwhile
    noted.transport.write(b"too late")
    assert "lost" not in noted.told  # never amid a call
    await _lost(noted)
    assert isinstance(noted.error, OSError)
    if plant.sockets is not None:  # uvloop raises
        noted.transport.write(b"and later")


async def test_nothing_is_read_while_paused(plant: Plant) -> None:
    noted, other = await plant.connect()
    noted.transport.pause_reading()
    assert not noted.transport.is_reading()
    noted.transport.pause_reading()
    other.send(b"later")
    other.shutdown(socket.SHUT_WR)
    await meanwhile(0.05)
    assert (noted.data, noted.told) == (b"", ["made"])
    noted.transport.resume_reading()
    noted.transport.resume_reading()
    await _lost(noted)
    assert noted.data == b"later"


async def test_pausing_holds_within_one_pass(plant: Plant) -> None:
    """Two are ready; whoever comes first pauses the other."""
    (first, one), (second, two) = await plant.connect(), await plant.connect()
    read: list[bytes] = []

    def pausing(other: Noted) -> Callable[[bytes], None]:
        return lambda data: (read.append(data), other.transport.pause_reading())[0]

    first.on_data, second.on_data = pausing(second), pausing(first)
    one.send(b"1")
    two.send(b"2")
    await until(lambda: read)
    await meanwhile(0.02)
    assert len(read) == 1


async def test_closing_holds_within_one_pass(plant: Plant) -> None:
    (first, one), (second, two) = await plant.connect(), await plant.connect()
    read: list[bytes] = []

    def closing(other: Noted) -> Callable[[bytes], None]:
        return lambda data: (read.append(data), other.transport.abort())[0]

    first.on_data, second.on_data = closing(second), closing(first)
    one.send(b"1")
    two.send(b"2")
    await until(lambda: "lost" in first.told or "lost" in second.told)
    await turns(3)
    assert len(read) == 1
    assert [first.told, second.told].count(["made"]) == 1


async def test_a_protocol_that_fails_loses_its_connection_and_no_other(plant: Plant) -> None:
    (bad, one), (good, two) = await plant.connect(), await plant.connect()
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context))

    def fails(data: bytes) -> None:
        raise ValueError("of this protocol")

    bad.on_data = fails
    one.send(b"1")
    two.send(b"2")
    await _lost(bad)
    assert isinstance(bad.error, ValueError)
    assert len(told) == 1
    await until(lambda: good.data == b"2")


async def test_limits_of_the_buffer(plant: Plant) -> None:
    noted, other = await plant.connect()
    noted.transport.set_write_buffer_limits(high=0)
    noted.transport.write(b"taken at once")
    await until(lambda: noted.transport.get_write_buffer_size() == 0)
    filled = 0
    while not noted.transport.get_write_buffer_size() and filled < MUCH:
        noted.transport.write(bytes(READ_BYTES))
        filled += READ_BYTES
        await turns(1)
    assert noted.told[-1] == "pause"
    await until(lambda: _drained(other) and noted.told[-1] == "resume")
    with pytest.raises(ValueError, match="low"):
        noted.transport.set_write_buffer_limits(high=1, low=2)


def _drained(other: socket.socket) -> bool:
    try:
        while other.recv(1 << 20):
            pass
    except BlockingIOError:
        pass
    return True


async def test_much_at_once_is_read_in_pieces_of_a_bound() -> None:
    plant = Plant(ours=True)
    noted, other = await plant.connect()
    sizes: list[int] = []
    noted.on_data = lambda data: sizes.append(len(data))
    sent = other.send(bytes(20 * READ_BYTES))
    await until(lambda: sum(sizes) == sent)
    assert max(sizes) <= READ_BYTES
    noted.transport.close()
    plant.close()


async def test_a_peer_that_is_gone_costs_nothing_while_nobody_reads() -> None:
    """The kernel says of a broken connection that it is broken until somebody looks: it is not asked."""
    plant = Plant(ours=True)
    noted, other = await plant.connect()
    noted.transport.pause_reading()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    other.close()
    await meanwhile(0.02)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    await meanwhile(0.3)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 0.15
    noted.transport.abort()
    plant.close()


async def test_the_peer_has_its_name_after_the_end() -> None:
    plant = Plant(ours=True)
    noted, other = await plant.connect()
    noted.transport.abort()
    assert noted.transport.get_extra_info("peername") == other.getsockname()
    assert noted.transport.get_extra_info("sockname") is None
    plant.close()


async def test_the_defaults_are_uvloops() -> None:
    plant = Plant(ours=True)
    noted, _ = await plant.connect()
    assert HIGH_WATER_BYTES == 64 * 1024
    noted.transport.set_write_buffer_limits()
    noted.transport.set_write_buffer_limits(low=10)
    noted.transport.abort()
    plant.close()


# --- doors and dialling ---


async def test_a_door_takes_connections_until_it_is_closed() -> None:
    sockets, made = Sockets(), list[Noted]()

    def welcome() -> Noted:
        made.append(Noted())
        return made[-1]

    with socket.create_server(("127.0.0.1", 0)) as server:
        door = sockets.listen(server, welcome)
        dialled = [await sockets.connect("localhost", server.getsockname()[1], Noted) for _ in range(3)]
        await until(lambda: len(made) == 3)
        dialled[0].transport.write(b"hello")
        await until(lambda: any(each.data == b"hello" for each in made))
        door.close()
        door.close()
        with socket.create_connection(server.getsockname()):
            await meanwhile(0.05)
            assert len(made) == 3
        for each in (*made, *dialled):
            each.transport.abort()
    sockets.close()


async def test_nobody_there_is_an_error_that_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    sockets = Sockets()
    with pytest.raises(OSError, match=r"\[Errno 111\]|Connect call failed"):
        await sockets.connect("127.0.0.1", port, Noted)
    with pytest.raises(OSError, match=r"not known|nodename|resolution"):
        await sockets.connect("no-such-host.invalid", port, Noted)
    sockets.close()


async def test_a_dial_that_is_given_up_leaves_no_socket() -> None:
    """To an address that answers nothing, of a network for documentation."""
    sockets = Sockets()
    sockets.loop.call_soon(int)
    before = len(os.listdir("/proc/self/fd"))
    task = asyncio.create_task(sockets.connect("192.0.2.1", 9, Noted))
    await turns(3)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await turns(3)
    assert len(os.listdir("/proc/self/fd")) == before
    sockets.close()


async def test_without_file_descriptors_a_door_waits_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.sockets.ACCEPT_PAUSE_S", 0.05)  # a bound, lowered
    gc.collect()  # what is found to be nobody's later would make room
    sockets, made = Sockets(), list[Noted]()

    def welcome() -> Noted:
        made.append(Noted())
        return made[-1]

    with socket.create_server(("127.0.0.1", 0)) as server:
        door: Door = sockets.listen(server, welcome)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as caller:
            caller.setblocking(False)
            top = os.dup(caller.fileno())
            resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
            os.close(top)
            filler = []
            try:
                while True:
                    filler.append(os.dup(caller.fileno()))
            except OSError:
                pass
            try:
                await asyncio.get_running_loop().sock_connect(caller, server.getsockname())
                await meanwhile(0.12)
                assert not made
            finally:
                for each in filler:
                    os.close(each)
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            await until(lambda: made)
        await _lost(made[0])
        door.close()
    sockets.close()
