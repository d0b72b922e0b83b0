"""What operators see of an engine's ranks: each by itself beside what its worker is as a whole, a label where there are any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contract.keyspace import RankFigures
from controlplane.index_state import IndexState
from controlplane.metrics import ControlPlaneCollector, registry
from controlplane.servicer import RoutingServicer
from controlplane.snapshot import FORGET_AFTER_S
from controlplane.upkeep import LoopLag
from proto import fleet_pb2 as pb
from runtime.clock import SystemClock
from tests.controlplane.parts import Plant, hashes, question, report
from tests.controlplane.served import Bus, serve
from tests.controlplane.test_ranks import join


async def test_a_worker_is_the_sum_of_its_ranks(short_dir: Path) -> None:
    async with serve(short_dir, workers=1) as served:
        plant = served.plant
        assert join(plant, "w1", 2) == [1, 2]
        plant.index.store(1, hashes(1, 2, 3), rank=0)
        plant.index.store(2, hashes(7, 8), rank=1)
        figures = (RankFigures(3, 0, 0.5, 70, 30), RankFigures(1, 2, 0.1, 20, 10))
        plant.snapshot.worker_reported(report("w1", running=4, waiting=2, kv_usage=0.5, ranks=figures), plant.now)
        plant.director.set_policy("prefix")
        plant.place(question(7, 8, 9))
        for match in (16, 16, 0):
            plant.self_check.compare("w1/1", 1, "m", match, 16)
        plant.self_check.compare("w1/0", 1, "m", 16, 16)
        plant.index.set_state(2, IndexState.CATCHING_UP)
        listed = (await served.fleet.ListWorkers(pb.ListWorkersRequest())).workers
        assert [status.worker for status in listed] == ["w0", "w1"]
        assert not listed[0].ranks
        whole = listed[1]
        assert (whole.endpoint, whole.active, whole.requests, whole.blocks) == (1, 1, 1, 5)
        assert (whole.running, whole.waiting, whole.kv_usage) == (4, 2, 0.5)
        assert (whole.index, whole.match_ratio, whole.match_samples) == (pb.CATCHING_UP, 0.75, 4)
        first, second = whole.ranks
        assert (first.rank, first.active, first.blocks, first.running, first.index) == (0, 0, 3, 3, pb.EXACT)
        assert (second.rank, second.active, second.blocks, second.waiting, second.index) == (1, 1, 2, 2, pb.CATCHING_UP)
        assert second.match_ratio == pytest.approx(2 / 3)


async def test_drain_and_its_answer_are_of_the_whole_worker(short_dir: Path) -> None:
    async with serve(short_dir, workers=0) as served:
        join(served.plant, "w1", 3)
        status = await served.fleet.Drain(pb.DrainRequest(worker="w1"))
        assert status.draining
        assert len(status.ranks) == 3
        assert not any(one.serving for one in served.plant.snapshot.endpoints())


def samples(plant: Plant) -> dict[str, list[tuple[dict[str, str], float]]]:
    parts: dict[str, Any] = {
        "director": plant.director,
        "snapshot": plant.snapshot,
        "ledger": plant.ledger,
        "waiting": plant.waiting,
        "index": plant.index,
        "bus": Bus(),
        "self_check": plant.self_check,
        "outcomes": _Outcomes(),
        "routing": RoutingServicer(plant.director, plant.ring, None, SystemClock()),  # type: ignore[arg-type]  # nobody watches
        "lag": LoopLag(),
        "clock": SystemClock(),
    }
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in registry(ControlPlaneCollector(**parts)).collect():
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


class _Outcomes:
    """A log that was never written to."""

    written = dropped = 0

    def __len__(self) -> int:
        return 0


def test_metrics_have_a_rank_only_where_there_are_ranks() -> None:
    plant = Plant(workers=1)
    join(plant, "w1", 2)
    plant.director.set_policy("least_load")
    for number in range(3):
        plant.place(question_id=number)
    plant.self_check.compare("w1/1", 1, "m", 16, 16)
    found = samples(plant)
    assert found["headway_worker_active_requests"] == [
        ({"worker": "w0"}, 1.0),
        ({"worker": "w1", "rank": "0"}, 1.0),
        ({"worker": "w1", "rank": "1"}, 1.0),
    ]
    assert found["headway_match_ratio"] == [({"worker": "w1", "rank": "1", "model": "m"}, 1.0)]
    assert found["headway_decisions_total"] == [
        ({"policy": "least_load", "worker": "w0"}, 1.0),
        ({"policy": "least_load", "worker": "w1"}, 2.0),
    ]


def test_a_workers_name_may_have_a_stroke_in_it() -> None:
    plant = Plant(workers=0)
    plant.join("rack/7")
    plant.self_check.compare("rack/7", 1, "m", 16, 16)
    found = samples(plant)
    assert found["headway_worker_active_requests"] == [({"worker": "rack/7"}, 0.0)]
    assert found["headway_match_ratio"] == [({"worker": "rack/7", "model": "m"}, 1.0)]


def test_what_was_counted_of_a_worker_goes_with_it() -> None:
    """Where engines come and go under new names the page of metrics would grow for ever."""
    plant = Plant(workers=0)
    join(plant, "old", 2)
    for number in range(3):
        plant.end(plant.place(question_id=number))
    plant.join("new")
    plant.snapshot.worker_left("old", plant.now)
    plant.end(plant.place(question_id=9))
    assert {worker for _, worker in plant.director.tally.decisions} == {"old", "new"}
    plant.pass_time(FORGET_AFTER_S + 1.0, silent=("old",))
    assert {worker for _, worker in plant.director.tally.decisions} == {"new"}
    assert {worker for worker, _ in plant.director.tally.ends} == {"new"}
    found = samples(plant)
    assert [labels["worker"] for labels, _ in found["headway_decisions_total"]] == ["new"]
