"""The kinds of states that endpoints are in when requests are sent to them: K-means, on logarithms. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import StandardScaler

from trainer.analysis.signals import Floats, Places, Signals

STATE = (
    *("input_tokens", "uncached_tokens", "active", "no_first_byte", "prefill_tokens", "prefill_wait_s", "head_tokens"),
    *("context_tokens", "running", "waiting", "kv_usage"),
)
"""What a state is made of: what was known of request and endpoint before the request was sent, learned speeds aside."""
CLUSTERS = 4
K_MAX = 10
SILHOUETTE_ROWS = 3_000
TSNE_ROWS = 2_000
STARTS = 10


@dataclass(frozen=True, slots=True)
class States:
    """names: of the signals used. By K: inertia_by_k, silhouette_by_k. cluster: (n,), numbered by ascending median TTFT.

    pca: (n, 2), explained: share of the variance on each axis, loadings: (2, len(names)). tsne: (len(tsne_rows), 2)."""

    names: list[str]
    inertia_by_k: dict[int, float]
    silhouette_by_k: dict[int, float]
    elbow_k: int
    cluster: Places
    pca: Floats
    explained: tuple[float, float]
    loadings: Floats
    tsne: Floats
    tsne_rows: Places

    @property
    def silhouette_k(self) -> int:
        return max(self.silhouette_by_k, key=lambda k: self.silhouette_by_k[k])


def find(signals: Signals, *, seed: int) -> States:
    """ValueError: fewer than two signals vary."""
    varying = set(signals.varying)
    names = [name for name in STATE if name in varying]
    if len(names) < 2:
        raise ValueError(f"states need two signals that vary; there are {', '.join(names) or 'none'}")
    scaled = StandardScaler().fit_transform(np.log1p(np.maximum(signals.matrix(names), 0.0)))
    rng = np.random.default_rng(seed)
    inertia, silhouette = _by_k(scaled, rng, seed)
    cluster = _by_ttft(_fit(scaled, min(CLUSTERS, len(signals)), seed).labels_, signals.ttft_s)
    pca = PCA(n_components=2, random_state=seed)
    flat = pca.fit_transform(scaled)
    shown = np.sort(rng.permutation(len(signals))[:TSNE_ROWS])
    embedding = TSNE(n_components=2, perplexity=min(30.0, (len(shown) - 1) / 3), init="pca", random_state=seed)
    explained = tuple(map(float, pca.explained_variance_ratio_))
    return States(
        names=names,
        inertia_by_k=inertia,
        silhouette_by_k=silhouette,
        elbow_k=elbow(inertia),
        cluster=cluster,
        pca=flat,
        explained=(explained[0], explained[1]),
        loadings=pca.components_,
        tsne=embedding.fit_transform(scaled[shown]),
        tsne_rows=shown,
    )


def elbow(inertia_by_k: dict[int, float]) -> int:
    """The K whose point lies farthest below the straight line from the first to the last."""
    ks = sorted(inertia_by_k)
    values = np.array([inertia_by_k[k] for k in ks])
    span = values[0] - values[-1]
    if span <= 0:
        return ks[0]
    across = np.linspace(1.0, 0.0, len(ks))
    return ks[int(np.argmax(across - (values - values[-1]) / span))]


def _fit(scaled: Floats, clusters: int, seed: int) -> KMeans:
    return KMeans(n_clusters=clusters, n_init=STARTS, random_state=seed).fit(scaled)


def _by_k(scaled: Floats, rng: np.random.Generator, seed: int) -> tuple[dict[int, float], dict[int, float]]:
    some = rng.permutation(len(scaled))[:SILHOUETTE_ROWS]
    distinct = len(np.unique(scaled[some], axis=0))
    inertia, silhouette = {}, {}
    for k in range(1, min(K_MAX, distinct - 1) + 1):
        model = _fit(scaled, k, seed)
        inertia[k] = float(model.inertia_)
        if k > 1:
            silhouette[k] = float(silhouette_score(scaled[some], model.labels_[some]))
    return inertia, silhouette


def _by_ttft(labels: Places, ttft_s: Floats) -> Places:
    """Numbers 0, 1, ... in the order of the clusters' median TTFT."""
    found = sorted(set(labels.tolist()), key=lambda label: float(np.median(ttft_s[labels == label])))
    rank = np.empty(max(found) + 1, dtype=np.intp)
    rank[found] = np.arange(len(found))
    ranked: Places = rank[labels]
    return ranked
