"""A body's size is not its head's: requests of every size on one connection."""

from __future__ import annotations

import json

from tests.dataplane.client import ask, request
from tests.dataplane.conftest import Proxy
from tests.fakes.backend import Backend, chat_payload, json_bytes, raw


async def test_a_body_beyond_the_heads_limit_is_fine_however_it_arrives(proxy: Proxy, backend: Backend) -> None:
    for kilobytes in (1, 70, 130, 300):
        backend.script(raw(json_bytes(chat_payload("fine"))))
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 1024 * kilobytes}]}).encode()
        response = await ask(proxy.port, request(body))
        assert response.status == 200, (kilobytes, response.raw[:300])
