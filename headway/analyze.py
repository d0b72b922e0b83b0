"""`headway analyze DATA --out DIR`: the state space of a profile, as figures and a report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pyarrow as pa

from headway import recorded_profile
from headway.errors import UsageError, said
from prediction import dataset
from prediction.dataset import Dataset
from prediction.errors import DatasetError
from trainer.analysis import findings, report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", type=Path, help="data set of `headway profile` (Parquet, CSV, a directory of them), or a client's CSV of a vLLM"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for report.md, report.html and the figures")
    parser.add_argument("--name", default="", help="in the report's title (default: the data's file name)")
    parser.add_argument("--where", default="", metavar="COLUMN=VALUE", help="only these rows, such as bucket=512-1024")
    parser.add_argument("--below", default="", metavar="COLUMN=NUMBER", help="only rows below it, such as other_cpu=0.4")
    parser.add_argument(
        "--dataset", type=Path, metavar="FILE.parquet", help="also write the rows as `headway train` reads them"
    )
    parser.add_argument("--seed", type=int, default=0, help="of K-means, t-SNE and permutations")


def run(args: argparse.Namespace) -> int:
    """0: written. UsageError: the data cannot be read, or says too little."""
    try:
        if args.out.exists() and not args.out.is_dir():
            raise UsageError(f"analyze: --out: {args.out} is no directory")
        samples = _chosen(read(args.data), args)
        if args.dataset is not None:
            dataset.write(samples.table, args.dataset)
        args.out.mkdir(parents=True, exist_ok=True)
        found = findings.find(samples, name=args.name or args.data.name, seed=args.seed, tell=_tell)
        _tell("figures and report")
        written = report.write(found, args.out)
    except (DatasetError, ValueError) as error:
        raise UsageError(f"analyze: {error}") from None
    except OSError as error:
        raise UsageError(f"analyze: {said(error, args.out)}") from None
    for path in written:
        print(path)
    return 0


def read(path: Path) -> Dataset:
    """A data set of ours, or a client's recording of one vLLM. DatasetError."""
    if recorded_profile.is_recording(path):
        return dataset.of_table(recorded_profile.read(path), str(path))
    return dataset.read(path)


def _chosen(samples: Dataset, args: argparse.Namespace) -> Dataset:
    for text, option in ((args.where, "--where"), (args.below, "--below")):
        if not text:
            continue
        name, equals, value = text.partition("=")
        if not equals or name not in samples.table.column_names:
            raise UsageError(f"analyze: {option}: {text!r} is not COLUMN=VALUE with a column of the data set")
        column = samples.table.column(name)
        try:
            if option == "--where":
                mask = pa.compute.equal(column.cast(pa.string()), value)
            else:
                mask = pa.compute.less(column.cast(pa.float64()), float(value))
        except (pa.ArrowException, ValueError):
            raise UsageError(f"analyze: {option}: column {name} and {value!r} do not compare") from None
        samples = samples.take(pa.compute.fill_null(mask, False).to_numpy())
    return samples


def _tell(text: str) -> None:
    print(f"analyze: {text} ...", file=sys.stderr, flush=True)
