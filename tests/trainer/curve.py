"""How the error falls with the samples: python -m tests.trainer.curve DATA [FIGURE.png]

DATA: a data set of many samples (`headway profile --simulate --rows 60000`). A fifth of its moments judges, the same in
every line; the rest, from a share of it up to all, teaches. Shares are whole moments, so that neighbours in time stay together.
"""

from __future__ import annotations

import sys

import numpy as np

from prediction import dataset
from prediction.dataset import Dataset
from prediction.scores import Scores
from prediction.zones import ZONES
from trainer.evaluate import evaluate
from trainer.split import SLICE_S, split
from trainer.train import train

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
SEED = 1
DRAWN_MIN = 50
"""Samples of a zone that judge; a line through fewer would be chance."""


def lessons(samples: Dataset, share: float) -> Dataset:
    """A share of its moments, drawn."""
    slices = np.floor(samples.decided_at / SLICE_S).astype(np.int64)
    found = np.unique(slices)
    drawn = np.random.default_rng(SEED).permutation(found)[: max(1, round(share * len(found)))]
    return samples.take(np.flatnonzero(np.isin(slices, drawn)))


def main() -> None:
    divided = split(dataset.read(sys.argv[1]))
    points: list[tuple[int, Scores]] = []
    print(f"{'samples':>8}  " + "  ".join(f"{'MAPE ' + zone:>11}" for zone in (*ZONES, "all")) + f"  {'rank':>7}")
    for share in SHARES:
        taught = lessons(divided.learn, share)
        model = train(taught, kind="lightgbm", model_id="curve", seed=SEED, now_unix=0.0).predictor
        scores = evaluate(model, divided.judge, seed=SEED)
        points.append((len(taught), scores))
        cells = "  ".join(f"{one.mape:11.1%}" for one in (*scores.zones, scores.overall))
        print(f"{len(taught):8,}  {cells}  {scores.overall.rank_accuracy:7.1%}", flush=True)
    if len(sys.argv) > 2:
        draw(points, sys.argv[2])


def draw(points: list[tuple[int, Scores]], path: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6), dpi=110)
    counts = [count for count, _ in points]
    for place, zone in enumerate(ZONES):
        if points[0][1].zones[place].samples < DRAWN_MIN:
            continue
        axes.plot(counts, [100 * scores.zones[place].mape for _, scores in points], marker="o", label=zone)
    axes.axhline(8, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlabel="samples that teach", ylabel="MAPE, %", ylim=(0, None))
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
