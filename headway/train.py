"""`headway train`: a model of TTFT, from a file here and now, or by the trainer from the running stack's traffic.

With --from, samples are read from a Parquet or CSV file, a directory of them, or a recording as `headway analyze` takes it; a
model of the kind is fitted, its p90 is calibrated, and the table says how it does on the samples that had no part in it; --kind
all compares the whole zoo. --out keeps the model in a registry directory. Without --from, or with --submit, the trainer
trains, judges it against the model that serves, and puts it into shadow where it is better.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from contract.features import INDEX
from headway import recorded_profile
from headway.arguments import new_file
from headway.errors import UsageError, said
from headway.model_tables import CHOICE_LEGEND, LEGEND, choice_table, scores_of, zone_table
from headway.trainer_client import add_trainer_argument, call
from prediction import choices, dataset
from prediction.choices import Chosen
from prediction.dataset import Dataset
from prediction.errors import DatasetError
from prediction.scores import Scores, score
from proto import trainer_pb2, trainer_pb2_grpc
from trainer.evaluate import evaluate
from trainer.registry import Registry, RegistryError
from trainer.reservoir import thin
from trainer.split import PARTS, judges
from trainer.train import Trained, TrainError, train
from trainer.workshop import model_id
from trainer.zoo import DEFAULT, KINDS
from trainer.zoo.kind import Fit

WIDTH = 140
SEEDS = 1 << 31
ALL = "all"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--from", dest="source", metavar="PATH", help="Parquet or CSV file of samples, or a directory of them")
    parser.add_argument("--kind", default=DEFAULT, help=f"{', '.join(KINDS)}, or all (default %(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep the model in this registry directory")
    parser.add_argument(
        "--cross", action="store_true", help="five models, so that every sample is judged once, by one it did not teach"
    )
    parser.add_argument(
        "--judge-by", metavar="PATH", help="figures on these samples (default: on a part of --from that taught nothing)"
    )
    parser.add_argument(
        "--choices",
        type=Path,
        metavar="FILE",
        help="and how the model would have chosen: choices.parquet of another profile (`headway profile --simulate --choices`)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of everything that is drawn (default 1)")
    parser.add_argument(
        "--samples-max", type=int, default=0, metavar="N", help="train on N of them, rare states kept (default: all)"
    )
    parser.add_argument("--dask", default="", metavar="SCHEDULER:PORT", help="fit on this Dask cluster (kind lightgbm)")
    parser.add_argument("--submit", action="store_true", help="let the trainer do it with --from's path, as it sees it")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the figures there")
    add_trainer_argument(parser)


def run(args: argparse.Namespace) -> int:
    """0. UsageError: nothing to train on, or nobody who would."""
    if args.kind != ALL and args.kind not in KINDS:
        raise UsageError(f"--kind: no kind {args.kind!r}; there are {', '.join(KINDS)}, {ALL}")
    if not 0 <= args.seed < SEEDS:
        raise UsageError(f"--seed: {args.seed} is not between 0 and {SEEDS - 1}")
    if args.cross and (args.out or args.source is None or args.submit):
        raise UsageError("--cross: makes figures, no model to keep: give --from, without --out and --submit")
    if args.choices and (args.source is None or args.submit or args.cross):
        raise UsageError("--choices: judges a model that is trained here: give --from, without --cross and --submit")
    if args.judge_by and (args.source is None or args.submit or args.cross):
        raise UsageError("--judge-by: judges a model that is trained here: give --from, without --cross and --submit")
    if args.samples_max < 0:
        raise UsageError(f"--samples-max: {args.samples_max} is below 0")
    console = Console(stderr=True)
    if args.source is None or args.submit:
        return _ask(args, console)
    try:
        return _train_here(args, console)
    except (DatasetError, TrainError, RegistryError) as error:
        raise UsageError(f"train: {error}") from None
    except OSError as error:
        raise UsageError(f"train: {said(error, args.json or args.out or args.source)}") from None


# ---------------------------------------------------------------------------------------------------------------------- here


def _train_here(args: argparse.Namespace, console: Console) -> int:
    fit = _cluster_fit(args)
    samples = _thinned(_read(args.source), args.samples_max, args.seed)
    kinds = list(KINDS) if args.kind == ALL else [args.kind]
    registry = Registry(args.out) if args.out else None
    asked = choices.read(args.choices) if args.choices else None
    other = _read(args.judge_by) if args.judge_by else None
    made: list[tuple[str, Scores]] = []
    chosen: list[tuple[str, tuple[tuple[Chosen, ...], Chosen]]] = []
    for kind in kinds:
        if args.cross:
            made.append((kind, _crossed(samples, kind, args.seed, console, fit)))
            continue
        began = time.perf_counter()
        trained = _one(samples, kind, args.seed, console, fit)
        took_s = time.perf_counter() - began
        made.append((kind, trained.scores if other is None else evaluate(trained.predictor, other, seed=args.seed)))
        if asked is not None:
            chosen.append((kind, choices.judge(asked, trained.predictor.predict(asked.rows)[0])))
        name = trained.bundle.manifest.model_id
        console.print(f"{kind}: {trained.bundle.manifest.samples:,} samples in {took_s:.1f} s", style="dim", highlight=False)
        if registry is not None:
            registry.add(trained.bundle, trained.scores, now_unix=time.time())
            console.print(f"kept as {name} in {args.out}", style="dim", highlight=False)
    _show(made, args.json)
    if chosen:
        out = _wide()
        out.print(choice_table(chosen), highlight=False)
        out.print(CHOICE_LEGEND, style="dim", highlight=False)
    return 0


def _crossed(samples: Dataset, kind: str, seed: int, console: Console, fit: Fit | None) -> Scores:
    models = [_one(samples, kind, seed, console, fit, turn) for turn in range(PARTS)]
    p50_s, p90_s = np.zeros(len(samples)), np.zeros(len(samples))
    for turn, trained in enumerate(models):
        judged = judges(samples, turn=turn)
        p50_s[judged], p90_s[judged] = trained.predictor.predict(samples.take(judged).rows)
    lengths = samples.rows[:, INDEX["input_tokens"]]
    predict_us = min(trained.scores.predict_us for trained in models)
    return score(samples.ttft_s, p50_s, p90_s, samples.decided_at, lengths=lengths, seed=seed, predict_us=predict_us)


def _one(samples: Dataset, kind: str, seed: int, console: Console, fit: Fit | None, turn: int = 0) -> Trained:
    with _bar(console) as progress:
        task = progress.add_task(f"{kind}: reading", total=1.0)

        def tell(stage: str, done: float, _message: str) -> None:
            progress.update(task, description=f"{kind}: {stage}", completed=done)

        now_unix = time.time()
        return train(
            samples,
            kind=kind,
            model_id=model_id(kind, now_unix),
            seed=seed,
            now_unix=now_unix,
            tell=tell,
            note="by hand",
            fit=fit,
            turn=turn,
        )


def _read(source: str) -> Dataset:
    """DatasetError. A client's recording of one vLLM is read as `headway analyze` reads it."""
    path = Path(source)
    if recorded_profile.is_recording(path):
        return dataset.of_table(recorded_profile.read(path), source)
    return dataset.read(source)


