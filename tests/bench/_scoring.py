"""What a prediction costs: a decision by a model in the director, the runtimes that can score it, and what smaller trees cost
in accuracy. The model is trained here, on traffic of a simulated fleet from low load to overload."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from random import Random
from typing import Any

import lightgbm
import msgspec
import numpy as np

from contract.features import INDEX
from contract.outcome import End, Outcome
from contract.routing import Asked, pack, unpack_answers
from controlplane import profiles
from controlplane.director import Director
from controlplane.predictor import Floats, Forecaster
from controlplane.question import Decision, Ended, Question, Request
from controlplane.rankers import LeastPredicted
from controlplane.usual import UsualDirector
from loadgen.arrivals import RateProfile, Segment
from prediction import dataset, derive, scores
from prediction.booster import P50_FILE, Booster
from prediction.dataset import Dataset
from prediction.predictor import Calibrated
from simulation.chats import Chats
from simulation.control import Parts
from simulation.world import Setup, Simulation
from tests.bench._runtimes import FlatTrees
from tests.controlplane.parts import BLOCK, MODEL, Plant, hashes
from trainer.split import split
from trainer.train import Trained, train
from trainer.zoo import boosted
from trainer.zoo.kind import Training

BLOCKS = 64
PROMPTS = 200
CALLS = 1_500
ROUNDS = 3
RATES = (8.0, 40.0)
"""Requests a second, from and to, of eight tiny-cpu workers that can serve 36."""
SPEED = 5_000.0
"""Prefill tokens a second, that workers have shown."""
RAMP_S = 70.0
RAMPS = 2


def run() -> None:
    samples = traffic()
    trained = train(samples, kind="lightgbm", model_id="bench", seed=1, now_unix=0.0)
    print(
        f"Model: LightGBM trained on {len(samples)} requests to 8 simulated tiny-cpu workers, {RATES[0]:g} to {RATES[1]:g} a\n"
        f"second, {boosted.TREES} trees of {boosted.LEAVES} leaves for the median, {boosted.SPREAD_TREES} of "
        f"{boosted.SPREAD_LEAVES} for the spread. CPU time of one thread (thread_time), the best of {ROUNDS} rounds\n"
        f"by median. A decision: {BLOCKS} block hashes matched, rows filled, scored, corrected, reserved, remembered."
    )
    for workers in (8, 64):
        print(f"  {workers:3} workers, predictive, one question     {_decisions(trained, workers, 1)}")
    for workers, together in ((8, 8), (8, 32), (64, 8), (64, 32)):
        print(f"  {workers:3} workers, predictive, {together:2} a message     {_decisions(trained, workers, together)}")
    for workers in (8, 64):
        print(f"  {workers:3} workers, the same without a model     {_decisions(None, workers, 1)}")
    for workers, together in ((4, 1), (4, 16), (8, 1), (8, 16)):
        print(f"  {workers:3} workers, the short way, {together:2} a message    {_short(trained, workers, together)}")
    _runtimes(trained, samples)
    _sizes(samples)


def traffic() -> Dataset:
    outcomes: list[Outcome] = []
    chats = Chats("tiny")
    rates = RateProfile((Segment(*RATES, RAMP_S),) * RAMPS)
    setup = Setup(
        jobs=chats.jobs(rates, duration_s=RAMP_S * RAMPS, rng=Random(1)),
        shape=chats.shape,
        policy="lmetric",
        presets=("tiny-cpu",) * 8,
        parts=Parts(outcome=outcomes.append),
    )
    Simulation(setup).run()
    return dataset.of_table(dataset.from_outcomes([one for one in outcomes if dataset.is_sample(one)]))


# --------------------------------------------------------------------------------------------------------------- decisions


def _plant(trained: Trained | None, workers: int, *, director: type[Director] = Director) -> tuple[Plant, list[Question]]:
    """As tests.bench.decision has it: prompts held by one worker each, 8 requests under way a worker."""
    forecaster = Forecaster() if trained is None else Forecaster(trained.predictor, "bench")
    ranker = LeastPredicted(forecaster)
    built = profiles.build(predicted=ranker)
    plant = Plant(workers, policy="predictive", waiting_max=0, profiles=built, predicted=ranker, director=director)
    rng = Random(1)
    questions = []
    for number in range(PROMPTS):
        prompt = hashes(*(number * 10_000 + block for block in range(BLOCKS)))
        plant.index.store(rng.randrange(workers), prompt)
        request = Request(model=MODEL, input_tokens=BLOCK * BLOCKS + 5, max_tokens=64, request_id=f"r{number}")
        questions.append(Question(request, {BLOCK: prompt}))
    for number in range(8 * workers):
        plant.place(questions[number % PROMPTS], question_id=1_000_000 + number)
    return plant, questions


def _decisions(trained: Trained | None, workers: int, together: int) -> str:
    """CPU us a decision: median and p99 over messages of `together` questions."""
    best: list[float] = []
    for _ in range(ROUNDS):
        plant, questions = _plant(trained, workers)
        spent = []
        for call in range(CALLS // together):
            asked = [(number, questions[(call * together + number) % PROMPTS]) for number in range(together)]
            began = time.thread_time_ns()
            answers = plant.director.ask_all(asked, plant.now, owner="dp")
            spent.append((time.thread_time_ns() - began) / 1e3 / together)
            for _, answer in answers:
                assert isinstance(answer, Decision)
                plant.director.ended(Ended(decision_id=answer.decision_id, end=End.COMPLETE), plant.now)
            plant.outcomes.clear()
        best = min(best or spent, spent, key=np.median)
    return f"p50 {np.median(best):6.1f} us   p99 {np.quantile(best, 0.99):6.1f} us"


def _short(trained: Trained, workers: int, together: int) -> str:
    """As `_decisions`, from packed messages as data planes send them, prompts of many lengths (see controlplane.usual)."""
    plant, questions = _plant(trained, workers, director=UsualDirector)
    for endpoint in plant.snapshot.endpoints():
        endpoint.rates.prefill_tokens_per_s = SPEED
        endpoint.standing = None
    best: list[float] = []
    number = 0
    for _ in range(ROUNDS):
        spent = []
        for _ in range(CALLS // together):
            asked = []
            for _ in range(together):
                number += 1
                of = questions[number % PROMPTS]
                request = msgspec.structs.replace(of.request, input_tokens=BLOCK * BLOCKS + 5 + number % 2_999)
                asked.append(Asked(number, request, ((BLOCK, of.chains[BLOCK].tobytes()),)))
            began = time.thread_time_ns()
            answers = plant.director.answer_all(asked, plant.now, owner="dp")
            spent.append((time.thread_time_ns() - began) / 1e3 / together)
            for answer in unpack_answers(pack(answers)):
                plant.director.ended(Ended(decision_id=answer.decision_id, end=End.COMPLETE), plant.now)
            plant.outcomes.clear()
        best = min(best or spent, spent, key=np.median)
    return f"p50 {np.median(best):6.1f} us   p99 {np.quantile(best, 0.99):6.1f} us"


# ---------------------------------------------------------------------------------------------------------------- runtimes


def _runtimes(trained: Trained, samples: Dataset) -> None:
    """The median's trees alone, by whatever is installed here."""
    text = trained.bundle.files[P50_FILE].decode()
    width = len(derive.COLUMNS)
    package, library, flat = lightgbm.Booster(model_str=text), Booster(text, columns=width), FlatTrees(text)
    ways: dict[str, Callable[[Floats], Any]] = {
        "lightgbm.Booster.predict": lambda rows: package.predict(rows, num_threads=1),
        "C API matrix call by ctypes (served)": library.predict,
        "flat arrays, numpy, all trees at once": flat.predict,
    }
    ways |= _installed(text, width)
    print("Runtimes, the trees of the median alone, CPU us a call (thread_time, median), other rows in every call:")
    columns = derive.inputs(samples.rows)
    expected = library.predict(columns[:256])
    for name, predict in ways.items():
        assert np.allclose(np.ravel(predict(columns[:256])), expected, atol=1e-4), f"{name} predicts something else"
        cells = [f"{count:4} rows {_us(predict, columns, count):8.1f}" for count in (1, 8, 64, 256)]
        print(f"  {name:40} {'   '.join(cells)}")
    for count in (8, 64):
        print(f"  served, many rows, {count:2} of them: {_us(trained.predictor.predict, samples.rows, count):.1f}", end="")
        print(f" (columns made of features {_us(derive.inputs, samples.rows, count):.1f})")
    print(f"  served, a few rows,  8 of them: {_few_us(trained, columns):.1f} (columns are made where they are written)")


