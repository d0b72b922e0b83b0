"""Commands that are given the addresses of several control planes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headway.__main__ import dispatch
from headway.errors import UsageError
from tests.controlplane.served import Served, asked, serve


@pytest.fixture
async def pair(short_dir: Path) -> AsyncIterator[tuple[Served, Served]]:
    """The first stands by; the second has the data plane and decided something."""
    for name in ("a", "b"):
        (short_dir / name).mkdir()
    async with serve(short_dir / "a") as first, serve(short_dir / "b") as second:
        second.plant.director._next_id = 0xB00
        stream = second.stream()
        await stream.ask(asked(1, 1, 2))
        yield first, second
        stream.break_off()


async def headway(capsys: pytest.CaptureFixture[str], *line: str, control: str) -> str:
    """What the command prints; it blocks, so it runs in a thread."""
    assert await asyncio.to_thread(dispatch, [*line, "--control", control]) == 0
    return capsys.readouterr().out


async def test_workers_shows_the_fleet_of_whoever_decides_and_says_who_that_is(
    pair: tuple[Served, Served], short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = pair
    nobody = f"unix:{short_dir}/nobody.sock"
    shown = await headway(capsys, "workers", control=f"{first.address},{second.address},{nobody}")
    said = " ".join(shown.split())
    assert f"{first.address} stands by" in said
    assert f"{second.address} decides for 1 data-plane process," in said
    assert f"{nobody} does not answer" in said


async def test_explain_finds_the_one_that_decided(pair: tuple[Served, Served], capsys: pytest.CaptureFixture[str]) -> None:
    both = ",".join(each.address for each in pair)
    assert f"decision {0xB00:016x}" in await headway(capsys, "explain", f"{0xB00:016x}", control=both)
    assert f"decision {0xB00:016x}" in await headway(capsys, "explain", control=both)
    with pytest.raises(UsageError, match="no decision 0000000000000c00 among the last"):
        await headway(capsys, "explain", f"{0xC00:016x}", control=both)


async def test_policy_and_drain_tell_all_that_answer(
    pair: tuple[Served, Served], short_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    all_three = ",".join([f"unix:{short_dir}/nobody.sock", *[each.address for each in pair]])
    assert "* prefix" in await headway(capsys, "policy", "prefix", control=all_three)
    assert "w1: draining" in await headway(capsys, "drain", "w1", control=all_three)
    for each in pair:
        assert each.plant.director.policy == "prefix"
        assert each.plant.endpoint("w1").draining
    with pytest.raises(UsageError, match="no policy 'best'"):
        await headway(capsys, "policy", "best", control=all_three)


async def test_where_none_answers_all_are_named(short_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nobody = f"unix:{short_dir}/x.sock,unix:{short_dir}/y.sock"
    with pytest.raises(UsageError, match=f"no control plane answers at {nobody.replace(',', ', ')}"):
        await headway(capsys, "workers", control=nobody)