def _thinned(samples: Dataset, limit: int, seed: int) -> Dataset:
    if not 0 < limit < len(samples):
        return samples
    return samples.take(thin(samples.rows, limit, np.random.default_rng(seed)))


def _cluster_fit(args: argparse.Namespace) -> Fit | None:
    """UsageError: Dask is not installed, the cluster does not answer, or the kind cannot be fitted there."""
    if not args.dask:
        return None
    if args.kind != DEFAULT:
        raise UsageError(f"--dask: fits the kind {DEFAULT} only")
    from trainer.clusters import ClusterError, connect

    try:
        return connect(args.dask)
    except ClusterError as error:
        raise UsageError(f"--dask: {error}") from None


def _show(made: list[tuple[str, Scores]], path: Path | None) -> None:
    if path is not None:
        import msgspec

        path.write_bytes(msgspec.json.format(msgspec.json.encode(dict(made)), indent=1))
    out = _wide()
    out.print(zone_table(made), highlight=False)
    out.print(LEGEND, style="dim", highlight=False)


def _wide() -> Console:
    out = Console()
    out.width = max(out.width, WIDTH)
    return out


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


# --------------------------------------------------------------------------------------------------------- by the trainer


def _ask(args: argparse.Namespace, console: Console) -> int:
    if args.kind == ALL or args.dask or args.out:
        raise UsageError("train: --kind all, --dask and --out train here: give --from, without --submit")
    if args.submit and args.source is None:
        raise UsageError("train: --submit needs --from")
    request = trainer_pb2.TrainRequest(
        kind=args.kind,
        dataset=str(Path(args.source).absolute()) if args.source else "",
        samples_max=args.samples_max,
        seed=args.seed,
    )
    last = call(args, lambda channel: _followed(trainer_pb2_grpc.TrainerStub(channel), request, console))
    _show([(last.model.kind, scores_of(last.model.evaluation))], args.json)
    print(f"{last.model.model_id} {last.message}")
    return 0


def _followed(
    stub: trainer_pb2_grpc.TrainerStub, request: trainer_pb2.TrainRequest, console: Console
) -> trainer_pb2.TrainProgress:
    """The last message, which carries the model."""
    last = trainer_pb2.TrainProgress()
    with _bar(console) as progress:
        task: TaskID = progress.add_task("asking", total=1.0)
        for last in stub.Train(request):
            progress.update(task, description=f"{request.kind}: {last.stage}", completed=last.done)
    return last
