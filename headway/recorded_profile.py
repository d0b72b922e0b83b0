"""A client's recording of one vLLM, one CSV row a request, as a data set of ours.

The recording has the client's counts under names of its own, and none of what the router learns as it goes. But it has every
request of its engine, with the moments of sending, first token and end: so the requests are played once more, in order, to the
router's own cores, and the features are what the director would have known.

    column of the CSV              becomes
    t_send_s                       the time of the decision
    ttft_ms, e2e_ms                the time of the first byte, of the end; the labels
    tpot_ms                        itl_s: mean gap between tokens
    prompt_tokens, max_tokens      of the question
    cached_tokens                  the index's match. vLLM said it afterwards; an exact index would have said it before
    m_running, m_waiting, m_kv_usage, m_age_ms    the engine's report, and its age (also as engine_*)
    output_tokens, status          of the outcome
    phase, kind, other_cpu         run, mix; other_cpu stays as it is: cores used by others than engine and client
    client_*, m_scrape_ms, load_endpoint, itl_*_ms, srv_*_ms, m_preemptions_delta    not used

The engine of the recordings: blocks of 32 tokens, 700 of them, max_num_seqs 8.
"""

from __future__ import annotations

import functools
import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from contract.keyspace import EngineReport, EngineState, ModelCard, WorkerRecord
from contract.outcome import End, Outcome
from controlplane import profiles
from controlplane.admission import WaitingRoom
from controlplane.breaker import BreakerBounds
from controlplane.director import Director
from controlplane.explain import DecisionRing
from controlplane.index_state import IndexState
from controlplane.ledger import Ledger
from controlplane.prefix_index import PrefixIndex
from controlplane.question import Decision, Ended, Question, Request
from controlplane.self_check import SelfCheck
from controlplane.snapshot import FleetSnapshot
from loadgen.profile_rows import Gauges, Played, with_columns
from loadgen.sweep import LEVEL_UNKNOWN, OVERLAP_RECORDED, RECORDED, Combination, Step
from prediction import dataset
from prediction.errors import DatasetError
from runtime import rng

NEEDED = (
    *("id", "phase", "t_send_s", "m_running", "m_waiting", "m_kv_usage", "m_age_ms", "kind", "prompt_tokens"),
    *("cached_tokens", "max_tokens", "output_tokens", "ttft_ms", "tpot_ms", "e2e_ms", "status"),
)
TELLING = ("client_active", "ttft_ms")
"""Columns by which such a file is known."""
BLOCK_TOKENS = 32
CACHE_BLOCKS = 700
SEQUENCES = 8
MODEL = "recorded"
WORKER = WorkerRecord(
    worker="vllm",
    url="http://vllm",
    epoch=1,
    models=(ModelCard(MODEL, MODEL, MODEL, 4_096),),
    block_size=BLOCK_TOKENS,
    cache_blocks=CACHE_BLOCKS,
    sends_kv_events=True,
    accelerator="cpu",
    max_num_seqs=SEQUENCES,
)


def is_recording(path: Path) -> bool:
    """Whether a file's first line says so."""
    if path.suffix != ".csv" or not path.is_file():
        return False
    with path.open("rb") as file:
        names = file.readline().decode("utf-8", "replace").strip().split(",")
    return all(name in names for name in TELLING)