def _installed(text: str, width: int) -> dict[str, Callable[[Floats], Any]]:
    """Others that happen to be there; none of them is a dependency."""
    from tests.bench import _runtimes as others

    makers = {"treelite": others.treelite, "lleaves": others.lleaves, "onnxruntime": others.onnx}
    return {name: make(text, width) for name, make in makers.items() if find_spec(name) is not None}


def _us(predict: Callable[[Floats], Any], rows: Floats, count: int, calls: int = 400) -> float:
    """Of `count` rows. Each call has others: a processor learns the way through the trees of rows that it sees again and again,
    and takes half the time."""
    parts = [np.ascontiguousarray(rows[at : at + count]) for at in range(0, len(rows) - count, count)]
    spent = []
    for call in range(calls):
        part = parts[call % len(parts)]
        began = time.thread_time_ns()
        predict(part)
        spent.append(time.thread_time_ns() - began)
    return float(np.median(spent)) / 1e3


def _few_us(trained: Trained, columns: Floats, count: int = 8) -> float:
    assert isinstance(trained.predictor, Calibrated)
    few = trained.predictor.few(count)
    assert few is not None
    starts, known = derive.log_estimate(columns).tolist(), [False] * count

    def predict(part: Floats) -> None:
        few.rows[:] = part.tobytes()
        few.predict(starts[:count], known)

    return _us(predict, columns, count)


