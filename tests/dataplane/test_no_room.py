"""A data plane that has no room for another connection: its own trouble, and no engine's."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

from proto import routing_pb2 as pb
from tests.dataplane.client import Client, chat, request
from tests.dataplane.conftest import StartBackend, StartProxy
from tests.fakes.control import Control


@contextmanager
def no_more_files() -> Iterator[None]:
    """Each new one would have a number that is not allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_no_engine_is_blamed_where_this_process_may_open_no_more_files(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    backends = [await start_backend() for _ in range(3)]
    control.serve("m", *[backend.url for backend in backends])
    proxy = await start_proxy(control=control)
    client = await Client.connect(proxy.port)
    await client.send(request(method="GET", path="/health"))
    assert (await client.read()).status == 200  # it is accepted
    with no_more_files():
        await client.send(request(chat()))
        refused = await client.read()
    assert (refused.status, refused.json["error"]["code"]) == (503, "router_full")
    assert int(refused.headers["retry-after"]) >= 1
    await control.until(lambda control: len(control.outcomes) == 1)
    assert control.outcomes[0].end == pb.CLIENT_GONE  # says nothing about the engine
    await client.send(request(chat()))
    assert (await client.read()).status == 200
    client.close()
