"""Policies that look at no prompt: nothing is tokenised for them, and a switch to one that does takes effect at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract import blocks, tokens
from contract.outcome import End
from dataplane.keys import Key, hash_of, line_of, new_token
from proto import routing_pb2 as pb
from tests.dataplane.client import ask, chat, request
from tests.dataplane.conftest import Proxy, StartProxy
from tests.dataplane.test_accounts import connected, ends, fleet
from tests.fakes.backend import Backend
from tests.fakes.control import Control
from tests.waiting import until

BODY = chat("word " * 200)


async def ready(start_proxy: StartProxy, control: Control, backend: Backend, **more: object) -> Proxy:
    control.serve("m", backend.url, tokenizer=tokens.BUILTIN)
    switch(control, without_chains=True)
    proxy = await start_proxy(control=control, **more)
    await proxy.until(lambda app: app.prompts.status(app.gateway.fleet.view.models) == {"m": "ready"})
    return proxy


def switch(control: Control, *, without_chains: bool) -> None:
    view = pb.FleetView()
    view.CopyFrom(control.view)
    view.version, view.without_chains = view.version + 1, without_chains
    control.show(view)


async def test_the_prompts_length_is_estimated_and_nothing_is_predicted(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    proxy = await ready(start_proxy, control, backend)
    sent = request(BODY)
    response = await ask(proxy.port, sent)
    (question,) = control.questions
    body = sent.partition(b"\r\n\r\n")[2]
    assert question.input_tokens == len(body) // blocks.TEXT_CHARS_PER_TOKEN
    assert (question.chain_kind, list(question.chains)) == (pb.CHAIN_KIND_UNSPECIFIED, [])
    assert "x-headway-matched-tokens" not in response.headers
    assert response.headers["x-headway-decision"]
    assert proxy.count("chains", "skipped") == 1


async def test_a_switch_takes_effect_with_the_next_request_both_ways(
    start_proxy: StartProxy, backend: Backend, control: Control
) -> None:
    proxy = await ready(start_proxy, control, backend)
    for number, without_chains in enumerate((False, True, False)):
        switch(control, without_chains=without_chains)
        await proxy.until(lambda app: app.gateway.fleet.view.version == control.view.version)
        response = await ask(proxy.port, request(BODY))
        assert bool(control.questions[number].chains) == (not without_chains)
        assert ("x-headway-matched-tokens" in response.headers) == (not without_chains)


@pytest.mark.parametrize(("limit", "status"), [(10_000, 200), (100, 429)])
async def test_the_estimate_is_what_a_keys_tokens_are_reserved_by(
    start_proxy: StartProxy, backend: Backend, control: Control, tmp_path: Path, limit: int, status: int
) -> None:
    token, path = new_token(), tmp_path / "keys"
    path.write_bytes(line_of(Key("k", hash_of(token.encode()), tokens_per_minute=limit)))
    proxy = await ready(start_proxy, control, backend, keys_file=str(path))
    response = await ask(proxy.port, request({**BODY, "max_tokens": 1}, headers={"Authorization": f"Bearer {token}"}))
    assert response.status == status


async def test_the_control_plane_says_so_for_each_policy_and_its_accounts_hold(
    start_proxy: StartProxy, backend: Backend, short_dir: Path
) -> None:
    async with fleet(short_dir, backend, policy="round_robin") as served:
        proxy = await connected(start_proxy, served)
        for policy, without_chains in (("least_load", True), ("prefix", False), ("random", True), ("lmetric", False)):
            served.plant.director.set_policy(policy)
            await proxy.until(lambda app: app.gateway.fleet.view.policy == policy)  # noqa: B023 - awaited in this turn
            assert proxy.app.prompts.wanted == (not without_chains), policy
            assert (await ask(proxy.port, request(BODY))).status == 200
        await until(lambda: ends(served) == [End.COMPLETE] * 4)
        assert len(served.plant.ledger) == 0
