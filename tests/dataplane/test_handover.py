"""A listening socket that outlives its process: whoever waits in its queue is served by the successor."""

from __future__ import annotations

import asyncio
import os
import socket

import aiohttp

from dataplane import handover
from dataplane.app import App
from dataplane.settings import Settings
from runtime.clock import SystemClock

HOST = "127.0.0.1"


def listening_socket(*, listens: bool = True) -> socket.socket:
    made = socket.socket()
    made.bind((HOST, 0))
    if listens:
        made.listen()
    return made


async def take(port: int, number: int = 0, processes: int = 1) -> list[socket.socket]:
    return await asyncio.to_thread(handover.take, HOST, port, number, processes)


async def started(port: int, *, share: bool) -> App:
    app = App(Settings(host=HOST, port=port, endpoint=("m=http://127.0.0.1:1",), share_port=share), SystemClock())
    await app.start(reuse_port=True)
    return app


def inodes(filenos: list[int]) -> set[int]:
    return {os.fstat(each).st_ino for each in filenos}


async def test_who_waits_at_a_closed_socket_is_found_by_its_successor() -> None:
    old = listening_socket()
    address = old.getsockname()
    offer = handover.Offer(HOST, address[1], 0, lambda: [old.fileno()])
    offer.open()
    with socket.create_connection(address) as caller:
        caller.sendall(b"hello")
        (taken,) = await take(address[1])
        old.close()
        with taken:
            taken.setblocking(True)
            accepted, _ = taken.accept()
            with accepted:
                assert accepted.recv(100) == b"hello"


async def test_sockets_are_offered_once_and_the_name_is_then_the_successors() -> None:
    with listening_socket() as old:
        port = old.getsockname()[1]
        first, second = (handover.Offer(HOST, port, 0, lambda: [old.fileno()]) for _ in range(2))
        first.open()
        (taken,) = await take(port)
        taken.close()
        assert await take(port) == []
        second.open()
        (again,) = await take(port)
        again.close()


async def test_one_process_takes_over_from_several_and_leaves_the_others_theirs() -> None:
    with listening_socket() as old:
        port = old.getsockname()[1]
        offers = [handover.Offer(HOST, port, number, lambda: [old.fileno()]) for number in range(3)]
        for offer in offers:
            offer.open()
        first, second = await take(port, 0, 2), await take(port, 1, 2)
        assert (len(first), len(second)) == (2, 1)
        for taken in first + second:
            taken.close()


async def test_a_socket_that_does_not_listen_on_the_port_is_not_taken() -> None:
    with listening_socket() as here, listening_socket() as elsewhere, listening_socket(listens=False) as silent:
        port = here.getsockname()[1]
        handover.Offer(HOST, port, 0, lambda: [elsewhere.fileno(), silent.fileno(), here.fileno()]).open()
        (taken,) = await take(port)
        with taken:
            assert inodes([taken.fileno()]) == inodes([here.fileno()])


async def test_where_nobody_offers_there_is_nothing_to_take(free_port: int) -> None:
    assert await take(free_port) == []


async def test_a_data_plane_listens_on_its_predecessors_socket_and_serves_after_it_has_gone(free_port: int) -> None:
    serving = await started(free_port, share=False)
    first = inodes(serving.server.listening())
    for _ in range(2):  # a successor has one, too
        successor = await started(free_port, share=True)
        await serving.stop()
        serving = successor
        assert inodes(serving.server.listening()) == first
        async with aiohttp.ClientSession() as session, session.get(f"http://{HOST}:{free_port}/health") as reply:
            assert reply.status == 200
    await serving.stop()