def read(path: Path) -> pa.Table:
    """In loadgen.profile_rows.SCHEMA, and other_cpu (nan where it is not known). DatasetError: not such a recording."""
    try:
        table = pyarrow.csv.read_csv(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: {str(error).splitlines()[0]}") from None
    if missing := [name for name in NEEDED if name not in table.column_names]:
        raise DatasetError(f"{path}: no column {missing[0]!r}")
    rows = [row for row in table.to_pylist() if _is_complete(row)]
    played = _played(rows)
    kept = [(row, each) for row, each in zip(rows, played, strict=True) if dataset.is_sample(each.outcome)]
    if not kept:
        raise DatasetError(f"{path}: none of its {len(table)} requests has a first token and an end")
    parts = []
    base = dataset.from_outcomes(each.outcome for _, each in kept)
    for number, (row, each) in enumerate(kept):
        step = _step(row)
        parts.append(with_columns(base.slice(number, 1), [each], step, run=f"{path.stem}:{row['phase']}", speed=1.0))
    others = [math.nan if row.get("other_cpu") is None else float(row["other_cpu"]) for row, _ in kept]
    return pa.concat_tables(parts).append_column("other_cpu", pa.array(others, pa.float64()))


def _is_complete(row: dict[str, Any]) -> bool:
    return all(row[name] is not None for name in NEEDED if name != "tpot_ms") and row["status"] == 200 and row["ttft_ms"] > 0


def _step(row: dict[str, Any]) -> Step:
    return Step(
        index=0,
        combination=Combination(str(row["kind"]), OVERLAP_RECORDED, RECORDED),
        rate_rps=math.nan,
        level=LEVEL_UNKNOWN,
        requests=1,
        seed=0,
    )


def _played(rows: list[dict[str, Any]]) -> list[Played]:
    """In the order of `rows`."""
    outcomes: dict[str, Outcome] = {}
    ledger, index = Ledger(), PrefixIndex()
    snapshot = FleetSnapshot(ledger, BreakerBounds())
    director = Director(
        snapshot=snapshot,
        ledger=ledger,
        index=index,
        waiting=WaitingRoom(),
        ring=DecisionRing(decisions_max=1),
        self_check=SelfCheck(),
        profiles=profiles.build(active_max=len(rows) + 1),
        policy="lmetric",
        rng=rng.stream(0, "recorded"),
        record=lambda outcome: outcomes.__setitem__(outcome.request_id, outcome),
        unix_offset_s=0.0,
    )
    slot = snapshot.worker_registered(WORKER, _began_s(rows))
    index.attach(slot, capacity_blocks=CACHE_BLOCKS, exact=True)
    index.set_state(slot, IndexState.EXACT)
    decisions: dict[int, Decision] = {}
    for now, act in _moments(rows):
        act(now, snapshot, director, index, decisions)
    return [
        Played(
            outcomes[str(row["id"])],
            Gauges(row["t_send_s"] - row["m_age_ms"] / 1000, row["m_running"], row["m_waiting"], row["m_kv_usage"], math.nan),
        )
        for row in rows
    ]


def _began_s(rows: list[dict[str, Any]]) -> float:
    return min((float(row["t_send_s"]) for row in rows), default=0.0)


def _moments(rows: list[dict[str, Any]]) -> Iterator[tuple[float, Any]]:
    """In order of time; what has ended at one moment has ended before the next is sent."""
    moments = []
    for place, row in enumerate(rows):
        at = float(row["t_send_s"])
        moments.append((at + row["ttft_ms"] / 1000, 0, place, functools.partial(_first_byte, row)))
        moments.append((at + max(row["e2e_ms"], row["ttft_ms"]) / 1000, 1, place, functools.partial(_ended, row)))
        moments.append((at, 2, place, functools.partial(_sent, row)))
    for now, _, _, act in sorted(moments, key=lambda moment: moment[:3]):
        yield now, act


def _sent(
    row: dict[str, Any],
    now: float,
    snapshot: FleetSnapshot,
    director: Director,
    index: PrefixIndex,
    decisions: dict[int, Decision],
) -> None:
    snapshot.worker_reported(
        EngineReport(
            worker=WORKER.worker,
            epoch=WORKER.epoch,
            sequence=row["id"],
            state=EngineState.READY,
            scrape_age_s=row["m_age_ms"] / 1000,
            running=int(row["m_running"]),
            waiting=int(row["m_waiting"]),
            kv_usage=float(row["m_kv_usage"]),
        ),
        now,
    )
    first = row["id"] << 32  # prompts were not recorded: blocks of its own, of which the index holds what was found
    chain = array("Q", range(first, first + row["prompt_tokens"] // BLOCK_TOKENS))
    held = chain[: row["cached_tokens"] // BLOCK_TOKENS]
    slot = snapshot.slot_of(WORKER.worker)
    assert slot is not None
    index.store(slot, held)
    request = Request(
        model=MODEL,
        input_tokens=row["prompt_tokens"],
        max_tokens=row["max_tokens"],
        request_id=str(row["id"]),
        streams=True,
    )
    decision = director.decide(Question(request, {BLOCK_TOKENS: chain}), now, reserve=True)
    index.remove(slot, held)
    assert isinstance(decision, Decision), f"request {row['id']} was refused: {decision}"
    decisions[row["id"]] = decision


def _first_byte(
    row: dict[str, Any], now: float, _s: FleetSnapshot, director: Director, _i: PrefixIndex, decisions: dict[int, Decision]
) -> None:
    director.first_byte(decisions[row["id"]].decision_id, row["ttft_ms"] / 1000, now)


def _ended(
    row: dict[str, Any], now: float, _s: FleetSnapshot, director: Director, _i: PrefixIndex, decisions: dict[int, Decision]
) -> None:
    ended = Ended(
        decision_id=decisions[row["id"]].decision_id,
        end=End.COMPLETE,
        http_status=200,
        ttft_s=row["ttft_ms"] / 1000,
        e2e_s=row["e2e_ms"] / 1000,
        output_tokens=row["output_tokens"],
        prompt_tokens=row["prompt_tokens"],
        cached_tokens=row["cached_tokens"],
        streamed=True,
        itl_s=-1.0 if row["tpot_ms"] is None else row["tpot_ms"] / 1000,
        request_id=str(row["id"]),
        model=MODEL,
        url=WORKER.url,
        input_tokens=row["prompt_tokens"],
    )
    director.ended(ended, now)
