"""Made-up traffic with a known law: endpoints with queues, TTFT = (queue + own work) / speed + overhead, times noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from contract.features import FEATURES, INDEX, PAIRS_A_TOKEN, VERSION
from contract.outcome import SCHEMA, End, Outcome
from prediction import dataset
from prediction.dataset import Dataset

NOISE = 0.08
"""Standard deviation of log TTFT around the law."""
START = 1_800_000_000.0
RATE = 20.0
"""Decisions a second."""


def rows(count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    made = np.zeros((count, len(FEATURES)))

    def put(name: str, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        made[:, INDEX[name]] = values
        return values

    tokens = put("input_tokens", np.floor(np.exp(rng.uniform(3.0, 10.0, count))))
    matched = put("matched_tokens", np.floor(tokens * rng.choice([0.0, 0.3, 0.9], count) / 16) * 16)
    uncached = put("uncached_tokens", tokens - matched)
    queued = put("no_first_byte", rng.poisson(rng.choice([0.0, 1.0, 8.0], count)).astype(float))
    put("active", queued + rng.poisson(6.0, count))
    prefill = put("prefill_tokens", np.floor(queued * rng.uniform(100, 8_000, count)))
    put("prefill_pairs", prefill * 2_000.0)
    put("head_tokens", np.where(queued > 0, prefill / np.maximum(queued, 1), 0.0))
    put("context_tokens", made[:, INDEX["active"]] * 2_500.0)
    put("prefill_tokens_per_s", rng.choice([8_000.0, 20_000.0], count))
    put("prefill_wait_s", np.where(queued > 0, rng.uniform(0.0, 0.2, count), 0.0))
    put("decode_itl_s", rng.uniform(0.01, 0.03, count))
    put("cache_tokens", np.full(count, 435_000.0))
    put("seats", np.full(count, 256.0))
    put("hold_s", rng.uniform(1.0, 4.0, count))
    put("report_age_s", rng.uniform(0.0, 0.1, count))
    foresee(made)
    assert np.all(uncached >= 0)
    return made


def foresee(made: npt.NDArray[np.float64]) -> None:
    """Sets begins_s to what follows from the queue: a seat is free for everybody."""
    work = made[:, INDEX["prefill_tokens"]] + made[:, INDEX["prefill_pairs"]] / PAIRS_A_TOKEN
    waited = made[:, INDEX["prefill_wait_s"]]
    made[:, INDEX["begins_s"]] = np.maximum(work / made[:, INDEX["prefill_tokens_per_s"]] - waited, 0.0)


def law(made: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Median TTFT, seconds."""
    uncached, tokens = made[:, INDEX["uncached_tokens"]], made[:, INDEX["input_tokens"]]
    work = made[:, INDEX["prefill_tokens"]] + uncached
    work = work + (made[:, INDEX["prefill_pairs"]] + uncached * (tokens - uncached / 2)) / PAIRS_A_TOKEN
    waited = made[:, INDEX["prefill_wait_s"]]
    return 0.02 + np.maximum(work / made[:, INDEX["prefill_tokens_per_s"]] - waited, 0.0) * 1.1


def outcomes(
    count: int,
    seed: int,
    *,
    first_id: int = 1,
    at: float = START,
    slower: float = 1.0,
    shuffled: bool = False,
) -> list[Outcome]:
    """slower: TTFT is so many times what the law says. shuffled: TTFTs belong to other requests."""
    rng = np.random.default_rng(seed)
    made = rows(count, rng)
    ttft_s = law(made) * slower * np.exp(rng.normal(0.0, NOISE, count))
    if shuffled:
        ttft_s = rng.permutation(ttft_s)
    return [
        Outcome(
            schema=SCHEMA,
            decision_id=first_id + place,
            request_id=f"r{first_id + place}",
            decided_at=at + place / RATE,
            model="m",
            tenant="",
            worker=f"w{place % 4}",
            url=f"http://w{place % 4}",
            policy="lmetric",
            end=End.COMPLETE,
            http_status=200,
            attempt=0,
            streamed=True,
            input_tokens=int(row[INDEX["input_tokens"]]),
            matched_tokens=int(row[INDEX["matched_tokens"]]),
            cached_tokens=-1,
            output_tokens=10,
            ttft_s=float(one),
            itl_s=0.01,
            e2e_s=float(one) + 0.1,
            predicted_ttft_s=-1.0,
            snapshot_age_s=0.0,
            candidates=4,
            feature_version=VERSION,
            features=row.tolist(),
        )
        for place, (row, one) in enumerate(zip(made, ttft_s, strict=True))
    ]


def samples(count: int, seed: int, **options: object) -> Dataset:
    return dataset.of_table(dataset.from_outcomes(outcomes(count, seed, **options)))  # type: ignore[arg-type]