# ------------------------------------------------------------------------------------------------------------------- sizes


@dataclass(frozen=True, slots=True)
class _Judged:
    """On samples of other moments. mape: of the middle zone; rank: how often the fastest of four was put first."""

    mape: float
    rank: float


def _sizes(samples: Dataset) -> None:
    """Smaller trees, and a bound that spares the model all candidates but the likely ones."""
    divided = split(samples)
    learn = divided.learn
    training = Training(learn.rows, learn.ttft_s, learn.decided_at, learn.worker)
    columns = derive.inputs(divided.judge.rows)
    start = derive.log_estimate(columns)
    print(f"Sizes of the median's trees, judged on {len(divided.judge)} requests of other moments:")
    print(f"  {'the estimate alone':28} {_line(_judge(divided.judge, np.exp(start)))}")
    for trees, leaves in ((25, 7), (25, 15), (50, 15), (50, 31), (100, 31), (100, 63), (200, 31), (200, 63)):
        own = boosted.MEDIAN | {"num_leaves": leaves}
        made = boosted.booster(training.columns, training.target, own, trees, seed=1, progress=lambda _: None)
        model = Booster(boosted.text(made).decode(), columns=len(derive.COLUMNS))
        found = np.exp(model.predict(columns) + start)
        print(
            f"  {trees:3} trees x {leaves:2} leaves         {_line(_judge(divided.judge, found))}   "
            f"8 rows {_us(model.predict, columns, 8):5.1f} us   64 rows {_us(model.predict, columns, 64):6.1f} us"
        )
        if (trees, leaves) == (boosted.TREES, boosted.LEAVES):
            served = found
    print("A bound before the model: candidates whose own estimate is above so many times the least are not scored.")
    for times in (1.5, 2.0, 3.0, 5.0):
        share, rank = _bounded(divided.judge, np.exp(start), served, times)
        print(f"  {times:3g} x: {share:4.0%} of four candidates are scored, the fastest is first in {rank:.1%}")


def _judge(samples: Dataset, p50_s: Floats) -> _Judged:
    found = scores.score(
        samples.ttft_s, p50_s, p50_s, samples.decided_at, lengths=samples.rows[:, INDEX["input_tokens"]], seed=1
    )
    return _Judged(found.zones[1].mape, found.overall.rank_accuracy)


def _line(judged: _Judged) -> str:
    return f"MAPE in 1 to 10 s {judged.mape:5.1%}   fastest of 4 first {judged.rank:5.1%}"


def _bounded(samples: Dataset, estimate_s: Floats, p50_s: Floats, times: float) -> tuple[float, float]:
    """Share of rows scored, and rank accuracy when the others are left out."""
    sets = scores.candidate_sets(samples.ttft_s, samples.decided_at, np.random.default_rng(1))
    kept = estimate_s[sets] <= times * estimate_s[sets].min(axis=1, keepdims=True)
    chosen = np.where(kept, p50_s[sets], np.inf).argmin(axis=1)
    return float(kept.mean()), float((chosen == samples.ttft_s[sets].argmin(axis=1)).mean())
