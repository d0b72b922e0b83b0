"""Engines of several data-parallel ranks, as processes: conversations come back to the rank that holds their beginning, what is
counted at each rank goes back to nothing, and an engine that dies takes all of its ranks with it."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest

from tests.e2e.stack import PATIENT, RunningStack, running_stack
from tests.e2e.test_routing import replayed
from tests.waiting import until, until_elsewhere, wait_until

ROUNDS = "multi-round:users=12,rounds=6,system=400,history=800,question=20,output=60"
RANKS = ("--ranks", "2", "--speed", "4")
TOKENS = 60_000
"""More than anybody waits for."""


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    with running_stack(tmp_path_factory.mktemp("home"), *RANKS, workers=2, environment=PATIENT) as running:
        yield running


def conversations(stack: RunningStack, tmp_path: Path) -> dict[str, Any]:
    arguments = (ROUNDS, "--rate", "24", "--max-tokens", "24", "--policy", "lmetric", "--salt", secrets.token_hex(4))
    (found,) = replayed(stack, tmp_path, *arguments)
    assert found["failed"] == 0, found
    return found


def active_by_rank(stack: RunningStack) -> dict[str, int]:
    workers = stack.list_workers().workers
    return {f"{status.worker}/{rank.rank}": rank.active for status in workers for rank in status.ranks}


def test_turns_come_back_to_their_rank_and_predictions_come_true(
    ranked: RunningStack, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    steered = conversations(ranked, tmp_path)
    assert steered["match_equal_share"] >= 0.99, steered
    wait_until(lambda: set(active_by_rank(ranked).values()) == {0}, what="nothing counted at any rank")
    assert set(active_by_rank(ranked)) == {"worker-1/0", "worker-1/1", "worker-2/0", "worker-2/1"}
    for status in ranked.list_workers().workers:
        assert all(rank.requests > 0 and rank.match_ratio >= 0.99 for rank in status.ranks), status
        assert status.requests == sum(rank.requests for rank in status.ranks)
    home, unsteered = tmp_path_factory.mktemp("home"), (*RANKS, "--steer-ranks", "off")
    with running_stack(home, *unsteered, workers=2, environment=PATIENT) as balanced:
        left_alone = conversations(balanced, tmp_path)
        assert not active_by_rank(balanced)
    assert left_alone["match_equal_share"] < 0.7, left_alone
    assert left_alone["cached_share"] < steered["cached_share"] - 0.1, (left_alone, steered)


async def stream(
    session: aiohttp.ClientSession,
    stack: RunningStack,
    text: str,
    tokens: int,
    began: Callable[[str], None] = lambda _worker: None,
    leaves: Callable[[], bool] = lambda: False,
) -> tuple[str, str, str]:
    """Worker, rank and answer, the whole of it unless the caller leaves; `began` is told the worker with its first bytes."""
    body = {
        "model": stack.facts()["model"],
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
    }
    async with session.post(f"{stack.url}/v1/chat/completions", json=body) as reply:
        assert reply.status == 200, await reply.text()
        answer = await reply.content.readany()
        began(reply.headers["x-headway-worker"])
        while not leaves() and (more := await reply.content.readany()):
            answer += more
        return reply.headers["x-headway-worker"], reply.headers["x-headway-rank"], answer.decode()


async def test_a_control_plane_that_was_killed_counts_at_each_rank_what_is_there(ranked: RunningStack) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        begun: list[str] = []
        enough = asyncio.Event()
        asked = [
            asyncio.create_task(stream(session, ranked, f"Tell a tale, number {n}.", TOKENS, begun.append, enough.is_set))
            for n in range(9)
        ]
        # the data plane tells the new one where a request is only once it knows that itself
        await until(lambda: len(begun) == len(asked), "the first bytes of every answer")
        before = await until_elsewhere(lambda: _all_placed(ranked, 9), what="nine requests over all ranks")
        ranked.kill("controlplane")
        after = await until_elsewhere(lambda: _all_placed(ranked, 9), what="the same, of the new one")
        assert after == before
        enough.set()
        ends = await asyncio.gather(*asked)
        assert not [answer for _, _, answer in ends if '"error"' in answer]
        counted = Counter(f"{worker}/{rank}" for worker, rank, _ in ends)
        assert counted == before
        await until_elsewhere(lambda: set(active_by_rank(ranked).values()) == {0}, what="nothing counted at any rank")


def _all_placed(stack: RunningStack, requests: int) -> dict[str, int]:
    """By rank, once that many are counted; else empty."""
    try:
        found = active_by_rank(stack)
    except grpc.RpcError:
        return {}
    return found if sum(found.values()) == requests else {}


async def test_an_engine_killed_amid_its_streams_leaves_nothing_counted_at_its_ranks(ranked: RunningStack) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        begun: list[str] = []
        asked = [
            asyncio.create_task(stream(session, ranked, f"Tell a long story, number {n}.", 2_500, begun.append))
            for n in range(8)
        ]
        # a request without a byte yet would go to the other worker, and its client notice nothing
        await until(lambda: len(begun) == len(asked), "the first bytes of every answer")
        assert all(active_by_rank(ranked).values())
        port = next(status.url for status in ranked.list_workers().workers if status.worker == "worker-1").rpartition(":")[2]
        ranked.kill(f"engine@{port}")
        answers = await asyncio.gather(*asked)
        broken = [answer for _, _, answer in answers if '"error"' in answer]
        whole = [answer for _, _, answer in answers if '"error"' not in answer and answer.rstrip().endswith("data: [DONE]")]
        assert len(broken) == begun.count("worker-1") > 0, "those amid their streams where the engine died, and no other"
        assert len(broken) + len(whole) == len(answers)
        _, rank, answer = await stream(session, ranked, "And a short one.", 8)
        assert '"error"' not in answer
        assert rank in ("0", "1")
        await until_elsewhere(lambda: set(active_by_rank(ranked).values()) == {0}, what="nothing counted at any rank")
