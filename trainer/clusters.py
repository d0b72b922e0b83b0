"""The same LightGBM, fitted on a Dask cluster that is there already: for data sets larger than one machine's memory.

Samples are cut into as many parts as the cluster has workers; LightGBM's own network does the rest. The files are those of
the kind `lightgbm`: what is served does not know where it was fitted.
"""

from __future__ import annotations

import logging
import re
from typing import Any

import numpy as np

from prediction.booster import P50_FILE, SPREAD_FILE
from trainer.zoo import boosted
from trainer.zoo.kind import Fit, Floats, Progress, Training

CONNECT_S_MAX = 10.0
WORKERS_S_MAX = 30.0
PARTS_A_WORKER = 1
_ADDRESS = re.compile(r"((tcp|tls|ucx|ws|wss)://)?[^/]+:[0-9]+")


class ClusterError(Exception):
    """Dask is not installed, or the cluster does not answer."""


def connect(address: str, *, connect_s_max: float = CONNECT_S_MAX) -> Fit:
    """address: SCHEDULER:PORT, or a URL with its protocol. ClusterError."""
    if not _ADDRESS.fullmatch(address):  # given such a one, a client raises, and leaves a thread that never ends
        raise ClusterError(f"no cluster with workers answers at {address}: that is not SCHEDULER:PORT")
    try:
        import dask.array  # noqa: F401 - lightgbm.dask needs it
        import distributed
    except ImportError as error:
        raise ClusterError(f"Dask is not installed ({error.name}); install headway[dask]") from error
    logging.getLogger("distributed").setLevel(logging.ERROR)  # what it would say comes as an exception, too
    try:
        open_client: Any = distributed.Client
        client = open_client(address, timeout=connect_s_max, set_as_default=False)
        client.wait_for_workers(1, timeout=WORKERS_S_MAX)
    except (OSError, TimeoutError, ValueError) as error:
        raise ClusterError(f"no cluster with workers answers at {address}: {str(error).splitlines()[0]}") from error

    def fit(training: Training, seed: int, progress: Progress) -> dict[str, bytes]:
        with client.as_current():  # LightGBM asks for it in places where it cannot be given
            return _fit(client, training, seed, progress)

    return fit


def _fit(client: Any, training: Training, seed: int, progress: Progress) -> dict[str, bytes]:
    workers = len(client.scheduler_info()["workers"])
    progress(0.1)
    median = _regressor(client, training.columns, training.target, boosted.MEDIAN, boosted.TREES, workers, seed)
    progress(0.6)
    above = training.target - np.asarray(median.predict(training.columns, num_threads=1))
    spread = _regressor(client, training.columns, above, boosted.SPREAD, boosted.SPREAD_TREES, workers, seed)
    progress(1.0)
    return {P50_FILE: boosted.text(median), SPREAD_FILE: boosted.text(spread)}


def _regressor(client: Any, columns: Floats, target: Floats, own: dict[str, Any], trees: int, workers: int, seed: int) -> Any:
    """A lightgbm.Booster."""
    import dask.array
    from lightgbm import DaskLGBMRegressor

    array: Any = dask.array.from_array
    rows = -(-len(target) // (workers * PARTS_A_WORKER))
    parameters = boosted.parameters(own, seed=seed, samples=len(target)) | {"num_threads": 1}
    model = DaskLGBMRegressor(client=client, n_estimators=trees, tree_learner="data", **_sklearn_names(parameters))
    # Without an order within a part there is none to keep: LightGBM learns from the parts together.
    model.fit(array(columns, chunks=(rows, columns.shape[1])), array(target, chunks=(rows,)))
    return model.booster_


def _sklearn_names(parameters: dict[str, Any]) -> dict[str, Any]:
    """LightGBM's parameters under the names that its scikit-learn interface wants, which warns of both."""
    names = {"num_threads": "n_jobs", "seed": "random_state", "min_data_in_leaf": "min_child_samples"}
    return {names.get(name, name): value for name, value in parameters.items()}
