"""Engines that fail and clients that leave at random: each request ends well or honestly, each decision is reported once."""

from __future__ import annotations

import asyncio
import random

from proto import routing_pb2 as pb
from runtime.rng import stream
from tests.dataplane.client import Client, Truncated, chat, request
from tests.dataplane.conftest import StartBackend, StartProxy
from tests.dataplane.test_failures import FIRST, RETRIED, ROLE
from tests.fakes.backend import STREAM_HEAD, Seen, Step, Wire, chat_stream, closes, resets
from tests.fakes.control import Control

SEED = 20_261_121
REQUESTS = 400
AT_ONCE = 40


def moody(rng: random.Random) -> Step:
    """Mostly good; else one of every failure known."""
    good = chat_stream(["a", "b", "c"])
    bad = [step for _, step, _ in RETRIED] + [resets(STREAM_HEAD + ROLE + FIRST), closes(STREAM_HEAD + ROLE + FIRST)]

    async def step(seen: Seen, wire: Wire) -> None:
        await (rng.choice(bad) if rng.random() < 0.3 else good)(seen, wire)

    return step


async def test_every_request_ends_and_every_decision_is_reported_once(
    start_proxy: StartProxy, start_backend: StartBackend, control: Control
) -> None:
    rng = stream(SEED, "chaos")
    backends = [await start_backend() for _ in range(4)]
    for backend in backends:
        backend.script(moody(rng))
    control.serve("m", *(backend.url for backend in backends))
    decided: list[int] = []

    def decide(question: pb.Question) -> pb.Decision | None:
        decision = control.round_robin(question)
        assert decision is not None
        if decision.decision_id:
            decided.append(decision.decision_id)
        return decision

    control.decide = decide
    proxy = await start_proxy(control=control, decision_timeout_ms=20_000, retry_per_s=1000.0)
    ends = {"complete": 0, "error": 0, "error event": 0, "cut": 0, "left": 0}
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> None:
        async with slots:
            client = await Client.connect(proxy.port)
            await client.send(request(chat(str(number), stream=True)))
            if rng.random() < 0.1:
                client.close()
                ends["left"] += 1
                return
            try:
                response = await client.read()
            except Truncated:
                ends["cut"] += 1
            else:
                if response.status != 200:
                    assert set(response.json["error"]) >= {"message", "type", "code"} or response.json == {"error": {}}
                    ends["error"] += 1
                elif response.text == "abc" and response.events[-1] == "[DONE]":
                    ends["complete"] += 1
                else:
                    errors = [event["error"] for event in response.events if isinstance(event, dict) and "error" in event]
                    assert len(errors) == 1, response.body
                    ends["error event"] += 1
            client.close()

    await asyncio.gather(*map(one, range(REQUESTS)))
    await proxy.until(lambda app: not app.gateway.exchanges)
    assert sum(ends.values()) == REQUESTS
    assert ends["complete"] > REQUESTS * 0.7, ends
    assert ends["cut"] == 0, ends
    await control.until(lambda control: len(control.outcomes) + len(control.cancels) >= len(decided))
    reported = [outcome.decision_id for outcome in control.outcomes]
    assert len(reported) == len(set(reported)), f"reported twice (seed {SEED})"
    cancelled = {cancel.question_id for cancel in control.cancels}
    assert len(set(decided) - set(reported)) <= len(cancelled)
    assert not proxy.app.gateway.fleet.active
